"""The userspace proxy process over loopback: whom it picks, and that bytes come through as they were sent."""

import asyncio
import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from nsnet.programs.userproxy import Balancer, Config, Service, Talks, Udp

HOST = "127.0.0.1"


# --- who is next ------------------------------------------------------------------------------------------------------


def test_by_turns() -> None:
    balancer = Balancer()
    balancer.use(("a", "b", "c"), 0)
    assert [balancer.next("x", 0.0) for _ in range(4)] == ["a", "b", "c", "a"]
    balancer.use(("c", "a", "b"), 0)  # the same set goes on where it was
    assert balancer.next("x", 0.0) == "a"
    balancer.use(("d", "e"), 0)
    assert balancer.next("x", 0.0) == "d"
    balancer.use((), 0)
    assert balancer.next("x", 0.0) == ""


AFFINITY = [
    # seconds between connections of one client, and whom it gets
    ((0, 5, 9.9, 9.9), "aaaa"),  # each connection starts the time anew
    ((0, 10), "ab"),  # the time is over
    ((0, 25, 1, 11), "abbc"),
]


@pytest.mark.parametrize(("gaps", "expected"), AFFINITY)
def test_affinity_of_ten_seconds(gaps: tuple[float, ...], expected: str) -> None:
    balancer = Balancer()
    balancer.use(("a", "b", "c"), 10)
    now, got = 100.0, ""
    for gap in gaps:
        now += gap
        got += balancer.next("client", now)
    assert got == expected


def test_affinity_is_per_client_and_ends_with_its_endpoint() -> None:
    balancer = Balancer()
    balancer.use(("a", "b"), 60)
    assert [balancer.next(client, 0.0) for client in "xyx"] == ["a", "b", "a"]
    balancer.use(("b", "c"), 60)
    assert [balancer.next(client, 1.0) for client in "yx"] == ["b", "b"]  # y stays, x takes its turn
    assert balancer.next("y", 1.0, another=True) == "c"  # b did not take the connection
    assert balancer.next("y", 1.0) == "c"


def test_forgotten_clients_take_no_room() -> None:
    balancer = Balancer()
    balancer.use(("a",), 10)
    for number in range(1000):
        balancer.next(f"client-{number}", float(number))
    assert len(balancer.clients) == 10


# --- the process ------------------------------------------------------------------------------------------------------


