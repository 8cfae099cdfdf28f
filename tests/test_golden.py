"""Whole texts: what each file in topologies/ becomes, in `ip` and `iptables` words; the review reads the difference.

After a change that is meant, write them again and read `git diff tests/golden/topologies` line by line:

    GOLDEN=write .venv/bin/python -m pytest tests/test_golden.py

A topology's text begins with what its objects became: each pod's node and address, each Service's addresses.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsnet import control, manifests, model
from nsnet.render import render
from tests.fake import words
from tests.structure import faults
from tests.variants import VARIANTS

GOLDEN = Path(__file__).parent / "golden" / "topologies"
TOPOLOGIES = sorted((Path(__file__).parents[1] / "topologies").glob("*.yaml"))
BY_HAND = (
    "two nodes", "host-gw", "racks", "ipip, racks", "udp", "wireguard", "policies", "nftables, policies",
)  # fmt: skip
needs_control = pytest.mark.skipif(not hasattr(control, "complete"), reason="nsnet/control has no `complete` yet")


def completed(topology: Path) -> model.Objects:
    """The objects of a file as `up` would store them, every pod's port taken to listen."""
    loaded = manifests.load([manifests.Source(topology.name, topology.read_bytes())], None)
    return control.complete(control.admit({}, loaded.objects, whole=True))


def summary(objects: model.Objects) -> Iterator[str]:
    for pod in model.of(objects, model.Pod):
        yield f"# pod {pod.metadata.namespace}/{pod.metadata.name}: {pod.spec.nodeName} {pod.status.podIP}"
    for service in model.of(objects, model.Service):
        ports = " ".join(f"{port.port}/{port.protocol}" for port in service.spec.ports or ())
        yield f"# service {service.metadata.namespace}/{service.metadata.name}: {service.spec.clusterIP} {ports}"
    yield ""


def same(name: str, text: str) -> None:
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.exists(), f"{path} is not there: run with GOLDEN=write"
    assert text == path.read_text()


def _file(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name: str) -> None:
    """Clusters of `variants.py`: what changes here changed in `render`, not in `control`."""
    same(f"by-hand-{_file(name)}", words(VARIANTS[name]))


@needs_control
@pytest.mark.parametrize("topology", TOPOLOGIES, ids=[path.stem for path in TOPOLOGIES])
def test_topology(topology: Path) -> None:
    objects = completed(topology)
    want = render(objects)
    assert faults(want) == []
    same(topology.stem, "\n".join(summary(objects)) + words(want))


def test_no_golden_text_without_its_origin() -> None:
    names = {path.stem for path in TOPOLOGIES} | {f"by-hand-{_file(name)}" for name in BY_HAND}
    assert {path.stem for path in GOLDEN.glob("*.txt")} <= names
