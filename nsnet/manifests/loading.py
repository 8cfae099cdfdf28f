"""Documents → objects: lists flattened, kinds told apart, namespaces filled in, everything checked, errors placed.

A kind is ours when its API group is Kubernetes' own (or nsnet's). A namesake of another group, such as Knative's
`Service` or Istio's `Gateway`, is not: it is kept under kubectl's long name, `Gateway.networking.istio.io`, so that
nobody takes it for the real one.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import PurePath
from typing import Any

import msgspec

from nsnet import model
from nsnet.errors import InputError, ObjectError
from nsnet.manifests import kinds, schema, topology
from nsnet.manifests.problems import ENOUGH, At, Problem, nearest, spelled
from nsnet.manifests.reading import Path, Place, Source, documents, places, shown, wrong
from nsnet.model import EMULATED, Key, Object

BUILT_IN_NAMESPACES = frozenset({"default", "kube-system", "kube-public", "kube-node-lease"})
_MORE_CLUSTER_SCOPED = frozenset({
    "CSINode", "CertificateSigningRequest", "ClusterTrustBundle", "ComponentStatus", "DeviceClass", "FlowSchema",
    "IPAddress", "PriorityLevelConfiguration", "ServiceCIDR", "StorageVersion", "VolumeAttachment",
    "VolumeAttributesClass", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding", "PodSecurityPolicy",
    "MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding", "ResourceSlice",
})  # fmt: skip
_GROUPS = {
    "Deployment": "apps", "ReplicaSet": "apps", "StatefulSet": "apps", "DaemonSet": "apps", "Job": "batch",
    "EndpointSlice": "discovery.k8s.io", "Ingress": "networking.k8s.io", "IngressClass": "networking.k8s.io",
    "NetworkPolicy": "networking.k8s.io", "Cluster": "nsnet", "SubnetLease": "nsnet",
    "Fault": "nsnet",
}  # fmt: skip
_SERVED = {
    **{kind: (f"{group}/v1",) for kind, group in _GROUPS.items()},
    "GatewayClass": ("gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"),
    "Gateway": ("gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"),
    "HTTPRoute": ("gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"),
    "ReferenceGrant": ("gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"),
    "KubeProxyConfiguration": ("kubeproxy.config.k8s.io/v1alpha1",),
    "Event": ("v1", "events.k8s.io/v1"),
}
_ONE = {"Cluster": "Cluster document", "KubeProxyConfiguration": "KubeProxyConfiguration"}  # at most one of a kind


class Origin(msgspec.Struct, frozen=True):
    """Where an object came from: which source, which document of it, which item of a list in that document."""

    source: int
    document: int
    path: Path = ()


class Loaded(msgspec.Struct, frozen=True):
    """What the files say. `notes`: sentences for a person; `origins` and `sources`: for `located`."""

    objects: dict[Key, Object]
    notes: tuple[str, ...] = ()
    origins: dict[Key, Origin] = {}
    sources: tuple[Source, ...] = ()


class _Wrong(msgspec.Struct, frozen=True):
    """A problem of one object: where that came from, and how an error names it. `first`: where it stands already."""

    origin: Origin
    label: str
    problem: Problem
    first: Origin | None = None


class _Found(msgspec.Struct):
    """What has been read so far; `namespace` as `load` has it."""

    namespace: str = ""
    objects: dict[Key, Object] = {}
    origins: dict[Key, Origin] = {}
    wrongs: list[_Wrong] = []
    strays: list[str] = []


def load(sources: Sequence[Source], name: str | None = None, namespace: str = "") -> Loaded:
    """All objects of the sources, with exactly one Cluster (a default one, called `name` or after the first file).

    `namespace` is that of objects that say none, and no object may say another; empty: `default`, and any.
    Raises InputError for the first thing that is wrong: `file:line:column: Kind "name": field: what`, with a hint.
    """
    found = _read_all(sources, name, namespace)
    if found.wrongs:
        raise _placed(sources, found.wrongs[:1])[0]
    return Loaded(found.objects, _notes(found), found.origins, tuple(sources))


def problems(sources: Sequence[Source], name: str | None = None) -> list[InputError]:
    """What is wrong, at most 100 things, in the order of the files. A file that is no YAML hides what else is wrong."""
    try:
        return _placed(sources, _read_all(sources, name).wrongs)
    except InputError as error:
        return [error]


def located(error: ObjectError, loaded: Loaded) -> InputError:
    """An error that `control` raised, with `file:line:column: ` of the field in front, as far as a file says it."""
    key = error.key
    label = _label(key) if isinstance(key, Key) else str(key)
    message = f"{label}: {error.field}: {error.reason}" if error.field else f"{label}: {error.reason}"
    origin = loaded.origins.get(key) if isinstance(key, Key) else None
    if origin is None:
        return InputError(message, error.hint)
    source = loaded.sources[origin.source]
    place = _follow(places(source)[origin.document].find(origin.path), error.field)
    return wrong(source.name, *place.position(), message, error.hint)


# --- documents --------------------------------------------------------------------------------------------------------

_Doc = tuple[Origin, dict[str, Any]]


def _read_all(sources: Sequence[Source], name: str | None, namespace: str = "") -> _Found:
    found = _Found(namespace)
    docs: list[_Doc] = []
    for number, source in enumerate(sources):
        said = [(index, doc) for index, doc in enumerate(documents(source)) if doc is not None]
        if not said and len(sources) == 1:
            raise wrong(source.name, 0, 0, "there is no object in it", "write manifests, or a Cluster document")
        for index, doc in said:
            docs += _flattened(doc, Origin(number, index), found)
    scoped = model.CLUSTER_SCOPED | _MORE_CLUSTER_SCOPED | _declared_cluster_scoped(docs)
    for origin, doc in docs:
        if len(found.wrongs) >= ENOUGH:
            break
        _object(doc, origin, scoped, found)
    if not found.wrongs:
        _name_cluster(found, sources, name)
    found.wrongs.sort(key=lambda item: (item.origin.source, item.origin.document))
    return found


def _flattened(doc: Any, origin: Origin, found: _Found) -> Iterator[_Doc]:
    """The document, or the items of the list that it is (`kind: List`, `ServiceList` …)."""
    if not isinstance(doc, dict):
        message = f"is {schema.described(doc)}; an object with apiVersion and kind is wanted"
        found.wrongs.append(
            _Wrong(origin, "document", Problem(origin.path, message, "is this a manifest for Kubernetes?"))
        )
        return
    kind = doc.get("kind")
    if not isinstance(kind, str) or not kind.endswith("List") or (kind != "List" and "items" not in doc):
        yield origin, doc
        return
    items = doc.get("items")
    if items is not None and not isinstance(items, list):
        message = f"is {schema.described(items)}; a list is wanted"
        problem = Problem((*origin.path, "items"), message, "write each item on a line of its own, after a dash")
        found.wrongs.append(_Wrong(origin, shown(kind), problem))
        return
    for index, item in enumerate(items or ()):
        inside = Origin(origin.source, origin.document, (*origin.path, "items", index))
        yield from _flattened(_typed(item, kind, doc), inside, found)


def _typed(item: Any, kind: str, doc: dict[str, Any]) -> Any:
    """An item of a typed list says no kind of its own: `ServiceList` means Services."""
    if kind == "List" or not isinstance(item, dict):
        return item
    return {"apiVersion": doc.get("apiVersion"), "kind": kind.removesuffix("List"), **item}


def _declared_cluster_scoped(docs: list[_Doc]) -> frozenset[str]:
    """The kinds that CustomResourceDefinitions in the stream put outside of namespaces."""
    specs = [doc.get("spec") for _, doc in docs if doc.get("kind") == "CustomResourceDefinition"]
    named = [spec.get("names") for spec in specs if isinstance(spec, dict) and spec.get("scope") == "Cluster"]
    return frozenset(str(names.get("kind")) for names in named if isinstance(names, dict))


# --- one object -------------------------------------------------------------------------------------------------------


def _object(doc: dict[str, Any], origin: Origin, scoped: frozenset[str], found: _Found) -> None:
    """Check one object and put it with the others, or say what is wrong with it."""
    said: list[Problem] = []
    kind = _kind(doc, said)
    clean = doc if said else _checked(doc, kind, scoped, found.namespace, said)
    obj = None if said else _converted(clean, said)
    if obj is None:
        label = _label_of(doc)
        found.wrongs += [_Wrong(origin, label, item._replace(path=origin.path + item.path)) for item in said]
    else:
        _keep(obj, origin, found)


def _converted(doc: dict[str, Any], said: list[Problem]) -> Object | None:
    """The struct. The schema knows all types; a dump of another version's `status` may still surprise."""
    try:
        return model.from_doc(doc)
    except msgspec.ValidationError as error:
        message, _, at = str(error).partition(" - at `$.")
        path = tuple(int(step) if step.isdecimal() else step for step in re.findall(r"[^.\[\]`]+", at))
        said.append(Problem(path, message[:1].lower() + message[1:], "leave it out if it is not needed"))
        return None


