"""The pod server: one process per cluster that stands in for every container.

A socket belongs for ever to the namespace it was opened in, so one process holds the listening sockets of all pods: it
enters each pod's namespace only to open them (`netns.inside`). What is said on them is `netexec`'s business.

One thread, one epoll, non-blocking sockets, no asyncio: a connection whose request is there when it is accepted (as a
probe's is) costs accept, recv, send and close, and never enters the epoll set. Bounds, so that no client can hurt
the others: CONNECTIONS open at once (then the oldest goes), CHUNK bytes read at a time, nothing read while an answer
waits to be taken, and DEADLINE seconds from the end of one request to the end of the next, however fast it trickles.

    python -m nsnet.programs.podserver CONFIG.json

CONFIG is {"pods": [{"netns", "namespace", "pod", "node", "ip", "hostname", "tcp": [...], "udp": [...]}]}. A client
of the unix socket CONFIG.sock that sends a line `reload` gets a line `ok` once the file has been read again and its
sockets are open (or `error: ...` and all stays as it is, if the file cannot be read); SIGHUP does the same. A reload
keeps every socket that is still wanted, with its connections. One that cannot be opened is tried again at the next.
"""

import contextlib
import errno
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec

from nsnet.kernel.netns import inside
from nsnet.programs import plain
from nsnet.programs.netexec import Conversation, Served, datagram
from nsnet.programs.plain import ANY, ANY6, Place, all_descriptors, beside, inode_of, tell_ready

CONNECTIONS = 2048
CHUNK = 4096
DEADLINE = 60.0
BACKLOG = 1024
AT_ONCE = 64  # connections or datagrams taken from one socket before the others get their turn
NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
IP_PKTINFO = 8  # not in Python's socket module before 3.14
log = partial(plain.log, "podserver")


class Pod(msgspec.Struct, frozen=True):
    netns: str
    namespace: str
    pod: str
    node: str
    ip: str
    hostname: str
    tcp: tuple[int, ...] = ()
    udp: tuple[int, ...] = ()
    ips: tuple[str, ...] = ()  # every address, where one is IPv6; else `ip` is the only one

    @property
    def everywhere(self) -> tuple[str, ...]:
        """The address that stands for all, per family it has."""
        return tuple(dict.fromkeys(ANY6 if ":" in ip else ANY for ip in self.ips or (self.ip,)))


class Config(msgspec.Struct, frozen=True):
    pods: tuple[Pod, ...] = ()


def wanted(config: Config, inode: Callable[[str], int]) -> dict[Place, Served]:
    """The sockets that the configuration asks for. Where two pods of one namespace ask for a port, the first has it."""
    places: dict[Place, Served] = {}
    for pod in config.pods:
        number = inode(pod.netns)
        for protocol, port in (*(("TCP", port) for port in pod.tcp), *(("UDP", port) for port in pod.udp)):
            for address in pod.everywhere:
                served = Served(pod.namespace, pod.pod, pod.node, pod.ip, pod.hostname, port)
                if places.setdefault(Place(pod.netns, number, protocol, port, address), served) is not served:
                    log(f"{pod.namespace}/{pod.pod}: {protocol} {port} is taken by another pod of {pod.netns}")
    return places


