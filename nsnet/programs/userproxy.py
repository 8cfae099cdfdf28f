"""The process behind kube-proxy's userspace mode: one per node; rules lead here, and it picks the endpoint.

Each Service port has a listening socket of its own. A TCP connection is accepted, an endpoint dialled (round robin, or
the one this client had before, under affinity ClientIP), and bytes are copied both ways: an end of one direction is
passed on and leaves the other open, and who reads slowly slows down who sends. Every UDP client has a socket to its
endpoint, until neither side has said anything for `udp_idle` seconds. Where an endpoint does not take a connection
within 0.25 s the next is tried with 0.5 s, 1 s, 2 s; a client without endpoint finds its connection closed again. The
endpoint sees this node as its client.

Source: Kubernetes 1.25 `pkg/proxy/userspace/{proxysocket,roundrobin}.go`. Upstream closes both directions at the end of
one, starts a changed list of endpoints at random (here: in the order given), and keeps UDP clients on an endpoint that
is gone as long as they go on sending.

    python -m nsnet.programs.userproxy CONFIG.json

CONFIG is `Config`, below. It is read again on the socket CONFIG.sock or at SIGHUP (see `start`): Service ports that
stay keep their sockets and connections, whatever becomes of others; connections live on when their Service port goes.
One event loop, no threads.
"""

import asyncio
import contextlib
import socket
import struct
from asyncio import AbstractEventLoop, BaseTransport, Transport
from collections import OrderedDict
from functools import partial
from pathlib import Path
from time import monotonic
from typing import NamedTuple, cast

import msgspec

from nsnet.programs import lines, plain, start

DIAL = (0.25, 0.5, 1.0, 2.0)  # s
BACKLOG = 1024
AT_ONCE = 64  # datagrams taken from one socket before the others get their turn
CLIENTS = 4096  # of UDP at once, over all Service ports; then the one that was silent longest goes
BUFFER = 256 * 1024  # bytes that wait in one direction before the other end is read no more
LARGEST = 65535
IP_PKTINFO = 8  # not in Python's socket module before 3.14
ANYWHERE = "0.0.0.0"  # noqa: S104 - upstream's default, every address of the node

log = partial(plain.log, "userproxy")


class Service(msgspec.Struct, frozen=True):
    """One Service port. `port` is where this process listens, `endpoints` are `ip:port`; `affinity` seconds, 0: none.

    `node_port` is held, so that nobody else on the node takes it; rules lead past it.
    """

    name: str
    protocol: str
    port: int
    node_port: int = 0
    affinity: int = 0
    endpoints: tuple[str, ...] = ()


class Config(msgspec.Struct, frozen=True):
    """The whole file. `udp_idle`, in seconds, is upstream's udpIdleTimeout and its default."""

    udp_idle: float = 0.25
    services: tuple[Service, ...] = ()


def read(path: Path) -> Config:
    """Raises OSError, msgspec.MsgspecError or UnicodeDecodeError."""
    return msgspec.json.decode(path.read_bytes(), type=Config)


class Place(NamedTuple):
    """Where a Service port is served."""

    protocol: str
    port: int


# --- who is next ------------------------------------------------------------------------------------------------------


class Stuck(NamedTuple):
    endpoint: str
    used: float


