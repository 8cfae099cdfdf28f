"""What `up` proposes to try: it works as it stands, from the topology's first host."""

from pathlib import Path

import pytest

from nsnet.cli.up import tries
from tests.controlled import listening, up

TOPOLOGIES = Path(__file__).parents[1] / "topologies"
LOCAL = """
{apiVersion: v1, kind: Pod, metadata: {name: w, labels: {app: w}}, spec: {nodeName: node1, containers: [
  {name: c, ports: [{containerPort: 80}]}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: w}, spec:
  {type: NodePort, externalTrafficPolicy: Local, selector: {app: w}, ports: [{port: 80, nodePort: 30080}]}}
"""


def proposed(text: str) -> list[str]:
    objects = up(text, facts=listening(up(text)))
    return [line.partition("exec host/client -- ")[2] for line in tries(objects) if "host/client" in line]


@pytest.mark.parametrize(
    ("topology", "expected"),
    [
        ("nodeport", ["curl -s http://10.10.1.3:31600/hostname"]),
        ("loadbalancer", ["curl -s http://198.51.100.20/hostname"]),
        ("ingress", ["curl -s http://app.sample.com/"]),
        ("gateway", ["curl -s http://shop.example.com/"]),
    ],
)
def test_topologies(topology: str, expected: list[str]) -> None:
    text = (TOPOLOGIES / f"{topology}.yaml").read_text()
    text = text.replace(f"metadata: {{name: {topology}}}", "metadata: {name: demo}")
    assert proposed(text) == expected


def test_under_policy_local_a_node_that_has_a_pod() -> None:
    assert proposed(LOCAL) == ["curl -s http://172.18.0.2:30080/hostname"]
