"""nftables on the real kernel: what is written is read back, changed by element, and packets go where the walk says."""

import re
import shlex
import socket
import subprocess
from collections.abc import Iterable, Iterator

import pytest
from msgspec.structs import replace

from nsnet import kernel, model, names, state
from nsnet.diff import diff
from nsnet.kernel import iptables, nftables, nftnl
from nsnet.kernel.netns import inside
from nsnet.render import render
from nsnet.render.kubeproxy import LocalDetector
from nsnet.render.proxy_nftables import Settings
from nsnet.state import (
    Chain,
    Change,
    Listener,
    Nft,
    NftChain,
    NftElement,
    NftSet,
    NftTable,
    Refusal,
    State,
    Value,
    nft_lines,
)
from nsnet.trace import Packet
from tests import modes, worlds
from tests.built import Place, built
from tests.kernel.test_iptables import (
    PORTS,
    ROWS,
    Servers,
    _is_far_end,
    _step,
    _typed,
    observed,
    predicted,
    servers,  # noqa: F401 - a fixture
)
from tests.test_proxy_nftables import MORE, OBJECTS, tables

TABLES = tables(OBJECTS)


@pytest.fixture
def netns() -> Iterator[str]:
    name = "t.node.n"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield name
    subprocess.run(["ip", "netns", "delete", name], check=True)


def changes(netns: str, have: Iterable[Value], want: Iterable[Value]) -> list[Change]:
    return diff({netns: frozenset(have)}, {netns: frozenset(want)})


def go(netns: str, have: frozenset[Nft], want: frozenset[Nft]) -> list[Refusal]:
    return nftables.write(netns, changes(netns, have, want))


def nft(netns: str, *words: str) -> str:
    with inside(netns):
        return subprocess.run([nftables.tool(), *words], check=True, capture_output=True, text=True).stdout


# --- written and read back --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("node", TABLES)
def test_every_kind_of_value_comes_back_as_it_was_spelled(netns: str, node: str) -> None:
    assert go(netns, frozenset(), TABLES[node]) == []
    assert nftables.read(netns) == TABLES[node]
    assert nftables.read(netns, frozenset(value.key for value in TABLES[node])) == TABLES[node]


def test_ports_to_masquerade_by_come_back_as_they_were_spelled(netns: str) -> None:
    ways = ("masquerade to :61000", "masquerade to :61000-61010 fully-random", "masquerade fully-random", "masquerade")
    hook = "type nat hook postrouting priority 100; policy accept;"
    rules = tuple(f"meta l4proto {protocol} {way}" for way in ways for protocol in ("tcp", "udp"))
    chain = NftChain("kube-proxy", "masquerading", rules, hook)
    assert go(netns, frozenset(), frozenset({NftTable("kube-proxy"), chain})) == []
    assert chain in nftables.read(netns)


EVERY_SETTING = (
    Settings(LocalDetector(interface="cni0"), service_cidrs=("10.96.0.0/12",)),
    Settings(LocalDetector(interface="veth+"), masquerade_bit=3, service_cidrs=("10.96.0.0/16", "10.200.0.0/20")),
    Settings(LocalDetector(source="10.244.0.0/14"), node_port_addresses=None),
    Settings(masquerade_all=True, node_port_addresses=("172.18.0.2", "10.244.1.1")),
)


@pytest.mark.parametrize("settings", EVERY_SETTING)
def test_every_setting_comes_back_as_it_was_spelled(netns: str, settings: Settings) -> None:
    want = tables(OBJECTS, settings)["node1"]
    assert go(netns, frozenset(), want) == []
    assert nftables.read(netns) == want


@pytest.mark.parametrize(
    "ranges",
    ["[10.0.0.1/32]", "[10.0.1.0/24, 10.0.2.0/24]", "[10.1.0.0/13, 192.0.2.7/32, 192.0.2.9/32]", "[0.0.0.0/1]"],
)
def test_source_ranges_come_back_as_they_were_spelled(netns: str, ranges: str) -> None:
    text = worlds.SERVICES.replace("[203.0.113.0/24, 10.244.1.9/32]", ranges)
    want = tables(worlds.load(text))["node1"]
    assert go(netns, frozenset(), want) == []
    assert nftables.read(netns) == want


