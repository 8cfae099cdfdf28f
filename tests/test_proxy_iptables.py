"""kube-proxy's iptables mode: packets walked through the rendered rules, and the rules' own text.

A row reads: from where, to what, by which protocol → where it arrives (pods, `refused`, `dropped`, `unreachable`), and
which source is seen there (`=` the sender's own, `cni0@node1` the address of that device of that node, …).
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from nsnet import names
from nsnet.model import (
    Cluster,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Key,
    Networking,
    Object,
    ObjectMeta,
    Service,
    ServicePort,
    ServiceSpec,
    by_key,
)
from nsnet.render import kubeproxy, proxy_iptables
from nsnet.render.kubeproxy import LocalDetector
from nsnet.render.proxy_iptables import Settings
from nsnet.state import Chain
from nsnet.trace import Packet, Way, answer, walk
from nsnet.trace.rules import parse
from tests import worlds

OBJECTS = worlds.load(worlds.SERVICES)
STATE = worlds.network(worlds.chains(OBJECTS))
WHO = {netns: name for name, netns in worlds.NAMES.items()}
SEEN = {
    "172.18.0.2": "node1", "172.18.0.3": "node2", "10.244.1.1": "cni0@node1", "10.244.2.1": "cni0@node2",
    "10.244.1.0": "flannel@node1", "10.244.2.0": "flannel@node2", "203.0.113.2": "client",
    **{address: pod for pod, (_, address) in worlds.PODS.items()},
}  # fmt: skip

ROWS = """
# ClusterIP: one of three; a pod's address is kept; the node's own and a stranger's is not.
a1      10.96.0.11:80      tcp   e1 e2 e3    =
a2      10.96.0.11:80      tcp   e1 e2 e3    =
node1   10.96.0.11:80      tcp   e1 e2 e3    cni0@node1 flannel@node1
e1      10.96.0.11:80      tcp   e1 e2 e3    = cni0@node1
a1      10.96.0.11:81      tcp   unreachable
a1      10.96.0.11:80      udp   unreachable
client  10.96.0.11:80      tcp   unreachable

# NodePort: on every address of every node, from everywhere, always masqueraded under policy Cluster.
client  172.18.0.2:30011   tcp   e1 e2 e3    cni0@node1 flannel@node1
client  172.18.0.3:30011   tcp   e1 e2 e3    cni0@node2 flannel@node2
a1      172.18.0.2:30011   tcp   e1 e2 e3    cni0@node1 flannel@node1
a2      172.18.0.2:30011   tcp   e1 e2 e3    cni0@node1 flannel@node1
a1      10.244.1.1:30011   tcp   e1 e2 e3    cni0@node1 flannel@node1
node1   127.0.0.1:30011    tcp   e1 e2 e3    cni0@node1 flannel@node1
node1   172.18.0.2:30011   tcp   e1 e2 e3    cni0@node1 flannel@node1
node1   172.18.0.3:30011   tcp   e1 e2 e3    cni0@node2 flannel@node2
client  172.18.0.2:30011   udp   node1       =

# No endpoint at all: refused, at once, everywhere.
a1      10.96.0.12:80      tcp   refused
node1   10.96.0.12:80      tcp   refused
client  172.18.0.2:30012   tcp   refused
node1   127.0.0.1:30012    tcp   refused
a1      198.51.100.12:80   tcp   refused

# externalTrafficPolicy Local: dropped where there is no endpoint, the client's address kept where there is one.
client  172.18.0.2:30013   tcp   e1          =
client  172.18.0.3:30013   tcp   dropped
a2      172.18.0.3:30013   tcp   e1          =
node2   172.18.0.3:30013   tcp   e1          flannel@node2
node1   127.0.0.1:30013    tcp   e1          cni0@node1
a2      10.96.0.13:80      tcp   e1          =

# internalTrafficPolicy Local: dropped where there is none here, whoever asks; node ports do not care.
a2      10.96.0.14:80      tcp   e3          =
node2   10.96.0.14:80      tcp   e3          cni0@node2
a1      10.96.0.14:80      tcp   dropped
node1   10.96.0.14:80      tcp   dropped
client  172.18.0.2:30014   tcp   e3          flannel@node1

# A load balancer's address takes only what its source ranges name; the node port and the clusterIP take everybody.
a1      192.0.2.15:80      tcp   e1          cni0@node1
e2      192.0.2.15:80      tcp   dropped
node1   192.0.2.15:80      tcp   dropped
a1      192.0.2.99:80      tcp   unreachable
client  172.18.0.2:30015   tcp   e1          cni0@node1
e2      10.96.0.15:80      tcp   e1          =

# Two protocols on one port; an external address no interface has.
a1      10.96.0.16:53      udp   e1 e2       =
a1      10.96.0.16:53      tcp   e1 e2       =
a2      198.51.100.16:53   udp   e1 e2       flannel@node2

