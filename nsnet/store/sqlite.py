"""The default store: one SQLite file per cluster, `/var/lib/nsnet/<cluster>/store.db`.

Why SQLite: 18,000 writes a second with write-ahead log and `synchronous=NORMAL` (a crash of any process loses nothing;
a power cut may lose the last writes, and never damages), transactions across processes, no server. The row and the line
in the change log are written in one transaction, so that whoever knows a revision can resume from it.

Who waits for changes binds a unix datagram socket in `watch/` beside the file; who has written sends one byte to each
(0.3 ms until the waiter runs). A datagram is a hint that may get lost: `pragma data_version`, which costs 3 µs and
tells whether another connection has written, is asked four times a second anyway.

Leases run out by the wall clock, since they must outlive a restart; tests bring their own clock.
"""

import contextlib
import os
import select
import socket
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Self

from nsnet.errors import InputError, MachineError
from nsnet.names import state_dir
from nsnet.store import LEASE_SECONDS, Compacted, Conflict, Entries, Entry, Event, Events

FORMAT = 1  # pragma user_version
APPLICATION = 0x6E736E74  # pragma application_id: "nsnt"
BUSY_SECONDS = 10.0
POLL_SECONDS = 0.25
KEEP_REVISIONS = 4096  # changes older than this are compacted by and by
COMPACT_EVERY = 512

SCHEMA = """
create table meta (name text primary key, value integer not null) without rowid;
insert into meta values ('revision', 0), ('compacted', 0);
create table kv (
    key text primary key, value blob not null, create_revision integer not null, mod_revision integer not null,
    lease integer not null default 0
) without rowid;
create index kv_lease on kv (lease) where lease != 0;
create table log (revision integer not null, key text not null, value blob, primary key (revision, key)) without rowid;
create table lease (id integer primary key autoincrement, ttl integer not null, expires real not null);
"""
PUT = """
insert into kv values (:key, :value, :revision, :revision, :lease) on conflict (key) do update
set value = excluded.value, mod_revision = excluded.mod_revision, lease = excluded.lease
"""


def path_of_store(cluster: str) -> Path:
    return state_dir(cluster) / "store.db"


def exists(cluster: str) -> bool:
    """Has the cluster a store? It may still be damaged."""
    return path_of_store(cluster).exists()


def open_store(cluster: str, *, create: bool = False) -> "SqliteStore":
    """The cluster's store.

    Raises InputError where there is none and `create` is not set; MachineError as `open_file`.
    """
    path = path_of_store(cluster)
    if not create and not path.exists():
        raise InputError(f'there is no cluster "{cluster}"', "`nsnet list` shows all; `nsnet up FILE` builds one")
    return open_file(path)


def open_file(path: Path, *, clock: Callable[[], float] = time.time) -> "SqliteStore":
    """Opens or makes a store. `clock` is seconds, for leases.

    Raises MachineError: no room, no right to write, a damaged file, one of a newer nsnet or of another program.
    """
    with _explained(path), _umask():
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
        except OSError as error:
            raise _no_write(path, os.strerror(error.errno or 0)) from error
        try:
            _prepare(db, path)
            return SqliteStore(db, path, clock)
        except BaseException:
            db.close()
            raise


