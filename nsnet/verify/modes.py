"""Where kube-proxy's modes differ by upstream's own design: one table, each difference with its reason.

The modes must agree in everything else. Who compares them (the packet tables, `tests/test_modes_agree.py`,
`verify --compare-modes`) lets only these rows through. The usual result is that of the iptables mode.
Sources: facts/KUBEPROXY.md §1, §5; KEP-3866 (nftables).
"""

from collections.abc import Mapping
from typing import NamedTuple


class Difference(NamedTuple):
    """A situation, what a packet in it meets instead of what iptables mode does, and why that is meant."""

    usual: str
    instead: str
    reason: str


NFTABLES: Mapping[str, Difference] = {
    "other port": Difference(
        "routed on",
        "refused",
        "the set cluster-ips knows every clusterIP: ports that no Service has are refused, not routed on",
    ),
    "unallocated": Difference(
        "routed on", "dropped", "an address of the Service range that no Service has is dropped, not routed on"
    ),
    "loopback": Difference(
        "served",
        "the node's own",
        "node ports on 127.0.0.1 need route_localnet, a known hole (CVE-2020-8558): left out on purpose",
    ),
    "other address": Difference(
        "served",
        "the node's own",
        "node ports are served on the node's primary address, or where nodePortAddresses say",
    ),
    "ranges first": Difference(
        "refused", "dropped", "source ranges are asked before all else, so they hold where there is no endpoint, too"
    ),
    "own output": Difference(
        "routed on",
        "refused",
        "what the node itself sends is asked for external addresses without endpoint, too; iptables mode asks INPUT "
        "and FORWARD alone",
    ),
}

DIFFERENCES: Mapping[str, Mapping[str, Difference]] = {"nftables": NFTABLES}
"""mode → situation → difference; a mode that is not here has none."""
