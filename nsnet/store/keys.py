"""Which bytes stand under which key: Kubernetes' own registry layout, so that `etcdctl get --prefix` teaches something.

`/registry/pods/default/web-0`, `/registry/services/specs/default/web`, `/registry/services/endpoints/default/web`,
`/registry/minions/node1` (nodes were once called so), custom resources under `/registry/<group>/<plural>/…`
(apiserver `pkg/server/options/etcd.go`, `pkg/registry/*/storage`). The values are the objects as JSON.

flannel's leases stand where flannel's etcd subnet manager keeps them, `/coreos.com/network/subnets/10.244.1.0-24`,
byte for byte in its JSON (`pkg/lease`, LeaseAttrs), so that a real flanneld could share the overlay. That record has no
place for an object's metadata: what a SubnetLease has besides its name (its owner, say) stands in a second record. And
so does flannel's net-conf.json, `/coreos.com/network/config`, which follows from the Cluster.

An object comes back as it was, but for `raw`: of a field that a struct declares the struct knows the value, so only
what it does not declare is kept there. What a controller made with an empty `raw` is thus equal to what it finds later.
"""

from functools import cache
from typing import Any, NamedTuple

import msgspec

from nsnet.errors import InputError
from nsnet.model import (
    API_VERSIONS,
    KINDS,
    Cluster,
    Key,
    Object,
    ObjectMeta,
    Other,
    SubnetLease,
    family_of,
    key_of,
    kind_of,
    subnets,
)

REGISTRY = "/registry/"
CLUSTERS = "/registry/nsnet/clusters/"
NET_CONF = "/coreos.com/network/config"
LEASES = "/coreos.com/network/subnets/"
LEASE_META = "/registry/nsnet/subnetleases/"
FORMAT = "/registry/nsnet/format"  # of everything that stands in an etcd
FENCE = "/registry/nsnet/fence"  # written with every set of objects, see `objects.py`
MACHINES = "/registry/nsnet/machines/"  # see `members.py`
CHARGE = "/registry/nsnet/charge"
GONE = "/registry/nsnet/gone"  # `down` was here: machines that still carry a part of it remove that
PRIVATE = (FENCE, FORMAT, LEASE_META, MACHINES, CHARGE, GONE)  # no objects

# Where the plural is not guessed right, or where no group stands in the path although the kind has one.
RESOURCES = {
    "Node": "minions",
    "Service": "services/specs",
    "Endpoints": "services/endpoints",
    "ReplicationController": "controllers",
    "Ingress": "ingress",
    "Cluster": "nsnet/clusters",
    "Gateway": "gateway.networking.k8s.io/gateways",
    "GatewayClass": "gateway.networking.k8s.io/gatewayclasses",
    "HTTPRoute": "gateway.networking.k8s.io/httproutes",
    "ReferenceGrant": "gateway.networking.k8s.io/referencegrants",
    "KubeProxyConfiguration": "kubeproxy.config.k8s.io/kubeproxyconfigurations",
    "APIService": "apiregistration.k8s.io/apiservices",
    "CustomResourceDefinition": "apiextensions.k8s.io/customresourcedefinitions",
}
# Groups built into the API server: their kinds stand directly under /registry.
BUILT_IN = frozenset(
    {"", "apps", "batch", "autoscaling", "policy", "extensions"}
    | {
        f"{group}.k8s.io"
        for group in (
            "discovery", "networking", "events", "coordination", "storage", "rbac.authorization", "scheduling", "node",
            "admissionregistration", "flowcontrol.apiserver", "certificates", "resource",
        )
    }
)  # fmt: skip


_OURS = {"allocation", "ipMasq"}  # of `flannel:` in the Cluster document; the second is a flag of flanneld


def path_of(key: Key, api_version: str = "") -> str:
    """The key under which an object stands. `api_version` matters only for kinds of custom resources."""
    if key.kind == "SubnetLease":
        return LEASES + key.name
    where = f"{key.namespace}/" if key.namespace else ""
    return f"{REGISTRY}{_resource(key.kind, api_version)}/{where}{key.name}"


def path(obj: Object) -> str:
    return path_of(key_of(obj), _api_version(obj))


def records(obj: Object) -> dict[str, bytes]:
    """Everything that is stored for an object: its key and value, for a lease with metadata a second record."""
    found = {path(obj): encode(obj)}
    if isinstance(obj, SubnetLease) and obj.metadata != ObjectMeta(name=obj.metadata.name):
        found[LEASE_META + obj.metadata.name] = _encode_lease_meta(obj)
    if isinstance(obj, Cluster):
        found[NET_CONF] = net_conf(obj)
    return found


