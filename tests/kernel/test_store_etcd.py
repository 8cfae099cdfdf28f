"""etcd keeps the contract, with a real etcd; what only etcd does: fill up, lose members, let certificates expire."""

import contextlib
import itertools
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from nsnet.errors import InputError, MachineError, NsnetError
from nsnet.model import Key, Object, ObjectMeta, Pod, by_key
from nsnet.store import Compacted, Conflict, Store, Unreachable, redo
from nsnet.store.etcd import EtcdStore, open_etcd
from nsnet.store.keys import CHARGE
from nsnet.store.location import parsed
from nsnet.store.members import Member, behind
from nsnet.store.objects import load_objects, save_objects
from tests.etcds import Etcd, certificates, free_ports, running, until
from tests.store_contract import Contract, Opener

API = {**os.environ, "ETCDCTL_API": "3"}
PREFIXES = itertools.count()


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with running(tmp_path_factory.mktemp("etcd")) as found:
        yield found


@pytest.fixture(params=["", "/a/prefix"])
def opener(etcd: Etcd, request: pytest.FixtureRequest) -> Iterator[Opener]:
    """Opens one more handle on one and the same store: each test has a prefix of its own, under which nothing is."""
    prefix = f"{request.param}/test-{next(PREFIXES)}"
    with contextlib.ExitStack() as stack:

        def open_one() -> Store:
            return stack.enter_context(etcd.store(prefix))

        yield open_one


class TestEtcd(Contract):
    """tests/store_contract.py"""


# --- what a lease and a watch do over time ----------------------------------------------------------------------------


def test_a_lease_runs_out_by_itself_and_one_that_is_kept_does_not(etcd: Etcd) -> None:
    with etcd.store("/runs-out") as store:
        short, kept = store.grant(1), store.grant(1)
        base = store.txn({}, {"/a": b"1"}, lease=short)
        store.txn({}, {"/b": b"1"}, lease=kept)
        while store.get("/a") is not None:
            store.keep(kept)
            store.wait(0.1)
        assert [entry.key for entry in store.list("/")[0]] == ["/b"]
        assert [(event.key, event.value) for event in store.changes("/", base)[0]] == [("/b", b"1"), ("/a", None)]
        assert store.remaining(short) == -1


def test_a_watch_that_was_away_sees_what_happened_or_that_it_cannot(etcd: Etcd) -> None:
    """Its connection breaks; it takes up where it was, and says so where etcd has forgotten that."""
    with etcd.store("/away") as watcher, etcd.store("/away") as writer:
        base = writer.txn({}, {"/a": b"1"})
        assert watcher.wait(10)
        _break(watcher)
        writer.txn({}, {"/a": b"2"})
        assert watcher.wait(10)
        assert [event.value for event in watcher.changes("/", base)[0]] == [b"2"]
        _break(watcher)
        last = writer.txn({}, {"/a": b"3"})
        writer.compact(writer.txn({}, {"/a": b"4"}))
        assert watcher.wait(10)
        with pytest.raises(Compacted):
            watcher.changes("/", last - 1)
        assert watcher.changes("/", last + 1) == ([], last + 1)


def _break(store: EtcdStore) -> None:
    assert store._watch is not None
    store._watch.elsewhere()


