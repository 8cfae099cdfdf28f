"""Objects → wanted state, in tables: one behaviour per row, in `ip` and `iptables` words."""

from collections.abc import Callable, Sequence

import msgspec
import pytest

from nsnet import model, names, state
from nsnet.diff import touched
from nsnet.errors import ObjectError
from nsnet.model import Backend, LinkSpec, Network
from nsnet.render import render
from nsnet.render.view import masked
from nsnet.state import Bridge, BridgePort, Chain, File, Netns, Process, State, Value, Veth, Vxlan
from tests.built import Place, built, pod
from tests.structure import faults

TWO = {"node1": Place(pods=["a", "b"]), "node2": Place(pods=["c"])}
RACKS = {"a1": Place("rack-a"), "a2": Place("rack-a"), "b1": Place("rack-b")}
NETWORKS = (
    Network("rack-a", "172.18.1.0/24"),
    Network("rack-b", "172.18.2.0/24", mtu=1400),
    Network("outside", "203.0.113.0/24"),
)
DIRECT = Backend(DirectRouting=True)
HOST_GW = Backend("host-gw")


def lines(want: State, netns: str, *kinds: type[Value]) -> set[str]:
    """The values of these kinds in a namespace, as words."""
    return {line for value in want[f"demo.{netns}"] if isinstance(value, kinds) for line in state.words(value)}


def of(want: State, netns: str, kind: type[Value], word: str) -> set[str]:
    """The lines of one kind that have this word in them."""
    return {line for line in lines(want, netns, kind) if word in line}


# --- every rendered state ---------------------------------------------------------------------------------------------

MANY: dict[str, Callable[[], dict[model.Key, model.Object]]] = {
    "two nodes": lambda: built(TWO, services={"web": "10.96.0.20"}),
    "one node without pods": lambda: built({"node1": Place()}),
    "host-gw": lambda: built(TWO, backend=HOST_GW),
    "racks": lambda: built(RACKS, networks=NETWORKS, backend=DIRECT),
    "host-gw over racks": lambda: built(RACKS, networks=NETWORKS, backend=HOST_GW),
    "docker0, VNI 7": lambda: built(TWO, bridge="docker0", backend=Backend(VNI=7, Port=4789)),
    "further addresses": lambda: built({"node1": Place(more=["172.18.0.77", "192.168.1.2"]), "node2": Place()}),
    "long names": lambda: built(
        {"ip-10-0-0-1-of-a-far-region": Place("a-network-with-a-long-name", pods=["p" * 60])},
        networks=(Network("a-network-with-a-long-name", "10.7.0.0/16"), Network("lo", "10.8.0.0/16")),
    ),
    "a service without pods": lambda: built({"node1": Place()}, services={"web": "10.96.0.20"}),
}


@pytest.mark.parametrize("name", MANY)
def test_structure(name: str) -> None:
    assert faults(render(MANY[name]())) == []


def test_the_structure_test_finds_faults() -> None:
    """Each kind of fault it looks for, put into a good state."""
    good = render(MANY["two nodes"]())
    node, switch = "demo.node.node1", "demo.fabric.nodes"
    bad: list[tuple[str, State]] = [
        ("stands twice", _with(good, node, Chain("nat", "KUBE-MARK-MASQ"))),
        ("is never made", _without(good, node, Netns)),
        ("jumps to GONE", _with(good, node, Chain("raw", "PREROUTING", ("-j GONE",), "ACCEPT"))),
        ("nobody jumps to nat LEFT", _with(good, node, Chain("nat", "LEFT"))),
        ("wanted or read, not both", _with(good, switch, state.Sysctl("net.ipv4.conf.all.rp_filter", "0"))),
        ("needs {'eth7'}", _with(good, node, state.Neighbour("eth7", "1.2.3.4", "02:00:00:00:00:01"))),
        ("is not reached on eth0", _with(good, node, state.Route("10.9.0.0/16", "eth0", "10.8.0.1"))),
        ("too long for an interface", _with(good, switch, Bridge("b" * 16, "02:00:00:00:00:01"))),
        ("has no peer", _with(good, switch, Veth("v", "demo.node.node1/eth9", "02:00:00:00:00:01"))),
        ("exactly one should be a bridge port", _without(good, switch, BridgePort)),
    ]
    for sentence, want in bad:
        assert any(sentence in fault for fault in faults(want)), sentence


