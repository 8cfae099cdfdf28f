"""Where a packet's way ends at kube-proxy's userspace process: which endpoints it may pick, and the way on to each.

A packet cannot be followed through a process. What it would do says the file it reads (a File and a Process of the
node, observed or rendered): the process opens a connection of its own to one of the endpoints, by turns, so each has
the same share. Its connection starts in the node, with the node's address; the client's ends there.
"""

from collections.abc import Iterator

import msgspec
from msgspec.structs import replace

from nsnet.state import File, Process, State
from nsnet.trace.values import Hop, Packet, Way

_PROGRAM = "nsnet.programs.userproxy"


class Service(msgspec.Struct, frozen=True):
    """A Service port, as the file has it."""

    name: str
    protocol: str
    port: int
    endpoints: tuple[str, ...] = ()


class _Config(msgspec.Struct, frozen=True):
    services: tuple[Service, ...] = ()


def served(state: State, way: Way) -> Service | None:
    """The Service port whose process the packet has come to; None where it is nobody's."""
    if way.result != "delivered" or way.packet.protocol not in {"tcp", "udp"}:
        return None
    wanted = (way.packet.protocol, way.packet.dport)
    every = _services(state, way.netns)
    return next((item for item in every if (item.protocol, item.port) == wanted), None)


def _services(state: State, netns: str) -> Iterator[Service]:
    values = state.get(netns, frozenset())
    programs = (value for value in values if isinstance(value, Process) and _PROGRAM in value.argv)
    paths = {path for program in programs for path in program.argv}
    for value in values:
        if isinstance(value, File) and value.path in paths:
            yield from msgspec.json.decode(value.content, type=_Config).services


def asked(item: Service) -> list[Packet]:
    """What the process sends: the first packet of a connection to each endpoint."""
    ends = (endpoint.rpartition(":") for endpoint in item.endpoints)
    return [Packet(item.protocol, address.strip("[]"), int(port)) for address, _, port in ends]


def picks(way: Way, item: Service) -> Hop:
    """The step from one connection to the other."""
    count = len(item.endpoints)
    by = f"picks 1 of {count} endpoints by turns: {', '.join(item.endpoints)}" if count else "has no endpoint"
    return Hop(way.netns, f"process userproxy: {item.name} {by}")


def without_endpoint(way: Way, item: Service) -> Way:
    """The connection is accepted and closed at once; a datagram is read, and that is all."""
    tcp = way.packet.protocol == "tcp"
    reason = f"userproxy has no endpoint for {item.name}: it {'closes the connection' if tcp else 'drops the datagram'}"
    return replace(way, result="refused" if tcp else "dropped", reason=reason, hops=(*way.hops, picks(way, item)))


def joined(way: Way, step: Hop, onward: Way, share: float) -> Way:
    """Both connections as one way, with the step in between and how often it is taken; `through` keeps the client's."""
    return replace(
        onward,
        hops=(*way.hops, step, *onward.hops),
        flows=(*way.flows, *onward.flows),
        chance=way.chance * onward.chance * share,
        through=way,
    )
