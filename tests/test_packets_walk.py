"""The packet tables (tests/packets/*.txt), asked of a walk over the rendered state: no root, every mode.

With real packets the same rows are asked in tests/kernel/test_packets.py.
"""

import pytest

from nsnet.trace import Packet, Way, answer, walk
from nsnet.verify.modes import SITUATIONS
from tests import packets
from tests.packets import Row
from tests.structure import faults

EVERY = [
    pytest.param(mode, stem, row, id=f"{mode} {stem} {row}")
    for mode in packets.MODES
    for stem in packets.FILES
    for row in packets.rows(stem, mode)
]
OWNERS = {netns: name for name, netns in packets.NETNS.items()}
SERVING = {("node1", 6443): "api", ("node2", 9100): "host"}


def who(way: Way) -> str:
    if way.result != "delivered":
        return "closed" if "closes the connection" in way.reason else way.result
    name = OWNERS[way.netns]
    return SERVING.get((name, way.packet.dport), name)


def ways(mode: str, stem: str, row: Row) -> tuple[Packet, list[Way]]:
    packet = Packet(row.protocol, row.address, row.port, sport=40000)
    return packet, walk(packets.state(stem, mode), packets.NETNS[row.sender], packet)


def told(found: list[Way]) -> str:
    return "\n\n".join("\n".join([str(way), *(f"    {hop}" for hop in way.hops)]) for way in found)


@pytest.mark.parametrize(("mode", "stem", "row"), EVERY)
def test_row(mode: str, stem: str, row: Row) -> None:
    packet, found = ways(mode, stem, row)
    assert {who(way) for way in found} == row.who, told(found)
    sources = {way.packet.src for way in found if way.result == "delivered"}
    assert sources == row.sources, told(found)
    for way in found:
        if way.result == "delivered":
            back = answer(packets.state(stem, mode), way, packet)
            ends = [(end.result, end.netns) for end in back]
            assert ends == [("delivered", packets.NETNS[row.sender])], told([way, *back])


@pytest.mark.parametrize("stem", packets.FILES)
@pytest.mark.parametrize("mode", packets.MODES)
def test_rules_hang_together(mode: str, stem: str) -> None:
    assert faults(packets.state(stem, mode)) == []


def test_the_tables_are_large_enough_to_mean_something() -> None:
    assert all(sum(len(packets.rows(stem, mode)) for stem in packets.FILES) >= 150 for mode in packets.MODES)


def test_modes_differ_only_where_upstream_means_it() -> None:
    """Every difference that a row names is in the table, and every difference of the table has a row."""
    for mode in packets.MODES:
        named = {row.situation for stem in packets.FILES for row in packets.rows(stem, mode)} - {""}
        assert named == set(SITUATIONS.get(mode, {}))
