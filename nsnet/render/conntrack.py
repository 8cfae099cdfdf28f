"""Which conntrack entries must go: UDP ones that lead a client on to an endpoint that is none any more.

And, in a cluster that says so, those of any protocol that a policy would not let begin (`policy_flows.py`).

nat asks the rules for the first packet of a connection only, and a UDP client that keeps its source port has, for
conntrack, one connection as long as it sends. So kube-proxy deletes entries after a sync. Its rules (1.36,
`pkg/proxy/conntrack/cleanup.go`; facts/KUBEPROXY.md §3):

- UDP alone;
- an entry to the port's clusterIP, externalIP or load balancer address, or to its node port, goes when what answers is
  not one of the serving endpoints. That takes along entries of before the Service was there, which were not rewritten.
- traffic policy and topology are not asked.

The portmap plugin deletes entries to a UDP host port when it maps one; here those that lead to another pod than the
port's go. In userspace mode the one who may answer is the proxy process, at any address of the node.

Two differences. Upstream looks after Service ports with a serving endpoint alone; what leads to a Service that has lost
all endpoints, or is gone with its addresses and node ports, keeps its entries there until nobody sends any more. Here
they go: nothing in a node rewrites a destination but for a Service or a host port, so an entry that was rewritten and
is nobody's is of one that was.

And upstream takes an entry to *any* address with a node port's number for that node port's. It looks only when an
endpoint changes; this function may be asked at any time, so it leaves alone what merely passes the node: an entry that
was not rewritten counts where its destination is the node's own.

The balancer outside does the same for its nodes: an entry that leads to a node that is none of its any more goes.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from nsnet import names
from nsnet.model import API_FAMILIES, Node, Objects, Service, cluster_of, indexed, of
from nsnet.render import kubeproxy, loadbalancer, policy, portmap, proxy_userspace, services
from nsnet.render.policy_flows import PROTOCOLS, Judge, judge, permits
from nsnet.state import Change, Conntrack, State

Endpoints = Mapping[tuple[str, int], frozenset[str]]  # destination → `ip:port` of those that may answer


class Flows(msgspec.Struct, frozen=True):
    """How UDP may flow through a node. `services` by address and port, `node_ports` under an empty address.

    `policies`, where entries that they deny end; `protocols` are the entries there are to judge.
    """

    services: Endpoints
    node_ports: Endpoints
    own: frozenset[str]  # the node's addresses
    policies: Judge | None = None

    @property
    def protocols(self) -> frozenset[str]:
        return PROTOCOLS if self.policies else frozenset({"udp"})


def flows(objects: Objects) -> dict[str, Flows]:
    """Namespace of each node, and of the balancer → its flows; `policies` in a cluster with `policy.flushConntrack`."""
    objects = indexed(objects)
    cluster, host_ports = cluster_of(objects), portmap.udp(objects)
    in_process = cluster.networking.kubeProxyMode == "userspace"
    served = _served(objects) if in_process else ()
    ends = _endpoints(objects) if not in_process else ({}, {})
    judges = _judges(objects) if cluster.policy.flushConntrack else {}
    found = {names.fabric_netns(cluster.metadata.name, "router"): _balanced(objects)}
    for node in of(objects, Node):
        name, own = node.metadata.name, frozenset(kubeproxy.local_addresses(cluster, node))
        by_address, by_port = _by_the_process(served, own) if in_process else ends
        node_ports = {**host_ports.get(name, {}), **by_port}
        found[names.node_netns(cluster.metadata.name, name)] = Flows(by_address, node_ports, own, judges.get(name))
    return found


def _judges(objects: Objects) -> dict[str, Judge]:
    """Node → its policies of both families, where it guards a pod."""
    guards: defaultdict[str, list[policy.Guard]] = defaultdict(list)
    for family in API_FAMILIES:
        for node, guard in policy.guards(objects, family).items():
            guards[node].append(guard)
    return {node: judge(found) for node, found in guards.items()}


def _balanced(objects: Objects) -> Flows:
    """The balancer's; mode vip rewrites nothing."""
    if cluster_of(objects).loadBalancer.mode == "vip":
        return Flows({}, {}, frozenset())
    fronts = (front for front in loadbalancer.fronts(objects) if front.protocol == "udp")
    return Flows({(front.address, front.port): frozenset(front.targets) for front in fronts}, {}, frozenset())


def _served(objects: Objects) -> list[proxy_userspace.Proxied]:
    every = proxy_userspace.proxied(services.join(objects), objects)
    return [item for item in every if item.info.protocol == "udp"]


def _by_the_process(served: Iterable[proxy_userspace.Proxied], own: frozenset[str]) -> tuple[Endpoints, Endpoints]:
    by_address: dict[tuple[str, int], frozenset[str]] = {}
    by_port: dict[tuple[str, int], frozenset[str]] = {}
    for item in served:
        process = frozenset(f"{address}:{item.proxy_port}" for address in own)
        by_address |= dict.fromkeys(((address, item.info.port) for address in _addresses(item.info)), process)
        by_port["", item.info.node_port] = process
    return by_address, by_port


def _addresses(info: services.ServicePortInfo) -> tuple[str, ...]:
    return (info.cluster_ip, *info.external_ips, *info.load_balancer_vips)


def stale(wanted: Mapping[str, Flows], have: State) -> list[Change]:
    """The deletes, in order, of the entries in `have` (namespace → values) that must go."""
    return [
        Change("delete", netns, entry)
        for netns, values in sorted(have.items())
        for entry in sorted((value for value in values if isinstance(value, Conntrack)), key=lambda item: item.key)
        if netns in wanted and _is_stale(entry, wanted[netns])
    ]


def _is_stale(entry: Conntrack, flow: Flows) -> bool:
    if flow.policies and not permits(flow.policies, entry, flow.own):
        return True
    if entry.protocol != "udp":
        return False
    endpoints = flow.services.get((entry.dst, entry.dport))
    if endpoints is None and (entry.rewritten or entry.dst in flow.own):
        endpoints = flow.node_ports.get(("", entry.dport))
    return entry.rewritten if endpoints is None else entry.answerer not in endpoints


def _has_udp(service: Service) -> bool:
    return any(port.protocol == "UDP" for port in service.spec.ports or ())


def _endpoints(objects: Objects) -> tuple[Endpoints, Endpoints]:
    by_address: defaultdict[tuple[str, int], frozenset[str]] = defaultdict(frozenset)
    by_port: defaultdict[tuple[str, int], frozenset[str]] = defaultdict(frozenset)
    for port in _ports(objects):
        serving = frozenset(str(candidate.target) for candidate in port.candidates if candidate.serving)
        info = port.info
        for address in _addresses(info) if serving else ():
            by_address[address, info.port] |= serving
        if serving and info.node_port:
            by_port["", info.node_port] |= serving
    return dict(by_address), dict(by_port)


def _ports(objects: Objects) -> Iterator[services.Port]:
    found = services.chosen(objects, _has_udp)
    every = (port for joined in found for family in API_FAMILIES for port in services.ports(joined, family))
    return (port for port in every if port.info.protocol == "udp")
