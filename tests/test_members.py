"""What a machine tells the others, on a store of one's own; with etcd and several machines in tests/kernel."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from nsnet.store import Unreachable, sqlite
from nsnet.store.keys import MACHINES
from nsnet.store.members import Member

WEB = {"demo.pod.default.web": frozenset({("TCP", 80)})}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[sqlite.SqliteStore]:
    with sqlite.open_file(tmp_path / "store.db") as opened:
        yield opened


def test_what_could_not_be_told_is_told_again(store: sqlite.SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    member = Member(store, "a", "1")
    member.beat()
    with monkeypatch.context() as patch:

        def away(*_: object, **__: object) -> int:
            raise Unreachable("no etcd answers")

        patch.setattr(store, "txn", away)
        with pytest.raises(Unreachable):
            member.tell(WEB, store.revision())
    member.tell(WEB, store.revision())
    told = store.get(f"{MACHINES}a")
    assert told is not None
    assert b"demo.pod.default.web" in told.value


def test_what_a_machine_sees_itself_counts(store: sqlite.SqliteStore) -> None:
    """The router stands on one machine, and its name on all."""
    one, other = Member(store, "a", "1"), Member(store, "b", "2")
    for member in (one, other):
        member.beat()
    other.tell({"demo.fabric.router": frozenset(), **WEB}, store.revision())
    own = {"demo.fabric.router": frozenset({("TCP", 8080)})}
    assert one.heard(own) == {**own, **WEB}