class Balancer:
    """Round robin, and under affinity the endpoint a client had. A client's time starts anew whenever it comes."""

    def __init__(self) -> None:
        self.endpoints: tuple[str, ...] = ()
        self.affinity = 0
        self.turn = 0
        self.clients: OrderedDict[str, Stuck] = OrderedDict()  # by address, the one that was longest away first

    def use(self, endpoints: tuple[str, ...], affinity: int) -> None:
        """A changed set begins with its first; clients of endpoints that are gone are free again."""
        if set(endpoints) != set(self.endpoints):
            self.turn = 0
            gone = [client for client, stuck in self.clients.items() if stuck.endpoint not in endpoints]
            for client in gone:
                del self.clients[client]
        self.endpoints, self.affinity = endpoints, affinity
        if not affinity:
            self.clients.clear()

    def next(self, client: str, now: float, *, another: bool = False) -> str:
        """The endpoint for a client's next connection; empty where there is none. `another`: the last one was dead."""
        if not self.endpoints:
            return ""
        self._forget(now)
        stuck = self.clients.pop(client, None)
        endpoint = stuck.endpoint if stuck and not another else self._turn()
        if self.affinity:
            self.clients[client] = Stuck(endpoint, now)
        return endpoint

    def _turn(self) -> str:
        endpoint = self.endpoints[self.turn % len(self.endpoints)]
        self.turn = (self.turn + 1) % len(self.endpoints)
        return endpoint

    def _forget(self, now: float) -> None:
        while self.clients and next(iter(self.clients.values())).used + self.affinity <= now:
            self.clients.popitem(last=False)


# --- TCP --------------------------------------------------------------------------------------------------------------


class Side(asyncio.Protocol):
    """One of the two connections of a client; what it hears it says to its `peer`."""

    def __init__(self) -> None:
        self.transport: Transport | None = None
        self.peer: Side | None = None
        self.heard_all = False

    def connection_made(self, transport: BaseTransport) -> None:
        self.transport = cast("Transport", transport)
        self.transport.set_write_buffer_limits(BUFFER)
        self.transport.pause_reading()  # until there is somebody to tell

    def join(self, peer: "Side") -> None:
        self.peer, peer.peer = peer, self
        for side in (self, peer):
            if side.transport is not None and not side.transport.is_closing():
                side.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.write(data)

    def eof_received(self) -> bool:
        """The end of this direction; with the end of both, of the connection."""
        self.heard_all = True
        if self.peer is None or self.peer.transport is None:
            return False
        if self.peer.heard_all:
            self.peer.transport.close()
            return False
        self.peer.transport.write_eof()
        return True

    def pause_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None and not self.peer.transport.is_closing():
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None and not self.peer.transport.is_closing():
            self.peer.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if self.peer is not None and self.peer.transport is not None:
            if error is None:
                self.peer.transport.close()
            else:
                self.peer.transport.abort()


class Client(Side):
    """The connection a client opened."""

    def __init__(self, served: "Tcp") -> None:
        super().__init__()
        self.served = served
        self.dialling: asyncio.Task[None] | None = None

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        self.dialling = asyncio.get_running_loop().create_task(self._dial(transport))

    async def _dial(self, transport: BaseTransport) -> None:
        side = await dialled(self.served, transport.get_extra_info("peername")[0])
        if side is None:
            transport.close()
        elif transport.is_closing():
            cast("Transport", side.transport).abort()
        else:
            self.join(side)


async def dialled(served: "Tcp", client: str) -> Side | None:
    """A connection to an endpoint, the next one where one does not take it in time; None after the last try."""
    loop = asyncio.get_running_loop()
    for number, patience in enumerate(DIAL):
        endpoint = served.balancer.next(client, monotonic(), another=number > 0)
        if not endpoint:
            return None
        try:
            async with asyncio.timeout(patience):
                _, side = await loop.create_connection(Side, *address(endpoint))
        except OSError as error:  # a TimeoutError is one
            log(f"{served.name}: {endpoint} does not take a connection: {error or f'{patience:g} s are over'}")
        else:
            return side
    return None


def address(endpoint: str) -> tuple[str, int]:
    """`ip:port` in two, `[ip]:port` too."""
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)


class Tcp:
    """A listening socket of a Service port."""

    def __init__(self, name: str, balancer: Balancer) -> None:
        self.name = name
        self.balancer = balancer
        self.server: asyncio.Server | None = None

    async def open(self, port: int) -> None:
        """Raises OSError."""
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(lambda: Client(self), ANYWHERE, port, backlog=BACKLOG)

    def follow(self) -> None:
        """Connections stay where they are."""

    def close(self) -> None:
        if self.server is not None:
            self.server.close()  # its connections live on


# --- UDP --------------------------------------------------------------------------------------------------------------


