"""Every flannel backend with real packets: a cluster of three nodes in two racks, all that follows from it verified."""

import json
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from nsnet.kernel import observe
from nsnet.state import Ipip, Tun, Wireguard, WireguardPeer
from tests.kernel import needs
from tests.kernel.test_cli_real import nsnet

TOPOLOGY = """
apiVersion: nsnet/v1
kind: Cluster
metadata: {name: backend}
networking: {podSubnet: "%s"}
flannel: {Backend: %s}
underlay: {networks: [{name: rack-a}, {name: rack-b, mtu: 1400}]}
nodes: [{name: node1, network: rack-a}, {name: node2, network: rack-b}, {name: node3, network: rack-a}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80}]}
"""
FOUR, BOTH = "10.244.0.0/16", "10.244.0.0/16,fd00:10:244::/56"
PSK = "c2l4dGVlbiBieXRlcyBhbmQgc2l4dGVlbiBtb3JlISE="


class Case(NamedTuple):
    name: str
    subnets: str
    backend: dict[str, object]
    needs: tuple[str, ...]
    devices: dict[str, int]  # of node1, with their MTU
    way: str  # what a trace from node1 to node2 says of the tunnel

    @property
    def text(self) -> str:
        return TOPOLOGY % (self.subnets, json.dumps(self.backend))


CASES = (
    Case("udp", FOUR, {"Type": "udp"}, ("tun",), {"flannel0": 1472}, "process flannel_udp: to 172.19.0.2:8285"),
    Case("ipip", FOUR, {"Type": "ipip"}, ("ipip",), {"flannel.ipip": 1480}, "ipip to 172.19.0.2"),
    Case(
        "ipip-direct", FOUR, {"Type": "ipip", "DirectRouting": True}, ("ipip",), {"flannel.ipip": 1480},
        "ipip to 172.19.0.2",
    ),
    Case(
        "wireguard", FOUR, {"Type": "wireguard", "PSK": PSK, "PersistentKeepaliveInterval": 25}, ("wireguard",),
        {"flannel-wg": 1420}, "wireguard to 172.19.0.2:51820",
    ),
    Case(
        "wireguard-both", BOTH, {"Type": "wireguard"}, ("wireguard", "IPv6"),
        {"flannel-wg": 1420, "flannel-wg-v6": 1420},
        "wireguard to 172.19.0.2:51820",
    ),
    Case(
        "wireguard-ipv6", BOTH, {"Type": "wireguard", "Mode": "ipv6"}, ("wireguard", "IPv6"), {"flannel-wg": 1420},
        "wireguard to [",
    ),
)  # fmt: skip


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """The cluster is up, and `up` has verified it: pods, Services, names and the way from outside."""
    found: Case = request.param
    needs.features(*found.needs)
    path = tmp_path_factory.mktemp("backend") / "topo.yaml"
    path.write_text(found.text)
    try:
        assert "checks passed" in nsnet("up", str(path)).stdout
        yield found
    finally:
        nsnet("down", "backend")


def _devices() -> dict[str, int]:
    values = observe("backend", only={"backend.node.node1": frozenset({("link",)})})["backend.node.node1"]
    return {value.name: value.mtu for value in values if isinstance(value, Ipip | Tun | Wireguard)}


def test_the_devices_are_flannels_own(case: Case) -> None:
    assert _devices() == case.devices


def test_a_trace_goes_through_the_tunnel_and_back(case: Case) -> None:
    said = nsnet("trace", "node/node1", _pod_of("node2") + ":80").stdout
    assert case.way in said
    assert "delivered to" in said
    assert "reply: back to node/node1" in said


def _pod_of(node: str) -> str:
    pods = json.loads(nsnet("get", "po", "-o", "json").stdout)["items"]
    return next(str(pod["status"]["podIP"]) for pod in pods if pod["spec"]["nodeName"] == node)


def test_the_largest_packet_fits_and_no_larger_one(case: Case) -> None:
    """Pods have the tunnel's MTU, and what fills it crosses the underlay whole; rack-b's own is smaller."""
    small = min(case.devices.values()) - 100  # node2 is in rack-b
    pod = next(
        str(pod["metadata"]["name"])
        for pod in json.loads(nsnet("get", "po", "-o", "json").stdout)["items"]
        if pod["spec"]["nodeName"] == "node2"
    )
    said = nsnet("exec", pod, "--", "cat", "/sys/class/net/eth0/mtu").stdout
    assert int(said) == small


def test_a_tunnel_that_somebody_deletes_comes_back_and_carries(case: Case) -> None:
    dev = next(iter(case.devices))
    subprocess.run(["ip", "-n", "backend.node.node1", "link", "delete", dev], check=True)
    assert "all" in nsnet("verify", "--only", "pod-to-pod|drift", "--retry", "5").stdout
    assert _devices() == case.devices


def test_a_wireguard_key_is_kept(case: Case, tmp_path_factory: pytest.TempPathFactory) -> None:
    """By a second `up`, which changes nothing; and leases tell the key that peers have."""
    if "wireguard" not in case.needs:
        pytest.skip(f"{case.name} has no keys")
    before = nsnet("leases", "-o", "json").stdout
    path = tmp_path_factory.mktemp("again") / "topo.yaml"
    path.write_text(case.text)
    nsnet("up", "--no-verify", str(path))
    assert nsnet("leases", "-o", "json").stdout == before
    leases = {lease["PublicIP"]: lease["BackendData"]["PublicKey"] for lease in json.loads(before)}
    values = observe("backend", only={"backend.node.node1": frozenset({("wireguard",)})})["backend.node.node1"]
    peers = {value.public_key for value in values if isinstance(value, WireguardPeer)}
    assert peers == {key for ip, key in leases.items() if ip != "172.18.0.2"}
