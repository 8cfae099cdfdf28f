"""How what `trace` has followed is told: the names of places, the lines of a way, its verdict, and the documents."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, takewhile

import msgspec

from nsnet import model, names
from nsnet.cli import elsewhere
from nsnet.cli.explain import addresses, service_addresses
from nsnet.cli.output import Colour, coloured
from nsnet.cli.sentences import sentence
from nsnet.cli.target import Target
from nsnet.model import Objects, Pod
from nsnet.state import State, socket_address
from nsnet.trace import Hop, Packet, Way, policy_of, service_of


class Destination(msgspec.Struct, frozen=True):
    """Where the packet is sent to: an address, a port (0: none), and what that is in words."""

    address: str
    port: int
    words: str


class Traced(msgspec.Struct, frozen=True):
    """One way of the packet; `open` is False where nothing listens at its end. Replies only of what was delivered."""

    way: Way
    open: bool = True
    replies: tuple[Way, ...] = ()

    @property
    def good(self) -> bool:
        there = self.way.result == "delivered" and self.open
        return there and all(reply.result == "delivered" for reply in self.replies)


class Look(msgspec.Struct, frozen=True):
    """What words need: who is behind a namespace, an address and a Service's address."""

    state: State
    places: Mapping[str, str]
    pods: Mapping[str, str]
    services: Mapping[str, str]

    def place(self, netns: str) -> str:
        return self.places.get(netns, netns)


class Followed(msgspec.Struct, frozen=True):
    """What was asked, every way that was found, and what words need."""

    start: Target
    end: Destination
    asked: Packet
    found: Sequence[Traced]
    look: Look


# --- who is who -------------------------------------------------------------------------------------------------------


def look_of(state: State, objects: Objects, namespace: str = "default") -> Look:
    """Names as a person types them: pod/web, node/node1, host/client; pods of other namespaces with theirs."""
    places = elsewhere.places(objects, dict(_places(objects, namespace)))
    return Look(state, places, addresses(objects), service_addresses(objects))


def _places(objects: Objects, namespace: str) -> Iterator[tuple[str, str]]:
    cluster = model.cluster_of(objects)
    own = cluster.metadata.name
    for node in model.of(objects, model.Node):
        yield names.node_netns(own, node.metadata.name), f"node/{node.metadata.name}"
    for pod in model.of(objects, Pod):
        name, where = pod.metadata.name, pod.metadata.namespace
        yield names.pod_netns(own, where, name), f"pod/{name}" if where == namespace else f"pod/{name} of {where}"
    for host in cluster.hosts or ():
        yield names.host_netns(own, host.name), f"host/{host.name}"
    for network in cluster.underlay.networks:
        yield names.fabric_netns(own, network.name), f"switch {network.name}"
    yield names.fabric_netns(own, "router"), "router"


# --- words ------------------------------------------------------------------------------------------------------------

Block = tuple[str, tuple[str, ...]]  # a hop: its place, its lines


def report(followed: Followed) -> Iterator[str]:
    """The whole text: what all ways share, then each way, its verdict and its reply's."""
    found, asked, look = followed.found, followed.asked, followed.look
    yield f"{asked.protocol} from {followed.start.label} to {followed.end.words}"
    blocks = [_blocks(one.way, asked, look) for one in found]
    shared = _shared(blocks) if len(found) > 1 else 0
    yield from _printed(blocks[0][:shared])
    if len(found) > 1:
        yield f"from here one of {len(found)} ways:"
    for number, (one, own) in enumerate(zip(found, blocks, strict=True), 1):
        if len(found) > 1:
            yield ""
            yield coloured(f"way {number}{_chance(one.way, found)}", "cyan")
        yield from _printed(own[shared:])
        yield from _verdicts(one, asked, look)


def _shared(blocks: Sequence[Sequence[Block]]) -> int:
    return len(list(takewhile(lambda same: len(set(same)) == 1, zip(*blocks, strict=False))))


def _chance(way: Way, found: Sequence[Traced]) -> str:
    """Where a rule cannot be told from state both ways are followed, and their weights are no chances."""
    told = sum(one.way.chance for one in found) < 1.001
    return f", chance {way.chance:.0%}" if told else ", if a rule matches that state alone cannot decide"


def _printed(blocks: Sequence[Block]) -> Iterator[str]:
    for place, group in groupby(blocks, key=lambda block: block[0]):
        yield coloured(place, "cyan")
        for _, lines in group:
            yield from lines


def way_lines(way: Way, asked: Packet, look: Look) -> Iterator[str]:
    """One way's hops, as `report` prints them."""
    yield from _printed(_blocks(way, asked, look))


def _blocks(way: Way, asked: Packet, look: Look) -> list[Block]:
    return [
        (look.place(hop.netns), tuple(_hop_lines(hop, changed, look)))
        for hop, changed in _that_matter(_with_changes(way, asked))
    ]


