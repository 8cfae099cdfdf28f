"""What is asked, in Kubernetes' words: typed objects with the API's own names and nesting.

A struct declares the fields that the network reads or nsnet writes; everything else a document said stays in `raw`
and comes back out of `to_doc` unchanged. Whoever changes an object makes a new one (`msgspec.structs.replace`).

`Objects` maps (kind, namespace, name) to objects; names are unique within a kind whatever the API group.
"""

import base64
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import lru_cache
from operator import itemgetter
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

from nsnet.errors import InputError

Labels = dict[str, str]
IntOrString = int | str
Family = Literal["ip", "ip6"]
"""An address family, in netfilter's words (as `state.Family`); the API says IPv4 and IPv6 (`API_FAMILIES`)."""


class Key(NamedTuple):
    """An object's identity. `namespace` is empty for kinds without one."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        where = f"{self.namespace}/" if self.namespace else ""
        return f"{self.kind} {where}{self.name}"


# --- metadata ---------------------------------------------------------------------------------------------------------


class OwnerReference(msgspec.Struct, frozen=True):
    kind: str
    name: str
    apiVersion: str = ""
    uid: str = ""
    controller: bool = True


class ObjectMeta(msgspec.Struct, frozen=True):
    name: str = ""
    namespace: str = ""
    generateName: str = ""
    labels: Labels = {}
    annotations: dict[str, str] = {}
    ownerReferences: tuple[OwnerReference, ...] = ()
    uid: str = ""
    creationTimestamp: str | None = None
    deletionTimestamp: str | None = None
    deletionGracePeriodSeconds: int | None = None


class Requirement(msgspec.Struct, frozen=True):
    """One item of matchExpressions: operator In, NotIn, Exists, DoesNotExist (Gt, Lt for node affinity)."""

    key: str
    operator: str
    values: tuple[str, ...] = ()


class LabelSelector(msgspec.Struct, frozen=True):
    matchLabels: Labels | None = None
    matchExpressions: tuple[Requirement, ...] | None = None


# --- namespaces and nodes ---------------------------------------------------------------------------------------------


class Namespace(msgspec.Struct, frozen=True):
    metadata: ObjectMeta
    raw: dict[str, Any] = {}


class Taint(msgspec.Struct, frozen=True):
    key: str
    effect: str
    value: str = ""


class NodeSpec(msgspec.Struct, frozen=True):
    podCIDR: str = ""
    podCIDRs: tuple[str, ...] = ()
    taints: tuple[Taint, ...] = ()
    unschedulable: bool = False


class NodeAddress(msgspec.Struct, frozen=True):
    type: str  # InternalIP, ExternalIP or Hostname
    address: str


class Condition(msgspec.Struct, frozen=True):
    type: str
    status: str  # True, False or Unknown
    reason: str = ""
    message: str = ""


class NodeStatus(msgspec.Struct, frozen=True):
    addresses: tuple[NodeAddress, ...] = ()
    conditions: tuple[Condition, ...] = ()


class Node(msgspec.Struct, frozen=True):
    """A node. nsnet's own facts are annotations: `nsnet/network` (of the underlay), `nsnet/last-reserved-ip`."""

    metadata: ObjectMeta
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()
    raw: dict[str, Any] = {}


# --- pods and workloads -----------------------------------------------------------------------------------------------


class ContainerPort(msgspec.Struct, frozen=True):
    containerPort: int
    name: str = ""
    protocol: str = "TCP"
    hostPort: int | None = None
    hostIP: str = ""


class EnvVar(msgspec.Struct, frozen=True):
    name: str
    value: str | None = ""


class Container(msgspec.Struct, frozen=True):
    name: str
    image: str = ""
    ports: tuple[ContainerPort, ...] | None = ()
    env: tuple[EnvVar, ...] | None = ()


class HostAlias(msgspec.Struct, frozen=True):
    ip: str
    hostnames: tuple[str, ...] = ()


class NodeSelectorTerm(msgspec.Struct, frozen=True):
    matchExpressions: tuple[Requirement, ...] = ()
    matchFields: tuple[Requirement, ...] = ()


class NodeSelector(msgspec.Struct, frozen=True):
    nodeSelectorTerms: tuple[NodeSelectorTerm, ...] = ()


class NodeAffinity(msgspec.Struct, frozen=True):
    requiredDuringSchedulingIgnoredDuringExecution: NodeSelector | None = None


class PodAffinityTerm(msgspec.Struct, frozen=True):
    topologyKey: str
    labelSelector: LabelSelector | None = None
    namespaces: tuple[str, ...] | None = ()


class WeightedPodAffinityTerm(msgspec.Struct, frozen=True):
    podAffinityTerm: PodAffinityTerm
    weight: int = 1


class PodAntiAffinity(msgspec.Struct, frozen=True):
    requiredDuringSchedulingIgnoredDuringExecution: tuple[PodAffinityTerm, ...] | None = ()
    preferredDuringSchedulingIgnoredDuringExecution: tuple[WeightedPodAffinityTerm, ...] | None = ()


class Affinity(msgspec.Struct, frozen=True):
    nodeAffinity: NodeAffinity | None = None
    podAntiAffinity: PodAntiAffinity | None = None


class Toleration(msgspec.Struct, frozen=True):
    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""


class PodDNSConfigOption(msgspec.Struct, frozen=True):
    name: str = ""
    value: str | None = None


# What kubelet lets through to resolv.conf (`pkg/apis/core/validation`: MaxDNSNameservers, MaxDNSSearchPaths, …).
MOST_NAMESERVERS, MOST_SEARCHES, MOST_SEARCH_LETTERS = 3, 32, 2048


