"""`trace FROM http://HOST/PATH`: one walk from the client by balancer, node and proxy to a pod, and how it ends."""

from collections import defaultdict
from pathlib import Path

import pytest

from nsnet.cli.proxied import address_of, legs, onward, request_of
from nsnet.cli.target import target
from nsnet.errors import InputError
from nsnet.model import Objects
from nsnet.render import render
from nsnet.trace import Packet, answer, walk
from tests.controlled import listening, up

TOPOLOGIES = Path(__file__).parents[1] / "topologies"


def cluster(name: str, replicas: int = 2) -> Objects:
    """A topology under the name `demo`, every pod ready."""
    text = (TOPOLOGIES / f"{name}.yaml").read_text().replace(f"metadata: {{name: {name}}}", "metadata: {name: demo}")
    text = text.replace("replicas: 2", f"replicas: {replicas}")
    return up(text, facts=listening(up(text)))


def ends(objects: Objects, source: str, url: str) -> dict[str, float]:
    """`delivered pod` or `refused: why` → how likely; every way that arrives is answered, too."""
    request, start = request_of(url), target(objects, source)
    assert request is not None
    state, found = render(objects), defaultdict[str, float](float)
    asked = Packet("tcp", address_of(objects, request), request.port)
    for way in walk(state, start.netns, asked):
        for end in onward(objects, state, way, request):
            pod = end.netns.rpartition(".")[2].rpartition("-")[0].partition("-")[0] or end.netns.rpartition(".")[2]
            found[f"{end.result} {pod}" if end.result == "delivered" else f"{end.result}: {end.reason}"] += end.chance
            if end.result == "delivered":
                assert [one.result for one in answer(state, end, asked)] == ["delivered"]
    return {where: round(chance, 3) for where, chance in found.items()}


NO_RULE = "refused: the proxy answers 404: no rule takes this host and path"


@pytest.mark.parametrize(
    ("topology", "source", "url", "expected"),
    [
        ("ingress", "host/client", "http://app.sample.com/x", {"delivered a": 1.0}),
        ("ingress", "host/client", "https://APP.complex.com/path?q=1", {"delivered b": 1.0}),
        ("ingress", "host/client", "http://app.complex.com/other", {NO_RULE: 1.0}),
        ("ingress", "node/node1", "http://app.sample.com/", {"delivered a": 1.0}),
        ("ingress", "host/client", "http://203.0.113.219/", {NO_RULE: 1.0}),
        ("gateway", "host/client", "http://shop.example.com/", {"delivered one": 0.9, "delivered two": 0.1}),
        ("gateway", "host/client", "http://old.example.com/", {"delivered ingress": 1.0}),  # a redirect
    ],
)
def test_where_a_request_ends(topology: str, source: str, url: str, expected: dict[str, float]) -> None:
    assert ends(cluster(topology), source, url) == expected


def test_without_a_ready_endpoint_the_proxy_answers() -> None:
    why = "refused: the proxy answers 503: default/service-a:80 has no ready endpoint"
    assert ends(cluster("ingress", replicas=0), "host/client", "http://app.sample.com/") == {why: 1.0}


def test_both_connections_are_named_with_who_opened_them() -> None:
    objects = cluster("ingress")
    state, start, request = render(objects), target(objects, "host/client"), request_of("http://app.sample.com/")
    assert request is not None
    way = walk(state, start.netns, Packet("tcp", address_of(objects, request), 80))[0]
    joined = next(onward(objects, state, way, request))
    assert any(hop.what.startswith("proxy → default/service-a:80, 1 of 2 endpoints") for hop in joined.hops)
    (_, first), (proxy, second) = legs(objects, start, joined)
    assert (first, proxy.netns) == (way, way.netns)
    assert second.packet.src == way.packet.dst


@pytest.mark.parametrize("text", ["host/client", "10.0.0.1:80", "svc/web"])
def test_what_is_no_url(text: str) -> None:
    assert request_of(text) is None


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("ftp://a.org/", "ftp is not followed"),
        ("http:///x", "names no host"),
        ("http://a.org:70000/", "Port out of range"),
        ("http://app.simple.com/", "nobody outside knows the name app.simple.com (did you mean app.sample.com?)"),
    ],
)
def test_what_cannot_be_asked(url: str, error: str) -> None:
    with pytest.raises(InputError) as caught:
        ends(cluster("ingress"), "host/client", url)
    assert error in str(caught.value)
    assert caught.value.hint