def test_ipv6_comes_back_as_it_was_spelled(netns: str) -> None:
    settings = Settings(LocalDetector("fd00::/56"), service_cidrs=("fd01::/112",), family="ip6")
    text = "kind: Service\nmetadata: {name: six}\nspec: {clusterIP: 'fd01::9', clusterIPs: ['fd01::9'], "
    slices = (
        "kind: EndpointSlice\nmetadata: {name: six-1, labels: {kubernetes.io/service-name: six}}\naddressType: IPv6\n"
    )
    ends = "ports: [{port: 8080}]\nendpoints: [{addresses: ['fd00::2'], nodeName: node1}, {addresses: ['fd00::3']}]\n"
    for affinity in ("None", "ClientIP"):
        service = f"{text}sessionAffinity: {affinity}, ports: [{{port: 80}}]}}\n"
        want = tables(worlds.load(f"{service}---\n{slices}{ends}"), settings)["node1"]
        assert any(isinstance(value, NftElement) and value.set == "service-ips" for value in want)
        assert go(netns, nftables.read(netns), want) == []
        assert nftables.read(netns) == want


def test_the_words_are_those_of_nft_list(netns: str) -> None:
    """Every rule, as nft itself prints it; it leaves out of `dnat ip addr . port to` what it can tell by itself."""
    go(netns, frozenset(), TABLES["node1"])
    listed = nft(netns, "list", "table", "ip", "kube-proxy")
    printed = {line.strip().replace("dnat ip to", "dnat ip addr . port to") for line in listed.splitlines()}
    for value in TABLES["node1"]:
        if isinstance(value, NftChain):
            assert set(value.rules) <= printed, value
    assert sum(len(value.rules) for value in TABLES["node1"] if isinstance(value, NftChain)) > 40


def test_lines_of_a_plan_can_be_typed(netns: str) -> None:
    """What `nsnet plan` prints makes these values, typed line by line from top to bottom, and unmakes them."""
    want = TABLES["node1"]
    for have, aim in ((frozenset(), want), (want, FEWER["node1"]), (FEWER["node1"], want)):
        for change in changes(netns, have, aim):
            for line in state.lines(change):
                subprocess.run(shlex.split(line), check=True)
        assert nftables.read(netns) == aim


def test_nothing_is_there_at_first_and_looking_makes_nothing(netns: str) -> None:
    assert nftables.read(netns) == frozenset()
    assert nftables.read(netns, frozenset(value.key for value in TABLES["node1"])) == frozenset()
    assert nft(netns, "list", "tables") == ""


def test_reading_some_keys_reads_those_that_are_there(netns: str) -> None:
    go(netns, frozenset(), TABLES["node1"])
    where = ("nft", "ip", "kube-proxy")
    service = f"service-{names.nft_service('t/web:http', 'tcp')}"
    keys = [
        where,
        (*where, "chain", service),
        (*where, "chain", "not-there"),
        (*where, "set", "service-ips"),
        (*where, "set", "not-there"),
        (*where, "element", "service-ips", "10.96.0.11 . tcp . 80"),
        (*where, "element", "service-ips", "10.96.0.11 . tcp . 81"),
        (*where, "element", "service-ips", "no key at all"),
        (*where, "element", "not-there", "10.96.0.11"),
        ("nft", "ip", "other", "chain", "services"),
    ]
    assert {value.key for value in nftables.read(netns, frozenset(keys))} == {keys[0], keys[1], keys[3], keys[5]}
    assert nftables.read(netns, frozenset(keys)) <= TABLES["node1"]
    assert nftables.read(netns, frozenset([("nft",)])) == TABLES["node1"]