def _keep(obj: Object, origin: Origin, found: _Found) -> None:
    key = model.key_of(obj)
    first = found.origins.get(key)
    if key.kind in _ONE and first is None:
        first = next((found.origins[other] for other in found.objects if other.kind == key.kind), None)
    if first is not None:
        hint = f"keep one {_ONE[key.kind]}" if key.kind in _ONE else "keep one of the two, or give it another name"
        problem = Problem((*origin.path, "metadata", "name"), "stands already at", hint)
        found.wrongs.append(_Wrong(origin, _label(key), problem, first))
        return
    found.objects[key], found.origins[key] = obj, origin
    found.strays += [f"{_label(key)}: {note}" for note in kinds.stray_annotations(obj.metadata.annotations)]


def _kind(doc: dict[str, Any], said: list[Problem]) -> str:
    """The kind, told from namesakes in other groups; empty where something about it is wrong."""
    for name in ("apiVersion", "kind"):
        if doc.get(name) in (None, ""):
            said.append(Problem((name,), "is missing", _missing_hint(doc, name)))
        else:
            schema.check(doc[name], "string", (name,), said)
    if said:
        return ""
    kind, version = doc["kind"], doc["apiVersion"]
    group = version.rpartition("/")[0]
    if _foreign(group):
        return f"{kind}.{group}" if kind in EMULATED else str(kind)
    if kind in EMULATED:
        served = _SERVED.get(kind, ("v1",))
        if version not in served:
            message = f"there is no {kind} in {shown(version)}"
            said.append(Problem(("apiVersion",), message, f"write apiVersion: {served[0]}"))
    elif kind not in schema.known_kinds() and (near := nearest(kind, EMULATED, 0.8)):
        said.append(Problem(("kind",), f"no kind {shown(kind)} is known (did you mean {near}?)", f"write kind: {near}"))
    return str(kind)