_LEADS_ON = re.compile(r"-[jg] (\S+)|\b(?:jump|goto) ([^\s,]+)")
_DOES = {"ACCEPT", "DROP", "REJECT", "DNAT", "SNAT", "MASQUERADE", "REDIRECT", "MARK"}


def _that_matter(hops: Iterable[tuple[Hop, str]]) -> list[tuple[Hop, str]]:
    """Without rules that return, and without those that lead into a chain in which nothing happened."""
    kept: list[tuple[Hop, str]] = []
    for hop, changed in reversed(list(hops)):
        leads = {one or other for one, other in _LEADS_ON.findall(_COMMENT.sub("", hop.rule))} if _chain(hop) else set()
        after = {_chain(kept[-1][0])} if kept and kept[-1][0].netns == hop.netns else set()
        if not leads - _DOES or leads & after:
            kept.append((hop, changed))
    return kept[::-1]


def _hop_lines(hop: Hop, changed: str, look: Look) -> Iterator[str]:
    chain = _chain(hop)
    if not chain:
        yield f"  {hop.what}" + (f"  ({hop.rule})" if hop.rule else "")
        return
    service = _service_of(hop)
    words = sentence(chain, hop.rule, look.pods)
    belongs = service or policy_of(hop.rule)
    yield f"  {hop.what}" + (f": {words}" if words else "") + (f"  [{belongs}]" if belongs else "")
    yield f"      {hop.rule}"
    if changed:
        yield f"      {coloured(changed, 'yellow')}"


def _chain(hop: Hop) -> str:
    """The chain whose rule it is; empty for a device, a route or an end."""
    first, _, rest = hop.what.partition(" ")
    ends = {"in", "out", "bridge", "vxlan", "ipip", "wireguard", "delivered", "qdisc"}
    return "" if first in ends or " " in rest else rest


def _service_of(hop: Hop) -> str:
    if hop.rule.startswith("-"):
        return service_of(hop.rule)
    return service_of(hop.what) or service_of(hop.rule)


_COMMENT = re.compile(r'"[^"]*"')
_DESTINATION = re.compile(r"-j (?:DNAT|REDIRECT)\b|\bdnat (?:to|ip|ip6) ")
_SOURCE = re.compile(r"-j (?:MASQUERADE|SNAT)\b|\bmasquerade\b")


def _with_changes(way: Way, asked: Packet) -> Iterator[tuple[Hop, str]]:
    """Each hop with the address it changed: conntrack's entry knows how the packet came and how it left."""
    for hop in way.hops:
        rule = _COMMENT.sub("", hop.rule) if _chain(hop) else ""
        came, left = _entry(way, hop.netns, asked)
        if _SOURCE.search(rule):
            yield hop, f"from {came.src} → {left.src}" if came.src != left.src else ""
        elif _DESTINATION.search(rule):
            yield hop, f"to {_end(came.dst, came.dport)} → {_end(left.dst, left.dport)}"
        else:
            yield hop, ""


def _entry(way: Way, netns: str, asked: Packet) -> tuple[Packet, Packet]:
    entry = next((flow for flow in way.flows if flow.netns == netns), None)
    if entry:
        return entry.came, entry.left
    return (way.flows[-1].left if way.flows else asked), way.packet


def _end(address: str, port: int) -> str:
    return socket_address(address, port) if port else address


# --- how it ends ------------------------------------------------------------------------------------------------------


def _verdicts(one: Traced, asked: Packet, look: Look) -> Iterator[str]:
    arrived = one.way.result == "delivered" and one.open
    yield coloured(verdict(one, asked, look), "green" if arrived else "red")
    for reply in one.replies:
        colour: Colour = "green" if reply.result == "delivered" else "red"
        yield coloured(reply_verdict(one.way, reply, look), colour)


def verdict(one: Traced, asked: Packet, look: Look) -> str:
    """How a way ends, in a sentence."""
    way, place = one.way, look.place(one.way.netns)
    where = _end(way.packet.dst, way.packet.dport)
    if not one.open:
        return f"refused by {place}: nothing listens on {way.packet.protocol} {where} there"
    if way.result == "delivered":
        return f"delivered to {place} at {where}{_by(way, look)}{_seen_from(way)}"
    if way.result == "unreachable":
        return f"unreachable at {place}: {way.reason}"
    return f"{way.result} on {place} {_why(way, look, asked)}"


def _by(way: Way, look: Look) -> str:
    at = next(((_service_of(hop), hop.netns) for hop in reversed(way.hops) if _service_of(hop)), None)
    return f" by Service {at[0]}, chosen on {look.place(at[1])}" if at else ""


