"""`explain KIND/NAME`: how something is realised here: objects, devices, routes, rules, with reasons.

What is shown is what the kernel has at this moment, not what was wanted; a reason says what the line is for.
"""

from collections.abc import Iterator, Sequence
from ipaddress import ip_address, ip_network

import click

from nsnet import model, names
from nsnet.cli import elsewhere, entrance, options
from nsnet.cli.context import Running, running
from nsnet.cli.explain import addresses, rule_lines
from nsnet.cli.kinds import kind_named
from nsnet.cli.line import Line, printed, with_reasons
from nsnet.cli.output import out, print_json
from nsnet.cli.target import Target, spaced, target
from nsnet.errors import InputError
from nsnet.model import Objects, Pod, Service
from nsnet.state import (
    Address,
    Bridge,
    BridgePort,
    Chain,
    FdbEntry,
    File,
    Ipip,
    Listener,
    Neighbour,
    NftChain,
    Offload,
    Process,
    Route,
    Sysctl,
    Tun,
    Value,
    Veth,
    Vxlan,
    Wireguard,
    WireguardKey,
    WireguardPeer,
    text,
)
from nsnet.verify import world as worlds

SYSCTLS = {
    "net.ipv4.ip_forward": "the node routes between its pods and the network",
    "net.bridge.bridge-nf-call-iptables": "the bridge shows netfilter what it forwards, or replies stay untranslated",
    "net.ipv4.conf.all.rp_filter": "a strict reverse path check would drop what comes another way than it goes",
    "net.ipv4.conf.all.route_localnet": "node ports answer on 127.0.0.1, too",
}


@options.verb("explain")
@click.argument("what", metavar="KIND/NAME")
@options.namespace
@options.output("json")
@options.cluster
def explain(what: str, namespace: str, output: str | None, cluster: str | None) -> None:
    """Show how something is realised on this machine, in a page, each line with its reason.

    It knows pods, nodes, Services with their load balancer, Ingresses, Gateways and HTTPRoutes. Examples: nsnet explain
    svc/web · nsnet explain pod/web-0 · nsnet explain node/node1 · nsnet explain ing/apps
    """
    now = running("explain", cluster)
    lines = list(page(now, what, namespace))
    if output == "json":
        print_json(lines)
        return
    for line in printed(lines):
        out(line)


def page(now: Running, what: str, namespace: str) -> Iterator[Line]:
    """All lines. Raises InputError where there is no such thing, or nothing is known of its kind."""
    namespace, what = spaced(what, namespace)
    word, slash, name = what.rpartition("/")
    kind = kind_named(word) if slash else "Pod"
    if kind == "Service":
        service = now.objects.get(model.Key("Service", namespace, name))
        if not isinstance(service, Service):
            target(now.objects, what, namespace)  # which says what there is instead
            raise InputError(f'there is no Service "{name}"')
        yield from _service(now, service)
    elif kind == "Node":
        yield from _node(now, target(now.objects, what, namespace))
    elif kind == "Pod":
        found = target(now.objects, what, namespace)
        if found.pod is None:
            raise InputError(f"{what} cannot be explained", f"nsnet rules {what} shows its rules")
        yield from _pod(now, found, found.pod)
    elif kind in entrance.KINDS:
        yield from entrance.http(now, model.Key(kind, namespace, name))
    else:
        hint = "svc, pod, node, ing, gateway or httproute, as svc/NAME; others: nsnet describe"
        raise InputError(f"{what} cannot be explained", hint)


# --- a Service --------------------------------------------------------------------------------------------------------


def _service(now: Running, service: Service) -> Iterator[Line]:
    meta, spec = service.metadata, service.spec
    title = f"Service {meta.namespace}/{meta.name}"
    yield Line(title, "", f"type {spec.type}, clusterIP {spec.clusterIP or 'None'}", _kind_of_service(service))
    for port in spec.ports or ():
        node_port = f", node port {port.nodePort}" if port.nodePort else ""
        why = f"port {port.nodePort} of every node leads here as well" if port.nodePort else ""
        yield Line(title, "", f"{port.protocol} {port.port} → {port.targetPort or port.port}{node_port}", why)
    if spec.selector:
        words = ", ".join(f"{key}={value}" for key, value in spec.selector.items())
        yield Line(title, "", f"selector {words}", "ready pods with these labels become endpoints")
    yield from _policies(title, service)
    world = worlds.world(now.objects)
    yield from _endpoints(world, service)
    name = f"{meta.name}.{meta.namespace}.svc.{world.cluster.networking.dnsDomain}"
    yield Line("name", "", f"{name} → {spec.clusterIP or 'None'}", "what the cluster's DNS answers to pods")
    if model.is_balanced(service):
        yield from entrance.balancer(now, service)
    if service in world.services and world.nodes:
        yield from _rules(now, service, world.nodes)


