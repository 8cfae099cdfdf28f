"""Ingress: which request goes where. The rows are the examples of Kubernetes' concept page, and what it leaves open."""

from collections.abc import Iterable

import pytest

from nsnet import model
from nsnet.model import Key
from nsnet.routes import Compiled
from nsnet.routes.table import HTTPS, ancestors
from tests.http_world import answer, ingress, objects, services

# type, paths, request, which path is meant (`-`: none): the concept page's table of path types
PATHS = """
Prefix  /                   /               /
Prefix  /                   /any/path       /
Exact   /foo                /foo            /foo
Exact   /foo                /bar            -
Exact   /foo                /foo/           -
Exact   /foo/               /foo            -
Prefix  /foo                /foo            /foo
Prefix  /foo                /foo/           /foo
Prefix  /foo/               /foo            /foo/
Prefix  /foo/               /foo/           /foo/
Prefix  /aaa/bb             /aaa/bbb        -
Prefix  /aaa/bbb            /aaa/bbb        /aaa/bbb
Prefix  /aaa/bbb/           /aaa/bbb        /aaa/bbb/
Prefix  /aaa/bbb            /aaa/bbb/       /aaa/bbb
Prefix  /aaa/bbb            /aaa/bbb/ccc    /aaa/bbb
Prefix  /aaa/bbb            /aaa/bbbxyz     -
Prefix  /,/aaa              /aaa/ccc        /aaa
Prefix  /,/aaa,/aaa/bbb     /aaa/bbb        /aaa/bbb
Prefix  /,/aaa,/aaa/bbb     /ccc            /
Prefix  /aaa                /ccc            -
Prefix  /foo                /FOO            -
Prefix  /foo                /foo?a=/bar     /foo
Exact   /foo                /foo?a=b        /foo
Prefix  /foo,/foo/          /foo            /foo/
Prefix  /foo                //foo           -
ImplementationSpecific  /app       /app/x   /app
ImplementationSpecific  -          /x       -/
"""


def asked(compiled: Compiled, requests: Iterable[str]) -> dict[str, str]:
    """`host path` → who answers."""
    return {request: answer(compiled, request.split()[0], request.split()[1]) for request in requests}


@pytest.mark.parametrize("row", PATHS.strip().splitlines())
def test_paths(row: str) -> None:
    kind, paths, request, wanted = row.split()
    names = {path: f"s{number}" for number, path in enumerate(paths.split(","))}
    rows = "\n".join(f"foo.com {path} {kind} {name}" for path, name in names.items())
    compiled = Compiled(objects(ingress("a", rows), services(*names.values())))
    meant = {"-": "404", "-/": "s0"}.get(wanted) or names[wanted]
    assert answer(compiled, "foo.com", request) == meant


# rows of one Ingress, then `host path` → service
MIXED = [
    ("h /foo Prefix p\nh /foo Exact e", "h /foo", "e"),
    ("h /foo Exact e\nh /foo Prefix p", "h /foo/x", "p"),
    ("h /foo Exact e\nh /foo/ Prefix p", "h /foo", "p"),  # the longer one
    ("h / Prefix p\nh /foo/bar Exact e", "h /foo/bar", "e"),
    ("*.foo.com / Prefix w", "bar.foo.com /", "w"),
    ("*.foo.com / Prefix w", "baz.bar.foo.com /", "404"),
    ("*.foo.com / Prefix w", "foo.com /", "404"),
    ("*.foo.com / Prefix w\nbar.foo.com / Prefix p", "bar.foo.com /", "p"),
    ("*.foo.com /x Prefix w\nbar.foo.com /y Prefix p", "bar.foo.com /x", "404"),  # the host is chosen first
    ("- / Prefix any\nbar.foo.com /y Prefix p", "bar.foo.com /x", "404"),
    ("- / Prefix any\nbar.foo.com /y Prefix p", "other.org /x", "any"),
    ("foo.com / Prefix p", "FOO.com:8080 /", "p"),
    ("foo.com / Prefix p", "foo.com. /", "404"),
    ("foo.com / Prefix p:8080", "foo.com /", "503"),  # no such port
    ("foo.com / Prefix p:http", "foo.com /", "p"),
    ("foo.com / Prefix p:web", "foo.com /", "503"),
    ("foo.com / Prefix gone", "foo.com /", "503"),
]


@pytest.mark.parametrize(("rows", "request_", "wanted"), MIXED)
def test_precedence(rows: str, request_: str, wanted: str) -> None:
    compiled = Compiled(objects(ingress("a", rows), services("p", "e", "w", "any")))
    host, path = request_.split()
    assert answer(compiled, host, path) == wanted
    assert answer(compiled, host, path, port=HTTPS) == wanted


