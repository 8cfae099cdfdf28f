"""HAProxy's files, whole, and what of objects may stand in them."""

import os
from pathlib import Path

import pytest

from nsnet.model import Key
from nsnet.render.ingress import configuration, quoted
from nsnet.routes import Compiled, endpoints
from tests import http_world
from tests.http_world import ingress, objects, services

GOLDEN = Path(__file__).parent / "golden" / "haproxy"
GATEWAY = """
kind: Gateway
metadata: {name: g}
spec:
  gatewayClassName: nsnet
  listeners: [{name: a, port: 80, protocol: HTTP}, {name: b, port: 8080, protocol: HTTP, hostname: "*.foo.com"}]
---
kind: HTTPRoute
metadata: {name: r}
spec:
  parentRefs: [{name: g}]
  hostnames: [shop.foo.com, "*.foo.com"]
  rules:
  - matches: [{path: {type: Exact, value: /v}, headers: [{name: X-Version, value: "it's 2%"}]}]
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {set: [{name: A, value: "'%[src]"}], add: [{name: B, value: "1"}], remove: [C]}
    backendRefs: [{name: v2, port: 80}]
  - matches: [{path: {value: /old}}]
    filters: [{type: RequestRedirect, requestRedirect: {scheme: https, hostname: new.foo.com, statusCode: 301}}]
  - matches: [{path: {value: /}, method: GET, queryParams: [{name: a, value: b}]}, {path: {value: /w}}]
    backendRefs: [{name: v1, port: 80, weight: 9}, {name: v2, port: 80, weight: 1}, {name: gone, port: 80, weight: 2}]
"""
CASES = {
    "ingress": objects(
        ingress("a", "foo.com / Prefix web\nfoo.com /api Prefix api:8080\nfoo.com /api Exact web"),
        ingress("c", "*.foo.com / Prefix web\n- /x Exact api:8080"),
        ingress("b", default="web"),
        services("web", "api:8080"),
        http_world.endpoints("web", "10.244.1.2", "10.244.2.2"),
    ),
    "gateway": objects(GATEWAY, services("v1", "v2"), http_world.endpoints("v1", "10.244.1.2")),
}  # fmt: skip
PEMS = {Key("Secret", "ingress-nsnet", "default-certificate"): "the default certificate\n"}


def files(name: str) -> dict[str, str]:
    there = CASES[name]
    table = Compiled(there).table
    return configuration("/run/x", table.frontends, endpoints(there, table.backends()), PEMS)


@pytest.mark.parametrize("name", CASES)
def test_whole_files(name: str) -> None:
    text = "".join(f"=== {file}\n{content}" for file, content in sorted(files(name).items()))
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def test_the_hash_is_of_everything_but_the_servers() -> None:
    there = CASES["ingress"]
    table = Compiled(there).table

    def digest(**changed: object) -> str:
        given = {"frontends": table.frontends, "endpoints": endpoints(there, table.backends()), "pems": PEMS} | changed
        return configuration("/run/x", **given)["haproxy.cfg"].splitlines()[2]  # type: ignore[arg-type]

    backends = table.backends()
    assert digest() == digest(endpoints=dict.fromkeys(backends, ()))
    assert digest() != digest(endpoints=dict.fromkeys(backends[:1], ()))
    assert digest() != digest(pems=dict.fromkeys(PEMS, "another\n"))
    assert digest() != digest(frontends=table.frontends[:1])


@pytest.mark.parametrize(
    "rows",
    ["foo.com /a\x7fb Prefix web", "foo.com /ä Prefix web", "foo.com\x01 / Prefix web", "ä.com / Prefix web"],
)
def test_what_no_request_can_say_is_left_out(rows: str) -> None:
    there = objects(ingress("a", rows), services("web"))
    table = Compiled(there).table
    maps = configuration("/x", table.frontends, endpoints(there, table.backends()), PEMS)
    assert maps["0.prefix"] == ""


def test_quoting() -> None:
    assert quoted("plain") == "'plain'"
    assert quoted("it's") == "'it'\\''s'"
