"""The load balancer's controller: which address a Service of type LoadBalancer has, and to which nodes it leads.

Addresses come from `loadBalancer.addresses`. One that a Service asks for (`spec.loadBalancerIP`, or the annotation of
MetalLB or kube-vip) is given or, where it is taken or not in the pool, nothing is: never another one (MetalLB's rule).
All else is by the hash of the Service's name, and stays. An address that a manifest's own status brings (a dump) is
served if nobody else has it. What came of it stands in the Service's status, as conditions:

    nsnet/Address   True FromPool | FromStatus · False with the reason, which an event repeats
    nsnet/Nodes     True, and the nodes that connections go to · False NoHealthyNode | NoEndpoints where there is none

The nodes are all, without those that are going and those labelled `exclude-from-external-load-balancers`; then their
health decides, as the balancer's health checks see it (`Facts.listening`: HTTP or FAIL at a node's port). Where nobody
has asked, a node is well for policy Cluster as long as it was, and for Local where a ready endpoint is. In mode vip a
Service without a usable endpoint is led to no node at all, as MetalLB's speakers announce none: a node that asked for
it would get its own packet back from the router, and drop it.

Sources: Kubernetes `cloud-provider/controllers/service`, cloud-provider-kind `pkg/loadbalancer`, MetalLB's usage pages
(facts/LB.md) and `speaker/bgp_controller.go` (ShouldAnnounce).
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from nsnet import model, names
from nsnet.control.addresses import NOWHERE, Range, number, ranges, span, subnet, text
from nsnet.control.facts import Facts
from nsnet.control.services import probes
from nsnet.control.table import Table, of
from nsnet.control.wrong import cluster_error
from nsnet.model import (
    SERVICE_NAME,
    Cluster,
    Condition,
    EndpointConditions,
    EndpointSlice,
    HostEntry,
    Key,
    KubeProxyConfiguration,
    LoadBalancerIngress,
    LoadBalancerStatus,
    Node,
    NodeEntry,
    Service,
    ServiceStatus,
    cluster_ips,
    family_of,
)

POOLS = ("198.51.100.0/24", "192.0.2.0/24", "203.0.113.0/24")  # RFC 5737: documentation
ASKED = ("metallb.io/loadBalancerIPs", "metallb.universe.tf/loadBalancerIPs", "kube-vip.io/loadbalancerIPs")
WELL, ILL = "HTTP", "FAIL"  # protocols in Facts: what is said at a node's port
NOT_ANNOUNCED = Condition(
    model.NODES, "False", "NoEndpoints", "no endpoint is ready, so that in mode vip no node announces the address"
)
NEVER = ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3")

Span = tuple[int, int]


# --- the pool ---------------------------------------------------------------------------------------------------------


def completed(cluster: Cluster) -> Cluster:
    """The document with its pool: where it says none, the first of POOLS that overlaps nothing.

    Raises ObjectError for a pool in the pods' or the Services' range, or that is none.
    """
    if cluster.loadBalancer.addresses is not None:
        for index, said in enumerate(cluster.loadBalancer.addresses):
            _check(cluster, index, said)
        return cluster
    taken = [where for _, where in (*_inner(cluster), *_networks(cluster))]
    free = (pool for pool in POOLS if not any(subnet(pool).overlaps(other) for other in taken))
    found = next(((pool,) for pool in free), ())
    config = msgspec.structs.replace(cluster.loadBalancer, addresses=found)
    return msgspec.structs.replace(cluster, loadBalancer=config)


def _check(cluster: Cluster, index: int, said: str) -> None:
    if _is_ipv6(said):
        return
    first, last = span(said)
    for field, where in _inner(cluster):
        if first <= where.last and where.first <= last:
            hint = "balanced addresses lie outside of the cluster: in a network of the underlay, or in none at all"
            message = f"{said} overlaps {field} {where}"
            raise cluster_error(cluster, f"loadBalancer.addresses[{index}]", message, hint)


def _inner(cluster: Cluster) -> Iterator[tuple[str, Range]]:
    """The IPv4 ranges of pods and of Services."""
    for field in ("podSubnet", "serviceSubnet"):
        yield from ((field, one) for one in ranges(getattr(cluster.networking, field)) if one.family == "ip")


def _networks(cluster: Cluster) -> Iterator[tuple[str, Range]]:
    """The IPv4 range of each network of the underlay."""
    for item in cluster.underlay.networks:
        yield from ((item.name, one) for one in ranges(item.subnet) if one.family == "ip")


def _is_ipv6(said: str) -> bool:
    return family_of(said.partition("-")[0].strip()) == "ip6"


class _Ground(NamedTuple):
    """Where addresses may be: the pool, and what lies around."""

    said: tuple[str, ...]
    pool: tuple[Span, ...]
    inner: tuple[tuple[str, Range], ...]
    networks: tuple[tuple[str, Range], ...]
    machines: Mapping[int, str]
    external: frozenset[int]  # externalIPs of Services

    def has(self, address: int) -> bool:
        return any(first <= address <= last for first, last in self.pool)

    def why_not(self, address: int) -> str:
        """Why nothing can be balanced at the address; empty where it can."""
        if address == NOWHERE or any(subnet(part).has(address) for part in NEVER):
            return "is not an IPv4 address that can be reached"
        for field, where in self.inner:
            if where.has(address):
                return f"lies in {field} {where}"
        for name, where in self.networks:
            if where.has(address) and (address not in where.hosts() or address == where.first + 1):
                return f"is the router's, or no machine's, in network {name} {where}"
        return f"is {self.machines[address]}'s" if address in self.machines else ""


def _ground(cluster: Cluster, services: Mapping[Key, Service]) -> _Ground:
    said = cluster.loadBalancer.addresses or ()
    nodes = cluster.nodes if isinstance(cluster.nodes, tuple) else ()
    entries: tuple[NodeEntry | HostEntry, ...] = (*nodes, *(cluster.hosts or ()))
    machines = {number(entry.address): entry.name for entry in entries}
    machines |= {number(more): entry.name for entry in entries for more in getattr(entry, "addresses", ())}
    external = (address for service in services.values() for address in service.spec.externalIPs or ())
    return _Ground(
        said,
        tuple(span(part) for part in said if not _is_ipv6(part)),
        tuple(_inner(cluster)),
        tuple(_networks(cluster)),
        machines,
        frozenset(map(number, external)),
    )


# --- addresses --------------------------------------------------------------------------------------------------------


def assign(table: Table, cluster: Cluster) -> None:
    """The status of every Service: its addresses, or why it has none. Those of other classes are left alone."""
    services = of(table, Service)
    for key, service in services.items():
        if service.spec.type != "LoadBalancer" and service.status != ServiceStatus():
            services[key] = msgspec.structs.replace(service, status=ServiceStatus())
    mine = sorted(key for key, service in services.items() if model.is_balanced(service))
    if not mine:
        return
    ground, taken = _ground(cluster, services), dict[int, Key]()
    waiting = [key for key in mine if not _keeps(services, key, ground, taken)]
    for key in sorted(waiting, key=lambda key: (not asked(services[key]), key)):
        services[key] = _given(key, services[key], ground, taken)


def asked(service: Service) -> str:
    """The address that the Service asks for; empty: any."""
    said = (service.metadata.annotations.get(name, "").partition(",")[0].strip() for name in ASKED)
    return service.spec.loadBalancerIP or next(filter(None, said), "")


def _keeps(services: dict[Key, Service], key: Key, ground: _Ground, taken: dict[int, Key]) -> bool:
    """Whether it keeps the addresses it has; `taken` learns them."""
    service = services[key]
    had = [item.ip for item in service.status.loadBalancer.ingress or () if item.ip]
    numbers = [number(ip) for ip in had]
    before = model.status_condition(service, model.ADDRESS)
    from_pool = before is not None and before.reason == "FromPool"
    if not had or _is_ipv6_alone(service) or (asked(service) and asked(service) not in had):
        return False
    if any(at in taken or ground.why_not(at) or (from_pool and not ground.has(at)) for at in numbers):
        return False
    taken.update(dict.fromkeys(numbers, key))
    if before is None or before.status != "True":
        found = Condition(model.ADDRESS, "True", "FromStatus")
        services[key] = _with(service, found, service.status.loadBalancer)
    return True


def _given(key: Key, service: Service, ground: _Ground, taken: dict[int, Key]) -> Service:
    wish = asked(service)
    if _is_ipv6_alone(service):
        why = "addresses in front of the nodes are IPv4, and this Service is IPv6 alone; node ports work"
        return _with(service, Condition(model.ADDRESS, "False", "Pending", why), LoadBalancerStatus())
    address, why = _wish(wish, ground, taken) if wish else _any(key, ground, taken)
    if not address:
        return _with(service, Condition(model.ADDRESS, "False", "Pending", why), LoadBalancerStatus())
    taken[number(address)] = key
    ingress = LoadBalancerIngress(address, ipMode="VIP")
    return _with(service, Condition(model.ADDRESS, "True", "FromPool"), LoadBalancerStatus((ingress,)))


def _is_ipv6_alone(service: Service) -> bool:
    own = cluster_ips(service.spec)
    return bool(own) and all(family_of(ip) == "ip6" for ip in own)


def _wish(wish: str, ground: _Ground, taken: Mapping[int, Key]) -> tuple[str, str]:
    """The address that was asked for, or why it cannot be had."""
    at = number(wish)
    if why := ground.why_not(at):
        return "", f"{wish} was asked for and {why}"
    if at in taken:
        return "", f"{wish} was asked for and is taken by {taken[at]}"
    if not ground.has(at):
        return "", f"{wish} was asked for and is not in loadBalancer.addresses: {', '.join(ground.said) or 'none'}"
    return text(at), ""


def _any(key: Key, ground: _Ground, taken: Mapping[int, Key]) -> tuple[str, str]:
    for at in _probed(f"{key.namespace}/{key.name}", ground.pool):
        if at not in taken and at not in ground.external and not ground.why_not(at):
            return text(at), ""
    if ground.said:
        return "", f"no address is left in loadBalancer.addresses: {', '.join(ground.said)}"
    return "", (
        "the Cluster document has no loadBalancer.addresses: add `loadBalancer: {addresses: [198.51.100.0/24]}`, "
        "or any range of yours; node ports work"
    )


def _probed(name: str, pool: tuple[Span, ...]) -> Iterator[int]:
    """Every address of the pool, beginning at the place that the name's hash says."""
    for place in probes(name, range(sum(last - first + 1 for first, last in pool))):
        left = place
        for first, last in pool:
            if left <= last - first:
                yield first + left
                break
            left -= last - first + 1


