"""`trace`: the way of one packet, hop by hop, predicted from what the kernel has at this moment; nothing is sent.

The cluster is observed once and `nsnet.trace` follows a packet through those values, so what is named here (device,
route, rule, FDB entry) is what a real packet meets. It is the first packet of a connection whose client no Service with
session affinity remembers. A choice by chance is followed every way, each with its chance; the reply is followed, too.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address
from itertools import groupby, takewhile
from typing import TYPE_CHECKING

import click
import msgspec

from nsnet import kernel, model, names
from nsnet.cli import elsewhere, options
from nsnet.cli.context import Running, running
from nsnet.cli.decided import decided, intended, sender
from nsnet.cli.explain import addresses, service_addresses
from nsnet.cli.kinds import kind_named
from nsnet.cli.output import Colour, coloured, out, print_json
from nsnet.cli.sentences import sentence
from nsnet.cli.target import BALANCER, HOSTS, Target, spaced, target
from nsnet.control import policy
from nsnet.errors import InputError, NotReachedError
from nsnet.model import Objects, Pod, Service, family_of
from nsnet.state import Looking, State, socket_address
from nsnet.trace import Hop, Packet, Way, answer, policy_of, service_of, walk
from nsnet.trace.further import stale
from nsnet.trace.listening import is_open
from nsnet.trace.resolver import long_way
from nsnet.verify.intent import Intent
from nsnet.verify.intent import intended as promise
from nsnet.verify.parted import Parting, Predicted, predicted
from nsnet.verify.why import with_large

if TYPE_CHECKING:  # what is asked for a URL alone is not loaded for every packet
    from nsnet.cli.kernels import Kernels
    from nsnet.cli.proxied import Request

DNS = 53  # the port


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


@options.verb("trace")
@click.argument("source", metavar="FROM")
@click.argument("to", metavar="TO[:PORT]|URL")
@click.option("--udp", is_flag=True, help="A UDP packet instead of TCP's first.")
@click.option("--icmp", is_flag=True, help="A ping.")
@click.option("--live", is_flag=True, help="Send the packet and watch it on every hop, beside what is predicted.")
@click.option("--source-port", type=click.IntRange(1, 65535), default=None, metavar="N", help="Default: any.")
@options.namespace
@options.output("json")
@options.cluster
def trace(
    source: str,
    to: str,
    udp: bool,
    icmp: bool,
    live: bool,
    source_port: int | None,
    namespace: str,
    output: str | None,
    cluster: str | None,
) -> int:
    """Show the way a packet would take now, hop by hop, with every device and rule, and how it ends.

    FROM is a pod, node/N or host/H; TO is one of these, an address, or svc/NAME, which is its clusterIP. Without PORT
    it is the first one served there. A URL, as http://app.sample.com/path, is followed through the HTTP proxy to the
    pods that may answer it. No packet is sent but with --live. Rules that change nothing are shown by -o json alone.
    Exit code 1 where a way does not arrive, or its reply does not; with --live, where what is intended, predicted and
    observed part.
    """
    protocol, request = _protocol(udp=udp, icmp=icmp, source_port=source_port), _request(to)
    if request and (live or protocol != "tcp"):
        raise InputError("a URL is asked over TCP, and followed without a packet", "leave out --udp, --icmp, --live")
    now = running("trace", cluster, to_read=True)
    start = target(now.objects, source, namespace)
    end = _asked(now.objects, to, request) if request else destination(now.objects, to, namespace, protocol)
    asked = Packet(protocol, end.address, end.port, sport=source_port or 0)
    with elsewhere.kernels(now) as kernels:
        state, found = (
            _through_proxy(now, start, asked, request, kernels) if request else looked(now, start, asked, None, kernels)
        )
        look = look_of(state, now.objects, namespace)
        followed = Followed(start, end, asked, found, look)
        if live:
            from nsnet.cli.live import watched

            return watched(now.objects, followed, output, kernels)
    parting = None if request else compared(now.objects, start, asked, found, look)
    wanted = tuple(_intended(now.objects, start, found, request))
    notes = (*remembered(found, asked, look), *searching(start, asked, look))
    if output == "json":
        said = {"agree": parting.agree, "verdict": parting.sentence} if parting else {}
        intent = {"intended": wanted} if wanted else {}
        print_json({**document(followed), **said, "notes": notes, **intent})
    else:
        for line in (*report(followed), *wanted, *notes):
            out(line)
        if parting and not parting.agree:
            out(coloured(f"verdict: {parting.sentence}", "red"))
    agree = parting is None or parting.agree
    return 0 if agree and all(one.good for one in found) else NotReachedError.exit_code


def compared(objects: Objects, start: Target, asked: Packet, found: Sequence[Traced], look: Look) -> Parting:
    """What the objects promise against what is predicted, packets of full size included."""
    ways = with_large(look.state, start.netns, asked, [foretold(one, look) for one in found])
    return predicted(look.state, promised(objects, start, asked, found), ways, look.place)


def promised(objects: Objects, start: Target, asked: Packet, found: Sequence[Traced]) -> Intent | None:
    """What the objects promise, NetworkPolicies included: what they deny on every way shall not arrive."""
    intent, known = promise(objects, start.netns, asked), policy.index(objects)
    if intent is None or intent.want != "reach" or not known.closed:
        return intent
    sides = [decided(known, sender(known, start), one.way) for one in found]
    if any(decision.allowed for decision in sides):
        return intent
    return Intent("nothing", f"NetworkPolicies deny {intent.words} to {start.label}")


def foretold(one: Traced, look: Look) -> Predicted:
    """A predicted way, as the comparison wants it."""
    lost = next((reply for reply in one.replies if reply.result != "delivered"), None)
    return Predicted(one.way, one.open, reply_verdict(one.way, lost, look).removeprefix("reply: ") if lost else "")


def remembered(found: Sequence[Traced], asked: Packet, look: Look) -> Iterator[str]:
    """What conntrack keeps of this client's connections of before, where it leads elsewhere."""
    for where, entry in stale(look.state, asked, [one.way for one in found]):
        port = f"source port {entry.sport}"
        yield (
            f"note: conntrack on {look.place(where)} still leads {port} to {entry.answerer}, where no new connection "
            f"goes: a client that keeps its port gets no answer"
        )


