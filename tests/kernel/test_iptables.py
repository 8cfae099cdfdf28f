"""iptables on the real kernel: what is written is read back, word for word, and packets go where the walk says."""

import select
import shlex
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator

import pytest

from nsnet import names, state
from nsnet.kernel import iptables, legacy
from nsnet.kernel.netns import inside
from nsnet.render import services
from nsnet.render.kubeproxy import LocalDetector
from nsnet.render.proxy_iptables import Settings
from nsnet.state import Chain, Change, LegacyChain, Value
from nsnet.trace import Packet, answer, walk
from nsnet.trace.netfilter import hook
from nsnet.trace.values import Trip
from nsnet.trace.view import view
from tests import worlds
from tests.kernel import needs

OBJECTS = worlds.load(worlds.SERVICES)
RULES = worlds.chains(OBJECTS)


@pytest.fixture
def netns() -> Iterator[str]:
    name = "t.node.n"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield name
    subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.fixture(params=["nft", "legacy"])
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both builds of iptables, whatever Debian's alternatives say."""
    wanted = str(request.param)
    if shutil.which(f"iptables-{wanted}") is None:
        pytest.skip(f"iptables-{wanted} is not installed")

    def tool(name: str, family: str = "ip") -> str | None:
        assert family == "ip"
        return shutil.which(name.replace("iptables", f"iptables-{wanted}", 1))

    monkeypatch.setattr(iptables, "tool", tool)
    return wanted


def adds(netns: str, chains: frozenset[Chain]) -> list[Change]:
    return [Change("add", netns, chain) for chain in chains]


def changes(netns: str, have: frozenset[Chain], want: frozenset[Chain]) -> list[Change]:
    """As `diff` makes them, for chains only."""
    old, new = ({chain.key: chain for chain in chains} for chains in (have, want))
    kept = [Change("replace", netns, new[key], old[key]) for key in old.keys() & new.keys() if old[key] != new[key]]
    come = [Change("add", netns, new[key]) for key in new.keys() - old.keys()]
    return kept + come + [Change("delete", netns, old[key]) for key in old.keys() - new.keys()]


# --- the older build beside the newer one ---------------------------------------------------------------------------


def test_chains_of_the_older_build_stand_beside_those_of_the_newer_one(netns: str) -> None:
    """Packets pass both; what `iptables` has is not touched, and what goes is gone."""
    needs.features("legacy iptables")
    drop = LegacyChain("filter", "FORWARD", ("-s 10.0.0.0/8 -j OWN",), "DROP")
    own = LegacyChain("filter", "OWN", ("-p tcp -m tcp --dport 80 -j ACCEPT", "-j RETURN"))
    chain = Chain("filter", "FORWARD", ("-j ACCEPT",), "ACCEPT")
    assert iptables.write(netns, [Change("add", netns, chain)]) == []
    for _ in range(2):  # writing what is there succeeds
        assert legacy.write(netns, [Change("add", netns, own), Change("add", netns, drop)]) == []
        assert legacy.read(netns) == {drop, own}
    assert iptables.read(netns) == {chain}
    there = view(frozenset({chain, drop, own}))
    told = [outcome for outcome, _ in hook("FORWARD", Trip(netns, Packet("udp", "10.0.0.1", 80, "10.0.0.2")), there)]
    assert told == ["drop"]
    wrong = LegacyChain("filter", "INPUT", ("-j NOWHERE",), "ACCEPT")
    (refusal,) = legacy.write(netns, [Change("add", netns, wrong)])
    assert "NOWHERE" in str(refusal) or "line" in refusal.reason
    for _ in range(2):
        assert legacy.write(netns, [Change("delete", netns, own), Change("delete", netns, drop)]) == []
        assert legacy.read(netns) == frozenset()
    assert iptables.read(netns) == {chain}


# --- written and read back --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("node", RULES)
def test_every_kind_of_rule_comes_back_as_it_was_spelled(netns: str, node: str) -> None:
    assert iptables.write(netns, adds(netns, RULES[node])) == []
    assert iptables.read(netns) == RULES[node]


