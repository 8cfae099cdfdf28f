"""What a connection meets beyond its first packet: packets of full size, and clients that were here before.

The first packet is small and new. A path that takes it may lose every large one after it, and an entry that conntrack
keeps for a client's old port may lead to where nobody is any more.
"""

import re
from collections.abc import Iterator, Sequence

from nsnet.names import kind_of
from nsnet.state import Conntrack, Looking, State, socket_address
from nsnet.trace.values import Flow, Packet, Way
from nsnet.trace.view import family_of, lookup, view
from nsnet.trace.walk import answer, walk


def full_size(state: State, netns: str, packet: Packet, way: Way) -> int:
    """Bytes of the largest IP packet that the sender makes; over TCP of what both ends believe in (MSS). 0: any."""
    there = view(state.get(netns, frozenset()), family_of(packet.dst))
    route = lookup(there, packet.dst)
    sizes = [route.mtu or there.mtu(route.dev)] if route else []
    if packet.protocol == "tcp":
        here = view(state.get(way.netns, frozenset()), family_of(way.packet.dst))
        owners = (
            dev for dev, cidrs in here.addresses.items() if way.packet.dst in {c.partition("/")[0] for c in cidrs}
        )
        sizes += [here.mtu(dev) for dev in owners]
    return min((size for size in sizes if size), default=0)


def lost_when_large(state: State, netns: str, packet: Packet, ways: Sequence[Way]) -> Way | None:
    """The first way on which a packet of full size is lost, there or back, where the small one arrives.

    A segment that is dropped is sent again; one that its receiver takes for a stranger's ends the connection.
    """
    sizes = {full_size(state, netns, packet, way) for way in ways if way.result == "delivered"} - {0}
    for size in sorted(sizes, reverse=True):
        for way in walk(state, netns, packet, size=size):
            if _is_too_large(way):
                return way
            if way.result == "delivered" and way.through is None:
                backs = answer(state, way, packet, size=size)
                lost = next((back for back in backs if _is_too_large(back) or _is_strange(back)), None)
                if lost is not None:
                    return lost
    return None


def _is_too_large(way: Way) -> bool:
    return way.result == "dropped" and " bytes, it has " in way.reason


def _is_strange(way: Way) -> bool:
    return way.result == "dropped" and "which nobody asked" in way.reason


def alone(ways: Sequence[Way]) -> Iterator[Flow]:
    """The connections for which a namespace has but one source port, as they come in and leave there."""
    for way in ways:
        given = {hop.netns for hop in way.hops if _ONE_PORT.search(hop.rule)}
        yield from (flow for flow in way.flows if flow.netns in given)


_ONE_PORT = re.compile(r"-j MASQUERADE --to-ports \d+(?: |$)|\bmasquerade to :\d+(?: |$)")


def stale(state: State, packet: Packet, ways: Sequence[Way]) -> Iterator[tuple[str, Conntrack]]:
    """Entries that lead this client's old ports to where no new connection goes, by the nodes that keep them.

    They are read for UDP alone, which kube-proxy cleans up (or not).
    """
    if packet.protocol != "udp":
        return
    sources = {way.flows[0].came.src if way.flows else way.packet.src for way in ways}
    now = {socket_address(way.packet.dst, way.packet.dport) for way in ways}
    there = state.there if isinstance(state, Looking) else state
    for netns in sorted(name for name in there if kind_of(name) == "node"):
        entries = [value for value in state.get(netns, ()) if isinstance(value, Conntrack) and value.rewritten]
        for entry in sorted(entries, key=lambda value: value.key):
            same = (entry.protocol, entry.dst, entry.dport) == (packet.protocol, packet.dst, packet.dport)
            if same and entry.src in sources and entry.answerer not in now:
                yield netns, entry