CONCEPT_PAGE = {
    "minimal": ("- /testpath Prefix test", {"any.org /testpath": "test", "any.org /": "404"}),
    "fanout": (
        "foo.bar.com /foo Prefix service1:4200\nfoo.bar.com /bar Prefix service2:8080",
        {"foo.bar.com /foo": "service1", "foo.bar.com /bar/x": "service2", "foo.bar.com /": "404", "x.org /foo": "404"},
    ),
    "name based": (
        "foo.bar.com / Prefix service1\nbar.foo.com / Prefix service2",
        {"foo.bar.com /": "service1", "bar.foo.com /": "service2", "first.org /": "404"},
    ),
    "name based, and one for all others": (
        "first.bar.com / Prefix service1\nsecond.bar.com / Prefix service2\n- / Prefix service3",
        {"first.bar.com /": "service1", "second.bar.com /": "service2", "x.org /": "service3"},
    ),
    "wildcard": (
        "foo.bar.com /bar Prefix service1\n*.foo.com /foo Prefix service2",
        {"foo.bar.com /bar": "service1", "a.foo.com /foo": "service2", "a.foo.com /bar": "404"},
    ),
    "tls": ("https-example.foo.com / Prefix service1", {"https-example.foo.com /": "service1"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CONCEPT_PAGE)
def test_examples_of_the_concept_page(name: str) -> None:
    rows, wanted = CONCEPT_PAGE[name]
    there = services("test", "service1", "service2", "service3")
    ports = services("service1:4200", "service2:8080") if name == "fanout" else []
    compiled = Compiled(objects(ingress("a", rows), there, ports))
    assert asked(compiled, wanted) == wanted


def test_resources_as_backends_are_nothing_that_is_served() -> None:
    """The page's `ingress-resource-backend`: both are noted and answered with 503."""
    text = """
kind: Ingress
metadata: {name: ingress-resource-backend}
spec:
  defaultBackend: {resource: {apiGroup: k8s.example.com, kind: StorageBucket, name: static-assets}}
  rules:
  - http:
      paths:
      - path: /icons
        pathType: ImplementationSpecific
        backend: {resource: {apiGroup: k8s.example.com, kind: StorageBucket, name: icon-assets}}
"""
    compiled = Compiled(objects(text))
    assert asked(compiled, ["any.org /icons", "any.org /"]) == {"any.org /icons": "503", "any.org /": "503"}
    assert [note.reason for note in compiled.notes] == ["ResourceBackend"]


def test_a_single_service_without_rules_gets_everything() -> None:
    compiled = Compiled(objects(ingress("a", default="test"), services("test")))
    assert answer(compiled, "any.org", "/x") == "test"


def test_default_backends_take_what_no_rule_takes_and_the_own_one_comes_first() -> None:
    compiled = Compiled(
        objects(
            ingress("own", "foo.com /x Prefix x", default="own"),
            ingress("bare", "bar.com /x Prefix x"),
            ingress("all", default="all"),
            services("x", "own", "all"),
        )
    )
    wanted = {"foo.com /x": "x", "foo.com /y": "own", "bar.com /x": "x", "bar.com /y": "all", "new.org /": "all"}
    assert asked(compiled, wanted) == wanted


def test_a_default_backend_beside_rules_takes_unknown_hosts_too() -> None:
    compiled = Compiled(objects(ingress("a", "foo.com /x Prefix x", default="d"), services("x", "d")))
    assert answer(compiled, "new.org", "/") == "d"


def test_a_host_without_paths_is_for_the_default_backend() -> None:
    bare = ingress("a", default="d", rules=[{"host": "foo.com"}])
    without = ingress("b", rules=[{"host": "bar.com"}])
    compiled = Compiled(objects(bare, without, services("d")))
    assert (answer(compiled, "foo.com", "/x"), answer(compiled, "bar.com", "/x")) == ("d", "404")
    with_one_for_all = Compiled(objects(without, ingress("c", default="d"), services("d")))
    assert answer(with_one_for_all, "bar.com", "/x") == "d"


def test_ingresses_with_one_host_are_merged_and_the_older_wins() -> None:
    old = ingress("z", "h /a Prefix old\nh /same Prefix old", age="2026-01-01T00:00:00Z")
    new = ingress("a", "h /b Prefix new\nh /same Prefix new", age="2026-02-01T00:00:00Z")
    compiled = Compiled(objects(new, old, services("old", "new")))
    assert [answer(compiled, "h", path) for path in ("/a", "/b", "/same")] == ["old", "new", "old"]


def test_of_the_same_age_the_lower_name_wins() -> None:
    compiled = Compiled(objects(ingress("b", "h / Prefix b"), ingress("a", "h / Prefix a"), services("a", "b")))
    assert answer(compiled, "h", "/") == "a"


# --- classes ----------------------------------------------------------------------------------------------------------


def klass(name: str, controller: str = "nsnet/ingress", *, default: bool = False, age: str = "") -> model.IngressClass:
    notes = {"ingressclass.kubernetes.io/is-default-class": "true"} if default else {}
    meta = model.ObjectMeta(name=name, annotations=notes, creationTimestamp=age or None)
    return model.IngressClass(meta, model.IngressClassSpec(controller))


OTHER = "k8s.io/ingress-nginx"
CLASSES = [
    ("ours by name", {"ingressClassName": "a"}, [klass("a")], True),
    ("another's", {"ingressClassName": "a"}, [klass("a", OTHER)], False),
    ("nobody defines it", {"ingressClassName": "nginx"}, [klass("a")], True),
    ("none, and no default", {}, [klass("a", OTHER)], True),
    ("none, the default is ours", {}, [klass("a", default=True), klass("b", OTHER)], True),
    ("none, the default is another's", {}, [klass("a"), klass("b", OTHER, default=True)], False),
    ("the newest default", {}, [klass("a", default=True, age="1"), klass("b", OTHER, default=True, age="2")], False),
    ("of the same age the lowest name", {}, [klass("b", OTHER, default=True), klass("a", default=True)], True),
]


@pytest.mark.parametrize(("spec", "classes", "served"), [row[1:] for row in CLASSES], ids=[row[0] for row in CLASSES])
def test_classes(spec: dict[str, str], classes: list[model.IngressClass], served: bool) -> None:
    compiled = Compiled(objects(ingress("a", "h / Prefix s", **spec), classes, services("s")))
    assert (compiled.served == {Key("Ingress", "default", "a")}) is served
    assert answer(compiled, "h", "/") == ("s" if served else "404")


def test_the_old_annotation_counts_where_the_field_is_absent() -> None:
    text = """
kind: Ingress
metadata: {name: a, annotations: {kubernetes.io/ingress.class: theirs}}
spec: {%s defaultBackend: {service: {name: s, port: {number: 80}}}}
"""
    theirs = [klass("theirs", OTHER), klass("ours")]
    assert not Compiled(objects(text % "", theirs, services("s"))).served
    assert Compiled(objects(text % "ingressClassName: ours,", theirs, services("s"))).served


# --- what is wrong is said, and leaves the others alone ---------------------------------------------------------------


def test_what_is_wrong_is_noted() -> None:
    compiled = Compiled(
        objects(
            ingress("a", "h /1 Prefix gone\nh /2 Prefix s:web\nh /3 Prefix s\nh /4(/|$)(.*) ImplementationSpecific s"),
            ingress("b", "i / Prefix s", ingressClassName="nginx", tls=[{"hosts": ["i"], "secretName": "none"}]),
            services("s"),
        )
    )
    assert [(note.about.name, note.reason, note.message) for note in compiled.notes] == [
        ("b", "ClassNotFound", "no IngressClass nginx is defined; it is served all the same"),
        ("a", "ServiceNotFound", "there is no Service default/gone; its paths answer 503"),
        ("a", "PortNotFound", "Service s has no TCP port web (its ports: 80 (http)); its paths answer 503"),
        ("a", "LiteralPath", "path /4(/|$)(.*) looks like a regular expression; it is taken literally, as a prefix"),
        ("b", "CertificateNotUsed", "there is no Secret default/none; the default certificate is shown instead"),
    ]  # fmt: skip
    assert [answer(compiled, "h", f"/{number}") for number in (1, 2, 3)] == ["503", "503", "s"]
    assert answer(compiled, "i", "/") == "s"


def test_ten_thousand_paths_and_a_thousand_hosts() -> None:
    rows = "\n".join(f"h{number // 10}.org /p{number} Prefix s" for number in range(10_000))
    compiled = Compiled(objects(ingress("a", rows), services("s")))
    assert answer(compiled, "h999.org", "/p9999/x") == "s"
    assert answer(compiled, "h999.org", "/p1") == "404"


def test_ancestors() -> None:
    assert list(ancestors("/a/b")) == ["/a/b/", "/a/", "/"]
    assert list(ancestors("/")) == ["/"]
    assert list(ancestors("//a")) == ["//a/", "//", "/"]
