"""What NetworkPolicies intend for the packet that `trace` followed: a line for each end that a policy selects.

The way shows what the kernel's rules do; this says what the objects want, by the decision that shares no code with the
rules. Nothing is said where no policy selects either end.
"""

from collections.abc import Iterable, Iterator

from nsnet.cli.output import coloured
from nsnet.cli.target import BALANCER, Target
from nsnet.control import policy
from nsnet.control.policy import Decision, End, Index
from nsnet.model import Objects
from nsnet.trace import Way
from nsnet.trace.values import Flow


def intended(objects: Objects, start: Target, ways: Iterable[Way]) -> Iterator[str]:
    """Lines on what the ways of a packet come to, each said once."""
    if not policy.are_any(objects):
        return
    known = policy.index(objects)
    said: dict[str, None] = {}
    for way in ways:
        decision = decided(known, sender(known, start), way)
        if any(side.selecting and not side.always for side in decision.sides):
            said |= dict.fromkeys(lines(decision))
    yield from said


def decided(known: Index, start: End, way: Way) -> Decision:
    """Each side on the packet as its own node saw it: after a Service's translation, before any masquerade."""
    there = known.at(way.packet.dst)
    left, came = _on(way, start), _on(way, there)
    towards = left.left if left else way.packet
    seen = known.at(came.came.src if came else way.packet.src)
    port, spoken = way.packet.dport, way.packet.protocol.upper()
    return Decision(
        seen,
        there,
        port,
        spoken,
        policy.egress(known, start, known.at(towards.dst), towards.dport, spoken),
        policy.ingress(known, seen, there, port, spoken),
    )


def _on(way: Way, end: End) -> Flow | None:
    """The connection's entry on the node where the end stands; none where the packet did not come through it."""
    return next((flow for flow in reversed(way.flows) if end.node and flow.netns.endswith(f".node.{end.node}")), None)


def lines(decision: Decision) -> Iterator[str]:
    """`intended: denied` with the sides that a policy has a say in."""
    word = coloured("allowed", "green") if decision.allowed else coloured("denied", "red")
    yield f"intended by NetworkPolicy to {decision.destination} port {decision.port}: {word}"
    yield from (f"  {policy.sentence(side)}" for side in decision.sides if side.selecting)


def sender(known: Index, start: Target) -> End:
    """Where the packet starts. The load balancer is outside, and its way says by which of its addresses."""
    return End("outside", BALANCER, "") if start.label == BALANCER else end_of(known, start)


def end_of(known: Index, found: Target) -> End:
    """A TARGET as policy sees it; a hostNetwork pod is its node. Raises InputError where policy knows no such end."""
    pod = found.pod
    if pod is None:
        return policy.end(known, found.label)
    if pod.spec.hostNetwork:
        return policy.end(known, f"node/{pod.spec.nodeName}")
    return policy.end(known, f"pod/{pod.metadata.namespace}/{pod.metadata.name}")