def _with(service: Service, found: Condition, balancer: LoadBalancerStatus) -> Service:
    """The Service with that address condition; its nodes are another's business, and go with the address."""
    others = [item for item in service.status.conditions or () if item.type != model.ADDRESS]
    kept = others if found.status == "True" else [item for item in others if item.type != model.NODES]
    status = ServiceStatus(balancer, (found, *kept))
    return service if status == service.status else msgspec.structs.replace(service, status=status)


# --- nodes ------------------------------------------------------------------------------------------------------------


def balance(table: Table, cluster: Cluster, facts: Facts) -> None:
    """To which nodes each Service's connections go, in its status."""
    services = of(table, Service)
    mine = [key for key, service in services.items() if model.balanced_addresses(service)]
    if not mine:
        return
    told = next(iter(of(table, KubeProxyConfiguration).values()), None)
    look = _Look(cluster, facts, told, tuple(_candidates(table)))
    local = _ready_nodes(table, [key for key in mine if services[key].spec.externalTrafficPolicy == "Local"])
    silent = _without_endpoints(table, mine) if cluster.loadBalancer.mode == "vip" else frozenset()
    for key in mine:
        name = (key.namespace, key.name)
        found = NOT_ANNOUNCED if name in silent else _led_to(services[key], look, local.get(name, frozenset()))
        services[key] = _balanced(services[key], found)


