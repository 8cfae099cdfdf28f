"""flannel's backends as objects and as wanted values: leases, keys, MTUs, what a family or a mode makes of them.

The whole texts of a node stand in tests/golden/topologies (by-hand-ipip-racks, by-hand-udp, by-hand-wireguard).
"""

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from nsnet import control, manifests, model, names
from nsnet.control import Facts
from nsnet.errors import ObjectError
from nsnet.kernel import demands
from nsnet.model import Objects
from nsnet.render import render
from nsnet.state import (
    OFFLOADS,
    Address,
    Bridge,
    File,
    Ipip,
    Offload,
    Route,
    State,
    Sysctl,
    Tun,
    Value,
    Wireguard,
    WireguardKey,
    WireguardPeer,
    text,
)
from nsnet.store import keys as store_keys

FOUR, BOTH, SIX = "10.244.0.0/16", "10.244.0.0/16,fd00:10:244::/56", "fd00:10:244::/56"
NODE1 = names.node_netns("demo", "node1")


def cluster(backend: dict[str, object], subnets: str = FOUR, more: str = "") -> str:
    head = "apiVersion: nsnet/v1\nkind: Cluster\nmetadata: {name: demo}\n"
    return f'{head}networking: {{podSubnet: "{subnets}"}}\nflannel: {{Backend: {json.dumps(backend)}}}\n{more}'


def completed(document: str, facts: Facts | None = None, stored: Objects | None = None) -> Objects:
    loaded = manifests.load([manifests.Source("topo.yaml", document.encode())], None)
    return control.complete(control.admit(stored or {}, loaded.objects, whole=True), facts)


def on_node1(state: State, *kinds: type[Value]) -> list[Value]:
    return sorted((value for value in state[NODE1] if isinstance(value, kinds)), key=text)


def leases(objects: Objects) -> dict[str, model.SubnetLease]:
    return {lease.metadata.name: lease for lease in model.of(objects, model.SubnetLease)}


def keys(objects: Objects) -> set[str]:
    """The public keys of all leases."""
    return {(lease.BackendData or {})["PublicKey"] for lease in leases(objects).values()}


# --- what is refused --------------------------------------------------------------------------------------------------

REFUSED = [
    ({"Type": "ipip"}, BOTH, "flannel.Backend.Type", "ipip carries IPv4 alone"),
    ({"Type": "udp"}, SIX, "flannel.Backend.Type", "udp carries IPv4 alone"),
    ({"Type": "wireguard", "Mode": "ipv6"}, FOUR, "flannel.Backend.Mode", "ipv6 is not a family of"),
    ({"Type": "wireguard", "Mode": "ipv4"}, SIX, "flannel.Backend.Mode", "ipv4 is not a family of"),
]


@pytest.mark.parametrize(("backend", "subnets", "field", "sentence"), REFUSED)
def test_a_family_that_a_backend_does_not_carry_is_refused(
    backend: dict[str, object], subnets: str, field: str, sentence: str
) -> None:
    with pytest.raises(ObjectError) as refused:
        completed(cluster(backend, subnets))
    assert f"{field}: " in str(refused.value)
    assert sentence in str(refused.value)
    assert refused.value.hint


# --- devices and routes -----------------------------------------------------------------------------------------------

DEVICES = [
    ({"Type": "ipip"}, FOUR, ["ip link add flannel.ipip mtu 1480 type ipip local 172.18.0.2 nopmtudisc"], 1480),
    ({"Type": "udp"}, FOUR, ["ip tuntap add dev flannel0 mode tun"], 1472),
    ({"Type": "wireguard"}, FOUR, ["ip link add flannel-wg mtu 1420 type wireguard"], 1420),
    (
        {"Type": "wireguard"}, BOTH,
        ["ip link add flannel-wg mtu 1420 type wireguard", "ip link add flannel-wg-v6 mtu 1420 type wireguard"], 1420,
    ),
    ({"Type": "wireguard", "Mode": "auto"}, BOTH, ["ip link add flannel-wg mtu 1420 type wireguard"], 1420),
    ({"Type": "wireguard"}, SIX, ["ip link add flannel-wg-v6 mtu 1420 type wireguard"], 1420),
]  # fmt: skip


@pytest.mark.parametrize(("backend", "subnets", "devices", "mtu"), DEVICES)
def test_devices_bear_the_subnets_first_address_and_pods_have_their_mtu(
    backend: dict[str, object], subnets: str, devices: list[str], mtu: int
) -> None:
    state = render(completed(cluster(backend, subnets)))
    found = on_node1(state, Ipip, Tun, Wireguard)
    assert [text(value).partition(";")[0] for value in found] == devices
    (bridge,) = on_node1(state, Bridge)
    assert isinstance(bridge, Bridge)
    assert bridge.mtu == mtu
    on_flannel = [value for value in on_node1(state, Address) if isinstance(value, Address) and "flannel" in value.dev]
    assert {value.cidr for value in on_flannel} == {
        f"{cidr.partition('/')[0]}/{128 if ':' in cidr else 32}" for cidr in _subnets_of_node1(subnets)
    }
    (env,) = [value for value in on_node1(state, File) if isinstance(value, File) and value.path.endswith("subnet.env")]
    assert f"FLANNEL_MTU={mtu}" in env.content