def _with(want: State, netns: str, value: Value) -> State:
    return {**want, netns: want[netns] | {value}}


def _without(want: State, netns: str, kind: type[Value]) -> State:
    return {**want, netns: frozenset(value for value in want[netns] if not isinstance(value, kind))}


# --- underlay ---------------------------------------------------------------------------------------------------------


def test_node_on_the_underlay() -> None:
    want = render(built(TWO))
    assert lines(want, "node.node1", state.Route) == {
        "ip route replace default via 172.18.0.1 dev eth0",
        "ip route replace 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink",
    }
    assert of(want, "node.node1", state.Neighbour, "eth0") == {
        "ip neighbour replace 172.18.0.1 lladdr 02:42:ac:12:00:01 dev eth0 nud permanent",
        "ip neighbour replace 172.18.0.3 lladdr 02:42:ac:12:00:03 dev eth0 nud permanent",
    }


def test_router_knows_nodes_and_hosts_and_no_pods() -> None:
    want = render(built(TWO))
    assert lines(want, "fabric.router", state.Address) == {
        "ip address add 172.18.0.1/16 dev nodes",
        "ip address add 203.0.113.1/24 dev outside",
    }
    assert lines(want, "fabric.router", state.Route) == set()
    assert {line.split()[3] for line in lines(want, "fabric.router", state.Neighbour)} == {
        "172.18.0.2", "172.18.0.3", "203.0.113.2",
    }  # fmt: skip


def test_host_outside_has_one_way() -> None:
    want = render(built(TWO))
    assert lines(want, "host.client", state.Address, state.Route) == {
        "ip address add 203.0.113.2/24 dev eth0",
        "ip route replace default via 203.0.113.1 dev eth0",
    }


def test_further_addresses() -> None:
    """One in the network is on the link; one from elsewhere is behind the node, and the router has a route to it."""
    want = render(built({"node1": Place(more=["172.18.0.77", "192.168.1.2"]), "node2": Place()}))
    assert of(want, "node.node1", state.Address, "eth0") == {
        "ip address add 172.18.0.2/16 dev eth0",
        "ip address add 172.18.0.77/16 dev eth0",
        "ip address add 192.168.1.2/32 dev eth0",
    }
    assert lines(want, "fabric.router", state.Route) == {"ip route replace 192.168.1.2/32 via 172.18.0.2 dev nodes"}
    assert of(want, "node.node2", state.Neighbour, "172.18.0.77") == {
        "ip neighbour replace 172.18.0.77 lladdr 02:42:ac:12:00:02 dev eth0 nud permanent"
    }


MTUS: list[tuple[str, Backend, Sequence[LinkSpec], tuple[int, int, int]]] = [
    # eth0 of node1, its bridge and pods, eth0 of node2
    ("vxlan takes 50", Backend(), (), (1500, 1450, 1500)),
    ("host-gw nothing", HOST_GW, (), (1500, 1500, 1500)),
    ("said in the backend", Backend(MTU=1400), (), (1500, 1350, 1500)),
    ("a link that is smaller", Backend(), [LinkSpec(("node1", "nodes"), mtu=1400)], (1400, 1350, 1500)),
    ("named the other way round", Backend(), [LinkSpec(("nodes", "node1"), mtu=1400)], (1400, 1350, 1500)),
]


@pytest.mark.parametrize(("backend", "links", "expected"), [row[1:] for row in MTUS], ids=[row[0] for row in MTUS])
def test_mtu(backend: Backend, links: Sequence[LinkSpec], expected: tuple[int, int, int]) -> None:
    want = render(built(TWO, backend=backend, links=links))
    found = {
        (netns, value.name): value.mtu
        for netns, values in want.items()
        for value in values
        if isinstance(value, Veth | Bridge)
    }
    outer, inner, other = expected
    assert found["demo.node.node1", "eth0"] == found["demo.fabric.nodes", "node-node1"] == outer
    assert found["demo.node.node1", "cni0"] == found["demo.pod.default.a", "eth0"] == inner
    assert found["demo.node.node2", "eth0"] == other
    assert f"FLANNEL_MTU={inner}\n" in _file(want, "node.node1", "subnet.env")


def _file(want: State, netns: str, name: str) -> str:
    files = (value for value in want[f"demo.{netns}"] if isinstance(value, File))
    (content,) = (file.content for file in files if file.path.endswith(f"/{name}"))
    return content


# --- CNI --------------------------------------------------------------------------------------------------------------


