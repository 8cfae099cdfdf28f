"""verify and the truth table on the real kernel, where NetworkPolicies close what a cluster's Services lead to.

What verify expects follows from the decision, so that a set of policies under which every packet goes as expected is
one on which the decision, the rules of kube-proxy and those of the policies agree: by ClusterIP, by node port with
either traffic policy, from nodes through the tunnel and from outside.
"""

import importlib.util
import subprocess
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from nsnet import kernel, model, verify
from nsnet.diff import diff
from nsnet.render import render
from nsnet.verify import table as tables
from nsnet.verify import world as worlds
from tests.test_verify_policy import CLIENT, NODE1, PODS, only, with_policy
from tests.verifying import Objects

ENFORCED = importlib.util.find_spec("nsnet.render.policy") is not None


def in_mode(mode: str) -> Objects:
    said = model.cluster_of(PODS)
    networking = msgspec.structs.replace(said.networking, kubeProxyMode=mode)
    return {**PODS, model.key_of(said): msgspec.structs.replace(said, networking=networking)}


@pytest.fixture(scope="module", params=["iptables", "nftables"])
def base(request: pytest.FixtureRequest) -> Iterator[Objects]:
    objects = in_mode(request.param)
    assert kernel.apply(diff({}, render(objects))) == []
    yield objects
    kernel.destroy("demo")


def written(objects: Objects) -> None:
    assert kernel.apply(diff(kernel.observe("demo"), render(objects))) == []


SETS: dict[str, list[dict[str, Any]]] = {
    "both directions closed for all": [{"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}],
    "only the client": [{"podSelector": {}, "ingress": [CLIENT]}],
    "only node1, through the tunnel": [{"podSelector": {}, "ingress": [NODE1]}],
    "out to pods and one node, in on one port": [
        {"podSelector": only("d"), "policyTypes": ["Egress"],
         "egress": [{"to": [{"podSelector": only("a", "e")}, {"ipBlock": {"cidr": "172.18.0.2/32"}}]}]},
        {"podSelector": only("b", "e"), "ingress": [{"ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}]}]},
    ],
}  # fmt: skip


@pytest.mark.skipif(not ENFORCED, reason="network policies are not enforced yet")
@pytest.mark.parametrize("name", SETS)
def test_packets_go_as_verify_expects(base: Objects, name: str) -> None:
    objects = base
    for number, spec in enumerate(SETS[name]):
        objects = with_policy(spec, objects, f"p{number}")
    written(objects)
    wanted = verify.expectations(objects)
    assert {item.want for item in wanted} >= {"ok", "blocked"}
    results = verify.run(wanted, retry=1)
    assert [f"{result.name}: {result.reason}" for result in results if not result.ok] == []
    found = tables.look(tables.tables(worlds.world(objects)))
    assert [(one.protocol, one.port) for one in found] == [("TCP", 80), ("TCP", 8080), ("UDP", 53)]
    assert [one.different for one in found] == [[], [], []]


def test_a_pair_that_is_cut_is_seen(base: Objects) -> None:
    """By a rule that nobody wants: the table differs in one cell, and in no other."""
    written(base)
    world = worlds.world(base)
    a, d = (next(pod for pod in world.pods if pod.name == f"default/{name}") for name in "ad")
    cut = f"iptables -I FORWARD -s {a.address} -d {d.address} -p tcp --dport 80 -j DROP".split()
    subprocess.run(["ip", "netns", "exec", "demo.node.node1", *cut], check=True, capture_output=True)
    (one,) = tables.look(tables.tables(world, (), [80], "TCP"))
    assert [(source.name, target.name) for source, target in one.different] == [("default/a", "default/d")]
    assert sum(seen is True for row in one.seen for seen in row) == 35
    written(base)
