"""Gateway API: which request goes where, and what the objects' status says. Rows are those of the conformance tests."""

import pytest

from nsnet import model
from nsnet.model import Key
from nsnet.routes import Compiled
from nsnet.routes.gateway import Verdict
from nsnet.routes.table import Host
from tests.http_world import answer, objects, services

GATEWAY = """
kind: Gateway
metadata: {name: g}
spec: {gatewayClassName: nsnet, listeners: [{name: http, port: 80, protocol: HTTP%s}]}
"""
MATCHING = """
kind: HTTPRoute
metadata: {name: r}
spec:
  parentRefs: [{name: g}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /}}, {headers: [{name: Version, value: one}]}]
    backendRefs: [{name: v1, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /v2}}, {headers: [{name: version, value: two}]}]
    backendRefs: [{name: v2, port: 80}]
  - matches: [{path: {type: Exact, value: /exact}}]
    backendRefs: [{name: v3, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /v2/}, headers: [{name: version, value: three}]}]
    backendRefs: [{name: v3, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /m}, method: POST}]
    backendRefs: [{name: v3, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /q}, queryParams: [{name: a, value: b}]}]
    backendRefs: [{name: v3, port: 80}]
"""
MATCHED = [
    ("/", {}, "v1"),
    ("/example", {}, "v1"),
    ("/", {"Version": "one"}, "v1"),
    ("/v2", {}, "v2"),
    ("/v2/", {}, "v2"),
    ("/v2/example", {}, "v2"),
    ("/v2example", {}, "v1"),
    ("/", {"version": "two"}, "v2"),
    ("/foo", {"VERSION": "two"}, "v2"),
    ("/v2/example", {"version": "one"}, "v2"),  # the longer path before any header
    ("/v2/example", {"version": "three"}, "v3"),
    ("/exact", {}, "v3"),
    ("/exact/", {}, "v1"),
    ("/q?a=b", {}, "v3"),
    ("/q?a=c", {}, "v1"),
    ("/q?c=d&a=b", {}, "v3"),
]


def compiled(*parts: str, there: tuple[str, ...] = ("v1", "v2", "v3")) -> Compiled:
    return Compiled(objects(*parts, services(*there)))


@pytest.mark.parametrize(("path", "headers", "wanted"), MATCHED)
def test_matching(path: str, headers: dict[str, str], wanted: str) -> None:
    assert answer(compiled(GATEWAY % "", MATCHING), "any.org", path, headers) == wanted


def test_a_method() -> None:
    routes = compiled(GATEWAY % "", MATCHING)
    assert [answer(routes, "h", "/m", method=method) for method in ("GET", "POST")] == ["v1", "v3"]


def http_route(
    name: str, *hostnames: str, backend: str = "v1", rule: str = "", parent: str = "name: g", age: str = ""
) -> str:
    return f"""
kind: HTTPRoute
metadata: {{name: {name}{f", creationTimestamp: '{age}'" if age else ""}}}
spec:
  parentRefs: [{{{parent}}}]
  hostnames: [{", ".join(f'"{host}"' for host in hostnames)}]
  rules: [{{{rule or f"backendRefs: [{{name: {backend}, port: 80}}]"}}}]
"""


# listener, route, what they have in common
HOSTS = [
    ("", "", ""),
    ("", "a.com", "a.com"),
    ("a.com", "", "a.com"),
    ("a.com", "a.com", "a.com"),
    ("a.com", "b.com", "-"),
    ("*.a.com", "x.a.com", "x.a.com"),
    ("*.a.com", "x.y.a.com", "x.y.a.com"),
    ("*.a.com", "a.com", "-"),
    ("x.a.com", "*.a.com", "x.a.com"),
    ("*.a.com", "*.a.com", "*.a.com"),
    ("*.a.com", "*.b.a.com", "*.b.a.com"),
    ("*.b.a.com", "*.a.com", "*.b.a.com"),
]


@pytest.mark.parametrize(("listener", "route", "common"), HOSTS)
def test_hostname_intersection(listener: str, route: str, common: str) -> None:
    hostname = f', hostname: "{listener}"' if listener else ""
    routes = compiled(GATEWAY % hostname, http_route("r", *filter(None, [route])))
    served = [host for frontend in routes.table.frontends for host in frontend.hosts]
    assert served == ([] if common == "-" else [Host(common, deep=common.startswith("*"))])
    verdict = routes.verdicts.routes[Key("HTTPRoute", "default", "r")][0].verdicts[0]
    assert (verdict.reason == "NoMatchingListenerHostname") is (common == "-")


