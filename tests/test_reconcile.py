"""The loop: what is looked at, in which order, when it ends. Stand-ins for the rooms; the real ones in tests/kernel.

The stand-in kernel is a dict of values. A process of it is a server that opens the ports its file names, in the
namespaces it names, the moment it starts or reads the file, as the pod server does.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import pytest

from nsnet import names, scopes
from nsnet.diff import diff, touched
from nsnet.errors import NotReachedError
from nsnet.kernel import iptables
from nsnet.model import Condition, Key, Object, ObjectMeta, Objects, Pod, PodStatus, by_key, is_ready, of
from nsnet.reconcile import FLOWS, BusyError, Listening, Rooms, lock, sync
from nsnet.scopes import heard, merged, scope_of, union, with_listeners
from nsnet.state import (
    KINDS,
    Address,
    Bridge,
    Chain,
    Change,
    Conntrack,
    File,
    Listener,
    Netns,
    Process,
    Refusal,
    Route,
    Scope,
    State,
    Value,
    Veth,
)
from nsnet.store import sqlite
from nsnet.store.keys import encode, path
from nsnet.store.objects import load_objects, save_objects

ROUTER = "demo.fabric.router"
NODE = "demo.node.node1"
SERVER = Process(("podserver", "/pods.conf"))


class Kernel:
    """A dict of values; remembers what it was asked. `stubborn` refuses, `forgetful` accepts without doing it."""

    def __init__(self) -> None:
        self.values: dict[str, set[Value]] = {}
        self.looks: list[Scope | None] = []
        self.batches: list[list[Change]] = []
        self.stubborn: Callable[[Change], bool] = lambda _: False
        self.forgetful: Callable[[Change], bool] = lambda _: False

    def observe(self, _cluster: str, only: Scope | None = None) -> dict[str, frozenset[Value]]:
        self.looks.append(only)
        wanted = dict.fromkeys(self.values, frozenset[tuple[str, ...]]()) if only is None else only
        return {netns: self._read(netns, keys) for netns, keys in wanted.items() if netns in self.values}

    def _read(self, netns: str, keys: frozenset[tuple[str, ...]]) -> frozenset[Value]:
        values = self.values[netns]
        return frozenset(value for value in values if not keys or value.key in keys or value.key[:1] in keys)

    def apply(self, changes: Sequence[Change]) -> list[Refusal]:
        self.batches.append(list(changes))
        refused = [change for change in changes if self.stubborn(change)]
        for change in changes:
            if change not in refused and not self.forgetful(change):
                self._do(change)
        self._serve()
        return [Refusal(change, "Operation not permitted") for change in refused]

    def _do(self, change: Change) -> None:
        if change.verb == "delete" and isinstance(change.value, Netns):
            del self.values[change.netns]
            return
        values = self.values.setdefault(change.netns, set())
        values -= {value for value in values if value.key == change.value.key}
        if change.verb != "delete":
            values.add(change.value)

    def _serve(self) -> None:
        """The pod server's work: a listener per line `netns port` of its file."""
        router = self.values.get(ROUTER, set())
        files = [value for value in router if isinstance(value, File)]
        for values in self.values.values():
            values -= {value for value in values if isinstance(value, Listener)}
        for line in files[0].content.split("\n") if files and SERVER in router else ():
            netns, _, port = line.partition(" ")
            if netns in self.values:
                self.values[netns].add(Listener("TCP", int(port)))

    def kill_the_server(self) -> None:
        self.values[ROUTER].discard(SERVER)
        self._serve()


# --- a small cluster: pods with a namespace each, a chain in the node that lists the ready ones -----------------------


def netns_of(pod: Pod) -> str:
    return names.pod_netns("demo", pod.metadata.namespace, pod.metadata.name)


