"""What kube-proxy is told, in what its modes and the kernel understand: a KubeProxyConfiguration and the cluster, read.

Sources (Kubernetes 1.36): `cmd/kube-proxy/app/{server_linux,conntrack}.go`, `pkg/proxy/util/{localdetector,
nodeport_addresses}.go`, defaults of `pkg/proxy/apis/config/v1alpha1/defaults.go`. Without a configuration everything is
as kubeadm leaves it: clusterCIDR is the pod subnet.

`nf_conntrack_max` is left alone, as a real kube-proxy must leave it outside of the first network namespace: it is one
for the whole machine.
"""

from collections.abc import Iterator, Sequence
from ipaddress import ip_address, ip_interface, ip_network
from typing import NamedTuple

import msgspec

from nsnet.model import (
    Cluster,
    Family,
    KubeProxyConfiguration,
    Node,
    ObjectMeta,
    Objects,
    cluster_of,
    families_of,
    family_of,
    kube_proxy_of,
    pod_cidrs,
    seconds,
    subnets,
)
from nsnet.state import Sysctl

PRIMARY = ("primary",)  # nodePortAddresses: this node's own address alone
MASQUERADE_BIT = 14
_TIMES = (
    ("tcp_timeout_established", "tcpEstablishedTimeout", "24h", 432000),
    ("tcp_timeout_close_wait", "tcpCloseWaitTimeout", "1h", 60),
    ("udp_timeout", "udpTimeout", "0", 30),
    ("udp_timeout_stream", "udpStreamTimeout", "0", 120),
)
"""(sysctl, field, kube-proxy's default, Linux's default)"""
_LOOPBACK = {"ip": "127.0.0.0/8", "ip6": "::1/128"}


class LocalDetector(msgspec.Struct, frozen=True):
    """How a packet is known to come from a local pod: by source CIDR, by incoming interface, or (both empty) not.

    ClusterCIDR and NodeCIDR give a source, BridgeInterface an interface, InterfaceNamePrefix one with a `+`.
    """

    source: str = ""
    interface: str = ""

    def __bool__(self) -> bool:
        return bool(self.source or self.interface)


class Told(NamedTuple):
    """What is said of kube-proxy; `config` is an empty one where nobody says anything."""

    cluster: Cluster
    config: KubeProxyConfiguration


def told(objects: Objects) -> Told:
    return Told(cluster_of(objects), kube_proxy_of(objects) or KubeProxyConfiguration(ObjectMeta()))


def detector(said: Told, node: Node, family: Family) -> LocalDetector:
    """How this node's kube-proxy knows local pods; NodeCIDR asks the node."""
    match said.config.detectLocalMode:
        case "BridgeInterface":
            return LocalDetector(interface=said.config.detectLocal.bridgeInterface)
        case "InterfaceNamePrefix":
            return LocalDetector(interface=f"{said.config.detectLocal.interfaceNamePrefix}+")
        case "NodeCIDR":
            cidrs: Sequence[str] = pod_cidrs(node)
        case _:
            cidrs = subnets(said.cluster.networking.podSubnet)
    return LocalDetector(next(_of_family(cidrs, family), ""))


def masquerade_bit(said: int | None) -> int:
    return MASQUERADE_BIT if said is None else said


def localhost_node_ports(said: Told, family: Family) -> bool:
    """Are node ports served on loopback? Only in iptables mode, only where nodePortAddresses do not leave it out."""
    wanted = said.config.iptables.localhostNodePorts is not False
    asked = _asked(said, family)
    loopback = ip_network(_LOOPBACK[family])
    return wanted and (asked is None or any(ip_network(cidr, strict=False).overlaps(loopback) for cidr in asked))


def node_port_addresses(said: Told, node: Node, family: Family) -> tuple[str, ...] | None:
    """The addresses of this node whose node ports are served; None: all of them.

    kube-proxy looks at the node's devices; here they follow from the objects.
    """
    if said.config.nodePortAddresses == PRIMARY:
        return tuple(_of_family(_internal(node), family))[:1]
    asked = _asked(said, family)
    if asked is None:
        return None
    networks = [ip_network(cidr, strict=False) for cidr in asked]
    local = dict.fromkeys(_of_family(local_addresses(said.cluster, node), family))
    return tuple(address for address in local if any(ip_address(address) in network for network in networks))


def sysctls(said: Told, mode: str) -> Iterator[Sysctl]:
    """What kube-proxy sets when it starts. A time of 0 leaves the node's own alone, which is Linux's default."""
    local = mode == "iptables" and "ip" in families_of(said.cluster) and localhost_node_ports(said, "ip")
    # Node ports on loopback need it, which only iptables mode has (CVE-2020-8558 says why).
    yield Sysctl("net.ipv4.conf.all.route_localnet", "1" if local else "0")
    conntrack = said.config.conntrack
    yield Sysctl("net.netfilter.nf_conntrack_tcp_be_liberal", "1" if conntrack.tcpBeLiberal else "0")
    for name, field, default, linux in _TIMES:
        time = int(seconds(getattr(conntrack, field) or default) or 0)
        yield Sysctl(f"net.netfilter.nf_conntrack_{name}", str(time or linux))


def _asked(said: Told, family: Family) -> list[str] | None:
    """The nodePortAddresses of a family; None: every address. `primary` names none of them: loopback is not in it."""
    if said.config.nodePortAddresses == PRIMARY:
        return []
    cidrs = list(_of_family(said.config.nodePortAddresses, family))
    if not cidrs or any(ip_network(cidr, strict=False).prefixlen == 0 for cidr in cidrs):
        return None
    return cidrs


def _of_family(texts: Sequence[str], family: Family) -> Iterator[str]:
    return (text for text in texts if text and family_of(text) == family)


def _internal(node: Node) -> list[str]:
    return [item.address for item in node.status.addresses if item.type == "InternalIP"]


def local_addresses(cluster: Cluster, node: Node) -> list[str]:
    """Every address the node has: its own, the bridge's, flannel's device's and loopback's."""
    found = [item.address for item in node.status.addresses if item.type != "Hostname"]
    for cidr in pod_cidrs(node):
        subnet = ip_interface(cidr).network
        found.append(str(subnet[1]))
        if cluster.flannel.Backend.has_device:
            found.append(str(subnet[0]))
    return [*found, "127.0.0.1", "::1"]
