"""Every kind of value on the real kernel: what is applied is observed, what is deleted is gone."""

import random
import shlex
import socket
import subprocess
from collections.abc import Iterable, Iterator, Sequence

import msgspec
import pytest

from nsnet import names
from nsnet.diff import diff
from nsnet.kernel import apply, destroy, netns, observe
from nsnet.state import (
    Address,
    Bridge,
    BridgePort,
    Change,
    Family,
    FdbEntry,
    Key,
    Listener,
    Loopback,
    Neighbour,
    Netns,
    OtherLink,
    Route,
    Sysctl,
    Value,
    Veth,
    Vxlan,
    text,
)
from tests.byhand import World, address_of, adds, cluster, merged, namespace, pair

NODE, OTHER, POD = "t.node.n", "t.fabric.nodes", "t.pod.default.web"

TUNNEL = Vxlan("flannel.1", "92:b9:4a:a4:ec:62", 1450, 1, "172.18.0.2", "eth0")

# A node with an underlay device, a bridge and an overlay; every value of the tables below fits in there.
BASE = merged(
    namespace(OTHER, Bridge("br0", "02:00:00:00:00:01")),
    namespace(NODE, Bridge("cni0", "0a:58:0a:01:00:01", 1450), Address("cni0", "10.1.0.1/24"), TUNNEL),
    pair(f"{OTHER}/port1", "br0", f"{NODE}/eth0", "172.18.0.2/16"),
    namespace(POD),
)

VALUES: list[Value] = [
    Bridge("docker0", "0a:58:0a:02:00:01"),
    Bridge("docker0", "0a:58:0a:02:00:01", 1400, up=False),
    Vxlan("flannel.2", "92:b9:4a:a4:ec:63", 1400, 2, "172.18.0.2", "eth0", 4789, learning=True),
    Vxlan("flannel.3", "92:b9:4a:a4:ec:64", 1400, 3, "172.18.0.2", "eth0", 4790, up=False),
    Address("eth0", "192.168.7.1/24"),
    Address("cni0", "10.1.0.9/24"),
    Address("lo", "10.96.0.10/32"),
    Address("flannel.1", "10.1.0.0/32"),
    Route("default", "eth0", "172.18.0.1"),
    Route("default", "eth0", "172.18.0.1", metric=100, proto="dhcp"),
    Route("10.2.0.0/24", "flannel.1", "10.2.0.0", onlink=True),
    Route("10.3.0.0/24", "eth0", "172.18.0.3"),
    Route("10.4.0.0/24", "cni0", src="10.1.0.1", mtu=1300, proto="static"),
    Route("10.5.0.7/32", "eth0"),
    Route("10.5.0.0/24", "eth0", scope="global"),
    Route("10.6.0.0/16", kind="blackhole"),
    Route("10.6.0.0/16", kind="unreachable", metric=7),
    Route("10.6.0.0/16", kind="prohibit", proto="bird"),
    Route("10.7.0.0/16", nexthops=(("172.18.0.3", "eth0"), ("172.18.0.4", "eth0")), proto="bird"),
    Route("10.8.0.0/16", nexthops=(("9.9.9.3", "eth0"), ("9.9.9.4", "eth0")), onlink=True),
    Route("10.9.0.0/16", "eth0", "172.18.0.3", proto="77"),
    Neighbour("eth0", "172.18.0.1", "02:42:ac:12:00:01"),
    Neighbour("cni0", "10.1.0.5", "0a:58:0a:01:00:05"),
    FdbEntry("flannel.1", "92:b9:4a:a4:ec:99", "172.18.0.3"),
    Sysctl("net.ipv4.ip_forward", "1"),
    Sysctl("net.netfilter.nf_conntrack_tcp_be_liberal", "1"),
]

