"""Which connections a node's policies would not let begin now: those that end where `policy.flushConntrack` says so.

Upstream lets an established flow live on when a new policy denies it, since rules are asked for a connection's first
packet alone. With `flushConntrack: true` the conntrack entries of such flows are deleted after a change of the rules,
on the nodes that guard one of their ends; the next packet is then none of any connection, and is asked about again. A
TCP packet of the middle of a connection would pass where its own direction is open (a server's answer to a client
that may no longer ask), so in such a cluster the rules drop TCP that begins with anything but a SYN.

An entry is judged as the forward hook sees it: from its source, to whoever answers, which is after DNAT.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping

import msgspec

from nsnet.render import ranges
from nsnet.render.policy import Direction, Guard, Pass, Side
from nsnet.state import Conntrack

PROTOCOLS = frozenset({"tcp", "udp", "sctp"})


class Judge(msgspec.Struct, frozen=True):
    """A node's policies, by pod: the sides that select an address in a direction."""

    sides: Mapping[tuple[str, Direction], tuple[Side, ...]]


def judge(guards: Iterable[Guard]) -> Judge:
    """Of a node: one guard for each family."""
    return Judge({key: sides for guard in guards for key, sides in _sides(guard)})


def _sides(guard: Guard) -> Iterator[tuple[tuple[str, Direction], tuple[Side, ...]]]:
    named = {(side.policy, side.direction): side for side in guard.sides}
    for pod in guard.isolated:
        yield (pod.ip, pod.direction), tuple(named[policy, pod.direction] for policy in pod.policies)


def permits(judged: Judge, entry: Conntrack, own: Collection[str]) -> bool:
    """Would the connection still begin? `own` are the node's addresses, whose way to its pods is never closed."""
    to, _, port = entry.answerer.rpartition(":")
    to = to.strip("[]")
    if entry.src in own or entry.src == to:
        return True
    ends: tuple[tuple[str, str, Direction], ...] = ((entry.src, to, "egress"), (to, entry.src, "ingress"))
    return all(
        _allowed(judged.sides[pod, direction], other, (to, entry.protocol, int(port)))
        for pod, other, direction in ends
        if (pod, direction) in judged.sides
    )


_Target = tuple[str, str, int]


def _allowed(sides: Collection[Side], other: str, target: _Target) -> bool:
    return any(_lets_pass(one, other, target) for side in sides for one in side.passes)


def _lets_pass(one: Pass, other: str, target: _Target) -> bool:
    to, protocol, port = target
    return (
        (one.pods is None or other in one.pods)
        and (one.blocks is None or ranges.within(other, one.blocks))
        and (one.targets is None or f"{to},{protocol}:{port}" in one.targets)
        and (one.ports is None or any(p.protocol == protocol and p.first <= port <= p.last for p in one.ports))
    )