def _subnets_of_node1(subnets: str) -> list[str]:
    known = {FOUR: "10.244.1.0/24", SIX: "fd00:10:244:1::/64"}
    return [known[subnet] for subnet in subnets.split(",")]


def test_udp_and_wireguard_have_the_route_to_all_pods() -> None:
    for backend, dev, scope in (("udp", "flannel0", "global"), ("wireguard", "flannel-wg", "")):
        routes = on_node1(render(completed(cluster({"Type": backend}))), Route)
        assert Route("10.244.0.0/16", dev, scope=scope) in routes
        assert not [value for value in routes if isinstance(value, Route) and value.dst == "10.244.2.0/24"]


# --- wireguard --------------------------------------------------------------------------------------------------------

MODES = [
    ("separate", BOTH, {"172.18.0.3:51820": ("10.244.2.0/24",), "V6:51821": ("fd00:10:244:2::/64",)}),
    ("auto", BOTH, {"172.18.0.3:51820": ("10.244.2.0/24", "fd00:10:244:2::/64")}),
    ("ipv4", BOTH, {"172.18.0.3:51820": ("10.244.2.0/24", "fd00:10:244:2::/64")}),
    ("ipv6", BOTH, {"V6:51820": ("10.244.2.0/24", "fd00:10:244:2::/64")}),
    ("auto", SIX, {"V6:51820": ("fd00:10:244:2::/64",)}),
]


@pytest.mark.parametrize(("mode", "subnets", "peers"), MODES)
def test_a_mode_says_which_address_peers_send_to(mode: str, subnets: str, peers: dict[str, tuple[str, ...]]) -> None:
    objects = completed(cluster({"Type": "wireguard", "Mode": mode}, subnets))
    node2 = next(node for node in model.of(objects, model.Node) if node.metadata.name == "node2")
    six = next((ip for ip in model.internal_ips(node2) if ":" in ip), "")
    found = [value for value in render(objects)[NODE1] if isinstance(value, WireguardPeer)]
    assert {value.endpoint: value.allowed_ips for value in found} == {
        endpoint.replace("V6", f"[{six}]"): ranges for endpoint, ranges in peers.items()
    }


def test_leases_bear_the_public_half_of_a_key_that_is_kept() -> None:
    document = cluster({"Type": "wireguard"})
    first = completed(document, Facts(entropy=b"one"))
    again = completed(document, Facts(entropy=b"two"), first)
    assert leases(again) == leases(first)
    other = completed(document, Facts(entropy=b"two"))
    public = keys(first)
    assert public.isdisjoint(keys(other))
    state = render(first)
    for netns in (NODE1, names.node_netns("demo", "node2")):
        (key,) = [value for value in state[netns] if isinstance(value, WireguardKey)]
        (file,) = [value for value in state[netns] if isinstance(value, File) and value.path == key.key_file]
        private = X25519PrivateKey.from_private_bytes(base64.b64decode(file.content))
        assert base64.b64encode(private.public_key().public_bytes_raw()).decode() == key.public_key
        assert key.public_key in public
        assert file.mode == 0o400


WG_SECRET = (
    "---\napiVersion: v1\nkind: Secret\nmetadata: {name: wgkey-node1, namespace: kube-flannel}\ndata: {wgkey: %s}\n"
)
WG_PUBLIC = "j0DFrbaPJWJK5bIU6nZ6bslNgp09e14a0bpvPiE4KF8="


@pytest.mark.parametrize(
    ("backend", "subnets", "record"),
    [
        (
            {"Type": "vxlan", "VNI": 7, "Port": 4789},
            FOUR,
            '"BackendType":"vxlan","BackendData":{"VNI":7,"VtepMAC":"1e:73:4f:43:de:6a"}}',
        ),
        (
            {"Type": "vxlan", "DirectRouting": True},
            BOTH,
            (
                '"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"f2:34:c4:a1:43:ca"},'
                '"BackendV6Data":{"VNI":1,"VtepMAC":"fe:60:b1:1f:6e:6b"}}'
            ),
        ),
        ({"Type": "host-gw"}, FOUR, '"BackendType":"host-gw"}'),
        ({"Type": "host-gw"}, BOTH, '"BackendType":"host-gw"}'),
        ({"Type": "ipip", "DirectRouting": True}, FOUR, '"BackendType":"ipip"}'),
        ({"Type": "udp", "Port": 9000}, FOUR, "}"),
        ({"Type": "wireguard"}, FOUR, f'"BackendType":"wireguard","BackendData":{{"PublicKey":"{WG_PUBLIC}"}}}}'),
        (
            {"Type": "wireguard", "Mode": "auto"},
            BOTH,
            (
                f'"BackendType":"wireguard","BackendData":{{"PublicKey":"{WG_PUBLIC}"}},'
                f'"BackendV6Data":{{"PublicKey":"{WG_PUBLIC}"}}}}'
            ),
        ),
    ],
)
def test_a_lease_is_byte_for_byte_what_the_backend_writes(
    backend: dict[str, object], subnets: str, record: str
) -> None:
    """flannel's `LeaseAttrs` as each backend fills them: udp's code gives no type."""
    private = base64.b64encode(base64.b64encode(bytes(range(32)))).decode()
    more = WG_SECRET % private if backend["Type"] == "wireguard" else ""
    objects = completed(cluster(backend, subnets, more))
    lease = next(item for name, item in leases(objects).items() if name.startswith("10.244.1.0-24"))
    six = '"fd00:172:18::2"' if subnets == BOTH else "null"
    head, _, tail = store_keys.encode(lease).decode().partition(six)
    assert head == '{"PublicIP":"172.18.0.2","PublicIPv6":'
    assert tail.removeprefix(",") == record
    (node,) = [node for node in model.of(objects, model.Node) if node.metadata.name == "node1"]
    assert node.metadata.annotations["flannel.alpha.coreos.com/backend-type"] == lease.BackendType


