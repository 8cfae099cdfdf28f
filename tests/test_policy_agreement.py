"""The decision, tables written by hand, and `walk` through the rules that render makes of policies say the same.

The decision shares no code with `render/policy.py`: where both agree, both have read facts/NETPOL.md alike.
"""

import importlib.util
from typing import Any

import pytest
from hypothesis import given, settings

from nsnet import model, names
from nsnet.control import policy
from nsnet.model import Objects
from nsnet.render import render
from nsnet.trace import Packet, walk
from tests.test_policy_properties import Doc, objects, sets

ENFORCED = importlib.util.find_spec("nsnet.render.policy") is not None
pytestmark = pytest.mark.skipif(not ENFORCED, reason="network policies are not enforced yet")


def in_mode(found: Objects, mode: str) -> Objects:
    cluster = model.cluster_of(found)
    changed: Any = {"networking": {"kubeProxyMode": mode}}
    return {**found, model.key_of(cluster): model.from_doc({**model.to_doc(cluster), **changed})}


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
@settings(max_examples=40, deadline=None)
@given(found=sets())
def test_random_sets_are_rendered_as_decided(mode: str, found: list[tuple[str, Doc]]) -> None:
    """Every ordered pair of pods, and every node to every pod."""
    all_ = in_mode(objects(found), mode)
    known, state = policy.index(all_), render(all_)
    pods = [end for end in known.pods.values() if not end.name.startswith("kube-system/")]
    wrong = []
    for source in (*pods, *known.nodes.values()):
        netns = (
            names.pod_netns("demo", *source.name.split("/"))
            if source.kind == "pod"
            else names.node_netns("demo", source.name)
        )
        for target in pods:
            for port, protocol in ((80, "TCP"), (81, "TCP"), (80, "UDP"), (0, "ICMP")):
                (way,) = walk(state, netns, Packet(protocol.lower(), target.address, port))
                seen = policy.as_source(known, source, target)
                if (way.result == "delivered") != policy.allows(known, seen, target, port, protocol):
                    wrong.append(f"{source} > {target}:{port}/{protocol}: {way}")
    assert wrong == []
