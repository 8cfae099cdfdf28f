"""SQLite keeps the store's contract (`store_contract.py`), wakes who waits, and survives crashes and damage."""

import contextlib
import os
import random
import select
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsnet.errors import InputError, MachineError
from nsnet.store import Compacted, Entry, Event, Store, sqlite
from tests.store_contract import Contract, Opener


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opener(tmp_path: Path, clock: Clock) -> Iterator[Opener]:
    """Opens one more handle on one and the same store, as another process would."""
    with contextlib.ExitStack() as stack:

        def open_one() -> Store:
            store = sqlite.open_file(tmp_path / "state" / "store.db", clock=clock)
            stack.callback(_closed, store)
            return store

        yield open_one


def _closed(store: sqlite.SqliteStore) -> None:
    with contextlib.suppress(sqlite3.ProgrammingError):  # a thread of the test has opened and closed it
        store.close()


@pytest.fixture
def store(opener: Opener) -> Store:
    return opener()


class TestSqlite(Contract):
    """tests/store_contract.py"""


# --- waiting ----------------------------------------------------------------------------------------------------------


def test_a_write_of_another_process_sends_a_datagram(opener: Opener) -> None:
    waiter = opener()
    assert not select.select([waiter], [], [], 0)[0]
    _write_in_another_process(waiter)
    assert select.select([waiter], [], [], 0)[0]
    assert waiter.wait(0)
    assert not select.select([waiter], [], [], 0)[0]