MAC = "92:b9:4a:a4:ec:99"
REPLACED: list[tuple[Value, Value]] = [
    (Bridge("cni0", "0a:58:0a:01:00:01", 1450), Bridge("cni0", "0a:58:0a:01:00:77", 1400, up=False)),
    (TUNNEL, Vxlan("flannel.1", "92:b9:4a:a4:ec:11", 1400, 1, "172.18.0.2", "eth0", up=False)),
    (TUNNEL, Vxlan("flannel.1", "92:b9:4a:a4:ec:62", 1450, 9, "172.18.0.2", "eth0", 4789)),
    (TUNNEL, OtherLink("flannel.1", "bridge")),
    (Route("default", "eth0", "172.18.0.1"), Route("default", "eth0", "172.18.0.9", mtu=1300)),
    (Route("10.6.0.0/16", kind="blackhole"), Route("10.6.0.0/16", "eth0", "172.18.0.3")),
    (Neighbour("eth0", "172.18.0.1", "02:42:ac:12:00:01"), Neighbour("eth0", "172.18.0.1", "02:42:ac:12:00:02")),
    (FdbEntry("flannel.1", MAC, "172.18.0.3"), FdbEntry("flannel.1", MAC, "172.18.0.4")),
    (Sysctl("net.ipv4.conf.all.rp_filter", "0"), Sysctl("net.ipv4.conf.all.rp_filter", "2")),
    (Loopback(), Loopback(up=False)),
]  # fmt: skip

SAME_VNI = "A VXLAN device with the specified VNI already exists (File exists)"
TOO_LONG = "Attribute failed policy validation (Numerical result out of range)"
DENIED = "Permission denied"

REFUSED: list[tuple[str, Value, str]] = [
    (NODE, Route("10.3.0.0/24", "eth0", "9.9.9.9"), "Nexthop has invalid gateway (Network is unreachable)"),
    (NODE, Route("10.3.0.0/24", "eth7", "172.18.0.3"), "'eth7' is not there"),
    (NODE, Route("10.3.0.0/24", "eth0", src="1.2.3.4"), "Invalid prefsrc address (Invalid argument)"),
    (NODE, Route("10.3.0.1/24", "eth0"), "Invalid prefix for given prefix length (Invalid argument)"),
    (NODE, Address("eth7", "10.0.0.1/24"), "'eth7' is not there"),
    (NODE, Address("eth0", "10.0.0/24"), "illegal IP address string passed to inet_pton"),
    (NODE, Vxlan("flannel.4", "92:b9:4a:a4:ec:65", 1400, 4, "172.18.0.2", "eth7"), "'eth7' is not there"),
    (NODE, Vxlan("flannel.4", "92:b9:4a:a4:ec:65", 1400, 1, "172.18.0.2", "eth0"), SAME_VNI),
    (NODE, BridgePort("eth0", "cni7"), "'cni7' is not there"),
    (NODE, BridgePort("cni0", "cni0"), "Can not enslave a bridge to a bridge (Too many levels of symbolic links)"),
    (NODE, Bridge("a-name-of-17-char", "0a:58:0a:02:00:01"), TOO_LONG),
    (NODE, Bridge("docker0", "0a:58:xy:02:00:01"), "non-hexadecimal number found in fromhex() arg at position 4"),
    (NODE, Veth("veth9", f"{POD}/eth0", "0a:58", 1500), "Invalid argument"),
    (NODE, Veth("veth9", "t.pod.default.nowhere/eth0", MAC), "t.pod.default.nowhere: no such network namespace"),
    (NODE, Sysctl("net.netfilter.nf_conntrack_max", "70000"), "/proc/sys/net/netfilter/nf_conntrack_max: " + DENIED),
    (NODE, Sysctl("net.ipv4.no_such_thing", "1"), "/proc/sys/net/ipv4/no_such_thing: No such file or directory"),
    (NODE, Sysctl("net.ipv4.ip_forward", "01"), "/proc/sys/net/ipv4/ip_forward reads back as '1'"),
    (NODE, OtherLink("dummy0", "dummy"), "nothing here writes a value of kind OtherLink"),
    ("t.node.nowhere", Address("eth0", "10.0.0.1/24"), "no such network namespace"),
]


def words(value: object) -> str:
    """A test's name: the value as a person would type it."""
    return value if isinstance(value, str) else text(value)  # type: ignore[arg-type]


@pytest.fixture
def base() -> Iterator[World]:
    try:
        assert apply(adds(BASE)) == []
        assert observed() == BASE
        yield BASE
    finally:
        assert destroy("t")


