"""UDP conntrack entries, read and deleted; and what for: a client that keeps its source port follows its Service.

The clients send from one socket each, 50 ms after what they heard, so that their entries never expire. An answer is
waited for on a busy machine too, and one that comes too late is not taken for the next; only where silence is expected
they go on after 50 ms.
"""

import contextlib
import socket
import subprocess
import threading
from collections.abc import Iterator
from typing import Self

import pytest

from nsnet import control, manifests, names, reconcile
from nsnet.kernel import apply as write
from nsnet.kernel import conntrack, netns, observe, teardown
from nsnet.model import Key, Object
from nsnet.state import Change, Conntrack, Scope, Value
from nsnet.store import sqlite
from nsnet.store.objects import load_objects, save_objects
from tests.byhand import adds, namespace

NAME = "flows"
NODE2 = names.node_netns(NAME, "node2")
CLIENT, HOST = names.pod_netns(NAME, "default", "client"), names.host_netns(NAME, "client")
PATIENCE, SILENCE = 2.0, 0.05  # s: for an answer that has to come; for one that has not to
CLUSTER_IP, NODE_PORT, EXTERNAL_IP = ("10.96.0.53", 53), ("172.18.0.3", 30053), ("172.18.0.3", 53)

TOPOLOGY = """
{apiVersion: nsnet/v1, kind: Cluster, metadata: {name: flows}, networking: {kubeProxyMode: %(mode)s}}
---
{apiVersion: v1, kind: Pod, metadata: {name: client}, spec: {nodeName: node2, containers: [{name: c}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: %(pod)s, labels: {app: dns}}
spec: {nodeName: node1, containers: [{name: dns, ports: [{containerPort: 5353, protocol: UDP}]}]}
---
%(service)s
"""

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: dns}
spec:
  type: NodePort
  clusterIP: 10.96.0.53
  externalIPs: [172.18.0.3]
  selector: {app: dns}
  ports: [{port: 53, targetPort: 5353, nodePort: 30053, protocol: UDP}]
"""


# --- entries ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def alone() -> Iterator[str]:
    """A namespace in which 10.0.0.1:53 is rewritten to 127.0.0.1:5353, where nobody need listen."""
    name = names.node_netns(NAME, "alone")
    refusals = write(adds(namespace(name)))
    assert not refusals
    for line in (
        "ip address add 10.0.0.1/32 dev lo",
        "iptables -t nat -A OUTPUT -d 10.0.0.1 -p udp --dport 53 -j DNAT --to-destination 127.0.0.1:5353",
    ):
        inside(name, *line.split())
    yield name
    netns.delete(name)


def inside(name: str, *words: str) -> str:
    return subprocess.run(["ip", "netns", "exec", name, *words], check=True, capture_output=True, text=True).stdout


def send(name: str, kind: socket.SocketKind, port: int, *to: tuple[str, int]) -> None:
    with netns.inside(name), socket.socket(socket.AF_INET, kind) as sender:
        sender.bind(("127.0.0.1", port))
        for address in to:
            if kind is socket.SOCK_DGRAM:
                sender.sendto(b"x", address)
            else:
                with contextlib.suppress(OSError):
                    sender.connect(address)


REWRITTEN = Conntrack("127.0.0.1", 4000, "10.0.0.1", 53, "127.0.0.1:5353", seen_as="127.0.0.1:4000")
PLAIN = Conntrack("127.0.0.1", 4000, "127.0.0.1", 54, "127.0.0.1:54", seen_as="127.0.0.1:4000")


def test_udp_entries_are_read_and_no_others(alone: str) -> None:
    send(alone, socket.SOCK_DGRAM, 4000, ("10.0.0.1", 53), ("127.0.0.1", 54))
    with netns.inside(alone), socket.create_server(("127.0.0.1", 80)) as server:
        send(alone, socket.SOCK_STREAM, 4001, ("127.0.0.1", 80))
        server.accept()[0].close()
    assert "tcp" in inside(alone, "conntrack", "-L")
    assert conntrack.read(alone) == {REWRITTEN, PLAIN}
    (connection,) = conntrack.read(alone, ("tcp",))
    assert (connection.seen_as, connection.over) == ("127.0.0.1:4001", True)
    assert REWRITTEN.rewritten
    assert not PLAIN.rewritten
    found: set[Value] = set().union(*observe(NAME, only={alone: reconcile.FLOWS}).values())
    assert found == {REWRITTEN, PLAIN}


def test_a_look_at_everything_leaves_them_alone(alone: str) -> None:
    send(alone, socket.SOCK_DGRAM, 4000, ("10.0.0.1", 53))
    assert not [value for value in observe(NAME)[alone] if isinstance(value, Conntrack)]


def test_an_entry_is_deleted_and_the_others_stay(alone: str) -> None:
    send(alone, socket.SOCK_DGRAM, 4000, ("10.0.0.1", 53), ("127.0.0.1", 54))
    for _ in range(2):  # what is gone already is no refusal
        assert write([Change("delete", alone, REWRITTEN)]) == []
        assert conntrack.read(alone) == {PLAIN}


# --- a flow that goes on ----------------------------------------------------------------------------------------------


class Flow:
    """A client in a namespace that asks `hostname` over and over from one source port; `last` is who answered last."""

    def __init__(self, name: str, to: tuple[str, int]) -> None:
        with netns.inside(name):
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.patience = PATIENCE
        self.to = to
        self.sent = 0
        self.last = ""
        self.turn = threading.Condition()
        self.ended = False
        self.thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended = True
        self.thread.join()
        self.socket.close()

    def _run(self) -> None:
        while not self.ended and self.sent < 1000:
            answer = self._ask()
            with self.turn:
                self.sent, self.last = self.sent + 1, answer
                self.turn.notify_all()
            self.turn_over()

    def _ask(self) -> str:
        self.socket.settimeout(0)
        with contextlib.suppress(OSError):
            while self.socket.recv(256):
                pass
        self.socket.settimeout(self.patience)
        try:
            self.socket.sendto(b"hostname\n", self.to)
            return self.socket.recv(256).decode().strip()
        except OSError:  # nobody answers, or an ICMP error says so
            return ""

    def turn_over(self) -> None:
        with self.turn:
            self.turn.wait_for(lambda: self.ended, 0.05)

    def answers(self, packets: int, patience: float = PATIENCE) -> list[str]:
        """Who answers the next packets within that time; the one that is on its way is not waited for."""
        self.patience = patience
        found = []
        with self.turn:
            first = self.sent + 1
            for number in range(first, first + packets):
                assert self.turn.wait_for(lambda number=number: self.sent > number, 10)  # type: ignore[misc]
                found.append(self.last)
        return found


@pytest.fixture
def store() -> Iterator[sqlite.SqliteStore]:
    with sqlite.open_store(NAME, create=True) as opened:
        yield opened
    with reconcile.lock(NAME):
        reconcile.destroy(NAME)
    assert teardown.left(NAME) == []


def objects(store: sqlite.SqliteStore, mode: str, pod: str, service: str = SERVICE) -> None:
    """What `up` writes."""
    text = TOPOLOGY % {"mode": mode, "pod": pod, "service": service}
    stored, revision = load_objects(store)
    loaded = manifests.load([manifests.Source("flows.yaml", text.encode())])
    completed: dict[Key, Object] = control.complete(control.admit(stored, loaded.objects, whole=True))
    save_objects(store, stored, completed, revision)


def up(store: sqlite.SqliteStore, using: reconcile.Rooms, memory: reconcile.Memory | None) -> reconcile.Memory:
    """A whole sync, or with the memory of one before a sync of what the store's changes touch."""
    with reconcile.lock(NAME):
        only: Scope | None = None if memory is None else {}
        return reconcile.sync(store, NAME, only=only, memory=memory, using=using).memory