def test_polling_finds_what_no_datagram_told(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_poke", lambda *_: None)
    waiter, writer = opener(), opener()
    writer.txn({}, {"/a": b"1"})
    assert waiter.wait(10)


def _write_in_another_process(store: Store) -> None:
    assert isinstance(store, sqlite.SqliteStore)
    code = "import sys, pathlib; from nsnet.store import sqlite\n"
    code += "sqlite.open_file(pathlib.Path(sys.argv[1])).txn({}, {'/other': b'1'})"
    subprocess.run([sys.executable, "-c", code, str(store._path)], check=True)


def test_the_socket_of_a_killed_waiter_is_removed(opener: Opener, tmp_path: Path) -> None:
    code = "import sys, pathlib, os, signal; from nsnet.store import sqlite\n"
    code += "sqlite.open_file(pathlib.Path(sys.argv[1])).fileno(); os.kill(os.getpid(), signal.SIGKILL)"
    path = tmp_path / "state" / "store.db"
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert len(list((path.parent / "watch").iterdir())) == 1
    opener().txn({}, {"/a": b"1"})
    assert list((path.parent / "watch").iterdir()) == []


# --- leases -----------------------------------------------------------------------------------------------------------


def test_a_lease_takes_its_keys_with_it(store: Store, clock: Clock) -> None:
    lease = store.grant(60)
    store.txn({}, {"/a": b"1", "/b": b"1"}, lease=lease)
    store.txn({}, {"/stays": b"1"})
    clock.now += 59
    assert store.reap() == 2
    assert store.remaining(lease) == 1
    clock.now += 1
    assert store.reap() == 3
    assert [entry.key for entry in store.list("/")[0]] == ["/stays"]
    assert store.changes("/", 2) == ([Event(3, "/a", None), Event(3, "/b", None)], 3)
    assert store.remaining(lease) == -1


def test_a_lease_that_is_kept_lives(store: Store, clock: Clock) -> None:
    lease = store.grant(60)
    store.txn({}, {"/a": b"1"}, lease=lease)
    clock.now += 59
    store.keep(lease)
    clock.now += 59
    store.reap()
    assert store.get("/a") == Entry("/a", b"1", 1, 1, lease)


def test_a_lease_that_is_gone_takes_nothing_more(store: Store, clock: Clock) -> None:
    lease = store.grant(60)
    clock.now += 61
    with pytest.raises(InputError, match="no lease"):
        store.txn({}, {"/a": b"1"}, lease=lease)
    with pytest.raises(InputError, match="no lease"):
        store.keep(lease)
    assert store.get("/a") is None


# --- many at once -----------------------------------------------------------------------------------------------------

COUNTER = """
import sys, pathlib
from nsnet.store import sqlite, Conflict
store = sqlite.open_file(pathlib.Path(sys.argv[1]))
done = 0
while done < int(sys.argv[2]):
    entry = store.get("/counter")
    count, revision = (int(entry.value), entry.mod_revision) if entry else (0, 0)
    try:
        store.txn({"/counter": revision}, {"/counter": b"%d" % (count + 1)})
        done += 1
    except Conflict:
        pass
"""


def test_eight_writers_lose_no_update(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    writers = [subprocess.Popen([sys.executable, "-c", COUNTER, str(path), "50"]) for _ in range(8)]
    assert [writer.wait() for writer in writers] == [0] * 8
    with sqlite.open_file(path) as store:
        entry = store.get("/counter")
        assert entry is not None
        assert entry.value == b"400"
        assert store.revision() == 400


# --- crashes and damage -----------------------------------------------------------------------------------------------

# Writes pairs that must always agree, in transactions that also compact, and tells each revision it was promised.
WRITER = """
import sys, pathlib
from nsnet.store import sqlite
store = sqlite.open_file(pathlib.Path(sys.argv[1]))
while True:
    number = store.revision() + 1
    value = b"%d" % number * 300
    store.txn({}, {"/one": value, "/two": value, f"/each/{number % 50}": value, f"/each/{(number + 7) % 50}": None})
    print(number, flush=True)
"""


def test_killed_while_writing_the_store_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    chance = random.Random(7)
    for _ in range(25):
        promised = _killed_after(path, chance.randrange(1, 40))
        _assert_whole(path, promised)


def _killed_after(path: Path, lines: int) -> int:
    """Starts a writer and kills it amid its work some lines later; returns the last revision it was promised."""
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    with writer.stdout as told:
        for _ in range(lines):
            told.readline()
        os.kill(writer.pid, signal.SIGKILL)
        last = [line for line in told.read().split(b"\n") if line]
    writer.wait()
    return int(last[-1]) if last else 0


def _assert_whole(path: Path, promised: int) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
    with sqlite.open_file(path) as store:
        one, two = store.get("/one"), store.get("/two")
        assert one is not None
        assert two is not None
        assert one.value == two.value == b"%d" % store.revision() * 300
        assert store.revision() >= promised
        _assert_log_leads_to_what_stands(store)


def _assert_log_leads_to_what_stands(store: Store) -> None:
    replayed: dict[str, bytes] = {}
    for event in store.changes("/", 0)[0]:
        if event.value is None:
            del replayed[event.key]
        else:
            replayed[event.key] = event.value
    assert replayed == {entry.key: entry.value for entry in store.list("/")[0]}


def test_only_root_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "nsnet" / "demo" / "store.db"
    with sqlite.open_file(path) as store:
        store.txn({}, {"/a": b"1"})
        store.fileno()
        for made in (path.parent, path.parent / "watch"):
            assert stat.S_IMODE(made.stat().st_mode) == 0o700
        for made in (item for item in path.parent.rglob("*") if not item.is_dir()):
            assert stat.S_IMODE(made.stat().st_mode) & 0o077 == 0, made


def test_a_store_of_a_newer_nsnet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    sqlite.open_file(path).close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("pragma user_version = 7")
    with pytest.raises(MachineError, match=r"newer nsnet \(format 7, this one knows 1\)"):
        sqlite.open_file(path)


def test_a_file_of_another_program_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("create table cookies (name)")
        db.execute("pragma user_version = 1")
    before = path.read_bytes()
    with pytest.raises(MachineError, match="not a store of nsnet"):
        sqlite.open_file(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("where", [0, 4096, 8192])
def test_a_damaged_file_is_a_sentence(tmp_path: Path, where: int) -> None:
    path = tmp_path / "demo" / "store.db"
    with sqlite.open_file(path) as store:
        store.txn({}, {f"/key/{number}": b"x" * 200 for number in range(500)})
    data = bytearray(path.read_bytes())
    data[where : where + 4096] = b"\xee" * 4096
    path.write_bytes(data)
    with pytest.raises(MachineError, match="is damaged") as raised, sqlite.open_file(path) as store:
        store.list("/")
    assert raised.value.hint == "`nsnet down demo`, then `nsnet up FILE`, builds it again"


def test_a_path_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot write"):
        sqlite.open_file(tmp_path / "file" / "store.db")


def test_a_cluster_without_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nsnet.names.STATE", tmp_path)
    assert not sqlite.exists("demo")
    with pytest.raises(InputError, match='no cluster "demo"'):
        sqlite.open_store("demo")
    sqlite.open_store("demo", create=True).close()
    assert sqlite.exists("demo")


def test_a_store_notices_that_its_file_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with sqlite.open_file(path) as store:
        assert not store.gone()
        path.unlink()
        assert store.gone()
        sqlite.open_file(path).close()
        assert store.gone()


def test_old_changes_are_compacted_by_and_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "KEEP_REVISIONS", 10)
    monkeypatch.setattr(sqlite, "COMPACT_EVERY", 10)
    with sqlite.open_file(tmp_path / "store.db") as store:
        for _ in range(50):
            store.txn({}, {"/a": b"1"})
        assert len(store.changes("/", 40)[0]) == 10
        with pytest.raises(Compacted):
            store.changes("/", 39)
