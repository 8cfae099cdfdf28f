"""A small cluster written down by hand, for tables of packets: its network as values, its Services as YAML.

client 203.0.113.2 ── outside ── router ── nodes ─┬─ node1 172.18.0.2 ─ cni0 ─ a1 10.244.1.9, e1 .2, e2 .3
                                                   └─ node2 172.18.0.3 ─ cni0 ─ a2 10.244.2.9, e3 .2
between the nodes flannel.1 (VXLAN 1)
"""

from collections.abc import Mapping

import yaml

from nsnet import names
from nsnet.model import Family, Key, Node, NodeAddress, NodeStatus, Object, ObjectMeta, Objects, by_key, from_doc
from nsnet.render import proxy_iptables, proxy_nftables, services
from nsnet.render.kubeproxy import LocalDetector
from nsnet.render.services import ServicePortInfo
from nsnet.state import (
    Address,
    Bridge,
    BridgePort,
    Chain,
    FdbEntry,
    Loopback,
    Neighbour,
    Netns,
    Nft,
    Route,
    Sysctl,
    Value,
    Veth,
    Vxlan,
)

NODES = {"node1": ("172.18.0.2", "10.244.1", "a"), "node2": ("172.18.0.3", "10.244.2", "b")}
PODS = {
    "a1": ("node1", "10.244.1.9"),
    "a2": ("node2", "10.244.2.9"),
    "e1": ("node1", "10.244.1.2"),
    "e2": ("node1", "10.244.1.3"),
    "e3": ("node2", "10.244.2.2"),
}
NAMES = {
    **{node: names.node_netns("w", node) for node in NODES},
    **{pod: names.pod_netns("w", "t", pod) for pod in PODS},
    "client": names.host_netns("w", "client"),
    "router": names.fabric_netns("w", "router"),
}

SETTINGS = proxy_iptables.Settings(LocalDetector(source="10.244.0.0/16"))


def infos(objects: Objects, where: Node, family: Family = "ip") -> list[ServicePortInfo]:
    """All Service ports as a node sees them, by name and protocol."""
    there = services.place(where, family)
    return [
        services.on_node(port, there) for joined in services.join(objects) for port in services.ports(joined, family)
    ]


def own_chains(objects: Objects, where: Node, said: proxy_iptables.Settings) -> frozenset[Chain]:
    """kube-proxy's own chains on a node."""
    return proxy_iptables.node_chains(services.join(objects), services.place(where, said.family), said)


def own_table(objects: Objects, where: Node, said: proxy_nftables.Settings) -> frozenset[Nft]:
    """The same of nftables mode."""
    return proxy_nftables.node_values(services.join(objects), services.place(where, said.family), said)


def load(text: str) -> dict[Key, Object]:
    """Services and slices of a YAML stream (namespace `t` where none is said), with the two nodes."""
    docs = [doc for doc in yaml.safe_load_all(text) if doc]
    for doc in docs:
        doc["metadata"].setdefault("namespace", "t")
    return by_key([*map(node, NODES), *map(from_doc, docs)])


def node(name: str) -> Node:
    address, _, zone = NODES[name]
    labels = {"topology.kubernetes.io/zone": zone}
    return Node(ObjectMeta(name=name, labels=labels), status=NodeStatus((NodeAddress("InternalIP", address),)))


def chains(objects: Mapping[Key, Object], settings: proxy_iptables.Settings = SETTINGS) -> dict[str, frozenset[Chain]]:
    """kube-proxy's chains of each node, with the built-in chains that jump to them."""
    return {name: own_chains(objects, node(name), settings) | built_in() for name in NODES}


def built_in() -> frozenset[Chain]:
    found: dict[tuple[str, str], list[str]] = {}
    for table, chain, rule in proxy_iptables.JUMPS:
        found.setdefault((table, chain), []).append(rule)
    return frozenset(Chain(table, chain, tuple(rules), "ACCEPT") for (table, chain), rules in found.items())


