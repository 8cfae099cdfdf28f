"""Userspace mode with real packets: every expectation, a killed process, a UDP client that stays, what changes."""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsnet import control, kernel, manifests, names, reconcile, verify
from nsnet.kernel import netns, process
from nsnet.model import Key, Object
from nsnet.state import Process
from nsnet.store import Store, sqlite
from nsnet.store.objects import load_objects, update

NAME = "us"
CLIENT = names.pod_netns(NAME, "default", "client")
TOPOLOGY = """
{apiVersion: nsnet/v1, kind: Cluster, metadata: {name: us}, dns: {enabled: false},
networking: {kubeProxyMode: userspace}}
---
{apiVersion: v1, kind: Pod, metadata: {name: client}, spec: {nodeName: node2, containers: [{name: c}]}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: %d
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, ports: [{containerPort: 8080}, {containerPort: 53, protocol: UDP}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  clusterIP: 10.96.0.80
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: 8080, nodePort: 30080}
  - {name: dns, port: 53, protocol: UDP, nodePort: 30053}
---
{apiVersion: v1, kind: Service, metadata: {name: sticky}, spec: {clusterIP: 10.96.0.81, sessionAffinity: ClientIP,
selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: none}, spec: {clusterIP: 10.96.0.82, type: NodePort,
selector: {app: nobody}, ports: [{name: t, port: 80, nodePort: 30082}, {name: u, port: 53, protocol: UDP}]}}
"""
MORE = """
---
{apiVersion: v1, kind: Service, metadata: {name: more}, spec: {clusterIP: 10.96.0.83,
selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}}
"""


def become(store: Store, text: str) -> dict[Key, Object]:
    """`up` of this text, without a controller; the objects as they stand then."""
    loaded = manifests.load([manifests.Source("us.yaml", text.encode())], NAME).objects
    update(store, lambda stored: control.complete(control.admit(stored, loaded, whole=True)))
    return reconcile.sync(store, NAME).memory.objects


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with contextlib.closing(sqlite.open_store(NAME, create=True)) as opened:
        become(opened, TOPOLOGY % 3)
        yield opened
    reconcile.destroy(NAME)


def proxies() -> dict[str, int]:
    return {found.netns: found.pid for found in process.running(NAME) if "nsnet.programs.userproxy" in found.argv}


def test_every_expectation_holds(store: Store) -> None:
    objects, _ = load_objects(store)
    results = verify.run(verify.expectations(objects), retry=1)
    assert [f"{result.name}: {result.reason}" for result in results if not result.ok] == []
    assert {"service", "spread", "affinity", "nodeport", "outside"} <= {result.group for result in results}


def test_one_process_per_node_and_no_drift(store: Store) -> None:
    from nsnet.diff import diff
    from nsnet.render import render

    objects, _ = load_objects(store)
    assert sorted(proxies()) == [names.node_netns(NAME, "node1"), names.node_netns(NAME, "node2")]
    assert diff(kernel.observe(NAME), render(objects)) == []


def test_a_killed_process_is_started_again(store: Store) -> None:
    netns_name = names.node_netns(NAME, "node2")
    before = proxies()[netns_name]
    with_pidfd = os.pidfd_open(before)
    os.kill(before, signal.SIGKILL)
    poll_until_ended(with_pidfd)
    assert ask("10.96.0.80", 80) == b""
    reconcile.sync(store, NAME)
    assert proxies()[netns_name] != before
    assert ask("10.96.0.80", 80)


def poll_until_ended(handle: int) -> None:
    import select

    poll = select.poll()
    poll.register(handle, select.POLLIN)
    assert poll.poll(10_000)
    os.close(handle)


def ask(address: str, port: int) -> bytes:
    """The hostname that answers; empty where nobody does."""
    with netns.inside(CLIENT), contextlib.suppress(OSError):
        sock = socket.create_connection((address, port), timeout=5)
        with sock:
            sock.sendall(b"GET /hostname HTTP/1.0\r\n\r\n")
            return b"".join(iter(lambda: sock.recv(4096), b"")).rpartition(b"\n")[2]
    return b""


def test_a_connection_survives_the_change_of_others(store: Store) -> None:
    with netns.inside(CLIENT):
        sock = socket.create_connection(("10.96.0.80", 80), timeout=10)
    with sock:
        before = proxies()
        become(store, TOPOLOGY % 3 + MORE)
        assert ask("10.96.0.83", 80)
        become(store, TOPOLOGY % 3)
        assert ask("10.96.0.83", 80) == b""
        assert proxies() == before
        sock.sendall(b"GET /hostname HTTP/1.0\r\n\r\n")
        assert b"web-" in sock.recv(4096)


def test_a_udp_client_that_keeps_its_port_moves_on(store: Store) -> None:
    """Three pods become one: whoever it was before, now it is that one."""
    with netns.inside(CLIENT):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.settimeout(5)
        sock.connect(("10.96.0.80", 53))
        assert said(sock).startswith("web-")
        objects = become(store, TOPOLOGY % 1)
        (left,) = (key.name for key in objects if key.kind == "Pod" and key.name.startswith("web-"))
        assert said(sock) == left
        become(store, TOPOLOGY % 3)


def said(sock: socket.socket) -> str:
    sock.send(b"hostname\n")
    return sock.recv(4096).decode().strip()


def test_without_the_mode_nothing_of_it_stays(store: Store) -> None:
    become(store, (TOPOLOGY % 3).replace("userspace", "iptables"))
    assert proxies() == {}
    state = kernel.observe(NAME)
    assert not [value for values in state.values() for value in values if isinstance(value, Process) and _ours(value)]
    for node in ("node1", "node2"):
        space = names.node_netns(NAME, node)
        saved = subprocess.run(
            ["ip", "netns", "exec", space, "iptables-save"], check=True, capture_output=True, text=True
        ).stdout
        assert "KUBE-PORTALS" not in saved
        assert "KUBE-NODEPORT-" not in saved
        assert not list(Path(names.netns_run_dir(space)).glob("userproxy*"))
    become(store, TOPOLOGY % 3)


def _ours(value: Process) -> bool:
    return "nsnet.programs.userproxy" in value.argv