class PodDNSConfig(msgspec.Struct, frozen=True):
    nameservers: tuple[str, ...] | None = ()
    searches: tuple[str, ...] | None = ()
    options: tuple[PodDNSConfigOption, ...] | None = ()


class PodSpec(msgspec.Struct, frozen=True):
    containers: tuple[Container, ...] = ()
    nodeName: str = ""
    nodeSelector: Labels | None = None
    affinity: Affinity | None = None
    tolerations: tuple[Toleration, ...] | None = ()
    hostNetwork: bool = False
    hostname: str = ""
    subdomain: str = ""
    hostAliases: tuple[HostAlias, ...] | None = ()
    dnsPolicy: str = "ClusterFirst"
    dnsConfig: PodDNSConfig | None = None
    enableServiceLinks: bool | None = True
    terminationGracePeriodSeconds: int | None = None


class PodIP(msgspec.Struct, frozen=True):
    ip: str


class PodStatus(msgspec.Struct, frozen=True):
    phase: str = ""
    podIP: str = ""
    podIPs: tuple[PodIP, ...] = ()
    hostIP: str = ""
    conditions: tuple[Condition, ...] = ()
    reason: str = ""
    message: str = ""


class Pod(msgspec.Struct, frozen=True):
    metadata: ObjectMeta
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()
    raw: dict[str, Any] = {}


class PodTemplateSpec(msgspec.Struct, frozen=True):
    metadata: ObjectMeta = ObjectMeta()
    spec: PodSpec = PodSpec()


class WorkloadSpec(msgspec.Struct, frozen=True):
    """What Deployment, ReplicaSet, ReplicationController, StatefulSet, DaemonSet and Job have in common."""

    selector: dict[str, Any] | None = None  # a LabelSelector, or a plain map in a ReplicationController: see `selector`
    template: PodTemplateSpec = PodTemplateSpec()
    replicas: int | None = None
    serviceName: str = ""  # StatefulSet
    parallelism: int | None = None  # Job
    completions: int | None = None


class WorkloadStatus(msgspec.Struct, frozen=True):
    replicas: int | None = None
    readyReplicas: int | None = None
    availableReplicas: int | None = None
    updatedReplicas: int | None = None
    currentNumberScheduled: int | None = None  # DaemonSet
    desiredNumberScheduled: int | None = None
    numberReady: int | None = None
    active: int | None = None  # Job


class Deployment(msgspec.Struct, frozen=True):
    metadata: ObjectMeta
    spec: WorkloadSpec
    status: WorkloadStatus = WorkloadStatus()
    raw: dict[str, Any] = {}


class ReplicaSet(msgspec.Struct, frozen=True):
    metadata: ObjectMeta
    spec: WorkloadSpec
    status: WorkloadStatus = WorkloadStatus()
    raw: dict[str, Any] = {}


class ReplicationController(msgspec.Struct, frozen=True):
    metadata: ObjectMeta
    spec: WorkloadSpec
    status: WorkloadStatus = WorkloadStatus()
    raw: dict[str, Any] = {}


class StatefulSet(msgspec.Struct, frozen=True):
    metadata: ObjectMeta
    spec: WorkloadSpec
    status: WorkloadStatus = WorkloadStatus()
    raw: dict[str, Any] = {}


class DaemonSet(msgspec.Struct, frozen=True):
    metadata: ObjectMeta
    spec: WorkloadSpec
    status: WorkloadStatus = WorkloadStatus()
    raw: dict[str, Any] = {}


class Job(msgspec.Struct, frozen=True):
    metadata: ObjectMeta
    spec: WorkloadSpec
    status: WorkloadStatus = WorkloadStatus()
    raw: dict[str, Any] = {}


Workload = Deployment | ReplicaSet | ReplicationController | StatefulSet | DaemonSet | Job

# --- services ---------------------------------------------------------------------------------------------------------


class ServicePort(msgspec.Struct, frozen=True):
    port: int
    name: str = ""
    protocol: str = "TCP"
    targetPort: IntOrString | None = None  # absent or 0: the port
    nodePort: int | None = None
    appProtocol: str | None = None


class ClientIPConfig(msgspec.Struct, frozen=True):
    timeoutSeconds: int | None = None


class SessionAffinityConfig(msgspec.Struct, frozen=True):
    clientIP: ClientIPConfig | None = None


class ServiceSpec(msgspec.Struct, frozen=True):
    type: str = "ClusterIP"
    selector: Labels | None = None
    ports: tuple[ServicePort, ...] | None = ()
    clusterIP: str = ""
    clusterIPs: tuple[str, ...] | None = ()
    ipFamilies: tuple[str, ...] | None = ()
    ipFamilyPolicy: str | None = None
    externalIPs: tuple[str, ...] | None = ()
    externalName: str = ""
    externalTrafficPolicy: str = ""
    internalTrafficPolicy: str = ""
    healthCheckNodePort: int | None = None
    loadBalancerIP: str = ""
    loadBalancerClass: str | None = None
    loadBalancerSourceRanges: tuple[str, ...] | None = ()
    allocateLoadBalancerNodePorts: bool | None = None
    publishNotReadyAddresses: bool = False
    sessionAffinity: str = "None"
    sessionAffinityConfig: SessionAffinityConfig | None = None
    trafficDistribution: str | None = None


class LoadBalancerIngress(msgspec.Struct, frozen=True):
    ip: str = ""
    hostname: str = ""
    ipMode: str | None = None  # VIP (the default) or Proxy


class LoadBalancerStatus(msgspec.Struct, frozen=True):
    ingress: tuple[LoadBalancerIngress, ...] | None = ()


