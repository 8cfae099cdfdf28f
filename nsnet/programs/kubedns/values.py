"""What stands under a name before it is a record, in both implementations, and where it is looked for."""

from functools import cached_property
from typing import NamedTuple

from nsnet.programs.kubedns.config import Config, Service
from nsnet.programs.kubedns.names import spelled

NO_PORT = -1  # an address that offers no port: no SRV


class Value(NamedTuple):
    """What a name leads to, with the port that SRV tells.

    An address (`host`, with its own name below the zone in `target`), a name outside (`host`) or one inside (`target`,
    with its addresses).
    """

    host: str
    port: int
    target: str
    addresses: tuple[str, ...] = ()


class Index:
    """A configuration by name. Names below the zone are in lower case, as the API wants them."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.services: dict[str, dict[str, Service]] = {name.lower(): {} for name in config.namespaces}
        for service in config.services:
            self.services.setdefault(service.namespace, {})[service.name] = service

    @property
    def namespaces(self) -> dict[str, dict[str, Service]]:
        """Those that exist are those that may have Services."""
        return self.services

    @cached_property
    def pods(self) -> frozenset[tuple[str, str]]:
        return frozenset((namespace, spelled(address)) for namespace, address in self.config.pod_addresses)
