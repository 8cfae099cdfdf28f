"""Faults as tables: each applied to one cluster, asked by packets and by the walk, undone. For tests and the score.

A world is a cluster (`racks.yaml`) and its table (`racks.txt`). One cluster stands for all rows and is synced in this
process; nothing here knows what a fault does.
"""

import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from difflib import unified_diff
from pathlib import Path

import dns.message
import msgspec

from nsnet import control, kernel, manifests, model, names, reconcile
from nsnet.cli import fault as cli
from nsnet.cli import trace, trace_lines
from nsnet.cli.impaired import equipped
from nsnet.cli.target import Target, target
from nsnet.faults import CATALOGUE, check
from nsnet.kernel.probe import Answer, Probe
from nsnet.kernel.probe import probe as ask
from nsnet.model import Fault, FaultSpec, Key, ObjectMeta, Objects
from nsnet.reconcile import Memory
from nsnet.state import Listener, Process, State, Value
from nsnet.store.objects import load_objects, save_objects
from nsnet.store.sqlite import SqliteStore, open_store
from nsnet.trace import Packet
from tests import agreeing

HERE = Path(__file__).parent
NAME = "faulted"
WORLD = "cluster"  # the one that every kind is tried in
SERVICES = {
    "near": "10.96.0.101", "far": "10.96.0.102", "dns": "10.96.0.10", "near/6": "fd00:10:96::101",
    "far/6": "fd00:10:96::102",
}  # fmt: skip
WORKERS = 4  # tools at once
EPHEMERAL = 32768  # ports from here on are given to who asks for any (net.ipv4.ip_local_port_range)
PATIENCE = 0.9  # s; after one a SYN is sent again, which may fare better
LARGE = 8000  # bytes of a request that fills several packets
QUERY = dns.message.make_query("kubernetes.default.svc.cluster.local", "A", id=1).to_wire()


class Question(msgspec.Struct, frozen=True):
    """`to` is a pod, a node, a host or a Service; with `/6` behind it, its IPv6 address."""

    sender: str
    to: str
    port: int
    how: str = ""  # ping, udp, large; larges: that six times at once, of which the worst counts

    def __str__(self) -> str:
        port = f":{self.port}" if self.port else ""
        return f"{self.sender} → {self.to}{port}{f' {self.how}' if self.how else ''}"


class Row(msgspec.Struct, frozen=True):
    """One fault: `outcome` and `says` are regular expressions of how it ends, and of what trace says about it."""

    words: tuple[str, ...]
    question: Question
    outcome: str
    says: str
    well: tuple[Question, ...]

    def __str__(self) -> str:
        return " ".join(self.words)


def rows(world: str = WORLD) -> list[Row]:
    lines = (HERE / f"{world}.txt").read_text().splitlines()
    return [_row(line) for line in lines if line and not line.startswith("#")]


def _row(line: str) -> Row:
    fault, symptom, says, well = re.split(r"\s+\|\s+", line)
    asked, _, outcome = symptom.rpartition(" ")
    return Row(tuple(fault.split()), _question(asked), outcome, says, tuple(map(_question, well.split(", "))))


def _question(text: str) -> Question:
    found = re.fullmatch(r"(\S+) → (\w+(?:/6)?)(?::(\d+))?(?: (ping|udp|larges?))?", text.strip())
    assert found, text
    return Question(found[1], found[2], int(found[3] or 0), found[4] or "")


# --- the cluster ------------------------------------------------------------------------------------------------------


class Cluster:
    """The one cluster, its store, and what the last sync ended with."""

    def __init__(self, mode: str = "iptables", world: str = WORLD) -> None:
        self.rows = rows(world)
        text = (HERE / f"{world}.yaml").read_text().replace("kubeProxyMode: iptables", f"kubeProxyMode: {mode}")
        loaded = manifests.load([manifests.Source(f"{world}.yaml", text.encode())])
        self.store: SqliteStore = open_store(NAME, create=True)
        self.memory: Memory | None = None
        self.change(lambda stored: control.admit(stored, loaded.objects, whole=True))

    def change(self, change: Callable[[Objects], Objects]) -> None:
        """Writes the store as a verb does, and syncs what that touches."""
        with reconcile.lock(NAME):
            stored, revision = load_objects(self.store)
            save_objects(self.store, stored, reconcile.completed(change(stored), None, ""), revision)
            report = reconcile.sync(self.store, NAME, only=None if self.memory is None else {}, memory=self.memory)
            self.memory = report.memory

    @property
    def objects(self) -> Objects:
        return load_objects(self.store)[0]

    def add(self, words: Sequence[str], **spec: str) -> None:
        """`ip-forward-off --on node/node2`, as `nsnet fault add` takes it."""
        kind, *rest = words
        sides: dict[str, list[str]] = {"--on": [], "--to": []}
        while "--on" in rest or "--to" in rest:
            at = min(rest.index(flag) for flag in sides if flag in rest)
            flag, place = rest[at : at + 2]
            sides[flag].append(cli.placed(self.objects, place, "default"))
            del rest[at : at + 2]
        options = cli.assigned(CATALOGUE[kind], rest)
        made = FaultSpec(kind, tuple(sides["--on"]), tuple(sides["--to"]), options, **spec)
        (item,) = equipped(model.by_key([Fault(ObjectMeta(name=cli.called(made)), made)])).values()
        assert isinstance(item, Fault)
        check(item, self.objects)
        self.change(lambda stored: {**stored, model.key_of(item): item})

    def clear(self) -> None:
        self.change(lambda stored: {key: obj for key, obj in stored.items() if key.kind != "Fault"})

    def down(self) -> None:
        self.store.close()
        with reconcile.lock(NAME):
            reconcile.destroy(NAME)


