"""Whatever a file holds, what comes out is objects or an InputError that names the file: never anything else."""

import re
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nsnet import model
from nsnet.errors import InputError, ObjectError
from nsnet.manifests import Loaded, Source, load, located, problems, schema
from nsnet.model import EMULATED, Key

GOOD = (
    [
        block.partition("\nerror: ")[0].encode()  # wrong by one thing: every part of a manifest is in one of them
        for file in sorted(Path(__file__).parent.glob("wrong/*.txt"))
        for block in file.read_text().split("=====\n")[1:]
    ]
    + [
        b"""apiVersion: v1
kind: Service
metadata: {name: web, labels: &l {app: web}}
spec: {type: NodePort, selector: *l, ports: [{name: http, port: 80, targetPort: http, nodePort: 30080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {<<: {app: web}}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: "nginx:1.27"
        ports: [{name: http, containerPort: 80}]
        command:
        - sh
        - |
          echo hello
---
apiVersion: nsnet/v1
kind: Cluster
networking: {podSubnet: 10.244.0.0/16}
nodes: [{name: node1, address: 172.18.0.2}]
"""
    ]
)
PLACE = re.compile(r"f\.yaml(:\d+:\d+)?: .+", re.DOTALL)
RUNS = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def loads_or_is_refused(data: bytes) -> None:
    found = problems([Source("f.yaml", data)])
    for error in found:
        assert type(error) is InputError
        assert PLACE.fullmatch(str(error)), str(error)
        assert error.hint
        assert "\n" not in str(error) + error.hint
        assert "{text}" not in error.hint
    try:
        loaded = load([Source("f.yaml", data)])
    except InputError as error:
        assert str(error) == str(found[0])  # noqa: PT017 - what load says is the first of what problems lists
    else:
        assert found == []
        loaded_well(loaded)


def loaded_well(loaded: Loaded) -> None:
    """Objects that every other room can take: one Cluster, keys that fit, documents that are JSON."""
    assert len(model.of(loaded.objects, model.Cluster)) == 1
    for key, obj in loaded.objects.items():
        assert model.key_of(obj) == key
        assert key.name
        msgspec.json.encode(model.to_doc(obj))
        located(ObjectError(key, "spec.ports[0].port", "x"), loaded)


# --- bytes ------------------------------------------------------------------------------------------------------------