def render(objects: Objects) -> State:
    pods = of(objects, Pod)
    ready = tuple(f"-d {pod.status.podIP} -j ACCEPT" for pod in pods if is_ready(pod))
    want: dict[str, frozenset[Value]] = {
        ROUTER: frozenset({Netns("m"), SERVER, File("/pods.conf", "\n".join(f"{netns_of(pod)} 80" for pod in pods))}),
        NODE: frozenset({Netns("m"), Bridge("cni0", "0a:58:0a:f4:01:01"), Chain("nat", "KUBE-SVC-WEB", ready)}),
    }
    return want | {netns_of(pod): frozenset({Netns("m"), Address("eth0", f"{pod.status.podIP}/24")}) for pod in pods}


def complete(objects: Objects, listening: Listening) -> dict[Key, Object]:
    return {key: with_ready(obj, listening) if isinstance(obj, Pod) else obj for key, obj in objects.items()}


def with_ready(pod: Pod, listening: Listening) -> Pod:
    status = "True" if ("TCP", 80) in listening.get(netns_of(pod), ()) else "False"
    return msgspec.structs.replace(
        pod, status=msgspec.structs.replace(pod.status, conditions=(Condition("Ready", status),))
    )


def pod(name: str, number: int, ready: str = "True") -> Pod:
    status = PodStatus("Running", f"10.244.1.{number}", conditions=(Condition("Ready", ready),))
    return Pod(ObjectMeta(name, "default"), status=status)


PODS = by_key([pod("a", 2), pod("b", 3)])


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def rooms(kernel: Kernel) -> Rooms:
    return Rooms(kernel.observe, kernel.apply, render, complete, diff, touched)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[sqlite.SqliteStore]:
    with sqlite.open_file(tmp_path / "store.db") as opened:
        save_objects(opened, {}, PODS, 0)
        yield opened


def chain(kernel: Kernel) -> tuple[str, ...]:
    return next(value.rules for value in kernel.values[NODE] if isinstance(value, Chain))


BOTH = ("-d 10.244.1.2 -j ACCEPT", "-d 10.244.1.3 -j ACCEPT")


# --- sync -------------------------------------------------------------------------------------------------------------


def test_from_nothing_to_everything_in_one_round(kernel: Kernel, rooms: Rooms, store: sqlite.SqliteStore) -> None:
    report = sync(store, "demo", using=rooms)
    assert diff(kernel.observe("demo"), render(PODS)) == []
    assert (report.rounds, len(kernel.batches), report.revision) == (2, 1, 1)
    assert report.changes == len(kernel.batches[0]) == 10
    assert report.lines[0] == "ip netns add demo.fabric.router"
    assert set(report.seconds) == {"store", "render", "observe", "diff", "apply", "control"}


def test_nothing_to_do_is_one_look_and_no_write(kernel: Kernel, rooms: Rooms, store: sqlite.SqliteStore) -> None:
    sync(store, "demo", using=rooms)
    kernel.looks.clear()
    report = sync(store, "demo", using=rooms)
    assert (report.rounds, report.changes, kernel.looks, store.revision()) == (1, 0, [None], 1)


def test_every_namespace_is_looked_at_after_its_last_change(
    kernel: Kernel, rooms: Rooms, store: sqlite.SqliteStore
) -> None:
    sync(store, "demo", using=rooms)
    kernel.looks.clear()
    kernel.values[NODE].discard(Bridge("cni0", "0a:58:0a:f4:01:01"))
    sync(store, "demo", using=rooms)
    assert kernel.looks == [None, {NODE: frozenset()}]


def test_the_death_of_the_pod_server_does_not_empty_the_services(
    kernel: Kernel, rooms: Rooms, store: sqlite.SqliteStore
) -> None:
    """Its sockets are gone with it; yet no pod may turn NotReady, not even for a moment, and no rule may change."""
    sync(store, "demo", using=rooms)
    kernel.batches.clear()
    kernel.kill_the_server()
    sync(store, "demo", using=rooms)
    assert kernel.batches == [[Change("add", ROUTER, SERVER)]]
    assert store.revision() == 1
    assert chain(kernel) == BOTH


