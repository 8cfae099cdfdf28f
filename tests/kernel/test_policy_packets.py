"""Every policy set's truth table, asked of packets: one running cluster for each fixture and mode, the sets in turn.

A set is written to the store and synced as the controller does it, with the memory of the last time. What should pass
is asked up to four times (the machine is busy), what should not once, all of it in parallel.
`tests/test_policy_walk.py` asks walk for the same tables.
"""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from nsnet import names, reconcile
from nsnet.control import policy
from nsnet.kernel import apply as write
from nsnet.kernel import conntrack, netns, observe, probe, teardown
from nsnet.model import Key, Object, Objects
from nsnet.render import render
from nsnet.state import Change
from nsnet.store import sqlite
from nsnet.store.objects import load_objects, save_objects
from nsnet.trace import Packet, walk
from tests import policies
from tests.kernel import sctp
from tests.policies import FIXTURES, NINE, End, Fixture, Flow

MODES = ("iptables", "nftables")
SILENCE = 0.15  # seconds in which nothing is heard


class Cluster:
    """A running cluster: its store, and what the last sync remembers."""

    def __init__(self, fixture: Fixture, mode: str, store: sqlite.SqliteStore, policy: str = "{}") -> None:
        self.fixture = fixture
        self.store = store
        self.base = policies.objects_of(fixture, mode, policy)
        save_objects(store, {}, self.base, 0)
        with reconcile.lock(fixture.name):
            self.report = reconcile.sync(store, fixture.name)
        self.who = policies.ends(self.base)
        self.flows = policies.flows(fixture, self.who)

    @property
    def name(self) -> str:
        return self.fixture.name

    @property
    def objects(self) -> dict[Key, Object]:
        return self.report.memory.objects

    def write(self, objects: Objects) -> None:
        """Other objects; returns when they are enforced."""
        before, revision = load_objects(self.store)
        save_objects(self.store, before, objects, revision)
        with reconcile.lock(self.name):
            self.report = reconcile.sync(self.store, self.name, only={}, memory=self.report.memory)

    def apply(self, text: str) -> None:
        self.write(policies.with_policies(self.objects, text))

    def wrong(self, table: dict[Flow, bool]) -> list[str]:
        """Where packets go otherwise than the table says."""
        forget_udp(self.name)
        seen = {**self._asked({flow: hope for flow, hope in table.items() if flow[3] != "sctp"}), **self._sctp(table)}
        return [f"{flow}: passes is {seen[flow]}" for flow, want in table.items() if want != seen[flow]]

    def _asked(self, table: dict[Flow, bool]) -> dict[Flow, bool]:
        asked = [probe_of(flow, self.who, 4 if hope else 1) for flow, hope in table.items()]
        answers = probe.probe(asked, timeout=SILENCE, concurrency=2048)
        return {flow: answer.outcome == "ok" for flow, answer in zip(table, answers, strict=True)}

    def _sctp(self, table: dict[Flow, bool]) -> dict[Flow, bool]:
        asked = [flow for flow in table if flow[3] == "sctp"]
        ways = [(self.who[start].netns, self.who[to].netns, self.who[to].ip, port) for start, to, port, _ in asked]
        return dict(zip(asked, sctp.arrives(ways, SILENCE), strict=True)) if asked else {}


def forget_udp(cluster: str) -> None:
    """A flow lives on when its policy goes: a new socket that by chance has the port of an old one belongs to it."""
    nodes = [name for name in netns.listing(cluster) if names.kind_of(name) == "node"]
    changes = [Change("delete", node, entry) for node in nodes for entry in conntrack.read(node, {"udp", "sctp"})]
    assert write(changes) == []


def probe_of(flow: Flow, who: dict[str, End], tries: int = 1) -> probe.Probe:
    start, to, _, protocol = flow
    address, port = policies.address(flow, who)
    learns = (probe.Learned(who[start].netns, address),) if "/" in start and to in who else ()
    kind: probe.Protocol = "TCP" if protocol == "tcp" else "UDP"
    return probe.Probe(
        who[start].netns, kind, address, port, b"" if kind == "TCP" else b"hostname\n", "", learns, tries
    )


def running(fixture: Fixture, mode: str, policy: str = "{}") -> Iterator[Cluster]:
    with sqlite.open_store(fixture.name, create=True) as store:
        yield Cluster(fixture, mode, store, policy)
    with reconcile.lock(fixture.name):
        reconcile.destroy(fixture.name)
    assert teardown.left(fixture.name) == []


_RUNS = [(fixture, mode) for fixture in FIXTURES for mode in MODES]