# Endpoints that serve while they end, under externalTrafficPolicy Local.
client  172.18.0.2:30017   tcp   e1          =
client  172.18.0.3:30017   tcp   e3          =
a1      192.0.2.17:80      tcp   e1 e3       =
a1      10.96.0.17:80      tcp   e1 e3       =
client  172.18.0.2:30917   tcp   node1       =

a1      10.96.0.18:7       sctp  e1          =
a1      10.96.0.19:80      tcp   unreachable
"""


def rows() -> Iterator[list[str]]:
    return (re.split(r"\s{2,}", row.strip()) for row in ROWS.splitlines() if row and not row.startswith("#"))


def packet(to: str, protocol: str) -> Packet:
    address, _, port = to.partition(":")
    return Packet(protocol, address, int(port), sport=40000)


def where(way: Way) -> str:
    return WHO[way.netns] if way.result == "delivered" else way.result


def told(ways: list[Way]) -> str:
    return "\n\n".join("\n".join([str(way), *(f"    {hop}" for hop in way.hops)]) for way in ways)


@pytest.mark.parametrize("row", list(rows()), ids=" ".join)
def test_packet(row: list[str]) -> None:
    sender, to, protocol, expected, *seen = row
    ways = walk(STATE, worlds.NAMES[sender], packet(to, protocol))
    assert {where(way) for way in ways} == set(expected.split()), told(ways)
    sources = {SEEN[way.packet.src] for way in ways if way.result == "delivered"}
    own = {"client": "client", "node1": "node1", "node2": "node2"}.get(sender, sender)
    assert sources == {own if name == "=" else name for name in " ".join(seen).split()}, told(ways)


@pytest.mark.parametrize("row", [row for row in rows() if len(row) > 4], ids=" ".join)
def test_answer_comes_back_from_what_was_asked(row: list[str]) -> None:
    sender, to, protocol, *_ = row
    asked = packet(to, protocol)
    for way in walk(STATE, worlds.NAMES[sender], asked):
        back = answer(STATE, way, asked)
        assert [(end.result, end.netns) for end in back] == [("delivered", worlds.NAMES[sender])], told([way, *back])


def test_choice_is_uniform() -> None:
    chances = {where(way): way.chance for way in walk(STATE, worlds.NAMES["a1"], packet("10.96.0.11:80", "tcp"))}
    assert chances == pytest.approx(dict.fromkeys(("e1", "e2", "e3"), 1 / 3), abs=1e-8)


def test_affinity_sends_a_known_client_to_its_endpoint() -> None:
    sep = names.kube_sep("t/dns:dns", "UDP", "10.244.1.3:5353")
    asked = packet("10.96.0.16:53", "udp")
    ways = walk(STATE, worlds.NAMES["a1"], asked, recent={(sep, "10.244.1.9")})
    assert {where(way) for way in ways} == {"e2"}
    assert {where(way) for way in walk(STATE, worlds.NAMES["a2"], asked, recent={(sep, "10.244.1.9")})} == {"e1", "e2"}


def test_a_load_balancer_in_range_of_the_node_may_loop_back() -> None:
    text = worlds.SERVICES.replace("10.244.1.9/32]", "172.18.0.0/30]")
    found = worlds.chains(worlds.load(text))["node1"]
    firewall = _chain(found, "nat", names.kube_chain("FW", "t/ranges", "TCP"))
    assert [rule.split()[1] for rule in firewall.rules if rule.startswith("-s")] == [
        "203.0.113.0/24", "172.18.0.0/30", "192.0.2.15/32",
    ]  # fmt: skip


# --- the rules' text --------------------------------------------------------------------------------------------------


def _chain(chains: frozenset[Chain], table: str, name: str) -> Chain:
    return next(chain for chain in chains if (chain.table, chain.name) == (table, name))


def spelled(port: str, node: str = "node1", settings: Settings = worlds.SETTINGS, *, large: bool = False) -> str:
    """All rules of one Service port: its own chains by name, then its lines in the shared chains."""
    infos = worlds.infos(OBJECTS, worlds.node(node))
    said = proxy_iptables.spell(next(info for info in infos if info.name == port), settings, large=large)
    own = [f"-A {chain.name} {rule}" for chain in sorted(said.chains, key=lambda one: one.name) for rule in chain.rules]
    return "\n".join([*own, *(f"{table}: -A {chain} {rule}" for table, chain, rule in said.lines)]) + "\n"


GOLDEN = (Path(__file__).parent / "golden" / "proxy_iptables.txt").read_text()
SECTIONS = dict(re.findall(r"^## (.*)\n((?:[^#\n].*\n)*)", GOLDEN, re.MULTILINE))


@pytest.mark.parametrize("head", SECTIONS)
def test_rules_of_a_service(head: str) -> None:
    port, node = head.split(" on ")
    assert spelled(port, node) == SECTIONS[head]


def test_every_kind_of_service_has_golden_rules() -> None:
    ports = {info.name for info in worlds.infos(OBJECTS, worlds.node("node1"))}
    assert ports - {"t/dns:dns-tcp"} == {head.split(" on ")[0] for head in SECTIONS}


def test_large_cluster_mode_drops_the_comments_of_endpoint_rules_only() -> None:
    """From 1,000 endpoints on, counted per Service port (kube-proxy's largeClusterEndpointsThreshold)."""
    plain, large = spelled("t/dns:dns").splitlines(), spelled("t/dns:dns", large=True).splitlines()
    endpoint_rules = [line for line in plain if "KUBE-SEP" in line]
    assert [line for line in large if line not in plain] == [
        re.sub(r'-m comment --comment "[^"]*" ', "", line) for line in endpoint_rules
    ]
    assert [line for line in plain if line not in large] == endpoint_rules


def test_large_cluster_mode_begins_after_a_thousand_endpoints() -> None:
    sets = [_chain(worlds.own_chains(_many(count), worlds.node("node1"), worlds.SETTINGS), "nat", sep).rules
            for count, sep in ((1000, names.kube_sep("t/s", "TCP", "10.1.0.0:80")),
                               (1001, names.kube_sep("t/s", "TCP", "10.1.0.0:80")))]  # fmt: skip
    assert ["--comment" in rules[0] for rules in sets] == [True, False]


def _many(endpoints: int) -> dict[Key, Object]:
    service = Service(ObjectMeta(name="s", namespace="t"), ServiceSpec(clusterIP="10.96.0.9", ports=(ServicePort(80),)))
    metadata = ObjectMeta(name="s-1", namespace="t", labels={"kubernetes.io/service-name": "s"})
    addresses = tuple(Endpoint((f"10.1.{number // 250}.{number % 250}",)) for number in range(endpoints))
    return by_key([service, EndpointSlice(metadata, endpoints=addresses, ports=(EndpointPort(80),))])


SHARED = """
filter KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections" \
-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
filter KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
filter KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
filter KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" \
-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
nat KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
nat KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
nat KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
nat KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
nat KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" \
-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
"""


def test_rules_without_any_service() -> None:
    found = worlds.own_chains({}, worlds.node("node1"), worlds.SETTINGS)
    lines = [f"{chain.table} {chain.name} {rule}" for chain in found for rule in chain.rules]
    assert sorted(lines, key=lambda line: line.split()[:2]) == SHARED.replace("\\\n", "").strip().splitlines()
    assert {(chain.table, chain.name) for chain in found if not chain.rules} == {
        ("filter", "KUBE-EXTERNAL-SERVICES"), ("filter", "KUBE-NODEPORTS"), ("filter", "KUBE-PROXY-FIREWALL"),
        ("filter", "KUBE-SERVICES"), ("nat", "KUBE-NODEPORTS"),
        *((table, "KUBE-PROXY-CANARY") for table in ("filter", "mangle", "nat")),
    }  # fmt: skip


def test_jumps_are_kube_proxys_list_backwards() -> None:
    """It prepends them one at a time, the last of its list first in the chain."""
    order = {chain: [rule.split()[-1].removeprefix("KUBE-") for _, built_in, rule in proxy_iptables.JUMPS
                     if built_in == chain] for _, chain, _ in proxy_iptables.JUMPS}  # fmt: skip
    assert order == {
        "INPUT": ["FIREWALL", "PROXY-FIREWALL", "NODEPORTS", "EXTERNAL-SERVICES"],
        "FORWARD": ["PROXY-FIREWALL", "FORWARD", "SERVICES", "EXTERNAL-SERVICES"],
        "OUTPUT": ["FIREWALL", "PROXY-FIREWALL", "SERVICES", "SERVICES"],
        "PREROUTING": ["SERVICES"],
        "POSTROUTING": ["POSTROUTING"],
    }


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        (Settings(LocalDetector(interface="cni0")), "-A KUBE-SVC-X -d 10.96.0.13/32 ! -i cni0 -p tcp"),
        (Settings(LocalDetector(interface="veth+")), "-A KUBE-EXT-X -i veth+ -m comment"),
        (Settings(LocalDetector("10.244.0.0/16"), masquerade_all=True), "-A KUBE-SVC-X -d 10.96.0.13/32 -p tcp"),
    ],
)
def test_ways_to_tell_a_local_pod(settings: Settings, rule: str) -> None:
    text = re.sub(r"(SVC|EXT)-[A-Z2-7]{16}", r"\1-X", spelled("t/outer", settings=settings))
    assert rule in text, text


