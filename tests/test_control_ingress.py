"""The proxy's objects, and what Ingress and Gateway objects say of themselves."""

import base64

import msgspec
import pytest

from nsnet import model
from nsnet.control import Facts
from nsnet.control.certificate import default_certificate
from nsnet.model import Gateway, HTTPRoute, Ingress, IngressClass, Objects, Service
from nsnet.routes.certificates import Broken, leaf, pem_of
from tests.controlled import apply, delete, events, key, listening, load, one, stored, up

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
"""
INGRESS = """
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: a}
spec: {%sdefaultBackend: {service: {name: web, port: {number: 80}}}}
---
"""
GATEWAY = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: g, generation: 3}
spec: {gatewayClassName: nsnet, listeners: [{name: http, port: 8080, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec: {parentRefs: [{name: g}], rules: [{backendRefs: [{name: web, port: 80}, {name: gone, port: 80}]}]}
---
"""


def proxy(objects: Objects) -> list[str]:
    """What is there of the proxy and of classes."""
    kinds = {"Deployment", "Secret", "IngressClass", "GatewayClass", "Service"}
    return sorted(str(item) for item in objects if item.kind in kinds and item.namespace in {"", "ingress-nsnet"})


def test_there_is_a_proxy_as_long_as_somebody_asks_for_it() -> None:
    assert proxy(up(SERVICE)) == []
    there = up(SERVICE + INGRESS % "")
    parts = [
        "Deployment ingress-nsnet/ingress",
        "Secret ingress-nsnet/default-certificate",
        "Service ingress-nsnet/ingress",
    ]
    assert proxy(there) == sorted([*parts, "IngressClass nsnet"])
    assert proxy(delete(there, "Ingress/a")) == []
    assert proxy(up(SERVICE + GATEWAY)) == sorted([*parts, "GatewayClass nsnet"])


def test_an_ingress_of_another_controller_asks_for_none() -> None:
    klass = """
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: nginx}
spec: {controller: k8s.io/ingress-nginx}
---
"""
    there = up(SERVICE + klass + INGRESS % "ingressClassName: nginx, ")
    assert proxy(there) == ["IngressClass nginx", "IngressClass nsnet"]
    told = "Ingress a: NotServed: IngressClass nginx belongs to k8s.io/ingress-nginx; only nsnet/ingress runs here"
    assert told in events(there)


def test_who_names_no_class_is_given_the_default_one() -> None:
    there = up(SERVICE + INGRESS % "")
    given = one(there, "Ingress/a")
    assert isinstance(given, Ingress)
    assert given.spec.ingressClassName == "nsnet"
    ours = one(there, "IngressClass/nsnet")
    assert isinstance(ours, IngressClass)
    assert ours.metadata.annotations == {"ingressclass.kubernetes.io/is-default-class": "true"}


def test_the_service_gets_the_ports_of_gateways_and_keeps_its_node_ports() -> None:
    there = up(SERVICE + INGRESS % "")
    before = _ports(there)
    assert list(before) == [80, 443]
    both = apply(there, GATEWAY)
    assert {number: _ports(both)[number] for number in before} == before
    assert list(_ports(both)) == [80, 443, 8080]


def _ports(objects: Objects) -> dict[int, int | None]:
    service = one(objects, "Service/ingress-nsnet/ingress")
    assert isinstance(service, Service)
    return {port.port: port.nodePort for port in service.spec.ports or ()}


def test_the_cluster_document_says_how_many_and_which_policy() -> None:
    said = """
apiVersion: nsnet/v1
kind: Cluster
metadata: {name: demo}
ingress: {replicas: 2, externalTrafficPolicy: Local}
---
"""
    there = up(said + SERVICE + INGRESS % "")
    service, deployment = one(there, "Service/ingress-nsnet/ingress"), one(there, "Deployment/ingress-nsnet/ingress")
    assert isinstance(service, Service)
    assert isinstance(deployment, model.Deployment)
    assert (service.spec.externalTrafficPolicy, deployment.spec.replicas) == ("Local", 2)
    assert service.spec.healthCheckNodePort


def test_a_service_that_is_brought_is_taken() -> None:
    own = """
apiVersion: v1
kind: Service
metadata: {name: ingress, namespace: ingress-nsnet}
spec: {type: NodePort, selector: {app.kubernetes.io/name: x}, ports: [{name: http, port: 80, nodePort: 30080}]}
---
"""
    assert _ports(up(own + SERVICE + INGRESS % "")) == {80: 30080}


# --- status -----------------------------------------------------------------------------------------------------------


def with_address(objects: Objects, address: str) -> Objects:
    service = one(objects, "Service/ingress-nsnet/ingress")
    assert isinstance(service, Service)
    given = model.ServiceStatus(model.LoadBalancerStatus((model.LoadBalancerIngress(address, ipMode="VIP"),)))
    return {**objects, key("Service/ingress-nsnet/ingress"): msgspec.structs.replace(service, status=given)}


def _given(objects: Objects) -> list[str]:
    found = one(objects, "Ingress/a")
    assert isinstance(found, Ingress)
    return [item.ip for item in found.status.loadBalancer.ingress or ()]