def _foreign(group: str) -> bool:
    """Is the API group somebody else's? Kubernetes' own have no dot or end in .k8s.io; x-k8s.io is for anybody."""
    return "." in group and (not group.endswith(".k8s.io") or group.endswith(".x-k8s.io"))


def _missing_hint(doc: dict[str, Any], name: str) -> str:
    if "services" in doc and "kind" not in doc:
        return "this looks like a Compose file; `kompose convert` makes manifests of it"
    kind = doc.get("kind")
    if name == "apiVersion" and isinstance(kind, str) and kind in EMULATED:
        return f"write apiVersion: {_SERVED.get(kind, ('v1',))[0]}"
    return "every object begins with apiVersion and kind, as apiVersion: v1 and kind: Service"


def _checked(
    doc: dict[str, Any], kind: str, scoped: frozenset[str], namespace: str, said: list[Problem]
) -> dict[str, Any]:
    """The document without nulls, its names filled in, all fields and values checked."""
    known = "" if doc["apiVersion"] == "events.k8s.io/v1" else schema.type_of_kind(kind)
    doc = topology.with_pairs(doc) if kind == "Cluster" else doc
    clean = schema.check(doc, known, (), said) if known else doc
    if not said:
        metadata = _metadata(clean.get("metadata"), kind, scoped, namespace, said)
        clean = {**clean, "kind": kind, "metadata": metadata}
    if not said:
        at = At(clean, (), said)
        topology.check(at) if kind == "Cluster" else kinds.check(kind, at)
    return clean