def _seen_from(way: Way) -> str:
    sent = way.flows[0].came.src if way.flows else way.packet.src
    return f", seen there as from {way.packet.src}" if way.packet.src != sent else ""


def _why(way: Way, look: Look, asked: Packet) -> str:
    """A rule decided, a chain's policy, or something that is no rule."""
    last = way.hops[-1] if way.hops else None
    if last and _chain(last) and way.reason == last.rule and _DECIDES.search(_COMMENT.sub("", last.rule)):
        if policy_of(last.rule):
            return f"by network policy, {_COMMENTED.findall(last.rule)[-1]}: {last.what}"
        service = _refused_service(way, look, asked)
        return f"by rule {last.what}: {last.rule}" + (f" (Service {service}{_without(way)})" if service else "")
    if last and last.what == "conntrack":
        return f"by conntrack: {way.reason}"
    if way.reason and (last is None or way.reason != last.rule):
        return f"because {way.reason}"
    return f"by a chain's policy: {last.what if last else 'drop'}"


def _without(way: Way) -> str:
    """What nftables mode does not write into its rules: why a Service's packets are refused or dropped."""
    if not any("@no-endpoint-" in hop.rule for hop in way.hops[-3:]):
        return ""
    return " has no endpoints" if way.result == "refused" else " has no local endpoints"


_COMMENTED = re.compile(r'"([^"]*)"')
_DECIDES = re.compile(r"-j (?:DROP|REJECT)\b|\b(?:drop|reject)\b")


def _refused_service(way: Way, look: Look, asked: Packet) -> str:
    """From the rule; nftables' reject-chain is shared by all, so there the address that was asked for tells."""
    named = _service_of(way.hops[-1])
    ports = (socket_address(asked.dst, asked.dport), f":{asked.dport}")
    return named or next((look.services[port] for port in ports if port in look.services), "")


def reply_verdict(way: Way, reply: Way, look: Look) -> str:
    """How the reply fares, with the places it passes."""
    passed = " → ".join(place for place, _ in groupby(look.place(hop.netns) for hop in reply.hops))
    start = look.place(way.flows[0].netns if way.flows else way.netns)
    if reply.result == "delivered":
        return f"reply: back to {start} from {_end(reply.packet.src, reply.packet.sport)}, by {passed}"
    why = _why(reply, look, reply.packet) if reply.result in {"dropped", "refused"} else f"because {reply.reason}"
    return f"reply: {reply.result} at {look.place(reply.netns)} {why}" + (f", by {passed}" if passed else "")


# --- for scripts ------------------------------------------------------------------------------------------------------


def document(followed: Followed) -> dict[str, object]:
    """`delivered` is what the exit code says; a `chance` is the share of new connections that go this way."""
    return {
        "from": followed.start.label,
        "to": followed.end.words,
        "packet": followed.asked,
        "delivered": all(one.good for one in followed.found),
        "ways": [_way_document(one, followed.asked, followed.look) for one in followed.found],
    }


def _way_document(one: Traced, asked: Packet, look: Look) -> dict[str, object]:
    return {
        "chance": round(one.way.chance, 6),
        **_ended(one.way, look),
        "listening": one.open,
        "verdict": verdict(one, asked, look),
        "hops": hop_documents(one.way, asked, look),
        "replies": [
            {
                **_ended(reply, look),
                "verdict": reply_verdict(one.way, reply, look),
                "hops": _hop_documents([(hop, "") for hop in reply.hops], look),
            }
            for reply in one.replies
        ],
    }


def hop_documents(way: Way, asked: Packet, look: Look) -> list[dict[str, object]]:
    """One way's hops, as `document` has them."""
    return _hop_documents(list(_with_changes(way, asked)), look)


def _hop_documents(hops: Sequence[tuple[Hop, str]], look: Look) -> list[dict[str, object]]:
    """`passed` marks rules that changed nothing, which `report` leaves out."""
    telling = {id(hop) for hop, _ in _that_matter(hops)}
    passed: dict[str, object] = {"passed": True}
    return [{**_hop_document(hop, look, changed), **({} if id(hop) in telling else passed)} for hop, changed in hops]


def _ended(way: Way, look: Look) -> dict[str, object]:
    return {"result": way.result, "where": look.place(way.netns), "packet": way.packet, "reason": way.reason}


def _hop_document(hop: Hop, look: Look, changed: str) -> dict[str, object]:
    rule = hop.rule if _chain(hop) else ""
    more = {
        "rule": hop.rule,
        "words": sentence(_chain(hop), rule, look.pods) if rule else "",
        "service": _service_of(hop) if rule else "",
        "policy": policy_of(rule),
        "changed": changed,
    }
    given = {name: value for name, value in more.items() if value}
    return {"netns": hop.netns, "where": look.place(hop.netns), "what": hop.what, **given}