def searching(start: Target, asked: Packet, look: Look) -> Iterator[str]:
    """What somebody who asks for names should know of their own resolver."""
    why = long_way(look.state, start.netns) if asked.dport == DNS else ""
    if why:
        yield f"note: {start.label} {why}"


def _intended(objects: Objects, start: Target, found: Sequence[Traced], request: "Request | None") -> Iterator[str]:
    """What policies intend for the packet; for a request, for each of the two connections."""
    if request is None:
        yield from intended(objects, start, (one.way for one in found))
        return
    from nsnet.cli.proxied import legs

    parts = (part for one in found for part in legs(objects, start, one.way))
    yield from dict.fromkeys(line for who, way in parts for line in intended(objects, who, (way,)))


def _request(to: str) -> "Request | None":
    if "://" not in to:
        return None
    from nsnet.cli.proxied import request_of

    return request_of(to)


def _protocol(*, udp: bool, icmp: bool, source_port: int | None) -> str:
    if udp and icmp:
        raise InputError("--udp and --icmp contradict each other", "leave one out")
    if icmp and source_port:
        raise InputError("a ping has no ports", "leave out --source-port")
    return "udp" if udp else "icmp" if icmp else "tcp"


def looked(
    now: Running, start: Target, asked: Packet, most: int | None = None, kernels: "Kernels | None" = None
) -> tuple[State, list[Traced]]:
    """The state and every way (at most `most`). Raises NotReachedError where the namespace it starts from is not there.

    Pods are many, and rules long: read is what the packet meets. Of UDP conntrack's entries are read, too: a client
    that keeps its port is led by them, whatever the rules say by now.
    """
    state = _look(now, kernels, "udp" if asked.protocol == "udp" else "")
    family = family_of(asked.dst)
    for nodes in _passed(now.objects, start, asked):
        state.ahead(nodes, family)
    if start.netns not in state:
        if kernels:
            kernels.home(start.netns)  # which says it, if a machine cannot be reached
        raise NotReachedError(f"{start.label} has no network namespace {start.netns}", "nsnet status")
    return state, traced(state, start, asked, most)


def _passed(objects: Objects, start: Target, asked: Packet) -> Iterator[list[str]]:
    """The nodes that the packet should pass, its own before the others are known; where it does go says the walk."""
    cluster = model.cluster_of(objects).metadata.name
    own = start.pod.spec.nodeName if start.pod else start.label.removeprefix("node/")
    yield [names.node_netns(cluster, own)]
    intent = promise(objects, start.netns, asked)
    yield [names.node_netns(cluster, node) for node in sorted(intent.nodes if intent else ())]


def _look(now: Running, kernels: "Kernels | None", tracked: str = "") -> Looking:
    expected = _stations(now.objects)
    return kernels.look(tracked, expected) if kernels else kernel.look(now.cluster, tracked, expected)


def _stations(objects: Objects) -> dict[str, str]:
    """Whose MAC it should be: of pods and nodes, as `netns/device`."""
    own = model.cluster_of(objects).metadata.name
    found = {
        names.mac(model.internal_ip(node), "02:42"): f"{names.node_netns(own, node.metadata.name)}/eth0"
        for node in model.of(objects, model.Node)
        if model.internal_ip(node)
    }
    pods = (pod for pod in model.of(objects, Pod) if pod.status.podIP and not pod.spec.hostNetwork)
    return found | {
        names.mac(pod.status.podIP): f"{names.pod_netns(own, pod.metadata.namespace, pod.metadata.name)}/eth0"
        for pod in pods
    }