# --- what others wrote ------------------------------------------------------------------------------------------------


def test_tables_of_iptables_are_not_seen(netns: str) -> None:
    iptables.write(netns, [Change("add", netns, Chain("nat", "KUBE-X", ("-j RETURN",)))])
    assert nftables.read(netns) == frozenset()


def test_a_table_nobody_wants_goes(netns: str) -> None:
    for line in ("add table inet theirs", "add chain inet theirs c", "add rule inet theirs c tcp dport 22 drop"):
        nft(netns, line)
    assert nftables.read(netns) == {NftTable("theirs", family="inet")}
    assert go(netns, nftables.read(netns), frozenset()) == []
    assert nft(netns, "list", "tables") == ""


@pytest.mark.parametrize(
    "line",
    [
        "add rule ip kube-proxy services tcp dport 22 log prefix x drop",  # no words here: still seen
        "insert rule ip kube-proxy services ip saddr 10.0.0.1 drop",
        "flush chain ip kube-proxy masquerading",
        "add chain ip kube-proxy theirs",
        "add element ip kube-proxy cluster-ips { 10.96.9.9 }",
        "delete element ip kube-proxy cluster-ips { 10.96.0.11 }",
        "add set ip kube-proxy theirs { type ipv4_addr ; flags interval ; elements = { 10.0.0.0/8 } }",
        "add element ip kube-proxy service-ips { * : drop }",
        "add rule ip kube-proxy services ip saddr . tcp dport { 10.0.0.0/8 . 80-90 } drop",
        "add rule ip kube-proxy services tcp dport vmap { 1-1024 : drop, * : accept }",
        'add rule ip kube-proxy services iifname { "eth*", "x" } drop',
        "flush table ip kube-proxy",
        "flush map ip kube-proxy service-ips",
        "delete table ip kube-proxy",
    ],
)
def test_what_others_changed_is_seen_and_mended(netns: str, line: str) -> None:
    want = TABLES["node1"]
    go(netns, frozenset(), want)
    nft(netns, line)
    have = nftables.read(netns)
    assert have != want
    assert go(netns, have, want) == []
    assert nftables.read(netns) == want


FOREIGN_SETS = (
    ("set", "type inet_service ; flags interval", "8000-8100, 9000"),
    ("set", "type ipv4_addr . inet_service ; flags interval", "10.0.0.0/8 . 80-90, 192.0.2.7 . 443"),
    ("set", "type inet_proto . ipv6_addr ; flags interval", "tcp . fd00::1-fd00::3, udp . fd00::/8"),
    ("set", "type ipv4_addr ; flags interval", "10.0.0.0/8, *"),
    ("map", "type inet_service : verdict", "* : drop, 80 : accept"),
    ("map", "type ipv4_addr . inet_service : ipv4_addr", "10.0.0.1 . 80 : 10.0.0.2"),
    ("set", "type ifname ; flags interval", '"eth*"'),
    ("set", "type mark ; flags interval", "1-5"),
    ("set", "type ether_addr", "02:00:00:00:00:01"),
    ("set", "type ct_state", "new, established"),
    ("set", "typeof vlan id", "5"),
    ("set", "typeof meta iifname . ip saddr", '"eth0" . 10.0.0.1'),
)


@pytest.mark.parametrize(("what", "kind", "elements"), FOREIGN_SETS, ids=lambda word: word)
def test_sets_that_others_made_are_seen_and_go(netns: str, what: str, kind: str, elements: str) -> None:
    """Whatever their keys are: a look that fails would leave them there for ever."""
    want = TABLES["node1"]
    go(netns, frozenset(), want)
    nft(netns, f"add {what} ip kube-proxy theirs {{ {kind} ; elements = {{ {elements} }} }}")
    have = nftables.read(netns)
    theirs = {value for value in have - want if isinstance(value, NftElement)}
    assert len({one.element for one in theirs}) == elements.count(",") + 1
    assert nftables.read(netns, frozenset(one.key for one in theirs if "0x" not in one.element)) <= theirs
    assert go(netns, have, want) == []
    assert nftables.read(netns) == want


