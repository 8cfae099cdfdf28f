"""Transactions that are larger than etcd takes at once: written down first, then carried out, whoever does that.

    /nsnet/redo/<id>/0000 …     what is to be put and deleted, in parts, under a lease in case we die now
    /nsnet/redo/commit          written in one transaction with the compares: from here on it has happened
    …                           the parts, each in a transaction that compares the commit record
    /nsnet/redo/commit          deleted, with the parts

That is a database's redo log. While the commit record stands nobody else reads or writes: whoever meets it waits for
its writer, and where nothing has moved for a second carries out what is left, which is the same however often it is
done. So nobody sees a half, and nobody has to be alive for it.

More compares than fit in a transaction are made when everything is read, and in the commit by one compare per kind of
object: nothing between the first and the last of its keys was written since. Only a key that somebody else deletes in
that moment escapes it; the keys on which all depends are compared one by one.
"""

import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from nsnet.errors import InputError
from nsnet.store import Conflict
from nsnet.store.keys import CHARGE, FENCE

if TYPE_CHECKING:
    from nsnet.store.etcd import EtcdStore

REDO = "/nsnet/redo/"
COMMIT = f"{REDO}commit"
LEASE_SECONDS = 60
MAX_COMPARES, MAX_PUTS = 100, 120
PART_BYTES, PART_PUTS = 600_000, 2000  # as base64 it fits into a request
MAX_PARTS = 100
FASTEST = 1  # of zlib's levels: objects are much alike, and whoever watches the etcd is sent the parts, too

Puts = dict[str, bytes | None]


class _Written(msgspec.Struct):
    """The commit record."""

    id: int
    parts: int
    lease: int = 0


_part = msgspec.json.Decoder(Puts)
_written = msgspec.json.Decoder(_Written)


def write_down(store: "EtcdStore", compares: Mapping[str, int], puts: Mapping[str, bytes | None], lease: int) -> int:
    """One large transaction; the revision after it. Raises Conflict; InputError where it is too large even so."""
    parts = [zlib.compress(msgspec.json.encode(part), FASTEST) for part in _parts(puts)]
    if len(parts) > MAX_PARTS:
        raise InputError(f"{len(puts)} changes at once are too many for etcd", "write them in several steps")
    ours = store.grant(LEASE_SECONDS)
    try:
        for number, part in enumerate(parts):
            store.commit({}, [store.operation(_name(ours, number), part, ours)])
        revision = _commit(store, compares, _Written(ours, len(parts), lease))
    finally:
        store.end(ours)  # takes the parts with it where they were not committed
    carry_out(store, revision)
    return store.revision()


def _commit(store: "EtcdStore", compares: Mapping[str, int], record: _Written) -> int:
    """Writes the commit record, and takes the parts out of their lease."""
    kept = [
        {"request_put": {"key": store.name(_name(record.id, number)), "ignore_value": True}}
        for number in range(record.parts)
    ]
    operations = [*kept, store.operation(COMMIT, msgspec.json.encode(record))]
    while True:
        exact, ranges = _checks(store, compares)
        done = store.commit({**exact, COMMIT: 0}, operations, ranges)
        if isinstance(done, int):
            return done
        if COMMIT not in done:
            raise Conflict(min(done))
        store.revision()  # waits until the other large transaction is over


def _checks(store: "EtcdStore", compares: Mapping[str, int]) -> tuple[Mapping[str, int], list[dict[str, Any]]]:
    """The compares: of single keys, or of ranges where these are too many. Raises Conflict.

    A range is of one kind of object (`/registry/pods/`): what machines say of themselves meanwhile is no conflict.
    """
    if len(compares) <= MAX_COMPARES:
        return compares, []
    revision = store.revision()
    there = store.written(compares)
    for key, wanted in compares.items():
        if there.get(key, 0) != wanted:
            raise Conflict(key)
    exact = {key: compares[key] for key in (CHARGE, FENCE) if key in compares}
    kinds: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for key in compares.keys() - exact:
        kinds[tuple(key.split("/")[1:-1][:2])].append(key)
    return exact, [_untouched(store, keys, revision) for keys in kinds.values()]


def _untouched(store: "EtcdStore", keys: list[str], revision: int) -> dict[str, Any]:
    """Nothing from the first to the last of the keys was written after the revision."""
    first, last = store.name(min(keys)), store.name(max(keys)) + b"\0"
    after = str(revision + 1)
    return {"key": first, "range_end": last, "target": "MOD", "result": "LESS", "mod_revision": after}


def carry_out(store: "EtcdStore", commit: int) -> None:
    """Does what the commit record of that revision says, as far as nobody has done it yet."""
    record = store.peek(COMMIT)
    if record is None or record.mod_revision != commit:
        return
    try:
        written = _written.decode(record.value)
    except msgspec.MsgspecError:  # not ours; nobody could write while it stood
        store.commit({COMMIT: commit}, [store.operation(COMMIT, None)])
        return
    for number in range(written.parts):
        part = store.peek(_name(written.id, number))
        if part is None:
            return
        puts = _part.decode(zlib.decompress(part.value))
        if not all(_put(store, commit, some, written.lease) for some in _few(puts)):
            return  # somebody else has finished it
    done = {"request_delete_range": store.range_of(f"{REDO}{written.id:016x}/")}
    store.commit({COMMIT: commit}, [store.operation(COMMIT, None), done])


def _put(store: "EtcdStore", commit: int, puts: Puts, lease: int) -> bool:
    """Part of a part; False where the transaction is over already."""
    try:
        return isinstance(store.commit({COMMIT: commit}, [store.operation(*item, lease) for item in puts.items()]), int)
    except InputError:  # the lease has run out, and would have taken these keys with it
        gone = [store.operation(key, None) for key in puts]
        return isinstance(store.commit({COMMIT: commit}, gone), int)


def _name(ours: int, number: int) -> str:
    return f"{REDO}{ours:016x}/{number:04}"


def _parts(puts: Mapping[str, bytes | None]) -> Iterator[Puts]:
    part: Puts = {}
    size = 0
    for key, value in puts.items():
        more = len(key) + len(value or b"") * 4 // 3
        if part and (size + more > PART_BYTES or len(part) >= PART_PUTS):
            yield part
            part, size = {}, 0
        part[key] = value
        size += more
    if part:
        yield part


def _few(puts: Puts) -> Iterator[Puts]:
    items = list(puts.items())
    return (dict(items[at : at + MAX_PUTS]) for at in range(0, len(items), MAX_PUTS))
