"""Manifests as text in, what control makes of them as short lines out."""

from collections.abc import Iterable, Iterator, Mapping

import msgspec
import pytest

from nsnet import control, manifests, model, names
from nsnet.control import Facts
from nsnet.errors import ObjectError
from nsnet.manifests import Source
from nsnet.model import Key, Object, Objects, Pod
from nsnet.store import keys

NOW = "2026-01-31T12:00:00Z"


def load(text: str) -> dict[Key, Object]:
    return manifests.load([Source("topo.yaml", text.encode())], "demo").objects


def up(text: str, stored: Objects | None = None, facts: Facts | None = None) -> dict[Key, Object]:
    return control.complete(control.admit(stored or {}, load(text), whole=True), facts)


def apply(stored: Objects, text: str, facts: Facts | None = None) -> dict[Key, Object]:
    return control.complete(control.admit(stored, load(text), whole=False), facts)


def delete(stored: Objects, *what: str, facts: Facts | None = None) -> dict[Key, Object]:
    return control.complete(control.remove(stored, [key(word) for word in what]), facts)


def refused(text: str, stored: Objects | None = None, *, whole: bool = True) -> str:
    """The error, `Kind ns/name: field: what (hint)`; fails where there is none."""
    with pytest.raises(ObjectError) as caught:
        control.complete(control.admit(stored or {}, load(text), whole=whole))
    assert caught.value.hint
    return f"{caught.value} ({caught.value.hint})"


def key(word: str) -> Key:
    """`Pod/web-0` in namespace default, `Pod/ns/web-0`, `Node/node1`."""
    kind, *rest = word.split("/")
    namespace = "" if kind in model.CLUSTER_SCOPED else "default"
    return Key(kind, *rest) if len(rest) == 2 else Key(kind, namespace, rest[0])


def one(objects: Objects, word: str) -> object:
    return objects[key(word)]


def changed(obj: Object, **spec: object) -> Object:
    return msgspec.structs.replace(obj, spec=msgspec.structs.replace(obj.spec, **spec))  # type: ignore[union-attr]


# --- as lines ---------------------------------------------------------------------------------------------------------


def pods(objects: Objects) -> dict[str, str]:
    """Pods that are not the cluster's own, by name: `node1 10.244.1.2`, and what there is to say besides."""
    return {pod.metadata.name: _pod(pod) for pod in model.of(objects, Pod) if pod.metadata.namespace != "kube-system"}


def _pod(pod: Pod) -> str:
    words = [pod.spec.nodeName or "-", pod.status.podIP or "-"]
    if model.is_terminating(pod):
        words.append("terminating")
    if pod.status.phase != "Running":
        words.append(pod.status.phase)
    elif not model.is_ready(pod):
        words.append("unready")
    return " ".join(words)


def nodes_of(objects: Objects, prefix: str = "") -> list[str]:
    return [line.split()[0] for name, line in pods(objects).items() if name.startswith(prefix)]


def events(objects: Objects) -> list[str]:
    found = model.of(objects, model.Event)
    return [f"{item.involvedObject.kind} {item.involvedObject.name}: {item.reason}: {item.message}" for item in found]


def endpoints(objects: Objects, name: str) -> list[str]:
    """Subsets: `10.244.1.2,10.244.2.2:http/80`, `!` before what is not ready."""
    item = objects[Key("Endpoints", "default", name)]
    assert isinstance(item, model.Endpoints)
    return [_subset(subset) for subset in item.subsets or ()]


def _subset(subset: model.EndpointSubset) -> str:
    addresses = [item.ip for item in subset.addresses or ()] + [
        f"!{item.ip}" for item in subset.notReadyAddresses or ()
    ]
    return f"{','.join(addresses)}:{_ports(subset.ports or ())}"


def _ports(ports: Iterable[model.EndpointPort]) -> str:
    return ",".join("/".join(filter(None, (port.name, str(port.port)))) for port in ports)


def slices(objects: Objects, name: str) -> list[str]:
    """The slices of a Service, as `endpoints` writes subsets; `~` before what terminates and still serves."""
    found = [
        item
        for item in model.of(objects, model.EndpointSlice)
        if item.metadata.labels.get("kubernetes.io/service-name") == name
    ]
    return sorted(f"{','.join(map(_endpoint, item.endpoints or ()))}:{_ports(item.ports or ())}" for item in found)


def _endpoint(item: model.Endpoint) -> str:
    says = item.conditions or model.EndpointConditions()
    if says.terminating:
        return f"~{item.addresses[0]}" if says.serving else f"x{item.addresses[0]}"
    return item.addresses[0] if says.ready is not False else f"!{item.addresses[0]}"


# --- facts ------------------------------------------------------------------------------------------------------------


def listening(objects: Objects, *, silent: Iterable[str] = (), now: str = NOW) -> Facts:
    """As if every pod's declared ports listened, but for the `silent` pods with namespaces; all healthy."""
    found: dict[str, frozenset[tuple[str, int]]] = {}
    for pod in model.of(objects, Pod):
        ports = frozenset((port.protocol, port.containerPort) for port in model.container_ports(pod))
        ports |= {("HTTP", 8080)} if ("TCP", 8080) in ports else set()
        netns = _netns(pod)
        found[netns] = found.get(netns, frozenset()) | (frozenset() if pod.metadata.name in set(silent) else ports)
    return Facts(found, now)


def _netns(pod: Pod) -> str:
    if pod.spec.hostNetwork:
        return names.node_netns("demo", pod.spec.nodeName)
    return names.pod_netns("demo", pod.metadata.namespace, pod.metadata.name)


# --- what must always hold --------------------------------------------------------------------------------------------


def stored(objects: Objects) -> dict[Key, Object]:
    """The objects as a store gives them back: other instances, `raw` without what structs declare."""
    found = dict(_read_back(objects.values()))
    assert found.keys() == objects.keys()
    return found


def _read_back(objects: Iterable[Object]) -> Iterator[tuple[Key, Object]]:
    for obj in objects:
        records = keys.records(obj)
        back = keys.decode(keys.path(obj), records.pop(keys.path(obj)))
        records.pop(keys.NET_CONF, None)  # follows from the Cluster, and is only written
        for value in records.values():
            assert isinstance(back, model.SubnetLease)
            back = keys.with_metadata(back, value)
        yield model.key_of(back), back


def different(one: Objects, other: Mapping[Key, Object]) -> list[str]:
    """Keys whose instance is not the same in both."""
    return sorted(str(item) for item in one.keys() | other.keys() if one.get(item) is not other.get(item))