def test_what_somebody_writes_past_the_fence_while_control_computes_is_not_missed(
    kernel: Kernel, rooms: Rooms, store: sqlite.SqliteStore
) -> None:
    new = pod("c", 4)

    def meanwhile(objects: Objects, listening: Listening) -> dict[Key, Object]:
        if store.get(path(new)) is None:
            store.txn({}, {path(new): encode(new)})
        return complete(objects, listening)

    save_objects(store, PODS, by_key([pod("a", 2, "False"), pod("b", 3, "False")]), 1)
    sync(store, "demo", using=rooms._replace(complete=meanwhile))
    assert chain(kernel) == (*BOTH, "-d 10.244.1.4 -j ACCEPT")


def test_the_same_with_a_limited_look(kernel: Kernel, rooms: Rooms, store: sqlite.SqliteStore) -> None:
    memory = sync(store, "demo", using=rooms).memory
    kernel.batches.clear()
    kernel.kill_the_server()
    report = sync(store, "demo", only={ROUTER: frozenset()}, memory=memory, using=rooms)
    assert kernel.batches == [[Change("add", ROUTER, SERVER)]]
    assert report.memory.listening == memory.listening
    assert store.revision() == 1


def test_a_pod_that_stops_listening_leaves_its_service(kernel: Kernel, rooms: Rooms, store: sqlite.SqliteStore) -> None:
    sync(store, "demo", using=rooms)
    kernel.values["demo.pod.default.a"].discard(Listener("TCP", 80))
    kernel._serve = lambda: None  # type: ignore[method-assign]
    report = sync(store, "demo", using=rooms)
    assert chain(kernel) == ("-d 10.244.1.3 -j ACCEPT",)
    assert report.revision == 2
    assert [is_ready(pod) for pod in of(load_objects(store)[0], Pod)] == [False, True]


def test_the_store_is_written_before_the_kernel(kernel: Kernel, rooms: Rooms, store: sqlite.SqliteStore) -> None:
    save_objects(store, PODS, by_key([pod("a", 2, "False"), pod("b", 3)]), 1)
    seen = []

    def apply(changes: Sequence[Change]) -> list[Refusal]:
        seen.append((store.revision(), any(isinstance(change.value, Chain) for change in changes)))
        return kernel.apply(changes)

    sync(store, "demo", using=rooms._replace(apply=apply))
    assert seen == [(2, True), (3, True)]
    assert chain(kernel) == BOTH


def test_somebody_elses_write_in_between_is_taken(kernel: Kernel, rooms: Rooms, store: sqlite.SqliteStore) -> None:
    """control says that a is ready; before that is stored, a verb adds c: both must stand in the end."""
    unready = by_key([pod("a", 2, "False"), pod("b", 3)])
    save_objects(store, PODS, unready, 1)
    added: list[int] = []

    def complete_late(objects: Objects, listening: Listening) -> dict[Key, Object]:
        if not added:
            added.append(save_objects(store, unready, {**unready, **by_key([pod("c", 4)])}, 2))
        return complete(objects, listening)

    report = sync(store, "demo", using=rooms._replace(complete=complete_late))
    assert chain(kernel) == (*BOTH, "-d 10.244.1.4 -j ACCEPT")
    assert report.revision == store.revision() == 4


FILTERS = {("chain",), ("legacy",), ("nft",), ("ipset",)}


