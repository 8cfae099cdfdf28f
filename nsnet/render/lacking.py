"""What is left out where the kernel lacks it: rules that match SCTP ports, and the chains to which only they led.

`reconcile.possible` tries such a rule before anything is stored, and says in the Cluster's annotations where it fails.
Without them what is for an SCTP port fares as if no Service, hostPort or policy named it; all else is as it was. The
nftables mode of kube-proxy reads ports without a match of their own: its rules stay.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator

import msgspec

from nsnet import model
from nsnet.state import Chain, Key, State, Value

_SCTP = re.compile(r"-p sctp .*-m (?:sctp|multiport) ")
_TARGET = re.compile(r"-j (\S+)")
_GO_WITH_THEM = (
    "KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-", "LB-SVC-", "CNI-DN-", "CNI-HOSTPORT-SETMARK",
)  # fmt: skip


def without(cluster: model.Cluster, state: State) -> State:
    """The part of the state that this cluster's kernel can have."""
    if model.LACKS not in cluster.metadata.annotations:
        return state
    return {netns: _without_sctp(values) for netns, values in state.items()}


def _without_sctp(values: frozenset[Value]) -> frozenset[Value]:
    chains = {value.key: value for value in values if isinstance(value, Chain)}
    kept = {key: _kept(chain) for key, chain in chains.items()}
    named = Counter(target for chain in kept.values() for target in _targets(chain, chain.rules))
    lost = [
        target for key, chain in chains.items() for target in _targets(chain, set(chain.rules) - set(kept[key].rules))
    ]
    while lost:
        target = lost.pop()
        if target in kept and not named[target] and target[3].startswith(_GO_WITH_THEM):
            gone = kept.pop(target)
            further = list(_targets(gone, gone.rules))
            named.subtract(further)
            lost += further
    return (values - frozenset(chains.values())) | frozenset(kept.values())


def _kept(chain: Chain) -> Chain:
    rules = tuple(rule for rule in chain.rules if not _SCTP.search(rule))
    return msgspec.structs.replace(chain, rules=rules)


def _targets(chain: Chain, rules: Iterable[str]) -> Iterator[Key]:
    return (("chain", chain.family, chain.table, found[1]) for rule in rules if (found := _TARGET.search(rule)))