class ServiceStatus(msgspec.Struct, frozen=True):
    """`conditions`: what the balancer outside found, ADDRESS and NODES (below)."""

    loadBalancer: LoadBalancerStatus = LoadBalancerStatus()
    conditions: tuple[Condition, ...] | None = ()


class Service(msgspec.Struct, frozen=True):
    metadata: ObjectMeta
    spec: ServiceSpec = ServiceSpec()
    status: ServiceStatus = ServiceStatus()
    raw: dict[str, Any] = {}


class ObjectReference(msgspec.Struct, frozen=True):
    kind: str = ""
    name: str = ""
    namespace: str = ""


class EndpointAddress(msgspec.Struct, frozen=True):
    ip: str
    hostname: str = ""
    nodeName: str | None = None
    targetRef: ObjectReference | None = None


class EndpointPort(msgspec.Struct, frozen=True):
    port: int | None = None
    name: str | None = ""
    protocol: str | None = "TCP"
    appProtocol: str | None = None


class EndpointSubset(msgspec.Struct, frozen=True):
    addresses: tuple[EndpointAddress, ...] | None = ()
    notReadyAddresses: tuple[EndpointAddress, ...] | None = ()
    ports: tuple[EndpointPort, ...] | None = ()


class Endpoints(msgspec.Struct, frozen=True):
    metadata: ObjectMeta
    subsets: tuple[EndpointSubset, ...] | None = ()
    raw: dict[str, Any] = {}


class EndpointConditions(msgspec.Struct, frozen=True):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class ForZone(msgspec.Struct, frozen=True):
    name: str


class EndpointHints(msgspec.Struct, frozen=True):
    forZones: tuple[ForZone, ...] | None = ()
    forNodes: tuple[ForZone, ...] | None = ()


class Endpoint(msgspec.Struct, frozen=True):
    addresses: tuple[str, ...]
    conditions: EndpointConditions | None = None
    hostname: str | None = None
    nodeName: str | None = None
    zone: str | None = None
    targetRef: ObjectReference | None = None
    hints: EndpointHints | None = None


class EndpointSlice(msgspec.Struct, frozen=True):
    """Joined to its Service by the label `kubernetes.io/service-name`."""

    metadata: ObjectMeta
    addressType: str = "IPv4"
    endpoints: tuple[Endpoint, ...] | None = ()
    ports: tuple[EndpointPort, ...] | None = ()
    raw: dict[str, Any] = {}


# --- HTTP from outside ------------------------------------------------------------------------------------------------


class ServiceBackendPort(msgspec.Struct, frozen=True):
    """A Service's own port, not its targetPort: a number or a name."""

    number: int | None = None
    name: str = ""


class IngressServiceBackend(msgspec.Struct, frozen=True):
    name: str
    port: ServiceBackendPort = ServiceBackendPort()


class IngressBackend(msgspec.Struct, frozen=True):
    service: IngressServiceBackend | None = None
    resource: Any = None


class HTTPIngressPath(msgspec.Struct, frozen=True):
    backend: IngressBackend
    pathType: str = ""
    path: str | None = None


class HTTPIngressRuleValue(msgspec.Struct, frozen=True):
    paths: tuple[HTTPIngressPath, ...] = ()


class IngressRule(msgspec.Struct, frozen=True):
    host: str | None = ""
    http: HTTPIngressRuleValue | None = None


class IngressTLS(msgspec.Struct, frozen=True):
    hosts: tuple[str, ...] | None = ()
    secretName: str = ""


class IngressSpec(msgspec.Struct, frozen=True):
    ingressClassName: str | None = None
    defaultBackend: IngressBackend | None = None
    rules: tuple[IngressRule, ...] | None = ()
    tls: tuple[IngressTLS, ...] | None = ()


class IngressStatus(msgspec.Struct, frozen=True):
    loadBalancer: LoadBalancerStatus = LoadBalancerStatus()


class Ingress(msgspec.Struct, frozen=True):
    metadata: ObjectMeta
    spec: IngressSpec = IngressSpec()
    status: IngressStatus = IngressStatus()
    raw: dict[str, Any] = {}


class IngressClassSpec(msgspec.Struct, frozen=True):
    controller: str = ""


class IngressClass(msgspec.Struct, frozen=True):
    metadata: ObjectMeta
    spec: IngressClassSpec = IngressClassSpec()
    raw: dict[str, Any] = {}