class Talk:
    """A UDP client's socket to its endpoint. `key` is the client, and the address of this node that it asked."""

    __slots__ = ("endpoint", "key", "owner", "sock", "used")

    def __init__(self, owner: "Udp", key: tuple[str, int, bytes], endpoint: str, sock: socket.socket) -> None:
        self.owner = owner
        self.key = key
        self.endpoint = endpoint
        self.sock = sock
        self.used = monotonic()


class Talks:
    """All UDP clients of the process, the one that was silent longest first."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self.loop = loop
        self.idle = Config().udp_idle
        self.all: OrderedDict[tuple[object, tuple[str, int, bytes]], Talk] = OrderedDict()
        self.timer: asyncio.TimerHandle | None = None

    def add(self, talk: Talk) -> None:
        while len(self.all) >= CLIENTS:
            self.end(next(iter(self.all.values())))
        self.all[talk.owner, talk.key] = talk
        self.loop.add_reader(talk.sock, talk.owner.answer, talk)
        if self.timer is None:
            self.timer = self.loop.call_later(self.idle, self.expire)

    def touch(self, talk: Talk) -> None:
        talk.used = monotonic()
        self.all.move_to_end((talk.owner, talk.key))

    def end(self, talk: Talk) -> None:
        if self.all.pop((talk.owner, talk.key), None) is talk:
            self.loop.remove_reader(talk.sock)
            talk.sock.close()

    def expire(self) -> None:
        now = monotonic()
        while self.all and (first := next(iter(self.all.values()))).used + self.idle <= now:
            self.end(first)
        self.timer = self.loop.call_later(first.used + self.idle - now, self.expire) if self.all else None


class Udp:
    """The socket of a Service port that datagrams come to."""

    def __init__(self, name: str, balancer: Balancer, talks: Talks) -> None:
        self.name = name
        self.balancer = balancer
        self.talks = talks
        self.sock: socket.socket | None = None

    async def open(self, port: int) -> None:
        """Raises OSError."""
        self.sock = bound("udp", port)
        self.sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        asyncio.get_running_loop().add_reader(self.sock, self.read, self.sock)

    def follow(self) -> None:
        """Clients of endpoints that are gone begin anew."""
        for talk in self._own():
            if talk.endpoint not in self.balancer.endpoints:
                self.talks.end(talk)

    def close(self) -> None:
        for talk in self._own():
            self.talks.end(talk)
        if self.sock is not None:
            asyncio.get_running_loop().remove_reader(self.sock)
            self.sock.close()

    def _own(self) -> list[Talk]:
        return [talk for talk in self.talks.all.values() if talk.owner is self]

    def read(self, sock: socket.socket) -> None:
        for _ in range(AT_ONCE):
            try:
                data, ancillary, _, (host, port) = sock.recvmsg(LARGEST, 64)
            except BlockingIOError:
                return
            except OSError:
                continue  # what an earlier answer met; it has been taken from the queue
            talk = self._talk((host, port, asked_at(ancillary)))
            if talk is not None:
                self._pass_on(talk, data)

    def _talk(self, key: tuple[str, int, bytes]) -> Talk | None:
        found = self.talks.all.get((self, key))
        if found is not None:
            return found
        endpoint = self.balancer.next(key[0], monotonic())
        if not endpoint:
            return None
        try:
            sock = _connected(endpoint)
        except OSError as error:
            log(f"{self.name}: {endpoint}: {error}")
            return None
        talk = Talk(self, key, endpoint, sock)
        self.talks.add(talk)
        return talk

    def _pass_on(self, talk: Talk, data: bytes) -> None:
        self.talks.touch(talk)
        try:
            talk.sock.send(data)
        except BlockingIOError:
            return  # a full buffer: lost, as datagrams are
        except OSError:
            self.talks.end(talk)

    def answer(self, talk: Talk) -> None:
        """What the endpoint says goes to the client, from the address that the client asked."""
        for _ in range(AT_ONCE):
            try:
                data = talk.sock.recv(LARGEST)
            except BlockingIOError:
                return
            except OSError:  # the endpoint does not listen: the client's next datagram goes to the next one
                self.talks.end(talk)
                return
            self.talks.touch(talk)
            host, port, local = talk.key
            with contextlib.suppress(OSError):
                source = [(socket.IPPROTO_IP, IP_PKTINFO, struct.pack("I4s4s", 0, local, b"\0\0\0\0"))]
                cast("socket.socket", self.sock).sendmsg([data], source, 0, (host, port))


def _connected(endpoint: str) -> socket.socket:
    """Raises OSError."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.connect(address(endpoint))
    except OSError:
        sock.close()
        raise
    return sock


