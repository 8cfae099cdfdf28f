"""What the bridge plugin leaves on a node for each pod (flannel's delegate: isDefaultGateway, hairpinMode).

    <cluster>.pod.<ns>.<pod>  eth0 ─── veth3c1f… │ cni0 10.244.1.1/24   <cluster>.node.<node>

The bridge stands on every node that has a subnet, also before its first pod. Its MAC and a pod's are the function of
their address that the plugin once used (0a:58 + the four bytes). Hairpin is on at each port: a pod that a Service
balances to itself gets its own frame back by the port it came from. A pod has two routes besides its own subnet's:
flannel's plugin adds one for the cluster's range, the bridge plugin the default; both lead to the bridge.

The gateway in each pod and each pod in its node are permanent neighbours (see underlay.py). Pod ↔ pod on one bridge is
left to ARP: those entries would grow with the square of the pods.

With two families all of this stands twice, on the same bridge and pair; the MACs are those of the first address.

Sources: containernetworking/plugins `plugins/main/bridge`, flannel-io/cni-plugin.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache

from nsnet import names
from nsnet.model import family_of
from nsnet.render.view import MEMO, Node, Pod, View, default_route
from nsnet.state import Address, Bridge, BridgePort, Loopback, Neighbour, Netns, Route, Value, Veth


def render(view: View) -> Iterator[tuple[str, Iterable[Value]]]:
    for node in view.nodes:
        if not node.legs:
            continue
        pods = [pod for pod in view.pods.get(node.name, ()) if pod.device]
        bridge = view.cluster.bridge
        yield node.netns, _bridge(bridge, node)
        for pod in pods:
            yield node.netns, _port(pod, bridge, node.mtu)
            yield pod.netns, _pod(pod, node, names.mark(view.name), view.pod_cidrs)


def _bridge(name: str, node: Node) -> tuple[Value, ...]:
    return Bridge(name, _bridge_mac(node), node.mtu), *(Address(name, leg.gateway) for leg in node.legs)


def _bridge_mac(node: Node) -> str:
    return names.mac(node.legs[0].gateway.partition("/")[0])


@lru_cache(maxsize=MEMO)
def _port(pod: Pod, bridge: str, mtu: int) -> frozenset[Value]:
    """The node's end: the veth, its place on the bridge, and where the pod's addresses are found."""
    return frozenset((
        Veth(pod.device, f"{pod.netns}/eth0", names.hashed_mac(f"{pod.namespace}/{pod.name}"), mtu),
        BridgePort(pod.device, bridge, hairpin=True),
        *(Neighbour(bridge, ip, names.mac(pod.ip)) for ip in pod.ips),
    ))  # fmt: skip


@lru_cache(maxsize=MEMO)
def _pod(pod: Pod, node: Node, mark: str, pod_cidrs: tuple[str, ...]) -> frozenset[Value]:
    """The pod's own namespace, whole."""
    return frozenset((
        Netns(mark),
        Loopback(),
        Veth("eth0", f"{node.netns}/{pod.device}", names.mac(pod.ip), node.mtu),
        *(value for ip in pod.ips for value in _addressed(ip, node, pod_cidrs)),
    ))  # fmt: skip


def _addressed(ip: str, node: Node, pod_cidrs: tuple[str, ...]) -> Iterator[Value]:
    """One address of a pod and its ways out."""
    family = family_of(ip)
    for leg in node.legs:
        if leg.family == family:
            gateway, _, length = leg.gateway.partition("/")
            yield Address("eth0", f"{ip}/{length}")
            yield Neighbour("eth0", gateway, _bridge_mac(node))
            yield from (Route(cidr, "eth0", via=gateway) for cidr in pod_cidrs if family_of(cidr) == family)
            yield Route(default_route(family), "eth0", via=gateway)
