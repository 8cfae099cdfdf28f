"""A full disk and a read-only one: writes fail with a clear sentence, nothing is corrupted, and it goes on after."""

import contextlib
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsnet.errors import MachineError
from nsnet.store import Store, sqlite


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", tmp_path], check=True)
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


def _fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    return filler


def _write_on_and_on(store: Store) -> None:
    for _ in range(1000):
        store.txn({}, {"/a": b"new" * 3000, "/b": b"new" * 3000})


def test_a_full_disk_loses_nothing_and_heals_when_there_is_room(disk: Path) -> None:
    with sqlite.open_file(disk / "demo" / "store.db") as store:
        store.txn({}, {"/a": b"old"})
        filler = _fill(disk)
        with pytest.raises(MachineError, match="no room left on the disk") as raised:
            _write_on_and_on(store)
        assert raised.value.hint == "make room and run the command again; nothing was lost"
        revision = store.revision()
        a, b = store.get("/a"), store.get("/b")
        assert a is not None
        assert (b is None and a.value == b"old") or (b is not None and a.value == b.value)
        filler.unlink()
        assert store.txn({}, {"/a": b"after"}) == revision + 1
    with contextlib.closing(sqlite3.connect(disk / "demo" / "store.db")) as db:
        assert db.execute("pragma integrity_check").fetchall() == [("ok",)]


def test_no_room_for_a_new_store(disk: Path) -> None:
    filler = _fill(disk)
    path = disk / "store.db"
    with pytest.raises(MachineError, match=r"no room|No space left"):
        sqlite.open_file(path).txn({}, {"/a": b"1"})
    filler.unlink()
    with sqlite.open_file(path) as store:
        assert store.txn({}, {"/a": b"1"}) == 1


def test_a_disk_that_became_read_only(disk: Path) -> None:
    path = disk / "store.db"
    sqlite.open_file(path).close()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(MachineError, match="cannot write") as raised, sqlite.open_file(path) as store:
        store.txn({}, {"/a": b"1"})
    assert "read-only" in raised.value.hint
