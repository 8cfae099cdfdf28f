"""The pod server over loopback sockets: netexec's protocol, whatever bytes come, and clients that mean no good."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsnet.programs import podserver
from nsnet.programs.netexec import MAX_HEAD, Conversation, Served, datagram
from nsnet.programs.plain import Place
from nsnet.programs.podserver import CHUNK, Config, Control, Listener, Pod, Server, wanted

WEB = Served("shop", "web-1", "node2", "10.244.2.5", "web-1", 80)
CLIENT = "10.244.1.2:4711"


def ask(*parts: bytes) -> tuple[bytes, bool]:
    """What the conversation says to these bytes, and whether it then hangs up."""
    talk = Conversation(WEB, CLIENT)
    return b"".join(talk.receive(part) for part in parts), talk.closing


def body(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/hostname", b"web-1"),
        ("/clientip", b"10.244.1.2:4711"),
        ("/echo?msg=hello", b"hello"),
        ("/echo?msg=gr%C3%BC%C3%9F+dich", "grüß dich".encode()),
        ("/echo", b""),
        ("/echo?" + "a=b&" * 200, b""),
        ("/healthz", b""),
        ("/serverport", b"80"),
    ],
)
def test_netexec_paths(path: str, says: bytes) -> None:
    answer, closing_ = ask(f"GET {path} HTTP/1.1\r\nHost: web\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert body(answer) == says
    assert not closing_


def test_any_other_path_says_who_was_asked_and_who_asked() -> None:
    answer, _ = ask(b"PUT /cart?id=7 HTTP/1.1\r\nHost: shop.example\r\nX-Id: 3\r\nContent-Length: 2\r\n\r\n{}")
    assert json.loads(body(answer)) == {
        "pod": "web-1",
        "namespace": "shop",
        "node": "node2",
        "hostname": "web-1",
        "ip": "10.244.2.5",
        "port": 80,
        "client": "10.244.1.2:4711",
        "method": "PUT",
        "path": "/cart?id=7",
        "host": "shop.example",
        "headers": {"Host": "shop.example", "X-Id": "3", "Content-Length": "2"},
    }
    assert body(answer).endswith(b"}\n")


@pytest.mark.parametrize("path", ["/shell?cmd=id", "/exit?code=0", "/upload"])
def test_what_could_do_harm_is_never_served(path: str) -> None:
    assert ask(f"POST {path} HTTP/1.1\r\nHost: web\r\n\r\n".encode())[0].startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (b"hostname\n", b"web-1"),
        (b"hostName", b"web-1"),
        (b"echo one two\n", b"one two"),
        (b"clientip", b"10.244.1.2:4711"),
        (b"serverport\r\n", b"80"),
        (b"exit 0\n", b""),
        (b"\xff\xfe\x00", b""),
        (b"", b""),
    ],
)
def test_udp_lines(said: bytes, answer: bytes) -> None:
    assert datagram(WEB, CLIENT, said) == answer


def test_udp_whoami_is_the_json_line() -> None:
    assert json.loads(datagram(WEB, CLIENT, b"whoami\n"))["client"] == CLIENT


@pytest.mark.parametrize(
    ("parts", "starts", "hangs_up"),
    [
        ([b"GET /hostname HTTP/1.0\r\n\r\n"], b"HTTP/1.1 200", True),
        ([b"GET /hostname HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"], b"HTTP/1.1 200", False),
        ([b"GET /hostname HTTP/1.1\r\nConnection: close\r\n\r\n"], b"HTTP/1.1 200", True),
        ([b"G", b"ET /host", b"name HTTP/1.1\r", b"\nHost: a\r\n", b"\r\n"], b"HTTP/1.1 200", False),
        ([b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"0\r\n\r\n"], b"HTTP/1.1 200", False),
        ([b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n"], b"HTTP/1.1 100", False),
        ([b"GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"], b"HTTP/1.1 200", True),
        ([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"], b"HTTP/1.1 400", True),
        ([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"], b"HTTP/1.1 400", True),
        ([b"hostname\n"], b"web-1\n", True),
        ([b"echo a b\r\n"], b"a b\n", True),
        ([b"sesame, open\n"], b"HTTP/1.1 400", True),
        ([b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200], b"HTTP/1.1 431", True),
        ([b"GET /", *[b"a" * CHUNK] * (MAX_HEAD // CHUNK + 2)], b"HTTP/1.1 431", True),
        ([b"GET / HTTP/1.1\r\na: ", *[b"a" * CHUNK] * (MAX_HEAD // CHUNK + 2)], b"HTTP/1.1 431", True),
        (
            [b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", *[b"a: b\r\n" * 99] * 40],
            b"HTTP/1.1 431",
            True,
        ),
    ],
)
def test_framing(parts: list[bytes], starts: bytes, hangs_up: bool) -> None:
    answer, closing_ = ask(*parts)
    assert answer.startswith(starts)
    assert closing_ == hangs_up


def test_head_says_the_length_and_no_more() -> None:
    answer, _ = ask(b"HEAD /hostname HTTP/1.1\r\nHost: web\r\n\r\n")
    assert b"Content-Length: 5\r\n" in answer
    assert body(answer) == b""


def test_pipelined_requests_are_answered_in_order_and_none_after_close() -> None:
    one = b"GET /echo?msg=%d HTTP/1.1\r\n%s\r\n"
    answer, closing_ = ask(one % (1, b"") + one % (2, b"Connection: close\r\n") + one % (3, b""))
    assert [part[-1:] for part in answer.split(b"HTTP/1.1 200 OK")[1:]] == [b"1", b"2"]
    assert closing_


def test_a_large_body_is_read_and_dropped() -> None:
    talk = Conversation(WEB, CLIENT)
    talk.receive(b"POST / HTTP/1.1\r\nContent-Length: 4096000\r\n\r\n")
    answers = [talk.receive(b"x" * CHUNK) for _ in range(1000)]
    assert not any(answers[:-1])
    assert answers[-1].startswith(b"HTTP/1.1 200")


PIECES = st.sampled_from(
    [
        *(
            b"GET ",
            b"HEAD ",
            b"/echo?msg=%zz",
            b" HTTP/1.1\r\n",
            b" HTTP/9.9\r\n",
            b"\r\n",
            b"\r\n\r\n",
            b"Host: a\r\n",
        ),
        *(
            b"Content-Length: 5\r\n",
            b"Content-Length: -1\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"ffffffffffffffffff\r\n",
        ),
        *(
            b"Connection: close\r\n",
            b"Expect: 100-continue\r\n",
            b"hostname\n",
            b"echo ",
            b"\0",
            b"\n",
            b": ",
            b"0\r\n\r\n",
        ),
    ]
)


@given(st.lists(st.one_of(PIECES, st.binary(max_size=40))))
def test_no_bytes_make_it_raise_or_go_on_after_a_refusal(parts: list[bytes]) -> None:
    talk = Conversation(WEB, CLIENT)
    for part in parts:
        was_closing = talk.closing
        answer = talk.receive(part)
        assert not (was_closing and answer)
        assert len(talk._headers) <= 101
    assert datagram(WEB, CLIENT, b"".join(parts)) is not None


# --- sockets ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[Server]:
    """A server on loopback: TCP and UDP on the port `served_port` tells."""
    made = Server(100)
    reader, writer = os.pipe()

    def end() -> None:
        raise SystemExit

    made.watch(reader, end)
    for protocol, kind in (("TCP", socket.SOCK_STREAM), ("UDP", socket.SOCK_DGRAM)):
        sock = socket.socket(socket.AF_INET, kind)
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
        if protocol == "TCP":
            sock.listen(podserver.BACKLOG)
        else:
            sock.setsockopt(socket.IPPROTO_IP, podserver.IP_PKTINFO, 1)
        made.listen(Place("pod", 1, protocol, 80), Listener(sock, WEB))

    def serve() -> None:
        with suppress(SystemExit):
            made.run()

    thread = threading.Thread(target=serve)
    thread.start()
    yield made
    os.write(writer, b".")
    thread.join()
    for connection in list(made.connections.values()):
        made.hang_up(connection)
    for place in list(made.listeners):
        made.drop(place)
    made.epoll.close()
    os.close(reader)
    os.close(writer)


def dial(server: Server, protocol: str = "TCP") -> socket.socket:
    address = server.listeners[Place("pod", 1, protocol, 80)].sock.getsockname()
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM if protocol == "TCP" else socket.SOCK_DGRAM)
    sock.settimeout(5)
    if protocol == "TCP":
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.connect(address)
    return sock


def whole(sock: socket.socket) -> bytes:
    """All until the server hangs up."""
    found = b""
    while data := sock.recv(65536):
        found += data
    return found


def test_tcp_answers_and_hangs_up_when_asked_to(server: Server) -> None:
    with closing(dial(server)) as sock:
        sock.send(b"GET /clientip HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
        assert body(whole(sock)).decode() == "{}:{}".format(*sock.getsockname())


def test_udp_answers_from_the_address_that_was_asked(server: Server) -> None:
    with closing(dial(server, "UDP")) as sock:
        sock.send(b"no such line\n")
        sock.send(b"hostname\n")
        assert sock.recv(100) == b"web-1"


def test_keep_alive_over_many_requests_in_pieces(server: Server) -> None:
    with closing(dial(server)) as sock:
        for number in range(20):
            for piece in (b"GET /echo?msg=%d HT" % number, b"TP/1.1\r\nHost: a\r\n", b"\r\n"):
                sock.send(piece)
            assert body(sock.recv(1000)) == b"%d" % number


def test_a_client_that_reads_nothing_is_not_read_either(server: Server) -> None:
    """10 MB of pipelined requests: the server stops reading when its answers are not taken, so the client blocks."""
    request = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n" * 1000
    with closing(dial(server)) as sock:
        sock.setblocking(False)
        sent = 0
        with suppress(BlockingIOError):
            while sent < 400 * len(request):
                sent += sock.send(request)
        assert sent < 400 * len(request)
        with closing(dial(server)) as other:  # others are served meanwhile
            other.send(b"GET /hostname HTTP/1.0\r\n\r\n")
            assert body(whole(other)) == b"web-1"


def test_a_refusal_arrives_although_the_client_is_still_sending(server: Server) -> None:
    with closing(dial(server)) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 200_000)
        sock.shutdown(socket.SHUT_WR)
        assert whole(sock).startswith(b"HTTP/1.1 431 ")


def test_with_too_many_connections_the_oldest_goes(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(podserver, "CONNECTIONS", 10)
    socks = []
    for number in range(12):  # each is answered before the next dials, so their order is certain
        sock = dial(server)
        sock.send(b"GET /echo?msg=%d HTTP/1.1\r\n\r\n" % number)
        assert body(sock.recv(1000)) == b"%d" % number
        socks.append(sock)
    assert [sock.recv(10) for sock in socks[:2]] == [b"", b""]
    socks[2].send(b"GET /hostname HTTP/1.0\r\n\r\n")
    assert body(whole(socks[2])) == b"web-1"
    for sock in socks:
        sock.close()


def test_who_trickles_is_hung_up_on_in_the_end(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(podserver, "DEADLINE", 0.0)
    with closing(dial(server)) as sock:
        sock.send(b"GET / HT")
        assert whole(sock) == b""


def test_thousands_of_bad_connections_leave_it_serving(server: Server) -> None:
    for number in range(2000):
        with closing(dial(server)) as sock:
            sock.send(os.urandom(number % 50) or b"G")
            if number % 3 == 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # ends in a reset
    with closing(dial(server)) as sock:
        sock.send(b"GET /hostname HTTP/1.0\r\n\r\n")
        assert body(whole(sock)) == b"web-1"


# --- configuration ----------------------------------------------------------------------------------------------------


def test_the_first_pod_of_a_namespace_has_the_port(capfd: pytest.CaptureFixture[str]) -> None:
    one = Pod("c.node.n1", "kube-system", "api", "n1", "172.18.0.2", "n1", tcp=(6443,), udp=(53,))
    two = Pod("c.node.n1", "default", "other", "n1", "172.18.0.2", "n1", tcp=(6443, 80))
    found = wanted(Config((one, two)), lambda _: 7)
    assert {(place.protocol, place.port): served.pod for place, served in found.items()} == {
        ("TCP", 6443): "api",
        ("UDP", 53): "api",
        ("TCP", 80): "other",
    }
    assert capfd.readouterr().err == "podserver: default/other: TCP 6443 is taken by another pod of c.node.n1\n"


def test_the_socket_beside_a_file_that_is_deep(tmp_path: Path) -> None:
    """A path of more than 108 bytes is none that a unix socket can have."""
    config = tmp_path / ("d" * 120) / "podserver.json"
    config.parent.mkdir()
    for _ in range(2):  # one of a server that died is there the second time
        server = Server(1)
        with closing(server.epoll), closing(Control(server, config).sock):
            assert config.with_name("podserver.json.sock").is_socket()


def test_it_starts_without_asyncio() -> None:
    code = "import sys, nsnet.programs.podserver; print('asyncio' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert said.stdout == "False\n"