# --- changed ----------------------------------------------------------------------------------------------------------

FEWER = tables({key: obj for key, obj in OBJECTS.items() if key.name not in {"web", "ranges", "ranges-1", "dns-1"}})


def test_services_come_and_go(netns: str) -> None:
    want, few = TABLES["node1"], FEWER["node1"]
    go(netns, frozenset(), want)
    for have, aim in ((want, few), (few, want)):
        assert go(netns, have, aim) == []
        assert nftables.read(netns) == aim


def test_what_does_not_change_is_not_touched(netns: str) -> None:
    """Who has been seen stays in an affinity set; a rule keeps its handle."""
    want = TABLES["node1"]
    go(netns, frozenset(), want)
    affinity = next(value for value in want if isinstance(value, NftSet) and value.flags)
    nft(netns, f"add element ip kube-proxy {affinity.name} {{ 10.244.1.9 }}")
    outer = f"external-{names.nft_service('t/outer', 'tcp')}"
    before = nft(netns, "-a", "list", "chain", "ip", "kube-proxy", outer)
    fewer = tables({key: obj for key, obj in OBJECTS.items() if key.name not in {"web", "web-1"}})["node1"]
    assert nftables.read(netns) == want  # what packets put into a set is no value
    assert go(netns, want, fewer) == []
    assert "10.244.1.9" in nft(netns, "list", "set", "ip", "kube-proxy", affinity.name)
    assert nft(netns, "-a", "list", "chain", "ip", "kube-proxy", outer) == before


def test_a_small_change_is_small_and_one_transaction(netns: str) -> None:
    """An endpoint goes: a chain is written again, its hairpin element goes; and that is one call of nft."""
    go(netns, frozenset(), TABLES["node1"])
    slice_ = OBJECTS[model.Key("EndpointSlice", "t", "web-1")]
    assert isinstance(slice_, model.EndpointSlice)
    fewer = replace(slice_, endpoints=(slice_.endpoints or ())[1:])
    after = tables({**OBJECTS, model.Key("EndpointSlice", "t", "web-1"): fewer})["node1"]
    found = changes(netns, TABLES["node1"], after)
    service = f"service-{names.nft_service('t/web:http', 'tcp')}"
    assert [line.split(" meta ")[0] for line, _ in nftables.lines(found)] == [
        f"flush chain ip kube-proxy {service}",
        f"add rule ip kube-proxy {service}",
    ]


def test_an_element_gets_other_data(netns: str) -> None:
    """The Service's only endpoint goes: from a chain to reject-chain, and the chain itself is gone."""
    go(netns, frozenset(), TABLES["node1"])
    after = tables({key: obj for key, obj in OBJECTS.items() if key.name != "outer-1"})["node1"]
    for have, aim in ((TABLES["node1"], after), (after, TABLES["node1"])):
        assert go(netns, have, aim) == []
        assert nftables.read(netns) == aim


def test_an_affinity_timeout_changes_in_place(netns: str) -> None:
    go(netns, frozenset(), TABLES["node1"])
    text = worlds.SERVICES.replace("timeoutSeconds: 600", "timeoutSeconds: 30")
    after = tables(worlds.load(f"{text}---{MORE}"))["node1"]
    assert {type(change.value) for change in changes(netns, TABLES["node1"], after)} == {NftSet}
    assert go(netns, TABLES["node1"], after) == []
    assert nftables.read(netns) == after


def test_a_base_chain_moves(netns: str) -> None:
    moved = NftChain("t", "c", ("drop",), "type filter hook input priority 5; policy drop;")
    table = frozenset([NftTable("t")])
    have, want = table | {replace(moved, hook=moved.hook.replace("5", "0"))}, table | {moved}
    go(netns, frozenset(), have)
    assert go(netns, have, want) == []
    assert nftables.read(netns) == want