@pytest.mark.parametrize("limited", [False, True])
def test_a_large_load_of_rules_is_not_read_back_until_the_next_whole_look(
    kernel: Kernel, rooms: Rooms, store: sqlite.SqliteStore, monkeypatch: pytest.MonkeyPatch, limited: bool
) -> None:
    monkeypatch.setattr(scopes, "LOAD", 1)
    memory = sync(store, "demo", using=rooms).memory
    kernel.values[NODE] = {Netns("m")}
    kernel.looks.clear()
    kernel.forgetful = lambda change: isinstance(change.value, Chain)
    if limited:
        sync(store, "demo", using=rooms, only={NODE: frozenset()}, memory=memory)
    else:
        sync(store, "demo", using=rooms)
    again = kernel.looks[-1]
    assert again is not None
    assert again[NODE] == {(kind,) for kind in KINDS} - FILTERS
    assert Bridge("cni0", "0a:58:0a:f4:01:01") in kernel.values[NODE]
    kernel.forgetful = lambda _: False
    sync(store, "demo", using=rooms)
    assert chain(kernel) == BOTH


def test_what_was_refused_of_a_large_load_is_seen(
    kernel: Kernel, rooms: Rooms, store: sqlite.SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scopes, "LOAD", 1)
    kernel.stubborn = lambda change: isinstance(change.value, Chain)
    with pytest.raises(NotReachedError, match="not permitted"):
        sync(store, "demo", using=rooms)


# --- UDP conntrack entries --------------------------------------------------------------------------------------------

STALE = Conntrack("10.244.1.9", 40000, "10.96.0.7", 53, "10.244.1.8:53")


def stale(flows: Mapping[str, object], have: State) -> list[Change]:
    """Every entry goes, where there are flows at all."""
    entries = [(netns, value) for netns in flows for value in have[netns] if isinstance(value, Conntrack)]
    return [Change("delete", netns, value) for netns, value in entries]


@pytest.fixture
def udp(rooms: Rooms) -> Rooms:
    """One node, whose Services have UDP ports."""
    return rooms._replace(flows=lambda _objects: {NODE: None}, stale=stale)


def test_stale_entries_go_after_the_rules_at_a_whole_look(
    kernel: Kernel, udp: Rooms, store: sqlite.SqliteStore
) -> None:
    sync(store, "demo", using=udp)
    kernel.values[NODE].add(STALE)
    kernel.batches.clear()
    report = sync(store, "demo", using=udp)
    assert kernel.batches == [[Change("delete", NODE, STALE)]]
    assert kernel.looks[-1] == {NODE: FLOWS}
    assert report.changes == 1


def test_a_limited_look_asks_only_where_rules_were_written(
    kernel: Kernel, udp: Rooms, store: sqlite.SqliteStore
) -> None:
    memory = sync(store, "demo", using=udp).memory
    kernel.looks.clear()
    memory = sync(store, "demo", only={ROUTER: frozenset()}, memory=memory, using=udp).memory
    assert {NODE: FLOWS} not in kernel.looks
    kernel.values[NODE].add(STALE)
    save_objects(store, PODS, {**PODS, **by_key([pod("c", 4)])}, 1)
    sync(store, "demo", only={}, memory=memory, using=udp)
    assert kernel.looks[-1] == {NODE: FLOWS}
    assert STALE not in kernel.values[NODE]


def test_without_udp_nobody_looks(kernel: Kernel, rooms: Rooms, store: sqlite.SqliteStore) -> None:
    sync(store, "demo", using=rooms)
    assert {NODE: FLOWS} not in kernel.looks


# --- a limited look ---------------------------------------------------------------------------------------------------


KEY = ("chain", "ip", "nat", "KUBE-SVC-WEB")