def test_a_key_of_a_manifest_is_taken_and_a_bad_one_refused() -> None:
    private = base64.b64encode(base64.b64encode(bytes(range(32)))).decode()
    state = render(completed(cluster({"Type": "wireguard"}, more=WG_SECRET % private)))
    (key,) = [value for value in state[NODE1] if isinstance(value, WireguardKey)]
    public = X25519PrivateKey.from_private_bytes(bytes(range(32))).public_key().public_bytes_raw()
    assert key.public_key == base64.b64encode(public).decode()
    with pytest.raises(ObjectError, match="is not a private key of WireGuard's"):
        completed(cluster({"Type": "wireguard"}, more=WG_SECRET % "c2hvcnQ="))


# --- cables and sysctls -----------------------------------------------------------------------------------------------


def test_a_link_without_offloads_has_none_at_either_end() -> None:
    link = "underlay: {links: [{between: [node1, nodes], offload: off}, {between: [node2, nodes], offload: on}]}\n"
    state = render(completed(cluster({"Type": "vxlan"}, more=link)))
    found = {(netns, value) for netns, values in state.items() for value in values if isinstance(value, Offload)}
    switch = names.fabric_netns("demo", "nodes")
    assert found == {(NODE1, Offload("eth0", OFFLOADS)), (switch, Offload("node-node1", OFFLOADS))}


def test_sysctls_of_a_node_go_over_what_others_set() -> None:
    nodes = "nodes: [{name: node1, sysctls: {net.ipv4.conf.all.rp_filter: 1, net.ipv4.tcp_ecn: '2'}}, {name: node2}]\n"
    state = render(completed(cluster({"Type": "vxlan"}, more=nodes)))
    filters = [value for value in on_node1(state, Sysctl) if value.key[1] == "net.ipv4.conf.all.rp_filter"]
    assert filters == [Sysctl("net.ipv4.conf.all.rp_filter", "1")]
    assert Sysctl("net.ipv4.tcp_ecn", "2") in state[NODE1]
    content = "net.ipv4.conf.all.rp_filter = 1\nnet.ipv4.tcp_ecn = 2\n"
    assert File(str(names.sysctl_file(NODE1)), content) in state[NODE1]
    other = state[names.node_netns("demo", "node2")]
    assert Sysctl("net.ipv4.conf.all.rp_filter", "0") in other
    assert not [value for value in other if isinstance(value, File) and value.path.endswith("sysctl.conf")]


# --- what a state asks of the kernel ----------------------------------------------------------------------------------

ASKED = [
    ({"Type": "vxlan"}, FOUR, {"vxlan"}, {"ipip", "wireguard", "tun", "IPv6", "vxlan over IPv6"}),
    ({"Type": "vxlan"}, BOTH, {"vxlan", "vxlan over IPv6", "IPv6", "bridge-nf-call-ip6tables"}, {"tun"}),
    ({"Type": "host-gw"}, FOUR, {"veth", "bridge", "nat", "statistic match"}, {"vxlan"}),
    ({"Type": "ipip"}, FOUR, {"ipip"}, {"vxlan"}),
    ({"Type": "udp"}, FOUR, {"tun"}, {"vxlan"}),
    ({"Type": "wireguard"}, FOUR, {"wireguard", "conntrack", "masquerade --random-fully"}, {"vxlan", "ipset"}),
]


@pytest.mark.parametrize(("backend", "subnets", "needed", "not_needed"), ASKED)
def test_what_a_topology_needs_of_the_kernel(
    backend: dict[str, object], subnets: str, needed: set[str], not_needed: set[str]
) -> None:
    asked = demands.demands(render(completed(cluster(backend, subnets))))
    assert needed <= asked
    assert asked.isdisjoint(not_needed)
