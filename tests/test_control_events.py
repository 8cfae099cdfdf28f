"""Events: what a person should know of the objects as they are."""

import pytest

from nsnet import model
from tests.controlled import events, up
from tests.deciding import cluster, written


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        (
            "{apiVersion: v1, kind: Service, metadata: {name: p}, spec: {type: LoadBalancer, ports: [{port: 80}]}}",
            "there is no load balancer yet, so it has no address; node ports work",
        ),
    ],
)
def test_what_has_no_effect_yet_is_said(document: str, sentence: str) -> None:
    objects = up(document)
    assert [event.message for event in model.of(objects, model.Event) if event.involvedObject.name == "p"] == [sentence]


A = "podSelector: {matchLabels: {pod: a}}"
POLICIES = [
    (f"{A}, ingress: [{{ports: [{{port: http}}, {{port: dns, protocol: UDP}}]}}]", []),
    ("podSelector: {matchLabels: {pod: q}}",
     ["SelectsNothing: its podSelector pod=q matches no pod of namespace xxx: it isolates nobody"]),
    (f"{A}, policyTypes: [Ingress], egress: [{{}}]",
     ["RulesIgnored: its egress rules count for nothing: policyTypes does not say Egress"]),
    (f"{A}, ingress: [{{}}, {{from: [{{podSelector: {{matchLabels: {{pod: q}}}}}}]}}]",
     ["PeerMatchesNothing: ingress[1]: its podSelector pod=q matches no pod of namespace xxx"]),
    (f"{A}, ingress: [{{from: [{{namespaceSelector: {{matchLabels: {{ns: q}}}}}}]}}]",
     ["PeerMatchesNothing: ingress[0]: its namespaceSelector ns=q matches no namespace"]),
    (f"{A}, ingress: [{{from: [{{namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: default}}}}}}]}}]",
     ["PeerMatchesNothing: ingress[0]: there is no pod in those namespaces"]),
    (f"{A}, ingress: [{{ports: [{{port: http, protocol: UDP}}]}}]",
     ["UnknownPort: ingress[0]: no destination has a port named http/UDP: that item allows nothing"]),
    (f"{A}, policyTypes: [Egress], egress: [{{to: [{{ipBlock: {{cidr: 0.0.0.0/0}}}}], ports: [{{port: http}}]}}]",
     ["UnknownPort: egress[0]: no destination has a port named http/TCP: that item allows nothing"]),
    (f"{A}, policyTypes: [Egress], egress: [{{ports: [{{port: http}}]}}]", []),
    (f"{A}, ingress: [{{ports: [{{port: 80, protocol: SCTP}}]}}]",
     ["NotServed: ingress[0]: pods here serve no SCTP: nobody answers to what that item allows"]),
    ("podSelector: {matchLabels: {pod: guest}}",  # hostNetwork: not to be selected
     ["SelectsNothing: its podSelector pod=guest matches no pod of namespace xxx: it isolates nobody"]),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "said"), POLICIES)
def test_policies_that_may_not_do_what_was_meant(spec: str, said: list[str]) -> None:
    found = [line for line in events(cluster(written(spec))) if line.startswith("NetworkPolicy")]
    assert found == [f"NetworkPolicy p: {line}" for line in said]
