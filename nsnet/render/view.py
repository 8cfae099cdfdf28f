"""What the components read, taken out of the objects once: small hashable values instead of whole API objects.

A pod object changes with every readiness flip; its place in the network does not. Components memoise on these values
(equal value, equal answer), so that a render after one change rebuilds that change and nothing else. The memos may be
dropped at any time without any effect but speed.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import lru_cache
from ipaddress import ip_address, ip_network

import msgspec

from nsnet import model, names
from nsnet.errors import ObjectError
from nsnet.model import Family, family_of
from nsnet.render import machines

MEMO = 1 << 15  # entries a component's memo holds: more than the pods one machine takes
NONE: frozenset[tuple[str, int]] = frozenset()
OVERHEAD = {"vxlan": 50, "host-gw": 0, "ipip": 20, "udp": 28, "wireguard": 80}
"""What each flannel backend takes of the outer MTU, as upstream counts it."""


class Leg(msgspec.Struct, frozen=True):
    """One family's part of a network or a node: its subnet, and who leads out of it."""

    subnet: str
    gateway: str

    @property
    def family(self) -> Family:
        return family_of(self.subnet)


class Network(msgspec.Struct, frozen=True):
    """A segment of the underlay. `netns` is its switch; each leg's gateway is the router's address, without length."""

    name: str
    netns: str
    legs: tuple[Leg, ...]
    mtu: int
    bridge: str = ""  # of every machine's own, by which its switches are one

    @property
    def gateway(self) -> str:
        return self.legs[0].gateway

    @property
    def gateways(self) -> tuple[str, ...]:
        return tuple(leg.gateway for leg in self.legs)

    @property
    def has_ipv6(self) -> bool:
        return any(leg.family == "ip6" for leg in self.legs)

    def has(self, ip: str) -> bool:
        return any(within(leg.subnet, ip) for leg in self.legs)

    def cidr(self, ip: str) -> str:
        """An address of this network with its prefix length; one from elsewhere stands alone, /32 or /128."""
        alone = "128" if ":" in ip else "32"
        lengths = (leg.subnet.partition("/")[2] for leg in self.legs if within(leg.subnet, ip))
        return f"{ip}/{next(lengths, alone)}"


class Machine(msgspec.Struct, frozen=True):
    """A node, or a host outside the cluster: what has an `eth0` on the underlay. `more`: its further addresses."""

    kind: str  # node or host
    name: str
    netns: str
    ip: str
    network: Network
    mtu: int
    more: tuple[str, ...] = ()
    link: model.LinkSpec | None = None
    plain: bool = False  # the kernel has no netem: what the link says is done without
    on: str = ""  # the machine that carries it, where there are several

    @property
    def mac(self) -> str:
        return names.mac(self.ip, "02:42")

    @property
    def ips(self) -> tuple[str, ...]:
        return (self.ip, *self.more)

    def of(self, family: Family) -> str:
        """Its first address of a family; empty where it has none."""
        return next((ip for ip in self.ips if family_of(ip) == family), "")


class Node(msgspec.Struct, frozen=True):
    """A node as CNI and flannel see it: each leg's gateway is the bridge's address with its length."""

    name: str
    machine: Machine
    legs: tuple[Leg, ...]
    mtu: int  # of the bridge and the pods
    private_key: str = ""  # WireGuard's, as its file has it

    @property
    def netns(self) -> str:
        return self.machine.netns


class Lease(msgspec.Struct, frozen=True):
    """One family's part of a flannel lease; `mac` is the VtepMAC of its BackendData, `key` the PublicKey, or empty."""

    subnet: str
    public_ip: str
    backend: str
    mac: str
    key: str = ""


class Pod(msgspec.Struct, frozen=True):
    """A pod that has an address. `device` is the node's end of its veth pair, empty for a hostNetwork pod.

    `more`: its address of the other family. `tcp` and `udp` are what the pod server listens on; `dns`: the cluster's
    DNS runs in it, on ports of its own; `proxy`: the HTTP proxy does, and nothing else.
    """

    namespace: str
    name: str
    node: str
    netns: str
    ip: str
    device: str
    hostname: str
    tcp: tuple[int, ...]
    udp: tuple[int, ...]
    dns: bool = False
    proxy: bool = False
    more: tuple[str, ...] = ()

    @property
    def ips(self) -> tuple[str, ...]:
        return (self.ip, *self.more)


class View(msgspec.Struct, frozen=True):
    """Everything that components read. `pods` are those of each node, ordered by namespace and name."""

    objects: model.Objects
    cluster: model.Cluster
    networks: Mapping[str, Network]
    machines: tuple[Machine, ...]
    nodes: tuple[Node, ...]
    pods: Mapping[str, tuple[Pod, ...]]
    leases: tuple[Lease, ...]
    services: Mapping[model.Key, model.Service]
    dns: model.Service | None  # what pods ask for names
    here: str = ""  # the machine that is rendered; empty: the only one

    @property
    def name(self) -> str:
        return self.cluster.metadata.name

    @property
    def router(self) -> str:
        return names.fabric_netns(self.name, "router")

    @property
    def families(self) -> tuple[Family, ...]:
        return model.families_of(self.cluster)

    @property
    def pod_cidrs(self) -> tuple[str, ...]:
        """What flannel calls Network and IPv6Network, in podSubnet's order, host bits masked."""
        return masked(self.cluster.networking.podSubnet)