@pytest.mark.parametrize(("long", "first"), [(64, ("netns",)), (1, KEY)], ids=["short chains", "long chains"])
def test_a_change_of_the_objects_is_looked_at_and_nothing_else(
    kernel: Kernel,
    rooms: Rooms,
    store: sqlite.SqliteStore,
    monkeypatch: pytest.MonkeyPatch,
    long: int,
    first: tuple[str, ...],
) -> None:
    """A condition of a pod changed: one chain of one node is written, and read; a long one is read before, too."""
    monkeypatch.setattr(iptables, "LONG_CHAIN", long)
    kernel._serve = lambda: None  # type: ignore[method-assign]
    for name in ("a", "b"):
        kernel.values[f"demo.pod.default.{name}"] = {Netns("m"), Listener("TCP", 80)}
    memory = sync(store, "demo", using=rooms).memory
    kernel.looks.clear()
    kernel.batches.clear()
    save_objects(store, PODS, by_key([pod("a", 2), pod("b", 3, "False")]), 1)
    deaf = rooms._replace(complete=lambda objects, _: dict(objects))
    report = sync(store, "demo", only={}, memory=memory, using=deaf)
    assert kernel.looks == [{NODE: {first}}, {NODE: {KEY}}]
    assert [[change.value.key for change in batch] for batch in kernel.batches] == [[KEY]]
    assert chain(kernel) == ("-d 10.244.1.2 -j ACCEPT",)
    assert report.revision == 2


def named(objects: Objects) -> State:
    """As `render`; and a file in the pod `a` says which pods are ready, as kubedns' does."""
    want, reader = render(objects), "demo.pod.default.a"
    ready = File("/names.json", " ".join(pod.metadata.name for pod in of(objects, Pod) if is_ready(pod)))
    return {**want, reader: want[reader] | {ready}}