def observed(only: dict[str, frozenset[Key]] | None = None) -> World:
    """Without sysctls, which are there whether wanted or not, and without VXLAN's own sockets."""
    found = observe("t", only)
    return {
        name: frozenset(v for v in values if not isinstance(v, Sysctl | Listener)) for name, values in found.items()
    }


def in_node(values: Iterable[Value] = ()) -> frozenset[Value]:
    """What should be seen in the node beside the base."""
    return BASE[NODE] | {value for value in values if not isinstance(value, Sysctl)}


def seen(value: Value) -> Value | None:
    """What the kernel has under the value's key."""
    return next(iter(observe("t", {NODE: frozenset({value.key})})[NODE]), None)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


# --- one value --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("base")
@pytest.mark.parametrize("value", VALUES, ids=words)
def test_applied_is_observed_and_deleted_is_gone(value: Value) -> None:
    assert apply([Change("add", NODE, value)]) == []
    assert seen(value) == value
    assert observed()[NODE] == in_node([value])
    assert apply([Change("add", NODE, value)]) == [], "adding what is there is success"
    assert apply([Change("delete", NODE, value)]) == []
    assert observed() == BASE
    assert apply([Change("delete", NODE, value)]) == [], "deleting what is not there is success"


@pytest.mark.usefixtures("base")
def test_the_route_of_an_address_is_missed_and_made_again() -> None:
    """The kernel makes it with the address, and nobody but a person takes it away."""
    address = Address("cni0", "10.1.0.1/24")
    ip("-n", NODE, "route", "delete", "10.1.0.0/24", "dev", "cni0")
    (change,) = diff(observed(), BASE)
    assert change == Change("replace", NODE, address, Address("cni0", "10.1.0.1/24", routed=False))
    assert apply([change]) == []
    assert observed() == BASE


@pytest.mark.usefixtures("base")
@pytest.mark.parametrize(("old", "new"), REPLACED, ids=words)
def test_replaced(old: Value, new: Value) -> None:
    assert apply([Change("add", NODE, old)]) == []
    if isinstance(new, OtherLink):  # somebody made another device of that name; ours comes back
        ip("-n", NODE, "link", "delete", new.name)
        ip("-n", NODE, "link", "add", new.name, "type", new.kind)
        old, new = new, old
    assert apply([Change("replace", NODE, new, old)]) == []
    assert seen(new) == new


@pytest.mark.usefixtures("base")
@pytest.mark.parametrize(("name", "value", "reason"), REFUSED, ids=words)
def test_refused_with_the_kernels_own_sentence(name: str, value: Value, reason: str) -> None:
    good = Address("cni0", "10.99.0.1/24")
    refusals = apply([Change("add", name, value), Change("add", NODE, good)])
    assert [(refusal.change.value, refusal.reason) for refusal in refusals] == [(value, reason)]
    assert seen(good) == good, "what is refused stops nothing else"


@pytest.mark.usefixtures("base")
def test_a_tunnel_cannot_have_the_mtu_of_what_carries_it() -> None:
    """Made so it is cut to what fits, silently; the second look says so and the second write is refused."""
    wanted = Vxlan("flannel.4", "92:b9:4a:a4:ec:65", 1500, 4, "172.18.0.2", "eth0")
    assert apply([Change("add", NODE, wanted)]) == []
    found = seen(wanted)
    assert found == msgspec.structs.replace(wanted, mtu=1450)
    assert [refusal.reason for refusal in apply([Change("replace", NODE, wanted, found)])] == ["Invalid argument"]


@pytest.mark.usefixtures("base")
def test_deleting_where_no_namespace_is_is_success() -> None:
    gone = "t.node.nowhere"
    assert (
        apply([Change("delete", gone, Address("eth0", "10.0.0.1/24")), Change("delete", gone, Netns("nsnet/t"))]) == []
    )


# --- pairs ------------------------------------------------------------------------------------------------------------

PAIR = pair(f"{NODE}/veth1", "cni0", f"{POD}/eth0", "10.1.0.5/24", 1450)


@pytest.mark.usefixtures("base")
def test_a_pair_is_made_once_from_its_two_ends() -> None:
    assert apply(adds(PAIR)) == []
    assert observed() == merged(BASE, PAIR)
    assert apply(adds(PAIR)) == [], "twice is success"


