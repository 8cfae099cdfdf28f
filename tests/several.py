"""Several machines on one: each with network, mount and pid namespaces of its own, on one wire; an etcd beside them."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tests.etcds import Member

ROOT = Path(__file__).parents[1]
SANDBOX = str(ROOT / "scripts" / "sandbox")
ENV = {name: value for name, value in os.environ.items() if not name.startswith("NSNET_")} | {"PYTHONPATH": str(ROOT)}
HOME = "192.0.2.254"  # where the etcd members are


class Box:
    """A machine: what runs in it sees its own /run, state, processes and network, and one wire to the others."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self.process = subprocess.Popen([SANDBOX, "sh", "-c", "echo ready; exec sleep 100000"], stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.process.stdout.readline()
        self.pid = int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[0])

    def plug(self) -> None:
        """Connects it to the wire, a bridge `wire` of whoever calls."""
        ip("link", "add", f"to-{self.name}", "type", "veth", "peer", "name", "wire", "netns", str(self.pid))
        ip("link", "set", f"to-{self.name}", "master", "wire", "up")
        self.run("ip", "address", "add", f"{self.address}/24", "dev", "wire")
        self.run("ip", "link", "set", "wire", "up")

    def unplug(self) -> None:
        ip("link", "set", f"to-{self.name}", "down")

    def replug(self) -> None:
        ip("link", "set", f"to-{self.name}", "up")

    def inside(self, *words: str) -> list[str]:
        return ["nsenter", "-t", str(self.pid), "-n", "-m", "-p", *words]

    def begin(self, *words: str) -> "subprocess.Popen[str]":
        argv = self.inside(sys.executable, "-m", "nsnet", *words)
        return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENV)

    def run(self, *words: str, code: int | None = 0) -> str:
        done = subprocess.run(
            self.inside(*words),
            capture_output=True,
            text=True,
            env=ENV,
            check=False,
            timeout=180,
            stdin=subprocess.DEVNULL,
        )
        said = done.stdout + done.stderr
        assert code is None or done.returncode == code, f"{self.name}: {words}: exit {done.returncode}\n{said}"
        return said

    def nsnet(self, *words: str, code: int | None = 0) -> str:
        return self.run(sys.executable, "-m", "nsnet", *words, code=code)

    def end(self) -> None:
        os.kill(self.pid, 9)  # the init of its pid namespace: everything in it ends
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


class Relay:
    """What ssh does between real machines, for machines that have no sshd: a line for a shell, run in another one.

    NSNET_RSH is this very file; it asks a server that stands beside the machines.
    """

    def __init__(self, machines: dict[str, Box], bin_: Path) -> None:
        self._machines = {box.address: box for box in machines.values()}
        self._server = socket.create_server((HOME, 0))
        self.rsh = f"{sys.executable} {__file__} {self._server.getsockname()[1]}"
        tool = bin_ / "nsnet"
        tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m nsnet "$@"\n')
        tool.chmod(0o755)
        self._env = {**ENV, "PATH": f"{bin_}:{ENV['PATH']}"}
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._server.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                with connection, connection.makefile("rw") as lines:
                    address, line = json.loads(lines.readline())
                    argv = self._machines[address].inside("sh", "-c", line)
                    done = subprocess.run(argv, capture_output=True, text=True, env=self._env, check=False)
                    lines.write(json.dumps([done.returncode, done.stdout, done.stderr]) + "\n")
                    lines.flush()


def _relayed(port: str, address: str, line: str) -> int:
    with socket.create_connection((HOME, int(port))) as connection, connection.makefile("rw") as lines:
        lines.write(json.dumps([address, line]) + "\n")
        lines.flush()
        code, out, err = json.loads(lines.readline())
    sys.stdout.write(out)
    sys.stderr.write(err)
    return int(code)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextlib.contextmanager
def boxes(names: str) -> Iterator[dict[str, Box]]:
    """Machines called so, at 192.0.2.1 and so on, on one wire."""
    ip("link", "add", "wire", "type", "bridge")
    ip("address", "add", f"{HOME}/24", "dev", "wire")
    ip("link", "set", "wire", "up")
    made = {name: Box(name, f"192.0.2.{index}") for index, name in enumerate(names, 1)}
    try:
        for box in made.values():
            box.plug()
        yield made
    finally:
        for box in made.values():
            box.end()
        ip("link", "del", "wire")


@contextlib.contextmanager
def members(directory: Path, count: int) -> Iterator[tuple[str, list[Member]]]:
    """An etcd of so many members on the wire, and its URL."""
    made = [
        Member(f"m{index}", directory / f"m{index}", 2379 + 10 * index, 2380 + 10 * index, address=HOME)
        for index in range(count)
    ]
    cluster = ",".join(f"{member.name}={member.peer}" for member in made)
    for member in made:
        member.start(cluster)
    try:
        yield f"etcd://{','.join(member.client.removeprefix('http://') for member in made)}", made
    finally:
        for member in made:
            member.kill()


if __name__ == "__main__":
    sys.exit(_relayed(*sys.argv[1:]))