class SqliteStore:
    """Fulfils `nsnet.store.Store`. One object, one thread; any number of processes may have the file open."""

    def __init__(self, db: sqlite3.Connection, path: Path, clock: Callable[[], float]) -> None:
        self._db = db
        self._path = path
        self._clock = clock
        self._inode = path.stat().st_ino
        self._seen = self._data_version()
        self._watch = _watch_dir(path)
        self._waker: socket.socket | None = None
        self._waker_name = ""

    # --- reading ------------------------------------------------------------------------------------------------------

    def revision(self) -> int:
        with _explained(self._path):
            return self._meta("revision")

    def get(self, key: str) -> Entry | None:
        with _explained(self._path):
            row = self._db.execute("select * from kv where key = ?", (key,)).fetchone()
        return Entry(*row) if row else None

    def list(self, prefix: str) -> Entries:
        with self._reading():
            rows = self._db.execute("select * from kv where key >= ? and key < ? order by key", _range(prefix))
            return [Entry(*row) for row in rows], self._meta("revision")

    def written(self, keys: Iterable[str]) -> dict[str, int]:
        with self._reading():
            ask = "select key, mod_revision from kv where key = ?"
            return dict(row for key in keys if (row := self._db.execute(ask, (key,)).fetchone()))

    def changes(self, prefix: str, since: int) -> Events:
        with self._reading():
            compacted = self._meta("compacted")
            if since < compacted:
                raise Compacted(since, compacted)
            rows = self._db.execute(
                "select * from log where revision > ? and key >= ? and key < ? order by revision, key",
                (since, *_range(prefix)),
            )
            return [Event(*row) for row in rows], self._meta("revision")

    # --- writing ------------------------------------------------------------------------------------------------------

    def txn(self, compares: Mapping[str, int], puts: Mapping[str, bytes | None], *, lease: int = 0) -> int:
        with self._writing():
            self._compare(compares)
            self._need_lease(lease)
            return self._write(puts, lease)

    def compact(self, revision: int) -> None:
        with self._writing():
            self._compact(revision)

    # --- waiting ------------------------------------------------------------------------------------------------------

    def wait(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        waker = self._bound()
        while True:
            _drain(waker)
            if self._changed():
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            select.select([waker], [], [], min(left, POLL_SECONDS))

    def fileno(self) -> int:
        return self._bound().fileno()

    def gone(self) -> bool:
        try:
            return self._path.stat().st_ino != self._inode
        except OSError:
            return True

    # --- leases -------------------------------------------------------------------------------------------------------

    def grant(self, ttl: int = LEASE_SECONDS) -> int:
        with self._writing():
            row = self._db.execute("insert into lease (ttl, expires) values (?, ?)", (ttl, self._clock() + ttl))
            assert row.lastrowid is not None
            return row.lastrowid

    def keep(self, lease: int) -> None:
        with self._writing():
            self._need_lease(lease)
            self._db.execute("update lease set expires = ? + ttl where id = ?", (self._clock(), lease))

    def attach(self, lease: int, key: str) -> int:
        with self._writing():
            self._need_lease(lease)
            row = self._db.execute("select value from kv where key = ?", (key,)).fetchone()
            if row is None:
                raise InputError(f"{key} is not in the store")
            return self._write({key: row[0]}, lease)

    def remaining(self, lease: int) -> int:
        with _explained(self._path):
            row = self._db.execute("select expires from lease where id = ?", (lease,)).fetchone()
        return max(-1, int(row[0] - self._clock())) if row else -1

    def revoke(self, lease: int) -> int:
        with self._writing():
            return self._revoke([lease])

    def reap(self) -> int:
        with self._writing():
            due = self._db.execute("select id from lease where expires <= ?", (self._clock(),))
            return self._revoke([lease for (lease,) in due])

    # --- the end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        if self._waker is not None:
            self._waker.close()
            with contextlib.suppress(OSError):
                os.unlink(self._waker_name, dir_fd=self._watch)
            self._waker = None
        if self._watch >= 0:
            os.close(self._watch)
            self._watch = -1
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _meta(self, name: str) -> int:
        return int(self._db.execute("select value from meta where name = ?", (name,)).fetchone()[0])

    def _data_version(self) -> int:
        return int(self._db.execute("pragma data_version").fetchone()[0])

    def _changed(self) -> bool:
        with _explained(self._path):
            version = self._data_version()
        seen, self._seen = self._seen, version
        return version != seen

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Everything read inside belongs to one moment."""
        with _explained(self._path):
            self._db.execute("begin")
            try:
                yield
            finally:
                self._end()

    def _end(self) -> None:
        """Takes back what was begun, unless an error (a full disk) has ended it already."""
        if self._db.in_transaction:
            self._db.execute("rollback")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction: either all of it is on disk afterwards, or nothing and an error is raised."""
        with _explained(self._path):
            self._db.execute("begin immediate")
            before = self._db.total_changes
            try:
                yield
                self._db.execute("commit")
            except BaseException:
                self._end()
                raise
        if self._db.total_changes != before:
            self._wake_others()

    def _compare(self, compares: Mapping[str, int]) -> None:
        for key, wanted in compares.items():
            row = self._db.execute("select mod_revision from kv where key = ?", (key,)).fetchone()
            if (row[0] if row else 0) != wanted:
                raise Conflict(key)

    def _need_lease(self, lease: int) -> None:
        alive = "select 1 from lease where id = ? and expires > ?"
        if lease and self._db.execute(alive, (lease, self._clock())).fetchone() is None:
            raise InputError(f"there is no lease {lease} (any more)")

    def _write(self, puts: Mapping[str, bytes | None], lease: int) -> int:
        revision = self._meta("revision") + 1
        there = [(key,) for key, value in puts.items() if value is None and self._holds(key)]
        rows = [
            {"key": key, "value": value, "revision": revision, "lease": lease}
            for key, value in puts.items()
            if value is not None
        ]
        if not rows and not there:
            return revision - 1
        self._db.executemany(PUT, rows)
        self._db.executemany("delete from kv where key = ?", there)
        self._db.executemany("insert into log values (:revision, :key, :value)", rows)
        self._db.executemany("insert into log values (?, ?, null)", [(revision, key) for (key,) in there])
        self._db.execute("update meta set value = ? where name = 'revision'", (revision,))
        if revision % COMPACT_EVERY == 0:
            self._compact(revision - KEEP_REVISIONS)
        return revision

    def _holds(self, key: str) -> bool:
        return self._db.execute("select 1 from kv where key = ?", (key,)).fetchone() is not None

    def _compact(self, revision: int) -> None:
        upto = min(revision, self._meta("revision"))
        if upto > self._meta("compacted"):
            self._db.execute("delete from log where revision <= ?", (upto,))
            self._db.execute("update meta set value = ? where name = 'compacted'", (upto,))

    def _revoke(self, leases: Iterable[int]) -> int:
        keys: dict[str, bytes | None] = {}
        for lease in leases:
            if lease:
                keys |= {key: None for (key,) in self._db.execute("select key from kv where lease = ?", (lease,))}
                self._db.execute("delete from lease where id = ?", (lease,))
        return self._write(keys, 0)

    def _bound(self) -> socket.socket:
        """Our own wake-up socket, bound when first asked for: most users of a store never wait."""
        if self._waker is None:
            with _umask():
                self._waker, self._waker_name = _bind(self._watch)
        return self._waker

    def _wake_others(self) -> None:
        if self._watch < 0:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            for name in os.listdir(self._watch):  # noqa: PTH208 - of an open directory
                if name != self._waker_name:
                    _poke(sender, self._watch, name)


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    db.execute(f"pragma busy_timeout = {int(BUSY_SECONDS * 1000)}")
    _refuse_foreign(db, path)
    _write_ahead(db)
    db.execute("pragma synchronous = normal")
    if _pragma(db, "user_version") == 0:
        db.execute("begin immediate")  # whoever comes second finds it done
        if _pragma(db, "user_version") == 0:
            for statement in SCHEMA.split(";"):
                db.execute(statement)
            db.execute(f"pragma application_id = {APPLICATION}")
            db.execute(f"pragma user_version = {FORMAT}")
        db.execute("commit")
    _refuse_foreign(db, path)


def _write_ahead(db: sqlite3.Connection) -> None:
    """Switches to the write-ahead log; SQLite does not wait for another process that is just doing the same."""
    deadline = time.monotonic() + BUSY_SECONDS
    while db.execute("pragma journal_mode").fetchone()[0] != "wal":
        try:
            db.execute("pragma journal_mode = wal")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _refuse_foreign(db: sqlite3.Connection, path: Path) -> None:
    version, application = _pragma(db, "user_version"), _pragma(db, "application_id")
    if application not in (0, APPLICATION) or (version and not application):
        raise MachineError(f"{path} is not a store of nsnet", "move the file away and run the command again")
    if version > FORMAT:
        raise MachineError(
            f"{path} was written by a newer nsnet (format {version}, this one knows {FORMAT})",
            "use that newer nsnet, or take the cluster down and up again",
        )


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"pragma {name}").fetchone()[0])


