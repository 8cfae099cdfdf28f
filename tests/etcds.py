"""An etcd of a test's own: one member or three, each in the test's network namespace, killed and cut off by hand."""

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from nsnet.store.etcd import EtcdStore
from nsnet.store.location import Location, parsed

FAST = ("--heartbeat-interval", "20", "--election-timeout", "200", "--logger", "zap", "--log-level", "error")


def need_etcd() -> None:
    if shutil.which("etcd") is None:
        pytest.skip("there is no etcd here: apt-get install etcd-server")


class Member:
    """One etcd process; `start` it again after `kill`, and it goes on with its data."""

    def __init__(
        self,
        name: str,
        directory: Path,
        client: int,
        peer: int,
        *words: str,
        scheme: str = "http",
        address: str = "127.0.0.1",
    ) -> None:
        self.name = name
        self.directory = directory
        self.client = f"{scheme}://{address}:{client}"
        self.peer = f"http://127.0.0.1:{peer}"
        self.words = words
        self.cluster = ""
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, cluster: str = "") -> None:
        self.cluster = cluster or self.cluster or f"{self.name}={self.peer}"
        urls = ("--listen-client-urls", self.client, "--advertise-client-urls", self.client)
        peers = ("--listen-peer-urls", self.peer, "--initial-advertise-peer-urls", self.peer)
        initial = ("--initial-cluster", self.cluster, "--initial-cluster-state", "new")
        argv = ("etcd", "--name", self.name, "--data-dir", str(self.directory), *urls, *peers, *initial)
        log = self.directory.parent / f"{self.name}.log"
        with log.open("ab") as out:
            self.process = subprocess.Popen([*argv, *FAST, *self.words], stdout=out, stderr=out)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


class Etcd:
    """Members that form one etcd, and its address as a URL of nsnet's."""

    def __init__(self, members: Sequence[Member], query: str = "") -> None:
        self.members = members
        self.cluster = ",".join(f"{member.name}={member.peer}" for member in members)
        scheme = "etcds" if query else "etcd"
        self.url = f"{scheme}://{','.join(member.client.partition('//')[2] for member in members)}"
        self.query = query

    def location(self, prefix: str = "") -> Location:
        return parsed(f"{self.url}{prefix}{self.query}")

    def start(self) -> None:
        for member in self.members:
            member.start(self.cluster)

    def store(self, prefix: str = "", patience: float = 20.0) -> EtcdStore:
        return EtcdStore(self.location(prefix), patience)


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.socket()) for _ in range(number)]
        for sock in socks:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in socks]


@contextlib.contextmanager
def running(directory: Path, members: int = 1, *words: str, scheme: str = "http", query: str = "") -> Iterator[Etcd]:
    """An etcd of so many members that answers."""
    need_etcd()
    ports = free_ports(2 * members)
    made = [
        Member(f"m{index}", directory / f"m{index}", ports[2 * index], ports[2 * index + 1], *words, scheme=scheme)
        for index in range(members)
    ]
    etcd = Etcd(made, query)
    etcd.start()
    try:
        yield etcd
    finally:
        for member in made:
            member.kill()


def until(condition: object, what: str, seconds: float = 30.0) -> None:
    """Waits until a callable says yes."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.01)


def certificates(directory: Path) -> None:
    """An authority (ca.pem), and what it has signed: `good` until next month, `old` until yesterday."""
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    _openssl(directory, "req", "-x509", *curve, "-keyout", "ca-key.pem", "-out", "ca.pem", "-subj", "/CN=ca")
    for name, days in (("good", "30"), ("old", "-1")):
        files = ("-keyout", f"{name}-key.pem", "-out", f"{name}.csr")
        _openssl(directory, "req", *curve, *files, "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1")
        signer = ("-CA", "ca.pem", "-CAkey", "ca-key.pem", "-CAcreateserial", "-copy_extensions", "copy")
        _openssl(directory, "x509", "-req", "-in", f"{name}.csr", *signer, "-out", f"{name}.pem", "-days", days)


def _openssl(directory: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)
