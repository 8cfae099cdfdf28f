"""Services and endpoints that Kubernetes accepts and that do less than they seem to: tests/accepted/*.txt."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from nsnet import model
from tests.controlled import refused, up

HERE = Path(__file__).parent / "accepted"


def cases() -> Iterator[tuple[str, str]]:
    for path in sorted(HERE.glob("*.txt")):
        for part in path.read_text().split("=====\n")[1:]:
            text, _, event = part.strip().partition("\n\n")
            yield text, event


@pytest.mark.parametrize(("text", "event"), list(cases()))
def test_event(text: str, event: str) -> None:
    said = [item for item in model.of(up(text), model.Event) if item.involvedObject.namespace == "default"]
    found = [f"{item.involvedObject.kind} {item.involvedObject.name}: {item.reason}: {item.message}" for item in said]
    assert "\n".join(found) == event
    assert {item.type for item in said} <= {"Warning"}


NODE_PORT = """
{apiVersion: v1, kind: Service, metadata: {name: %s}, spec: {type: NodePort, ports: [{port: 80, nodePort: %d}]}}
"""
CHECKED = """
{apiVersion: v1, kind: Service, metadata: {name: lb},
spec: {type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 30080, ports: [{port: 80}]}}
"""
A, B = NODE_PORT % ("a", 30080), NODE_PORT % ("b", 30080)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (f"{A}---{B}", "Service default/b: spec.ports[0].nodePort: 30080 is taken by Service default/a"),
        (f"{A}---{CHECKED}", "Service default/lb: spec.healthCheckNodePort: 30080 is taken by Service default/a"),
        (NODE_PORT % ("a", 80), "Service default/a: spec.ports[0].nodePort: 80 is outside nodePortRange 30000-32767"),
    ],
)
def test_error(text: str, error: str) -> None:
    assert error in refused(text)
