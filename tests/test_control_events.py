"""Events: what a person should know of the objects as they are."""

import pytest

from nsnet import model
from tests.controlled import up


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        (
            "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p}, spec: {podSelector: {}}}",
            "it is kept and not enforced yet: traffic that it forbids passes",
        ),
        (
            "{apiVersion: v1, kind: Service, metadata: {name: p}, spec: {type: LoadBalancer, ports: [{port: 80}]}}",
            "there is no load balancer yet, so it has no address; node ports work",
        ),
    ],
)
def test_what_has_no_effect_yet_is_said(document: str, sentence: str) -> None:
    objects = up(document)
    assert [event.message for event in model.of(objects, model.Event) if event.involvedObject.name == "p"] == [sentence]
