"""`nsnet rules`: every rule that kube-proxy and flannel write is shown once, with what it is for."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from nsnet import model, names
from nsnet.cli.explain import rule_lines
from nsnet.model import Node, Objects
from nsnet.render import render
from nsnet.state import Chain, NftChain, NftElement, Value
from tests import packets
from tests.test_rule_structure import TOPOLOGIES, in_mode

OWN = ("KUBE-", "FLANNEL-")


def written(values: frozenset[Value]) -> Iterator[str]:
    """As the verb spells it. Jumps from the kernel's own chains count for whom they lead to."""
    for value in values:
        if isinstance(value, Chain):
            own = value.name.startswith(OWN)
            leads = [rule for rule in value.rules if own or rule.rpartition("-j ")[2].startswith(OWN)]
            yield from (f"-A {value.name} {rule}" for rule in leads)
        elif isinstance(value, NftChain) and value.table == "kube-proxy":
            yield from (f"chain {value.name}: {rule}" for rule in value.rules)
        elif isinstance(value, NftElement) and value.table == "kube-proxy":
            kind = "map" if value.data else "set"
            yield f"{kind} {value.set} {{ {value.element}{f' : {value.data}' if value.data else ''} }}"


def shown(objects: Objects) -> Iterator[tuple[set[str], list[str]]]:
    """Of every node the rules it has, and what the verb prints."""
    state, cluster = render(objects), model.cluster_of(objects).metadata.name
    for node in model.of(objects, Node):
        values = state[names.node_netns(cluster, node.metadata.name)]
        yield set(written(values)), list(rule_lines(objects, None, values))


def check(objects: Objects) -> None:
    for rules, lines in shown(objects):
        assert rules - {line.strip() for line in lines} == set()
        unexplained = [
            line for line, after in zip(lines, [*lines[1:], ""], strict=True)
            if line.startswith("  ") and not line.startswith("    ") and not after.startswith("        ")
        ]  # fmt: skip
        assert unexplained == []


@pytest.mark.parametrize("mode", packets.MODES)
@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda path: path.stem)
def test_topology(topology: Path, mode: str) -> None:
    check(in_mode(topology, mode))


@pytest.mark.parametrize("mode", packets.MODES)
@pytest.mark.parametrize("stem", packets.FILES)
def test_every_feature(stem: str, mode: str) -> None:
    check(packets.objects(stem, mode))