class MetaCondition(msgspec.Struct, frozen=True):
    """A condition as newer APIs have it: with the generation it was made of."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    observedGeneration: int | None = None
    lastTransitionTime: str | None = None


class GatewayClassSpec(msgspec.Struct, frozen=True):
    controllerName: str
    description: str | None = None
    parametersRef: Any = None


class GatewayClassStatus(msgspec.Struct, frozen=True):
    conditions: tuple[MetaCondition, ...] = ()


class GatewayClass(msgspec.Struct, frozen=True):
    metadata: ObjectMeta
    spec: GatewayClassSpec
    status: GatewayClassStatus = GatewayClassStatus()
    raw: dict[str, Any] = {}


class SecretObjectReference(msgspec.Struct, frozen=True):
    name: str
    group: str | None = ""
    kind: str | None = "Secret"
    namespace: str | None = None


class GatewayTLS(msgspec.Struct, frozen=True):
    mode: str | None = "Terminate"
    certificateRefs: tuple[SecretObjectReference, ...] | None = ()
    options: Any = None
    frontendValidation: Any = None


class RouteNamespaces(msgspec.Struct, frozen=True):
    """From whom a listener takes routes: Same (its own namespace), All, Selector or None."""

    from_: str | None = msgspec.field(default="Same", name="from")
    selector: LabelSelector | None = None


class RouteGroupKind(msgspec.Struct, frozen=True):
    kind: str
    group: str | None = "gateway.networking.k8s.io"


class AllowedRoutes(msgspec.Struct, frozen=True):
    namespaces: RouteNamespaces | None = None
    kinds: tuple[RouteGroupKind, ...] | None = ()


class GatewayListener(msgspec.Struct, frozen=True):
    """One port of a Gateway, or the part of it that has this hostname."""

    name: str
    port: int
    protocol: str
    hostname: str | None = None
    tls: GatewayTLS | None = None
    allowedRoutes: AllowedRoutes | None = None


class GatewaySpec(msgspec.Struct, frozen=True):
    gatewayClassName: str
    listeners: tuple[GatewayListener, ...] = ()
    addresses: Any = None
    infrastructure: Any = None
    allowedListeners: Any = None
    backendTLS: Any = None
    tls: Any = None


class GatewayAddress(msgspec.Struct, frozen=True):
    value: str
    type: str = "IPAddress"


class ListenerStatus(msgspec.Struct, frozen=True):
    name: str
    attachedRoutes: int = 0
    supportedKinds: tuple[RouteGroupKind, ...] = ()
    conditions: tuple[MetaCondition, ...] = ()


class GatewayStatus(msgspec.Struct, frozen=True):
    addresses: tuple[GatewayAddress, ...] = ()
    conditions: tuple[MetaCondition, ...] = ()
    listeners: tuple[ListenerStatus, ...] = ()


class Gateway(msgspec.Struct, frozen=True):
    metadata: ObjectMeta
    spec: GatewaySpec
    status: GatewayStatus = GatewayStatus()
    raw: dict[str, Any] = {}


class ParentReference(msgspec.Struct, frozen=True):
    name: str
    group: str | None = "gateway.networking.k8s.io"
    kind: str | None = "Gateway"
    namespace: str | None = None
    sectionName: str | None = None
    port: int | None = None


class HTTPPathMatch(msgspec.Struct, frozen=True):
    type: str | None = "PathPrefix"
    value: str | None = "/"


class HTTPValueMatch(msgspec.Struct, frozen=True):
    """A header or a query parameter that must have this value."""

    name: str
    value: str
    type: str | None = "Exact"


class HTTPRouteMatch(msgspec.Struct, frozen=True):
    path: HTTPPathMatch | None = None
    headers: tuple[HTTPValueMatch, ...] | None = ()
    queryParams: tuple[HTTPValueMatch, ...] | None = ()
    method: str | None = None


class HTTPHeader(msgspec.Struct, frozen=True):
    name: str
    value: str


class HTTPHeaderFilter(msgspec.Struct, frozen=True):
    set: tuple[HTTPHeader, ...] | None = ()
    add: tuple[HTTPHeader, ...] | None = ()
    remove: tuple[str, ...] | None = ()


class HTTPRequestRedirectFilter(msgspec.Struct, frozen=True):
    scheme: str | None = None
    hostname: str | None = None
    path: Any = None
    port: int | None = None
    statusCode: int | None = 302


class HTTPRouteFilter(msgspec.Struct, frozen=True):
    type: str
    requestHeaderModifier: HTTPHeaderFilter | None = None
    requestRedirect: HTTPRequestRedirectFilter | None = None
    responseHeaderModifier: Any = None
    requestMirror: Any = None
    urlRewrite: Any = None
    cors: Any = None
    externalAuth: Any = None
    extensionRef: Any = None


class HTTPBackendRef(msgspec.Struct, frozen=True):
    name: str
    group: str | None = ""
    kind: str | None = "Service"
    namespace: str | None = None
    port: int | None = None
    weight: int | None = 1
    filters: tuple[HTTPRouteFilter, ...] | None = ()


class HTTPRouteRule(msgspec.Struct, frozen=True):
    name: str | None = None
    matches: tuple[HTTPRouteMatch, ...] | None = ()
    filters: tuple[HTTPRouteFilter, ...] | None = ()
    backendRefs: tuple[HTTPBackendRef, ...] | None = ()
    timeouts: Any = None
    retry: Any = None
    sessionPersistence: Any = None


class HTTPRouteSpec(msgspec.Struct, frozen=True):
    parentRefs: tuple[ParentReference, ...] | None = ()
    hostnames: tuple[str, ...] | None = ()
    rules: tuple[HTTPRouteRule, ...] | None = None
    useDefaultGateways: Any = None


class RouteParentStatus(msgspec.Struct, frozen=True):
    parentRef: ParentReference
    controllerName: str
    conditions: tuple[MetaCondition, ...] = ()


class HTTPRouteStatus(msgspec.Struct, frozen=True):
    parents: tuple[RouteParentStatus, ...] = ()


class HTTPRoute(msgspec.Struct, frozen=True):
    metadata: ObjectMeta
    spec: HTTPRouteSpec = HTTPRouteSpec()
    status: HTTPRouteStatus = HTTPRouteStatus()
    raw: dict[str, Any] = {}


class ReferenceGrantFrom(msgspec.Struct, frozen=True):
    group: str
    kind: str
    namespace: str


class ReferenceGrantTo(msgspec.Struct, frozen=True):
    group: str
    kind: str
    name: str | None = None


class ReferenceGrantSpec(msgspec.Struct, frozen=True):
    from_: tuple[ReferenceGrantFrom, ...] = msgspec.field(default=(), name="from")
    to: tuple[ReferenceGrantTo, ...] = ()


class ReferenceGrant(msgspec.Struct, frozen=True):
    """Allows objects of other namespaces to refer to what is in its own."""

    metadata: ObjectMeta
    spec: ReferenceGrantSpec = ReferenceGrantSpec()
    raw: dict[str, Any] = {}


# --- what the controllers say -----------------------------------------------------------------------------------------


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


# --- what lies under the cluster --------------------------------------------------------------------------------------


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


# --- what is broken on purpose ----------------------------------------------------------------------------------------


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


# --- what kube-proxy is told ------------------------------------------------------------------------------------------


class DetectLocalConfiguration(msgspec.Struct, frozen=True):
    bridgeInterface: str = ""
    interfaceNamePrefix: str = ""


class KubeProxyNFTablesConfiguration(msgspec.Struct, frozen=True):
    """What upstream's sections `iptables` and `nftables` have in common; times as Go writes durations."""

    masqueradeBit: int | None = None
    masqueradeAll: bool = False
    syncPeriod: str | None = None
    minSyncPeriod: str | None = None


