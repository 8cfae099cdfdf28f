"""HTTP from outside: Ingress and Gateway API."""

from typing import Any

import msgspec

from nsnet.model.metadata import LabelSelector, ObjectMeta
from nsnet.model.services import LoadBalancerStatus


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
