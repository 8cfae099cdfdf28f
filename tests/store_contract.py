"""The store's contract, one suite for every store. A test module subclasses it and brings the fixture `opener`.

Revisions are told from where the store began: SQLite's begins at 0, an etcd has a past.
"""

import contextlib
import select
import threading
from collections.abc import Callable

import pytest

from nsnet.errors import InputError
from nsnet.store import Compacted, Conflict, Entry, Event, Store

Opener = Callable[[], Store]


class Contract:
    @pytest.fixture
    def store(self, opener: Opener) -> Store:
        return opener()

    def test_a_new_store_is_empty(self, store: Store) -> None:
        assert store.list("/") == ([], store.revision())
        assert store.get("/registry/pods/default/web-0") is None
        assert store.written(["/registry/pods/default/web-0"]) == {}

    def test_every_transaction_is_one_revision(self, store: Store) -> None:
        base = store.revision()
        assert store.txn({}, {"/b": b"1", "/a": b"1"}) == base + 1
        assert store.txn({}, {"/b": b"2"}) == base + 2
        there = [Entry("/a", b"1", base + 1, base + 1), Entry("/b", b"2", base + 1, base + 2)]
        assert store.list("/") == (there, base + 2)
        assert store.written(["/a", "/b", "/c"]) == {"/a": base + 1, "/b": base + 2}

    @pytest.mark.parametrize(
        ("compares", "passes"),
        [
            ({}, True),
            ({"/a": 1}, True),
            ({"/a": 1, "/new": None}, True),
            ({"/a": None}, False),  # it is there
            ({"/a": 2}, False),  # written earlier
            ({"/new": 1}, False),  # absent
            ({"/a": 1, "/b": 1}, False),  # one of two
        ],
    )
    def test_compare_and_swap(self, store: Store, compares: dict[str, int | None], passes: bool) -> None:
        base = store.revision()
        store.txn({}, {"/a": b"1"})
        store.txn({}, {"/b": b"1"})
        wanted = {key: 0 if number is None else base + number for key, number in compares.items()}
        if passes:
            assert store.txn(wanted, {"/a": b"2", "/b": None}) == base + 3
            assert store.list("/")[0] == [Entry("/a", b"2", base + 1, base + 3)]
            return
        with pytest.raises(Conflict):
            store.txn(wanted, {"/a": b"2", "/b": None})
        there = [Entry("/a", b"1", base + 1, base + 1), Entry("/b", b"1", base + 2, base + 2)]
        assert store.list("/") == (there, base + 2)

    def test_deleting_the_absent_is_success_and_no_revision(self, store: Store) -> None:
        base = store.txn({}, {"/a": b"1"})
        assert store.txn({}, {"/nothing": None}) == base
        assert store.txn({}, {}) == base
        assert store.changes("/", base) == ([], base)

    def test_a_key_that_was_deleted_is_created_again(self, store: Store) -> None:
        base = store.txn({}, {"/a": b"1"})
        store.txn({}, {"/a": None})
        store.txn({"/a": 0}, {"/a": b"2"})
        assert store.get("/a") == Entry("/a", b"2", base + 2, base + 2)

    def test_a_prefix_is_a_prefix(self, store: Store) -> None:
        store.txn({}, {"/pods/a/x": b"", "/pods/ab/x": b"", "/podsx": b"", "/pods/a/y": b"", "/q": b""})
        assert [entry.key for entry in store.list("/pods/a/")[0]] == ["/pods/a/x", "/pods/a/y"]
        assert [entry.key for entry in store.list("/pods")[0]] == ["/pods/a/x", "/pods/a/y", "/pods/ab/x", "/podsx"]
        assert len(store.list("")[0]) == 5

    def test_changes_since_a_revision_in_their_order(self, store: Store) -> None:
        base = store.revision()
        store.txn({}, {"/p/a": b"1", "/q": b"1"})
        store.txn({}, {"/p/a": b"2"})
        store.txn({}, {"/p/a": None, "/p/b": b"1"})
        told = [Event(base + 2, "/p/a", b"2"), Event(base + 3, "/p/a", None), Event(base + 3, "/p/b", b"1")]
        assert store.changes("/p/", base + 1) == (told, base + 3)
        assert store.changes("/p/", base) == ([Event(base + 1, "/p/a", b"1"), *told], base + 3)
        assert store.changes("/p/", base + 3) == ([], base + 3)
        assert store.changes("/q", base + 1) == ([], base + 3)

    def test_compaction_forgets_changes_and_keeps_what_stands(self, store: Store) -> None:
        base = store.revision()
        for number in range(5):
            store.txn({}, {"/a": b"%d" % number})
        store.compact(base + 3)
        with pytest.raises(Compacted) as raised:
            store.changes("/", base + 1)
        assert raised.value.revision == base + 3
        told = [Event(base + 4, "/a", b"3"), Event(base + 5, "/a", b"4")]
        assert store.changes("/", base + 3) == (told, base + 5)
        assert store.get("/a") == Entry("/a", b"4", base + 1, base + 5)
        assert store.txn({"/a": base + 5}, {"/a": b"5"}) == base + 6
        store.compact(base + 3)

    def test_two_handles_see_the_same(self, opener: Opener) -> None:
        one, two = opener(), opener()
        base = one.txn({}, {"/a": b"1"})
        assert two.get("/a") == Entry("/a", b"1", base, base)
        assert two.txn({"/a": base}, {"/a": b"2"}) == base + 1
        with pytest.raises(Conflict):
            one.txn({"/a": base}, {"/a": b"3"})

    @pytest.mark.parametrize("value", [b"", b"\x00\xff", "Grüße".encode(), b"x" * 100_000])
    def test_a_value_is_bytes(self, store: Store, value: bytes) -> None:
        store.txn({}, {"/a": value})
        assert store.list("/")[0][0].value == value

    # --- large transactions -------------------------------------------------------------------------------------------

    def test_a_transaction_may_be_large(self, opener: Opener) -> None:
        """More than etcd takes at once, in number and in bytes: all of it or nothing."""
        store, other = opener(), opener()
        base = store.revision()
        first = {f"/registry/pods/{number:04}": b"%d" % number * 500 for number in range(900)}
        store.txn(dict.fromkeys(first, 0), first)
        there = {entry.key: entry.value for entry in other.list("/")[0]}
        assert there == first
        assert {event.key: event.value for event in other.changes("/", base)[0]} == first
        second: dict[str, bytes | None] = {key: None if index % 2 else b"new" for index, key in enumerate(first)}
        wrong = {**store.written(first), "/registry/pods/0007": 999_999}
        with pytest.raises(Conflict) as raised:
            store.txn(wrong, second)
        assert raised.value.key == "/registry/pods/0007"
        assert {entry.key: entry.value for entry in other.list("/")[0]} == first
        after = store.txn(store.written(first), second)
        assert {entry.key for entry in other.list("/")[0]} == {key for key, value in second.items() if value}
        assert other.changes("/", after)[0] == []
        with pytest.raises(Conflict):
            store.txn(dict.fromkeys(first, 0), second)

    # --- waiting ------------------------------------------------------------------------------------------------------

    def test_waiting_ends_when_another_writes(self, opener: Opener) -> None:
        waiter, writer = opener(), opener()
        assert not waiter.wait(0)
        writer.txn({}, {"/a": b"1"})
        assert waiter.wait(10)
        assert not waiter.wait(0)

    def test_a_write_makes_the_waiter_readable(self, opener: Opener) -> None:
        waiter, writer = opener(), opener()
        waiter.fileno()
        writer.txn({}, {"/a": b"1"})
        while not waiter.wait(0):  # a connection that is new says something else first
            assert select.select([waiter], [], [], 10)[0]
        assert not select.select([waiter], [], [], 0)[0]

    def test_a_change_between_looking_and_waiting_counts(self, opener: Opener) -> None:
        waiter, writer = opener(), opener()
        waiter.list("/")
        writer.txn({}, {"/a": b"1"})
        assert waiter.wait(10)

    def test_own_changes_wake_nobody_here(self, opener: Opener) -> None:
        store = opener()
        store.fileno()
        store.txn({}, {"/a": b"1"})
        assert not store.wait(0.2)
        assert [event.key for event in store.changes("/", store.revision() - 1)[0]] == ["/a"]

    # --- leases -------------------------------------------------------------------------------------------------------

    def test_attach_writes_the_key_again(self, store: Store) -> None:
        lease = store.grant(60)
        base = store.txn({}, {"/a": b"1"})
        assert store.attach(lease, "/a") == base + 1
        assert store.get("/a") == Entry("/a", b"1", base, base + 1, lease)
        assert 58 <= store.remaining(lease) <= 60
        store.keep(lease)
        assert store.revoke(lease) == base + 2
        assert store.revoke(lease) == base + 2
        assert store.get("/a") is None
        assert store.changes("/", base + 1) == ([Event(base + 2, "/a", None)], base + 2)
        assert store.remaining(lease) == -1

    def test_a_put_without_lease_frees_the_key(self, store: Store) -> None:
        """flannel renews by a new grant and an unconditional put; the old lease runs out without effect."""
        old, new = store.grant(60), store.grant(600)
        store.txn({}, {"/a": b"1", "/b": b"1"}, lease=old)
        store.txn({}, {"/a": b"2"}, lease=new)
        store.txn({}, {"/b": b"2"})
        store.revoke(old)
        assert [(entry.key, entry.lease) for entry in store.list("/")[0]] == [("/a", new), ("/b", 0)]
        store.attach(0, "/a")
        store.revoke(new)
        assert [(entry.key, entry.lease) for entry in store.list("/")[0]] == [("/a", 0), ("/b", 0)]

    def test_a_lease_that_is_gone_takes_nothing_more(self, store: Store) -> None:
        lease = store.grant(60)
        store.txn({}, {"/here": b"1"})
        store.revoke(lease)
        for refused in (
            lambda: store.txn({}, {"/a": b"1"}, lease=lease),
            lambda: store.attach(lease, "/here"),
            lambda: store.keep(lease),
        ):
            with pytest.raises(InputError, match="no lease"):
                refused()
        with pytest.raises(InputError, match="is not in the store"):
            store.attach(0, "/nothing")
        assert store.get("/a") is None
        assert store.remaining(0) == -1

    # --- many at once -------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(("copies", "times"), [(0, 20), (150, 2)])
    def test_eight_writers_lose_no_update(self, opener: Opener, copies: int, times: int) -> None:
        """Small transactions and large ones; nobody ever reads a half of a large one."""
        writers = [threading.Thread(target=_count, args=(opener, copies, times)) for _ in range(8)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        said = [entry.value for entry in opener().list("/registry/c")[0]]
        assert said == [b"%d" % (8 * times)] * (copies + 1)


def _count(opener: Opener, copies: int, times: int) -> None:
    """Counts up, with copies of the number, which must always agree with it."""
    store = opener()
    keys = [f"/registry/copies/{number:03}" for number in range(copies)] + ["/registry/counter"]
    done = 0
    while done < times:
        entries, _ = store.list("/registry/c")
        count = int(entries[-1].value) if entries else 0
        assert {int(entry.value) for entry in entries} <= {count}, "a half of a transaction was read"
        written = {entry.key: entry.mod_revision for entry in entries}
        with contextlib.suppress(Conflict):
            store.txn({key: written.get(key, 0) for key in keys}, dict.fromkeys(keys, b"%d" % (count + 1)))
            done += 1
    store.close()
