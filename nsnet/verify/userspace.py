"""What userspace mode leaves of a Service, and whom its endpoints see: for `expect`. Pure.

The proxy process knows neither traffic policies nor hints nor terminating endpoints: ready ones, wherever they are. It
takes a connection before it looks for an endpoint, so without one a client is not refused but finds its connection
closed; a datagram is never answered. What it opens is a connection of its own: endpoints see one of the node's
addresses, whichever is nearest to them.
"""

from collections.abc import Iterable

from msgspec.structs import replace

from nsnet.model import Service
from nsnet.verify.world import Backend


def plainly(service: Service) -> Service:
    """The Service without what the process does not know."""
    spec = replace(service.spec, internalTrafficPolicy="Cluster", externalTrafficPolicy="Cluster")
    return replace(service, spec=spec)


def asked(candidates: Iterable[Backend]) -> tuple[Backend, ...]:
    """The endpoints that the process chooses from."""
    return tuple(item._replace(draining=False, zones=(), nodes=()) for item in candidates if item.ready)