def _range(prefix: str) -> tuple[str, str]:
    """The first key with this prefix and the first one after all of them (etcd's range_end)."""
    return (prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1)) if prefix else ("", chr(0x10FFFF))


@contextlib.contextmanager
def _umask() -> Iterator[None]:
    """What is made here is for root alone: directories 0700, files 0600."""
    old = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(old)


# --- wake-ups ---------------------------------------------------------------------------------------------------------


def _watch_dir(path: Path) -> int:
    """An open directory, so that its sockets have a short name (/proc/self/fd/7/1234) however long the path is."""
    watch = path.parent / "watch"
    with contextlib.suppress(OSError):
        watch.mkdir(mode=0o700, exist_ok=True)
        return os.open(watch, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return -1  # no room for a directory: polling is enough


def _bind(watch: int) -> tuple[socket.socket, str]:
    """A socket that other processes can wake; where it cannot be bound, nothing ever comes and polling does it all."""
    waker = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    waker.setblocking(False)
    name = f"{os.getpid()}-{waker.fileno()}"
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=watch)  # left behind by a killed process that had our pid
    with contextlib.suppress(OSError):
        waker.bind(f"/proc/self/fd/{watch}/{name}")
    return waker, name


def _poke(sender: socket.socket, watch: int, name: str) -> None:
    try:
        sender.sendto(b"!", f"/proc/self/fd/{watch}/{name}")
    except BlockingIOError:
        pass  # its queue is full: it will wake anyway
    except ConnectionRefusedError:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=watch)  # its owner was killed
    except OSError:
        pass


def _drain(waker: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            waker.recv(16)


# --- errors -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """SQLite's errors as sentences that say what to do."""
    try:
        yield
    except sqlite3.Error as error:
        raise _explain(path, error) from error


def _explain(path: Path, error: sqlite3.Error) -> MachineError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _is_full(path)):
        return MachineError(
            f"no room left on the disk of {path}", "make room and run the command again; nothing was lost"
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return MachineError(
            f"{path} is damaged ({error})", f"`nsnet down {path.parent.name}`, then `nsnet up FILE`, builds it again"
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return _no_write(path, str(error))
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return MachineError(f"{path} is held by another process for more than {BUSY_SECONDS:.0f} s", "try again")
    return MachineError(f"{path}: {error}", "`nsnet doctor` says what this machine lacks")


def _no_write(path: Path, why: str) -> MachineError:
    return MachineError(f"cannot write {path}: {why}", "run it as root; is the file system mounted read-only?")


def _is_full(path: Path) -> bool:
    try:
        return os.statvfs(path.parent).f_bavail == 0
    except OSError:
        return False
