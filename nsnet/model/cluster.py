"""What lies under the cluster, and what nsnet itself says: nsnet's own kinds."""

from typing import Any

import msgspec

from nsnet.model.metadata import Labels, ObjectMeta
from nsnet.model.services import ObjectReference
from nsnet.model.workloads import Taint


class Event(msgspec.Struct, frozen=True):
    """Level-triggered: it stands as long as its reason holds. `type` is Normal or Warning."""

    metadata: ObjectMeta
    involvedObject: ObjectReference = ObjectReference()
    reason: str = ""
    message: str = ""
    type: str = "Warning"
    raw: dict[str, Any] = {}


NO_SUBNET = "0.0.0.0/0"  # flannel's word in the place of an IPv4 subnet where there is none


class SubnetLease(msgspec.Struct, frozen=True):
    """A flannel lease; `metadata.name` is the subnet as in flannel's key (`10.244.1.0-24`).

    With IPv6 it is `10.244.1.0-24&fd00:10:244:1::-64`; without IPv4 the first half is 0.0.0.0-0, and so is PublicIP.
    Stored as flannel stores it (key and JSON), see `store.keys`.
    """

    metadata: ObjectMeta
    PublicIP: str
    BackendType: str = ""
    BackendData: dict[str, Any] | None = None
    PublicIPv6: str | None = None
    BackendV6Data: dict[str, Any] | None = None
    raw: dict[str, Any] = {}

    @property
    def subnets(self) -> tuple[str, ...]:
        """One subnet per family."""
        every = (part.replace("-", "/") for part in self.metadata.name.split("&"))
        return tuple(part for part in every if part != NO_SUBNET)

    @property
    def subnet(self) -> str:
        """What it is called by: its IPv4 subnet where it has one."""
        return next(iter(self.subnets), "")


class Other(msgspec.Struct, frozen=True):
    """An object of a kind that has no struct (yet): kept whole in `raw`."""

    metadata: ObjectMeta
    kind: str = ""
    raw: dict[str, Any] = {}


