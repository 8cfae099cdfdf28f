"""Environment variables that name Services, as kubelet gives them to a pod: fixed when the pod starts.

    WEB_SERVICE_HOST=10.96.12.34      WEB_PORT=tcp://10.96.12.34:80             WEB_PORT_80_TCP=tcp://10.96.12.34:80
    WEB_SERVICE_PORT=80               WEB_PORT_80_TCP_ADDR=10.96.12.34          WEB_PORT_80_TCP_PROTO=tcp
    WEB_SERVICE_PORT_HTTP=80          WEB_PORT_80_TCP_PORT=80

What a pod found when it started is kept in the store. A thousand pods that start together find the same, so what they
found is one object, a ServiceSnapshot, and each pod has its name in the annotation `nsnet/started-with`. The name is a
hash of the contents. A snapshot that no pod names any more goes.

Source: `pkg/kubelet/kubelet_pods.go` (getServiceEnvVarMap, makeEnvironmentVariables), `pkg/kubelet/envvars`.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

import msgspec

from nsnet.control.table import Table, of, owner, with_meta
from nsnet.model import ENDED, Cluster, Container, Key, ObjectMeta, Objects, Other, Pod, Service, annotation

STARTED_WITH = "nsnet/started-with"
SNAPSHOT = "ServiceSnapshot"
MASTER = ("default", "kubernetes")


class Port(msgspec.Struct, frozen=True, array_like=True):
    port: int
    protocol: str = "TCP"
    name: str = ""


class Known(msgspec.Struct, frozen=True, array_like=True):
    """A Service as a pod finds it."""

    name: str
    ip: str
    ports: tuple[Port, ...] = ()


# --- what is kept -----------------------------------------------------------------------------------------------------


def write(table: Table, cluster: Cluster) -> None:
    """Every pod that has started says what it found, and that is there."""
    pods, snapshots = of(table, Pod), table[SNAPSHOT]
    found: dict[tuple[str, bool], str] = {}
    used: set[str] = set()
    for key, pod in pods.items():
        if not pod.status.podIP or pod.status.phase in ENDED:
            continue
        name = annotation(pod, STARTED_WITH)
        if Key(SNAPSHOT, "", name) not in snapshots:
            group = key.namespace, pod.spec.enableServiceLinks is not False
            if group not in found:
                found[group] = _keep(table, cluster, known(of(table, Service).values(), *group))
            name = found[group]
            pods[key] = with_meta(pod, annotations={**pod.metadata.annotations, STARTED_WITH: name})
        used.add(name)
    for key in [key for key in snapshots if key.name not in used]:
        del snapshots[key]


def _keep(table: Table, cluster: Cluster, services: tuple[Known, ...]) -> str:
    contents = msgspec.json.encode(services)
    name = hashlib.sha256(contents).hexdigest()[:16]
    meta = ObjectMeta(name=name, ownerReferences=(owner(cluster),))
    raw = {"apiVersion": "nsnet/v1", "services": msgspec.json.decode(contents)}
    table[SNAPSHOT].setdefault(Key(SNAPSHOT, "", name), Other(meta, SNAPSHOT, raw))
    return name


def known(services: Iterable[Service], namespace: str, links: bool) -> tuple[Known, ...]:
    """The Services that a pod of the namespace finds, by name: its own namespace's, and default/kubernetes always."""
    found: dict[str, Known] = {}
    for service in services:
        meta, spec = service.metadata, service.spec
        master = (meta.namespace, meta.name) == MASTER
        if not master and (meta.namespace != namespace or not links):
            continue
        if spec.type == "ExternalName" or spec.clusterIP in ("", "None") or (master and meta.name in found):
            continue
        ports = tuple(Port(port.port, port.protocol, port.name) for port in spec.ports or ())
        found[meta.name] = Known(meta.name, spec.clusterIP, ports)
    return tuple(found[name] for name in sorted(found))


