"""The objects of one run, by kind: what the controllers read and write while `complete` runs.

An object that need not change stays the very same instance, so that callers (and the controllers' own memos) compare
with `is` before they look closer.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import msgspec

from nsnet import names
from nsnet.model import API_VERSIONS, CLUSTER_SCOPED, Key, Object, ObjectMeta, Objects, OwnerReference, key_of

Table = defaultdict[str, dict[Key, Any]]
T = TypeVar("T")


def split(objects: Objects) -> Table:
    table: Table = defaultdict(dict)
    for key, obj in objects.items():
        table[key[0]][key] = obj
    return table


def joined(table: Table) -> dict[Key, Object]:
    found: dict[Key, Object] = {}
    for objects in table.values():
        found.update(objects)
    return found


def of(table: Table, kind: type[T]) -> dict[Key, T]:
    """The objects of a kind; a change of the dict is a change of the table."""
    return table[kind.__name__]


def ordered(table: Table, kind: type[T]) -> Iterator[tuple[Key, T]]:
    """The objects of a kind by namespace and name."""
    objects = table[kind.__name__]
    for key in sorted(objects):
        yield key, objects[key]


def put(table: Table, obj: Object) -> None:
    """Puts an object in the place of the one that is there, whose identity it takes; an equal one stays."""
    key = key_of(obj)
    table[key.kind][key] = settled(obj, table[key.kind].get(key))


def settled(obj: T, old: Any, now: str = "") -> T:
    """The object with the identity (uid, creationTimestamp) of the one it follows; that one itself where it is equal.

    A first one gets a uid that is a function of its name, and the time it is, where there is a clock.
    """
    meta: ObjectMeta = obj.metadata  # type: ignore[attr-defined]
    before: ObjectMeta = old.metadata if old is not None else meta
    uid = before.uid or names.uid(*key_of(obj))  # type: ignore[arg-type]
    created = before.creationTimestamp or now or None
    if uid != meta.uid or created != meta.creationTimestamp:
        obj = with_meta(obj, uid=uid, creationTimestamp=created)
    return old if old is not None and old == obj else obj


def drop(table: Table, keys: Iterable[Key]) -> None:
    for key in keys:
        del table[key.kind][key]


# --- owners -----------------------------------------------------------------------------------------------------------


def owner(obj: Object) -> OwnerReference:
    """The reference by which `obj` owns something."""
    key = key_of(obj)
    version = str(obj.raw.get("apiVersion") or API_VERSIONS.get(key.kind, "v1"))
    return OwnerReference(key.kind, key.name, version, obj.metadata.uid or names.uid(*key))


def controller_of(meta: ObjectMeta) -> tuple[str, str, str] | None:
    """The key (as a plain tuple, which compares like one) of the object that manages this one; None: nobody does."""
    for reference in meta.ownerReferences:
        if reference.controller:
            return key_to(reference, meta.namespace)
    return None


def key_to(reference: OwnerReference, namespace: str) -> tuple[str, str, str]:
    """The owner's key: in the same namespace, or in none."""
    return reference.kind, "" if reference.kind in CLUSTER_SCOPED else namespace, reference.name


def owned_by(obj: Object, kind: str) -> bool:
    return any(reference.kind == kind for reference in obj.metadata.ownerReferences)


def by_owner(objects: Iterable[T]) -> Mapping[tuple[str, str, str], list[T]]:
    """What each object manages, under its key."""
    found: defaultdict[tuple[str, str, str], list[T]] = defaultdict(list)
    for obj in objects:
        meta: ObjectMeta = obj.metadata  # type: ignore[attr-defined]
        if meta.ownerReferences and (key := controller_of(meta)) is not None:
            found[key].append(obj)
    return found


def drop_own(table: Table, key: Key) -> None:
    """Drops what is the cluster's own; what somebody else has put in its place stays."""
    there = table[key.kind].get(key)
    if there is not None and owned_by(there, "Cluster"):
        drop(table, [key])


def with_meta(obj: T, **changes: Any) -> T:
    """The object with some fields of its metadata changed."""
    meta = msgspec.structs.replace(obj.metadata, **changes)  # type: ignore[attr-defined]
    return msgspec.structs.replace(obj, metadata=meta)  # type: ignore[type-var]


def with_spec(obj: T, **changes: Any) -> T:
    spec = msgspec.structs.replace(obj.spec, **changes)  # type: ignore[attr-defined]
    return msgspec.structs.replace(obj, spec=spec)  # type: ignore[type-var]