def asked_at(ancillary: list[tuple[int, int, bytes]]) -> bytes:
    """The address a datagram was sent to: an answer from another one would not be taken for one."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
            return data[4:8]
    return b"\0\0\0\0"


# --- all of them ------------------------------------------------------------------------------------------------------


def bound(protocol: str, port: int) -> socket.socket:
    """A socket on every address of the node; one of TCP listens. Raises OSError."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    sock = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
    try:
        if protocol == "tcp":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((ANYWHERE, port))
        if protocol == "tcp":
            sock.listen()
    except OSError:
        sock.close()
        raise
    return sock


class Proxy:
    """What is open, and for whom."""

    def __init__(self) -> None:
        self.talks = Talks(asyncio.get_running_loop())
        self.balancers: dict[tuple[str, str], Balancer] = {}
        self.served: dict[Place, Tcp | Udp] = {}
        self.held: dict[Place, socket.socket] = {}
        self.reloading = asyncio.Lock()

    async def reload(self, path: Path) -> str:
        """`ok` once every socket is as the file says, or what is wrong with the file."""
        async with self.reloading:
            try:
                config = read(path)
            except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
                log(f"{path}: {error}")
                return f"error: {error}"
            await self.use(config)
            return "ok"

    async def use(self, config: Config) -> None:
        """Opens what is new, closes what is gone; what stays keeps its socket, with another list of endpoints."""
        self.talks.idle = config.udp_idle
        wanted = {Place(item.protocol, item.port): item for item in config.services}
        for place in self.served.keys() - wanted.keys():
            self.served.pop(place).close()
        known = {(item.name, item.protocol) for item in config.services}
        self.balancers = {key: balancer for key, balancer in self.balancers.items() if key in known}
        for place, item in wanted.items():
            await self._serve(place, item)
        self._hold({Place(item.protocol, item.node_port) for item in config.services if item.node_port})

    async def _serve(self, place: Place, item: Service) -> None:
        balancer = self.balancers.setdefault((item.name, item.protocol), Balancer())
        balancer.use(item.endpoints, item.affinity)
        there = self.served.get(place)
        if there is not None:
            there.name, there.balancer = item.name, balancer
            there.follow()
            return
        opened = Tcp(item.name, balancer) if place.protocol == "tcp" else Udp(item.name, balancer, self.talks)
        try:
            await opened.open(place.port)
        except OSError as error:
            log(f"{item.name}: {place.protocol} {place.port}: {error}; tried again at the next reload")
        else:
            self.served[place] = opened

    def _hold(self, wanted: set[Place]) -> None:
        """Node ports, bound and listening as upstream has them: nothing else on the node can take one."""
        for place in self.held.keys() - wanted:
            self.held.pop(place).close()
        for place in sorted(wanted - self.held.keys()):
            try:
                self.held[place] = bound(*place)
            except OSError as error:
                log(f"node port {place.protocol} {place.port}: {error}; it works, and somebody else has it")


async def run(path: Path) -> int:
    """Serves until SIGTERM; 1 where the file cannot be read at the start."""
    proxy = Proxy()
    await lines.take_reloads(path, lambda: proxy.reload(path))
    if await proxy.reload(path) != "ok":
        return 1
    await start.until_told(lambda: proxy.reload(path))
    return 0


if __name__ == "__main__":
    start.with_config(run)