SETTINGS = (
    Settings(LocalDetector(interface="cni0"), localhost_node_ports=False),
    Settings(LocalDetector(interface="veth+"), masquerade_bit=3),
    Settings(node_port_addresses=("172.18.0.2",), conntrack_tcp_be_liberal=True),
    Settings(masquerade_all=True),
)


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("settings", SETTINGS)
def test_every_setting_comes_back_as_it_was_spelled(netns: str, settings: Settings) -> None:
    want = worlds.chains(OBJECTS, settings)["node1"]
    assert iptables.write(netns, adds(netns, want)) == []
    assert iptables.read(netns) == want


@pytest.mark.parametrize("left", [*range(2, 40), 97, 250, 999])
def test_probabilities_are_spelled_as_the_kernel_rounds_them(netns: str, left: int) -> None:
    rule = f"{services.statistic(left)} -j ACCEPT"
    want = frozenset([Chain("nat", "C", (rule,))])
    assert iptables.write(netns, adds(netns, want)) == []
    assert iptables.read(netns) == want


@pytest.mark.usefixtures("build")
def test_reading_some_chains_reads_only_those_that_are_there(netns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    iptables.write(netns, adds(netns, RULES["node1"]))
    svc = names.kube_chain("SVC", "t/web:http", "TCP")
    asked = {("nat", svc), ("filter", "KUBE-FORWARD"), ("filter", "INPUT"), ("nat", "INPUT"), ("nat", "NOT-THERE")}
    found = iptables.read(netns, frozenset(asked))
    assert found == {chain for chain in RULES["node1"] if (chain.table, chain.name) in asked}
    assert len(found) == 3  # an empty INPUT with policy ACCEPT is no value
    many = frozenset((chain.table, chain.name) for chain in RULES["node1"])
    for most in (len(many), len(many) - 1):  # one by one, and all of them at once
        monkeypatch.setattr(iptables, "CHAINS_ONE_BY_ONE", most)
        assert iptables.read(netns, many) == RULES["node1"]


@pytest.mark.usefixtures("build")
def test_some_chains_of_a_table_are_listed_together_and_nothing_is_written(netns: str) -> None:
    """One that is not there ends the listing, so then each is asked for alone. The COMMIT that prints has no change."""
    assert iptables.write(netns, adds(netns, RULES["node1"])) == []
    by_name = {(chain.table, chain.name): chain for chain in iptables.read(netns)}
    before = _generation(netns)
    nat = ["PREROUTING", "INPUT", "KUBE-SERVICES", "KUBE-POSTROUTING"]
    wanted = {"nat": nat, "filter": ["FORWARD", "KUBE-FORWARD"]}
    expected = {key: chain for key, chain in by_name.items() if key[1] in wanted.get(key[0], ())}
    for further in ([], ["KUBE-NOT-THERE", "KUBE-MARK-MASQ"]):
        found = iptables.read_some(netns, wanted | {"nat": [*nat[:2], *further, *nat[2:]]}, "ip")
        more = {("nat", name): by_name["nat", name] for name in further[1:]}
        assert {(chain.table, chain.name): chain for chain in found} == expected | more
    assert _generation(netns) == before


def _generation(netns: str) -> tuple[bytes, list[str]]:
    """nf_tables' generation and the rules' text (without the time of day), of whichever build."""
    with inside(netns):
        save = [iptables.tool("iptables-save")]
        said = subprocess.run(save, capture_output=True, text=True, check=True).stdout
        return iptables._generation(), [line for line in said.splitlines() if not line.startswith("#")]


def test_a_look_while_others_commit_has_every_rule(netns: str) -> None:
    """A writer commits without pause in a table of its own."""
    assert iptables.write(netns, adds(netns, RULES["node1"])) == []
    want = {(chain.table, chain.name): chain for chain in RULES["node1"]}
    with inside(netns):
        writer = subprocess.Popen(["sh", "-c", "while :; do nft add table ip busy; nft delete table ip busy; done"])
    try:
        for _ in range(20):
            for chain in iptables.read_some(netns, {"nat": ["KUBE-SERVICES", "KUBE-POSTROUTING"]}, "ip"):
                assert chain == want[chain.table, chain.name]
    finally:
        writer.kill()
        writer.wait()


@pytest.mark.usefixtures("build")
def test_nothing_is_there_at_first_and_looking_makes_nothing(netns: str) -> None:
    assert iptables.read(netns) == frozenset()
    assert iptables.read(netns, frozenset([("nat", "OUTPUT"), ("filter", "X")])) == frozenset()


# --- changed ----------------------------------------------------------------------------------------------------------

LONG = tuple(f"-d 10.0.{number // 250}.{number % 250}/32 -j RETURN" for number in range(300))


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize(
    ("why", "rules"),
    [
        ("one more in the middle", (*LONG[:100], "-d 9.9.9.9/32 -j RETURN", *LONG[100:])),
        ("one less", (*LONG[:100], *LONG[101:])),
        ("the first and the last", ("-s 1.1.1.1/32 -j RETURN", *LONG[1:-1], "-s 2.2.2.2/32 -j RETURN")),
        ("several at once", (*LONG[:10], *LONG[12:50], "-s 1.1.1.1/32 -j RETURN", "-s 2.2.2.2/32", *LONG[50:])),
        ("another order: written again", (*LONG[150:], *LONG[:150])),
        ("nothing left", ()),
    ],
)  # fmt: skip
def test_a_long_chain_is_changed(netns: str, why: str, rules: tuple[str, ...]) -> None:
    other = Chain("nat", "OTHER", ("-j RETURN",))
    have = frozenset([Chain("nat", "LONG", LONG), other])
    iptables.write(netns, adds(netns, have))
    want = frozenset([Chain("nat", "LONG", rules), other])
    assert iptables.write(netns, changes(netns, have, want)) == [], why
    assert iptables.read(netns) == want, why


@pytest.mark.usefixtures("build")
def test_services_come_and_go(netns: str) -> None:
    """From all Services to some, and back; what does not change is not touched (its counters stand)."""
    iptables.write(netns, adds(netns, RULES["node1"]))
    fewer = {key: obj for key, obj in OBJECTS.items() if key.name not in {"web", "ranges", "ranges-1", "dns-1"}}
    few = worlds.chains(fewer)["node1"]
    outer = names.kube_chain("EXT", "t/outer", "TCP")
    with inside(netns):
        tool = iptables.tool("iptables")
        subprocess.run([tool, "-t", "nat", "-I", outer, "-c", "7", "700", "-j", "RETURN"], check=True)
    assert iptables.write(netns, changes(netns, RULES["node1"], few)) == []
    with inside(netns):
        said = subprocess.run([tool, "-t", "nat", "-v", "-S", outer], check=True, capture_output=True, text=True).stdout
        assert "-c 7 700 -j RETURN" in said
        subprocess.run([tool, "-t", "nat", "-D", outer, "1"], check=True)
    assert iptables.read(netns) == few
    assert iptables.write(netns, changes(netns, few, RULES["node1"])) == []
    assert iptables.read(netns) == RULES["node1"]


@pytest.mark.usefixtures("build")
def test_everything_goes(netns: str) -> None:
    iptables.write(netns, adds(netns, RULES["node1"]))
    gone = changes(netns, RULES["node1"], frozenset())
    assert iptables.write(netns, gone) == []
    assert iptables.read(netns) == frozenset()
    assert iptables.write(netns, gone) == []  # deleting the absent is success


@pytest.mark.usefixtures("build")
def test_a_first_load_spares_what_somebody_else_wrote(netns: str) -> None:
    theirs = Chain("nat", "FLANNEL-POSTRTG", ("-j RETURN",))
    ours = Chain("nat", "KUBE-X", ("-j RETURN",))
    for chain in (theirs, ours):
        assert iptables.write(netns, adds(netns, frozenset([chain]))) == []
    assert iptables.read(netns) == {theirs, ours}


@pytest.mark.usefixtures("build")
def test_a_policy_is_set_and_taken_back(netns: str) -> None:
    closed = frozenset([Chain("filter", "FORWARD", ("-j ACCEPT",), "DROP")])
    iptables.write(netns, adds(netns, closed))
    assert iptables.read(netns) == closed
    assert iptables.write(netns, changes(netns, closed, frozenset())) == []
    assert iptables.read(netns) == frozenset()


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("-m nonsense -j ACCEPT", "nonsense"),
        ("-p tcp --dport 80 -j NOT-THERE", "NOT-THERE"),
        ("-s 10.0.0.0/33 -j ACCEPT", "10.0.0.0/33"),
        ("-j DNAT --to-destination 10.0.0.1", "DNAT"),  # not in the filter table
    ],
)
def test_what_is_refused_is_said_and_the_rest_is_written(
    netns: str, build: str, fresh: bool, rule: str, words: str
) -> None:
    before = frozenset([] if fresh else [Chain("nat", "KUBE-OLD", ("-j RETURN",))])
    iptables.write(netns, adds(netns, before))
    good = frozenset([Chain("nat", "KUBE-GOOD", ("-j RETURN",)), Chain("filter", "KUBE-FINE", ("-j RETURN",))])
    bad = Chain("filter", "KUBE-BAD", ("-j RETURN", rule))
    refusals = iptables.write(netns, adds(netns, good | {bad}))
    refused = {refusal.change.value for refusal in refusals}
    if build == "legacy" and words == "DNAT":  # refused by the kernel at COMMIT, and nobody says by whose fault
        assert refused == {chain for chain in good | {bad} if chain.table == "filter"}
    else:
        assert refused == {bad}
        assert words in refusals[0].reason
    assert all("line" in refusal.reason and "\n" not in refusal.reason for refusal in refusals)
    assert iptables.read(netns) - {Chain("filter", "KUBE-BAD")} == (good - refused) | before