def net_conf(cluster: Cluster) -> bytes:
    """What flanneld reads when it starts: net-conf.json. Written, and never read: the Cluster document says it all."""
    each = {family_of(subnet): subnet for subnet in subnets(cluster.networking.podSubnet)}
    networks = {name: each[family] for family, name in (("ip", "Network"), ("ip6", "IPv6Network")) if family in each}
    said: dict[str, Any] = msgspec.to_builtins(cluster.flannel)
    usual = msgspec.to_builtins(type(cluster.flannel.Backend)())
    shown = {"Type", *(("VNI",) if cluster.flannel.Backend.kind == "vxlan" else ())}  # flannel's code says udp and 1
    backend = {name: value for name, value in said.pop("Backend").items() if name in shown or value != usual[name]}
    body = {name: value for name, value in said.items() if value not in (0, "", None) and name not in _OURS}
    return msgspec.json.encode({**networks, **body, "Backend": backend})


def encode(obj: Object) -> bytes:
    """The object as the bytes of its (main) record: compact JSON."""
    if isinstance(obj, SubnetLease):
        return _encode_lease(obj)
    return msgspec.json.encode(document(obj))


def decode(path: str, value: bytes) -> Object:
    """The object that stands under `path`. Raises InputError where it is none, or one that belongs elsewhere."""
    try:
        doc = msgspec.json.decode(value, type=dict[str, Any])
        obj = _decode_lease(path.removeprefix(LEASES), doc) if path.startswith(LEASES) else from_document(doc)
    except msgspec.MsgspecError as error:
        raise InputError(f"{path} in the store holds no object: {error}") from error
    if path_of(key_of(obj), _api_version(obj)) != path:
        raise InputError(f"{path} in the store holds another object: {key_of(obj)}")
    return obj


_MANY = ("Pod", "Service", "EndpointSlice", "Event")
"""Kinds of which a cluster has thousands."""


def decode_to_read(path: str, value: bytes) -> Object:
    """As `decode`, six times as fast for the kinds of which there are many, whose `raw` stays empty: not to be kept."""
    cls = _many().get(path.rsplit("/", 2)[0])
    if cls is None or b'"raw"' in value:
        return decode(path, value)
    try:
        obj: Object = msgspec.json.decode(value, type=cls)
    except msgspec.MsgspecError as error:
        raise InputError(f"{path} in the store holds no object: {error}") from error
    meta = obj.metadata
    return obj if path.endswith(f"/{meta.namespace}/{meta.name}") else decode(path, value)


@cache
def _many() -> dict[str, type[Any]]:
    return {f"{REGISTRY}{_resource(kind, '')}": KINDS[kind] for kind in _MANY}


# --- objects as documents ---------------------------------------------------------------------------------------------


def document(obj: Object) -> dict[str, Any]:
    """The object as a document from which `from_document` makes the same object again."""
    head = {"apiVersion": _api_version(obj), "kind": kind_of(obj)}
    if isinstance(obj, Other):
        return {**head, **obj.raw, "metadata": _plain(obj.metadata, obj.raw.get("metadata"))}
    body = _plain(obj, obj.raw)
    return {**head, **{name: value for name, value in body.items() if name not in head}}


def from_document(doc: dict[str, Any]) -> Object:
    """A document from the store as an object. Raises msgspec.ValidationError."""
    kind = doc.get("kind", "")
    cls = KINDS.get(kind)
    if cls is None:
        return Other(msgspec.convert(doc.get("metadata") or {}, ObjectMeta), kind, doc)
    body = {name: value for name, value in doc.items() if name != "raw"} if "raw" in doc else doc
    obj = msgspec.convert(body, cls)
    raw = _extras(obj, doc) or {}
    raw.pop("kind", None)
    if raw.get("apiVersion") == API_VERSIONS.get(kind, "v1"):
        del raw["apiVersion"]
    return msgspec.structs.replace(obj, raw=raw) if raw else obj  # type: ignore[no-any-return]


class _Field(NamedTuple):
    name: str  # in the document
    attribute: str
    default: Any


@cache
def _fields(cls: type[msgspec.Struct]) -> tuple[_Field, ...]:
    found = (field for field in msgspec.structs.fields(cls) if field.name != "raw")
    return tuple(_Field(field.encode_name, field.name, _default(field)) for field in found)


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default


