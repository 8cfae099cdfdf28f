"""Every kind of check, when it fails, says why in one sentence: on every topology, and by the cause for each kind."""

from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import yaml
from msgspec.structs import replace

from nsnet import control, verify
from nsnet.cli.trace_lines import look_of
from nsnet.model import Objects
from nsnet.names import fabric_netns, kind_of
from nsnet.render import render
from nsnet.state import Address, Chain, Loopback, Route, State, Veth
from nsnet.verify.why import IN_ORDER, why
from tests import controlled

TOPOLOGIES = sorted(path.stem for path in (Path(__file__).parents[1] / "topologies").glob("*.yaml"))
EACH = 6  # checks of each kind


@cache
def objects(topology: str) -> Objects:
    docs = [doc for doc in yaml.safe_load_all((_root() / f"{topology}.yaml").read_text()) if doc]
    docs = [doc for doc in docs if doc["kind"] != "Cluster"] + [_cluster(docs)]
    found = controlled.up(yaml.safe_dump_all(docs))
    return control.complete(found, controlled.listening(found))


def _root() -> Path:
    return Path(__file__).parents[1] / "topologies"


def _cluster(docs: list[dict[str, object]]) -> dict[str, object]:
    found = next((doc for doc in docs if doc["kind"] == "Cluster"), {"apiVersion": "nsnet/v1", "kind": "Cluster"})
    return {**found, "metadata": {"name": "demo"}}


def asked(topology: str) -> list[verify.Expectation]:
    """Some checks of each kind, the topology's own among them."""
    there, seen = objects(topology), Counter[str]()
    found = []
    for item in (*verify.expectations(there), *verify.checks(there)):
        seen[item.group] += 1
        found += [item] if seen[item.group] <= EACH else []
    return found


def said(topology: str, state: State, item: verify.Expectation) -> str:
    return why(state, objects(topology), item, look_of({}, objects(topology)).place)


def unplugged(state: State, netns: str) -> State:
    """Its `lo` and every cable are down."""
    down = (replace(value, up=False) if isinstance(value, Loopback | Veth) else value for value in state[netns])
    return {**state, netns: frozenset(down)}


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_no_check_fails_without_a_sentence(topology: str) -> None:
    """With nothing broken the walk finds what the checks want; where the sender is cut off it says so."""
    state = render(objects(topology))
    for item in asked(topology):
        assert said(topology, state, item) == IN_ORDER, item.name
        if item.want == "ok" and not _is_itself(state, item):
            assert said(topology, unplugged(state, item.netns), item) not in ("", IN_ORDER), item.name


def _is_itself(state: State, item: verify.Expectation) -> bool:
    """A node and its own address: that needs no cable."""
    own = {value.cidr.partition("/")[0] for value in state[item.netns] if isinstance(value, Address)}
    return item.group == "node-to-node" and item.address in own


# --- by the cause -----------------------------------------------------------------------------------------------------


def emptied(*names: str) -> Callable[[State], State]:
    """These chains have no rules, anywhere."""

    def damage(state: State) -> State:
        return {
            netns: frozenset(
                replace(value, rules=()) if isinstance(value, Chain) and value.name in names else value
                for value in values
            )
            for netns, values in state.items()
        }

    return damage


def routeless(kind: str, *networks: str) -> Callable[[State], State]:
    """Namespaces of this kind have no route there."""

    def damage(state: State) -> State:
        return {
            netns: frozenset(value for value in values if not (isinstance(value, Route) and value.dst in networks))
            if kind_of(netns) == kind
            else values
            for netns, values in state.items()
        }

    return damage


def opened(state: State) -> State:
    """The router knows the way to the pods, which it should not."""
    router = fabric_netns("demo", "router")
    return {**state, router: state[router] | {Route("10.244.0.0/16", via="172.18.0.2", dev="nodes")}}


OVERLAY = ("10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24")
CAUSES = [
    ("quickstart", "pod-to-pod", routeless("node", *OVERLAY), "unreachable at router: no route to 10.244."),
    ("quickstart", "full-size", routeless("node", *OVERLAY), "unreachable at router: no route to 10.244."),
    ("quickstart", "node-to-pod", routeless("node", *OVERLAY), "unreachable at router: no route to 10.244."),
    ("quickstart", "pod-to-node", routeless("pod", "default"), "no route to 172.18.0."),
    ("quickstart", "service", emptied("KUBE-SERVICES"), "no rule knows Service default/web; "),
    ("quickstart", "spread", emptied("KUBE-SERVICES"), "no rule knows Service default/web; "),
    ("quickstart", "dns", emptied("KUBE-SERVICES"), "no rule knows Service kube-system/kube-dns; "),
    ("quickstart", "environment", emptied("KUBE-SERVICES"), "no rule knows Service default/kubernetes; "),
    ("quickstart", "nodeport", emptied("KUBE-NODEPORTS"), "no rule knows Service default/web-public; "),
    ("quickstart", "outside", opened, "nothing should pass; it arrives there; it is delivered to pod/web-"),
    ("affinity", "affinity", emptied("KUBE-SERVICES"), "no rule knows Service default/sticky; "),
    ("hairpin", "hairpin", emptied("KUBE-POSTROUTING"), "nothing masqueraded its way to itself"),
    ("hostport", "hostport", emptied("CNI-HOSTPORT-DNAT"), "should reach pod/admin; "),
    ("loadbalancer", "loadbalancer", emptied("KUBE-SERVICES"), "it is delivered to node/node1"),
    ("loadbalancer", "check", emptied("KUBE-SERVICES"), "should reach pod/"),
    ("ingress", "ingress", emptied("KUBE-SERVICES"), "should reach pod/ingress-nsnet/"),
]  # fmt: skip


@pytest.mark.parametrize(("topology", "group", "damage", "says"), CAUSES, ids=[f"{row[0]} {row[1]}" for row in CAUSES])
def test_the_sentence_names_the_cause(topology: str, group: str, damage: Callable[[State], State], says: str) -> None:
    state = damage(render(objects(topology)))
    found = [said(topology, state, item) for item in asked(topology) if item.group == group]
    assert any(says in sentence for sentence in found), found
