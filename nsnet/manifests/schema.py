"""Which fields an object may have, and of which type.

Kubernetes' kinds: `nsnet/data/schema.json`, written by `scripts/make-schema` from the API's own OpenAPI models. nsnet's
kinds: the structs in `model`. kube-proxy's file: `kubeproxy.TYPES`. All become the same thing here, `{type: {field:
type}}`, and one walk checks them.

A null is what the API server makes of it: an absent field, and an empty string in a map of strings. The walk returns
the document without them. Under `status` (what a dump says of another cluster, perhaps a newer one) unknown and missing
fields are let pass.
"""

from functools import cache
from pathlib import Path as File
from typing import Any

import msgspec

from nsnet import model
from nsnet.manifests import kubeproxy
from nsnet.manifests.problems import ENOUGH, Problem, nearest
from nsnet.manifests.reading import Path, shown

WORDS = {
    "string": "a string", "integer": "an integer", "number": "a number", "boolean": "true or false",
    "quantity": "a quantity", "integer|string": "an integer or a string",
}  # fmt: skip
_PYTHON: dict[str, set[type]] = {
    "string": {str}, "integer": {int}, "number": {int, float}, "boolean": {bool}, "quantity": {int, float, str},
    "integer|string": {int, str},
}  # fmt: skip


OURS = {
    kind.__name__: kind
    for kind in (
        model.Cluster, model.Fault, model.SubnetLease, model.GatewayClass, model.Gateway, model.HTTPRoute,
        model.ReferenceGrant,
    )
}  # fmt: skip
"""nsnet's own kinds, and those of the Gateway API, which no OpenAPI model of Kubernetes has."""


class Fields(msgspec.Struct, frozen=True):
    """A type's fields by name, and those it cannot be without."""

    types: dict[str, str]
    required: tuple[str, ...]


@cache
def _data() -> dict[str, Any]:
    file = File(__file__).parent.parent / "data" / "schema.json"
    return msgspec.json.decode(file.read_bytes())  # type: ignore[no-any-return]


@cache
def fields(name: str) -> Fields:
    """The fields of a type, `ServicePort` of Kubernetes or `nsnet.Network` of ours."""
    said = _ours()[name] if name.startswith("nsnet.") else kubeproxy.TYPES.get(name) or _data()["types"][name]
    types = {field.removesuffix("!"): kind for field, kind in said.items()}
    return Fields(types, tuple(field[:-1] for field in said if field.endswith("!")))


def type_of_kind(kind: str) -> str:
    """The type of a kind's objects; empty where no schema is known."""
    if kind in kubeproxy.TYPES:
        return kind
    if kind in OURS:
        return f"nsnet.{kind}"
    return _data()["kinds"].get(kind, "")  # type: ignore[no-any-return]


def known_kinds() -> frozenset[str]:
    """Every kind that Kubernetes itself serves."""
    return frozenset(_data()["known"])


# --- kinds whose fields are our structs' ------------------------------------------------------------------------------


@cache
def _ours() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for cls in OURS.values():
        _struct(msgspec.inspect.type_info(cls), found)
        top = found[f"nsnet.{cls.__name__}"]
        del top["raw"], top["metadata!"]
        top |= {"apiVersion": "string", "kind": "string", "metadata": "ObjectMeta", "status": "any"}
    return found


def _struct(info: Any, found: dict[str, dict[str, str]]) -> str:
    name = f"nsnet.{info.cls.__name__}"
    if name not in found:
        found[name] = {}
        for field in info.fields:
            found[name][field.encode_name + ("!" if field.required else "")] = _spell(field.type, found)
    return name


def _spell(info: Any, found: dict[str, dict[str, str]]) -> str:
    """A msgspec type in the schema's words."""
    inspect = msgspec.inspect
    match info:
        case inspect.StructType():
            return _struct(info, found)
        case inspect.VarTupleType() | inspect.ListType():
            return f"[{_spell(info.item_type, found)}]"
        case inspect.TupleType():
            return f"[{_spell(info.item_types[0], found)}]"
        case inspect.DictType():
            return f"{{{_spell(info.value_type, found)}}}"
        case inspect.UnionType():
            kinds = [_spell(item, found) for item in info.types if not isinstance(item, inspect.NoneType)]
            if set(kinds) == {"integer", "string"}:
                return "integer|string"
            return "|".join(sorted(kinds, reverse=True))  # the list comes last, so that no union begins like a list
        case inspect.StrType():
            return "string"
        case inspect.IntType():
            return "integer"
        case inspect.BoolType():
            return "boolean"
    return "any"


# --- the walk ---------------------------------------------------------------------------------------------------------


def check(value: Any, kind: str, path: Path, found: list[Problem]) -> Any:
    """Compare a value with a type of the schema; problems go to `found`. Returns the value without nulls.

    Where ENOUGH is wrong it looks no further: what it returns then is of no use.
    """
    if len(found) >= ENOUGH:
        return value
    first = kind[0]
    if kind in _PYTHON:
        return _scalar(value, kind, path, found)
    if first == "[":
        return _list(value, kind[1:-1], path, found)
    if first == "{":
        return _map(value, kind[1:-1], path, found)
    if kind == "any":
        return value
    if "|" in kind:  # `nodes`: a list or a number
        plain, listed = kind.split("|")
        if type(value) is not list and type(value) not in _PYTHON[plain]:
            return _mistyped(value, f"{WORDS[plain]} or a list", path, found)
        return check(value, listed if type(value) is list else plain, path, found)
    return _object(value, kind, path, found)


