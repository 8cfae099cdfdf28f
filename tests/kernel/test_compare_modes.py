"""`verify --compare-modes` on a running cluster: the table, what stays as it was, and what is left after Ctrl-C."""

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsnet.kernel import process
from nsnet.verify.modes import SITUATIONS

ROOT = Path(__file__).parents[2]
NSNET = (sys.executable, "-m", "nsnet")
ENV = {name: value for name, value in os.environ.items() if not name.startswith("NSNET_")} | {"PYTHONPATH": str(ROOT)}
TOPOLOGY = """
{apiVersion: nsnet/v1, kind: Cluster, metadata: {name: pair}, dns: {enabled: false},
networking: {kubeProxyMode: nftables}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a, labels: {app: web}}, spec: {nodeName: node1, containers: [{name: c}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: b, labels: {app: web}}, spec: {nodeName: node2, containers: [{name: c}]}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, clusterIP: 10.96.0.80, selector: {app: web}, ports: [{port: 80, nodePort: 30080}]}
---
apiVersion: v1
kind: Service
metadata: {name: near}
spec: {type: NodePort, externalTrafficPolicy: Local, selector: {app: web}, ports: [{port: 80, nodePort: 30081}]}
---
{apiVersion: v1, kind: Service, metadata: {name: none}, spec: {clusterIP: 10.96.0.82, selector: {app: x},
ports: [{port: 80}]}}
"""


def nsnet(*words: str, stdin: str = "", code: int = 0) -> str:
    done = subprocess.run(
        [*NSNET, *words], input=stdin, capture_output=True, text=True, env=ENV, check=False, timeout=120
    )
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def _pair() -> Iterator[None]:
    nsnet("up", "--no-verify", "-", stdin=TOPOLOGY)
    yield
    nsnet("down", "--all")


def machine() -> tuple[object, ...]:
    """What a comparison must leave alone: namespaces, the cluster's programs, its files, and what runs at all."""
    files = sorted(str(path) for top in ("/run", "/var/lib", "/etc/netns") for path in Path(top).glob("*nsnet*/*"))
    files = [path for path in files if not path.endswith(".lock")]  # the controller's, as long as it works
    programs = sorted((found.netns, found.pid) for found in process.running("pair"))
    return sorted(Path("/run/netns").iterdir()), programs, files, others()


def others() -> list[str]:
    """Programs of nsnet that belong to no cluster's namespaces here."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"nsnet.cli.alone" in words or any(word.startswith(b"/run/nsnet/modes-") for word in words):
                found.append(b" ".join(words).decode())
    return found


def test_every_difference_is_upstreams_own_and_the_cluster_is_left_alone() -> None:
    before = machine()
    head, *rows, last = nsnet("verify", "--compare-modes").splitlines()
    assert machine() == before
    assert head.split() == ["CHECK", "IPTABLES", "NFTABLES", "USERSPACE", "WHY"]
    assert last.endswith("each as upstream has it")
    found = [re.split(r" {3,}", row.rstrip()) for row in rows]
    kinds = {(row[0].partition(" (")[0], *row[1:4]) for row in found}
    assert ("service", "refused", "refused", "closed") in kinds
    assert ("outside", "ok, sender seen", "ok, sender seen", "ok, another address seen") in kinds  # policy Local
    assert ("a node port on loopback", "ok", "refused", "ok") in kinds
    why = {row[4].partition(": ")[2] for row in found if len(row) > 4}
    userspace, nftables = SITUATIONS["userspace"], SITUATIONS["nftables"]
    assert why >= {userspace[name].reason for name in ("own connection", "accepts first")}
    assert why >= {nftables[name].reason for name in ("other port", "unallocated", "loopback")}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "killed"])
def test_an_interrupt_leaves_nothing(number: signal.Signals) -> None:
    before = machine()
    comparing = subprocess.Popen(
        [*NSNET, "verify", "--compare-modes"], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    inside = _one_inside(comparing)
    comparing.send_signal(number)
    comparing.communicate(timeout=30)
    assert comparing.returncode == (130 if number == signal.SIGINT else -number)
    poll = select.poll()
    poll.register(inside, select.POLLIN)
    assert poll.poll(30_000), "what runs in the sandbox goes on"
    os.close(inside)
    assert machine() == before


def _one_inside(comparing: subprocess.Popen[bytes]) -> int:
    """A handle on a program that the sandbox has started, once there is one; a pipe that is silent is the clock."""
    assert comparing.stdout is not None
    for _ in range(600):
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and _starts_pods(entry):
                return os.pidfd_open(int(entry.name))
        select.select([comparing.stdout], [], [], 0.05)
        assert comparing.poll() is None
    raise AssertionError("no program is started")


def _starts_pods(entry: Path) -> bool:
    try:
        words = (entry / "cmdline").read_bytes()
    except OSError:
        return False
    return b"nsnet.programs.podserver" in words and b"/run/nsnet/modes-" in words