def test_a_wildcard_covers_several_labels_and_the_most_exact_host_wins() -> None:
    routes = compiled(
        GATEWAY % "",
        http_route("wide", "*.a.com", backend="v1"),
        http_route("exact", "x.a.com", rule="matches: [{path: {value: /p}}], backendRefs: [{name: v2, port: 80}]"),
    )
    assert answer(routes, "p.q.a.com", "/") == "v1"
    assert answer(routes, "a.com", "/") == "404"
    assert answer(routes, "x.a.com:8080", "/p") == "v2"
    assert answer(routes, "x.a.com", "/other") == "v1"  # precedence is an order, no wall


def test_listeners_of_one_port_are_apart() -> None:
    two = """
kind: Gateway
metadata: {name: g}
spec:
  gatewayClassName: nsnet
  listeners:
  - {name: one, port: 80, protocol: HTTP, hostname: very.specific.com}
  - {name: wild, port: 80, protocol: HTTP, hostname: "*.specific.com"}
"""
    routes = compiled(
        two,
        http_route("a", backend="v1", parent="name: g, sectionName: one"),
        http_route("b", backend="v2", parent="name: g, sectionName: wild"),
    )
    asked = {"very.specific.com:1234": "v1", "non.specific.com": "v2", "specific.com": "404", "a.b.specific.com": "v2"}
    assert {host: answer(routes, host, "/") for host in asked} == asked
    key = Key("Gateway", "default", "g")
    assert [(item.listener.name, item.attached) for item in routes.verdicts.listeners[key]] == [("one", 1), ("wild", 1)]


def test_the_older_route_wins_then_the_name() -> None:
    routes = compiled(GATEWAY % "", http_route("a", backend="v1", age="2"), http_route("b", backend="v2", age="1"))
    assert answer(routes, "h", "/") == "v2"
    assert answer(compiled(GATEWAY % "", http_route("b", backend="v2"), http_route("a")), "h", "/") == "v1"


# --- actions ----------------------------------------------------------------------------------------------------------

ACTIONS = [
    ("backendRefs: [{name: v1, port: 80, weight: 70}, {name: v2, port: 80, weight: 30}]", "v1 70 v2 30"),
    ("backendRefs: [{name: v1, port: 80, weight: 0}, {name: v2, port: 80}]", "v2"),
    ("backendRefs: [{name: v1, port: 80, weight: 0}]", "500"),
    ("backendRefs: []", "500"),
    ("backendRefs: [{name: gone, port: 80}]", "500"),
    ("backendRefs: [{name: gone, port: 80}, {name: v1, port: 80}]", "500 1 v1 1"),
    ("backendRefs: [{name: v1, port: 81}]", "500"),
    ("backendRefs: [{name: v1, port: 80, kind: Thing, group: x.io}]", "500"),
    ("filters: [{type: RequestRedirect, requestRedirect: {hostname: x.org}}]", "302 -://x.org"),
    (
        "filters: [{type: RequestRedirect, requestRedirect: {scheme: https, port: 8443, statusCode: 301}}]",
        "301 https://-:8443",
    ),
    ("filters: [{type: URLRewrite, urlRewrite: {}}], backendRefs: [{name: v1, port: 80}]", "500"),
]


@pytest.mark.parametrize(("rule", "wanted"), ACTIONS)
def test_actions(rule: str, wanted: str) -> None:
    assert answer(compiled(GATEWAY % "", http_route("r", rule=rule)), "h", "/") == wanted


GRANT = """
kind: ReferenceGrant
metadata: {name: let, namespace: other}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: default}]
  to: [{group: "", kind: Service%s}]
"""
ACROSS = "backendRefs: [{name: web, namespace: other, port: 80}]"


@pytest.mark.parametrize(
    ("grant", "wanted", "reason"),
    [
        ("", "500", "RefNotPermitted"),
        (GRANT % "", "web", "ResolvedRefs"),
        (GRANT % ", name: web", "web", "ResolvedRefs"),
        (GRANT % ", name: db", "500", "RefNotPermitted"),
        ((GRANT % "").replace("namespace: other", "namespace: third"), "500", "RefNotPermitted"),
    ],
)
def test_reference_grants(grant: str, wanted: str, reason: str) -> None:
    routes = compiled(GATEWAY % "", grant, http_route("r", rule=ACROSS), there=("other/web",))
    assert answer(routes, "h", "/") == wanted
    assert routes.verdicts.routes[Key("HTTPRoute", "default", "r")][0].verdicts[1].reason == reason