class _Look(NamedTuple):
    cluster: Cluster
    facts: Facts
    told: KubeProxyConfiguration | None
    nodes: tuple[str, ...]

    def says(self, node: str, port: int) -> bool | None:
        """What was heard at the node's port; None: nobody asked."""
        heard = (self.facts.listening or {}).get(names.node_netns(self.cluster.metadata.name, node), frozenset())
        return True if (WELL, port) in heard else False if (ILL, port) in heard else None


def _candidates(table: Table) -> Iterator[str]:
    """Nodes that may get connections, in order."""
    for key, node in sorted(of(table, Node).items()):
        if model.EXCLUDED not in node.metadata.labels and not model.is_leaving(node):
            yield key.name


def _ready_nodes(table: Table, local: list[Key]) -> dict[tuple[str, str], frozenset[str]]:
    """(namespace, name) of these Services → nodes with a ready endpoint of it."""
    found: dict[tuple[str, str], set[str]] = {(key.namespace, key.name): set() for key in local}
    for item in of(table, EndpointSlice).values() if local else ():
        nodes = found.get((item.metadata.namespace, item.metadata.labels.get(SERVICE_NAME, "")))
        for endpoint in item.endpoints or () if nodes is not None else ():
            if endpoint.nodeName and (endpoint.conditions is None or endpoint.conditions.ready is not False):
                nodes.add(endpoint.nodeName)  # type: ignore[union-attr]
    return {key: frozenset(nodes) for key, nodes in found.items()}


