"""Policies that change while packets are under way: once a change is reported done, nothing passes that it denies.

A thread asks without a pause; each of its questions knows when it began and ended. What lay wholly between two changes
must have gone as the second's table says (`walk` over what the store holds). Nothing here waits for a time: a change
follows when the thread has asked a whole round since the last one.
"""

import itertools
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from time import monotonic
from typing import NamedTuple, Self

import pytest

from nsnet import control, manifests
from nsnet.kernel import netns, probe
from nsnet.model import Key, Object, Objects, annotation
from nsnet.trace import Packet, walk
from tests import policies
from tests.kernel.test_policy_packets import Cluster, probe_of, running
from tests.policies import NINE, Flow

MODES = ("iptables", "nftables")
CHANGES = 25  # in each mode


class Asked(NamedTuple):
    begun: float
    ended: float
    flow: Flow
    passed: bool


class Traffic:
    """Asks these flows, round after round, until it is left."""

    def __init__(self, cluster: Cluster, flows: list[Flow]) -> None:
        self.cluster, self.flows = cluster, flows
        self.answers: list[Asked] = []
        self.rounds = 0
        self.ended = False
        self.turn = threading.Condition()
        self.thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended = True
        self.thread.join()

    def _run(self) -> None:
        while not self.ended:
            begun = monotonic()
            asked = [probe_of(flow, self.cluster.who) for flow in self.flows]
            answers = probe.probe(asked, timeout=0.1, tries=1, concurrency=512)
            ended = monotonic()
            with self.turn:
                for flow, answer in zip(self.flows, answers, strict=True):
                    self.answers.append(Asked(begun, ended, flow, answer.outcome == "ok"))
                self.rounds += 1
                self.turn.notify()

    def round(self) -> None:
        """Returns when a round has been asked that began after this call."""
        with self.turn:
            wanted = self.rounds + 2
            assert self.turn.wait_for(lambda: self.rounds >= wanted, 30)


@pytest.fixture(params=MODES)
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    yield from running(NINE, request.param)


def _some_change(objects: Objects, chance: random.Random) -> dict[Key, Object]:
    """Another policy set, other labels of a pod, or of a namespace."""
    match chance.choice(("policies", "pod", "pod", "namespace")):
        case "policies":
            picked = chance.sample([case for case in NINE.cases if "X" in case.table], 2)
            return policies.with_policies(
                objects, "\n".join(_renamed(case.policies, n) for n, case in enumerate(picked))
            )
        case "pod":
            key = Key("Pod", chance.choice("xvz"), chance.choice("abc"))
            return policies.patched(objects, key, {"pod": chance.choice("abcq")})
    return policies.patched(objects, Key("Namespace", "", chance.choice("xvz")), {"ns": chance.choice("xvzq")})


def _renamed(text: str, number: int) -> str:
    return "\n".join(
        line.replace(": ", f"-{number}: ", 1) if line[:2] in {"x/", "v/", "z/"} else line for line in text.splitlines()
    )


def test_what_a_change_denies_does_not_pass_once_it_is_done(cluster: Cluster) -> None:
    chance = random.Random(9)
    flows = [flow for flow in cluster.flows if flow[3] == "tcp" and flow[2] == 80 and "/" in flow[0]]
    denied: list[tuple[float, float, set[Flow]]] = []
    cluster.apply("x/deny: {}")
    with Traffic(cluster, flows) as traffic:
        for _ in range(CHANGES):
            cluster.write(_some_change(cluster.objects, chance))
            since = monotonic()
            want = cluster.report.memory.want
            closed = {flow for flow in flows if _ends(want, cluster, flow) == "dropped"}
            traffic.round()
            denied.append((since, monotonic(), closed))
    judged = [
        (asked, asked.flow in closed)
        for since, until, closed in denied
        for asked in traffic.answers
        if since <= asked.begun and asked.ended <= until
    ]
    assert len({since for since, _, closed in denied if closed}) > CHANGES // 2
    assert len(judged) >= CHANGES * len(flows)
    assert [asked for asked, is_denied in judged if is_denied and asked.passed] == []
    assert any(asked.passed for asked, is_denied in judged if not is_denied)


def _ends(want: object, cluster: Cluster, flow: Flow) -> str:
    (way,) = walk(want, cluster.who[flow[0]].netns, Packet("tcp", cluster.who[flow[1]].ip, flow[2]))  # type: ignore[arg-type]
    return way.result


# --- pods that come and go --------------------------------------------------------------------------------------------

ADDRESS = "10.244.1.77"


def _pod(namespace: str, name: str, **labels: str) -> dict[Key, Object]:
    words = ", ".join(f"{key}: {value}" for key, value in labels.items())
    text = (
        f"{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}, labels: {{{words}}}, "
        f"annotations: {{nsnet/ip: {ADDRESS}}}}}, spec: {{nodeName: node1, containers: [{{name: c, ports: "
        "[{containerPort: 80}, {containerPort: 80, protocol: UDP}]}]}}"
    )
    loaded = manifests.load([manifests.Source("pod.yaml", text.encode())], "x").objects
    return {key: obj for key, obj in loaded.items() if key.kind == "Pod"}


