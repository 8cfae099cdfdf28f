"""The health ports of every node's kube-proxy, which a load balancer asks: one process for the whole cluster.

It enters each node's namespace only to open its sockets. On `healthz` (10256) it has /healthz, which says 503 while the
node is being deleted, and /livez, which does not; on each healthCheckNodePort any path says how many ready endpoints of
that Service are on this node: 200 where there is one, 503 where there is none.

    python -m nsnet.programs.healthcheck CONFIG.json

CONFIG is {"nodes": [{"netns", "healthz": [address, port], "eligible", "checks": [{"addresses", "port", "namespace",
"name", "endpoints"}]}]}. A line `reload` on the unix socket CONFIG.sock is answered by `ok` once the file has been read
again and its sockets are open; one that cannot be opened is logged and tried again at the next reload.

Sources: Kubernetes `pkg/proxy/healthcheck/{proxy_health,service_health}.go` (1.36), facts/KUBEPROXY.md §1.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from nsnet.kernel.netns import inside
from nsnet.programs import lines, plain, start
from nsnet.programs.plain import Place, inode_of
from nsnet.programs.web import JSON, Page, Pages, serve

NOSNIFF = ("X-Content-Type-Options", "nosniff")
BACKLOG = 128
log = partial(plain.log, "healthcheck")


class Check(msgspec.Struct, frozen=True):
    """A healthCheckNodePort, and how many ready endpoints its Service has on the node."""

    addresses: tuple[str, ...]
    port: int
    namespace: str
    name: str
    endpoints: int


class Node(msgspec.Struct, frozen=True):
    netns: str
    healthz: tuple[str, int]
    eligible: bool = True
    checks: tuple[Check, ...] = ()


class Config(msgspec.Struct, frozen=True):
    nodes: tuple[Node, ...] = ()


# --- pages ------------------------------------------------------------------------------------------------------------


def service_page(check: Check) -> Page:
    body = (
        f'{{\n\t"service": {{\n\t\t"namespace": "{check.namespace}",\n\t\t"name": "{check.name}"\n\t}},\n'
        f'\t"localEndpoints": {check.endpoints},\n\t"serviceProxyHealthy": true\n}}'
    )
    weight = ("X-Load-Balancing-Endpoint-Weight", str(check.endpoints))
    return Page(200 if check.endpoints else 503, body.encode(), JSON, (NOSNIFF, weight))


def node_page(path: str, *, eligible: bool, now: datetime) -> Page:
    """/healthz and /livez. The controller writes the rules and is done when it says so: no sync is ever overdue."""
    if path not in {"/healthz", "/livez"}:
        return Page(404, b"404 page not found\n")
    time = now.isoformat().replace("+00:00", "Z")
    body: dict[str, Any] = {"lastUpdated": time, "currentTime": time}
    body |= {"nodeEligible": eligible} if path == "/healthz" else {}
    body |= {"healthy": True, "status": {"IPv4": {"lastUpdated": time, "healthy": True}}}
    good = eligible or path == "/livez"
    return Page(200 if good else 503, msgspec.json.encode(body), JSON, (NOSNIFF,))


# --- sockets ----------------------------------------------------------------------------------------------------------


def wanted(config: Config) -> dict[Place, Node | Check]:
    """Every socket, and whose health is told there."""
    found: dict[Place, Node | Check] = {}
    for node in config.nodes:
        place = partial(Place, node.netns, inode_of(node.netns), "TCP")
        address, port = node.healthz
        found[place(port, address)] = node
        for check in node.checks:
            found |= {place(check.port, address): check for address in check.addresses}
    return found


class Server:
    """The open sockets, and what they tell."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.told: dict[Place, Node | Check] = {}
        self.servers: dict[Place, asyncio.Server] = {}
        self.reloading = asyncio.Lock()

    async def reload(self) -> str:
        """`ok`, or what is wrong with the file."""
        async with self.reloading:
            try:
                config = msgspec.json.decode(self.path.read_bytes(), type=Config)
            except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
                log(f"{self.path}: {error}")
                return f"error: {error}"
            await self._use(config)
            return "ok"

    async def _use(self, config: Config) -> None:
        self.told = wanted(config)
        for place in self.servers.keys() - self.told.keys():
            self.servers.pop(place).close()
        for place, sock in _opened(sorted(self.told.keys() - self.servers.keys())):
            self.servers[place] = await serve(self._pages(place), sock=sock)

    def _pages(self, place: Place) -> Pages:
        def page(path: str, _client: str) -> Page | None:
            about = self.told.get(place)
            if isinstance(about, Check):
                return service_page(about)
            return node_page(path, eligible=about.eligible, now=datetime.now(UTC)) if about else None

        return page

    async def answer(self, line: str) -> AsyncIterator[str]:
        if line == "reload":
            yield await self.reload()


def _opened(places: list[Place]) -> Iterator[tuple[Place, socket.socket]]:
    for place in places:
        try:
            with inside(place.netns):
                sock = socket.create_server((place.address, place.port), backlog=BACKLOG)
        except OSError as error:
            log(f"{place.netns}: {place.address}:{place.port}: {error}; tried again at the next reload")
        else:
            yield place, sock  # at home again: whoever takes it may wait there


# --- the program ------------------------------------------------------------------------------------------------------


async def run(path: Path) -> None:
    server = Server(path)
    await lines.listen(path, server.answer)
    await server.reload()
    await start.until_told(server.reload)


if __name__ == "__main__":
    start.with_config(run)
