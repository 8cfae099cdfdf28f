"""A network that a bridge of the machines' own carries, instead of VXLAN between them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.etcds import need_etcd, until
from tests.kernel.test_several import Remote, bridged_hop
from tests.several import Box, Ssh, boxes, members

CLUSTER = """
apiVersion: nsnet/v1
kind: Cluster
metadata: {name: two}
dns: {enabled: false}
underlay:
  networks: [{name: lab, subnet: 172.18.0.0/16, bridge: br-lab}]
  machines: [{name: a, address: 192.0.2.1}, {name: b, address: 192.0.2.2}]
nodes: [{name: node1, machine: a}, {name: node2, machine: b}]
hosts: []
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: web, ports: [{containerPort: 80}]}]}
"""


@pytest.fixture
def made() -> Iterator[dict[str, Box]]:
    """Two machines; the wire is a port of a bridge that each has, and the bridge has the machine's address."""
    need_etcd()
    with boxes("ab") as found:
        yield found


def bridge(box: Box) -> None:
    box.run("ip", "link", "add", "br-lab", "type", "bridge")
    box.run("ip", "address", "del", f"{box.address}/24", "dev", "wire")
    box.run("ip", "link", "set", "wire", "master", "br-lab")
    box.run("ip", "link", "set", "br-lab", "up")
    box.run("ip", "address", "add", f"{box.address}/24", "dev", "br-lab")


def links(box: Box) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(box.run("ip", "-j", "link"))
    return [{name: str(link.get(name, "")) for name in ("ifname", "master", "operstate")} for link in found]


def test_switches_are_one_by_a_bridge_that_is_there(made: dict[str, Box], tmp_path: Path) -> None:
    """One cable is all that the machine gets; what unplugs it is mended; `down` leaves nothing of it."""
    a, b = made["a"], made["b"]
    (tmp_path / "two.yaml").write_text(CLUSTER)
    with members(tmp_path, 1) as (url, _), Ssh(made, tmp_path) as ssh:
        refused = a.nsnet("up", str(tmp_path / "two.yaml"), "--store", url, "--machine", "a", code=1)
        assert "this machine has no bridge br-lab: it must be there before" in refused
        a.nsnet("down", code=None)
        for box in made.values():
            bridge(box)
        before = {name: links(box) for name, box in made.items()}
        up = a.begin("up", str(tmp_path / "two.yaml"), "--store", url, "--machine", "a", "--timeout", "60s")
        b.nsnet("agent", "--store", url, "--machine", "b")
        said, _ = up.communicate(timeout=100)
        assert up.returncode == 0, said
        (cable,) = [link for link in links(a) if link not in before["a"]]
        assert cable["master"] == "br-lab"
        for box in made.values():
            box.nsnet("verify", "--retry", "3")
        listed = json.loads(b.nsnet("get", "pods", "-o", "json"))["items"]
        pods = {pod["spec"]["nodeName"]: pod["metadata"]["name"] for pod in listed}
        words = ("trace", pods["node1"], f"pod/{pods['node2']}", "-o", "json")
        found = json.JSONDecoder().raw_decode(Remote(b, ssh.rsh).nsnet(*words))[0]
        assert found["ways"][0]["result"] == "delivered"
        crossed = [bridged_hop(hop, "b") for hop in found["ways"][0]["hops"] if hop["what"].startswith("bridge")]
        assert crossed == ["a node-node1 → trunk", "b trunk → node-node2"]
        a.run("ip", "link", "set", cable["ifname"], "nomaster")
        until(lambda: "veth" in str([link for link in links(a) if link["master"] == "br-lab"]), "it is mended", 60)
        b.nsnet("down")
        for name, box in made.items():
            until(lambda box=box, name=name: links(box) == before[name], "nothing is left", 60)