@pytest.fixture(scope="module", params=_RUNS, ids=lambda run: f"{run[0].name}-{run[1]}")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    yield from running(*request.param)


def test_packets_go_as_the_tables_say(cluster: Cluster) -> None:
    wrong = []
    for case in cluster.fixture.cases:
        cluster.apply(case.policies)
        found = cluster.wrong(policies.expected(case, cluster.flows, cluster.who))
        wrong += [f"{case.name}: {line}" for line in found]
    assert wrong == []


# --- random sets ------------------------------------------------------------------------------------------------------

_LABELS = st.sampled_from(["{}", "{matchLabels: {pod: a}}", "{matchLabels: {pod: b}}", "{matchExpressions: [{key: pod, operator: NotIn, values: [c]}]}"])  # fmt: skip  # noqa: E501 - a document is a line
_SPACES = st.sampled_from(
    ["{}", "{matchLabels: {ns: x}}", "{matchExpressions: [{key: ns, operator: In, values: [v, z]}]}"]
)
_PEERS = st.one_of(
    _LABELS.map(lambda pods: f"{{podSelector: {pods}}}"),
    _SPACES.map(lambda spaces: f"{{namespaceSelector: {spaces}}}"),
    st.tuples(_SPACES, _LABELS).map(lambda both: f"{{namespaceSelector: {both[0]}, podSelector: {both[1]}}}"),
    st.sampled_from(
        ["10.244.1.0/24", "10.244.0.0/16, except: [10.244.2.0/24]", "0.0.0.0/0, except: [10.244.1.2/32]"]
    ).map(lambda cidr: f"{{ipBlock: {{cidr: {cidr}}}}}"),
)
_SOME_PORTS = st.sampled_from(["{}", "{port: 80}", "{port: web}", "{port: 80, endPort: 81}", "{port: 80, protocol: UDP}", "{port: dgram, protocol: UDP}"])  # fmt: skip  # noqa: E501 - a document is a line


def _rule(peers: str) -> st.SearchStrategy[str]:
    some = st.lists(_PEERS, max_size=2).map(lambda items: f"{peers}: [{', '.join(items)}]")
    ports = st.lists(_SOME_PORTS, max_size=2).map(lambda items: f"ports: [{', '.join(items)}]")
    return st.tuples(some, ports).map(lambda parts: f"{{{', '.join(parts)}}}")


def _rules(direction: str, peers: str) -> st.SearchStrategy[str]:
    return st.lists(_rule(peers), max_size=2).map(lambda items: f"{direction}: [{', '.join(items)}]")


_SPEC = st.tuples(
    _LABELS,
    _rules("ingress", "from"),
    _rules("egress", "to"),
    st.sampled_from(["[]", "[Ingress]", "[Egress]", "[Ingress, Egress]"]),
).map(lambda parts: f"{{podSelector: {parts[0]}, {parts[1]}, {parts[2]}, policyTypes: {parts[3]}}}")
SETS = st.lists(st.tuples(st.sampled_from("xvz"), _SPEC), min_size=1, max_size=4).map(
    lambda items: "\n".join(f"{space}/p{number}: {spec}" for number, (space, spec) in enumerate(items))
)


@given(text=SETS)
@settings(
    max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate]
)
def test_random_sets_go_as_decided_and_as_walk_predicts(cluster: Cluster, text: str) -> None:
    if cluster.fixture is not NINE:
        return
    cluster.apply(text)
    want, known = cluster.report.memory.want, policy.index(cluster.objects)
    decided = {flow: _decided(known, flow) for flow in cluster.flows if flow[3] != "sctp"}
    assert [flow for flow, passes in decided.items() if _predicted(want, flow, cluster.who) != passes] == []
    assert cluster.wrong(decided) == []


def _decided(known: policy.Index, flow: Flow) -> bool:
    start, to, port, protocol = flow
    target = known.pods[to]
    source = policy.as_source(known, known.pods.get(start) or known.nodes[start], target)
    return policy.allows(known, source, target, port, protocol.upper())


def _predicted(want: object, flow: Flow, who: dict[str, End]) -> bool:
    (way,) = walk(want, who[flow[0]].netns, Packet(flow[3], *policies.address(flow, who)))  # type: ignore[arg-type]
    return way.result == "delivered"


def test_nothing_is_left_of_them(cluster: Cluster) -> None:
    """Without a policy there is not one rule or set more than before, and what is there is what is wanted."""
    cluster.apply("")
    assert render(cluster.objects) == render(cluster.base)
    for name, values in observe(cluster.name).items():
        assert not [value for value in values if value.key[0] == "ipset"], name
    assert reconcile.sync(cluster.store, cluster.name).changes == 0