def test_without_a_way_to_tell_nothing_is_said_about_local_pods() -> None:
    text = spelled("t/outer", settings=Settings())
    assert "pod traffic" not in text
    assert 'cluster IP" -m tcp --dport 80 -j KUBE-MARK-MASQ' not in text


@pytest.mark.parametrize(
    ("settings", "rules"),
    [
        (Settings(localhost_node_ports=False),
         ['! -d 127.0.0.0/8 -m comment --comment "{}" -m addrtype --dst-type LOCAL']),
        (Settings(node_port_addresses=("172.18.0.2", "127.0.0.1")),
         ['-d 172.18.0.2/32 -m comment --comment "{}"', '-d 127.0.0.1/32 -m comment --comment "{}"']),
        (Settings(node_port_addresses=("172.18.0.2", "127.0.0.1"), localhost_node_ports=False),
         ['-d 172.18.0.2/32 -m comment --comment "{}"']),
    ],
)  # fmt: skip
def test_node_port_addresses(settings: Settings, rules: list[str]) -> None:
    note = "kubernetes service nodeports; NOTE: this must be the last rule in this chain"
    found = _chain(worlds.own_chains({}, worlds.node("node1"), settings), "nat", "KUBE-SERVICES").rules
    assert list(found) == [f"{rule.format(note)} -j KUBE-NODEPORTS" for rule in rules]