def _without_endpoints(table: Table, keys: list[Key]) -> frozenset[tuple[str, str]]:
    """(namespace, name) of those Services for which kube-proxy would find no endpoint anywhere."""
    silent = {(key.namespace, key.name) for key in keys}
    for item in of(table, EndpointSlice).values():
        name = (item.metadata.namespace, item.metadata.labels.get(SERVICE_NAME, ""))
        if name in silent and any(_is_usable(endpoint.conditions) for endpoint in item.endpoints or ()):
            silent.discard(name)
    return frozenset(silent)


def _is_usable(says: EndpointConditions | None) -> bool:
    """Ready, or still serving while it ends."""
    return says is None or says.ready is not False or (says.serving is not False and says.terminating is True)


def _led_to(service: Service, look: _Look, local: frozenset[str]) -> Condition:
    """The nodes that are well, by their health checks."""
    port = model.health_port(service, look.cluster, look.told)
    is_local, before = model.has_health_port(service, look.cluster), model.status_condition(service, model.NODES)
    there = set(look.nodes if before is None else model.balanced_nodes(service))
    guess = local if is_local else there
    said = {node: look.says(node, port) for node in look.nodes}
    well = [node for node, word in said.items() if (word if word is not None else node in guess)]
    if not well:
        return Condition(model.NODES, "False", "NoHealthyNode", f"no node answers health checks on port {port}")
    return Condition(model.NODES, "True", "HealthChecks", ",".join(well))


def _balanced(service: Service, found: Condition) -> Service:
    if model.status_condition(service, model.NODES) == found:
        return service
    kept = tuple(item for item in service.status.conditions or () if item.type != model.NODES)
    return msgspec.structs.replace(service, status=msgspec.structs.replace(service.status, conditions=(*kept, found)))


# --- what a person should know ----------------------------------------------------------------------------------------

Said = tuple[Service, str, str, str]


def events(table: Table, cluster: Cluster) -> Iterator[Said]:
    """Object, reason, message and type of what should be known of balanced Services."""
    for service in of(table, Service).values():
        if model.is_balanced(service):
            yield from _events(service, cluster)
        elif service.spec.type == "LoadBalancer":
            message = f"loadBalancerClass {service.spec.loadBalancerClass} is another balancer's: no address from here"
            yield service, "OtherClass", message, "Normal"


def _events(service: Service, cluster: Cluster) -> Iterator[Said]:
    spec, mode = service.spec, cluster.loadBalancer.mode
    address = model.status_condition(service, model.ADDRESS)
    nodes = model.status_condition(service, model.NODES)
    if address is not None and address.status != "True":
        yield service, "Pending", address.message, "Warning"
    if nodes is not None and nodes.status != "True":
        yield service, nodes.reason, f"{nodes.message}: connections are refused", "Warning"
    if mode == "nodeport" and any(not port.nodePort for port in spec.ports or ()):
        message = "the balancer sends to node ports, and there is none: say loadBalancer: {mode: vip} in the Cluster"
        yield service, "NoNodePort", message, "Warning"
    if mode == "vip" and spec.sessionAffinity == "ClientIP":
        message = "mode vip spreads connections by their ports, so a client stays with one pod per node, not with one"
        yield service, "AffinityPerNode", message, "Warning"