class KubeProxyIPTablesConfiguration(KubeProxyNFTablesConfiguration, frozen=True):
    localhostNodePorts: bool | None = None


class KubeProxyConntrackConfiguration(msgspec.Struct, frozen=True):
    """Times as Go writes durations; 0 leaves the node's value alone."""

    maxPerCore: int | None = None
    min: int | None = None
    tcpBeLiberal: bool = False
    tcpEstablishedTimeout: str | None = None
    tcpCloseWaitTimeout: str | None = None
    udpTimeout: str = ""
    udpStreamTimeout: str = ""


class KubeProxyConfiguration(msgspec.Struct, frozen=True):
    """The file a real kube-proxy is started with (kubeproxy.config.k8s.io/v1alpha1): the fields that act here.

    At most one counts for all nodes. The rest of the schema (`manifests.kubeproxy.TYPES`) is taken and kept in `raw`.
    """

    metadata: ObjectMeta
    mode: str = ""
    clusterCIDR: str = ""
    detectLocalMode: str = ""
    detectLocal: DetectLocalConfiguration = DetectLocalConfiguration()
    nodePortAddresses: tuple[str, ...] = ()
    healthzBindAddress: str = ""
    portRange: str = ""
    udpIdleTimeout: str = ""
    iptables: KubeProxyIPTablesConfiguration = KubeProxyIPTablesConfiguration()
    nftables: KubeProxyNFTablesConfiguration = KubeProxyNFTablesConfiguration()
    conntrack: KubeProxyConntrackConfiguration = KubeProxyConntrackConfiguration()
    raw: dict[str, Any] = {}


Object = (
    Namespace
    | Node
    | Pod
    | Deployment
    | ReplicaSet
    | ReplicationController
    | StatefulSet
    | DaemonSet
    | Job
    | Service
    | Endpoints
    | EndpointSlice
    | Event
    | SubnetLease
    | Cluster
    | Fault
    | KubeProxyConfiguration
    | Ingress
    | IngressClass
    | GatewayClass
    | Gateway
    | HTTPRoute
    | ReferenceGrant
    | Other
)
Objects = Mapping[Key, Object]

KINDS: Mapping[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        Namespace, Node, Pod, Deployment, ReplicaSet, ReplicationController, StatefulSet, DaemonSet, Job,
        Service, Endpoints, EndpointSlice, Event, SubnetLease, Cluster, Fault, KubeProxyConfiguration,
        Ingress, IngressClass, GatewayClass, Gateway, HTTPRoute, ReferenceGrant,
    )
}  # fmt: skip
WORKLOADS = (Deployment, ReplicaSet, ReplicationController, StatefulSet, DaemonSet, Job)
# Kinds that act (or that a room to come will make act); any other is kept and listed as not emulated.
EMULATED = frozenset(KINDS) | {
    "NetworkPolicy", "Secret", "ConfigMap",
}  # fmt: skip
CLUSTER_SCOPED = frozenset({
    "Namespace", "Node", "Cluster", "SubnetLease", "IngressClass", "GatewayClass", "PersistentVolume", "ClusterRole",
    "ClusterRoleBinding", "StorageClass", "CustomResourceDefinition", "PriorityClass", "RuntimeClass", "CSIDriver",
    "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration", "APIService", "KubeProxyConfiguration",
    "ServiceSnapshot", "Fault",
})  # fmt: skip
API_VERSIONS: Mapping[str, str] = {
    "Deployment": "apps/v1", "ReplicaSet": "apps/v1", "StatefulSet": "apps/v1", "DaemonSet": "apps/v1",
    "Job": "batch/v1", "EndpointSlice": "discovery.k8s.io/v1", "Cluster": "nsnet/v1", "SubnetLease": "nsnet/v1",
    "Fault": "nsnet/v1",
    "KubeProxyConfiguration": "kubeproxy.config.k8s.io/v1alpha1",
    **dict.fromkeys(("Ingress", "IngressClass"), "networking.k8s.io/v1"),
    **dict.fromkeys(("GatewayClass", "Gateway", "HTTPRoute", "ReferenceGrant"), "gateway.networking.k8s.io/v1"),
}  # fmt: skip


# --- functions on objects ---------------------------------------------------------------------------------------------

T = TypeVar("T")


def kind_of(obj: Object) -> str:
    return obj.kind if isinstance(obj, Other) else type(obj).__name__


def key_of(obj: Object) -> Key:
    return Key(kind_of(obj), obj.metadata.namespace, obj.metadata.name)


def by_key(objects: list[Object]) -> dict[Key, Object]:
    return {key_of(obj): obj for obj in objects}