def free(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind((HOST, 0))
        port: int = sock.getsockname()[1]
        return port


class Proxy:
    """The program with its file; `reload` says what it answered."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.idle = 0.25
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *services: Service) -> None:
        self.write(*services)
        reading, writing = os.pipe()
        env = {**os.environ, "NSNET_READY_FD": str(writing)}
        words = (sys.executable, "-m", "nsnet.programs.userproxy", str(self.path))
        self.process = subprocess.Popen(words, env=env, pass_fds=(writing,), stderr=subprocess.DEVNULL)
        os.close(writing)
        with os.fdopen(reading, "rb") as ready:
            assert ready.read() == b"\n"  # to its end: the descriptor is closed

    def write(self, *services: Service) -> None:
        self.path.write_bytes(msgspec.json.encode(Config(self.idle, services)))

    def reload(self, *services: Service) -> str:
        self.write(*services)
        return self.told()

    def told(self) -> str:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{self.path}.sock")
            client.sendall(b"reload\n")
            return client.makefile().readline().strip()

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            assert self.process.wait(10) == 0


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    found = Proxy(tmp_path / "userproxy.json")
    yield found
    found.stop()


Handler = Callable[[socket.socket], None]


@contextlib.contextmanager
def backend(handle: Handler) -> Iterator[str]:
    """A TCP server; gives its `ip:port`."""
    listener = socket.create_server((HOST, 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=_handled, args=(handle, client), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"{HOST}:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _handled(handle: Handler, client: socket.socket) -> None:
    with client, contextlib.suppress(OSError):
        handle(client)


def says(name: bytes) -> Handler:
    """Its name, and then all it hears."""

    def handle(client: socket.socket) -> None:
        client.sendall(name)
        while data := client.recv(65536):
            client.sendall(data)

    return handle


def counts(client: socket.socket) -> None:
    """Hears everything, then says how much that was: the answer comes after the end of the question."""
    total = 0
    while data := client.recv(65536):
        total += len(data)
    client.sendall(str(total).encode())


def connect(port: int) -> socket.socket:
    sock = socket.create_connection((HOST, port), timeout=20)
    sock.settimeout(20)
    return sock


def everything(sock: socket.socket) -> bytes:
    with contextlib.suppress(ConnectionResetError):
        return b"".join(iter(lambda: sock.recv(65536), b""))
    return b""


def first(port: int) -> bytes:
    with connect(port) as sock:
        return sock.recv(1)


def test_connections_go_round(proxy: Proxy) -> None:
    port = free()
    with backend(says(b"a")) as a, backend(says(b"b")) as b:
        proxy.start(Service("t/web", "tcp", port, endpoints=(a, b)))
        assert b"".join(first(port) for _ in range(4)) == b"abab"


def test_the_end_of_one_direction_leaves_the_other_open(proxy: Proxy) -> None:
    port = free()
    with backend(counts) as end:
        proxy.start(Service("t/web", "tcp", port, endpoints=(end,)))
        with connect(port) as sock:
            sock.sendall(b"x" * 3_000_000)
            sock.shutdown(socket.SHUT_WR)
            assert everything(sock) == b"3000000"


def test_bytes_come_back_as_they_were(proxy: Proxy) -> None:
    port = free()
    sent = os.urandom(1 << 20)
    with backend(says(b"")) as end:
        proxy.start(Service("t/web", "tcp", port, endpoints=(end,)))
        with connect(port) as sock:
            writer = threading.Thread(target=_sent, args=(sock, sent))
            writer.start()
            assert everything(sock) == sent
            writer.join()


def _sent(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def test_who_reads_slowly_slows_down_who_sends(proxy: Proxy) -> None:
    """The process holds only so much: a sender of 64 MiB to somebody who does not read is stopped on the way."""
    port, go = free(), threading.Event()

    def patient(client: socket.socket) -> None:
        go.wait(30)
        counts(client)

    with backend(patient) as end:
        proxy.start(Service("t/web", "tcp", port, endpoints=(end,)))
        with connect(port) as sock:
            sock.setblocking(False)
            sent = stuffed(sock)
            assert sent < 32 << 20
            go.set()
            sock.settimeout(20)
            sock.shutdown(socket.SHUT_WR)
            assert everything(sock) == str(sent).encode()


def stuffed(sock: socket.socket) -> int:
    """Sends until nobody takes anything for half a second; how many bytes went."""
    sent, poll = 0, select.poll()
    poll.register(sock, select.POLLOUT)
    while sent < 64 << 20 and poll.poll(500):
        with contextlib.suppress(BlockingIOError):
            sent += sock.send(b"x" * 65536)
    return sent


def test_many_connections_at_once(proxy: Proxy) -> None:
    port = free()
    with backend(says(b"")) as end, contextlib.ExitStack() as stack:
        proxy.start(Service("t/web", "tcp", port, endpoints=(end,)))
        socks = [stack.enter_context(connect(port)) for _ in range(300)]
        for number, sock in enumerate(socks):
            sock.sendall(b"%d" % number)
        assert [sock.recv(16) for sock in socks] == [b"%d" % number for number in range(300)]
        assert proxy.process is not None
        assert len(list(Path(f"/proc/{proxy.process.pid}/task").iterdir())) == 1  # no thread per connection


def test_a_dead_endpoint_is_passed_over(proxy: Proxy) -> None:
    port = free()
    with backend(says(b"b")) as b:
        proxy.start(Service("t/web", "tcp", port, endpoints=(f"{HOST}:{free()}", b)))
        assert [first(port) for _ in range(3)] == [b"b"] * 3


@pytest.mark.parametrize("endpoints", [(), ("dead",)], ids=["none", "dead"])
def test_without_endpoint_the_connection_is_taken_and_closed(proxy: Proxy, endpoints: tuple[str, ...]) -> None:
    port = free()
    proxy.start(Service("t/web", "tcp", port, endpoints=tuple(f"{HOST}:{free()}" for _ in endpoints)))
    with connect(port) as sock:
        assert everything(sock) == b""


def test_affinity(proxy: Proxy) -> None:
    port = free()
    with backend(says(b"a")) as a, backend(says(b"b")) as b:
        proxy.start(Service("t/web", "tcp", port, affinity=600, endpoints=(a, b)))
        assert b"".join(first(port) for _ in range(4)) == b"aaaa"


def test_what_is_open_survives_the_change_of_others_and_its_own_end(proxy: Proxy) -> None:
    web, other, public = free(), free(), free()
    with backend(says(b"a")) as a, backend(says(b"b")) as b:
        proxy.start(Service("t/web", "tcp", web, endpoints=(a,)))
        with connect(web) as sock:
            assert sock.recv(1) == b"a"
            assert proxy.reload(
                Service("t/web", "tcp", web, public, endpoints=(b,)), Service("t/new", "tcp", other, endpoints=(a,))
            ) == "ok"  # fmt: skip
            assert (first(web), first(other)) == (b"b", b"a")
            with socket.socket() as taker, pytest.raises(OSError, match="in use"):
                taker.bind((HOST, public))  # its node port is held
            assert proxy.reload(Service("t/new", "tcp", other, endpoints=(a,))) == "ok"
            with pytest.raises(ConnectionRefusedError):
                connect(web)
            sock.sendall(b"still here")
            assert sock.recv(16) == b"still here"


def test_a_file_that_cannot_be_read_changes_nothing(proxy: Proxy) -> None:
    port = free()
    with backend(says(b"a")) as a:
        proxy.start(Service("t/web", "tcp", port, endpoints=(a,)))
        proxy.path.write_text('{"services": [{"name": 1}]}')
        assert proxy.told().startswith("error: ")
        assert first(port) == b"a"


def test_a_port_that_is_taken_is_tried_again(proxy: Proxy) -> None:
    with backend(says(b"a")) as a, socket.create_server((HOST, 0)) as taker:
        service = Service("t/web", "tcp", taker.getsockname()[1], endpoints=(a,))
        proxy.start(service)
        taker.close()
        assert proxy.reload(service) == "ok"
        assert first(service.port) == b"a"


# --- UDP --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def echo(name: bytes) -> Iterator[str]:
    """A UDP server that says its name, the client's port and what it heard."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((HOST, 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                data, client = sock.recvfrom(65536)
                sock.sendto(b"%s %d %s" % (name, client[1], data), client)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"{HOST}:{sock.getsockname()[1]}"
    finally:
        sock.close()


def datagrams(to: tuple[str, int]) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(10)
    sock.connect(to)
    return sock


def said(sock: socket.socket, word: bytes) -> list[bytes]:
    sock.send(word)
    return sock.recv(65536).split()


def test_a_client_keeps_its_endpoint_while_it_talks(proxy: Proxy) -> None:
    proxy.idle = 60.0
    port = free(socket.SOCK_DGRAM)
    with echo(b"a") as a, echo(b"b") as b:
        proxy.start(Service("t/dns", "udp", port, endpoints=(a, b)))
        with datagrams((HOST, port)) as one, datagrams((HOST, port)) as two:
            names = [said(sock, b"x")[:2] for sock in (one, two, one, two)]
            assert [name for name, _ in names] == [b"a", b"b", b"a", b"b"]
            assert names[0] == names[2]  # the same socket to the endpoint


def test_after_a_silence_a_client_is_new(proxy: Proxy) -> None:
    port = free(socket.SOCK_DGRAM)
    with echo(b"a") as a, echo(b"b") as b:
        proxy.start(Service("t/dns", "udp", port, endpoints=(a, b)))
        with datagrams((HOST, port)) as sock:
            quiet = descriptors(proxy)
            before = said(sock, b"x")[0]
            await_silence(proxy, quiet)
            after = said(sock, b"x")[0]
    assert (before, after) == (b"a", b"b")


def descriptors(proxy: Proxy) -> int:
    assert proxy.process is not None
    return len(list(Path(f"/proc/{proxy.process.pid}/fd").iterdir()))


def await_silence(proxy: Proxy, quiet: int) -> None:
    """Until the process has no socket to an endpoint any more; a pipe that nobody writes to is the clock."""
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing, "w"):
        for _ in range(200):
            if descriptors(proxy) == quiet:
                return
            select.select([reading], [], [], 0.05)
    raise AssertionError("the client is never forgotten")