def test_pod() -> None:
    want = render(built(TWO))
    device = names.veth("default/a")
    assert lines(want, "pod.default.a", *_all_kinds()) == {
        "ip link set lo alias nsnet/demo",
        "ip link set lo up",
        f"ip link add eth0 address 0a:58:0a:f4:01:02 mtu 1450 type veth peer name {device} netns demo.node.node1",
        "ip link set eth0 up",
        "ip address add 10.244.1.2/24 dev eth0",
        "ip neighbour replace 10.244.1.1 lladdr 0a:58:0a:f4:01:01 dev eth0 nud permanent",
        "ip route replace 10.244.0.0/16 via 10.244.1.1 dev eth0",
        "ip route replace default via 10.244.1.1 dev eth0",
    }
    on_node = {line for line in lines(want, "node.node1", *_all_kinds()) if device in line or "10.244.1.2 " in line}
    mac = names.hashed_mac("default/a")
    assert on_node == {
        f"ip link add {device} address {mac} mtu 1450 type veth peer name eth0 netns demo.pod.default.a",
        f"ip link set {device} up",
        f"ip link set {device} master cni0",
        f"bridge link set dev {device} hairpin on",
        "ip neighbour replace 10.244.1.2 lladdr 0a:58:0a:f4:01:02 dev cni0 nud permanent",
    }


def _all_kinds() -> tuple[type[Value], ...]:
    return (Netns, state.Loopback, Veth, BridgePort, state.Address, state.Neighbour, state.Route)


def test_the_bridge_has_the_name_it_is_given() -> None:
    want = render(built(TWO, bridge="docker0"))
    assert lines(want, "node.node2", Bridge) == {
        "ip link add docker0 address 0a:58:0a:f4:02:01 mtu 1450 type bridge",
        "ip link set docker0 up",
    }


WITHOUT = [
    ("not placed", {"spec": model.PodSpec()}),
    ("no address yet", {"status": model.PodStatus("Pending")}),
    ("has ended", {"status": model.PodStatus("Succeeded", "10.244.1.9")}),
    ("in the node's own network", {"spec": model.PodSpec(nodeName="node1", hostNetwork=True)}),
]


@pytest.mark.parametrize("fields", [row[1] for row in WITHOUT], ids=[row[0] for row in WITHOUT])
def test_pods_without_a_namespace_of_their_own(fields: dict[str, object]) -> None:
    objects = built(TWO)
    plain = render(objects)
    extra = msgspec.structs.replace(pod("x", "node1", "10.244.1.9"), **fields)
    assert render({**objects, model.key_of(extra): extra}).keys() == plain.keys()


# --- flannel ----------------------------------------------------------------------------------------------------------


def test_vxlan() -> None:
    """Facts: FLANNEL.md §5."""
    want = render(built(TWO))
    own, other = names.vtep_mac("demo", "node1", 1), names.vtep_mac("demo", "node2", 1)
    made = f"ip link add flannel.1 address {own} mtu 1450 type vxlan"
    assert lines(want, "node.node1", Vxlan) == {
        f"{made} id 1 local 172.18.0.2 dev eth0 dstport 8472 nolearning",
        "ip link set flannel.1 up",
    }
    flannels = lines(want, "node.node1", state.Address, state.Neighbour, state.FdbEntry, state.Route)
    assert {line for line in flannels if "flannel.1" in line} == {
        "ip address add 10.244.1.0/32 dev flannel.1",
        f"ip neighbour replace 10.244.2.0 lladdr {other} dev flannel.1 nud permanent",
        f"bridge fdb replace {other} dev flannel.1 dst 172.18.0.3 self permanent",
        "ip route replace 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink",
    }


BACKENDS = [
    (
        "vxlan goes everywhere through the tunnel",
        Backend(),
        {"10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink", "10.244.3.0/24 via 10.244.3.0 dev flannel.1 onlink"},
    ),
    (
        "DirectRouting goes straight where it can",
        DIRECT,
        {"10.244.2.0/24 via 172.18.1.3 dev eth0", "10.244.3.0/24 via 10.244.3.0 dev flannel.1 onlink"},
    ),
    (
        "host-gw cannot cross the router: the kernel would refuse that gateway",
        HOST_GW,
        {"10.244.2.0/24 via 172.18.1.3 dev eth0"},
    ),
]