def network(rules: Mapping[str, frozenset[Value]]) -> dict[str, frozenset[Value]]:
    """The whole state: every namespace with its values, the nodes with these chains."""
    state: dict[str, list[Value]] = {}
    for name in NODES:
        state[NAMES[name]] = [*_node(name), *rules[name]]
    for pod in PODS:
        state[NAMES[pod]] = _pod(pod)
    state[NAMES["client"]] = [*_end("client", "eth0", "outside"), *_routed("eth0", "203.0.113.2/24", "203.0.113.1")]
    state[NAMES["router"]] = [
        *_end("router", "nodes", "nodes"),
        *_end("router", "outside", "outside"),
        Address("nodes", "172.18.0.1/16"),
        Address("outside", "203.0.113.1/24"),
        Sysctl("net.ipv4.ip_forward", "1"),
    ]
    state[names.fabric_netns("w", "nodes")] = _switch(
        "nodes", ("node1", "eth0"), ("node2", "eth0"), ("router", "nodes")
    )
    state[names.fabric_netns("w", "outside")] = _switch("outside", ("client", "eth0"), ("router", "outside"))
    return {netns: frozenset([Netns("nsnet/w"), Loopback(), *values]) for netns, values in state.items()}


def _mac(text: str) -> str:
    return names.vtep_mac("w", text, 0)


def _port(end: str) -> str:
    return names.veth(f"port of {end}")


def _switch(network_name: str, *ends: tuple[str, str]) -> list[Value]:
    values: list[Value] = [Bridge("br0", _mac(network_name))]
    for end, dev in ends:
        port = _port(f"{end}/{dev}")
        values += [Veth(port, f"{NAMES[end]}/{dev}", _mac(port)), BridgePort(port, "br0")]
    return values


def _end(end: str, dev: str, network_name: str) -> list[Value]:
    peer = f"{names.fabric_netns('w', network_name)}/{_port(f'{end}/{dev}')}"
    return [Veth(dev, peer, _mac(f"{end}/{dev}"))]


def _routed(dev: str, cidr: str, gateway: str) -> list[Value]:
    return [Address(dev, cidr), Route("default", dev=dev, via=gateway)]


def _node(name: str) -> list[Value]:
    address, pods, _ = NODES[name]
    values = [*_end(name, "eth0", "nodes"), *_routed("eth0", f"{address}/16", "172.18.0.1")]
    values += [Bridge("cni0", _mac(f"{name}/cni0"), 1450), Address("cni0", f"{pods}.1/24")]
    values += [
        Vxlan("flannel.1", _mac(f"{name}/flannel"), 1450, 1, address, "eth0"),
        Address("flannel.1", f"{pods}.0/32"),
    ]
    for other, (remote, subnet, _) in NODES.items():
        if other != name:
            mac = _mac(f"{other}/flannel")
            values += [Neighbour("flannel.1", f"{subnet}.0", mac), FdbEntry("flannel.1", mac, remote)]
            values.append(Route(f"{subnet}.0/24", dev="flannel.1", via=f"{subnet}.0", onlink=True))
    for pod, (where, _) in PODS.items():
        if where == name:
            port = _port(pod)
            values += [Veth(port, f"{NAMES[pod]}/eth0", _mac(port), 1450), BridgePort(port, "cni0", hairpin=True)]
    for sysctl in ("net.ipv4.ip_forward", "net.bridge.bridge-nf-call-iptables", "net.ipv4.conf.all.route_localnet"):
        values.append(Sysctl(sysctl, "1"))
    return values


def _pod(pod: str) -> list[Value]:
    where, address = PODS[pod]
    gateway = f"{NODES[where][1]}.1"
    return [Veth("eth0", f"{NAMES[where]}/{_port(pod)}", _mac(pod), 1450), *_routed("eth0", f"{address}/24", gateway)]


