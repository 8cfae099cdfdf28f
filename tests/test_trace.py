"""The walk: what stops a packet, and that the first thing that does is named."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from nsnet.state import (
    Address,
    Bridge,
    BridgePort,
    Chain,
    FdbEntry,
    Loopback,
    Neighbour,
    NftChain,
    Route,
    State,
    Sysctl,
    Value,
    Veth,
    Vxlan,
)
from nsnet.trace import Packet, answer, service_of, walk
from nsnet.trace.rules import UNKNOWN, Facts, likelihood, number, parse
from nsnet.trace.values import Trip
from tests import worlds

STATE = worlds.network(worlds.chains(worlds.load(worlds.SERVICES)))
NODE1, NODE2, CLIENT, ROUTER = (worlds.NAMES[name] for name in ("node1", "node2", "client", "router"))
A1, A2, E1, E3 = (worlds.NAMES[name] for name in ("a1", "a2", "e1", "e3"))

Fault = Callable[[Value], Value | None]


def broken(netns: str, fault: Fault, *more: Value) -> State:
    """The state with each value of one namespace passed through a fault; None takes it away."""
    values = [fault(value) for value in STATE[netns]]
    return {**STATE, netns: frozenset([value for value in values if value is not None]) | frozenset(more)}


def without(kind: type[Value], **fields: str) -> Fault:
    def fault(value: Value) -> Value | None:
        hit = isinstance(value, kind) and all(getattr(value, name) == said for name, said in fields.items())
        return None if hit else value

    return fault


def changed(cls: type[Value], which: str, **fields: object) -> Fault:
    """Changes the value of this kind whose text holds `which`."""
    return lambda value: replace(value, **fields) if isinstance(value, cls) and which in str(value) else value


def ends(state: State, netns: str, to: str, protocol: str = "tcp") -> set[tuple[str, str, str]]:
    address, _, port = to.partition(":")
    ways = walk(state, netns, Packet(protocol, address, int(port or 0)))
    return {(way.result, way.netns, way.reason) for way in ways}


def one(state: State, netns: str, to: str) -> tuple[str, str, str]:
    (end,) = ends(state, netns, to)
    return end


POD_TO_POD = "10.244.2.2:8080"  # from a1 to e3, over VXLAN


def test_pod_to_pod_over_vxlan_hop_by_hop() -> None:
    (way,) = walk(STATE, A1, Packet("tcp", "10.244.2.2", 8080))
    assert (way.result, way.netns, way.packet.src) == ("delivered", E3, "10.244.1.9")
    steps = [(hop.netns.removeprefix("w."), hop.what) for hop in way.hops if not hop.what.startswith(("nat", "filter"))]
    assert steps == [
        ("pod.t.a1", "out eth0 via 10.244.1.1"),
        ("node.node1", "in cni0"),
        ("node.node1", "out flannel.1 via 10.244.2.0"),
        ("node.node1", "vxlan id 1 to 172.18.0.3"),
        ("node.node1", "out eth0"),
        ("fabric.nodes", steps[5][1]),
        ("node.node2", "in eth0"),
        ("node.node2", "delivered to 172.18.0.3"),
        ("node.node2", "in flannel.1"),
        ("node.node2", "out cni0"),
        ("pod.t.e3", "in eth0"),
        ("pod.t.e3", "delivered to 10.244.2.2"),
    ]
    assert steps[5][1].startswith("bridge br0, veth")


@pytest.mark.parametrize(
    ("netns", "fault", "result", "where", "why"),
    [
        (A1, without(Route, dst="default"), "unreachable", A1, "no route to 10.244.2.2"),
        (NODE1, without(Route, dst="10.244.2.0/24"), "unreachable", ROUTER, "no route to 10.244.2.2"),
        (NODE1, changed(Route, "10.244.2.0/24", kind="blackhole"), "unreachable", NODE1,
         "the route to 10.244.2.0/24 is blackhole"),
        (NODE1, without(Neighbour), "unreachable", NODE1, "flannel.1 has no neighbour entry for 10.244.2.0"),
        (NODE1, without(FdbEntry), "unreachable", NODE1, "flannel.1 has no FDB entry for "),
        (NODE1, changed(FdbEntry, "flannel", dst="172.18.0.9"), "dropped", NODE1,
         "the VXLAN packet is unreachable: nobody on eth0 has 172.18.0.9"),
        (NODE2, without(Vxlan), "dropped", NODE2, "no VXLAN device with id 1 and port 8472 is up here"),
        (NODE2, changed(Vxlan, "flannel", vni=2), "dropped", NODE2, "no VXLAN device with id 1"),
        (NODE2, changed(Vxlan, "flannel", port=4789), "dropped", NODE2, "no VXLAN device with id 1 and port 8472"),
        (NODE2, changed(Vxlan, "flannel", mac="02:00:00:00:00:01"), "dropped", NODE2, "the frame is for "),
        (NODE2, changed(Sysctl, "ip_forward", value="0"), "dropped", NODE2, "net.ipv4.ip_forward is 0"),
        (NODE1, changed(Bridge, "cni0", up=False), "unreachable", A1, "nobody on eth0 has 10.244.1.1"),
        (NODE2, without(BridgePort, name=worlds._port("e3")), "unreachable", NODE2, "nobody on cni0 has 10.244.2.2"),
        (E3, changed(Veth, "eth0", up=False), "unreachable", NODE2, "nobody on cni0 has 10.244.2.2"),
        (E3, changed(Address, "10.244.2.2", cidr="10.244.2.77/24"), "unreachable", NODE2,
         "nobody on cni0 has 10.244.2.2"),
        (NODE1, changed(Veth, "'eth0'", up=False), "dropped", NODE1,
         "the VXLAN packet is unreachable: no route to 172.18.0.3"),
    ],
)  # fmt: skip
def test_what_stops_a_packet_between_nodes(netns: str, fault: Fault, result: str, where: str, why: str) -> None:
    assert one(STATE, A1, POD_TO_POD)[0] == "delivered"
    end = one(broken(netns, fault), A1, POD_TO_POD)
    assert end[:2] == (result, where), end
    assert end[2].startswith(why), end


def test_a_tunnel_whose_own_packets_are_routed_into_it() -> None:
    state = broken(NODE1, lambda value: value, Route("172.18.0.3/32", "flannel.1", "10.244.2.0", onlink=True))
    assert one(state, A1, POD_TO_POD) == (
        "dropped", NODE1,
        "the VXLAN packet is dropped: what flannel.1 sends to 172.18.0.3 is routed into flannel.1 itself",
    )  # fmt: skip


def test_a_neighbour_entry_with_a_wrong_mac() -> None:
    state = broken(A1, lambda value: value, Neighbour("eth0", "10.244.1.1", "02:00:00:00:00:01"))
    assert one(state, A1, POD_TO_POD)[2] == "nobody on cni0 has the MAC 02:00:00:00:00:01 that 10.244.1.1 has here"


def test_strict_reverse_path_filter_drops_what_would_be_answered_elsewhere() -> None:
    strict = broken(NODE2, without(Route, dst="10.244.1.0/24"), Sysctl("net.ipv4.conf.all.rp_filter", "1"))
    assert one(strict, A1, POD_TO_POD)[2] == (
        "rp_filter is 1, and 10.244.1.9 is not routed back by flannel.1 but by eth0 (default via 172.18.0.1 dev eth0)"
    )


def test_routes_in_a_circle() -> None:
    state = broken(NODE2, lambda value: value, Route("10.9.0.0/16", dev="flannel.1", via="10.244.1.0", onlink=True))
    node1 = STATE[NODE1] | {Route("10.9.0.0/16", dev="flannel.1", via="10.244.2.0", onlink=True)}
    assert one({**state, NODE1: node1}, A1, "10.9.0.1")[2].startswith("the packet goes round in circles")


def test_loopback_node_port_needs_route_localnet() -> None:
    state = broken(NODE1, changed(Sysctl, "route_localnet", value="0"))
    found = ends(state, NODE1, "127.0.0.1:30011")
    assert {end[0] for end in found} == {"dropped"}
    assert all("route_localnet is 0" in end[2] for end in found)


def test_equal_routes_are_several_ways() -> None:
    both = Route("10.9.0.0/16", nexthops=(("172.18.0.2", "nodes"), ("172.18.0.3", "nodes")))
    state = {**STATE, ROUTER: STATE[ROUTER] | {both}}
    for name in ("node1", "node2"):
        netns = worlds.NAMES[name]
        state[netns] = STATE[netns] | {Address("cni0", "10.9.0.1/32")}
    ways = walk(state, CLIENT, Packet("icmp", "10.9.0.1"))
    assert {(way.result, way.netns, way.chance) for way in ways} == {
        ("delivered", NODE1, 0.5),
        ("delivered", NODE2, 0.5),
    }


def test_a_pod_that_reaches_itself_needs_hairpin() -> None:
    """Only the way back to itself fails: the others of the Service answer."""
    port = worlds._port("e1")
    state = broken(NODE1, changed(BridgePort, port, hairpin=False))
    found = walk(state, E1, Packet("tcp", "10.96.0.11", 80))
    assert sorted(way.result for way in found) == ["delivered", "delivered", "dropped"]
    assert next(way for way in found if way.result == "dropped").reason.startswith(f"hairpin is off on {port}")


def test_without_bridge_nf_an_answer_on_the_same_bridge_comes_from_the_wrong_address() -> None:
    state = broken(NODE1, changed(Sysctl, "bridge-nf-call-iptables", value="0"))
    asked = Packet("tcp", "10.96.0.11", 80)
    ways = {way.netns: answer(state, way, asked)[0] for way in walk(state, A1, asked)}
    assert ways[E3].result == "delivered"  # over the other node: routed through this one, both ways
    assert ways[E1].reason == (
        "the answer comes from 10.244.1.2:8080, which nobody asked: node/node1 bridges it past conntrack, "
        "net.bridge.bridge-nf-call-iptables is 0"
    )


def test_an_answer_without_a_way_back() -> None:
    state = broken(NODE2, without(Route, dst="10.244.1.0/24"))
    asked = Packet("tcp", "10.244.2.2", 8080)
    (way,) = walk(state, A1, asked)
    (back,) = answer(state, way, asked)
    assert (way.result, back.result, back.netns, back.reason) == (
        "delivered", "unreachable", ROUTER, "no route to 10.244.1.9",
    )  # fmt: skip


def test_a_rule_that_drops_is_named() -> None:
    drop = '-s 10.244.1.9/32 -m comment --comment "not this one" -j DROP'
    forward = next(value for value in STATE[NODE2] if isinstance(value, Chain) and value.name == "FORWARD")
    state = broken(NODE2, changed(Chain, "name='FORWARD'", rules=(drop, *forward.rules)))
    assert one(state, A1, POD_TO_POD) == ("dropped", NODE2, drop)
    closed = broken(NODE2, changed(Chain, "name='FORWARD'", policy="DROP", rules=()))
    assert one(closed, A1, POD_TO_POD)[:2] == ("dropped", NODE2)


def test_a_bridge_shows_netfilter_what_it_forwards() -> None:
    """Two pods of one node: nothing is routed, and still FORWARD sees it while bridge-nf-call-iptables is on."""
    closed = broken(NODE1, changed(Chain, "name='FORWARD'", policy="DROP", rules=()))
    assert one(closed, A1, "10.244.1.2:8080")[:2] == ("dropped", NODE1)
    values = [changed(Sysctl, "bridge-nf-call-iptables", value="0")(value) for value in closed[NODE1]]
    deaf = {**closed, NODE1: frozenset(value for value in values if value is not None)}
    assert one(deaf, A1, "10.244.1.2:8080")[:2] == ("delivered", E1)


def test_a_namespace_that_is_not_there() -> None:
    assert one({}, "w.pod.t.gone", "10.0.0.1:80") == ("unreachable", "w.pod.t.gone", "no route to 10.0.0.1")


def test_the_way_names_the_service_of_each_rule() -> None:
    (way,) = walk(STATE, A2, Packet("tcp", "10.96.0.13", 80))
    named = [(hop.what, service_of(hop.rule)) for hop in way.hops if service_of(hop.rule)]
    assert [service for _, service in named] == ["t/outer"] * 3
    assert [what[:13] for what, _ in named] == ["nat KUBE-SERV", "nat KUBE-SVC-", "nat KUBE-SEP-"]


# --- rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("comment", "service"),
    [
        ("ns1/svc1:p80 cluster IP", "ns1/svc1:p80"),
        ("ns1/svc1", "ns1/svc1"),
        ("ns1/svc1:p80 -> 10.0.0.1:80", "ns1/svc1:p80"),
        ("masquerade LOCAL traffic for ns1/svc1:p80 external destinations", "ns1/svc1:p80"),
        ("other traffic to ns1/svc1:p80 will be dropped by KUBE-PROXY-FIREWALL", "ns1/svc1:p80"),
        ("kubernetes service portals", ""),
        ("flanneld masq", ""),
    ],
)
def test_service_of(comment: str, service: str) -> None:
    assert service_of(f'-m comment --comment "{comment}" -j X') == service


TRIP = Trip("n", Packet("tcp", "10.0.0.5", 80, "10.1.0.1", 1234), mark=0x4000, dev_in="eth0", dev_out="cni0")


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("-j X", 1),
        ("-d 10.0.0.0/24 -j X", 1),
        ("! -d 10.0.0.0/24 -j X", 0),
        ("! -s 10.2.0.0/16 -d 10.0.0.5/32 -p tcp -m tcp --dport 80 -j X", 1),
        ("-p udp -m udp --dport 80 -j X", 0),
        ("! -p udp -j X", 1),
        ("-p tcp -m tcp --dport 79:81 -j X", 1),
        ("-p tcp -m tcp ! --dport 80 -j X", 0),
        ("-p tcp -m tcp --sport 1234 -j X", 1),
        ("-p tcp -m multiport --dports 22,79:80 -j X", 1),
        ("-i eth0 -o cni0 -j X", 1),
        ("-i eth+ -j X", 1),
        ("! -i eth0 -j X", 0),
        ("-m mark --mark 0x4000/0x4000 -j X", 1),
        ("-m mark ! --mark 0x4000/0x4000 -j X", 0),
        ("-m conntrack --ctstate NEW -j X", 1),
        ("-m conntrack --ctstate RELATED,ESTABLISHED -j X", 0),
        ("-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j X", 1),
        ("-m addrtype --dst-type LOCAL -j X", 1),
        ("-m addrtype --src-type LOCAL -j X", 0),
        ("-m statistic --mode random --probability 0.25000000000 -j X", 0.25),
        ("-m recent --rcheck --seconds 5 --reap --name A --mask 255.255.255.255 --rsource -j X", 1),
        ("-m recent --rcheck --seconds 5 --reap --name B --mask 255.255.255.255 --rsource -j X", 0),
        ("-m recent --set --name B --mask 255.255.255.255 --rsource -j X", 1),
        ('-m comment --comment "a \\"quoted\\" -d 1.1.1.1 word" -j X', 1),
        ("-m owner --uid-owner 0 -j X", UNKNOWN),
        ("-d 10.9.0.0/16 -m owner --uid-owner 0 -j X", 0),
    ],
)
def test_does_a_rule_match(rule: str, expected: float) -> None:
    facts = Facts(lambda address: address == "10.0.0.5", {("A", "10.1.0.1")})
    packet = TRIP.packet
    assert likelihood(parse(rule), TRIP, facts, number(packet.src), number(packet.dst)) == expected


def node(*chains: Chain | NftChain) -> State:
    """A lonely namespace that sends to itself."""
    return {"n": frozenset([Loopback(), Bridge("eth0", ""), Address("eth0", "10.0.0.5/24"), *chains])}


def output(*rules: str, policy: str = "ACCEPT") -> Chain:
    return Chain("filter", "OUTPUT", rules, policy)


@pytest.mark.parametrize(
    ("chains", "results"),
    [
        ([output("-j DROP")], {"dropped"}),
        ([output("-j REJECT --reject-with icmp-port-unreachable")], {"refused"}),
        ([output(policy="DROP")], {"dropped"}),
        ([output("-j A", "-j DROP"), Chain("filter", "A", ("-j RETURN", "-j REJECT"))], {"dropped"}),
        ([output("-j A", "-j DROP"), Chain("filter", "A", ("-j ACCEPT",))], {"delivered"}),
        ([output("-g A", "-j DROP"), Chain("filter", "A", ())], {"delivered"}),
        ([output("-j GONE", "-j DROP")], {"dropped"}),
        ([output("-m owner --uid-owner 0 -j DROP")], {"dropped", "delivered"}),
        ([output("-m statistic --mode random --probability 0.5 -j DROP")], {"dropped", "delivered"}),
        ([output("-j MARK --set-xmark 0x1/0x0", "-m mark --mark 0x1 -j DROP")], {"dropped"}),
        ([output("-j LOG", "-j ACCEPT")], {"delivered"}),
        ([output("-j A"), Chain("filter", "A", ("-j A",))], {"delivered"}),
    ],
)
def test_what_chains_make_of_a_packet(chains: list[Chain], results: set[str]) -> None:
    assert {way.result for way in walk(node(*chains), "n", Packet("tcp", "10.0.0.5", 80))} == results


@pytest.mark.parametrize(
    ("rule", "dst", "dport"),
    [
        ("-p tcp -j DNAT --to-destination 10.0.0.5:99", "10.0.0.5", 99),
        ("-p tcp -j DNAT --to-destination 10.0.0.5", "10.0.0.5", 80),
        ("-p tcp -j DNAT --to-destination 10.0.0.5-10.0.0.9:99-100", "10.0.0.5", 99),
        ("-p tcp -j REDIRECT --to-ports 99", "127.0.0.1", 99),
    ],
)
def test_translations(rule: str, dst: str, dport: int) -> None:
    state = node(Chain("nat", "OUTPUT", (rule,), "ACCEPT"))
    (way,) = walk(state, "n", Packet("tcp", "10.0.0.7", 80))
    assert (way.result, way.packet.dst, way.packet.dport) == ("delivered", dst, dport)
    (back,) = answer(state, way, Packet("tcp", "10.0.0.7", 80))
    assert (back.result, back.packet.src, back.packet.sport) == ("delivered", "10.0.0.7", 80)


PING = Trip("n", Packet("icmp", "10.0.0.5", 0, "10.1.0.1"))


@pytest.mark.parametrize(("kind", "expected"), [("any", 1), ("8", 1), ("0", 0), ("3/4", 0)])
def test_a_kind_of_ping(kind: str, expected: float) -> None:
    rule = parse(f"-p icmp -m icmp --icmp-type {kind} -j X")
    assert likelihood(rule, PING, Facts(lambda _: False), number("10.1.0.1"), number("10.0.0.5")) == expected


@pytest.mark.parametrize(
    ("rules", "dst", "end"),
    [  # of a person's own table, which trace has to take as it comes
        (("dnat to 10.0.0.5",), "10.0.0.7", "delivered 10.0.0.5:80"),
        (("dnat to 10.0.0.5-10.0.0.9",), "10.0.0.7", "delivered 10.0.0.5:80"),
        (
            ("dnat ip addr . port to numgen random mod 1 map { 0 : 10.0.0.5 . 99 }",),
            "10.0.0.7",
            "delivered 10.0.0.5:99",
        ),
        (("meta mark set 0x3", "meta mark 1-5 drop"), "10.0.0.5", "dropped 10.0.0.5:80"),
        (("meta mark set 0x6", "meta mark 1-5 drop"), "10.0.0.5", "delivered 10.0.0.5:80"),
        (("meta mark 1-5 accept", "drop"), "10.0.0.5", "dropped 10.0.0.5:80"),
        (("meta mark set 0x6", "meta mark != { 0x1, 0x6 } drop"), "10.0.0.5", "delivered 10.0.0.5:80"),
        (("meta priority set 0x1 drop",), "10.0.0.5", "delivered 10.0.0.5:80"),
    ],
)
def test_what_a_table_of_nftables_makes_of_a_packet(rules: tuple[str, ...], dst: str, end: str) -> None:
    table = NftChain("mine", "out", rules, "type nat hook output priority -100; policy accept;")
    (way,) = walk(node(table), "n", Packet("tcp", dst, 80))
    assert f"{way.result} {way.packet.dst}:{way.packet.dport}" == end
