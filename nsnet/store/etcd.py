"""The store that several machines share: etcd, by its JSON gateway (`gateway.py`) and its watch (`watch.py`).

Keys stand as the contract says them, after the location's prefix. What etcd has and SQLite has not:

- Its revisions are one for everybody who writes to it, and begin at 1.
- A transaction has at most 128 operations and 1.5 MiB. A larger one is written down first and carried out then
  (`redo.py`), so that it is one transaction all the same.
- A transaction whose answer was lost is sent again; if the first had gone through, its compares fail. So Conflict may
  also mean that our own write stands already: whoever reads again sees it.
- Leases run out on etcd's clock, and `reap` has nothing to do.

`changes` asks etcd for its revision and waits until the watch has come that far; see `watch.py` for why that is exact.
"""

import contextlib
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import msgspec

from nsnet.errors import InputError, MachineError
from nsnet.store import LEASE_SECONDS, Compacted, Conflict, Entries, Entry, Event, Events, Unreachable
from nsnet.store.gateway import NOT_FOUND, PRECONDITION, Gateway, Refused
from nsnet.store.keys import CLUSTERS, FORMAT
from nsnet.store.location import PATIENCE, Location
from nsnet.store.redo import COMMIT, REDO, carry_out, write_down
from nsnet.store.watch import Watch

VERSION = 1  # of what stands under the prefix
MAX_OPS, MAX_BYTES = 120, 1_000_000  # etcd's own limits are 128 and 1.5 MiB
BEHIND_SECONDS = 1.5  # until a stream that lacks what etcd has is opened elsewhere
BEHIND_TRIES = 4
OTHERS_SECONDS, AT_MOST_SECONDS = 1.0, 10.0  # without a step of whoever carries out a large transaction; in all
OTHERS_PAUSE = 0.02
PAGE = 4000  # entries per answer
_NAMES = (1 << 63) - 1


class _KeyValue(msgspec.Struct):
    key: bytes
    value: bytes = b""
    create_revision: int = 0
    mod_revision: int = 0
    lease: int = 0


class _Header(msgspec.Struct, frozen=True):
    revision: int = 0


class _Range(msgspec.Struct):
    header: _Header = _Header()
    kvs: list[_KeyValue] = []
    more: bool = False


class _Response(msgspec.Struct):
    response_range: _Range | None = None


class _Txn(msgspec.Struct):
    header: _Header
    succeeded: bool = False
    responses: list[_Response] = []

    def found(self) -> list[list[_KeyValue]]:
        """What each range among the operations found."""
        return [item.response_range.kvs for item in self.responses if item.response_range is not None]


class _Result(msgspec.Struct, frozen=True):
    header: _Header = _Header()
    TTL: int = 0


class _Beat(msgspec.Struct):
    result: _Result = _Result()


def open_etcd(location: Location, cluster: str, *, create: bool = False, patience: float = PATIENCE) -> "EtcdStore":
    """The cluster's store in an etcd. `patience`: seconds in which a request is tried again.

    Raises InputError where the cluster is not there (and `create` is not set), where another cluster is, or where a
    file of the URL cannot be used; Unreachable, and MachineError for a format of a newer nsnet.
    """
    store = EtcdStore(location, patience)
    try:
        _refuse_others(store, location, cluster, create=create)
        _mark(store, location)
    except BaseException:
        store.close()
        raise
    return store


def _refuse_others(store: "EtcdStore", location: Location, cluster: str, *, create: bool) -> None:
    there = [entry.key.removeprefix(CLUSTERS) for entry in store.list(CLUSTERS)[0]]
    others = [name for name in there if name != cluster]
    where = f"etcd at {', '.join(location.endpoints)}{location.prefix}"
    if others:
        own = f"{location.text.partition('?')[0].removesuffix(location.prefix)}/{cluster}"
        raise InputError(f'{where} holds cluster "{others[0]}"', f"give {cluster} a prefix of its own: --store {own}")
    if not there and not create:
        raise InputError(f'{where} holds no cluster "{cluster}" (any more)', "`nsnet up FILE` builds it")