@lru_cache(maxsize=MEMO)
def within(subnet: str, ip: str) -> bool:
    return ip_address(ip) in ip_network(subnet, strict=False)


@lru_cache(maxsize=1024)
def masked(said: str) -> tuple[str, ...]:
    """The ranges of `10.244.0.0/16`, or of the dual-stack pair `10.244.0.0/16,fd00:10:244::/56`, masked."""
    return tuple(str(ip_network(part, strict=False)) for part in model.subnets(said))


def default_route(family: Family) -> str:
    """As the kernel's values spell it."""
    return "::/0" if family == "ip6" else "default"


def view_of(objects: model.Objects, here: str = "") -> View:
    """The view of objects as `control.complete` left them. Raises ObjectError for what is asked and not built yet."""
    cluster = model.cluster_of(objects)
    _refuse_what_is_not_built(cluster)
    networks = {item.name: _network(cluster, item) for item in cluster.underlay.networks}
    places = machines.of_nodes(cluster)
    nodes = tuple(
        _node(cluster, networks, item, objects, places.get(item.metadata.name, ""))
        for item in model.of(objects, model.Node)
    )
    hosts = tuple(_host(cluster, networks, item) for item in cluster.hosts or ())
    services = model.keyed(objects, model.Service)
    dns = model.dns_service(services, cluster)
    return View(
        objects=objects,
        cluster=cluster,
        networks=networks,
        machines=(*(node.machine for node in nodes), *hosts),
        nodes=nodes,
        pods=_pods_by_node(objects, cluster.metadata.name, dns),
        leases=tuple(lease for item in model.of(objects, model.SubnetLease) for lease in _leases(item)),
        services=services,
        dns=dns,
        here=here,
    )


def _refuse_what_is_not_built(cluster: model.Cluster) -> None:
    key = model.key_of(cluster)
    backend = cluster.flannel.Backend
    if backend.kind not in OVERHEAD:
        hint = f"use one of: {', '.join(OVERHEAD)}"
        raise ObjectError(key, "flannel.Backend.Type", f"there is no backend {backend.Type} here", hint)


def _network(cluster: model.Cluster, item: model.Network) -> Network:
    netns = names.fabric_netns(cluster.metadata.name, item.name)
    return Network(item.name, netns, tuple(_leg(cidr) for cidr in masked(item.subnet)), item.mtu, item.bridge)


def _leg(cidr: str, *, with_length: bool = False) -> Leg:
    """A masked subnet with the first address in it, `10.244.1.1` or (the bridge's) `10.244.1.1/24`."""
    subnet = ip_network(cidr)
    return Leg(cidr, f"{subnet[1]}/{subnet.prefixlen}" if with_length else str(subnet[1]))


def _on(cluster: model.Cluster, networks: Mapping[str, Network], key: model.Key, name: str) -> Network:
    found = networks.get(name)
    if found is None:
        hint = f"networks of cluster {cluster.metadata.name}: {', '.join(networks) or 'none'}"
        raise ObjectError(key, "network", f"there is no underlay network {name!r}", hint)
    return found


def _link(cluster: model.Cluster, machine: str, network: Network) -> model.LinkSpec:
    """What `underlay.links` says of a machine's link; its MTU is its network's where nothing else is said."""
    said = (link for link in cluster.underlay.links if set(link.between) == {machine, network.name})
    link = next(said, model.LinkSpec((machine, network.name)))
    return link if link.mtu else msgspec.structs.replace(link, mtu=network.mtu)


def _is_plain(cluster: model.Cluster) -> bool:
    return cluster.metadata.annotations.get(model.IMPAIRED_BY) == "plain"


def _node(
    cluster: model.Cluster, networks: Mapping[str, Network], node: model.Node, objects: model.Objects, on: str
) -> Node:
    key, name = model.key_of(node), node.metadata.name
    network = _on(cluster, networks, key, model.annotation(node, "nsnet/network"))
    ip = model.internal_ip(node)
    more = {item.address: None for item in node.status.addresses if item.type != "Hostname" and item.address != ip}
    link = _link(cluster, name, network)
    mtu, netns = link.mtu, names.node_netns(cluster.metadata.name, name)
    machine = Machine("node", name, netns, ip, network, mtu, tuple(more), link, _is_plain(cluster), on)
    legs = tuple(_leg(cidr, with_length=True) for cidr in masked(",".join(model.pod_cidrs(node))))
    secret = objects.get(model.wireguard_secret(name)) if cluster.flannel.Backend.kind == "wireguard" else None
    private = model.wireguard_key(secret) if isinstance(secret, model.Other) else ""
    return Node(name, machine, legs, (cluster.flannel.Backend.MTU or mtu) - _overhead(cluster), private)