@pytest.mark.usefixtures("base")
@pytest.mark.parametrize("end", [f"{NODE}/veth1", f"{POD}/eth0"])
def test_one_end_goes_and_the_other_with_it(end: str) -> None:
    name, _, dev = end.partition("/")
    assert apply(adds(PAIR)) == []
    (one,) = (value for value in PAIR[name] if isinstance(value, Veth))
    assert apply([Change("delete", name, one)]) == []
    assert observed() == BASE
    assert dev == one.name


@pytest.mark.usefixtures("base")
@pytest.mark.parametrize(("name", "other"), [(NODE, POD), (POD, NODE)])
def test_one_change_makes_the_whole_pair(name: str, other: str) -> None:
    (one,) = (value for value in PAIR[name] if isinstance(value, Veth))
    assert apply([Change("add", name, one)]) == []
    found = observed()
    assert one in found[name]
    assert f"{name}/{one.name}" in {value.peer for value in found[other] if isinstance(value, Veth)}


@pytest.mark.usefixtures("base")
@pytest.mark.parametrize("damage", [
    f"-n {POD} link set eth0 alias ''",
    f"-n {NODE} link set veth1 alias t.pod.default.other/eth0",
    f"-n {NODE} link set veth1 down; -n {NODE} link set veth1 name veth2",  # Linux < 6.3: only when down
    f"-n {POD} link set eth0 netns {OTHER}",
    f"-n {NODE} link delete veth1",
    f"-n {NODE} link set veth1 nomaster",
    f"-n {POD} link set eth0 down",
    f"netns delete {POD}",
])  # fmt: skip
def test_whatever_is_done_to_a_pair_the_next_look_and_write_heal(damage: str) -> None:
    want = merged(BASE, PAIR)
    assert apply(adds(PAIR)) == []
    for words in damage.split("; "):
        ip(*shlex.split(words))
    rounds = 0
    while changes := diff(observed(), want):
        assert apply(changes) == []
        rounds += 1
        assert rounds < 3
    assert rounds
    assert observed() == want


@pytest.mark.usefixtures("base")
def test_many_links_go_in_one_wait_of_the_kernel() -> None:
    """Each alone costs the kernel 20 ms (an RCU grace period)."""
    bridges = [Bridge(f"b{number}", f"0a:58:0a:03:00:{number:02x}") for number in range(100)]
    assert apply([Change("add", NODE, bridge) for bridge in bridges]) == []
    assert observed()[NODE] == in_node(bridges)
    assert apply([Change("delete", NODE, bridge) for bridge in bridges]) == []
    assert observed() == BASE


# --- the whole --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_changes_does_not_matter(seed: int) -> None:
    want = cluster("t", 2, 3)
    changes = adds(want)
    random.Random(seed).shuffle(changes)
    assert apply(changes) == []
    try:
        assert diff(observe("t"), want) == []
    finally:
        assert destroy("t")


def test_pods_of_two_nodes_talk_over_the_overlay() -> None:
    want = cluster("t", 2, 2)
    assert apply(adds(want)) == []
    try:
        for asker, answerer in (((1, 0), (1, 1)), ((1, 0), (2, 1)), ((2, 0), (1, 0))):
            assert says(asker, answerer) == (b"hello", address_of(*asker))
        assert diff(observe("t"), want) == [], "what packets make the kernel learn is no drift"
    finally:
        assert destroy("t")


def says(asker: tuple[int, int], answerer: tuple[int, int]) -> tuple[bytes, str]:
    """One datagram from pod to pod: what arrives, and the address it comes from."""
    pods = [names.pod_netns("t", "default", f"p{node}-{pod}") for node, pod in (asker, answerer)]
    with netns.inside(pods[1]):
        listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with netns.inside(pods[0]):
        asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with listening, asking:
        listening.bind(("0.0.0.0", 5000))
        listening.settimeout(5)
        asking.sendto(b"hello", (address_of(*answerer), 5000))
        said, (address, _) = listening.recvfrom(100)
    return said, address


def test_changes_of_pods_come_and_go() -> None:
    one, two = cluster("t", 2, 8), cluster("t", 2, 3)
    try:
        for want in (one, two, one, {}):
            changes = diff(observe("t"), want)
            assert apply(changes) == []
            assert diff(observe("t"), want) == []
            assert changes
    finally:
        assert destroy("t")


