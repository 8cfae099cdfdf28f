"""Does anything listen where a packet arrives?"""

from nsnet.state import Listener, Looking, State
from nsnet.trace.values import Way


def is_open(state: State, way: Way) -> bool:
    """A state that was never observed has no listeners at all, and cannot say: there everything is open."""
    if way.packet.protocol not in {"tcp", "udp"}:
        return True
    if not isinstance(state, Looking) and not any(
        isinstance(value, Listener) for values in state.values() for value in values
    ):
        return True
    here = (value for value in state[way.netns] if isinstance(value, Listener))
    wanted = (way.packet.protocol, way.packet.dport)
    mine = {"::", way.packet.dst} | ({"0.0.0.0"} if ":" not in way.packet.dst else set())  # noqa: S104 - compared
    return any((item.protocol.lower(), item.port) == wanted and item.address in mine for item in here)