def _overhead(cluster: model.Cluster) -> int:
    """What the tunnels take of the outer MTU. VXLAN's outer IPv6 header is 20 bytes longer.

    flannel takes 50 off for both families, the kernel makes a flannel-v6 device smaller all the same, and every large
    packet comes back once as too big. Here pods have the MTU that fits. (WireGuard's 80 are enough for both.)
    """
    kind = cluster.flannel.Backend.kind
    return OVERHEAD[kind] + (20 if kind == "vxlan" and "ip6" in model.families_of(cluster) else 0)


def _host(cluster: model.Cluster, networks: Mapping[str, Network], host: model.HostEntry) -> Machine:
    network = _on(cluster, networks, model.key_of(cluster), host.network)
    netns = names.host_netns(cluster.metadata.name, host.name)
    link, plain, on = _link(cluster, host.name, network), _is_plain(cluster), machines.first(cluster)
    return Machine("host", host.name, netns, host.address, network, link.mtu, host.addresses, link, plain, on)


def _leases(lease: model.SubnetLease) -> Iterator[Lease]:
    for subnet in lease.subnets:
        six = family_of(subnet) == "ip6"
        data = (lease.BackendV6Data if six else lease.BackendData) or {}
        public = (lease.PublicIPv6 or "") if six else lease.PublicIP
        mac, key = str(data.get("VtepMAC", "")), str(data.get("PublicKey", ""))
        yield Lease(subnet, public, lease.BackendType.lower(), mac, key)


# --- pods -------------------------------------------------------------------------------------------------------------


def _pods_by_node(objects: model.Objects, cluster: str, dns: model.Service | None) -> dict[str, tuple[Pod, ...]]:
    services = _services_by_pair(objects)
    found: defaultdict[str, list[Pod]] = defaultdict(list)
    taken: defaultdict[str, set[str]] = defaultdict(set)
    for pod in model.of(objects, model.Pod):
        if has_network(pod):
            found[pod.spec.nodeName].append(_pod(cluster, pod, services, dns, taken[pod.spec.nodeName]))
    return {node: tuple(pods) for node, pods in found.items()}


def has_network(pod: model.Pod) -> bool:
    """A pod that is placed, has its address and has not ended."""
    return bool(pod.spec.nodeName and pod.status.podIP) and pod.status.phase not in model.ENDED


def _pod(cluster: str, pod: model.Pod, services: "_ByPair", dns: model.Service | None, taken: set[str]) -> Pod:
    meta, spec = pod.metadata, pod.spec
    serves_dns, proxy = model.serves_dns(pod, dns), model.runs_proxy(pod)
    ports = set() if proxy else model.served_ports(pod, list(_candidates(services, meta)))
    ports -= model.DNS_PORTS if serves_dns else NONE
    own = not spec.hostNetwork
    netns = names.pod_netns(cluster, meta.namespace, meta.name) if own else names.node_netns(cluster, spec.nodeName)
    return Pod(
        namespace=meta.namespace,
        name=meta.name,
        node=spec.nodeName,
        netns=netns,
        ip=pod.status.podIP,
        device=_device(f"{meta.namespace}/{meta.name}", taken) if own else "",
        hostname=(spec.hostname or meta.name)[:63].rstrip("-.") if own else spec.nodeName,
        tcp=tuple(sorted(port for protocol, port in ports if protocol == "TCP")),
        udp=tuple(sorted(port for protocol, port in ports if protocol == "UDP")),
        dns=serves_dns,
        more=model.pod_ips(pod)[1:],
        proxy=proxy,
    )


def _device(pod: str, taken: set[str]) -> str:
    """The node's end of the pod's veth pair; the next name where another pod of the node hashes to the same."""
    attempts = (names.veth(f"{pod}#{number}" if number else pod) for number in range(len(taken) + 1))
    name = next(attempt for attempt in attempts if attempt not in taken)
    taken.add(name)
    return name


_ByPair = Mapping[tuple[str, str, str], list[model.Service]]


def _services_by_pair(objects: model.Objects) -> _ByPair:
    """Services by namespace and the first label they select by, so that no pod is held against every Service."""
    found: defaultdict[tuple[str, str, str], list[model.Service]] = defaultdict(list)
    for service in model.of(objects, model.Service):
        for label, value in (service.spec.selector or {}).items():
            found[service.metadata.namespace, label, value].append(service)
            break
    return found


def _candidates(services: _ByPair, meta: model.ObjectMeta) -> Iterator[model.Service]:
    for label, value in meta.labels.items():
        yield from services.get((meta.namespace, label, value), ())
