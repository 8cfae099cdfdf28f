"""hostPort with real packets, in every mode of kube-proxy; the e2e suite's case of one number on three addresses."""

import contextlib
import subprocess
from collections.abc import Iterator

import pytest

from nsnet import control, kernel, manifests, model, names, reconcile, verify
from nsnet.diff import diff
from nsnet.model import Objects
from nsnet.render import render
from nsnet.store import sqlite
from nsnet.store.objects import update

NAME = "hp"
NODE1 = names.node_netns(NAME, "node1")
TOPOLOGY = """
{apiVersion: nsnet/v1, kind: Cluster, metadata: {name: hp}, dns: {enabled: false}, networking: {kubeProxyMode: %s}}
---
{apiVersion: v1, kind: Pod, metadata: {name: pod1}, spec: {nodeSelector: {kubernetes.io/hostname: node1},
containers: [{name: c, ports: [{containerPort: 8080, hostPort: 54323, hostIP: 127.0.0.1}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: pod2}, spec: {nodeSelector: {kubernetes.io/hostname: node1},
containers: [{name: c, ports: [{containerPort: 8080, hostPort: 54323, hostIP: 172.18.0.2}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: pod3}, spec: {nodeSelector: {kubernetes.io/hostname: node1},
containers: [{name: c, ports: [{containerPort: 8080, protocol: UDP, hostPort: 54323, hostIP: 172.18.0.2}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: every}, spec: {nodeSelector: {kubernetes.io/hostname: node1},
containers: [{name: c, ports: [{containerPort: 8080, hostPort: 80}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: zero}, spec: {nodeSelector: {kubernetes.io/hostname: node1},
containers: [{name: c, ports: [{containerPort: 8080, hostPort: 54323}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: other}, spec: {nodeName: node2, containers: [{name: c}]}}
"""


def objects(mode: str) -> Objects:
    text = TOPOLOGY % mode
    return manifests.load([manifests.Source("hp.yaml", text.encode())], NAME).objects


@pytest.fixture(scope="module", params=["iptables", "nftables", "userspace"])
def standing(request: pytest.FixtureRequest) -> Iterator[Objects]:
    """The cluster under one mode after the other, in place."""
    with contextlib.closing(sqlite.open_store(NAME, create=True)) as store:
        update(store, lambda stored: control.complete(control.admit(stored, objects(request.param), whole=True)))
        yield reconcile.sync(store, NAME).memory.objects


@pytest.fixture(scope="module", autouse=True)
def _gone() -> Iterator[None]:
    yield
    reconcile.destroy(NAME)


def test_whoever_asks_a_host_port(standing: Objects) -> None:
    found = verify.only(verify.expectations(standing), "^hostport: ")
    results = verify.run(found, retry=1)
    assert [f"{result.name}: {result.reason}" for result in results if not result.ok] == []
    asked = {(item.target, item.protocol, item.address) for item in found}
    assert asked == {
        ("pod/default/pod1", "TCP", "127.0.0.1"),
        ("pod/default/pod2", "TCP", "172.18.0.2"),
        ("pod/default/pod3", "UDP", "172.18.0.2"),
        ("pod/default/every", "TCP", "127.0.0.1"),
        ("pod/default/every", "TCP", "172.18.0.2"),
    }


def test_who_clashes_waits(standing: Objects) -> None:
    waiting = [pod.metadata.name for pod in model.of(standing, model.Pod) if pod.status.phase == "Pending"]
    assert waiting == ["zero"]


def test_the_kernel_has_what_is_rendered(standing: Objects) -> None:
    assert diff(kernel.observe(NAME), render(standing)) == []


def test_what_goes_leaves_no_chain(standing: Objects) -> None:
    """All pods of a node deleted; loopback addresses are its own again."""
    bare = control.complete({key: obj for key, obj in standing.items() if key.kind != "Pod"})
    assert kernel.apply(diff(kernel.observe(NAME), render(bare))) == []
    words = ("ip", "netns", "exec", NODE1, "iptables-save", "-t", "nat")
    assert "CNI-" not in subprocess.run(words, check=True, capture_output=True, text=True).stdout
    knob = ("ip", "netns", "exec", NODE1, "sysctl", "-n", "net.ipv4.conf.cni0.route_localnet")
    assert subprocess.run(knob, check=True, capture_output=True, text=True).stdout == "0\n"
    assert kernel.apply(diff(kernel.observe(NAME), render(standing))) == []
