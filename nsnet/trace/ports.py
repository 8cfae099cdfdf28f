"""Source ports that a rule gives from a range, and who has them already.

Two connections to one end that would look alike behind the translation cannot both be kept: the packet of the second
is dropped when conntrack confirms it, after all rules (`conntrack -S` counts insert_failed). An entry of a TCP
connection that is over makes room for a SYN whose sequence number is further on than its own; numbers are drawn for
each pair of ends, so that is so every second time.

Source: Linux `net/netfilter/nf_nat_core.c` (get_unique_tuple, nf_nat_used_tuple_harder), and packets that were sent.
"""

from collections.abc import Iterable, Iterator
from typing import Literal

from msgspec.structs import replace

from nsnet.state import Conntrack, socket_address
from nsnet.trace.values import Hop, Packet, Trip


def given(trip: Trip, some: str) -> Trip:
    """With a port of the range (`61000`, `1024-65535`): the only one, else its own where that is in it, else any."""
    if not some:
        return trip
    first, _, last = some.partition("-")
    least, most = int(first), int(last or first)
    own = trip.packet.sport
    sport = least if least == most else own if least <= own <= most else 0
    return replace(trip, packet=replace(trip.packet, sport=sport), ports=(least, most))


def confirmed(trip: Trip, tracked: Iterable[Conntrack]) -> Iterator[tuple[Literal["accept", "drop"], Trip]]:
    """What becomes of a packet whose port is of a range, by the connections of its protocol that are known there."""
    assert trip.ports is not None
    least, most = trip.ports
    known = list(tracked)
    holders = _holders(trip.packet, known)
    taken = {port: entry for port, entry in holders.items() if least <= port <= most}
    left = replace(trip, ports=None)
    if len(taken) <= most - least or any(_is_own(trip, entry) for entry in known):
        free = trip.packet.sport if trip.packet.sport not in taken else 0
        yield "accept", replace(left, packet=replace(trip.packet, sport=free)) if least < most else left
        return
    share = 0.5 if any(entry.over for entry in taken.values()) else 0.0
    if share:
        yield "accept", replace(left, chance=trip.chance * share)
    lost = Hop(trip.netns, "conntrack", _words(trip, taken))
    yield "drop", replace(left, hops=(*trip.hops, lost), chance=trip.chance * (1 - share))


def _holders(packet: Packet, known: Iterable[Conntrack]) -> dict[int, Conntrack]:
    """By source port who else is seen by the packet's destination as having the packet's source address."""
    to, seen = socket_address(packet.dst, packet.dport), socket_address(packet.src, 0)[:-1]
    found = (entry for entry in known if (entry.protocol, entry.answerer) == (packet.protocol, to))
    return {int(entry.seen_as[len(seen) :]): entry for entry in found if entry.seen_as.startswith(seen)}


def _is_own(trip: Trip, entry: Conntrack) -> bool:
    """Is it the entry of this very connection, opened before?"""
    came = trip.came or trip.packet
    return (entry.protocol, entry.src, entry.sport, entry.dst, entry.dport) == (
        came.protocol, came.src, came.sport, came.dst, came.dport,
    )  # fmt: skip


def _words(trip: Trip, taken: dict[int, Conntrack]) -> str:
    least, most = trip.ports or (0, 0)
    to = socket_address(trip.packet.dst, trip.packet.dport)
    if least < most:
        return f"its source ports {least}-{most} towards {to} are all taken (insert_failed)"
    (entry,) = taken.values()
    holder = socket_address(entry.src, entry.sport) + (", a connection that is over" if entry.over else "")
    return f"its source port {least} towards {to} is taken by {holder} (insert_failed)"