def replaced(
    store: sqlite.SqliteStore, mode: str, using: reconcile.Rooms, *, whole: bool, patience: float = PATIENCE
) -> list[str]:
    """Who answers the first five packets of each flow after the endpoint has been replaced."""
    objects(store, mode, "old")
    memory = up(store, reconcile.rooms(), None)
    with Flow(CLIENT, CLUSTER_IP) as near, Flow(HOST, NODE_PORT) as far:
        assert {*near.answers(2), *far.answers(2)} == {"old"}
        objects(store, mode, "new")
        up(store, using, None if whole else memory)
        return [*near.answers(5, patience), *far.answers(5, patience)]


@pytest.mark.parametrize("whole", [False, True], ids=["what was touched", "everything"])
@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_a_flow_moves_on_within_the_sync(store: sqlite.SqliteStore, mode: str, whole: bool) -> None:
    assert replaced(store, mode, reconcile.rooms(), whole=whole) == ["new"] * 10
    entries = {(entry.dst, entry.dport): entry.answerer for entry in conntrack.read(NODE2)}
    assert set(entries) >= {CLUSTER_IP, NODE_PORT}
    assert len({entries[CLUSTER_IP], entries[NODE_PORT]}) == 1


@pytest.mark.parametrize("whole", [False, True], ids=["what was touched", "everything"])
@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_a_flow_ends_with_its_service(store: sqlite.SqliteStore, mode: str, whole: bool) -> None:
    """The pod is still there and would answer: by the clusterIP, by the freed node port, by the external address."""
    objects(store, mode, "old")
    memory = up(store, reconcile.rooms(), None)
    with Flow(CLIENT, CLUSTER_IP) as near, Flow(HOST, NODE_PORT) as far, Flow(HOST, EXTERNAL_IP) as further:
        assert {*near.answers(2), *far.answers(2), *further.answers(2)} == {"old"}
        objects(store, mode, "old", service="")
        up(store, reconcile.rooms(), None if whole else memory)
        assert [answer for flow in (near, far, further) for answer in flow.answers(3, SILENCE)] == [""] * 9
    assert [entry for entry in conntrack.read(NODE2) if entry.rewritten and entry.dport in (53, 30053)] == []


def without_clean_up() -> reconcile.Rooms:
    return reconcile.rooms()._replace(flows=lambda _objects: {})


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_a_killed_clean_up_is_finished_by_the_next_whole_look(store: sqlite.SqliteStore, mode: str) -> None:
    """Nothing remembers what was left undone: the flow is stuck until somebody looks at everything."""
    assert replaced(store, mode, without_clean_up(), whole=True, patience=SILENCE) == [""] * 10
    with Flow(CLIENT, CLUSTER_IP) as other:
        assert other.answers(1) == ["new"]
    before = {entry for entry in conntrack.read(NODE2) if entry.dst == CLUSTER_IP[0]}
    up(store, reconcile.rooms(), None)
    after = {entry for entry in conntrack.read(NODE2) if entry.dst == CLUSTER_IP[0]}
    assert (len(before), len(after)) == (2, 1)
    assert after < before