def _object(value: Any, kind: str, path: Path, found: list[Problem]) -> Any:
    if type(value) is not dict:
        return _mistyped(value, "a mapping", path, found)
    declared = fields(kind)
    types = declared.types
    clean = {}
    for name, item in value.items():
        inner = types.get(name)
        if inner is None:
            if path[:1] != ("status",) and len(found) < ENOUGH:  # asked here too: a near spelling takes time
                _say(found, _unknown(name, kind, path))
            clean[name] = item
        elif item is None:
            if name in declared.required and inner[0] not in "[{":
                _say(found, Problem((*path, name), f"is empty; {_wanted(inner)} is wanted", "write a value after it"))
        elif type(item) is str and inner == "string":
            clean[name] = item
        else:
            clean[name] = check(item, inner, (*path, name), found)
    if not clean.keys() >= set(declared.required) and path[:1] != ("status",):
        for name in declared.required:
            if name not in value:
                _say(found, _missing(name, types[name], path))
    return clean


def _list(value: Any, kind: str, path: Path, found: list[Problem]) -> Any:
    if type(value) is not list:
        return _mistyped(value, "a list", path, found)
    return [check(item, kind, (*path, index), found) for index, item in enumerate(value)]


def _map(value: Any, kind: str, path: Path, found: list[Problem]) -> Any:
    if type(value) is not dict:
        return _mistyped(value, "a mapping", path, found)
    empty = "" if kind == "string" else None
    return {
        name: item
        if type(item) is str and kind == "string"
        else check(empty if item is None else item, kind, (*path, name), found)
        for name, item in value.items()
    }


def _scalar(value: Any, kind: str, path: Path, found: list[Problem]) -> Any:
    if type(value) is float and "integer" in kind and value.is_integer():
        value = int(value)  # YAML's 80.0 and 1e3 are JSON's 80 and 1000
    if type(value) not in _PYTHON[kind]:
        return _mistyped(value, WORDS[kind], path, found)
    if type(value) is int and not -(2**63) <= value < 2**63:
        _say(found, Problem(path, "does not fit in 64 bits", "write a smaller number"))
    return value


def _mistyped(value: Any, wanted: str, path: Path, found: list[Problem]) -> Any:
    _say(found, Problem(path, f"is {described(value)}; {wanted} is wanted", _type_hint(value, wanted)))
    return value


def _say(found: list[Problem], problem: Problem) -> None:
    if len(found) < ENOUGH:
        found.append(problem)


def described(value: Any) -> str:
    """A value as an error names it: `the string "80"`, `the boolean false`, `a list`."""
    match value:
        case None:
            return "empty"
        case bool():
            return f"the boolean {'true' if value else 'false'}"
        case int():
            return f"the integer {value}"
        case float():
            return f"the number {value:g}"
        case str():
            return f'the string "{shown(value)}"'
        case dict():
            return "a mapping"
    return "a list"


def _type_hint(value: Any, wanted: str) -> str:
    if "string" in wanted and isinstance(value, bool):
        return 'in YAML {text} without quotes is a boolean; quote it: "{text}"'
    if "string" in wanted and isinstance(value, int | float):
        return 'quote it: "{text}"'
    if isinstance(value, str) and (("integer" in wanted and value.isdecimal()) or value in {"true", "false"}):
        return f"write {value} without quotes"
    if wanted == "a list":
        return "write each item on a line of its own, after a dash"
    if wanted == "a mapping" and value is None:
        return "write {} for an empty one"
    if wanted == "a mapping":
        return "write `name: value` lines here"
    return f"write {wanted} here"


def _unknown(name: str, kind: str, path: Path) -> Problem:
    types = fields(kind).types
    near = nearest(name, types)
    deeper = "" if near else _below(name, kind)
    if near or deeper:
        words = f"did you mean {near}?" if near else f"it belongs in {deeper}"
        return Problem((*path, name), f"unknown field ({words})", f"write {near or deeper}, or leave it out", key=True)
    names = sorted(set(types) - {"apiVersion", "kind", "status"})
    hint = f"the fields here: {', '.join(names)}" if names else "no field is known here"
    return Problem((*path, name), "unknown field", hint, key=True)


def _below(name: str, kind: str, depth: int = 3) -> str:
    """Where below a type a field of this name is: `containers` of a DeploymentSpec is `template.spec.containers`."""
    inner = {
        field: said.strip("[{}]") for field, said in fields(kind).types.items() if field not in {"metadata", "status"}
    }
    inner = {field: said for field, said in inner.items() if said[:1].isupper()}
    for field, said in inner.items():
        if name in fields(said).types:
            return f"{field}.{name}"
    tried = ((field, _below(name, said, depth - 1)) for field, said in inner.items() if depth > 1)
    return next((f"{field}.{found}" for field, found in tried if found), "")


def _missing(name: str, kind: str, path: Path) -> Problem:
    return Problem((*path, name), f"is missing; {_wanted(kind)} is wanted", f"add `{name}:`")


def _wanted(kind: str) -> str:
    return WORDS.get(kind) or ("a list" if kind[0] == "[" else "a mapping")