@pytest.mark.usefixtures("build")
def test_a_second_try_does_not_edit_twice(netns: str) -> None:
    """The filter table is committed before the nat table's refusal: its long chain must not be edited again."""
    have = frozenset([Chain("filter", "LONG", LONG)])
    iptables.write(netns, adds(netns, have))
    want = Chain("filter", "LONG", (*LONG[:5], "-d 9.9.9.9/32 -j RETURN", *LONG[6:]))
    bad = Chain("nat", "KUBE-BAD", ("-j NOT-THERE",))
    refusals = iptables.write(netns, changes(netns, have, frozenset([want, bad])))
    assert [refusal.change.value for refusal in refusals] == [bad]
    assert want in iptables.read(netns)


# --- real packets -----------------------------------------------------------------------------------------------------

PORTS = {"e1": (8080, 5353), "e2": (8080, 5353), "e3": (8080,), "node1": (30917,)}


@pytest.fixture(scope="module")
def world() -> Iterator[dict[str, frozenset[Value]]]:
    """The whole of tests/worlds.py for real, typed as the lines its values print."""
    want = worlds.network(RULES)
    for netns, value in sorted(((name, value) for name in want for value in want[name]), key=_step(want)):
        for line in () if isinstance(value, Chain) else state.lines(Change("add", netns, value)):
            subprocess.run(shlex.split(_typed(line, is_made=not _is_far_end(want, netns, value))), check=True)
    for node, rules in RULES.items():
        assert iptables.write(worlds.NAMES[node], adds(worlds.NAMES[node], rules)) == []
    yield want
    for netns in want:
        subprocess.run(["ip", "netns", "delete", netns], check=True)