class Networking(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """kubeadm's words. A pair of subnets, `10.244.0.0/16,fd00:10:244::/56`, is dual stack."""

    podSubnet: str = "10.244.0.0/16"
    serviceSubnet: str = "10.96.0.0/16"
    dnsDomain: str = "cluster.local"
    kubeProxyMode: str = ""  # empty: what a KubeProxyConfiguration says, else iptables (`control` fills it in)
    nodePortRange: str = "30000-32767"
    clusterDNS: str = ""


class Backend(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """flannel's Backend: Type is vxlan, host-gw, ipip, udp or wireguard, in any letters; the others belong to some.

    vxlan: VNI, Port, DirectRouting. ipip: DirectRouting. udp: Port. wireguard: ListenPort (and ListenPortV6 in Mode
    separate), Mode, PSK, PersistentKeepaliveInterval in seconds.
    """

    Type: str = "vxlan"
    VNI: int = 1
    Port: int = 0  # 0: 8472, or 8285 for udp
    DirectRouting: bool = False
    MTU: int = 0  # of the external interface; 0: take it from there
    ListenPort: int = 51820
    ListenPortV6: int = 51821
    Mode: str = "separate"  # a device for each family; or one for both, over ipv4, ipv6 or (auto) whatever there is
    PSK: str = ""
    PersistentKeepaliveInterval: int = 0

    @property
    def kind(self) -> str:
        """Type as flannel looks it up."""
        return self.Type.lower()

    @property
    def port(self) -> int:
        """The UDP port of vxlan and udp."""
        return self.Port or (8285 if self.kind == "udp" else 8472)

    @property
    def udp_ports(self) -> tuple[int, ...]:
        """Where packets come in that carry others; none of host-gw and ipip, which have no ports."""
        match self.kind:
            case "vxlan" | "udp":
                return (self.port,)
            case "wireguard":
                return (self.ListenPort, self.ListenPortV6) if self.Mode == "separate" else (self.ListenPort,)
        return ()

    @property
    def has_device(self) -> bool:
        """Has every node a device of flannel's, which bears its subnet's first address?"""
        return self.kind != "host-gw"


class Flannel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """flannel's net-conf.json without Network and IPv6Network; `allocation`: first (free subnet in order) or random.

    EnableIPv4 and EnableIPv6 follow from podSubnet; a document that says otherwise is refused.
    """

    SubnetLen: int = 0  # 0: 24, or Network + 2 where Network is smaller than /22
    SubnetMin: str = ""
    SubnetMax: str = ""
    EnableIPv4: bool | None = None
    EnableIPv6: bool | None = None
    IPv6SubnetLen: int = 0  # 0: 64, or IPv6Network + 2 where that is smaller than /62
    IPv6SubnetMin: str = ""
    IPv6SubnetMax: str = ""
    Backend: "Backend" = Backend()
    allocation: str = "first"
    ipMasq: bool = True


class Network(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A segment of the underlay: a switch; the router owns its first address. `subnet` may be a pair, as podSubnet.

    `bridge`: a bridge that every machine has already, by which they are one segment (instead of VXLAN between them).
    """

    name: str
    subnet: str = ""
    mtu: int = 1500
    bridge: str = ""


class LinkSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The link between a node (or host) and its network. `offload: off`: checksums and packet sizes are real on it."""

    between: tuple[str, str]
    delay: str = ""
    loss: str = ""
    rate: str = ""
    mtu: int = 0
    offload: bool = True


IMPAIRED_BY = "nsnet/impaired-by"
"""Annotation of the Cluster: `netem`, or `plain` where the kernel has none. `up` asks the kernel and writes it."""


LACKS = "nsnet/lacks"
"""Annotation of the Cluster: `sctp` where the kernel cannot match SCTP ports. `up` and `apply` try it and write it."""


class MachineEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A machine that carries part of the cluster; `address` is one of its own, by which the others reach it.

    `interface`: one of its own that has it. Where only that is said, the machine itself says the address when it joins.
    """

    name: str
    address: str = ""
    interface: str = ""
    mtu: int = 1500


class Underlay(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`machines`: those that the cluster is spread over; its networks are carried between them by VXLAN."""

    networks: tuple[Network, ...] = ()
    links: tuple[LinkSpec, ...] = ()
    machines: tuple[MachineEntry, ...] = ()


class NodeEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    network: str = ""
    address: str = ""
    addresses: tuple[str, ...] = ()
    podCIDR: str = ""
    labels: Labels = {}
    taints: tuple[Taint, ...] = ()
    sysctls: dict[str, int | str] = {}  # as in sysctl.conf, over what kubelet, CNI and kube-proxy set
    machine: str = ""


class HostEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    network: str = ""
    address: str = ""
    addresses: tuple[str, ...] = ()


class Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A check of the topology's own: `from` a TARGET `to` a URL; `expect` ok, refused or timeout."""

    name: str
    to: str
    source: str = msgspec.field(name="from")
    expect: str = "ok"


class LoadBalancerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`addresses`: `a-b`, a subnet or one address each; None: `control` fills in a range that is free.

    `mode`: nodeport (each connection goes to a node port) or vip (routes to the nodes, which know the address). `snat`:
    in mode nodeport, nodes see the balancer as the client.
    """

    addresses: tuple[str, ...] | None = None
    mode: str = "nodeport"
    snat: bool = False


class Dns(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The cluster's DNS, and what it finds outside.

    `upstreams` and the servers of `stubDomains` are `ip` or `ip:port`. `records` are names that the underlay's own
    authority serves, with one address each. `pods`: disabled, insecure or verified, as in CoreDNS.
    """

    enabled: bool = True
    flavour: str = "coredns"
    replicas: int = 2
    pods: str = "insecure"
    upstreams: tuple[str, ...] = ()
    stubDomains: dict[str, tuple[str, ...]] = {}
    records: dict[str, str] = {}


class PolicyConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How network policies are enforced. `flushConntrack`: what a new policy denies ends at once, flows included."""

    flushConntrack: bool = False


class IngressConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The HTTP proxy that serves Ingress and Gateway objects; there is one as soon as one of them asks for it."""

    replicas: int = 1
    externalTrafficPolicy: str = "Cluster"  # Local: the pods see the client's own address


class Cluster(msgspec.Struct, frozen=True):
    """The one document that says what lies under the manifests; `nodes` a number or a list.

    After `control` has completed it, `nodes`, `hosts` and `underlay.networks` are whole lists with every address.
    """

    metadata: ObjectMeta
    networking: Networking = Networking()
    flannel: Flannel = Flannel()
    bridge: str = "cni0"
    loadBalancer: LoadBalancerConfig = LoadBalancerConfig()
    dns: Dns = Dns()
    policy: PolicyConfig = PolicyConfig()
    ingress: IngressConfig = IngressConfig()
    underlay: Underlay = Underlay()
    nodes: int | tuple[NodeEntry, ...] = 2
    hosts: tuple[HostEntry, ...] | None = None
    checks: tuple[Check, ...] = ()
    raw: dict[str, Any] = {}


SERVICE_NAME = "kubernetes.io/service-name"  # label of an EndpointSlice: the Service it belongs to
ZONE = "topology.kubernetes.io/zone"  # label of a Node
PROXY_MODES = ("iptables", "nftables", "userspace")  # of kube-proxy
LAB = "nsnet/lab"  # the lab that a Cluster is, and that a Fault belongs to


class FaultSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One thing that is broken: `fault` names its kind in the catalogue (`nsnet.faults`).

    `on` (in documents: `where`) and `to` are places: node/N, host/H, pod/NAMESPACE/NAME, svc/NAMESPACE/NAME; `to` is
    the other side of what stands between two. `means`: what the kernel offers for it (`netem`; empty: what every one
    has). `until`: when it ends by itself, RFC 3339 in UTC; empty: never.

    `leave`: the damage is done once and then left alone, with whatever somebody does to it: `keys`, the values that it
    touched; `places`, the whole namespaces. Empty: it is kept as it is until it is cleared.
    """

    fault: str
    on: tuple[str, ...] = msgspec.field(default=(), name="where")  # `on` is a boolean in YAML 1.1
    to: tuple[str, ...] = ()
    options: dict[str, str] = {}
    means: str = ""
    until: str = ""
    leave: str = ""


class FaultStatus(msgspec.Struct, frozen=True):
    """`done`: a damage that is left alone stands, from now on its values are held."""

    done: bool = False


class Fault(msgspec.Struct, frozen=True):
    metadata: ObjectMeta
    spec: FaultSpec
    status: FaultStatus = FaultStatus()
    raw: dict[str, Any] = {}


def in_lab(fault: Fault) -> bool:
    """Is it for a student to find? Then nobody gives it away unasked."""
    return LAB in fault.metadata.labels