def texts() -> dict[str, str]:
    """What the kernel's own tools print of every namespace, without numbers that only count."""
    there = sorted(kernel.observe(NAME, only=dict.fromkeys(_names(), frozenset({("netns",)}))))
    with ThreadPoolExecutor(WORKERS) as pool:
        return dict(zip(there, pool.map(_text, there), strict=True))


def _text(netns: str) -> str:
    tools = (words for words in _TOOLS if names.kind_of(netns) != "pod" or words[0] in {"ip", "bridge"})
    return "\n".join(_printed(netns, words) for words in tools)


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """The lines that came and went."""
    found = []
    for netns in sorted(before.keys() | after.keys()):
        lines = unified_diff(before.get(netns, "").splitlines(), after.get(netns, "").splitlines(), n=0, lineterm="")
        found += [f"{netns} {line}" for line in lines if line[:3] not in {"---", "+++"} and line[:2] != "@@"]
    return found


def settled() -> State:
    """What the kernel has; a child that a program has just forked is no second copy of it, and who asks listens not."""
    state = kernel.observe(NAME)
    return {netns: frozenset(_single(value) for value in values if not _asks(value)) for netns, values in state.items()}


def _asks(value: Value) -> bool:
    """A socket of a resolver that waits for its answer looks like one that listens."""
    return isinstance(value, Listener) and value.protocol == "UDP" and value.port >= EPHEMERAL


def _single(value: Value) -> Value:
    return msgspec.structs.replace(value, copies=1) if isinstance(value, Process) else value


def _names() -> list[str]:
    return [path.name for path in names.NETNS.iterdir() if path.name.startswith(f"{NAME}.")]


_TOOLS = (
    ("ip", "-d", "-o", "link"), ("ip", "-o", "address"), ("ip", "route", "show", "table", "all"),
    ("ip", "neigh", "show", "nud", "permanent"), ("bridge", "fdb", "show", "state", "permanent"),
    ("bridge", "-d", "link"), ("tc", "qdisc"), ("iptables-save",), ("ip6tables-save",), ("nft", "list", "ruleset"),
    ("sysctl", "net.ipv4.ip_forward", "net.ipv4.conf.all.rp_filter", "net.bridge"),
)  # fmt: skip
_COUNTS = re.compile(
    r"^\d+: |@if\d+|link-netnsid \d+|\[\d+:\d+\]|^# (Generated|Completed).*|packets \d+ bytes \d+|qdisc \S+ [0-9a-f]+:|"
    r"timer +\S+|hello_timer.*?vlan_filtering|port_id 0x\S+|port_no 0x\S+|designated_port \d+|index \d+|expires \d+\S*|"
    r"message_age.*?hold_timer *\S+|ifindex \d+|refcnt \d+|state (UP|UNKNOWN)|\s+linkdown"  # settled later
)


def _watched(line: str) -> str:
    """A device whose carrier is there is up; the kernel's linkwatch may take a second to say so."""
    return line.replace("NO-CARRIER,", "").replace("state DOWN", "state UP") if "LOWER_UP" in line else line


def _printed(netns: str, words: Sequence[str]) -> str:
    done = subprocess.run(["ip", "netns", "exec", netns, *words], capture_output=True, text=True, check=False)
    lines = (_COUNTS.sub("", _watched(line)).strip() for line in done.stdout.splitlines())
    return f"# {' '.join(words)}\n" + "\n".join(sorted(line for line in lines if line))


# --- packets ----------------------------------------------------------------------------------------------------------


def netns_of(name: str) -> str:
    if name.startswith("node"):
        return names.node_netns(NAME, name)
    return names.host_netns(NAME, name) if name == "client" else names.pod_netns(NAME, "default", name)


def address(objects: Objects, name: str) -> str:
    if name in SERVICES:
        return SERVICES[name]
    own, _, six = name.partition("/")
    return next(ip for ip in _addresses(objects, own) if (":" in ip) is bool(six))


def _addresses(objects: Objects, name: str) -> list[str]:
    if name == "client":
        found = next(host for host in model.cluster_of(objects).hosts or () if host.name == name)
        return [found.address, *found.addresses]
    if name.startswith("node"):
        node = objects[Key("Node", "", name)]
        assert isinstance(node, model.Node)
        return [item.address for item in node.status.addresses if item.type == "InternalIP"]
    pod = objects[Key("Pod", "default", name)]
    assert isinstance(pod, model.Pod)
    return [*model.pod_ips(pod)]


