"""The faults on other clusters: in nftables mode, between racks, and by IPv6; in each those that may differ there."""

from collections.abc import Callable, Iterator

import pytest

from tests import faulted
from tests.faulted import Cluster, Row
from tests.kernel import needs

IN_RULES = {
    "forward-drop", "hairpin-no-masquerade", "no-masquerade", "double-nat", "local-policy", "no-endpoints",
    "wrong-target-port", "policy-forgets-dns", "partition", "loss", "vxlan-checksum", "snat-collision",
}  # fmt: skip
CLUSTERS = {
    "nftables": ("nftables", faulted.WORLD), "racks": ("iptables", "racks"), "dual-stack": ("iptables", "dual-stack"),
}  # fmt: skip
ROWS = [
    *(("nftables", row) for row in faulted.rows() if row.words[0] in IN_RULES),
    *((world, row) for world in ("racks", "dual-stack") for row in faulted.rows(world)),
]
IPV6 = ("IPv6", "bridge-nf-call-ip6tables", "vxlan over IPv6", "IPv6 nat", "IPv6 masquerade --random-fully")
Standing = tuple[Cluster, dict[str, str]]


@pytest.fixture(scope="module")
def standing() -> Iterator[Callable[[str], Standing]]:
    """The cluster of a world, with what the kernel's own tools print of it: one at a time, for all rows."""
    there: dict[str, Standing] = {}

    def of(name: str) -> Standing:
        if name not in there:
            _all_down(there)
            there[name] = Cluster(*CLUSTERS[name]), {}
            there[name][1].update(faulted.healthy(there[name][0]))
        return there[name]

    yield of
    _all_down(there)


def _all_down(there: dict[str, Standing]) -> None:
    while there:
        there.popitem()[1][0].down()


@pytest.mark.parametrize(("world", "row"), ROWS, ids=str)
def test_a_fault_is_seen_named_and_undone(standing: Callable[[str], Standing], world: str, row: Row) -> None:
    if world == "dual-stack":
        needs.features(*IPV6)
    faulted.proved(*standing(world), row)
