"""All six switches of kube-proxy's mode in a running cluster, while a client goes on connecting.

A connection that is opened after a sync has ended must succeed, and so must those of before; only what was under way
during the one sync may fail. Nothing of the old mode stays: no chain, table, process or file.
"""

import contextlib
import itertools
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

import pytest

from nsnet import control, kernel, manifests, names, reconcile, verify
from nsnet.diff import diff
from nsnet.kernel import netns, process
from nsnet.model import Objects
from nsnet.render import render
from nsnet.store import Store, sqlite
from nsnet.store.objects import update

NAME = "switch"
NODES = ("node1", "node2")
MODES = ("iptables", "nftables", "userspace")
SWITCHES = ["iptables nftables", "nftables userspace", "userspace iptables", "iptables userspace", "userspace nftables",
            "nftables iptables"]  # fmt: skip
CLIENT = names.pod_netns(NAME, "default", "client")
TOPOLOGY = """
{apiVersion: nsnet/v1, kind: Cluster, metadata: {name: switch}, dns: {enabled: false},
networking: {kubeProxyMode: %s}}
---
{apiVersion: v1, kind: Pod, metadata: {name: client}, spec: {nodeName: node2, containers: [{name: c}]}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  clusterIP: 10.96.0.80
  selector: {app: web}
  ports: [{name: http, port: 80, nodePort: 30080}, {name: dns, port: 53, protocol: UDP, nodePort: 30053}]
"""
TRACES = {
    "iptables": ("KUBE-SERVICES", "KUBE-SVC-", "KUBE-MARK-MASQ"),
    "nftables": ("table ip kube-proxy",),
    "userspace": ("KUBE-PORTALS-", "KUBE-NODEPORT-", "userproxy"),
}


def become(store: Store, mode: str) -> Objects:
    """`apply` of the Cluster document with another mode, and the one sync that follows."""
    loaded = manifests.load([manifests.Source("s.yaml", (TOPOLOGY % mode).encode())], NAME).objects
    update(store, lambda stored: control.complete(control.admit(stored, loaded, whole=not stored)))
    return reconcile.sync(store, NAME).memory.objects


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with contextlib.closing(sqlite.open_store(NAME, create=True)) as opened:
        become(opened, SWITCHES[0].split()[0])
        yield opened
    reconcile.destroy(NAME)


class Try(NamedTuple):
    """A connection: when it was begun, and what came of it."""

    begun: float
    error: str


class Caller:
    """Opens one connection after the other to the Service's address, as long as the block lasts."""

    def __init__(self) -> None:
        self.tries: list[Try] = []
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._call)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def _call(self) -> None:
        while not self.ended.wait(0.01):
            begun = time.monotonic()
            self.tries.append(Try(begun, called()))


def called() -> str:
    """Empty, or why not: one HTTP exchange with the Service."""
    with netns.inside(CLIENT):
        sock = socket.socket()
    with sock:
        sock.settimeout(5)
        try:
            sock.connect(("10.96.0.80", 80))
            sock.sendall(b"GET /hostname HTTP/1.0\r\n\r\n")
            return "" if b"web-" in b"".join(iter(lambda: sock.recv(4096), b"")) else "nobody answered"
        except OSError as error:
            return str(error)


@pytest.mark.parametrize("switch", SWITCHES)
def test_switch(store: Store, switch: str) -> None:
    before, after = switch.split()
    assert traces(before), "the test before left another mode"
    with Caller() as caller:
        while len(caller.tries) < 5:
            assert not caller.ended.wait(0.01)
        began = time.monotonic()
        objects = become(store, after)
        done, count = time.monotonic(), len(caller.tries)
        while len(caller.tries) < count + 10:
            assert not caller.ended.wait(0.01)
    assert [item.error for item in caller.tries if item.begun > done and item.error] == []
    assert [item.error for item in caller.tries if item.begun < began - 1 and item.error] == []
    assert {mode: traces(mode) for mode in MODES if mode != after} == {mode: [] for mode in MODES if mode != after}
    assert diff(kernel.observe(NAME), render(objects)) == []
    results = verify.run(verify.only(verify.expectations(objects), "svc/default/web"), retry=1)
    assert [f"{result.name}: {result.reason}" for result in results if not result.ok] == []


def traces(mode: str) -> list[str]:
    """What there is of a mode: lines of rule sets, processes, files."""
    found = [f"process {item.pid}" for item in process.running(NAME) if TRACES[mode][-1] in " ".join(item.argv)]
    for node in NODES:
        space = names.node_netns(NAME, node)
        found += [str(path) for path in Path(names.netns_run_dir(space)).glob("*") if TRACES[mode][-1] in path.name]
        for words in (("iptables-save",), ("nft", "list", "tables")):
            said = subprocess.run(["ip", "netns", "exec", space, *words], check=True, capture_output=True, text=True)
            found += [line for line in said.stdout.splitlines() if any(word in line for word in TRACES[mode])]
    return found


def test_the_six_switches_are_all() -> None:
    assert {tuple(switch.split()) for switch in SWITCHES} == set(itertools.permutations(MODES, 2))