def _metadata(value: Any, kind: str, scoped: frozenset[str], namespace: str, said: list[Problem]) -> dict[str, Any]:
    """The metadata, with a name and with the namespace it means."""
    clean = schema.check({} if value is None else value, "ObjectMeta", ("metadata",), said)
    if kind not in EMULATED and len(said) < ENOUGH:  # else not all of it has been looked at
        said[:] = [problem for problem in said if not problem.key]  # whoever defined the kind knows its fields
    if said:
        return {}
    if not clean.get("name"):
        clean["name"] = _default_name(kind, clean, said)
    if kind in scoped or kind.startswith("Cluster"):
        clean.pop("namespace", None)
    else:
        clean["namespace"] = clean.get("namespace") or namespace or "default"
        if namespace not in ("", clean["namespace"]):
            said.append(
                Problem(("metadata", "namespace"), f"is not {namespace}, as -n says", "leave out one of the two")
            )
    return dict(clean)


def _default_name(kind: str, metadata: dict[str, Any], said: list[Problem]) -> str:
    """Component configurations have no name; any other kind that counts must say one (Cluster: see `_name_cluster`)."""
    if kind == "Cluster":
        return ""
    if kind == "KubeProxyConfiguration":
        return "kube-proxy"
    if kind not in EMULATED:
        return kind.lower()
    made = "generateName makes another name each time; write a name"
    said.append(Problem(("metadata", "name"), "is missing", made if metadata.get("generateName") else "add `name:`"))
    return ""


# --- the cluster ------------------------------------------------------------------------------------------------------


def _name_cluster(found: _Found, sources: Sequence[Source], name: str | None) -> None:
    """There is exactly one Cluster afterwards, and it has a name."""
    key = next((key for key in found.objects if key.kind == "Cluster"), None)
    if key is not None and key.name:
        return
    said = name or (PurePath(sources[0].name).stem if sources else "")
    if not topology.is_cluster_name(said):
        raise InputError(*_unnamed(said, name, sources))
    cluster = found.objects.pop(key) if key else model.Cluster(model.ObjectMeta())
    named = Key("Cluster", "", said)
    meta = msgspec.structs.replace(cluster.metadata, name=said)
    found.objects[named] = msgspec.structs.replace(cluster, metadata=meta)
    if key:
        found.origins[named] = found.origins.pop(key)


def _unnamed(said: str, name: str | None, sources: Sequence[Source]) -> tuple[str, str]:
    ways = "write `metadata: {name: …}` in a Cluster document, or give --cluster"
    if not sources and not said:
        return "no manifest is given", "name a file, or - for standard input"
    if said in {"-", "<stdin>"} and not name:
        return "the cluster has no name: nothing says one on standard input", ways
    where = "" if name else f"{sources[0].name}: "
    return f'{where}"{shown(said)}" cannot be the name of a cluster', f"{topology.name_hint(said)}; {ways}"


# --- notes and errors -------------------------------------------------------------------------------------------------