@pytest.mark.parametrize(("backend", "routes"), [row[1:] for row in BACKENDS], ids=[row[0] for row in BACKENDS])
def test_routes_between_racks(backend: Backend, routes: set[str]) -> None:
    want = render(built(RACKS, networks=NETWORKS, backend=backend))
    found = {line.removeprefix("ip route replace ") for line in of(want, "node.a1", state.Route, "10.244.")}
    assert found == routes
    assert bool(lines(want, "node.a1", Vxlan)) == (backend.Type == "vxlan")


def test_a_lease_of_another_backend_is_skipped() -> None:
    objects = built(TWO)
    key = model.Key("SubnetLease", "", "10.244.2.0-24")
    lease = objects[key]
    assert isinstance(lease, model.SubnetLease)
    want = render({**objects, key: msgspec.structs.replace(lease, BackendType="host-gw", BackendData=None)})
    assert of(want, "node.node1", state.Route, "10.244.2.0") == set()


def test_nothing_of_the_overlay_stands_before_the_node_has_its_lease() -> None:
    objects = built(TWO)
    want = render({key: obj for key, obj in objects.items() if key.name != "10.244.1.0-24"})
    assert lines(want, "node.node1", Vxlan, state.FdbEntry) == set()


def test_flannels_rules_come_after_kube_proxys() -> None:
    want = render(built(TWO))
    chains = {(v.table, v.name): v.rules for v in want["demo.node.node1"] if isinstance(v, Chain)}
    masq, forward = '-m comment --comment "flanneld masq"', '-m comment --comment "flanneld forward"'
    assert [rule.rpartition(" ")[2] for rule in chains["nat", "POSTROUTING"]] == ["KUBE-POSTROUTING", "FLANNEL-POSTRTG"]
    assert chains["filter", "FORWARD"][-1] == f"{forward} -j FLANNEL-FWD"
    assert chains["nat", "FLANNEL-POSTRTG"] == (
        f"-m mark --mark 0x4000/0x4000 {masq} -j RETURN",
        f"-s 10.244.1.0/24 -d 10.244.0.0/16 {masq} -j RETURN",
        f"-s 10.244.0.0/16 -d 10.244.1.0/24 {masq} -j RETURN",
        f"! -s 10.244.0.0/16 -d 10.244.1.0/24 {masq} -j RETURN",
        f"-s 10.244.0.0/16 ! -d 224.0.0.0/4 {masq} -j MASQUERADE --random-fully",
        f"! -s 10.244.0.0/16 -d 10.244.0.0/16 {masq} -j MASQUERADE --random-fully",
    )
    assert chains["filter", "FLANNEL-FWD"] == (
        f"-s 10.244.0.0/16 {forward} -j ACCEPT",
        f"-d 10.244.0.0/16 {forward} -j ACCEPT",
    )


def test_without_ip_masq() -> None:
    objects = built(TWO)
    cluster = model.cluster_of(objects)
    off = msgspec.structs.replace(cluster, flannel=msgspec.structs.replace(cluster.flannel, ipMasq=False))
    want = render({**objects, model.key_of(off): off})
    assert of(want, "node.node1", Chain, "FLANNEL-POSTRTG") == set()
    assert "FLANNEL_IPMASQ=false\n" in _file(want, "node.node1", "subnet.env")
    assert faults(want) == []


def test_subnet_env() -> None:
    want = render(built(TWO))
    files = (value for value in want["demo.node.node2"] if isinstance(value, File))
    (file,) = (file for file in files if file.path.startswith("/run/"))
    assert file == File(
        "/run/nsnet/demo/node.node2/flannel/subnet.env",
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.2.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
        0o644,
    )


# --- programs ---------------------------------------------------------------------------------------------------------


def test_pod_server() -> None:
    objects = built({"node1": Place(pods=["b", "a"])})
    host = pod("host", "node1", "172.18.0.2", port=9100, host_network=True)
    want = render({**objects, model.key_of(host): host})
    path = "/run/nsnet/demo/podserver.json"
    argvs = [value.argv[1:] for value in want["demo.fabric.router"] if isinstance(value, Process)]
    assert ("-m", "nsnet.programs.podserver", path) in argvs
    told = msgspec.json.decode(_file(want, "fabric.router", "podserver.json"))
    common = {"namespace": "default", "node": "node1", "udp": []}
    assert told == {"pods": [
        {**common, "netns": "demo.pod.default.a", "pod": "a", "ip": "10.244.1.3", "hostname": "a", "tcp": [80]},
        {**common, "netns": "demo.pod.default.b", "pod": "b", "ip": "10.244.1.2", "hostname": "b", "tcp": [80]},
        {**common, "netns": "demo.node.node1", "pod": "host", "ip": "172.18.0.2", "hostname": "node1", "tcp": [9100]},
    ]}  # fmt: skip