# --- what a pod has ---------------------------------------------------------------------------------------------------


def service_variables(objects: Objects, pod: Pod, container: str = "") -> dict[str, str]:
    """The variables that name Services in one of the pod's containers (the first where none is named).

    A pod that has not started has what it would find now. Where the manifest itself gives one of them another value, it
    has that.
    """
    found = environment(objects, pod, container)
    return {name: found[name] for name in variables(started_with(objects, pod))}


def environment(objects: Objects, pod: Pod, container: str = "") -> dict[str, str]:
    """All variables of a container: what its manifest says, and before it the Services'."""
    services = variables(started_with(objects, pod))
    chosen = (item for item in pod.spec.containers if container in ("", item.name))
    return services | _own(next(chosen, None), services)


def started_with(objects: Objects, pod: Pod) -> tuple[Known, ...]:
    """The Services that the pod found when it started."""
    kept = objects.get(Key(SNAPSHOT, "", annotation(pod, STARTED_WITH)))
    if isinstance(kept, Other):
        return msgspec.convert(kept.raw.get("services", ()), tuple[Known, ...])
    return _now(objects, pod)


def _now(objects: Objects, pod: Pod) -> tuple[Known, ...]:
    services = (obj for obj in objects.values() if isinstance(obj, Service))
    return known(services, pod.metadata.namespace, pod.spec.enableServiceLinks is not False)


def changed_since(objects: Objects, pod: Pod) -> dict[str, str]:
    """In what the pod's variables differ from those of a pod that started now: Service → `created since, absent`, …."""
    before = {item.name: item for item in started_with(objects, pod)}
    now = {item.name: item for item in _now(objects, pod)}
    found = {}
    for name in sorted(before.keys() | now.keys()):
        if name not in before:
            found[name] = "created since, absent"
        elif name not in now:
            found[name] = "deleted since, still named"
        elif before[name] != now[name]:
            found[name] = "changed since, as it was"
    return found


@lru_cache(maxsize=64)
def variables(services: tuple[Known, ...]) -> dict[str, str]:
    """The variables for these Services, in kubelet's order: both styles for each."""
    return dict(pair for service in services for pair in _of_service(service))


def _of_service(service: Known) -> Iterator[tuple[str, str]]:
    prefix, host = _upper(service.name), service.ip
    yield f"{prefix}_SERVICE_HOST", host
    for port in service.ports[:1]:
        yield f"{prefix}_SERVICE_PORT", str(port.port)
    for port in service.ports:
        if port.name:
            yield f"{prefix}_SERVICE_PORT_{_upper(port.name)}", str(port.port)
    yield from _links(prefix, host, service.ports)


def _links(prefix: str, host: str, ports: Sequence[Port]) -> Iterator[tuple[str, str]]:
    """As Docker's links had them."""
    for index, port in enumerate(ports):
        protocol = port.protocol.lower()
        url = f"{protocol}://{f'[{host}]' if ':' in host else host}:{port.port}"
        if index == 0:
            yield f"{prefix}_PORT", url
        name = f"{prefix}_PORT_{port.port}_{port.protocol.upper()}"
        yield name, url
        yield f"{name}_PROTO", protocol
        yield f"{name}_PORT", str(port.port)
        yield f"{name}_ADDR", host


def _upper(name: str) -> str:
    return name.upper().replace("-", "_")


def _own(container: Container | None, services: Mapping[str, str]) -> dict[str, str]:
    """What the manifest itself says, which wins; `$(NAME)` stands for a variable said before, or a Service's."""
    found: dict[str, str] = {}
    for item in (container.env or ()) if container else ():
        if item.value is not None:
            found[item.name] = _expanded(item.value, {**services, **found})
    return found


def _expanded(text: str, names: Mapping[str, str]) -> str:
    """`$$` is a dollar; what is not known stays as it is (`third_party/forked/golang/expansion`)."""

    def one(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else names.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", one, text)