def _through_proxy(
    now: Running, start: Target, asked: Packet, request: "Request", kernels: "Kernels | None"
) -> tuple[State, list[Traced]]:
    """The same for a request."""
    from nsnet.cli.proxied import onward

    state = _look(now, kernels)
    ways = (on for way in walk(state, start.netns, asked) for on in onward(now.objects, state, way, request))
    return state, [_traced(state, way, asked) for way in ways]


def _asked(objects: Objects, url: str, request: "Request") -> Destination:
    from nsnet.cli.proxied import address_of

    address = address_of(objects, request)
    return Destination(address, request.port, f"{url}, {socket_address(address, request.port)}")


def traced(state: State, start: Target, asked: Packet, most: int | None = None) -> list[Traced]:
    """Every way, with its replies; at most `most`."""
    return [_traced(state, way, asked) for way in walk(state, start.netns, asked, most=most)]


def _traced(state: State, way: Way, asked: Packet) -> Traced:
    if way.result != "delivered":
        return Traced(way)
    if not is_open(state, way):
        return Traced(way, open=False)
    return Traced(way, replies=tuple(answer(state, way, asked)))


# --- TO ---------------------------------------------------------------------------------------------------------------


def destination(objects: Objects, text: str, namespace: str, protocol: str) -> Destination:
    """What TO means. Raises InputError where it means nothing, or a port is missing that cannot be guessed."""
    named, said = _parted(text, protocol)
    namespace, name = spaced(named, namespace)
    word, slash, short = name.rpartition("/")
    if _is_address(name):
        address, known, words = name, _holder(objects, name), name
    elif slash and word not in HOSTS and kind_named(word) == "Service":
        known = _service(objects, namespace, short)
        address, words = known.spec.clusterIP, f"{name}, its clusterIP {known.spec.clusterIP}"
    else:
        found = target(objects, name, namespace)
        known, address = found.pod, _address_of(objects, found)
        words = f"{found.label}, {address}"
    if protocol == "icmp":
        return Destination(address, 0, words)
    port = said or _first_port(objects, known, name, protocol)
    return Destination(address, port, socket_address(address, port) if words == address else f"{words} port {port}")


def _parted(text: str, protocol: str) -> tuple[str, int]:
    """TO without its port, and the port; 0 where none is said. An IPv6 address with a port stands in brackets."""
    name, colon, port = text.rpartition(":")
    if not colon or _is_address(text) or text.endswith("]"):
        return text.strip("[]"), 0
    if protocol == "icmp":
        raise InputError("a ping has no ports", f"leave out :{port}")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise InputError(f'{text}: "{port}" is no port', "a number from 1 to 65535")
    return name.strip("[]"), int(port)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _holder(objects: Objects, address: str) -> Service | Pod | None:
    """Whose address it is, where one port of it comes first."""
    services = (item for item in model.of(objects, Service) if address in model.cluster_ips(item.spec))
    pods = (pod for pod in model.of(objects, Pod) if address in model.pod_ips(pod) and not pod.spec.hostNetwork)
    return next(services, None) or next(pods, None)


def _service(objects: Objects, namespace: str, name: str) -> Service:
    found = objects.get(model.Key("Service", namespace, name))
    if not isinstance(found, Service):
        target(objects, f"svc/{name}", namespace)  # which says what there is instead
        raise InputError(f'there is no Service "{name}"')
    if not _is_address(found.spec.clusterIP):
        raise InputError(f"svc/{name} has no clusterIP", "name one of its pods instead: nsnet get endpoints")
    return found


def _address_of(objects: Objects, found: Target) -> str:
    kind, _, name = found.label.partition("/")
    if found.label == BALANCER:
        raise InputError(f"{BALANCER} has an address in every network", "TO is svc/NAME, or an address it balances")
    if found.pod is not None:
        address = found.pod.status.podIP
    elif kind == "node":
        address = next(model.internal_ip(node) for node in model.of(objects, model.Node) if node.metadata.name == name)
    else:
        address = next(host.address for host in model.cluster_of(objects).hosts or () if host.name == name)
    if not address:
        raise NotReachedError(f"{found.label} has no address", f"nsnet describe {kind} {name}")
    return address


def _first_port(objects: Objects, known: Service | Pod | None, name: str, protocol: str) -> int:
    ports = _ports(objects, known)
    found = next((port for spoken, port in ports if spoken.lower() == protocol), 0)
    if not found and any(spoken == "UDP" for spoken, _ in ports):
        raise InputError(f"{name} serves no TCP port", "--udp")
    if not found:
        raise InputError(f"{name}: a {protocol.upper()} port is missing", f"for example {name}:80, or --icmp")
    return found


def _ports(objects: Objects, known: Service | Pod | None) -> list[tuple[str, int]]:
    if isinstance(known, Service):
        return [(port.protocol, port.port) for port in known.spec.ports or ()]
    if known is None:
        return []
    services = [item for item in model.of(objects, Service) if item.metadata.namespace == known.metadata.namespace]
    declared = [(port.protocol, port.containerPort) for port in model.container_ports(known)]
    return declared or sorted(model.served_ports(known, services))


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