Place = tuple[str, Value]
KINDS = (state.Netns, state.Loopback, state.Bridge, state.Veth, state.Vxlan, state.BridgePort, state.Address,
         state.Neighbour, state.FdbEntry, state.Route, state.Sysctl, Chain)  # fmt: skip


def _step(want: dict[str, frozenset[Value]]) -> Callable[[Place], tuple[int, bool]]:
    """An order in which the kernel takes them: a veth pair is made from the end that is a bridge's port."""
    return lambda place: (KINDS.index(type(place[1])), _is_far_end(want, *place))


def _is_far_end(want: dict[str, frozenset[Value]], netns: str, value: Value) -> bool:
    ports = {port.name for port in want[netns] if isinstance(port, state.BridgePort)}
    return isinstance(value, state.Veth) and value.name not in ports


def _typed(line: str, *, is_made: bool) -> str:
    """The far end of a veth pair is there already: it is set instead of added."""
    return line if is_made else line.replace("link add", "link set").partition(" type ")[0]


Servers = dict[socket.socket, str]


@pytest.fixture(scope="module")
def servers(world: dict[str, frozenset[Value]]) -> Iterator[Servers]:
    assert world
    listening: Servers = {}
    for name, numbers in PORTS.items():
        with inside(worlds.NAMES[name]):
            for number in numbers:
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    server = socket.socket(socket.AF_INET, kind)
                    server.bind(("0.0.0.0", number))
                    if kind == socket.SOCK_STREAM:
                        server.listen()
                    listening[server] = name
    yield listening
    for server in listening:
        server.close()


