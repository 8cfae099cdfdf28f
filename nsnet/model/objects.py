"""All kinds, sets of objects, and objects as documents."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from operator import itemgetter
from typing import Any, TypeVar

import msgspec

from nsnet.errors import InputError
from nsnet.model.cluster import Cluster, Event, Fault, Other, SubnetLease
from nsnet.model.http import Gateway, GatewayClass, HTTPRoute, Ingress, IngressClass, ReferenceGrant
from nsnet.model.kubeproxy import KubeProxyConfiguration
from nsnet.model.metadata import Key, ObjectMeta
from nsnet.model.services import Endpoints, EndpointSlice, Service
from nsnet.model.workloads import (
    DaemonSet,
    Deployment,
    Job,
    Namespace,
    Node,
    Pod,
    ReplicaSet,
    ReplicationController,
    StatefulSet,
)

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