def test_what_is_served_has_the_proxys_address_and_nothing_else_has() -> None:
    there = up(SERVICE + INGRESS % "")
    addressed = apply(with_address(there, "203.0.113.200"), SERVICE)
    service = one(addressed, "Service/ingress-nsnet/ingress")
    assert isinstance(service, Service)
    assert _given(addressed) == [item.ip for item in service.status.loadBalancer.ingress or ()]
    other = "apiVersion: networking.k8s.io/v1\nkind: IngressClass\nmetadata: {name: o}\nspec: {controller: x/y}\n---\n"
    assert _given(apply(addressed, other + INGRESS % "ingressClassName: o, ")) == []


NO_POOL = "apiVersion: nsnet/v1\nkind: Cluster\nloadBalancer: {addresses: []}\n---\n"


def test_gateway_status() -> None:
    there = up(NO_POOL + SERVICE + GATEWAY, facts=Facts(now="2026-01-31T12:00:00Z"))
    gateway, route = one(there, "Gateway/g"), one(there, "HTTPRoute/r")
    assert isinstance(gateway, Gateway)
    assert isinstance(route, HTTPRoute)
    assert [(item.type, item.status, item.reason) for item in gateway.status.conditions] == [
        ("Accepted", "True", "Accepted"),
        ("Programmed", "False", "AddressNotAssigned"),
    ]
    assert {item.observedGeneration for item in gateway.status.conditions} == {3}
    assert [(item.name, item.attachedRoutes) for item in gateway.status.listeners] == [("http", 1)]
    (parent,) = route.status.parents
    assert [(item.type, item.status, item.reason, item.lastTransitionTime) for item in parent.conditions] == [
        ("Accepted", "True", "Accepted", "2026-01-31T12:00:00Z"),
        ("ResolvedRefs", "False", "BackendNotFound", "2026-01-31T12:00:00Z"),
    ]
    assert "HTTPRoute r: BackendNotFound: there is no Service default/gone" in events(there)
    addressed = one(up(SERVICE + GATEWAY), "Gateway/g")
    assert isinstance(addressed, Gateway)
    assert [(item.type, item.status) for item in addressed.status.conditions] == [
        ("Accepted", "True"),
        ("Programmed", "True"),
    ]
    assert len(addressed.status.addresses) == 1


def test_a_condition_keeps_its_time_until_it_changes() -> None:
    first = up(SERVICE + GATEWAY, facts=Facts(now="2026-01-31T12:00:00Z"))
    again = apply(stored(first), SERVICE, facts=Facts(now="2026-01-31T13:00:00Z"))
    before, after = one(first, "HTTPRoute/r"), one(again, "HTTPRoute/r")
    assert isinstance(before, HTTPRoute)
    assert isinstance(after, HTTPRoute)
    assert after.status == before.status


def test_a_refused_configuration_is_an_event() -> None:
    there = up(SERVICE + INGRESS % "")
    facts = listening(there)
    assert facts.listening is not None
    netns = next(name for name in facts.listening if ".pod.ingress-nsnet." in name)
    heard = {**facts.listening, netns: facts.listening[netns] | {("REFUSED parsing [haproxy.cfg:3]: no", 0)}}
    after = apply(there, SERVICE, facts=Facts(heard, facts.now))
    told = [line for line in events(after) if "ConfigurationRefused" in line]
    assert told[0].endswith("the proxy goes on with its last good configuration: parsing [haproxy.cfg:3]: no")


# --- certificates -----------------------------------------------------------------------------------------------------


def tls(**data: str) -> model.Other:
    coded = {name.replace("_", "."): base64.b64encode(text.encode()).decode() for name, text in data.items()}
    raw = {"kind": "Secret", "type": "kubernetes.io/tls", "data": coded}
    return model.Other(model.ObjectMeta(name="s", namespace="default"), "Secret", raw)


CRT, KEY = default_certificate("demo")
OTHER_CRT, OTHER_KEY = default_certificate("other")
BROKEN = [
    (tls(tls_crt=CRT), "it has no tls.key"),
    (tls(tls_crt=CRT, tls_key=OTHER_KEY), "tls.key does not belong to tls.crt"),
    (tls(tls_crt="x", tls_key=KEY), "tls.crt has no certificate in it"),
    (tls(tls_crt=CRT.replace("MII", "AII"), tls_key=KEY), "tls.crt is not a certificate"),
    (tls(tls_crt=CRT, tls_key=CRT), "tls.key has no private key in it"),
    (tls(tls_crt=CRT, tls_key=KEY.replace("EC PRIVATE", "ENCRYPTED PRIVATE")), "tls.key is encrypted, and nobody"),
    (tls(tls_crt=CRT, tls_key=KEY[:60] + KEY[90:]), "tls.crt or tls.key is damaged"),
]  # fmt: skip


@pytest.mark.parametrize(("secret", "why"), BROKEN, ids=[why for _, why in BROKEN])
def test_broken_certificates(secret: model.Other, why: str) -> None:
    with pytest.raises(Broken, match=why):
        pem_of(secret)


def test_the_default_certificate_is_the_same_every_time() -> None:
    assert default_certificate("demo") == (CRT, KEY)
    assert pem_of(tls(tls_crt=CRT, tls_key=KEY)) == CRT + KEY
    assert leaf(CRT + KEY) != leaf(OTHER_CRT)


def test_loaded_objects_come_back_as_they_were() -> None:
    there = up(SERVICE + GATEWAY + INGRESS % "")
    assert stored(there) == stored(stored(there))
    assert model.to_doc(load(GATEWAY)[key("HTTPRoute/r")])["spec"]["rules"][0]["backendRefs"][1]["name"] == "gone"