def heard(servers: Servers, timeout: float) -> tuple[str, str] | None:
    """(who, from which address) of the next connection or datagram."""
    ready, _, _ = select.select(list(servers), [], [], timeout)
    for server in ready:
        if server.type == socket.SOCK_STREAM:
            accepted, (source, _) = server.accept()
            accepted.close()
        else:
            data, (source, port) = server.recvfrom(100)
            server.sendto(data, (source, port))
        return servers[server], source
    return None


def observed(servers: Servers, sender: str, to: Packet) -> tuple[str, str]:
    """What becomes of a real packet: (where it arrived, source seen there), or (`refused` or `no answer`, "")."""
    stream = to.protocol == "tcp"
    with inside(worlds.NAMES[sender]), socket.socket(
        socket.AF_INET, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM
    ) as client:  # fmt: skip
        client.settimeout(0.4)
        try:
            client.connect((to.dst, to.dport))
            client.send(b"x")
            found = heard(servers, 0.4)
            if not stream and found:
                assert client.recv(100) == b"x"  # the answer comes from the address that was asked
        except ConnectionRefusedError:
            return "refused", ""
        except (TimeoutError, OSError):
            return "no answer", ""
    return found or ("no answer", "")


def predicted(want: dict[str, frozenset[Value]], sender: str, to: Packet) -> set[tuple[str, str]]:
    """The walk's ways, in the same words; nobody can tell a dropped packet from one without a way."""
    who = {netns: name for name, netns in worlds.NAMES.items()}
    ends = set()
    for way in walk(want, worlds.NAMES[sender], to):
        if way.result == "delivered":
            assert [back.result for back in answer(want, way, to)] == ["delivered"], way
            ends.add((who[way.netns], way.packet.src))
        else:
            ends.add(("refused" if way.result == "refused" else "no answer", ""))
    return ends


ROWS = [
    ("a1", "10.96.0.11:80 tcp", 12),
    ("e1", "10.96.0.11:80 tcp", 16),  # hairpin: itself, among others
    ("node1", "10.96.0.11:80 tcp", 12),
    ("client", "172.18.0.3:30011 tcp", 12),
    ("node1", "127.0.0.1:30011 tcp", 12),
    ("a1", "172.18.0.2:30011 tcp", 12),
    ("a1", "10.96.0.12:80 tcp", 1),
    ("node1", "10.96.0.12:80 tcp", 1),
    ("node1", "127.0.0.1:30012 tcp", 1),
    ("client", "172.18.0.2:30012 tcp", 1),
    ("a1", "198.51.100.12:80 tcp", 1),
    ("client", "172.18.0.2:30013 tcp", 2),
    ("client", "172.18.0.3:30013 tcp", 1),
    ("a2", "172.18.0.3:30013 tcp", 2),
    ("node2", "172.18.0.3:30013 tcp", 2),
    ("a2", "10.96.0.14:80 tcp", 2),
    ("a1", "10.96.0.14:80 tcp", 1),
    ("node1", "10.96.0.14:80 tcp", 1),
    ("a1", "192.0.2.15:80 tcp", 2),
    ("e2", "192.0.2.15:80 tcp", 1),
    ("node1", "192.0.2.15:80 tcp", 1),
    ("a2", "198.51.100.16:53 udp", 1),
    ("client", "172.18.0.2:30017 tcp", 2),
    ("client", "172.18.0.3:30017 tcp", 2),
    ("client", "172.18.0.2:30917 tcp", 1),
    ("a1", "10.96.0.19:80 tcp", 1),
    ("client", "10.96.0.11:80 tcp", 1),
]


@pytest.mark.parametrize(("sender", "to", "tries"), ROWS, ids=str)
def test_a_packet_goes_one_of_the_ways_the_walk_says(
    world: dict[str, frozenset[Value]], servers: Servers, sender: str, to: str, tries: int
) -> None:
    target, protocol = to.split()
    address, _, port = target.partition(":")
    packet = Packet(protocol, address, int(port))
    ways = predicted(world, sender, packet)
    seen = {observed(servers, sender, packet) for _ in range(tries)}
    assert seen <= ways
    assert tries < 12 or len(seen) > 1  # 12 tries that all choose the same of three: 1 in 177,000


def test_affinity_sticks_for_each_client(world: dict[str, frozenset[Value]], servers: Servers) -> None:
    assert world
    for client in ("a1", "a2"):
        assert len({observed(servers, client, Packet("tcp", "10.96.0.16", 53))[0] for _ in range(20)}) == 1