SERVICES = """
# Three ready endpoints, on two nodes.
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.0.11, type: NodePort, ports: [{name: http, port: 80, nodePort: 30011}]}
---
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.244.1.2], nodeName: node1}
- {addresses: [10.244.1.3], nodeName: node1}
- {addresses: [10.244.2.2], nodeName: node2}
---
# No endpoint at all.
kind: Service
metadata: {name: none}
spec: {clusterIP: 10.96.0.12, type: NodePort, externalIPs: [198.51.100.12], ports: [{port: 80, nodePort: 30012}]}
---
# externalTrafficPolicy Local, its one endpoint on node1.
kind: Service
metadata: {name: outer}
spec: {clusterIP: 10.96.0.13, type: NodePort, externalTrafficPolicy: Local, ports: [{port: 80, nodePort: 30013}]}
---
kind: EndpointSlice
metadata: {name: outer-1, labels: {kubernetes.io/service-name: outer}}
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.1.2], nodeName: node1}]
---
# internalTrafficPolicy Local, its one endpoint on node2.
kind: Service
metadata: {name: inner}
spec: {clusterIP: 10.96.0.14, type: NodePort, internalTrafficPolicy: Local, ports: [{port: 80, nodePort: 30014}]}
---
kind: EndpointSlice
metadata: {name: inner-1, labels: {kubernetes.io/service-name: inner}}
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.2.2], nodeName: node2}]
---
# A load balancer's address with source ranges: the outside network, and pod a1.
kind: Service
metadata: {name: ranges}
spec:
  clusterIP: 10.96.0.15
  type: LoadBalancer
  loadBalancerSourceRanges: [203.0.113.0/24, 10.244.1.9/32]
  ports: [{port: 80, nodePort: 30015}]
status: {loadBalancer: {ingress: [{ip: 192.0.2.15}, {ip: 192.0.2.99, ipMode: Proxy}]}}
---
kind: EndpointSlice
metadata: {name: ranges-1, labels: {kubernetes.io/service-name: ranges}}
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.1.2], nodeName: node1}]
---
# Session affinity, and two protocols on one port number.
kind: Service
metadata: {name: dns}
spec:
  clusterIP: 10.96.0.16
  type: ClusterIP
  externalIPs: [198.51.100.16]
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 600}}
  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]
---
kind: EndpointSlice
metadata: {name: dns-1, labels: {kubernetes.io/service-name: dns}}
ports: [{name: dns, port: 5353, protocol: UDP}, {name: dns-tcp, port: 5353, protocol: TCP}]
endpoints: [{addresses: [10.244.1.2], nodeName: node1}, {addresses: [10.244.1.3], nodeName: node1}]
---
# Nothing is ready, two endpoints still serve while they end; externalTrafficPolicy Local with a health check.
kind: Service
metadata: {name: ending}
spec:
  clusterIP: 10.96.0.17
  type: LoadBalancer
  externalTrafficPolicy: Local
  healthCheckNodePort: 30917
  ports: [{port: 80, nodePort: 30017}]
status: {loadBalancer: {ingress: [{ip: 192.0.2.17}]}}
---
kind: EndpointSlice
metadata: {name: ending-1, labels: {kubernetes.io/service-name: ending}}
ports: [{port: 8080}]
endpoints:
- {addresses: [10.244.1.2], nodeName: node1, conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [10.244.1.3], nodeName: node1, conditions: {ready: false, serving: false, terminating: true}}
- {addresses: [10.244.2.2], nodeName: node2, conditions: {ready: false, serving: true, terminating: true}}
---
kind: Service
metadata: {name: signal}
spec: {clusterIP: 10.96.0.18, ports: [{port: 7, protocol: SCTP}]}
---
kind: EndpointSlice
metadata: {name: signal-1, labels: {kubernetes.io/service-name: signal}}
ports: [{port: 7, protocol: SCTP}]
endpoints: [{addresses: [10.244.1.2], nodeName: node1}]
---
# No proxy looks after these.
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, ports: [{port: 80}]}
---
kind: Service
metadata: {name: elsewhere}
spec: {type: ExternalName, externalName: example.com}
---
kind: Service
metadata: {name: other-proxy, labels: {service.kubernetes.io/service-proxy-name: mine}}
spec: {clusterIP: 10.96.0.19, ports: [{port: 80}]}
"""
