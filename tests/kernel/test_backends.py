"""flannel's other backends with real packets: two nodes in two racks, and all that follows from them verified."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from nsnet.kernel import observe
from nsnet.state import Bridge, Ipip, Tun, Value, Wireguard, WireguardPeer
from tests.kernel import needs
from tests.kernel.test_cli_real import ENV, NSNET

NODE1 = "backend.node.node1"

TOPOLOGY = """
apiVersion: nsnet/v1
kind: Cluster
metadata: {name: backend}
dns: {replicas: 0}
networking: {podSubnet: "%s"}
flannel: {Backend: %s}
underlay: {networks: [{name: rack-a}, {name: rack-b}]}
nodes: [{name: node1, network: rack-a}, {name: node2, network: rack-b}]
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
        "wireguard", FOUR, {"Type": "wireguard", "PSK": PSK, "PersistentKeepaliveInterval": 25}, ("wireguard",),
        {"flannel-wg": 1420}, "wireguard to 172.19.0.2:51820",
    ),
    Case(
        "wireguard, both families", BOTH, {"Type": "wireguard"}, ("wireguard", "IPv6"),
        {"flannel-wg": 1420, "flannel-wg-v6": 1420}, "wireguard to 172.19.0.2:51820",
    ),
)  # fmt: skip


def nsnet(*words: str) -> str:
    """What the verb prints; patient, for on an emulated machine `up` takes minutes."""
    done = subprocess.run([*NSNET, *words], env=ENV, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """The cluster is up, and `up` has verified it: pods, Services and the way from outside."""
    found: Case = request.param
    needs.features(*found.needs)
    path = tmp_path_factory.mktemp("backend") / "topo.yaml"
    path.write_text(found.text)
    try:
        assert "checks passed" in nsnet("up", "--timeout", "600s", str(path))
        yield found
    finally:
        nsnet("down", "backend")


def _there(*kinds: type[Value]) -> list[Value]:
    """What node1 has of these kinds."""
    return [value for value in observe("backend", only={NODE1: frozenset()})[NODE1] if isinstance(value, kinds)]


def _devices() -> dict[str, int]:
    return {
        value.name: value.mtu for value in _there(Ipip, Tun, Wireguard) if isinstance(value, Ipip | Tun | Wireguard)
    }


def test_the_devices_are_flannels_own_and_pods_have_their_mtu(case: Case) -> None:
    assert _devices() == case.devices
    (bridge,) = _there(Bridge)
    assert isinstance(bridge, Bridge)
    assert {bridge.mtu} == set(case.devices.values())


def test_a_trace_goes_through_the_tunnel_and_back(case: Case) -> None:
    said = nsnet("trace", "node/node1", "10.244.2.2:80")
    assert case.way in said
    assert "reply: back to node/node1" in said


def test_a_tunnel_that_somebody_deletes_comes_back_and_carries(case: Case) -> None:
    dev = next(iter(case.devices))
    subprocess.run(["ip", "-n", NODE1, "link", "delete", dev], check=True)
    assert "all" in nsnet("verify", "--only", "pod-to-pod|drift", "--retry", "20")
    assert _devices() == case.devices


def test_a_second_up_keeps_leases_and_keys(case: Case, tmp_path: Path) -> None:
    """It changes nothing; and WireGuard's peers are told the keys that the leases bear (the others have none)."""
    before = nsnet("leases", "-o", "json")
    path = tmp_path / "topo.yaml"
    path.write_text(case.text)
    assert "nothing to change" in nsnet("up", "--no-verify", "--timeout", "600s", str(path))
    assert nsnet("leases", "-o", "json") == before
    others = [lease for lease in json.loads(before) if lease["PublicIP"] != "172.18.0.2"]
    keys = {lease["BackendData"]["PublicKey"] for lease in others if "wireguard" in case.needs}
    assert {value.public_key for value in _there(WireguardPeer) if isinstance(value, WireguardPeer)} == keys