def test_a_writer_that_dies_amid_a_large_transaction(etcd: Etcd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its commit nothing has happened; after it whoever comes next finishes it."""
    puts: dict[str, bytes | None] = {f"/registry/{number:03}": b"new" for number in range(300)}
    with etcd.store("/dies") as store, etcd.store("/dies") as next_one:
        monkeypatch.setattr(redo, "_commit", _died)
        with pytest.raises(_Died):
            store.txn({}, puts)
        assert next_one.list("/")[0] == []
        monkeypatch.undo()
        monkeypatch.setattr(redo, "carry_out", _died)
        with pytest.raises(_Died):
            store.txn({}, puts)
        monkeypatch.undo()
        monkeypatch.setattr("nsnet.store.etcd.OTHERS_SECONDS", 0.05)
        assert {entry.key: entry.value for entry in next_one.list("/")[0]} == puts
        assert next_one.peek(redo.COMMIT) is None
        assert list(next_one._pages(redo.REDO, next_one.revision())) == []


@pytest.mark.parametrize(
    ("written", "conflict"),
    [
        ("/registry/nsnet/machines/b", False),
        ("/registry/pods/default/150", True),
        ("/registry/pods/default/1500", True),
    ],
)
def test_what_others_write_before_a_large_transaction_commits(
    etcd: Etcd, monkeypatch: pytest.MonkeyPatch, written: str, conflict: bool
) -> None:
    """An object of a kind that it writes is a conflict; what a machine says of itself is none."""
    objects = [f"/registry/nodes/{number}" for number in range(3)]
    objects += [f"/registry/pods/default/{number:03}" for number in range(300)]
    with etcd.store(f"/large{written}") as store, etcd.store(f"/large{written}") as other:
        checks = redo._checks

        def overtaken(*asked: Any) -> Any:
            found = checks(*asked)
            other.txn({}, {written: b"theirs"})
            return found

        monkeypatch.setattr(redo, "_checks", overtaken)
        with pytest.raises(Conflict) if conflict else contextlib.nullcontext():
            store.txn(dict.fromkeys(objects, 0), dict.fromkeys(objects, b"ours"))
        ours = [entry.key for entry in other.list("/")[0] if entry.value == b"ours"]
        assert ours == ([] if conflict else objects)


class _Died(Exception):  # noqa: N818
    pass


def _died(*_: object) -> int:
    raise _Died


# --- what may be wrong ------------------------------------------------------------------------------------------------


def test_nobody_is_there() -> None:
    port = free_ports(1)[0]
    with pytest.raises(Unreachable, match=f"etcd at 127.0.0.1:{port} cannot be reached: Connection refused"):
        EtcdStore(parsed(f"etcd://127.0.0.1:{port}"), 0.2)


class _Proxy(BaseHTTPRequestHandler):
    """What reaches no etcd."""

    def do_POST(self) -> None:
        self.send_error(503)


@pytest.mark.parametrize(
    ("who", "kind", "said"),
    [
        (BaseHTTPRequestHandler, MachineError, "not an etcd with a v3 JSON gateway"),
        (_Proxy, Unreachable, "HTTP 503"),
    ],
)
def test_what_answers_is_no_etcd(who: type[BaseHTTPRequestHandler], kind: type[NsnetError], said: str) -> None:
    with HTTPServer(("127.0.0.1", 0), who) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            with pytest.raises(kind, match=said):
                EtcdStore(parsed(f"etcd://127.0.0.1:{server.server_port}"), 0.2)
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("?cacert=ca.pem&cert=good.pem&key=good-key.pem", ""),
        ("?cacert=ca.pem&cert=old.pem&key=old-key.pem", "TLS failed|cannot be reached"),  # as the server puts it
        ("?cacert=ca.pem", "TLS failed|cannot be reached"),
        ("?cacert=good.pem&cert=good.pem&key=good-key.pem", "TLS failed: unable to get local issuer certificate"),
        ("?cacert=nothing.pem", "nothing.pem: cannot be read"),
        ("?cacert=ca.pem&cert=good.pem&key=old-key.pem", "not usable for TLS"),
    ],
)
def test_certificates(secure: Etcd, query: str, error: str, monkeypatch: pytest.MonkeyPatch, pki: Path) -> None:
    monkeypatch.chdir(pki)
    location = parsed(f"{secure.url}{query}")
    if not error:
        with EtcdStore(location) as store, EtcdStore(location) as other:
            other.fileno()
            store.txn({}, {"/a": b"1"})
            assert other.wait(10)
        return
    with pytest.raises(NsnetError, match=error) as raised:
        EtcdStore(location, 0.2)
    assert raised.value.hint


def test_a_server_whose_certificate_has_expired(pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pki)
    words = ("--cert-file", str(pki / "old.pem"), "--key-file", str(pki / "old-key.pem"))
    expired = running(pki / "expired", 1, *words, scheme="https", query="?cacert=ca.pem")
    with expired as etcd, pytest.raises(MachineError, match="TLS failed: certificate has expired") as raised:
        etcd.store()
    assert "must renew" in raised.value.hint


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("pki")
    certificates(found)
    (found / "expired").mkdir()
    return found


@pytest.fixture(scope="module")
def secure(pki: Path) -> Iterator[Etcd]:
    files = {"--cert-file": "good.pem", "--key-file": "good-key.pem", "--trusted-ca-file": "ca.pem"}
    words = [word for name, file in files.items() for word in (name, str(pki / file))]
    query = f"?cacert={pki}/ca.pem&cert={pki}/good.pem&key={pki}/good-key.pem"
    with running(pki, 1, *words, "--client-cert-auth", scheme="https", query=query) as found:
        found.store().close()
        yield found


def test_a_full_database_takes_nothing_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with running(tmp_path, 1, "--quota-backend-bytes", str(2 << 20)) as etcd, etcd.store() as store:
        base = store.txn({}, {"/a": b"old"})
        with pytest.raises(MachineError, match="database is full") as raised:
            _fill(store)
        assert "nothing was lost" in raised.value.hint
        with pytest.raises(MachineError, match="database is full"):
            store.txn({}, {f"/large/{number}": b"x" for number in range(500)})
        entry = store.get("/a")
        assert entry is not None
        assert entry.value == b"old"
        store.txn({"/a": base}, {"/a": None})  # deletes go through: that is how room is made
        assert store.list("/large/")[0] == []
        store.txn({}, {entry.key: None for entry in store.list("/fill/")[0]})
        store.compact(store.revision())
        for words in (["defrag"], ["alarm", "disarm"]):
            subprocess.run(["etcdctl", "--endpoints", etcd.members[0].client, *words], check=True, env=API)
        store.txn({}, {"/a": b"new"})


def _fill(store: Store) -> None:
    for number in range(1000):
        store.txn({}, {f"/fill/{number}": b"x" * 50_000})


def test_another_clusters_prefix_and_a_newer_format_are_refused(etcd: Etcd) -> None:
    location = etcd.location("/shared")
    with pytest.raises(InputError, match='holds no cluster "one"'):
        open_etcd(location, "one")
    with open_etcd(location, "one", create=True) as store:
        store.txn({}, {"/registry/nsnet/clusters/one": b"{}"})
        with pytest.raises(InputError, match='holds cluster "one"') as raised:
            open_etcd(location, "two", create=True)
        assert raised.value.hint == f"give two a prefix of its own: --store {etcd.url}/two"
        open_etcd(location, "one").close()
        store.txn({}, {"/registry/nsnet/format": b"2"})
        with pytest.raises(MachineError, match=r"newer nsnet \(format 2, this one knows 1\)"):
            open_etcd(location, "one")


def test_nothing_lands_of_who_was_in_charge(etcd: Etcd) -> None:
    """Who has slept for longer than its lease writes in vain, little or much, until it has taken the charge again."""
    every = by_key([Pod(ObjectMeta(name=f"p{number}", namespace="default")) for number in range(400)])
    pods = {many: dict(list(every.items())[:many]) for many in (1, 400)}
    with etcd.store("/charge") as one, etcd.store("/charge") as other:
        asleep, awake = Member(one, "a", "1"), Member(other, "b", "2")
        for member in (asleep, awake):
            member.beat()
        assert asleep.in_charge()
        assert not awake.in_charge()
        objects, revision = load_objects(one)
        lease = one.get(CHARGE)
        assert lease is not None
        other.revoke(lease.lease)
        for now in (asleep, awake):  # nobody is in charge, and then somebody else
            assert now is asleep or awake.in_charge()
            for much in pods.values():
                with pytest.raises(Conflict):
                    save_objects(one, objects, much, revision, asleep.claim)
        assert load_objects(one)[0] == {}
        assert not asleep.in_charge()
        save_objects(other, objects, pods[400], revision, awake.claim)
        awake.leave()
        asleep.beat()
        assert asleep.in_charge()
        objects, revision = load_objects(one)
        save_objects(one, objects, pods[1], revision, asleep.claim)
        assert load_objects(other)[0] == pods[1]


def test_garbage_for_a_large_transaction_holds_up_nobody(etcd: Etcd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nsnet.store.etcd.OTHERS_SECONDS", 0.05)
    with etcd.store("/garbage-redo") as store:
        store.gateway.ask("/v3/kv/put", {"key": store.name(redo.COMMIT), "value": b"\x00 none"}, dict)
        store.txn({"/a": 0}, {"/a": b"1"})
        assert [entry.key for entry in store.list("/")[0]] == ["/a"]


def test_a_name_is_one_machines(etcd: Etcd, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is refused, also where both look before either joins; a machine that starts again is no second."""
    with etcd.store("/name") as one, etcd.store("/name") as other:
        first, second = Member(one, "a", "1"), Member(other, "a", "2")
        looks = iter([first.beat, second._record])

        def look() -> object:
            return next(looks)()

        with monkeypatch.context() as both_look:
            both_look.setattr(second, "_record", look)
            with pytest.raises(InputError, match="another machine goes by the name a"):
                second.beat()
        for refused in (second.check, second.beat):
            with pytest.raises(InputError, match="another machine goes by the name a"):
                refused()
        again = Member(one, "a", "1")
        again.beat()
        again.leave()
        second.beat()
        with pytest.raises(InputError, match="another machine goes by the name a"):
            first.check()


def test_who_has_not_followed_yet(etcd: Etcd) -> None:
    """Nobody has while nobody is in charge; then who has not told since the last writing, or was not gone by."""
    pods: list[Object] = [Pod(ObjectMeta(name=name, namespace="default")) for name in "pq"]
    with etcd.store("/behind") as one, etcd.store("/behind") as other, etcd.store("/behind") as asking:
        save_objects(one, {}, by_key(pods[:1]), one.revision())
        first, second = Member(one, "a", "1"), Member(other, "b", "2")
        for member, store in ((first, one), (second, other)):
            member.beat()
            member.tell({}, store.revision())
        assert behind(asking, ["c"]) == ["a", "b", "c"]
        assert first.in_charge()
        assert behind(asking) == ["a"]  # what b says has not been gone by
        first.heard({})
        first.tell({}, one.revision())
        assert behind(asking) == []
        second.tell({"x": frozenset({("TCP", 80)})}, other.revision())
        assert behind(asking) == ["a"]
        assert first.heard({}) == {"x": frozenset({("TCP", 80)})}
        revision = save_objects(one, by_key(pods[:1]), by_key(pods), one.revision())
        first.tell({}, revision)
        assert behind(asking) == ["b"]
        second.tell({}, other.revision())
        assert behind(asking) == ["a"]
        first.heard({})
        first.tell({}, revision)
        assert behind(asking) == []


def test_control_waits_a_moment_for_first_words(etcd: Etcd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of machines that are there, and once: who has had the charge for longer waits for nobody."""
    with etcd.store("/words") as one, etcd.store("/words") as other:
        save_objects(one, {}, by_key([Pod(ObjectMeta(name="p", namespace="default"))]), one.revision())
        first, second = Member(one, "a", "1"), Member(other, "b", "2")
        monkeypatch.setattr("nsnet.store.members.FIRST_WORDS", 3600.0)
        for member in (first, second):
            member.beat()
        assert first.in_charge()
        assert first.heard({}) is None
        assert first.patience() > 0
        second.tell({"x": frozenset({("TCP", 80)})}, other.revision())
        assert first.in_charge()
        assert first.heard({}) == {"x": frozenset({("TCP", 80)})}
        assert first.patience() == 0
        second.leave()
        monkeypatch.setattr("nsnet.store.members.FIRST_WORDS", 0.0)
        first.leave()
        second = Member(other, "b", "3")
        for member in (first, second):
            member.beat()
        assert first.in_charge()
        assert first.heard({}) == {}


def test_garbage_under_our_prefix_is_a_warning(etcd: Etcd) -> None:
    garbage = {
        "/registry/pods/default/a": b"\x00\xff", "/registry/pods/default/b": b"[]", "/registry/services/specs/x": b"{}",
        "/coreos.com/network/subnets/nonsense": b"{}", "/coreos.com/network/subnets/10.1.0.0-24": b"none",
        "/registry/nsnet/clusters/x": b'{"kind": "Cluster"}', "/registry/pods": b"", "/elsewhere": b"1",
    }  # fmt: skip
    said: list[str] = []
    with etcd.store("/garbage") as store:
        store.txn({}, garbage)
        store.gateway.ask("/v3/kv/put", {"key": b"/garbage/registry/\xff\xfe", "value": b"1"}, dict)
        objects, revision = load_objects(store, said.append)
        assert objects == {}
        assert len(said) == 8
        pod = Pod(ObjectMeta(name="p", namespace="default"))
        save_objects(store, objects, by_key([pod]), revision)
        assert list(load_objects(store)[0]) == [Key("Pod", "default", "p")]
        assert len(store.list("/")[0]) == len(garbage) + 3


# --- three members ----------------------------------------------------------------------------------------------------


def test_any_one_of_three_members_may_die(tmp_path: Path) -> None:
    """Each in turn, the leader among them: nothing that was promised is lost, and the watcher sees all of it once."""
    with running(tmp_path, 3) as etcd, etcd.store() as writer, etcd.store() as watcher:
        base, _ = watcher.changes("/", watcher.revision())[1], watcher.fileno()
        promised: list[str] = []
        for member in etcd.members:
            member.kill()
            for number in range(5):
                key = f"/{member.name}/{number}"
                writer.txn({}, {key: b"1"})
                promised.append(key)
            member.start(etcd.cluster)
            until(lambda: watcher.wait(1), "the watcher is woken")
        events, _ = watcher.changes("/", base)
        assert [event.key for event in events] == promised
        assert {entry.key for entry in watcher.list("/")[0]} == set(promised)


def test_without_a_majority_nothing_is_promised(tmp_path: Path) -> None:
    with running(tmp_path, 3) as etcd, etcd.store() as store:
        store.txn({}, {"/a": b"1"})
        etcd.members[0].kill()
        etcd.members[1].kill()
        store.gateway.patience = 0.5
        with pytest.raises(Unreachable):
            store.txn({}, {"/a": b"2"})
        etcd.members[0].start(etcd.cluster)
        store.gateway.patience = 20.0
        store.txn({}, {"/b": b"1"})
        assert [entry.key for entry in store.list("/")[0]] == ["/a", "/b"]
