"""HAProxy does with a request what the route table says: random rules, random requests, the same answer from both."""

import random
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nsnet.model import Key
from nsnet.render.ingress import configuration
from nsnet.routes.table import (
    Backend,
    Forward,
    Frontend,
    Host,
    Match,
    Redirect,
    Reply,
    Rule,
    Share,
    Table,
    route,
    virtual_hosts,
)

PORT, SERVED = 18080, 19000
BACKENDS = [Backend("default", f"s{number}", 80) for number in range(12)]
LABELS = ("a", "b", "foo", "com")
PARTS = ("", "a", "ab", "A", "b", "%2e", "a.b", "x")
HEADERS = (("x-one", "1"), ("x-one", "2"), ("x-two", "it's a 'quote' # \\ %[src]"))
QUERIES = (("q", "1"), ("q", "a b"), ("r", "~"))


class _Named(BaseHTTPRequestHandler):
    """Answers with the address it was asked at, which is another for every backend."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.connection.getsockname()[0].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module", autouse=True)
def _served() -> Iterator[None]:
    server = ThreadingHTTPServer(("0.0.0.0", SERVED), _Named)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield
    server.shutdown()
    server.server_close()


def some_path(dice: random.Random) -> str:
    path = "/" + "/".join(dice.choice(PARTS) for _ in range(dice.randrange(4)))
    return path + ("/" if dice.random() < 0.3 and not path.endswith("/") else "")


def some_host(dice: random.Random) -> Host:
    name = ".".join(dice.choice(LABELS) for _ in range(dice.randrange(1, 4)))
    match dice.randrange(4):
        case 0:
            return Host()
        case 1:
            return Host(f"*.{name}")
        case 2:
            return Host(f"*.{name}", deep=True)
    return Host(name)


def some_rule(dice: random.Random, index: int) -> Rule:
    conditional = dice.random() < 0.3
    match = Match(
        some_path(dice) if dice.random() < 0.95 else "",
        exact=False,
        method=dice.choice(("", "GET", "POST")) if conditional else "",
        headers=(dice.choice(HEADERS),) if conditional and dice.random() < 0.7 else (),
        query=(dice.choice(QUERIES[::2]),) if conditional and dice.random() < 0.3 else (),
    )
    if match.path and dice.random() < 0.4:
        match = Match(match.path, True, match.method, match.headers, match.query)
    action: Forward | Redirect | Reply = Forward((Share(dice.choice(BACKENDS)),))
    if dice.random() < 0.15:
        action = dice.choice(
            (Reply(500), Reply(503), Redirect(301, hostname="new.org"), Forward((Share(None, 1, 500),)))
        )
    return Rule((some_host(dice),), match, action, Key("Ingress", "default", "a"), "", index)


def wanted(table: Table, host: str, path: str, headers: dict[str, str], method: str) -> str:
    action = route(table, host, path, headers, port=PORT, method=method).action
    match action:
        case Forward(shares):
            return str(shares[0].backend.service if shares[0].backend else shares[0].status)
        case Redirect(status):
            return str(status)
    return str(action.status)


def asked(host: str, path: str, headers: dict[str, str], method: str) -> str:
    """The status, or the Service whose address answered."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in headers.items())]
    lines += ["Connection: close", *(["Content-Length: 0"] if method == "POST" else [])]
    with socket.create_connection(("127.0.0.1", PORT), timeout=5) as sock:
        sock.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = b""
        while data := sock.recv(65536):
            answer += data
    status = answer[9:12].decode()
    return f"s{int(answer.rpartition(b'.')[2])}" if status == "200" else status


@pytest.mark.parametrize("seed", range(4))
def test_haproxy_agrees_with_the_table(seed: int, tmp_path: Path) -> None:
    dice = random.Random(seed)
    rules = [some_rule(dice, index) for index in range(dice.choice((20, 80, 300)))]
    table = Table((Frontend(PORT, False, virtual_hosts(rules, shared=bool(seed % 2))),))
    endpoints = {backend: ((f"127.0.1.{number}", SERVED),) for number, backend in enumerate(BACKENDS)}
    for name, content in configuration(str(tmp_path), table.frontends, endpoints, {}).items():
        (tmp_path / name).write_text(content)
    with running(tmp_path):
        for _ in range(300):
            host = ".".join(dice.choice(LABELS) for _ in range(dice.randrange(1, 5)))
            host = host.upper() if dice.random() < 0.1 else host
            host += ":8080" if dice.random() < 0.2 else ""
            path = some_path(dice) if dice.random() < 0.5 else (dice.choice(rules).match.path or "/")
            path += dice.choice(("", "", "?q=1", "?r=~&q=2", "?x"))
            headers = dict([dice.choice(HEADERS)]) if dice.random() < 0.5 else {}
            method = dice.choice(("GET", "POST"))
            request = (host, path, headers, method)
            assert (request, asked(*request)) == (request, wanted(table, *request))


class running:  # noqa: N801 - reads as what it is
    """HAProxy in the foreground; it listens inside the block."""

    def __init__(self, directory: Path) -> None:
        self.command = ["env", "NSNET_NOBODY=65534", "haproxy", "-db", "-f", str(directory / "haproxy.cfg")]

    def __enter__(self) -> None:
        checked = subprocess.run([*self.command, "-c"], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            try:
                socket.create_connection(("127.0.0.1", PORT), timeout=5).close()
            except ConnectionRefusedError:
                assert self.process.poll() is None
            else:
                return

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