@cache
def _attributes(cls: type[msgspec.Struct]) -> dict[str, str]:
    return {field.name: field.attribute for field in _fields(cls)}


def _plain(value: Any, raw: Any) -> Any:
    """`value` with its empty fields left out where that is their default, and what else `raw` has besides."""
    if isinstance(value, msgspec.Struct):
        return _plain_struct(value, raw if isinstance(raw, dict) else {})
    if isinstance(value, tuple | list):
        raws = raw if isinstance(raw, list | tuple) and len(raw) == len(value) else [None] * len(value)
        return [_plain(item, old) for item, old in zip(value, raws, strict=True)]
    return value


def _plain_struct(value: msgspec.Struct, raw: dict[str, Any]) -> dict[str, Any]:
    doc = {}
    for name, attribute, default in _fields(type(value)):
        field = getattr(value, attribute)
        if field is default and not field and name not in raw:
            continue
        plain = _plain(field, raw.get(name))
        if plain or field != default or (isinstance(plain, dict) and raw.get(name) is not None):
            doc[name] = plain
    if raw:
        names = _attributes(type(value))
        doc |= {name: item for name, item in raw.items() if name not in names}
    return doc


def _extras(value: Any, doc: Any) -> Any:
    """What a document has besides the fields that structs declare: in its own form, None where there is nothing."""
    if isinstance(value, msgspec.Struct):
        return _extras_of_struct(value, doc)
    if isinstance(value, tuple) and value and isinstance(value[0], msgspec.Struct):
        found = [_extras(item, old) for item, old in zip(value, doc, strict=True)]
        return [extra or {} for extra in found] if any(found) else None
    return None


def _extras_of_struct(value: msgspec.Struct, doc: dict[str, Any]) -> dict[str, Any] | None:
    attributes = _attributes(type(value))
    found = {}
    for name, item in doc.items():  # which has few of many fields
        if name not in attributes:
            found[name] = item
        elif isinstance(item, dict | list | tuple):
            extra = _extras(getattr(value, attributes[name]), item)
            if extra is not None:
                found[name] = extra
    return found if found or not doc else None  # an empty document says something: `podSelector: {}`


def _api_version(obj: Object) -> str:
    return str(obj.raw.get("apiVersion") or API_VERSIONS.get(kind_of(obj), "v1"))


def _resource(kind: str, api_version: str) -> str:
    known = RESOURCES.get(kind)
    if known:
        return known
    group = api_version.rpartition("/")[0]
    return _plural(kind) if kind in KINDS or group in BUILT_IN else f"{group}/{_plural(kind)}"


def _plural(kind: str) -> str:
    """As apimachinery guesses it (`meta.UnsafeGuessKindToResource`)."""
    word = kind.lower()
    if word.endswith("s"):
        return word + "es"
    return word[:-1] + "ies" if word.endswith("y") else word + "s"


# --- flannel's leases -------------------------------------------------------------------------------------------------

_LEASE = ("PublicIP", "PublicIPv6", "BackendType", "BackendData", "BackendV6Data")


def _encode_lease(lease: SubnetLease) -> bytes:
    """As Go writes LeaseAttrs: this order, PublicIPv6 null where there is none, empty backend fields left out."""
    said = {name: getattr(lease, name) for name in _LEASE}
    body = {name: value for name, value in said.items() if value or name == "PublicIPv6"}
    return msgspec.json.encode(body)


def _decode_lease(name: str, doc: dict[str, Any]) -> SubnetLease:
    said = {key: value for key, value in doc.items() if key in _LEASE and value}
    return msgspec.convert({**said, "metadata": {"name": name}}, SubnetLease)


def _encode_lease_meta(lease: SubnetLease) -> bytes:
    """What flannel has no place for. With the PublicIP, so that it is not taken for that of a later lease."""
    head = {"apiVersion": "nsnet/v1", "kind": "SubnetLease", "PublicIP": lease.PublicIP}
    return msgspec.json.encode({**head, "metadata": _plain(lease.metadata, None)})


def with_metadata(lease: SubnetLease, value: bytes) -> SubnetLease:
    """The lease with the metadata of its second record; as it is, where that record is of another lease."""
    try:
        doc = msgspec.json.decode(value, type=dict[str, Any])
        metadata = msgspec.convert(doc.get("metadata"), ObjectMeta)
    except msgspec.MsgspecError:
        return lease
    same = doc.get("PublicIP") == lease.PublicIP and metadata.name == lease.metadata.name
    return msgspec.structs.replace(lease, metadata=metadata) if same else lease
