"""Whole sets of objects in a store: read them, follow their changes, write what is different, all or nothing.

What a controller computes depends on *all* objects (an address is free when nobody has it), so two writers must never
both succeed from the same reading: every write compares and rewrites one further key, the fence. Whoever loses reads
again and computes again (`update`). Records that are no objects of ours are left alone and reported to `warn`.

Where several machines share the store, control writes with a claim: the transaction compares that the charge is still
the one it has taken (`members.py`), and the fence says whose write it was.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from nsnet.errors import InputError, NsnetError
from nsnet.model import Cluster, Key, Object, Objects, SubnetLease, key_of
from nsnet.store import Compacted, Conflict, Entry, Event, Store
from nsnet.store.keys import (
    CHARGE,
    FENCE,
    GONE,
    LEASE_META,
    LEASES,
    PRIVATE,
    REGISTRY,
    decode,
    path,
    records,
    with_metadata,
)

Warn = Callable[[str], None]
ATTEMPTS = 20
GONE_SECONDS = 3600


class Claim(NamedTuple):
    """In whose name control writes: the machine, and the revision at which it took the charge."""

    machine: str
    charge: int


def _silent(_: str) -> None: ...


def load_objects(
    store: Store, warn: Warn = _silent, decoded: Callable[[str, bytes], Object] = decode
) -> tuple[dict[Key, Object], int]:
    """All objects, and the revision they stand for. `decoded`: `keys.decode_to_read`, where none is written again."""
    entries, revision = store.list("/")
    return entries_decoded(entries, warn, decoded), revision


def entries_decoded(
    entries: list[Entry], warn: Warn, decoded: Callable[[str, bytes], Object] = decode
) -> dict[Key, Object]:
    """The objects among what stands in a store."""
    objects = _decoded(((entry.key, entry.value) for entry in entries), warn, decoded)
    return _with_metadata(objects, entries)


def refresh(
    store: Store, objects: Objects, revision: int, warn: Warn = _silent, ours: Mapping[str, bytes | None] | None = None
) -> tuple[Objects, int]:
    """The objects of `revision` brought up to date: reads only what changed, or everything if that is not known.

    The very same where no object has changed. `ours`: what we wrote since, and is among the objects already.
    """
    try:
        events, now = store.changes("/", revision)
    except Compacted:
        return load_objects(store, warn)
    if ours:
        events = [event for event in events if event.key not in ours or ours[event.key] != event.value]
    if any(event.key.startswith((LEASES, LEASE_META)) for event in events):
        return load_objects(store, warn)  # rare, and their two records belong together
    last = {event.key: event for event in events if not event.key.startswith(PRIVATE)}
    return _followed(objects, list(last.values()), warn) if last else objects, now


def differences(before: Objects, after: Objects) -> dict[str, bytes | None]:
    """What a store that holds `before` must put (None: delete) to hold `after`; compares what would be stored."""
    return {name: value for each in _each_difference(before, after) for name, value in each.items()}


def differ(before: Objects, after: Objects) -> bool:
    """Whether there are any `differences`."""
    return any(_each_difference(before, after))


def _each_difference(before: Objects, after: Objects) -> Iterator[dict[str, bytes | None]]:
    for key in before.keys() | after.keys():
        old, new = before.get(key), after.get(key)
        if old is new or old == new:
            continue
        there = records(old) if old is not None else {}
        wanted = records(new) if new is not None else {}
        written = {name: value for name, value in wanted.items() if there.get(name) != value}
        yield {**dict.fromkeys(there.keys() - wanted.keys()), **written}


def save_objects(store: Store, before: Objects, after: Objects, revision: int, claim: Claim | None = None) -> int:
    """Writes the differences in one transaction; returns the revision at which they stand.

    `before` is what was read at `revision`. Raises Conflict where anything was written since, the cluster was removed,
    or the charge is not the `claim`'s any more, and then writes nothing.
    """
    return save_differences(store, before, differences(before, after), revision, claim)


def save_differences(
    store: Store, before: Objects, puts: Mapping[str, bytes | None], revision: int, claim: Claim | None = None
) -> int:
    """The same, where the differences are known."""
    if not puts:
        return revision
    puts = {**puts, FENCE: msgspec.json.encode(claim._asdict() if claim else {})}
    held = {CHARGE: claim.charge} if claim else {}
    cluster = {path(obj) for obj in before.values() if isinstance(obj, Cluster)}
    there = _last_written(store, {*puts, *cluster}, revision)
    if gone := sorted(key for key in cluster if not there[key]):  # with its fence: nothing else would say so
        raise Conflict(gone[0])
    return store.txn(there | held, puts)


def update(store: Store, change: Callable[[Objects], Objects], warn: Warn = _silent) -> tuple[dict[Key, Object], int]:
    """Reads, lets `change` compute the new set, writes it; again from the start when somebody else was faster.

    Returns the objects as they stand then, and the revision. Raises what `change` raises; Conflict after 20 attempts.
    """
    lost: NsnetError | None = None
    for _ in range(ATTEMPTS):
        before, revision = load_objects(store, warn)
        after = dict(change(before))
        try:
            return after, save_objects(store, before, after, revision)
        except Conflict as conflict:
            lost = conflict
    assert lost is not None
    raise lost


def clear(store: Store, *, spread: bool = False) -> None:
    """Deletes everything of ours; leases of a real flanneld, and what is no object, stay.

    `spread`: over several machines. A mark says to the others for an hour that this was meant.
    """
    mark = {GONE: b"{}"} if spread else {}  # with the rest, so that who finds the cluster gone finds the mark
    lease = store.grant(GONE_SECONDS) if mark else 0
    while True:
        objects, revision = load_objects(store)
        ours = {key: obj for key, obj in objects.items() if not _is_foreign(obj)}
        puts = differences(ours, {}) | {entry.key: None for prefix in PRIVATE for entry in store.list(prefix)[0]} | mark
        with contextlib.suppress(Conflict):
            store.txn(_last_written(store, puts, revision), puts, lease=lease)
            return


def _is_foreign(obj: Object) -> bool:
    return isinstance(obj, SubnetLease) and not any(owner.kind == "Node" for owner in obj.metadata.ownerReferences)


def _last_written(store: Store, keys: Iterable[str], revision: int) -> dict[str, int]:
    """When each key was last written, for the compare; refuses at once what is younger than our reading."""
    wanted = list(keys)
    there = store.written(wanted)
    for key in wanted:
        if there.get(key, 0) > revision:
            raise Conflict(key)
    return {key: there.get(key, 0) for key in wanted}


def _decoded(
    pairs: Iterable[tuple[str, bytes]], warn: Warn, decoded: Callable[[str, bytes], Object]
) -> dict[Key, Object]:
    objects = {}
    for name, value in pairs:
        obj = _object(name, value, warn, decoded)
        if obj is not None:
            objects[key_of(obj)] = obj
    return objects


def _object(name: str, value: bytes, warn: Warn, decoded: Callable[[str, bytes], Object] = decode) -> Object | None:
    if name.startswith(PRIVATE) or not name.startswith((REGISTRY, LEASES)):
        return None
    try:
        return decoded(name, value)
    except InputError as error:
        warn(str(error))
        return None


def _with_metadata(objects: dict[Key, Object], entries: list[Entry]) -> dict[Key, Object]:
    for entry in entries:
        if entry.key.startswith(LEASE_META):
            key = Key("SubnetLease", "", entry.key.removeprefix(LEASE_META))
            lease = objects.get(key)
            if isinstance(lease, SubnetLease):
                objects[key] = with_metadata(lease, entry.value)
    return objects


def _followed(objects: Objects, events: list[Event], warn: Warn) -> dict[Key, Object]:
    written = {event.key: _object(event.key, event.value, warn) for event in events if event.value is not None}
    gone = {event.key for event in events if written.get(event.key) is None}
    found = {key: obj for key, obj in objects.items() if path(obj) not in gone} if gone else dict(objects)
    return found | {key_of(obj): obj for obj in written.values() if obj is not None}