class Indexed(dict[Key, Object]):
    """The objects of one moment, which nobody changes any more: what many ask of all of them is looked up once."""

    def __init__(self, objects: Objects) -> None:
        super().__init__(objects)
        self.kept: dict[Any, Any] = {}
        self.kinds: defaultdict[str, list[tuple[Key, Object]]] = defaultdict(list)
        for item in self.items():
            self.kinds[item[0][0]].append(item)


def indexed(objects: Objects) -> Indexed:
    return objects if isinstance(objects, Indexed) else Indexed(objects)


def once(objects: Objects, compute: Callable[..., T], *more: Hashable) -> T:
    """`compute(objects, *more)`; of an `Indexed` it is computed once."""
    if not isinstance(objects, Indexed):
        return compute(objects, *more)
    key = (compute, *more)
    if key not in objects.kept:
        objects.kept[key] = compute(objects, *more)
    found: T = objects.kept[key]
    return found


def _of_kind(objects: Objects, name: str) -> list[tuple[Key, Object]]:
    if isinstance(objects, Indexed):
        return objects.kinds.get(name, [])
    return [item for item in objects.items() if item[0][0] == name]


def of(objects: Objects, kind: type[T]) -> list[T]:
    """All objects of a kind, ordered by namespace and name."""
    return [*keyed(objects, kind).values()]


def keyed(objects: Objects, kind: type[T]) -> dict[Key, T]:
    """The same under their keys."""
    found = _of_kind(objects, kind.__name__)
    found.sort(key=itemgetter(0))
    return dict(found)  # type: ignore[arg-type]


def cluster_of(objects: Objects) -> Cluster:
    """The one Cluster document. Raises InputError where there is none (a store that is not nsnet's)."""
    for obj in of(objects, Cluster):
        return obj
    raise InputError("there is no Cluster document", "bring the cluster up again with `nsnet up FILE`")


def kube_proxy_of(objects: Objects) -> KubeProxyConfiguration | None:
    """What kube-proxy is told, where a document says it."""
    return next(iter(of(objects, KubeProxyConfiguration)), None)


def from_doc(doc: dict[str, Any]) -> Object:
    """A document (as parsed YAML or JSON) as an object. Raises msgspec.ValidationError on a wrong type."""
    kind = doc.get("kind", "")
    cls = KINDS.get(kind)
    if cls is None:
        return Other(msgspec.convert(doc.get("metadata") or {}, ObjectMeta), kind, doc)
    body = {name: value for name, value in doc.items() if value is not None and name != "raw"}
    obj = msgspec.convert(body, cls)
    return msgspec.structs.replace(obj, raw=doc)  # type: ignore[no-any-return]


def to_doc(obj: Object) -> dict[str, Any]:
    """The object as a document: what nsnet declares says the struct, all else stays as it came in `raw`."""
    kind = kind_of(obj)
    doc = _merge(obj, obj.raw)
    if isinstance(obj, Other):
        doc = {**obj.raw, "metadata": doc.get("metadata", {})}
    head = {"apiVersion": obj.raw.get("apiVersion") or API_VERSIONS.get(kind, "v1"), "kind": kind}
    return {**head, **{name: value for name, value in doc.items() if name not in {"apiVersion", "kind"}}}


def _merge(value: Any, raw: Any) -> Any:
    """`value` without empty fields, laid over what `raw` has besides the fields that the struct declares."""
    if isinstance(value, msgspec.Struct):
        fields = dict(zip(value.__struct_encode_fields__, value.__struct_fields__, strict=True))
        kept = {k: v for k, v in raw.items() if k not in fields} if isinstance(raw, dict) else {}
        sub = raw if isinstance(raw, dict) else {}
        for name, attribute in fields.items():
            field = getattr(value, attribute)
            if attribute == "raw" or (field is None and sub.get(name) is None) or field in ("", (), {}):
                continue
            merged = _merge(field, sub.get(name))
            if merged not in ({}, None) or name in sub:
                kept[name] = merged
        return kept
    if isinstance(value, tuple | list):
        raws = raw if isinstance(raw, list | tuple) and len(raw) == len(value) else [None] * len(value)
        return [_merge(item, old) for item, old in zip(value, raws, strict=True)]
    return value


_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(duration: str) -> float | None:
    """`1h30m` in seconds, as Go's time.ParseDuration reads it; None where it is none, or negative."""
    if duration.removeprefix("+") == "0":
        return 0.0
    parts = _DURATION.findall(duration)
    if not parts or "".join(number + unit for number, unit in parts) != duration.removeprefix("+"):
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def selects(selector: LabelSelector | Labels | None, labels: Mapping[str, str]) -> bool:
    """Does the selector match the labels? An empty or absent selector matches everything; callers decide otherwise."""
    if selector is None:
        return True
    if isinstance(selector, dict):
        return all(labels.get(name) == value for name, value in selector.items())
    pairs = selector.matchLabels or {}
    return all(labels.get(name) == value for name, value in pairs.items()) and all(
        meets(requirement, labels) for requirement in selector.matchExpressions or ()
    )


def selector(workload: Workload) -> LabelSelector | Labels:
    """A workload's selector; where it has none, its template's labels (as the API server defaults it)."""
    said = workload.spec.selector
    if not said:
        return dict(workload.spec.template.metadata.labels)
    if isinstance(workload, ReplicationController):
        return said
    return msgspec.convert(said, LabelSelector)


def meets(requirement: Requirement, labels: Mapping[str, str]) -> bool:
    """One matchExpressions item; NotIn and DoesNotExist match where the key is absent (apimachinery labels)."""
    value = labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return value in requirement.values
        case "NotIn":
            return value not in requirement.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt":
            return value is not None and value.isdigit() and int(value) > int(requirement.values[0])
        case "Lt":
            return value is not None and value.isdigit() and int(value) < int(requirement.values[0])
    return False