def probe_of(objects: Objects, question: Question) -> Probe:
    to = address(objects, question.to)
    if question.how == "ping":
        return Probe(netns_of(question.sender), "ICMP", to)
    if question.how == "udp":
        return Probe(
            netns_of(question.sender), "UDP", to, question.port, QUERY if question.port == 53 else b"hostname\n"
        )
    more = b"X-Filler: " + b"x" * LARGE + b"\r\n" if question.how.startswith("large") else b""
    body = b"GET /nsnet HTTP/1.1\r\nHost: x\r\n" + more + b"Connection: close\r\n\r\n"
    return Probe(netns_of(question.sender), "TCP", to, question.port, body)


def outcomes(objects: Objects, questions: Sequence[Question], *, tries: int = 1) -> list[str]:
    """`ok`, or how it failed; an answer to a pod that was seen as somebody else is `seen-as-another`."""
    asked = [question for question in questions for _ in range(6 if question.how == "larges" else 1)]
    answers = ask([probe_of(objects, question) for question in asked], timeout=PATIENCE, tries=tries)
    found: dict[Question, str] = {}
    for question, answer in zip(asked, answers, strict=True):
        found[question] = _outcome(question, answer) if found.get(question, "ok") == "ok" else found[question]
    return [found[question] for question in questions]


def _outcome(question: Question, answer: Answer) -> str:
    if (
        answer.outcome == "ok"
        and b'"client"' in answer.body
        and question.to not in SERVICES
        and not question.to.startswith("node")
    ):
        said = re.search(rb'"client": ?"([^"]+):\d+"', answer.body)
        if said and said[1].decode().strip("[]") != answer.local[0]:
            return "seen-as-another"
    return answer.outcome


# --- the walk ---------------------------------------------------------------------------------------------------------


def packet_of(objects: Objects, question: Question) -> Packet:
    protocol = {"ping": "icmp", "udp": "udp"}.get(question.how, "tcp")
    return Packet(protocol, address(objects, question.to), question.port)


def start_of(objects: Objects, question: Question) -> Target:
    kind = "node/" if question.sender.startswith("node") else "host/" if question.sender == "client" else "pod/"
    return target(objects, kind + question.sender)


def said(objects: Objects, state: State, question: Question) -> str:
    """Everything that `trace` says about how the packet fares."""
    start, packet = start_of(objects, question), packet_of(objects, question)
    found = trace.traced(state, start, packet)
    look = trace_lines.look_of(state, objects)
    parting = trace.compared(objects, start, packet, found, look)
    lines = [parting.sentence]
    for one in found:
        lines.append(trace_lines.verdict(one, packet, look))
        lines += [trace_lines.reply_verdict(one.way, reply, look) for reply in one.replies]
    return "\n".join(lines)


def disagreements(objects: Objects, state: State, questions: Sequence[Question]) -> list[str]:
    """Which packets, sent and watched, fare otherwise than predicted, and where."""
    asked = [(start_of(objects, question), packet_of(objects, question)) for question in dict.fromkeys(questions)]
    return agreeing.differences(objects, state, asked, meant=False)


def is_named(row: Row, words: str) -> bool:
    """Does the trace name the true cause?"""
    return re.search(row.says, words) is not None


def missing() -> Iterator[str]:
    """Kinds of the catalogue that the table does not try."""
    tried = {row.words[0] for row in rows()}
    yield from (name for name in CATALOGUE if name not in tried)


# --- the proof --------------------------------------------------------------------------------------------------------


def healthy(cluster: Cluster) -> dict[str, str]:
    """Asks everything of the cluster without faults; what the kernel's own tools print of it."""
    questions = sorted({question for row in cluster.rows for question in (row.question, *row.well)}, key=str)
    found = dict(zip(map(str, questions), outcomes(cluster.objects, questions, tries=3), strict=True))
    assert {question: outcome for question, outcome in found.items() if outcome != "ok"} == {}
    return texts()


def proved(cluster: Cluster, before: Mapping[str, str], row: Row) -> None:
    """The symptom, and only that; the cause named; predicted = observed; everything as it was afterwards."""
    had = settled()
    try:
        cluster.add(row.words)
        state, objects = kernel.observe(NAME), cluster.objects
        with ThreadPoolExecutor(1) as beside:  # what hangs, hangs, while others are asked
            symptom = beside.submit(outcomes, objects, [row.question])
            well = outcomes(objects, row.well, tries=3)
            words = said(objects, state, row.question)
            apart = disagreements(objects, state, [row.question, *row.well])
            (outcome,) = symptom.result()
    finally:
        cluster.clear()
    assert re.fullmatch(row.outcome, outcome), outcome
    assert well == ["ok"] * len(row.well)
    assert is_named(row, words), words
    assert apart == []
    now = settled()
    assert {name: now[name] ^ had[name] for name in had if now[name] != had[name]} == {}
    assert changes(before, texts()) == []