def _kind_of_service(service: Service) -> str:
    if service.spec.clusterIP in {"", "None"}:
        return "no address of its own: its name leads to the pods themselves, no rule is written"
    return "no device has this address: rules on every node translate it where a packet starts"


def _policies(title: str, service: Service) -> Iterator[Line]:
    spec = service.spec
    if spec.sessionAffinity == "ClientIP":
        yield Line(title, "", "sessionAffinity ClientIP", "a client stays with the endpoint it was given first")
    if spec.internalTrafficPolicy == "Local":
        yield Line(
            title, "", "internalTrafficPolicy Local", "a node offers its own pods the endpoints on it, no others"
        )
    if spec.externalTrafficPolicy == "Local":
        yield Line(title, "", "externalTrafficPolicy Local", "a node offers the outside the endpoints on it, unhidden")


def _endpoints(world: worlds.World, service: Service) -> Iterator[Line]:
    owners = {place.address: place for place in (*world.guests, *world.pods)}
    none = True
    for port in service.spec.ports or ():
        for one in worlds.backends(world, service, port):
            none = False
            owner = owners.get(one.address)
            who = f"{owner.label} on {one.node}" if owner else "no pod of this cluster"
            why = "" if one.ready else "not ready: no new connection is sent there"
            yield Line("endpoints", "", f"{one.address}:{one.port}  {who}", why)
    if none:
        yield Line("endpoints", "", "none", "connections are refused: by REJECT, before any pod is asked")


def _rules(now: Running, service: Service, nodes: Sequence[worlds.Place]) -> Iterator[Line]:
    """On the first node; those of the others are the same but for what is local."""
    first = nodes[0]
    scope = {first.netns: frozenset({("chain",), ("nft",)})}
    values = elsewhere.seen(now, scope).get(first.netns, frozenset())
    others = f" (as on {len(nodes) - 1} more, but for local endpoints)" if len(nodes) > 1 else ""
    yield from with_reasons(f"rules on {first.label}{others}", rule_lines(now.objects, [service], values))


# --- a pod ------------------------------------------------------------------------------------------------------------


def _pod(now: Running, found: Target, pod: Pod) -> Iterator[Line]:
    meta = pod.metadata
    title = f"Pod {meta.namespace}/{meta.name}"
    ready = "ready" if model.is_ready(pod) else "not ready"
    yield Line(title, "", f"on {pod.spec.nodeName}, {pod.status.podIP}, {ready}", _place_of(pod))
    yield Line(title, "", f"namespace {found.netns}", f"ip netns exec {found.netns} …, or nsnet shell {found.label}")
    for service in model.of(now.objects, Service):
        selected = service.spec.selector and model.selects(service.spec.selector, meta.labels)
        if selected and service.metadata.namespace == meta.namespace:
            yield Line(title, "", f"endpoint of svc/{service.metadata.name}", "its labels match the selector")
    if pod.spec.hostNetwork:
        return
    node = names.node_netns(now.cluster, pod.spec.nodeName)
    state = elsewhere.seen(now, {netns: frozenset() for netns in (found.netns, node)})
    who = {**addresses(now.objects), **_nodes(now.objects)}
    for value in _ordered(state.get(found.netns, frozenset())):
        yield from _lines("in the pod", found.netns, value, who)
    own = [value for value in _ordered(state.get(node, frozenset())) if _concerns(value, pod, found.netns)]
    ports = {value.name for value in own if isinstance(value, Veth)}
    own += [one for one in _ordered(state.get(node, frozenset())) if isinstance(one, BridgePort) and one.name in ports]
    for value in own:
        yield from _lines(f"on its node {pod.spec.nodeName}", node, value, who)
    yield from _elsewhere(now, pod, who)