def open_socket(protocol: str, port: int, address: str = ANY) -> socket.socket:
    """A socket that serves `port` on every address of a family, in the namespace the process is in. Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM if protocol == "TCP" else socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if protocol == "TCP":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        elif family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has a socket of its own
        sock.bind((address, port))
        if protocol == "TCP":
            sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


class Listener:
    """An open socket of a pod. `served` changes when another pod takes the same place."""

    __slots__ = ("served", "sock")

    def __init__(self, sock: socket.socket, served: Served) -> None:
        self.sock = sock
        self.served = served


class Connection:
    """A TCP connection that could not be answered at once."""

    __slots__ = ("out", "since", "sock", "talk", "watched")

    def __init__(self, sock: socket.socket, talk: Conversation) -> None:
        self.sock = sock
        self.talk = talk
        self.out = b""  # answers that wait to be taken
        self.since = monotonic()  # the end of the last request
        self.watched = 0  # the epoll events asked for; 0: not in the set


class Server:
    """The loop and its sockets."""

    def __init__(self, most: int) -> None:
        self.most = most  # sockets of pods: connections need descriptors, too
        self.epoll = select.epoll()
        self.handlers: dict[int, Callable[[], None]] = {}
        self.listeners: dict[Place, Listener] = {}
        self.connections: dict[int, Connection] = {}  # in order of `since`

    # --- sockets of pods ---

    def reload(self, config: Config) -> None:
        """Opens what is new, closes what is gone, keeps what is unchanged with its connections."""
        places = wanted(config, inode_of)
        for place in self.listeners.keys() - places.keys():
            self.drop(place)
        for place, served in places.items():
            if place in self.listeners:
                self.listeners[place].served = served
        missing = sorted(places.keys() - self.listeners.keys())
        if len(places) > self.most:
            log(f"{len(places)} ports are wanted, {self.most} fit: the last {len(places) - self.most} are not served")
            del missing[max(0, self.most - len(self.listeners)) :]
        for netns, group in groupby(missing, key=lambda place: place.netns):
            self.open(netns, {place: places[place] for place in group})

    def drop(self, place: Place) -> None:
        listener = self.listeners.pop(place)
        self.handlers.pop(listener.sock.fileno())
        listener.sock.close()

    def open(self, netns: str, places: dict[Place, Served]) -> None:
        try:
            with inside(netns):
                opened = list(_open_all(places))
        except OSError as error:
            log(f"{netns}: {error}; tried again at the next reload")
            return
        for place, sock in opened:
            self.listen(place, Listener(sock, places[place]))

    def listen(self, place: Place, listener: Listener) -> None:
        self.listeners[place] = listener
        take = self.accept if place.protocol == "TCP" else self.answer_datagrams
        self.watch(listener.sock.fileno(), lambda: take(listener))

    def watch(self, fd: int, handler: Callable[[], None]) -> None:
        self.handlers[fd] = handler
        self.epoll.register(fd, select.EPOLLIN)

    # --- TCP ---

    def accept(self, listener: Listener) -> None:
        for _ in range(AT_ONCE):
            try:
                sock, client = listener.sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in NO_ROOM:
                    self.evict(1)
                return
            sock.setblocking(False)
            self.converse(Connection(sock, Conversation(listener.served, _text(client))))

    def converse(self, connection: Connection) -> None:
        """Reads what is there, answers it, and waits for more if the conversation goes on."""
        try:
            data = connection.sock.recv(CHUNK)
        except BlockingIOError:
            self.wait(connection, select.EPOLLIN)
            return
        except OSError:
            self.hang_up(connection)
            return
        if not data:
            self.hang_up(connection)
            return
        connection.out += connection.talk.receive(data)
        self.send(connection)

    def send(self, connection: Connection) -> None:
        talk = connection.talk
        if connection.out:
            try:
                sent = connection.sock.send(connection.out)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.hang_up(connection)
                return
            connection.out = connection.out[sent:]
        if connection.out:
            self.wait(connection, select.EPOLLOUT)
        elif talk.closing and talk.idle:
            self.hang_up(connection)
        elif talk.closing:
            self.drain(connection)
        else:
            if talk.idle:
                self.refresh(connection)
            self.wait(connection, select.EPOLLIN)

    def drain(self, connection: Connection) -> None:
        """After a refusal the client may still be sending: closing now would reset it before it has read why."""
        with contextlib.suppress(OSError):
            connection.sock.shutdown(socket.SHUT_WR)
        self.wait(connection, select.EPOLLIN)

    def ready(self, fd: int) -> None:
        connection = self.connections[fd]
        if connection.watched == select.EPOLLOUT:
            self.send(connection)
        else:
            self.converse(connection)

    def wait(self, connection: Connection, events: int) -> None:
        fd = connection.sock.fileno()
        if not connection.watched:
            self.evict(len(self.connections) + 1 - CONNECTIONS)
            self.connections[fd] = connection
            self.epoll.register(fd, events)
        elif connection.watched != events:
            self.epoll.modify(fd, events)
        connection.watched = events

    def refresh(self, connection: Connection) -> None:
        """A request is done: the next has DEADLINE seconds from now, and others are older."""
        connection.since = monotonic()
        if connection.watched:
            fd = connection.sock.fileno()
            self.connections[fd] = self.connections.pop(fd)

    def hang_up(self, connection: Connection) -> None:
        if connection.watched:
            del self.connections[connection.sock.fileno()]
        connection.sock.close()

    def evict(self, count: int) -> None:
        """Hangs up on the `count` oldest."""
        for _ in range(min(count, len(self.connections))):
            self.hang_up(next(iter(self.connections.values())))

    def expire(self) -> None:
        limit = monotonic() - DEADLINE
        while self.connections and next(iter(self.connections.values())).since < limit:
            self.evict(1)

    # --- UDP ---

    def answer_datagrams(self, listener: Listener) -> None:
        for _ in range(AT_ONCE):
            try:
                data, ancillary, _, client = listener.sock.recvmsg(65535, 64)
            except BlockingIOError:
                return
            except OSError:
                continue  # what an earlier answer met; it has been taken from the queue
            answer = datagram(listener.served, _text(client), data)
            if answer:
                with contextlib.suppress(OSError):
                    listener.sock.sendmsg([answer], _from_where_it_came(ancillary), 0, client)

    # --- the loop ---

    def run(self) -> None:
        """Serves until a handler raises SystemExit."""
        while True:
            for fd, _ in self.epoll.poll(1.0):
                handler = self.handlers.get(fd)
                if handler is not None:
                    handler()
                elif fd in self.connections:
                    self.ready(fd)
            self.expire()


def _open_all(places: dict[Place, Served]) -> Iterator[tuple[Place, socket.socket]]:
    for place in places:
        try:
            yield place, open_socket(place.protocol, place.port, place.address)
        except OSError as error:
            log(f"{place.netns}: {place.protocol} {place.port}: {error}; tried again at the next reload")


def _from_where_it_came(ancillary: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    """Answer from the address that was asked: a node has several, and the client's socket knows only that one."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
            _, local, _ = struct.unpack("I4s4s", data)
            return [(level, kind, struct.pack("I4s4s", 0, local, b"\0\0\0\0"))]
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            return [(level, kind, data[:16] + b"\0\0\0\0")]
    return []