def test_a_pod_that_declares_no_port_serves_what_services_target() -> None:
    objects = built({"node1": Place(pods=["a"])}, services={"web": "10.96.0.20"})
    bare = msgspec.structs.replace(pod("a", "node1", "10.244.1.2"), spec=model.PodSpec(nodeName="node1"))
    want = render({**objects, model.key_of(bare): bare})
    (told,) = msgspec.json.decode(_file(want, "fabric.router", "podserver.json"))["pods"]
    assert told["tcp"] == [80]


# --- what is not built, and speed -------------------------------------------------------------------------------------

NOT_BUILT = [
    ({"flannel": model.Flannel(Backend=Backend("alloc"))}, "flannel.Backend.Type: there is no backend alloc here"),
]


@pytest.mark.parametrize(("fields", "sentence"), NOT_BUILT)
def test_what_is_not_built_is_refused(fields: dict[str, object], sentence: str) -> None:
    objects = built({"a1": Place("rack-a")}, networks=NETWORKS)
    cluster = msgspec.structs.replace(model.cluster_of(objects), **fields)
    with pytest.raises(ObjectError) as refused:
        render({**objects, model.key_of(cluster): cluster})
    assert sentence in str(refused.value)
    assert refused.value.hint


LOST = "-m statistic --mode random --probability 0.00999999978 -j DROP"
LINK = LinkSpec(("node1", "nodes"), delay="5ms", loss="1%", rate="100mbit")
IMPAIRED = {
    "netem": (
        ["tc qdisc replace dev eth0 root netem limit 10000 delay 5000us loss 1% rate 100000000bit"],
        ["tc qdisc replace dev node-node1 root netem limit 10000 delay 5000us loss 1% rate 100000000bit"],
    ),
    "plain": (  # without the delay, which `up` refuses there
        [
            f"iptables -t mangle -P POSTROUTING ACCEPT; iptables -t mangle -A POSTROUTING -o eth0 {LOST}",
            f"iptables -t mangle -P PREROUTING ACCEPT; iptables -t mangle -A PREROUTING -i eth0 {LOST}",
            "tc qdisc replace dev eth0 root tbf rate 100000000bit burst 125000 latency 50ms",
        ],
        ["tc qdisc replace dev node-node1 root tbf rate 100000000bit burst 125000 latency 50ms"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("by", IMPAIRED)
def test_a_link_is_impaired_each_way(by: str) -> None:
    link = LINK if by == "netem" else msgspec.structs.replace(LINK, delay="")
    objects = built(TWO, links=[link])
    cluster = model.cluster_of(objects)
    meta = msgspec.structs.replace(cluster.metadata, annotations={model.IMPAIRED_BY: by})
    told = {**objects, model.key_of(cluster): msgspec.structs.replace(cluster, metadata=meta)}
    healthy, found = render(built(TWO)), render(told)
    places = ("demo.node.node1", "demo.fabric.nodes")
    near, far = (sorted(map(state.text, found[place] - healthy[place])) for place in places)
    assert (near, far) == IMPAIRED[by]


def test_a_second_render_makes_nothing_of_the_unchanged_pods_again() -> None:
    objects = built(TWO)
    first = render(objects)
    new = pod("new", "node2", "10.244.2.9")
    second = render({**objects, model.key_of(new): new})
    assert all(second[f"demo.pod.default.{name}"] is first[f"demo.pod.default.{name}"] for name in ("a", "b", "c"))
    assert {netns: len(keys) for netns, keys in touched(first, second).items()} == {
        "demo.pod.default.new": 0,  # whole
        "demo.node.node2": 3,  # its veth, its place on the bridge, its neighbour entry
        "demo.fabric.router": 1,  # the pod server's file
    }


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("10.244.0.0/16", ("10.244.0.0/16",)),
        ("10.244.7.9/16", ("10.244.0.0/16",)),
        ("fd00::/56, 10.1.0.0/16", ("fd00::/56", "10.1.0.0/16")),
        ("", ()),
    ],
)
def test_masked(said: str, expected: tuple[str, ...]) -> None:
    assert masked(said) == expected
