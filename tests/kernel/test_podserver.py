"""The pod server as a process over real namespaces: ready, reloaded, restarted, and never brought down by one pod."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nsnet.kernel.netns import inside

CONFIG = Path("/run/podserver-test/podserver.json")
Serve = Callable[..., subprocess.Popen[bytes]]


def pod(name: str, *, netns: str = "", tcp: list[int] | None = None, udp: list[int] | None = None) -> dict[str, Any]:
    identity = {"namespace": "default", "pod": name, "node": "node1", "ip": "127.0.0.1", "hostname": name}
    return {"netns": netns or f"t.pod.default.{name}", **identity, "tcp": tcp or [], "udp": udp or []}


def write(*pods: dict[str, Any]) -> None:
    CONFIG.parent.mkdir(exist_ok=True)
    CONFIG.write_text(json.dumps({"pods": pods}))


def add(*names: str) -> None:
    for name in names:
        subprocess.run(["ip", "netns", "add", f"t.pod.default.{name}"], check=True)
        subprocess.run(["ip", "-n", f"t.pod.default.{name}", "link", "set", "lo", "up"], check=True)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts the server on what was written, and waits until it says that it is ready."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        reader, writer = os.pipe()
        env = {**os.environ, "NSNET_READY_FD": str(writer)}
        words = [sys.executable, "-m", "nsnet.programs.podserver", str(CONFIG)]
        process = subprocess.Popen(words, env=env, pass_fds=[writer], stderr=subprocess.PIPE)
        started.append(process)
        os.close(writer)
        assert len(os.read(reader, 10)) == 1
        assert os.read(reader, 10) == b""
        os.close(reader)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
    for path in Path("/run/netns").glob("t.pod.*"):
        subprocess.run(["ip", "netns", "delete", path.name], check=True)


def reload() -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(f"{CONFIG}.sock")
        sock.send(b"reload\n")
        return sock.recv(1000)


def dial(name: str, port: int = 80) -> socket.socket:
    with inside(f"t.pod.default.{name}"):
        return socket.create_connection(("127.0.0.1", port), timeout=5)


def hostname(sock: socket.socket) -> str:
    sock.send(b"GET /hostname HTTP/1.1\r\nHost: x\r\n\r\n")
    return sock.recv(1000).decode().rpartition("\r\n")[2]


def ask(name: str, port: int = 80) -> str:
    with dial(name, port) as sock:
        return hostname(sock)


def test_when_it_is_ready_every_socket_answers(serve: Serve) -> None:
    add("a", "b")
    write(pod("a", tcp=[80, 8080], udp=[53]), pod("b", tcp=[80]))
    serve()
    assert [ask("a"), ask("a", 8080), ask("b")] == ["a", "a", "b"]
    with inside("t.pod.default.a"):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.settimeout(5)
        sock.connect(("127.0.0.1", 53))
        sock.send(b"hostname\n")
        assert sock.recv(100) == b"a"


def test_a_reload_opens_closes_and_keeps(serve: Serve) -> None:
    add("a", "b")
    write(pod("a", tcp=[80, 81]))
    serve()
    with dial("a") as kept:
        assert hostname(kept) == "a"
        write(pod("a", tcp=[80, 82]), pod("b", tcp=[80]))
        assert reload() == b"ok\n"
        assert hostname(kept) == "a"
        assert [ask("a", 82), ask("b")] == ["a", "b"]
        with pytest.raises(ConnectionRefusedError):
            dial("a", 81)


def test_a_place_that_another_pod_takes_is_served_in_its_name(serve: Serve) -> None:
    add("a")
    write(pod("one", netns="t.pod.default.a", tcp=[80]))
    serve()
    write(pod("two", netns="t.pod.default.a", tcp=[80]))
    assert reload() == b"ok\n"
    assert ask("a") == "two"


def test_a_namespace_made_anew_under_the_old_name_is_served(serve: Serve) -> None:
    add("a")
    write(pod("a", tcp=[80]))
    serve()
    subprocess.run(["ip", "netns", "delete", "t.pod.default.a"], check=True)
    assert reload() == b"ok\n"
    add("a")
    with pytest.raises(ConnectionRefusedError):
        dial("a")
    assert reload() == b"ok\n"
    assert ask("a") == "a"


def test_what_cannot_be_opened_is_logged_and_tried_again(serve: Serve) -> None:
    add("a", "b")
    with inside("t.pod.default.a"):
        taken = socket.create_server(("0.0.0.0", 80))
    write(pod("a", tcp=[80, 81]), pod("b", tcp=[80]), pod("missing", tcp=[80]))
    process = serve()
    assert [ask("a", 81), ask("b")] == ["a", "b"]
    taken.close()
    assert reload() == b"ok\n"
    assert ask("a") == "a"
    process.terminate()
    assert process.wait() == 0
    assert process.stderr is not None
    taken_line, missing_line = process.stderr.read().decode().splitlines()[:2]
    again = "; tried again at the next reload"
    assert taken_line == f"podserver: t.pod.default.a: TCP 80: [Errno 98] Address already in use{again}"
    assert missing_line.startswith("podserver: t.pod.default.missing: [Errno 2] No such file or directory")
    assert missing_line.endswith(again)


@pytest.mark.parametrize("content", ["{", '{"pods": [{"netns": 1}]}', '{"pods": 7}', "\udcff"])
def test_a_file_that_cannot_be_read_changes_nothing(serve: Serve, content: str) -> None:
    add("a")
    write(pod("a", tcp=[80]))
    serve()
    CONFIG.write_bytes(content.encode(errors="surrogateescape"))
    assert reload().startswith(b"error: ")
    assert ask("a") == "a"


def test_sighup_reloads(serve: Serve) -> None:
    add("a")
    write(pod("a", tcp=[80]))
    process = serve()
    write(pod("a", tcp=[80]), pod("nowhere", tcp=[80]))
    process.send_signal(signal.SIGHUP)
    assert process.stderr is not None
    assert b"nowhere" in process.stderr.readline()  # it has read the file again
    assert ask("a") == "a"


def test_after_a_kill_the_next_one_takes_over(serve: Serve) -> None:
    add("a")
    write(pod("a", tcp=[80]))
    serve().kill()
    serve()
    assert reload() == b"ok\n"
    assert ask("a") == "a"


def test_a_pod_costs_less_than_100_kb(serve: Serve) -> None:
    """Resident memory with 300 further pods, less what it takes with one."""
    add("a")
    write(pod("a", tcp=[80]))
    process = serve()
    before = resident(process.pid)
    ports = list(range(1000, 1300))  # one namespace is as good as many: the server's cost is per socket and pod
    write(pod("a", tcp=[80]), *(pod(f"x{port}", netns="t.pod.default.a", tcp=[port]) for port in ports))
    assert reload() == b"ok\n"
    assert ask("a", 1299) == "x1299"
    assert (resident(process.pid) - before) / len(ports) < 100


def resident(pid: int) -> int:
    """VmRSS in KB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0])