def _notes(found: _Found) -> tuple[str, ...]:
    """What a person should know that is no error, each in one sentence."""
    return (*_not_emulated(found.objects), *_undeclared(found.objects), *found.strays)


def _not_emulated(objects: model.Objects) -> Iterator[str]:
    others = sorted(key for key in objects if key.kind not in EMULATED)
    for kind, group in groupby(others, key=lambda key: key.kind):
        names = [f"{key.namespace}/{key.name}" if key.namespace else key.name for key in group]
        if len(names) == 1:
            yield f"not emulated: {kind} {names[0]}"
        else:
            more = ", …" if len(names) > 3 else ""
            yield f"not emulated: {len(names)} {kind} ({', '.join(names[:3])}{more})"


def _undeclared(objects: model.Objects) -> Iterator[str]:
    declared = {key.name for key in objects if key.kind == "Namespace"} | BUILT_IN_NAMESPACES
    missing = sorted({key.namespace for key in objects if key.namespace} - declared)
    if missing:
        yield f"not declared, so created: Namespace {', '.join(missing)}"


def _label(key: Key) -> str:
    """An object as an error names it: `Service "web"`, outside of `default` `Service "shop/web"`."""
    where = f"{key.namespace}/" if key.namespace not in {"", "default"} else ""
    return f'{key.kind} "{where}{shown(key.name)}"'


def _label_of(doc: dict[str, Any]) -> str:
    """The same for a document that may be wrong everywhere."""
    metadata = doc.get("metadata")
    said = metadata if isinstance(metadata, dict) else {}
    kind, name, namespace = doc.get("kind"), said.get("name"), said.get("namespace")
    if not isinstance(kind, str) or not kind:
        return "object" if not isinstance(name, str) else f'object "{shown(name)}"'
    if not isinstance(name, str) or not name:
        return shown(kind)
    return _label(Key(shown(kind), shown(namespace) if isinstance(namespace, str) else "", name))


def _placed(sources: Sequence[Source], wrongs: list[_Wrong]) -> list[InputError]:
    """The problems as errors, each with its place. Every file concerned is read once more."""
    maps: dict[int, list[Place]] = {}

    def root(origin: Origin) -> Place:
        if origin.source not in maps:
            maps[origin.source] = places(sources[origin.source])
        return maps[origin.source][origin.document]

    return [_error(sources, item, root) for item in wrongs]


def _error(sources: Sequence[Source], item: _Wrong, root: Callable[[Origin], Place]) -> InputError:
    problem = item.problem
    place = root(item.origin).find(problem.path)
    field = spelled(problem.path[len(item.origin.path) :])
    if item.first is not None:
        line, column = root(item.first).find(item.first.path).position()
        message = f"{item.label}: stands already at {sources[item.first.source].name}:{line + 1}:{column + 1}"
    else:
        message = f"{item.label}: {field}: {problem.message}" if field else f"{item.label}: {problem.message}"
    line, column = place.key if problem.key and place.key else place.position()
    hint = problem.hint.replace("{text}", shown(place.text or ""))
    return wrong(sources[item.origin.source].name, line, column, message, hint)


def _follow(place: Place, field: str) -> Place:
    """The place of a field path such as `spec.ports[0].nodePort` or `metadata.annotations[nsnet/ip]`.

    A key may have dots in it, with or without brackets: the longest key that fits is taken. Ends at the last that does.
    """
    rest = field
    while rest:
        step = next(
            (key for key in sorted(map(str, place.children), key=len, reverse=True) if _begins(rest, key)), None
        )
        if step is None:
            return place
        place = place.children[step] if step in place.children else place.children[int(step)]
        rest = rest.removeprefix("[").removeprefix(step).removeprefix("]").removeprefix(".")
    return place


def _begins(rest: str, key: str) -> bool:
    if rest.startswith("["):
        return rest.startswith(f"[{key}]")
    return rest.startswith(key) and rest[len(key) : len(key) + 1] in {"", ".", "["}