# --- whose is it, and how much of it ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("base")
def test_a_namespace_without_the_mark_is_not_there_and_not_touched() -> None:
    theirs = "t.pod.default.theirs"
    ip("netns", "add", theirs)
    try:
        assert theirs not in observe("t")
        refusals = apply(
            [
                *adds(namespace(theirs, Bridge("br0", "02:00:00:00:00:01"))),
                Change("add", POD, Bridge("br0", "02:00:00:00:00:01")),
            ]
        )
        assert {refusal.change.netns for refusal in refusals} == {theirs}
        assert "does not bear" in refusals[0].reason
        refusals = apply([Change("delete", theirs, Netns("nsnet/t")), Change("delete", theirs, Loopback())])
        assert [refusal.reason for refusal in refusals] == ["the namespace does not bear the cluster's mark"]
        shown = subprocess.run(["ip", "-n", theirs, "-br", "link"], check=True, capture_output=True, text=True).stdout
        assert shown.split()[:2] == ["lo", "DOWN"]
        assert "br0" not in shown
        assert destroy("t")
        assert netns.candidates("t") == [theirs]
    finally:
        ip("netns", "delete", theirs)


@pytest.mark.usefixtures("base")
def test_a_look_limited_to_keys_sees_those_and_no_others() -> None:
    assert apply(adds(PAIR)) == []
    whole = observe("t")
    for name, values in whole.items():
        assert observe("t", {name: frozenset()}) == {name: values}, "no keys: the whole namespace"
        for value in values:
            assert observe("t", {name: frozenset({value.key})}) == {name: frozenset({value})}
    kinds = {value.key[0] for values in whole.values() for value in values}
    for kind in kinds:
        expected = {value for value in whole[NODE] if value.key[0] == kind}
        assert observe("t", {NODE: frozenset({(kind,)})}) == {NODE: expected}, "a key of one word: all of that kind"
    assert observe("t", {}) == {}
    assert observe("t", {"t.node.nowhere": frozenset()}) == {}


@pytest.mark.usefixtures("base")
def test_who_listens_is_asked_of_the_kernel() -> None:
    def listeners() -> set[tuple[str, str, int]]:
        found = observe("t", {NODE: frozenset({("listener",)})})[NODE]
        heard = (value for value in found if isinstance(value, Listener) and value.port != 8472)  # VXLAN's own
        return {(value.protocol, value.address, value.port) for value in heard}

    with netns.inside(NODE):
        tcp, udp = socket.create_server(("0.0.0.0", 80)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        tcp6 = socket.create_server(("::", 8080), family=socket.AF_INET6)
    with tcp, udp, tcp6:
        udp.bind(("127.0.0.1", 53))
        with netns.inside(NODE), socket.create_connection(("127.0.0.1", 80)):
            expected = {("TCP", "0.0.0.0", 80), ("UDP", "127.0.0.1", 53), ("TCP", "::", 8080)}
            assert listeners() == expected, "a connection is no listener"
    assert listeners() == set()


@pytest.mark.usefixtures("base")
def test_iptables_is_only_read_where_there_are_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    from nsnet.kernel import iptables

    read: list[str] = []
    original = iptables.read

    def noted(name: str, only: frozenset[tuple[str, str]] | None, families: Sequence[Family]) -> object:
        read.extend(f"{name} {family}" for family in families)
        return original(name, only, families)

    monkeypatch.setattr(iptables, "read", noted)
    observe("t")
    assert read == []
    subprocess.run(["ip", "netns", "exec", NODE, "iptables", "-t", "nat", "-N", "X"], check=True)
    assert [value.key for value in observe("t")[NODE] if value.key[0] == "chain"] == [("chain", "ip", "nat", "X")]
    assert read == [f"{NODE} ip"]  # and not ip6tables, which has none
    subprocess.run(["ip", "netns", "exec", NODE, "ip6tables", "-t", "nat", "-N", "Y"], check=True)
    assert {value.key for value in observe("t")[NODE] if value.key[0] == "chain"} == {
        ("chain", "ip", "nat", "X"),
        ("chain", "ip6", "nat", "Y"),
    }