def _instead(objects: Objects, new: dict[Key, Object]) -> dict[Key, Object]:
    """The new pod in the place of whoever has its address."""
    holders = [key for key, obj in objects.items() if key.kind == "Pod" and annotation(obj, "nsnet/ip") == ADDRESS]
    left = control.remove(objects, holders)
    return control.complete(control.admit(left, new, whole=False), None)


class Sending(threading.Thread):
    """UDP from a namespace to an address, a thousand times a second.

    Each from a port that was not used for longer than conntrack remembers: a flow that is known passes by design.
    """

    def __init__(self, start: str, to: tuple[str, int]) -> None:
        super().__init__()
        self.start_netns, self.to = start, to
        self.over = threading.Event()

    def run(self) -> None:
        ports = itertools.cycle(range(2000, 65000))
        with netns.inside(self.start_netns):
            while not self.over.wait(0.001):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender, suppress(OSError):
                    sender.bind(("", next(ports)))
                    sender.sendto(b"hostname\n", self.to)


def _received(name: str) -> int:
    """UDP packets that came to a namespace since it was made, whether or not anybody listened."""
    with netns.inside(name):
        lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    names, values = (line.split()[1:] for line in lines if line.startswith("Udp:"))
    counted = dict(zip(names, map(int, values), strict=True))
    return counted["InDatagrams"] + counted["NoPorts"]


def test_a_new_pod_is_never_open_before_its_rules(cluster: Cluster) -> None:
    """The address goes to and fro between a pod that everybody may reach and one that nobody may, under traffic."""
    cluster.apply("x/deny: {podSelector: {}}")
    client = Sending(cluster.who["z/b"].netns, (ADDRESS, 80))
    client.start()
    try:
        for number in range(5):
            cluster.write(_instead(cluster.objects, _pod("v", f"open-{number}", pod="q")))
            while not _received(f"nine.pod.v.open-{number}"):
                assert client.is_alive()
            cluster.write(_instead(cluster.objects, _pod("x", f"closed-{number}", pod="q")))
            assert _received(f"nine.pod.x.closed-{number}") == 0
    finally:
        client.over.set()
        client.join()


def test_who_takes_a_freed_address_has_not_what_its_holder_had(cluster: Cluster) -> None:
    """A peer's set loses the address before the next holder can send from it."""
    cluster.apply(
        "x/p: {ingress: [{from: [{namespaceSelector: {matchLabels: {ns: v}}, podSelector: {matchLabels: {pod: q}}}]}]}"
    )
    to = (cluster.who["x/c"].ip, 80)
    for number in range(4):
        cluster.write(_instead(cluster.objects, _pod("v", f"friend-{number}", pod="q")))
        assert _heard(f"nine.pod.v.friend-{number}", to)
        cluster.write(_instead(cluster.objects, _pod("z", f"stranger-{number}", pod="q")))
        assert not _heard(f"nine.pod.z.stranger-{number}", to, tries=1)


def _heard(start: str, to: tuple[str, int], tries: int = 5) -> bool:
    (answer,) = probe.probe([probe.Probe(start, "TCP", *to, tries=tries)], timeout=0.2)
    return answer.outcome == "ok"


# --- flows that are there ---------------------------------------------------------------------------------------------


class Flowing:
    """A flow of one source port that stays: what it is asked, it answers."""

    def __init__(self, start: str, to: tuple[str, int], kind: socket.SocketKind, question: bytes) -> None:
        with netns.inside(start):
            self.socket = socket.socket(socket.AF_INET, kind)
        self.socket.settimeout(2)
        self.socket.connect(to)
        self.socket.settimeout(0.4)
        self.question = question

    def answers(self) -> bool:
        try:
            self.socket.sendall(self.question)
            return bool(self.socket.recv(4096))
        except TimeoutError:
            return False

    def close(self) -> None:
        """With a reset: its namespace can go at once."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, probe.LINGER_0)
        self.socket.close()


def _tcp(start: str, to: tuple[str, int]) -> Flowing:
    return Flowing(start, to, socket.SOCK_STREAM, b"GET /hostname HTTP/1.1\r\nHost: x\r\n\r\n")


def _udp(start: str, to: tuple[str, int]) -> Flowing:
    return Flowing(start, to, socket.SOCK_DGRAM, b"hostname\n")


@pytest.fixture(params=[(mode, flush) for mode in MODES for flush in ("false", "true")], ids="-flush-".join)
def told(request: pytest.FixtureRequest) -> Iterator[tuple[Cluster, bool]]:
    mode, flush = request.param
    for one in running(NINE, mode, f"{{flushConntrack: {flush}}}"):
        yield one, flush == "true"


def test_an_established_flow_and_a_new_deny(told: tuple[Cluster, bool]) -> None:
    cluster, flushed = told
    who = cluster.who
    to = (who["x/b"].ip, 80)
    cluster.apply("x/p: {ingress: [{}]}")  # guarded, and open: the flows begin under rules of policies
    with ExitStack() as stack:
        strangers = [stack.enter_context(closing(one(who["z/a"].netns, to))) for one in (_tcp, _udp)]
        friend = stack.enter_context(closing(_tcp(who["x/a"].netns, to)))
        assert all(flow.answers() for flow in (*strangers, friend))
        cluster.apply("x/p: {ingress: [{from: [{podSelector: {}}]}]}")
        assert [flow.answers() for flow in strangers] == [not flushed, not flushed]
        assert friend.answers()
        assert not _heard(who["z/a"].netns, to, tries=1)
