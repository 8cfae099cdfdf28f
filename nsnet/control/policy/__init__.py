"""NetworkPolicy: what it says (`spec`), whom it means (`index`), what follows (`decide`), and in words (`words`).

    objects ─index→ Index ─decided→ Decision ─because→ lines

Pure. `verify`, `trace` and the verb `policy` ask here; the data plane has a spelling of its own, tested against this.
"""

from collections.abc import Sequence

from nsnet.control.policy.decide import Clause, Decision, Side, allows, as_source, decide, decided, egress, end, ingress
from nsnet.control.policy.doubts import Known, doubts
from nsnet.control.policy.index import End, Index, index
from nsnet.control.policy.spec import KIND, Policy, account, are_any, policies, policy, written
from nsnet.control.policy.words import HOST_NETWORK, because, sentence

__all__: Sequence[str] = (
    "HOST_NETWORK", "KIND", "Clause", "Decision", "End", "Index", "Known", "Policy", "Side", "account", "allows",
    "are_any", "as_source", "because", "decide", "decided", "doubts", "egress", "end", "index", "ingress", "policies",
    "policy", "sentence", "written",
)  # fmt: skip