def test_what_a_pod_reads_does_not_wait_for_the_rules(
    kernel: Kernel, rooms: Rooms, store: sqlite.SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written in a batch of its own, while a long chain is read; where a pod is new, all goes in one batch."""
    monkeypatch.setattr(iptables, "LONG_CHAIN", 1)
    rooms = rooms._replace(render=named)
    memory = sync(store, "demo", using=rooms).memory
    kernel.batches.clear()
    save_objects(store, PODS, by_key([pod("a", 2), pod("b", 3, "False")]), 1)
    deaf = rooms._replace(complete=lambda objects, _: dict(objects))
    memory = sync(store, "demo", only={}, memory=memory, using=deaf).memory
    assert [[change.value.key[0] for change in batch] for batch in kernel.batches] == [["file"], ["chain"]]
    kernel.batches.clear()
    save_objects(store, memory.objects, {**memory.objects, **by_key([pod("c", 4)])}, 2)
    sync(store, "demo", only={}, memory=memory, using=deaf)
    assert {"file", "chain", "netns"} <= {change.value.key[0] for change in kernel.batches[0]}


def test_a_new_pod_with_a_limited_look(kernel: Kernel, rooms: Rooms, store: sqlite.SqliteStore) -> None:
    memory = sync(store, "demo", using=rooms).memory
    save_objects(store, PODS, {**PODS, **by_key([pod("c", 4)])}, 1)
    kernel.looks.clear()
    report = sync(store, "demo", only={}, memory=memory, using=rooms)
    assert None not in kernel.looks
    assert chain(kernel) == (*BOTH, "-d 10.244.1.4 -j ACCEPT")
    assert (report.rounds, report.revision) == (2, 2)
    assert diff(kernel.observe("demo"), render(load_objects(store)[0])) == []


def test_a_deleted_pod_with_a_limited_look(kernel: Kernel, rooms: Rooms, store: sqlite.SqliteStore) -> None:
    memory = sync(store, "demo", using=rooms).memory
    save_objects(store, PODS, by_key([pod("a", 2)]), 1)
    report = sync(store, "demo", only={}, memory=memory, using=rooms)
    assert sorted(kernel.values) == [ROUTER, NODE, "demo.pod.default.a"]
    assert sorted(report.memory.listening) == [ROUTER, NODE, "demo.pod.default.a"]
    assert diff(kernel.observe("demo"), render(load_objects(store)[0])) == []


def test_with_nothing_named_and_nothing_changed_nothing_is_looked_at(
    kernel: Kernel, rooms: Rooms, store: sqlite.SqliteStore
) -> None:
    memory = sync(store, "demo", using=rooms).memory
    kernel.looks.clear()
    assert sync(store, "demo", only={}, memory=memory, using=rooms).changes == 0
    assert kernel.looks == []


# --- when it cannot be done -------------------------------------------------------------------------------------------


def test_a_change_refused_twice_ends_it_with_the_kernels_sentence(
    kernel: Kernel, rooms: Rooms, store: sqlite.SqliteStore
) -> None:
    kernel.stubborn = lambda change: isinstance(change.value, Bridge)
    with pytest.raises(NotReachedError) as raised:
        sync(store, "demo", using=rooms)
    assert str(raised.value) == (
        "ip -n demo.node.node1 link add cni0 address 0a:58:0a:f4:01:01 mtu 1500 type bridge: Operation not permitted"
    )
    assert len(kernel.batches) == 2
    assert chain(kernel) == BOTH  # one refusal does not stop the rest


def test_a_change_refused_once_is_tried_again(kernel: Kernel, rooms: Rooms, store: sqlite.SqliteStore) -> None:
    kernel.stubborn = lambda change: isinstance(change.value, Bridge) and len(kernel.batches) == 1
    report = sync(store, "demo", using=rooms)
    assert [refusal.reason for refusal in report.refusals] == ["Operation not permitted"]
    assert Bridge("cni0", "0a:58:0a:f4:01:01") in kernel.values[NODE]


def test_what_never_settles_ends_too(kernel: Kernel, rooms: Rooms, store: sqlite.SqliteStore) -> None:
    kernel.forgetful = lambda change: isinstance(change.value, Bridge)
    with pytest.raises(NotReachedError, match="after 12 rounds something still changes by itself: ip -n"):
        sync(store, "demo", using=rooms)


def test_progress_names_the_phases(rooms: Rooms, store: sqlite.SqliteStore) -> None:
    told: list[tuple[str, int]] = []
    sync(store, "demo", using=rooms, progress=lambda phase, count: told.append((phase, count)))
    assert told == [("store", 0), ("render", 2), ("observe", 0), ("apply", 10), ("observe", 4)]


# --- scopes -----------------------------------------------------------------------------------------------------------

WHOLE = frozenset[tuple[str, ...]]()
CHAIN = Chain("nat", "KUBE-SERVICES")
ROUTE = Route("10.244.2.0/24", "flannel.1", "10.244.2.0")
VETH = Veth("veth1", "demo.pod.default.a/eth0", "0a:58:0a:f4:01:02")


@pytest.mark.parametrize(
    ("one", "two", "both"),
    [
        ({}, {}, {}),
        ({"a": {("x",)}}, {"b": {("y",)}}, {"a": {("x",)}, "b": {("y",)}}),
        ({"a": {("x",)}}, {"a": {("y",)}}, {"a": {("x",), ("y",)}}),
        ({"a": {("x",)}}, {"a": WHOLE}, {"a": WHOLE}),
        ({"a": WHOLE}, {"a": {("x",)}}, {"a": WHOLE}),
    ],
)
def test_union(one: Scope, two: Scope, both: Scope) -> None:
    assert union(_frozen(one), _frozen(two)) == both


def _frozen(scope: Scope) -> Scope:
    return {netns: frozenset(keys) for netns, keys in scope.items()}


def test_links_are_proved_by_a_look_at_their_whole_namespace() -> None:
    changes = [Change("add", "n1", CHAIN), Change("replace", "n1", ROUTE, ROUTE), Change("add", "n2", VETH)]
    assert scope_of(changes) == {"n1": {CHAIN.key, ROUTE.key}, "n2": WHOLE}


@pytest.mark.parametrize(
    ("value", "heard_again"),
    [(SERVER, True), (File("/pods.conf", "x"), True), (File("/run/subnet.env", "x"), False), (CHAIN, False)],
)
def test_listeners_are_read_again_where_a_program_or_its_file_changed(value: Value, heard_again: bool) -> None:
    scope = with_listeners([Change("add", ROUTER, value)], render(PODS), {ROUTER: WHOLE})
    listeners = {NODE, "demo.pod.default.a", "demo.pod.default.b"}
    assert scope.keys() - {ROUTER} == (listeners if heard_again else set())


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        (None, {"a": {("TCP", 80)}}),  # everything was read: b is gone
        ({"a": WHOLE}, {"a": {("TCP", 80)}, "b": {("UDP", 53)}}),
        ({"a": frozenset({("listener",)}), "b": WHOLE}, {"a": {("TCP", 80)}}),
        ({"a": frozenset({CHAIN.key})}, {"a": {("TCP", 1)}, "b": {("UDP", 53)}}),  # its listeners were not read
    ],
)
def test_heard(scope: Scope | None, expected: Mapping[str, set[tuple[str, int]]]) -> None:
    have: State = {"a": frozenset({CHAIN, Listener("TCP", 80)})}
    before = {"a": frozenset({("TCP", 1)}), "b": frozenset({("UDP", 53)})}
    assert heard(have, scope, before) == expected


def test_merged() -> None:
    old, new = Listener("TCP", 1), Listener("TCP", 2)
    have: State = {"a": frozenset({CHAIN, old}), "b": frozenset({CHAIN}), "c": frozenset({ROUTE})}
    seen: State = {"a": frozenset({new}), "c": frozenset({VETH})}
    assert merged(have, seen, {"a": frozenset({("listener",)}), "b": WHOLE, "c": WHOLE}) == {
        "a": {CHAIN, new},
        "c": {VETH},
    }


# --- the lock ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def dirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(names, "RUN", tmp_path / "run")
    return tmp_path


HOLDER = """
import sys, pathlib
from nsnet import names, reconcile, scopes
names.RUN = pathlib.Path(sys.argv[1])
with reconcile.lock("demo"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(dirs: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Another process that holds the lock until its stdin is closed."""
    argv = [sys.executable, "-c", HOLDER, str(dirs / "run")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_the_second_one_waits_and_says_for_whom(holder: "subprocess.Popen[bytes]") -> None:
    told = []

    def waiting(pid: int) -> None:
        told.append(pid)
        assert holder.stdin is not None
        holder.stdin.close()

    with lock("demo", waiting=waiting):
        assert told == [holder.pid]
        assert holder.wait() == 0


def test_waiting_has_an_end(holder: "subprocess.Popen[bytes]") -> None:
    with (
        pytest.raises(BusyError, match=rf"another nsnet \(pid {holder.pid}\) is changing cluster demo"),
        lock("demo", timeout=0),
    ):
        pass


def test_a_killed_holder_holds_nothing(holder: "subprocess.Popen[bytes]") -> None:
    holder.kill()
    holder.wait()
    with lock("demo", timeout=0):
        assert (names.RUN / "demo.lock").read_text() == f"{os.getpid()}\n"
    assert not names.RUN.exists()


def test_clusters_do_not_wait_for_each_other(holder: "subprocess.Popen[bytes]") -> None:
    assert holder.poll() is None
    with lock("other", timeout=0):
        pass


COUNTER = """
import sys, pathlib, shutil
from nsnet import names, reconcile, scopes
names.RUN = pathlib.Path(sys.argv[1])
count = pathlib.Path(sys.argv[2])
run = names.run_dir("demo")
for number in range(100):
    with reconcile.lock("demo"):
        seen = int(count.read_text())
        count.write_text(str(seen + 1))
        run.mkdir(exist_ok=True)
        (run / "controller.log").touch()
        shutil.rmtree(run)
"""


def test_never_two_at_once_while_the_cluster_comes_and_goes(dirs: Path) -> None:
    count = dirs / "count"
    count.write_text("0")
    argv = [sys.executable, "-c", COUNTER, str(dirs / "run"), str(count)]
    workers = [subprocess.Popen(argv) for _ in range(4)]
    assert [worker.wait() for worker in workers] == [0] * 4
    assert count.read_text() == "400"