def condition(conditions: tuple[Condition, ...], kind: str) -> bool:
    """Is the condition of this type there and True?"""
    return any(item.type == kind and item.status == "True" for item in conditions)


ENDED = frozenset({"Succeeded", "Failed"})  # phases of a pod whose containers run no more


def is_ready(pod: Pod) -> bool:
    return condition(pod.status.conditions, "Ready")


def is_terminating(pod: Pod) -> bool:
    """Has it been deleted, and is its grace period not over yet? Without a clock only the period is known."""
    return pod.metadata.deletionTimestamp is not None or pod.metadata.deletionGracePeriodSeconds is not None


def is_unschedulable(pod: Pod) -> bool:
    """Has the scheduler found no node for it?"""
    return any(item.reason == "Unschedulable" for item in pod.status.conditions)


def internal_ip(node: Node) -> str:
    return next((item.address for item in node.status.addresses if item.type == "InternalIP"), "")


# --- address families -------------------------------------------------------------------------------------------------

API_FAMILIES: Mapping[Family, str] = {"ip": "IPv4", "ip6": "IPv6"}


def family_of(address: str) -> Family:
    """The family of an address or subnet."""
    return "ip6" if ":" in address else "ip"


@lru_cache(256)
def subnets(said: str) -> tuple[str, ...]:
    """`10.244.0.0/16,fd00:10:244::/56` → its parts, in order."""
    return tuple(part for item in said.split(",") if (part := item.strip()))


def subnet_of(said: str, family: Family) -> str:
    """The part of a pair that is of the family; empty where there is none."""
    return next((part for part in subnets(said) if family_of(part) == family), "")


def families_of(cluster: Cluster) -> tuple[Family, ...]:
    """The families of the cluster's pods and Services; the first is the one that is meant where none is named."""
    return tuple(map(family_of, subnets(cluster.networking.podSubnet)))


def pod_ips(pod: Pod) -> tuple[str, ...]:
    """Every address of the pod, the first of which is podIP."""
    return tuple(item.ip for item in pod.status.podIPs) or ((pod.status.podIP,) if pod.status.podIP else ())


def cluster_ips(spec: ServiceSpec) -> tuple[str, ...]:
    """Every clusterIP; none where it is headless or an ExternalName."""
    if spec.type == "ExternalName" or spec.clusterIP == "None":
        return ()
    return tuple(filter(None, spec.clusterIPs or (spec.clusterIP,)))


def internal_ips(node: Node) -> tuple[str, ...]:
    return tuple(item.address for item in node.status.addresses if item.type == "InternalIP")


def pod_cidrs(node: Node) -> tuple[str, ...]:
    """The node's subnets, one per family."""
    return node.spec.podCIDRs or tuple(filter(None, (node.spec.podCIDR,)))


def annotation(obj: Object, name: str) -> str:
    return obj.metadata.annotations.get(name, "")


def container_ports(pod: Pod) -> Iterator[ContainerPort]:
    for container in pod.spec.containers:
        yield from container.ports or ()


def target_port(pod: Pod, port: ServicePort) -> int | None:
    """The number `port` reaches on this pod; None where it names a port the pod does not have."""
    target = port.targetPort or port.port
    if isinstance(target, int):
        return target
    for item in container_ports(pod):
        if item.name == target and item.protocol == port.protocol:
            return item.containerPort
    return None


def served_ports(pod: Pod, services: list[Service]) -> set[tuple[str, int]]:
    """(protocol, port) pairs the pod's stand-in listens on: what its containers declare, else what Services target.

    `services` are those of the pod's namespace.
    """
    declared = {(item.protocol, item.containerPort) for item in container_ports(pod)}
    if declared:
        return declared
    wanted = set()
    for service in services:
        if service.spec.selector and selects(service.spec.selector, pod.metadata.labels):
            for port in service.spec.ports or ():
                number = target_port(pod, port)
                if number is not None:
                    wanted.add((port.protocol, number))
    return wanted


# --- the cluster's DNS ------------------------------------------------------------------------------------------------

DNS_PORTS = frozenset({("UDP", 53), ("TCP", 53), ("UDP", 10053), ("TCP", 10053), ("TCP", 8080), ("TCP", 8081)})
"""What dnsmasq, kubedns and exechealthz listen on in a pod that serves DNS."""


def dns_service(services: Mapping[Key, Service], cluster: Cluster) -> Service | None:
    """The Service that pods ask: the one at clusterDNS, else kube-system/kube-dns; None where there is no DNS."""
    if not cluster.dns.enabled:
        return None
    address = cluster.networking.clusterDNS
    at = (item for item in services.values() if item.spec.clusterIP == address and is_for_dns(item))
    return next(at, None) or services.get(Key("Service", "kube-system", "kube-dns"))


def is_for_dns(service: Service) -> bool:
    return any(port.port == 53 for port in service.spec.ports or ())


def serves_dns(pod: Pod, service: Service | None) -> bool:
    """Is it one of the pods behind that Service, in which the cluster's DNS runs?"""
    return (
        service is not None
        and pod.metadata.namespace == service.metadata.namespace
        and bool(service.spec.selector)
        and selects(service.spec.selector, pod.metadata.labels)
    )


# --- load balancers ---------------------------------------------------------------------------------------------------

