"""A kernel that cannot match SCTP ports: what is left out, and that nothing else is."""

import msgspec

from nsnet import model
from nsnet.model import Objects
from nsnet.render import render
from nsnet.state import Chain, State
from tests.controlled import events, up
from tests.structure import faults

TOPOLOGY = """
{apiVersion: nsnet/v1, kind: Cluster, metadata: {name: demo}, dns: {enabled: false}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a, labels: {app: a}}, spec: {nodeName: node1, containers: [
  {name: c, ports: [{containerPort: 80}, {containerPort: 9, hostPort: 9, protocol: SCTP}]}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {type: LoadBalancer, selector: {app: a},
  externalTrafficPolicy: Local, loadBalancerSourceRanges: [203.0.113.0/24], sessionAffinity: ClientIP,
  ports: [{name: web, port: 80}, {name: other, port: 9, protocol: SCTP}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: some}, spec: {podSelector: {},
  ingress: [{ports: [{port: 80}, {port: 9, protocol: SCTP}]}]}}
"""


def lacking(objects: Objects) -> Objects:
    cluster = model.cluster_of(objects)
    meta = msgspec.structs.replace(cluster.metadata, annotations={model.LACKS: "sctp"})
    return {**objects, model.key_of(cluster): msgspec.structs.replace(cluster, metadata=meta)}


def rules(state: State) -> dict[tuple[str, str, str], list[str]]:
    chains = ((netns, value) for netns, values in state.items() for value in values if isinstance(value, Chain))
    return {(netns, chain.table, chain.name): list(chain.rules) for netns, chain in chains}


def test_every_rule_for_sctp_goes_and_no_other() -> None:
    """Of the proxy, the balancer, a hostPort and a policy; the chains of a Service's SCTP port go with them."""
    objects = up(TOPOLOGY)
    whole, left = rules(render(objects)), rules(render(lacking(objects)))
    assert {where[0] for where, found in whole.items() if "-p sctp" in str(found)} == {
        "demo.node.node1", "demo.node.node2", "demo.fabric.router",
    }  # fmt: skip
    assert "-p sctp" not in str(left)
    for where, found in left.items():
        assert [rule for rule in whole[where] if "-p sctp" not in rule] == found, where
    gone = {where[2].rpartition("-")[0] for where in whole.keys() - left.keys()}
    assert gone == {"KUBE-SVL", "KUBE-SVC", "KUBE-EXT", "KUBE-FW", "KUBE-SEP", "LB-SVC", "CNI-DN", "CNI-HOSTPORT"}
    assert faults(render(lacking(objects))) == []


def test_an_event_says_so() -> None:
    said = events(
        up(TOPOLOGY.replace("metadata: {name: demo}", "metadata: {name: demo, annotations: {nsnet/lacks: sctp}}"))
    )
    why = "this kernel has no sctp match (CONFIG_NETFILTER_XT_MATCH_SCTP)"
    assert f"Cluster demo: NoSCTP: {why}: rules for SCTP ports are left out" in said
    assert f"Service web: NotServed: port 9/SCTP: {why}: there are no rules for it" in said
