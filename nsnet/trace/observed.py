"""What was seen of a packet, in the words of the predicted way; and where two ways part.

`hops` makes Hops of sightings (a device, in or out) and of the rules a namespace told. `stations` brings both kinds of
way to what they must agree in: by which device of which namespace the packet came and went. A bridge's port counts as
its bridge, for a frame that a DNAT turns round on the bridge is predicted on `cni0` and seen on two of its ports.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile

import msgspec

from nsnet.state import BridgePort, Ipip, State, Tun, Veth, Vxlan, Wireguard
from nsnet.trace.values import Hop, Packet, Way
from nsnet.trace.view import view

Station = tuple[str, str, str]  # namespace, in or out, device


class Sighting(msgspec.Struct, frozen=True):
    """The packet on a device, inside of another packet to `carrier` where that is said.

    `mac`: the station that its (outer) frame is for.
    """

    netns: str
    dev: str
    outgoing: bool
    packet: Packet
    carrier: str = ""
    mac: str = ""

    @property
    def direction(self) -> str:
        return "out" if self.outgoing else "in"


def unflooded(state: State, seen: Sequence[Sighting]) -> tuple[Sighting, ...]:
    """Without the copies that a bridge sends to everybody while it does not know where a MAC is."""
    return tuple(one for one in seen if not _is_stray(state, one))


def _is_stray(state: State, one: Sighting) -> bool:
    """A frame that came to another station than its own; or left by a port behind which its station is not."""
    here = view(state.get(one.netns, frozenset()))
    port = here.ports.get(one.dev)
    if port is None:
        own = here.mac(one.dev)
        return not one.outgoing and bool(own and one.mac) and own != one.mac
    if not one.outgoing or _mac_behind(state, one.netns, one.dev) == one.mac:
        return False
    others = (other.name for other in here.ports.values() if other.bridge == port.bridge)
    return any(_mac_behind(state, one.netns, other) == one.mac for other in others)


def _mac_behind(state: State, netns: str, port: str) -> str:
    link = view(state.get(netns, frozenset())).links.get(port)
    other, _, name = link.peer.rpartition("/") if isinstance(link, Veth) else ("", "", "")
    return view(state.get(other, frozenset())).mac(name)


def hops(state: State, seen: Sequence[Sighting], rules: Mapping[str, Sequence[Sequence[Hop]]]) -> tuple[Hop, ...]:
    """The steps in order. `rules`: per namespace the rules of each pass of the packet through it."""
    return tuple(_hops(state, seen, {netns: list(passes) for netns, passes in rules.items()}))


def _hops(state: State, seen: Sequence[Sighting], rules: dict[str, list[Sequence[Hop]]]) -> Iterator[Hop]:
    before: Sighting | None = None
    due = False  # has this pass still to tell its rules? They come behind the device it came in by
    for index, one in enumerate(seen):
        due = due or _is_new_pass(before, one)
        told = rules.get(one.netns, [])
        if due and one.outgoing:
            yield from told.pop(0) if told else ()
            due = False
        steps = list(_step(state, before, one, seen[index + 1 :]))
        yield from steps
        if due and steps:
            yield from told.pop(0) if told else ()
            due = False
        before = one
    for netns, left in rules.items():
        yield from (hop for passed in left for hop in passed if hop.netns == netns)


def _is_new_pass(before: Sighting | None, one: Sighting) -> bool:
    """Does netfilter see the packet itself here for the first time (again)?"""
    if one.carrier:
        return False
    if before is None or before.netns != one.netns or before.carrier:
        return True
    return before.outgoing and not one.outgoing


def _step(state: State, before: Sighting | None, one: Sighting, after: Sequence[Sighting]) -> Iterator[Hop]:
    ports = _ports(state, one.netns)
    port = ports.get(one.dev)
    if port is None:
        yield Hop(one.netns, f"{one.direction} {one.dev}")
        tunnel = _tunnel(state, one) if one.outgoing and after and after[0].carrier else ""
        if tunnel:
            yield Hop(one.netns, f"{tunnel} to {after[0].carrier}")
    elif not one.outgoing:
        following = after[0] if after and after[0].netns == one.netns else None
        there = ports.get(following.dev) if following else None
        if following and following.outgoing and there and there.bridge == port.bridge:
            yield Hop(one.netns, f"bridge {port.bridge}, {one.dev} → {following.dev}")
        elif following is None or following.outgoing or following.dev != port.bridge:
            yield Hop(one.netns, f"in {one.dev}")
    elif not _is_of_a_bridge(ports, before, one, port):
        yield Hop(one.netns, f"out {one.dev}")


def _is_of_a_bridge(ports: Mapping[str, BridgePort], before: Sighting | None, one: Sighting, port: BridgePort) -> bool:
    """Already told: as the second half of a bridge's step, or as what the bridge's own device sent (or flooded)."""
    if before is None or before.netns != one.netns:
        return False
    if before.dev == port.bridge:
        return True
    earlier = ports.get(before.dev)
    return earlier is not None and earlier.bridge == port.bridge


def _tunnel(state: State, one: Sighting) -> str:
    """By what the device carries packets on; empty: it is no tunnel."""
    link = view(state.get(one.netns, frozenset())).links.get(one.dev)
    return next((words for kind, words in _TUNNELS if isinstance(link, kind)), "")


_TUNNELS = ((Vxlan, "vxlan"), (Ipip, "ipip"), (Tun, "process flannel_udp:"))


def _ports(state: State, netns: str) -> Mapping[str, BridgePort]:
    return view(state.get(netns, frozenset())).ports


def stations(state: State, way: Iterable[Hop]) -> list[Station]:
    """Where it came and went, each once; without what only packets pass that nobody looks into."""
    found: list[Station] = []
    for hop in _unsealed(state, way):
        for station in _stations(state, hop):
            if station not in found[-1:] and station[2] != "lo":
                found.append(station)
    return found


def _unsealed(state: State, way: Iterable[Hop]) -> Iterator[Hop]:
    """Without what lies between two WireGuard devices."""
    inside = False
    for hop in way:
        word, _, rest = hop.what.partition(" ")
        dev = rest.split(" ")[0] if word in {"in", "out"} else ""
        if isinstance(view(state.get(hop.netns, frozenset())).links.get(dev), Wireguard):
            inside = word == "out"
            yield hop
        elif not inside:
            yield hop


def _stations(state: State, hop: Hop) -> Iterator[Station]:
    word, _, rest = hop.what.partition(" ")
    if word == "bridge":
        bridge = rest.partition(",")[0]
        yield hop.netns, "in", bridge
        yield hop.netns, "out", bridge
    elif word in {"in", "out"}:
        dev = rest.split(" ")[0]
        port = _ports(state, hop.netns).get(dev)
        yield hop.netns, word, port.bridge if port else dev


def nearest(state: State, ways: Sequence[Way], seen: Sequence[Station], packet: Packet | None) -> tuple[Way, int]:
    """The predicted way that the observed one follows longest (and to the same end), and for how many stations."""

    def likeness(way: Way) -> tuple[int, bool]:
        return _shared(stations(state, way.hops), seen), packet is not None and way.packet.dst == packet.dst

    best = max(ways, key=lambda way: (likeness(way), way.chance))
    return best, likeness(best)[0]


def _shared(one: Sequence[Station], other: Sequence[Station]) -> int:
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))