def test_other_settings() -> None:
    other = Settings(masquerade_bit=7, conntrack_tcp_be_liberal=True, localhost_node_ports=False)
    found = worlds.own_chains({}, worlds.node("node1"), other)
    assert _chain(found, "nat", "KUBE-MARK-MASQ").rules == ("-j MARK --set-xmark 0x80/0x80",)
    assert "INVALID" not in "".join(_chain(found, "filter", "KUBE-FORWARD").rules)
    assert _chain(found, "filter", "KUBE-FIREWALL").rules == ()


def test_the_clusters_pod_subnet_is_the_cluster_cidr() -> None:
    cluster = Cluster(ObjectMeta(name="w"), networking=Networking(podSubnet="10.1.0.0/16,fd00::/56"))
    said, node = kubeproxy.told(by_key([cluster])), worlds.node("node1")
    assert proxy_iptables.settings_on(node, said).detector == LocalDetector("10.1.0.0/16")
    assert proxy_iptables.settings_on(node, said, "ip6").detector == LocalDetector("fd00::/56")


# --- structure --------------------------------------------------------------------------------------------------------

TARGETS = {"ACCEPT", "DROP", "REJECT", "RETURN", "DNAT", "MARK", "MASQUERADE"}


@pytest.mark.parametrize("node", worlds.NODES)
def test_every_jump_has_a_chain_and_every_chain_a_jump(node: str) -> None:
    found = worlds.chains(OBJECTS)[node]
    there = {(chain.table, chain.name) for chain in found if not chain.policy}
    jumps = {(chain.table, parse(rule).target) for chain in found for rule in chain.rules}
    jumps = {(table, target) for table, target in jumps if target and target not in TARGETS}
    assert jumps - there == set()
    assert {(table, name) for table, name in there - jumps if name != "KUBE-PROXY-CANARY"} == set()


def test_the_same_objects_give_the_same_rules_whatever_their_order() -> None:
    backwards = dict(reversed(OBJECTS.items()))
    assert worlds.chains(backwards) == worlds.chains(OBJECTS)


def test_one_changed_slice_changes_only_its_service() -> None:
    before = worlds.own_chains(OBJECTS, worlds.node("node1"), worlds.SETTINGS)
    gone = Key("EndpointSlice", "t", "web-1")
    slice_ = OBJECTS[gone]
    assert isinstance(slice_, EndpointSlice)
    fewer = {**OBJECTS, gone: replace(slice_, endpoints=(slice_.endpoints or ())[:2])}
    after = worlds.own_chains(fewer, worlds.node("node1"), worlds.SETTINGS)
    assert {chain.name[:9] for chain in after - before} == {"KUBE-SVC-"}
    assert {chain.name[:9] for chain in before - after} == {"KUBE-SVC-", "KUBE-SEP-"}


@pytest.mark.parametrize("count", [*range(1, 12), 97, 250])
def test_uniform_probabilities(count: int) -> None:
    """What is left after each rule times the last rule's 1: every endpoint gets 1/n."""
    rules = _chain(
        worlds.own_chains(_many(count), worlds.node("node1"), Settings()),
        "nat",
        names.kube_chain("SVC", "t/s", "TCP"),
    ).rules
    left, shares = 1.0, []
    for rule in rules:
        found = re.search(r"--probability ([0-9.]+)", rule)
        taken = float(found[1]) if found else 1.0
        shares.append(left * taken)
        left *= 1 - taken
    assert shares == pytest.approx([1 / count] * count, rel=1e-6)
    assert left == 0