def _place_of(pod: Pod) -> str:
    if pod.spec.hostNetwork:
        return "hostNetwork: it has its node's namespace and address, and nothing of its own"
    return "an address of its node's subnet, its own network namespace"


def _concerns(value: Value, pod: Pod, netns: str) -> bool:
    match value:
        case Veth():
            return value.peer.startswith(f"{netns}/")
        case Neighbour():
            return value.ip == pod.status.podIP
        case Sysctl():
            return value.name in SYSCTLS
    return isinstance(value, Bridge)


def _elsewhere(now: Running, pod: Pod, who: dict[str, str]) -> Iterator[Line]:
    """How another node finds it."""
    home = next((node for node in model.of(now.objects, model.Node) if node.metadata.name == pod.spec.nodeName), None)
    other = next((node for node in model.of(now.objects, model.Node) if node is not home), None)
    if home is None or other is None:
        return
    netns = names.node_netns(now.cluster, other.metadata.name)
    values = elsewhere.seen(now, {netns: frozenset()}).get(netns, frozenset())
    routes = [one for one in values if isinstance(one, Route) and _leads_to_pods(one, home.spec.podCIDR)]
    vias = {route.via for route in routes}
    near = [one for one in values if isinstance(one, Neighbour) and one.ip in vias]
    peers = [one for one in values if isinstance(one, WireguardPeer) and home.spec.podCIDR in one.allowed_ips]
    macs = {one.mac for one in near}
    fdb = [one for one in values if isinstance(one, FdbEntry) and one.mac in macs]
    found: list[Value] = [*routes, *near, *fdb, *peers]
    for value in found:
        yield from _lines(f"from another node ({other.metadata.name})", netns, value, who)


def _leads_to_pods(route: Route, cidr: str) -> bool:
    """The route to a node's pods, or to those of all nodes by flannel's device."""
    if route.dst == cidr:
        return True
    if not route.dev.startswith("flannel") or model.family_of(route.dst) != model.family_of(cidr):
        return False
    return route.dst == "default" or ip_address(cidr.partition("/")[0]) in ip_network(route.dst)


# --- a node -----------------------------------------------------------------------------------------------------------


def _node(now: Running, found: Target) -> Iterator[Line]:
    node = next(item for item in model.of(now.objects, model.Node) if item.metadata.name == found.hostname)
    title = f"Node {node.metadata.name}"
    pods = sum(pod.spec.nodeName == node.metadata.name for pod in model.of(now.objects, Pod))
    yield Line(title, "", f"address {model.internal_ip(node)}", "on the underlay")
    yield Line(title, "", f"pods {node.spec.podCIDR} ({pods} pods)", "flannel's lease; cni0 has its first address")
    yield Line(title, "", f"namespace {found.netns}", f"ip netns exec {found.netns} …, or nsnet shell {found.label}")
    values = elsewhere.seen(now, {found.netns: frozenset()}).get(found.netns, frozenset())
    pods_at = addresses(now.objects)
    who = {**pods_at, **_nodes(now.objects)}
    pod_ports = 0
    for value in _ordered(values):
        if isinstance(value, Veth | BridgePort) and value.name != "eth0":
            pod_ports += isinstance(value, Veth)
            continue
        if isinstance(value, Neighbour) and value.ip in pods_at:
            continue
        yield from _lines(_section(value), found.netns, value, who)
    yield Line(
        "devices", found.netns, f"{pod_ports} veth pairs, ports of its bridge", "one for each pod: explain pod/…"
    )
    rules = sum(len(value.rules) for value in values if isinstance(value, Chain | NftChain))
    chains = sum(isinstance(value, Chain | NftChain) for value in values)
    yield Line("rules", found.netns, f"{rules} rules in {chains} chains", f"nsnet rules {found.label} explains each")


def _section(value: Value) -> str:
    match value:
        case Route() | Neighbour() | FdbEntry() | WireguardKey() | WireguardPeer():
            return "the way to others"
        case Sysctl():
            return "how the kernel behaves"
        case Process() | File() | Listener():
            return "programs"
    return "devices"


