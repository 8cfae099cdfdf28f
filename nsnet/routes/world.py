"""What routes are made from: the objects, looked up by kind; and the endpoints behind a Service port."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import NamedTuple, TypeVar

from nsnet import model
from nsnet.model import SERVICE_NAME, EndpointSlice, Key, Object, Objects, Service, ServicePort
from nsnet.routes.certificates import Broken, pem_of
from nsnet.routes.table import Backend

T = TypeVar("T")


class Note(NamedTuple):
    """What a person should know about an object, as an event says it."""

    about: Key
    reason: str
    message: str
    kind: str = "Warning"


class World:
    """The objects of one compilation by kind, and what was found worth a note."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.notes: list[Note] = []

    def of(self, kind: type[T]) -> list[T]:
        """All of a kind, the older first, then by namespace and name."""
        return sorted(model.of(self.objects, kind), key=_by_age)

    def note(self, about: Object, reason: str, message: str, kind: str = "Warning") -> None:
        self.notes.append(Note(model.key_of(about), reason, message, kind))

    def service(self, namespace: str, name: str) -> Service | None:
        found = self.objects.get(Key("Service", namespace, name))
        return found if isinstance(found, Service) else None

    @cached_property
    def _certificates(self) -> dict[Key, str]:
        return {}

    def certificate_problem(self, secret: Key) -> str:
        """Why the Secret cannot be a certificate; empty where it is one."""
        if secret not in self._certificates:
            self._certificates[secret] = self._problem(secret)
        return self._certificates[secret]

    def _problem(self, secret: Key) -> str:
        there = self.objects.get(secret)
        if there is None:
            return f"there is no Secret {secret.namespace}/{secret.name}"
        try:
            pem_of(there)
        except Broken as broken:
            return f"Secret {secret.namespace}/{secret.name} is no certificate: {broken}"
        return ""


def _by_age(obj: object) -> tuple[str, str, str]:
    meta: model.ObjectMeta = obj.metadata  # type: ignore[attr-defined]
    return meta.creationTimestamp or "", meta.namespace, meta.name


def port_of(service: Service, port: int | str) -> ServicePort | None:
    """The Service's TCP port of that number or name."""
    said = (item for item in service.spec.ports or () if item.protocol == "TCP")
    return next((item for item in said if port in (item.port, item.name)), None)


# --- endpoints --------------------------------------------------------------------------------------------------------

Address = tuple[str, int]


def endpoints(objects: Objects, wanted: Iterable[Backend]) -> dict[Backend, tuple[Address, ...]]:
    """Ready endpoints of each Service port, in order; nobody's where there is none (that is a 503)."""
    slices: defaultdict[tuple[str, str], list[EndpointSlice]] = defaultdict(list)
    for item in objects.values():
        if isinstance(item, EndpointSlice) and item.addressType == "IPv4":
            slices[item.metadata.namespace, item.metadata.labels.get(SERVICE_NAME, "")].append(item)
    return {backend: _ready(objects, backend, slices) for backend in wanted}


def _ready(
    objects: Objects, backend: Backend, slices: Mapping[tuple[str, str], list[EndpointSlice]]
) -> tuple[Address, ...]:
    service = objects.get(Key("Service", backend.namespace, backend.service))
    port = port_of(service, backend.port) if isinstance(service, Service) else None
    if port is None:
        return ()
    found = {address for item in slices[backend.namespace, backend.service] for address in _of_slice(item, port.name)}
    return tuple(sorted(found))


def _of_slice(item: EndpointSlice, port: str) -> Iterator[Address]:
    numbers = [
        each.port for each in item.ports or () if (each.name or "") == port and (each.protocol or "TCP") == "TCP"
    ]
    for endpoint in item.endpoints or ():
        if endpoint.conditions is None or endpoint.conditions.ready is not False:
            yield from ((address, number) for address in endpoint.addresses[:1] for number in numbers if number)