def test_everything_goes(netns: str) -> None:
    go(netns, frozenset(), TABLES["node1"])
    gone = changes(netns, TABLES["node1"], ())
    assert nftables.write(netns, gone) == []
    assert nftables.read(netns) == frozenset()
    assert nftables.write(netns, gone) == []  # deleting the absent is success


def test_deleting_the_absent_is_success_one_by_one(netns: str) -> None:
    go(netns, frozenset(), FEWER["node1"])
    gone = [change for change in changes(netns, TABLES["node1"], FEWER["node1"]) if change.verb == "delete"]
    assert {type(change.value) for change in gone} == {NftChain, NftSet, NftElement}
    assert nftables.write(netns, gone) == []
    assert nftables.read(netns) == FEWER["node1"]


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("ip saddr 10.0.0.0/33 drop", "syntax error|invalid|Prefix"),
        ("nonsense", "syntax error|nonsense"),
        ("goto not-there", "No such file or directory"),
        ("ip daddr @not-there drop", "No such file or directory"),
    ],
)
def test_what_is_refused_is_said_and_the_rest_is_written(netns: str, fresh: bool, rule: str, words: str) -> None:
    want = TABLES["node1"]
    if not fresh:
        go(netns, frozenset(), want)
    bad = NftChain("kube-proxy", "bad", ("accept", rule))
    refusals = nftables.write(netns, changes(netns, () if fresh else want, [*want, bad]))
    assert [refusal.change.value for refusal in refusals] == [bad]
    assert re.search(words, refusals[0].reason), refusals[0].reason
    assert rule in refusals[0].reason
    assert nftables.read(netns) == want


def test_a_chain_that_is_led_to_cannot_go(netns: str) -> None:
    go(netns, frozenset(), TABLES["node1"])
    chain = next(value for value in TABLES["node1"] if isinstance(value, NftChain) and value.name == "services")
    (refusal,) = nftables.write(netns, [Change("delete", netns, chain)])
    assert refusal.change.value == chain
    assert "busy" in refusal.reason


def test_no_more_than_some_refusals_are_tried(netns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nftables, "LINES_TRIED", 3)
    bad = [NftChain("t", f"c{number}", ("goto not-there",)) for number in range(9)]
    refusals = nftables.write(netns, changes(netns, (), [NftTable("t"), *bad]))
    assert {refusal.change.value for refusal in refusals} >= set(bad)


# --- small looks ------------------------------------------------------------------------------------------------------


def test_keys_are_packed_as_the_kernel_keeps_them() -> None:
    owner = nftnl.Set("ip", "t", "s", 0, ("ipv4_addr", "inet_proto", "inet_service"), (), 12, 0, "")
    packed = nftnl.key_bytes(owner, "10.96.0.10 . udp . 53")
    assert packed == bytes([10, 96, 0, 10, 17, 0, 0, 0, 0, 53, 0, 0])
    for words in ("10.96.0.10 . udp", "10.96.0.300 . udp . 53", "10.96.0.10 . udp . http", "10.96.0.10 . nothing . 53"):
        with pytest.raises(ValueError, match=r"\S"):
            nftnl.key_bytes(owner, words)


# --- real packets -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world() -> Iterator[dict[str, frozenset[Value]]]:
    """The whole of tests/worlds.py for real, with kube-proxy in nftables mode."""
    want = worlds.network(TABLES)
    rules = {worlds.NAMES[node]: values for node, values in TABLES.items()}
    rest = [(netns, value) for netns in want for value in want[netns] - rules.get(netns, frozenset())]
    for netns, value in sorted(rest, key=_step(want)):
        for line in state.lines(Change("add", netns, value)):
            subprocess.run(shlex.split(_typed(line, is_made=not _is_far_end(want, netns, value))), check=True)
    for netns, values in rules.items():
        assert go(netns, frozenset(), values) == []
    yield want
    for netns in want:
        subprocess.run(["ip", "netns", "delete", netns], check=True)


