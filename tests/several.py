"""Several machines on one: each with network, mount and pid namespaces of its own, on one wire; an etcd beside them."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.etcds import Member

ROOT = Path(__file__).parents[1]
SANDBOX = str(ROOT / "scripts" / "sandbox")
ENV = {name: value for name, value in os.environ.items() if not name.startswith("NSNET_")} | {"PYTHONPATH": str(ROOT)}
SSHD = "/usr/sbin/sshd"
HOME = "192.0.2.254"  # where the etcd members are
WIRE = "02:00:00:00:02:fe"  # said: a bridge takes its lowest port's, and another one when a machine comes or goes


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

    def kill(self, command: str) -> None:
        """Ends what runs by that command line; not `nsenter`, whose child nobody would wait for."""
        for pid in self.run("pgrep", "-f", command, code=None).split():
            self.run("kill", "-9", pid, code=None)

    def nsnet(self, *words: str, code: int | None = 0) -> str:
        return self.run(sys.executable, "-m", "nsnet", *words, code=code)

    def end(self) -> None:
        os.kill(self.pid, 9)  # the init of its pid namespace: everything in it ends
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


class Ssh:
    """A real sshd on each machine, at the machine's own address; `rsh` is what NSNET_RSH has to say.

    Keys and known hosts are made here; what sshd starts finds nsnet in `bin_`.
    """

    def __init__(self, machines: dict[str, Box], bin_: Path) -> None:
        need_sshd()
        tool = bin_ / "nsnet"
        tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m nsnet "$@"\n')
        tool.chmod(0o755)
        for name in ("host", "me"):
            argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(bin_ / name)]
            subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
        host = (bin_ / "host.pub").read_text()
        (bin_ / "known").write_text("".join(f"{box.address} {host}" for box in machines.values()))
        words = f"-F none -i {bin_}/me -o UserKnownHostsFile={bin_}/known -o BatchMode=yes -o ConnectTimeout=5"
        self.rsh = f"ssh {words}"
        self._served = [(box, self._serve(box, bin_)) for box in machines.values()]

    def _serve(self, box: Box, bin_: Path) -> "subprocess.Popen[str]":
        config = bin_ / f"sshd-{box.name}"
        config.write_text(
            f"ListenAddress {box.address}\nPidFile /run/sshd/pid\n"
            f"HostKey {bin_}/host\nAuthorizedKeysFile {bin_}/me.pub\n"
            "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
            f"SetEnv PATH={bin_}:{ENV['PATH']} PYTHONPATH={ROOT}\n"
        )
        box.run("mkdir", "-p", "/run/sshd")
        argv = box.inside(SSHD, "-D", "-e", "-f", str(config))
        process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        for line in process.stderr:  # until it listens
            if "Server listening" in line:
                return process
        raise AssertionError(f"sshd of {box.name} has ended: {process.wait()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for box, process in self._served:
            box.run("sh", "-c", "kill $(cat /run/sshd/pid)")
            process.wait()
            assert process.stderr is not None
            process.stderr.close()


def need_sshd() -> None:
    if not Path(SSHD).exists():
        pytest.skip("there is no sshd here: apt-get install openssh-server")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextlib.contextmanager
def boxes(names: str) -> Iterator[dict[str, Box]]:
    """Machines called so, at 192.0.2.1 and so on, on one wire."""
    ip("link", "add", "wire", "address", WIRE, "type", "bridge")
    ip("address", "add", f"{HOME}/24", "dev", "wire")
    ip("link", "set", "wire", "up")
    made = {name: Box(name, f"192.0.2.{index}") for index, name in enumerate(names, 1)}
    try:
        for box in made.values():
            box.plug()
        yield made
    finally:
        for box in made.values():
            with contextlib.suppress(subprocess.CalledProcessError):  # the kernel takes namespaces down in its own time
                ip("link", "del", f"to-{box.name}")
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
