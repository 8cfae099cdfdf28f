"""Ingress and Gateway API: whose objects they are, where a request goes, what their status says. Pure.

Words that need the words of `model`: control (status, events, the proxy's Service), render (the proxy's files), verify
and the verbs all ask the one table that is compiled here, so that none of them can mean something else by a route.

    table.py         Rule → Table, and route(table, host, path, …) → what becomes of a request
    ingress.py       Ingress, IngressClass → rules
    gateway.py       GatewayClass, Gateway, HTTPRoute, ReferenceGrant → rules, and verdicts for their status
    certificates.py  is a TLS Secret one?
"""

from nsnet.model import Objects
from nsnet.routes import gateway, ingress
from nsnet.routes.table import Backend, Forward, Redirect, Reply, Routed, Table, merged, route
from nsnet.routes.world import Note, World, endpoints

__all__ = ["Backend", "Compiled", "Forward", "Redirect", "Reply", "Routed", "Table", "compiled", "endpoints", "route"]

READ = frozenset({
    "Ingress", "IngressClass", "GatewayClass", "Gateway", "HTTPRoute", "ReferenceGrant", "Secret", "Service",
    "Namespace",
})  # fmt: skip
ASKING = frozenset({"Ingress", "Gateway"})


class Compiled:
    """What the objects come to: the table, the Ingresses that are served, verdicts on Gateway API objects, notes."""

    def __init__(self, objects: Objects) -> None:
        world = World(objects)
        http, self.served = ingress.frontends(world)
        more, self.verdicts = gateway.frontends(world)
        self.table: Table = merged([*http, *more])
        self.notes: tuple[Note, ...] = tuple(dict.fromkeys(world.notes))

    @property
    def needs_proxy(self) -> bool:
        """Is there anything to serve?"""
        return bool(self.served or self.verdicts.gateways)


class _Last:
    """The last answer and what it was made of; may be dropped at any time."""

    read: tuple[object, ...] = ()
    answer: Compiled | None = None


def compiled(objects: Objects) -> Compiled:
    """The routes of these objects. Asked again with the same ones, the same answer."""
    read = _read(objects)
    last = _Last.answer
    if last is None or len(read) != len(_Last.read) or any(map(_differ, read, _Last.read)):
        last = _Last.answer = Compiled(objects if _asks(objects) else {})
        _Last.read = read
    return last


def _read(objects: Objects) -> tuple[object, ...]:
    if not _asks(objects):
        return ()
    return tuple(objects[key] for key in sorted(key for key in objects if key.kind in READ))


def _asks(objects: Objects) -> bool:
    return any(key.kind in ASKING for key in objects)


def _differ(one: object, other: object) -> bool:
    return one is not other