ADDRESS = "nsnet/Address"  # condition of a Service: where its address is from, or why it has none
NODES = "nsnet/Nodes"  # condition of a Service: to which nodes the balancer sends, comma-separated
HEALTHZ_PORT = 10256
EXCLUDED = "node.kubernetes.io/exclude-from-external-load-balancers"
TO_BE_DELETED = "ToBeDeletedByClusterAutoscaler"


def is_balanced(service: Service) -> bool:
    """Is it for the balancer of this cluster? One of another class is for somebody else."""
    return service.spec.type == "LoadBalancer" and not service.spec.loadBalancerClass


def status_condition(service: Service, kind: str) -> Condition | None:
    return next((item for item in service.status.conditions or () if item.type == kind), None)


def balanced_addresses(service: Service) -> tuple[str, ...]:
    """The addresses that the balancer answers for; none where the Service waits for one."""
    found = status_condition(service, ADDRESS)
    ingress = service.status.loadBalancer.ingress or ()
    return tuple(item.ip for item in ingress if item.ip) if found is not None and found.status == "True" else ()


def balanced_nodes(service: Service) -> tuple[str, ...]:
    """The names of the nodes to which the balancer sends."""
    found = status_condition(service, NODES)
    return tuple(filter(None, found.message.split(","))) if found is not None and found.status == "True" else ()


def health_port(service: Service, cluster: Cluster, told: KubeProxyConfiguration | None) -> int:
    """The node's port that the balancer asks: the Service's own under externalTrafficPolicy Local, else kube-proxy's.

    Userspace mode knows neither Local nor the Service's own port.
    """
    own = has_health_port(service, cluster)
    return (own and service.spec.healthCheckNodePort) or healthz_of(told)[1]


def has_health_port(service: Service, cluster: Cluster) -> bool:
    """Do nodes serve a healthCheckNodePort of it?"""
    local = service.spec.type == "LoadBalancer" and service.spec.externalTrafficPolicy == "Local"
    return local and bool(service.spec.healthCheckNodePort) and cluster.networking.kubeProxyMode != "userspace"


def is_leaving(node: Node) -> bool:
    """Is the node being deleted? Then its kube-proxy says so on /healthz."""
    return node.metadata.deletionTimestamp is not None or any(t.key == TO_BE_DELETED for t in node.spec.taints)


def healthz_of(told: KubeProxyConfiguration | None) -> tuple[str, int]:
    """Address and port of kube-proxy's own health, `healthzBindAddress`; IPv4 only, so `[::]` is 0.0.0.0."""
    said = told.healthzBindAddress if told else ""
    address, _, port = said.rpartition(":") if said.count(":") == 1 or "]:" in said else (said, "", "")
    everywhere = not address or ":" in address
    return "0.0.0.0" if everywhere else address, int(port or HEALTHZ_PORT)  # noqa: S104 - a value


# --- the HTTP proxy ---------------------------------------------------------------------------------------------------

PROXY_NAMESPACE, PROXY = "ingress-nsnet", "ingress"
"""Namespace and name of the proxy's Deployment and Service."""
PROXY_LABELS = {"app.kubernetes.io/name": "ingress-nsnet"}
DEFAULT_CERTIFICATE = Key("Secret", PROXY_NAMESPACE, "default-certificate")


def runs_proxy(pod: Pod) -> bool:
    """Is it one of the proxy's pods, in which HAProxy listens and no stand-in does?"""
    meta = pod.metadata
    return meta.namespace == PROXY_NAMESPACE and bool(meta.ownerReferences) and selects(PROXY_LABELS, meta.labels)


# --- WireGuard --------------------------------------------------------------------------------------------------------


def wireguard_secret(node: str) -> Key:
    """Where a node's private key is kept: flannel's own namespace, as its manifest calls it."""
    return Key("Secret", "kube-flannel", f"wgkey-{node}")


def wireguard_key(secret: Other) -> str:
    """The private key in it, as `wg genkey` prints it. Raises ValueError where nothing like that is there."""
    data = secret.raw.get("data")
    said = data.get("wgkey") if isinstance(data, dict) else None
    return base64.b64decode(said).decode("ascii") if isinstance(said, str) else ""


# --- what an impairment says ------------------------------------------------------------------------------------------

# tc's units (iproute2 `lib/utils.c`)
_UNITS = {"us": 1, "ms": 1_000, "s": 1_000_000}
_UNITS |= {f"{unit}ec{plural}": factor for unit, factor in _UNITS.items() for plural in ("", "s")}
_POWERS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_POWERS |= {f"{power}i": 1024 ** (index + 1) for index, power in enumerate("kmgt")}
_BITS = {f"{power}{unit}": by * size for power, by in _POWERS.items() for unit, size in (("bit", 1), ("bps", 8))}


def _measured(text: str, units: Mapping[str, int]) -> float:
    number = text.lower().rstrip("abcdefghijklmnopqrstuvwxyz")
    return float(number) * units[text.lower()[len(number) :]]


def micros(text: str) -> int:
    """`5ms` as microseconds; empty: 0."""
    return round(_measured(text, _UNITS)) if text else 0


def bits(text: str) -> int:
    """`100mbit` as bit/s; empty: 0."""
    return round(_measured(text, _BITS)) if text else 0


def percent(text: str) -> float:
    """`1%` as 1.0; empty: 0."""
    return float(text.rstrip("%")) if text else 0.0


def lost_by_chance(share: float) -> str:
    """The end of an iptables rule that drops so many percent of packets, as iptables-save prints it.

    xt_statistic keeps 31 bits of a probability (iptables `extensions/libxt_statistic.c`).
    """
    if share >= 100:
        return "-j DROP"
    kept = round(share / 100 * 0x80000000) / 0x80000000
    return f"-m statistic --mode random --probability {kept:.11f} -j DROP"