def _mark(store: "EtcdStore", location: Location) -> None:
    """The format of what stands there; written where nothing does."""
    found = store.get(FORMAT)
    if found is None:
        store.txn({}, {FORMAT: b"%d" % VERSION})
    elif not found.value.isdigit() or int(found.value) > VERSION:
        said = found.value[:20].decode(errors="replace")
        raise MachineError(
            f"etcd at {', '.join(location.endpoints)} was written by a newer nsnet "
            f"(format {said}, this one knows {VERSION})",
            "use that newer nsnet, or another prefix",
        )


class EtcdStore:
    """Fulfils `nsnet.store.Store`. One object, one thread."""

    def __init__(self, location: Location, patience: float = PATIENCE) -> None:
        self.location = location
        self.gateway = Gateway(location, patience)
        self._prefix = location.prefix
        self._own: set[int] = set()  # revisions that we made: they wake us not
        self._watch: Watch | None = None
        try:
            self._told = self._began = self.revision()  # of what `wait` has told
        except BaseException:
            self.gateway.close()
            raise

    # --- reading ------------------------------------------------------------------------------------------------------

    def revision(self) -> int:
        return self._clean().header.revision

    def get(self, key: str) -> Entry | None:
        self._clean()
        return self.peek(key)

    def peek(self, key: str) -> Entry | None:
        """`get`, whether or not a large transaction is being carried out."""
        found = self.gateway.ask("/v3/kv/range", {"key": self.name(key)}, _Range).kvs
        return self._entry(found[0]) if found else None

    def list(self, prefix: str) -> Entries:
        """All of one revision, page by page; again from the start where that was compacted meanwhile."""
        while True:
            revision = self.revision()
            try:
                return [self._entry(item) for item in self._pages(prefix, revision)], revision
            except Refused as error:
                if "compacted" not in str(error):
                    raise

    def written(self, keys: Iterable[str]) -> dict[str, int]:
        self._clean()
        found: dict[str, int] = {}
        for some in _batches(list(keys), MAX_OPS):
            asked = [{"request_range": {"key": self.name(key), "keys_only": True}} for key in some]
            for entries in self.gateway.ask("/v3/kv/txn", {"success": asked}, _Txn).found():
                found |= {self.key(entry.key): entry.mod_revision for entry in entries}
        return found

    def changes(self, prefix: str, since: int) -> Events:
        now = self.revision()
        if now == since:
            return [], now
        if now < since:  # another etcd, or one restored from a backup
            raise Compacted(since, now)
        watch = self._covering(since)
        self._catch_up(watch, since, now)
        wanted = self.name(prefix)
        found = [
            Event(change.revision, self.key(change.key), change.value)
            for change in watch.changes
            if since < change.revision <= now and change.key.startswith(wanted) and not self._is_redo(change.key)
        ]
        watch.forget(since)
        return sorted(found, key=lambda event: (event.revision, event.key)), now

    # --- writing ------------------------------------------------------------------------------------------------------

    def txn(self, compares: Mapping[str, int], puts: Mapping[str, bytes | None], *, lease: int = 0) -> int:
        _refuse_large(puts)
        if not puts and not compares:
            return self.revision()
        self._need_lease(lease)
        small = max(len(compares) + 1, len(puts)) <= MAX_OPS and _size(puts) <= MAX_BYTES
        revision = self._small(compares, puts, lease) if small else write_down(self, compares, puts, lease)
        return self._wrote(revision)

    def _small(self, compares: Mapping[str, int], puts: Mapping[str, bytes | None], lease: int) -> int:
        while True:
            done = self.commit({**compares, COMMIT: 0}, [self.operation(*item, lease) for item in puts.items()])
            if isinstance(done, int):
                return done
            if COMMIT not in done:
                raise Conflict(min(done))
            self._clean()

    def commit(
        self, compares: Mapping[str, int], operations: Iterable[Mapping[str, Any]], more: Iterable[Any] = ()
    ) -> int | set[str]:
        """One transaction of etcd: its revision, or the keys that were not last written when they should have been.

        `more` are further compares in etcd's own form.
        """
        body = {
            "compare": [*(self._comparison(key, revision) for key, revision in compares.items()), *more],
            "success": list(operations),
            "failure": [{"request_range": {"key": self.name(key), "keys_only": True}} for key in compares],
        }
        try:
            done = self.gateway.ask("/v3/kv/txn", body, _Txn)
        except Refused as error:
            raise _no_lease(error) from error
        if done.succeeded:
            return done.header.revision
        there = [found[0].mod_revision if found else 0 for found in done.found()]
        differ = {key for key, revision in zip(compares, there, strict=True) if compares[key] != revision}
        return differ or {"the store"}

    def _comparison(self, key: str, revision: int) -> dict[str, Any]:
        return {"key": self.name(key), "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}

    def operation(self, key: str, value: bytes | None, lease: int = 0) -> dict[str, Any]:
        """A put, or (None) a delete."""
        if value is None:
            return {"request_delete_range": {"key": self.name(key)}}
        return {"request_put": {"key": self.name(key), "value": value, "lease": str(lease)}}

    def compact(self, revision: int) -> None:
        try:
            self.gateway.ask("/v3/kv/compaction", {"revision": str(revision)}, _Result)
        except Refused as error:
            if "compacted" not in str(error):  # it is already
                raise

    # --- waiting ------------------------------------------------------------------------------------------------------

    def wait(self, timeout: float) -> bool:
        watch = self._watching()
        deadline = time.monotonic() + timeout
        while True:
            came = watch.pump(max(0.0, deadline - time.monotonic()))
            if self._news(watch):
                return True
            if not came or time.monotonic() >= deadline:
                return False

    def await_key(self, prefix: str, since: int, timeout: float) -> None:
        """Waits at most `timeout` seconds until a key that begins so is written, after that revision."""
        with contextlib.closing(Watch(self.gateway, since, self.range_of(prefix))) as watch:
            watch.pump(timeout)

    def fileno(self) -> int:
        return self._watching().fileno()

    def gone(self) -> bool:
        return False

    def _news(self, watch: Watch) -> bool:
        """Is there any change of others that `wait` has not told yet?"""
        if watch.compacted:
            watch.begin(self.revision())
            self._told = watch.reached
            return True
        prefix = self.name("")
        news = any(
            change.key.startswith(prefix) and change.revision not in self._own and not self._is_redo(change.key)
            for change in watch.changes
            if change.revision > self._told
        )
        self._told = max(self._told, watch.reached)
        self._own = {revision for revision in self._own if revision > self._told}
        return news

    def _watching(self) -> Watch:
        if self._watch is None:
            self._watch = Watch(self.gateway, self._began)
            self._watch.pump()
        return self._watch

    def _covering(self, since: int) -> Watch:
        """The watch, begun early enough that it has everything after `since`."""
        watch = self._watching()
        if watch.since > since or watch.compacted:
            watch.begin(since)
        return watch

    def _catch_up(self, watch: Watch, since: int, now: int) -> None:
        """Until the watch has reached revision `now`. Raises Compacted; Unreachable when no endpoint brings it."""
        for _ in range(BEHIND_TRIES * len(self.location.endpoints)):
            deadline = time.monotonic() + BEHIND_SECONDS
            while watch.reached < now and not watch.compacted and (left := deadline - time.monotonic()) > 0:
                watch.pump(left)
            if watch.compacted:
                compacted = watch.compacted
                watch.begin(now)
                raise Compacted(since, compacted)
            if watch.reached >= now:
                return
            watch.elsewhere()
        raise Unreachable(f"etcd at {', '.join(self.location.endpoints)} does not tell its changes", "is it healthy?")

    # --- leases -------------------------------------------------------------------------------------------------------

    def grant(self, ttl: int = LEASE_SECONDS) -> int:
        """The id is ours, so that a grant that is sent twice is one lease."""
        lease = random.SystemRandom().randrange(1, _NAMES)
        try:
            self.gateway.ask("/v3/lease/grant", {"ID": str(lease), "TTL": str(ttl)}, _Result)
        except Refused as error:
            if error.code != PRECONDITION:  # it is there: the first request had arrived
                raise
        return lease

    def keep(self, lease: int) -> None:
        if self.gateway.ask("/v3/lease/keepalive", {"ID": str(lease)}, _Beat).result.TTL <= 0:
            raise InputError(f"there is no lease {lease} (any more)")

    def attach(self, lease: int, key: str) -> int:
        self._need_lease(lease)
        put = {"request_put": {"key": self.name(key), "ignore_value": True, "lease": str(lease)}}
        try:
            return self._wrote(self.gateway.ask("/v3/kv/txn", {"success": [put]}, _Txn).header.revision)
        except Refused as error:
            if "key not found" in str(error):
                raise InputError(f"{key} is not in the store") from error
            raise _no_lease(error) from error

    def remaining(self, lease: int) -> int:
        return self.gateway.ask("/v3/lease/timetolive", {"ID": str(lease)}, _Result).TTL if lease else -1

    def revoke(self, lease: int) -> int:
        self.end(lease)
        return self.revision()

    def end(self, lease: int) -> None:
        """`revoke`, whether or not a large transaction is being carried out."""
        try:
            self.gateway.ask("/v3/lease/revoke", {"ID": str(lease)}, _Result)
        except Refused as error:
            if error.code != NOT_FOUND:
                raise

    def reap(self) -> int:
        return self.revision()

    def _need_lease(self, lease: int) -> None:
        if lease and self.remaining(lease) < 0:
            raise InputError(f"there is no lease {lease} (any more)")

    # --- the end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        self.gateway.close()
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- inside -------------------------------------------------------------------------------------------------------

    def name(self, key: str) -> bytes:
        """What etcd calls a key."""
        return f"{self._prefix}{key}".encode()

    def key(self, name: bytes) -> str:
        return name.removeprefix(self._prefix.encode()).decode(errors="backslashreplace")

    def _entry(self, found: _KeyValue) -> Entry:
        return Entry(self.key(found.key), found.value, found.create_revision, found.mod_revision, found.lease)

    def _is_redo(self, name: bytes) -> bool:
        return name.startswith(self.name(REDO))

    def _wrote(self, revision: int) -> int:
        self._own.add(revision)
        return revision

    def _clean(self) -> _Range:
        """Waits until no large transaction stands half carried out; carries out what its writer left behind."""
        began = time.monotonic()
        steps: dict[int, float] = {}  # revision → when we saw it first
        while True:
            found = self.gateway.ask("/v3/kv/range", {"key": self.name(COMMIT)}, _Range)
            if not found.kvs:
                return found
            now = time.monotonic()
            moved = steps.setdefault(found.header.revision, now)
            if now < min(moved + OTHERS_SECONDS, began + AT_MOST_SECONDS):
                self._pause()
            else:
                carry_out(self, found.kvs[0].mod_revision)

    def _pause(self) -> None:
        """Until something happens, where we hear of it."""
        if self._watch is None or self._watch.compacted:
            time.sleep(OTHERS_PAUSE)
        else:
            self._watch.pump(OTHERS_PAUSE)

    def range_of(self, prefix: str) -> dict[str, bytes]:
        """All keys that begin so, as etcd says it: a zero byte is the first key, and as an end none."""
        first = self.name(prefix)
        end = first[:-1] + bytes([first[-1] + 1]) if first else b"\0"
        return {"key": first or b"\0", "range_end": end}

    def _pages(self, prefix: str, revision: int) -> Iterator[_KeyValue]:
        start, end = self.range_of(prefix).values()
        while True:
            body = {"key": start, "range_end": end, "limit": str(PAGE), "revision": str(revision)}
            answer = self.gateway.ask("/v3/kv/range", body, _Range)
            yield from (item for item in answer.kvs if not self._is_redo(item.key))
            if not answer.more:
                return
            start = answer.kvs[-1].key + b"\0"


def _size(puts: Mapping[str, bytes | None]) -> int:
    return sum(len(key) + len(value or b"") for key, value in puts.items())


def _refuse_large(puts: Mapping[str, bytes | None]) -> None:
    for key, value in puts.items():
        if value is not None and len(value) > MAX_BYTES:
            raise InputError(f"{key} has {len(value)} bytes, and etcd takes {MAX_BYTES}", "split the object")


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    return (items[at : at + size] for at in range(0, len(items), size))


def _no_lease(error: Refused) -> Exception:
    return InputError("there is no such lease (any more)") if error.code == NOT_FOUND else error