# --- who may attach, and what is said ---------------------------------------------------------------------------------

SPACES = ", allowedRoutes: {namespaces: {from: %s}}"
TEAM = "Selector, selector: {matchLabels: {team: %s}}"
ALLOWED = [
    ("", "default", "Accepted"),
    ("", "other", "NotAllowedByListeners"),
    (SPACES % "All", "other", "Accepted"),
    (SPACES % (TEAM % "a"), "other", "Accepted"),
    (SPACES % (TEAM % "b"), "other", "NotAllowedByListeners"),
    (", allowedRoutes: {kinds: [{kind: TCPRoute}]}", "default", "NotAllowedByListeners"),
]


@pytest.mark.parametrize(("listener", "namespace", "reason"), ALLOWED)
def test_allowed_routes(listener: str, namespace: str, reason: str) -> None:
    space = model.Namespace(model.ObjectMeta(name="other", labels={"team": "a"}))
    text = http_route("r", parent="name: g, namespace: default").replace(
        "{name: r", f"{{name: r, namespace: {namespace}", 1
    )
    routes = Compiled(objects(GATEWAY % listener, text, space, services("v1", "other/v1")))
    assert routes.verdicts.routes[Key("HTTPRoute", namespace, "r")][0].verdicts[0].reason == reason
    assert (answer(routes, "h", "/") == "v1") is (reason == "Accepted")


@pytest.mark.parametrize("parent", ["name: g, sectionName: none", "name: g, port: 81"])
def test_no_such_listener(parent: str) -> None:
    routes = compiled(GATEWAY % "", http_route("r", parent=parent))
    found = routes.verdicts.routes[Key("HTTPRoute", "default", "r")][0].verdicts[0]
    assert (found.holds, found.reason) == (False, "NoMatchingParent")


def test_a_route_of_somebody_elses_gateway_is_not_spoken_of() -> None:
    assert not compiled(GATEWAY % "", http_route("r", parent="name: another")).verdicts.routes


LISTENERS = [
    ("HTTP", "80", "", "Accepted True"),
    ("TCP", "90", "", "UnsupportedProtocol False"),
    ("HTTP", "443", "", "PortUnavailable False"),
    ("HTTPS", "443", "", "Accepted True"),
    ("HTTPS", "443", ", tls: {mode: Passthrough}", "UnsupportedValue False"),
]


@pytest.mark.parametrize(("protocol", "port", "more", "wanted"), LISTENERS)
def test_listeners(protocol: str, port: str, more: str, wanted: str) -> None:
    text = (GATEWAY % more).replace("HTTP", protocol).replace("port: 80", f"port: {port}")
    found = compiled(text).verdicts.listeners[Key("Gateway", "default", "g")][0].verdicts[0]
    assert f"{found.reason} {found.holds}" == wanted


def test_a_port_speaks_one_protocol_and_a_hostname_stands_once() -> None:
    text = """
kind: Gateway
metadata: {name: g}
spec:
  gatewayClassName: nsnet
  listeners:
  - {name: a, port: 8080, protocol: HTTP}
  - {name: b, port: 8080, protocol: HTTPS}
  - {name: c, port: 8080, protocol: HTTP}
"""
    found = compiled(text).verdicts.listeners[Key("Gateway", "default", "g")]
    assert [item.verdicts[2].reason for item in found] == ["NoConflicts", "ProtocolConflict", "HostnameConflict"]


def test_https_without_a_certificate_is_not_programmed() -> None:
    text = (
        (GATEWAY % ", tls: {certificateRefs: [{name: none}]}").replace("HTTP", "HTTPS").replace("port: 80", "port: 443")
    )
    accepted, programmed, _, resolved = compiled(text).verdicts.listeners[Key("Gateway", "default", "g")][0].verdicts
    assert accepted.holds
    assert programmed == Verdict("Programmed", holds=False, reason="Invalid")
    assert (resolved.reason, resolved.message) == ("InvalidCertificateRef", "there is no Secret default/none")