MORE_ROWS = [
    ("a1", "10.96.0.11:81 tcp", 1),
    ("node1", "10.96.0.11:81 tcp", 1),
    ("node1", "10.96.0.19:80 tcp", 1),
    ("a1", "192.0.2.20:80 tcp", 1),
    ("e2", "192.0.2.20:80 tcp", 1),
    ("a1", "10.244.1.1:30011 tcp", 1),
    ("a1", "198.51.100.16:53 udp", 2),
    ("client", "172.18.0.3:30011 tcp", 12),
]


@pytest.mark.parametrize(("sender", "to", "tries"), [*ROWS, *MORE_ROWS], ids=str)
def test_a_packet_goes_one_of_the_ways_the_walk_says(
    world: dict[str, frozenset[Value]],
    servers: Servers,  # noqa: F811 - the fixture
    sender: str,
    to: str,
    tries: int,
) -> None:
    target, protocol = to.split()
    address, _, port = target.partition(":")
    packet = Packet(protocol, address, int(port))
    ways = {_answered(packet, *way) for way in predicted(world, sender, packet)}
    seen = {observed(servers, sender, packet) for _ in range(tries)}
    assert seen <= ways
    differs = any([one.sender, one.to, one.protocol] == [sender, target, protocol] for one in modes.NFTABLES)
    assert tries < 12 or differs or len(seen) > 1


def _answered(packet: Packet, who: str, source: str) -> tuple[str, str]:
    """A node where nobody listens on that port refuses."""
    return ("refused", "") if who in worlds.NODES and packet.dport not in PORTS["node1"] else (who, source)


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize(("sender", "address"), [("a1", "10.96.0.11"), ("a2", "10.96.0.12")])
def test_a_datagram_to_an_unused_port_is_refused(sender: str, address: str) -> None:
    with inside(worlds.NAMES[sender]), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(1)
        client.connect((address, 4242))
        client.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            client.recv(1)


@pytest.mark.usefixtures("world")
def test_affinity_sticks_for_each_client(servers: Servers) -> None:  # noqa: F811 - the fixture
    for client in ("a1", "a2"):
        assert len({observed(servers, client, Packet("tcp", "10.96.0.16", 53))[0] for _ in range(20)}) == 1


# --- from mode to mode ------------------------------------------------------------------------------------------------

PLACES = {"node1": Place(pods=["a", "b"]), "node2": Place(pods=["c"])}


def cluster(mode: str) -> State:
    return render(built(PLACES, services={"web": "10.96.0.20"}, mode=mode))


def look() -> State:
    return {
        netns: frozenset(value for value in values if not isinstance(value, Listener))
        for netns, values in kernel.observe("demo").items()
    }


def test_from_mode_to_mode_one_apply_leaves_nothing_of_the_old_one() -> None:
    for mode in ("iptables", "nftables", "iptables", "nftables"):
        want = cluster(mode)
        assert [str(refusal) for refusal in kernel.apply(diff(look(), want))] == []
        assert [str(change) for change in diff(look(), want)] == []
        listed = nft("demo.node.node1", "list", "ruleset")
        assert ("KUBE-" in listed, "table ip kube-proxy" in listed) == (mode == "iptables", mode == "nftables")
    scope = {"demo.node.node1": frozenset(value.key for value in want["demo.node.node1"] if value.key[0] == "nft")}
    assert kernel.observe("demo", only=scope)["demo.node.node1"] == {
        value for value in want["demo.node.node1"] if isinstance(value, Nft)
    }
    assert kernel.apply(diff(look(), {})) == []
    assert look() == {}


def test_a_value_prints_as_lines_of_nft() -> None:
    element = NftElement("kube-proxy", "service-ips", "10.96.0.10 . udp . 53", "goto service-X", "ns/svc")
    assert [*nft_lines(element)] == [
        'add element ip kube-proxy service-ips { 10.96.0.10 . udp . 53 comment "ns/svc" : goto service-X }'
    ]
