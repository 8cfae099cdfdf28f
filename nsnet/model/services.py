"""Services and their endpoints."""

from typing import Any

import msgspec

from nsnet.model.metadata import Condition, IntOrString, Labels, ObjectMeta


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