PIECES = [
    b"", b"\t", b"  ", b"\n", b"\n---\n", b": ", b"- ", b"? ", b"{", b"}", b"[", b"]", b'"', b"'", b"#", b"@", b"|\n",
    b"&a ", b"*a", b"<<: *a", b"!!int ", b"!x ", b"%YAML 9.9\n", b"no", b"null", b"0x", b"-1", b".nan",
    b"99999999999999999999", b"\x00", b"\xff", "é😀\u2028".encode(), b"\\ud800", b"{{ .Values.x }}", b"kind: List\n",
    b"items:\n",
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A manifest with a few pieces put in, cut out, or written over."""
    data = draw(st.sampled_from(GOOD))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        length = draw(st.sampled_from([0, 0, 1, 3, 20]))
        piece = draw(st.one_of(st.sampled_from(PIECES), st.binary(max_size=3)))
        data = data[:start] + piece + data[start + length :]
    return data


@RUNS
@given(mutated())
def test_mutated_manifests(data: bytes) -> None:
    loads_or_is_refused(data)


@RUNS
@given(
    st.one_of(st.binary(max_size=200), st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")))
)
def test_any_bytes(data: bytes) -> None:
    loads_or_is_refused(data)


# --- trees ------------------------------------------------------------------------------------------------------------

TYPES = (
    "PodSpec", "ServiceSpec", "ServicePort", "Container", "nsnet.Cluster", "nsnet.NodeEntry", "nsnet.Underlay",
    "nsnet.LinkSpec", "NetworkPolicySpec", "IPBlock", "IngressSpec", "LabelSelectorRequirement",
)  # fmt: skip
WORDS = sorted({name for kind in TYPES for name in schema.fields(kind).types})
TEXTS = ["web", "10.0.0.1", "10.0.0.0/8", "In", "TCP", "None", "*", "80", "v1", "List", "fd00::/8", "a-b", "-", "/x"]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8), st.sampled_from(TEXTS),
    st.sampled_from([0, 80, 30080, 65536]),
)  # fmt: skip
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(WORDS), st.text(max_size=5)), inner, max_size=4),
    ),
    max_leaves=12,
)


def written(value: Any) -> bytes:
    return msgspec.json.encode(value)


@RUNS
@given(TREES)
def test_any_tree(tree: Any) -> None:
    loads_or_is_refused(written(tree))


@RUNS
@given(st.sampled_from(sorted(EMULATED)), TREES, TREES, TREES)
def test_any_tree_under_a_kind(kind: str, spec: Any, metadata: Any, other: Any) -> None:
    version = model.API_VERSIONS.get(kind, "v1")
    doc = {"apiVersion": version, "kind": kind, "metadata": {"name": "a"}, "spec": spec}
    loads_or_is_refused(written(doc))
    loads_or_is_refused(written({**doc, "metadata": metadata}))
    loads_or_is_refused(written({**doc, "status": other}))
    loads_or_is_refused(
        written({**(other if isinstance(other, dict) else {}), **doc, "kind": "List", "items": [doc, other]})
    )


# --- what the schema says is right ------------------------------------------------------------------------------------


PLAIN: dict[str, st.SearchStrategy[Any]] = {
    "string": st.one_of(st.text(max_size=5), st.sampled_from(TEXTS)),
    "integer": st.sampled_from([-1, 0, 1, 80, 30080, 65536, 2**40]),
    "boolean": st.booleans(),
    "number": st.integers(0, 9),
    "quantity": st.sampled_from([1, 0.5, "64Mi"]),
    "any": TREES,
    "integer|string": st.sampled_from([0, 80, 70000, "http", "8080", "", "A"]),
}


def of_type(said: str, depth: int) -> st.SearchStrategy[Any]:
    """Values of a type of the schema, so that the checks behind it are reached."""
    if said in PLAIN:
        return PLAIN[said]
    if said[0] == "[":
        return st.lists(of_type(said[1:-1], depth), max_size=2) if depth < 8 else st.just([])
    if said[0] == "{":
        return st.dictionaries(
            st.sampled_from(["app", "a b", "nsnet/ip", "x/y/z"]), of_type(said[1:-1], depth), max_size=2
        )
    if "|" in said:  # last, as the walk has it: `{integer|string}` is a map
        return st.one_of([of_type(part, depth) for part in said.split("|")])
    return of_fields(said, depth + 1) if depth < 8 else st.just({})


@st.composite
def of_fields(draw: st.DrawFn, kind: str, depth: int = 0) -> dict[str, Any]:
    """An object with the fields that it cannot be without and at most five others."""
    declared = schema.fields(kind)
    others = sorted(set(declared.types) - set(declared.required) - {"metadata", "apiVersion", "kind"})
    names = [*declared.required, *(draw(st.lists(st.sampled_from(others), max_size=5, unique=True)) if others else ())]
    if depth == 0 and "spec" in others and "spec" not in names:
        names.append("spec")
    return {name: draw(of_type(declared.types[name], depth)) for name in names if name != "metadata"}


@st.composite
def specs(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(
        st.sampled_from(["Service", "Pod", "Deployment", "NetworkPolicy", "Ingress", "EndpointSlice", "Cluster"])
    )
    body = dict(draw(of_fields(schema.type_of_kind(kind))))
    version = {"NetworkPolicy": "networking.k8s.io/v1", "Ingress": "networking.k8s.io/v1"}.get(kind)
    return {
        **body,
        "apiVersion": version or model.API_VERSIONS.get(kind, "v1"),
        "kind": kind,
        "metadata": {"name": "a"},
    }


@RUNS
@given(specs())
def test_well_typed_objects(doc: dict[str, Any]) -> None:
    loads_or_is_refused(written(doc))


def test_the_unbroken_manifest_is_right() -> None:
    loaded = load([Source("f.yaml", GOOD[-1])])
    assert set(loaded.objects) == {
        Key("Service", "default", "web"), Key("Deployment", "default", "web"), Key("Cluster", "", "f"),
    }  # fmt: skip