def _nodes(objects: Objects) -> dict[str, str]:
    """Who has an address outside the pod network, and whose subnet begins there."""
    found = {}
    for node in model.of(objects, model.Node):
        found[model.internal_ip(node)] = f"node {node.metadata.name}"
        found[node.spec.podCIDR] = f"the pods of node {node.metadata.name}"
        found[node.spec.podCIDR.partition("/")[0]] = f"flannel's device on node {node.metadata.name}"
    return found


# --- a line and its reason --------------------------------------------------------------------------------------------

_ORDER = (
    Bridge, Veth, Vxlan, Ipip, Tun, Wireguard, BridgePort, Offload, Address, Route, Neighbour, FdbEntry, WireguardKey,
    WireguardPeer, Sysctl, Listener, Process, File,
)  # fmt: skip


def _ordered(values: frozenset[Value]) -> list[Value]:
    """In the order in which they would be typed; chains, marks and the like are not for a page."""
    known: list[Value] = [value for value in values if isinstance(value, _ORDER)]
    places: list[type] = list(_ORDER)
    return sorted(known, key=lambda value: (places.index(type(value)), value.key))


def _lines(section: str, where: str, value: Value, who: dict[str, str]) -> Iterator[Line]:
    yield Line(section, where, text(value), reason(value, who))


def reason(value: Value, who: dict[str, str]) -> str:
    """What a value is for; `who` names addresses and subnets. Empty where the line speaks for itself."""
    match value:
        case Bridge():
            return "the pods' bridge; its address is their gateway"
        case Veth():
            return f"a cable: its other end is {value.peer or 'gone'}"
        case Vxlan():
            return f"flannel's overlay: frames in UDP {value.port} between nodes, {value.vni} is its number"
        case Ipip():
            return "flannel's overlay: packets in packets, to the other node's address"
        case Tun():
            return "flannel's overlay: a process reads what goes here, and sends it in UDP"
        case Wireguard():
            return "flannel's overlay: encrypted, in UDP; its peers say who gets what"
        case WireguardKey():
            return "who this node is for its peers: its lease bears the same key"
        case WireguardPeer():
            whose = " and ".join(who.get(cidr, cidr) for cidr in value.allowed_ips)
            return f"takes and sends what is of {whose}"
        case Offload():
            return "checksums and packet sizes are real on this cable"
        case BridgePort(hairpin=True):
            return "hairpin: a frame may leave by the port it came in, so that a pod reaches itself by its Service"
        case BridgePort():
            return "a port of the bridge"
        case Address():
            return _of_address(value)
        case File():
            return _of_file(value)
        case Process():
            return "a program of this node or of the cluster"
        case Route():
            return _of_route(value, who)
        case Neighbour():
            return f"the MAC of {who.get(value.ip, value.ip)}, written and not asked for by ARP"
        case FdbEntry():
            return f"frames for this MAC go to {who.get(value.dst, value.dst)} in a UDP packet"
        case Sysctl():
            return SYSCTLS.get(value.name, "")
        case Listener():
            return "a program takes connections there: that makes a pod ready"
    return ""


def _of_address(value: Address) -> str:
    if value.dev.startswith("flannel"):
        return "the source of what the node itself sends through the overlay"
    if value.dev == "eth0":
        return "its own address"
    return "the gateway of this node's pods"


def _of_file(value: File) -> str:
    name = value.path.rpartition("/")[2]
    return {
        "hosts": "names it knows without asking",
        "resolv.conf": "whom it asks for names, and with which endings",
        "nsswitch.conf": "hosts first, then DNS, as in a container",
        "subnet.env": "what flanneld tells the CNI plugin",
        "wgkey": "the node's private WireGuard key",
        "wgpsk": "the key that all nodes share",
    }.get(name, "what a program reads")


def _of_route(route: Route, who: dict[str, str]) -> str:
    whose = who.get(route.dst, "")
    if route.dst == "default":
        return "everything else"
    if whose and route.dev.startswith("flannel"):
        return f"{whose}, through the overlay"
    if whose and route.via:
        return f"{whose}, by the underlay itself (host-gw)"
    if not whose and route.via:
        return f"by its gateway {route.via}"
    return whose or "on this very link"