def test_the_answer_comes_from_the_address_that_was_asked(proxy: Proxy) -> None:
    """A connected socket takes no other; 127.0.0.2 is as much this host's as 127.0.0.1."""
    port = free(socket.SOCK_DGRAM)
    with echo(b"a") as a:
        proxy.start(Service("t/dns", "udp", port, endpoints=(a,)))
        with datagrams(("127.0.0.2", port)) as sock:
            assert said(sock, b"hello")[2] == b"hello"


def test_a_datagram_of_any_size_comes_through(proxy: Proxy) -> None:
    port = free(socket.SOCK_DGRAM)
    with echo(b"a") as a:
        proxy.start(Service("t/dns", "udp", port, endpoints=(a,)))
        with datagrams((HOST, port)) as sock:
            assert len(said(sock, b"x" * 60_000)[2]) == 60_000


def test_a_client_of_an_endpoint_that_goes_moves_on(proxy: Proxy) -> None:
    proxy.idle = 60.0
    port = free(socket.SOCK_DGRAM)
    with echo(b"a") as a, echo(b"b") as b:
        proxy.start(Service("t/dns", "udp", port, endpoints=(a,)))
        with datagrams((HOST, port)) as sock:
            assert said(sock, b"x")[0] == b"a"
            assert proxy.reload(Service("t/dns", "udp", port, endpoints=(b,))) == "ok"
            assert said(sock, b"x")[0] == b"b"


def test_a_socket_that_cannot_be_connected_is_closed() -> None:
    """A connect to the broadcast address is refused by our own kernel; a socket left open is an error here."""

    async def talk() -> object:
        balancer = Balancer()
        balancer.use(("255.255.255.255:9",), 0)
        return Udp("t/dns", balancer, Talks(asyncio.get_running_loop()))._talk((HOST, 1, b""))

    assert asyncio.run(talk()) is None
