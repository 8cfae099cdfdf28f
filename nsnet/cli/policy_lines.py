"""`rules`' part about NetworkPolicy: the packet filters of a node's isolated pods, each rule with what it is for."""

from collections.abc import Callable, Collection, Iterator, Mapping

from nsnet import names
from nsnet.cli.output import coloured
from nsnet.state import Chain, Family, NftChain, Value

_HEADS = ("KUBE-ROUTER-", "KUBE-POD-FW-", "KUBE-NWPLCY-")  # in the order in which a packet meets them

Explain = Callable[[str, Collection[str], Mapping[str, str]], Iterator[str]]
"""chain, rules, who has an address → the lines; `explain` has one for iptables and one for nftables."""


def policy_lines(
    values: Collection[Value], family: Family, pods: Mapping[str, str], iptables: Explain, nftables: Explain
) -> Iterator[str]:
    """All lines for a family; none where no policy selects a pod of the node."""
    chains = [value for value in values if isinstance(value, Chain) and value.family == family]
    mine = sorted((value for value in chains if value.name.startswith(_HEADS)), key=_order)
    tables = [value for value in values if isinstance(value, NftChain) and value.family == family]
    nft = sorted(
        (value for value in tables if value.table == names.POLICY_TABLE), key=lambda one: (not one.hook, one.name)
    )
    if not mine and not nft:
        return
    yield coloured("network policies", "cyan")
    for value in sorted((one for one in chains if one.policy), key=lambda one: one.name):
        yield from iptables(value.name, [rule for rule in value.rules if "-j KUBE-ROUTER-" in rule], pods)
    for value in mine:
        yield from iptables(value.name, value.rules, pods)
    for chain in nft:
        yield from nftables(chain.name, chain.rules, pods)
    yield ""


def _order(chain: Chain) -> tuple[int, str]:
    return next(place for place, head in enumerate(_HEADS) if chain.name.startswith(head)), chain.name
