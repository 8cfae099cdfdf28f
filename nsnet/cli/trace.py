"""`trace`: the way of one packet, hop by hop, predicted from what the kernel has at this moment; nothing is sent.

The cluster is observed once and `nsnet.trace` follows a packet through those values, so what is named here (device,
route, rule, FDB entry) is what a real packet meets. It is the first packet of a connection whose client no Service with
session affinity remembers. A choice by chance is followed every way, each with its chance; the reply is followed, too.
"""

from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING

import click

from nsnet import kernel, model, names
from nsnet.cli import elsewhere, options
from nsnet.cli.context import Running, running
from nsnet.cli.decided import decided, intended, sender
from nsnet.cli.kinds import kind_named
from nsnet.cli.output import coloured, out, print_json
from nsnet.cli.target import BALANCER, HOSTS, Target, spaced, target
from nsnet.cli.trace_lines import Destination, Followed, Look, Traced, document, look_of, reply_verdict, report
from nsnet.control import policy
from nsnet.errors import InputError, NotReachedError
from nsnet.garbage import uncollected
from nsnet.model import Objects, Pod, Service, family_of
from nsnet.state import Looking, State, socket_address
from nsnet.trace import Packet, Way, answer, walk
from nsnet.trace.further import alone, stale
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
@uncollected()
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
    notes = (*remembered(found, asked, look), *sharing(found, look), *searching(start, asked, look))
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
    intent = promise(objects, start.netns, asked)
    if intent is None or intent.want != "reach" or not policy.are_any(objects):
        return intent
    known = policy.index(objects)
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


def sharing(found: Sequence[Traced], look: Look) -> Iterator[str]:
    """Where it arrives by the only source port that there is for it."""
    for flow in dict.fromkeys(alone([one.way for one in found if one.way.result == "delivered"])):
        to = socket_address(flow.left.dst, flow.left.dport)
        yield (
            f"note: {look.place(flow.netns)} has one source port, {flow.left.sport}, for what goes to {to}: while this "
            f"connection lives, every further one is dropped"
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