def _text(client: Sequence[Any]) -> str:
    """A socket address as `ip:port`, or `[ip]:port`; an IPv6 one has two further fields."""
    host, port, *_ = client
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Control:
    """Who asks for a reload: the unix socket beside the configuration, and SIGHUP."""

    def __init__(self, server: Server, config: Path) -> None:
        self.server = server
        self.config = config
        self.sock = beside(config)
        self.sock.listen(16)
        server.watch(self.sock.fileno(), self.accept)

    def reload(self) -> str:
        """`ok`, or what is wrong with the file."""
        try:
            config = msgspec.json.decode(self.config.read_bytes(), type=Config)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            log(f"{self.config}: {error}")
            return f"error: {error}"
        self.server.reload(config)
        return "ok"

    def accept(self) -> None:
        try:
            client, _ = self.sock.accept()
        except OSError:
            return
        client.setblocking(False)
        self.server.watch(client.fileno(), lambda: self.told(client))

    def told(self, client: socket.socket) -> None:
        try:
            said = client.recv(64)
            if said == b"reload\n":
                client.send(f"{self.reload()}\n".encode())
                return
        except OSError:
            pass
        del self.server.handlers[client.fileno()]
        client.close()


def on_signals(server: Server, control: Control) -> None:
    """SIGHUP reloads, SIGTERM and SIGINT end; both inside the loop, between two events."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)

    def handle() -> None:
        numbers = os.read(reader, 64)
        if signal.SIGTERM in numbers or signal.SIGINT in numbers:
            sys.exit(0)
        if signal.SIGHUP in numbers:
            control.reload()

    server.watch(reader, handle)


def main() -> None:
    """Reads CONFIG, serves it until SIGTERM. Exit code 1 when CONFIG cannot be read at the start."""
    server = Server(all_descriptors() - CONNECTIONS - 64)
    control = Control(server, Path(sys.argv[1]))
    on_signals(server, control)
    if control.reload() != "ok":
        sys.exit(1)
    tell_ready()
    server.run()


if __name__ == "__main__":
    main()
