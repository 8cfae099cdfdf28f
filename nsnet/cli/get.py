"""`get`: kubectl's words, columns and JSON."""

import sys
from datetime import UTC, datetime
from typing import Any

import click
import msgspec

from nsnet import model
from nsnet.cli import options
from nsnet.cli.columns import Look, cells, header, pairs
from nsnet.cli.context import Running, opened, running
from nsnet.cli.kinds import kinds_named, plural, resource, scoped
from nsnet.cli.output import as_list, note, out, print_json, print_table, print_yaml, table
from nsnet.cli.selectors import selector
from nsnet.errors import InputError
from nsnet.model import Key, LabelSelector, Object, Objects
from nsnet.store.objects import refresh
from nsnet.store.opening import exists

WATCH_SECONDS = 5.0


class Query(msgspec.Struct, frozen=True):
    """What is asked for: kinds, names, one namespace (empty: all), a label selector; and the form of the answer."""

    kinds: str
    names: tuple[str, ...] = ()
    namespace: str = ""
    selector: LabelSelector | None = None
    form: str = ""
    labels: bool = False
    headers: bool = True


@options.verb("get")
@click.argument("kind", metavar="KIND[/NAME]")
@click.argument("wanted", nargs=-1, metavar="[NAME…]")
@options.namespace
@click.option("-A", "--all-namespaces", is_flag=True, help="All namespaces.")
@click.option("-l", "--selector", "labels", metavar="SELECTOR", help="Labels, as in app=web,tier!=db.")
@options.output("wide", "json", "yaml", "name")
@click.option("-w", "--watch", is_flag=True, help="Stay, and print what changes.")
@click.option("--show-labels", is_flag=True, help="A column with the labels.")
@click.option("--no-headers", is_flag=True, help="Rows only.")
@options.cluster
def get(
    kind: str,
    wanted: tuple[str, ...],
    namespace: str,
    all_namespaces: bool,
    labels: str | None,
    output: str | None,
    watch: bool,
    show_labels: bool,
    no_headers: bool,
    cluster: str | None,
) -> None:
    """List objects: po, svc, no, ep, eps, deploy, rs, sts, ds, ing, netpol, ns, ev (kubectl's words); po,svc; all."""
    word, slash, name = kind.partition("/")
    query = Query(
        kinds=word,
        names=(name, *wanted) if slash else wanted,
        namespace="" if all_namespaces else namespace,
        selector=selector(labels) if labels else None,
        form=output or "",
        labels=show_labels,
        headers=not no_headers,
    )
    now = running("get", cluster)
    show(now, select(now.objects, query), query)
    if watch:
        _watch(now, query)


def select(objects: Objects, query: Query) -> list[Object]:
    """The objects asked for, in kubectl's order. Raises InputError where a name or a selector matches nothing."""
    kinds = kinds_named(query.kinds, {key.kind for key in objects})
    if query.names:
        return [_named(objects, kind, query.namespace, name) for kind in kinds for name in query.names]
    found = [obj for kind in kinds for obj in _listed(objects, kind, query)]
    if not found and query.selector:
        raise InputError("the label selector matches nothing", f"nsnet get {query.kinds} -A --show-labels")
    return found


def _listed(objects: Objects, kind: str, query: Query) -> list[Object]:
    of_kind = [objects[key] for key in sorted(key for key in objects if key.kind == kind)]
    return [obj for obj in of_kind if _asked_for(obj, query)]


def _named(objects: Objects, kind: str, namespace: str, name: str) -> Object:
    if scoped(kind) and not namespace:
        raise InputError("a name is looked for in one namespace", "use -n NAMESPACE instead of -A")
    obj = objects.get(Key(kind, namespace if scoped(kind) else "", name))
    if obj is None:
        where, further = (f" in namespace {namespace}", " -A") if scoped(kind) else ("", "")
        raise InputError(f'there is no {kind} "{name}"{where}', f"nsnet get {plural(kind)}{further}")
    return obj


def show(now: Running, found: list[Object], query: Query) -> None:
    """Prints what was found in the form asked for."""
    match query.form:
        case "json":
            print_json(document(found, single=bool(query.names)))
        case "yaml":
            print_yaml(document(found, single=bool(query.names)))
        case "name":
            for obj in found:
                out(f"{resource(model.kind_of(obj))}/{obj.metadata.name}")
        case _:
            _tables(now, found, query)


def document(found: list[Object], *, single: bool) -> dict[str, Any]:
    """One object asked for by name as it is; otherwise a `kind: List`, as kubectl does."""
    docs = [model.to_doc(obj) for obj in found]
    if single and len(docs) == 1:
        return docs[0]
    return as_list(docs)


def _tables(now: Running, found: list[Object], query: Query) -> None:
    if not found:
        note(f"No resources found{f' in {query.namespace} namespace' if query.namespace else ''}.")
    kinds = list(dict.fromkeys(model.kind_of(obj) for obj in found))
    for index, kind in enumerate(kinds):
        if index:
            out()
        same = [obj for obj in found if model.kind_of(obj) == kind]
        rows = _rows(now, same, query, many=len(kinds) > 1)
        print_table(rows if query.headers else rows[1:])


def _rows(now: Running, found: list[Object], query: Query, *, many: bool = False) -> list[list[str]]:
    """The header and a row per object, all of one kind; with `many` kinds the names say the kind."""
    kind, wide = model.kind_of(found[0]), query.form == "wide"
    look = Look(now.cluster, datetime.now(UTC))
    spaces = scoped(kind) and not query.namespace
    rows = [[*(["NAMESPACE"] if spaces else []), *header(kind, wide=wide), *(["LABELS"] if query.labels else [])]]
    for obj in found:
        row = cells(obj, look, wide=wide)
        if many and kind != "Event":
            row[0] = f"{resource(kind)}/{row[0]}"
        front = [obj.metadata.namespace] if spaces else []
        rows.append([*front, *row, *([pairs(obj.metadata.labels)] if query.labels else [])])
    return rows


def _watch(now: Running, query: Query) -> None:
    """Prints each object asked for that appears, changes or goes, until Ctrl-C or until the cluster is gone."""
    objects, revision = now.objects, now.revision
    kinds = kinds_named(query.kinds, {key.kind for key in objects})
    with opened(now.cluster) as store:
        while exists(now.cluster):
            store.wait(WATCH_SECONDS)
            newer, revision = refresh(store, objects, revision)
            for key in sorted(key for key in objects.keys() | newer.keys() if objects.get(key) != newer.get(key)):
                obj = newer.get(key, objects.get(key))
                if obj and key.kind in kinds and _asked_for(obj, query):
                    _show_one(now, obj, query)
            objects = newer
            sys.stdout.flush()


def _asked_for(obj: Object, query: Query) -> bool:
    meta = obj.metadata
    inside = not query.namespace or not scoped(model.kind_of(obj)) or meta.namespace == query.namespace
    named = not query.names or meta.name in query.names
    return inside and named and (query.selector is None or model.selects(query.selector, meta.labels))


def _show_one(now: Running, obj: Object, query: Query) -> None:
    if query.form in {"json", "yaml", "name"}:
        show(now, [obj], msgspec.structs.replace(query, names=(obj.metadata.name,)))
    else:
        for line in table(_rows(now, [obj], query))[1:]:
            out(line)
