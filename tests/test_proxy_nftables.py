"""kube-proxy's nftables mode: the packets of iptables mode, but for upstream's own differences; and its text."""

import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest
from msgspec.structs import replace

from nsnet import model, names
from nsnet.diff import diff
from nsnet.model import EndpointSlice, Key
from nsnet.render import proxy_nftables, render, services
from nsnet.render.kubeproxy import LocalDetector
from nsnet.render.proxy_nftables import Settings
from nsnet.state import Chain, Nft, NftChain, NftElement, NftSet, NftTable, Sysctl, nft_interval, nft_lines
from nsnet.trace import answer, service_of, walk
from nsnet.trace.nft import parse
from nsnet.verify.modes import SITUATIONS
from tests import modes, worlds
from tests.built import Place, built
from tests.structure import faults
from tests.test_proxy_iptables import OBJECTS as IPTABLES_OBJECTS
from tests.test_proxy_iptables import SEEN, packet, rows, told, where

MORE = """
# A load balancer's address with source ranges, and no endpoint.
kind: Service
metadata: {name: shut}
spec: {clusterIP: 10.96.0.20, type: LoadBalancer, loadBalancerSourceRanges: [10.244.1.9/32], ports: [{port: 80}]}
status: {loadBalancer: {ingress: [{ip: 192.0.2.20}]}}
"""
MORE_ROWS = """
a1      192.0.2.20:80      tcp   refused
e2      192.0.2.20:80      tcp   refused
node1   10.96.0.19:80      tcp   unreachable
"""

OBJECTS = worlds.load(f"{worlds.SERVICES}---{MORE}")
SETTINGS = Settings(worlds.SETTINGS.detector, service_cidrs=("10.96.0.0/16",))


def tables(objects: model.Objects, settings: Settings = SETTINGS) -> dict[str, frozenset[Nft]]:
    return {node: worlds.own_table(objects, worlds.node(node), settings) for node in worlds.NODES}


STATES = {"iptables": worlds.network(worlds.chains(OBJECTS)), "nftables": worlds.network(tables(OBJECTS))}
SOURCES = {**SEEN, "127.0.0.1": "lo"}
ROWS = [*rows(), *(re.split(r"\s{2,}", row) for row in MORE_ROWS.strip().splitlines())]


# --- packets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", STATES)
@pytest.mark.parametrize("row", ROWS, ids=" ".join)
def test_packet(row: list[str], mode: str) -> None:
    sender, to, protocol, expected, *seen = row if mode == "iptables" else modes.in_nftables(row)
    ways = walk(STATES[mode], worlds.NAMES[sender], packet(to, protocol))
    assert {where(way) for way in ways} == set(expected.split()), told(ways)
    sources = {SOURCES[way.packet.src] for way in ways if way.result == "delivered"}
    assert sources == {sender if name == "=" else name for name in " ".join(seen).split()}, told(ways)
    for way in ways:
        if way.result == "delivered":
            back = answer(STATES[mode], way, packet(to, protocol))
            assert [(end.result, end.netns) for end in back] == [("delivered", worlds.NAMES[sender])], told(
                [way, *back]
            )


def test_every_difference_is_one_and_has_a_reason() -> None:
    """A row of the table that differs from nothing, or a reason nobody needs, is a defect of the table."""
    known = {tuple(row[:3]): row[3:] for row in ROWS}
    for one in modes.NFTABLES:
        assert known[one.sender, one.to, one.protocol] != one.expected.split()
    assert {one.reason for one in modes.NFTABLES} == SITUATIONS["nftables"].keys() - {"own output"}


def test_choice_is_uniform() -> None:
    ways = walk(STATES["nftables"], worlds.NAMES["a1"], packet("10.96.0.11:80", "tcp"))
    assert {where(way): way.chance for way in ways} == pytest.approx(dict.fromkeys(("e1", "e2", "e3"), 1 / 3))


@pytest.mark.parametrize("to", ["10.96.0.16:53", "198.51.100.16:53"])
def test_affinity_sends_a_known_client_to_its_endpoint(to: str) -> None:
    seen = {(f"affinity-{names.nft_endpoint('t/dns:dns', 'udp', '10.244.1.3', 5353)}", "10.244.1.9")}
    ends = {
        pod: {where(way) for way in walk(STATES["nftables"], worlds.NAMES[pod], packet(to, "udp"), recent=seen)}
        for pod in ("a1", "a2")
    }
    assert ends == {"a1": {"e2"}, "a2": {"e1", "e2"}}


@pytest.mark.parametrize("interface", ["cni0", "cni+"])
def test_a_local_pod_known_by_its_interface_keeps_its_source(interface: str) -> None:
    told_by = replace(SETTINGS, detector=LocalDetector(interface=interface))
    state = worlds.network(tables(OBJECTS, told_by))
    seen = {
        sender: {SOURCES[way.packet.src] for way in walk(state, worlds.NAMES[sender], packet("10.96.0.13:80", "tcp"))}
        for sender in ("a1", "node1")
    }
    assert seen == {"a1": {"a1"}, "node1": {"cni0@node1"}}


def test_hops_name_the_map_entry_and_the_service_it_belongs_to() -> None:
    (way,) = walk(STATES["nftables"], worlds.NAMES["a1"], packet("10.96.0.13:80", "tcp"))
    hops = [hop for hop in way.hops if hop.what.startswith("kube-proxy ")]
    service = "service-I54P5P3A-t/outer/tcp/"
    assert [hop.what.removeprefix("kube-proxy ") for hop in hops] == [
        "filter-prerouting-pre-dnat", "nat-prerouting", "services", service, "filter-forward", "filter-forward",
        "nat-postrouting",
    ]  # fmt: skip
    assert hops[2].rule.endswith(f"vmap @service-ips {{ 10.96.0.13 . tcp . 80 : goto {service} }}")
    assert {hop.what for hop in hops if "t/outer" in (service_of(hop.rule), service_of(hop.what))} == {
        "kube-proxy services", f"kube-proxy {service}",
    }  # fmt: skip


# --- names and text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("port", "name"),
    [
        ("ns1/svc1:p80", "ULMVA6XW-ns1/svc1/tcp/p80"),  # kube-proxy's own tests have these
        ("kproxy-lab/backend-api:http", "YVSKLJHA-kproxy-lab/backend-api/tcp/http"),
        ("default/kubernetes:https", "2QRHZV4L-default/kubernetes/tcp/https"),
    ],
)
def test_names_are_kube_proxys(port: str, name: str) -> None:
    assert names.nft_service(port, "TCP") == name


def test_names_of_endpoints() -> None:
    assert names.nft_endpoint("ns1/svc1:p80", "tcp", "10.180.0.1", 80) == "5OJB2KTY-ns1/svc1/tcp/p80__10.180.0.1/80"
    long = names.nft_endpoint(f"{'n' * 63}/{'s' * 63}:{'p' * 63}", "sctp", "fd00:1:2:3:4:5:6:7", 65535)
    assert len(long) <= 240
    assert ":" not in long
    cut = names.nft_endpoint(f"{'n' * 63}/{'s' * 63}:{'p' * 63}", "sctp", ":".join(["ffff"] * 8), 65535)
    assert (len(cut), cut[-3:]) == (240, "...")


def spelled(port: str, node: str = "node1", settings: Settings = SETTINGS) -> str:
    """All values of one Service port on a node, as lines of `nft -f` without the table's name."""
    for joined in services.join(OBJECTS):
        for one in services.ports(joined):
            if one.info.name == port:
                said = proxy_nftables._kept_port(joined, one, services.place(worlds.node(node)), settings)
    values = (*sorted(said.own, key=lambda value: value.key[3:]), *said.elements.values())
    return "\n".join(line.replace(" ip kube-proxy", "") for value in values for line in nft_lines(value)) + "\n"


GOLDEN = (Path(__file__).parent / "golden" / "proxy_nftables.txt").read_text()
SECTIONS = dict(re.findall(r"^## (.*)\n((?:[^#\n].*\n)*)", GOLDEN, re.MULTILINE))


@pytest.mark.parametrize("head", [head for head in SECTIONS if " on " in head])
def test_values_of_a_service(head: str) -> None:
    port, node = head.split(" on ")
    assert spelled(port, node) == SECTIONS[head]


def test_every_kind_of_service_has_a_golden_text() -> None:
    ports = {info.name for info in worlds.infos(OBJECTS, worlds.node("node1"))}
    assert ports - {"t/dns:dns-tcp"} == {head.split(" on ")[0] for head in SECTIONS if " on " in head}


def test_the_table_without_any_service() -> None:
    found = worlds.own_table({}, worlds.node("node1"), SETTINGS)
    lines = [line for value in sorted(found, key=lambda value: value.key[2:]) for line in nft_lines(value)]
    assert "\n".join(lines).replace(" ip kube-proxy", "") + "\n" == SECTIONS["no Service"]


# --- settings ---------------------------------------------------------------------------------------------------------


def chain(values: Iterable[Nft], name: str) -> NftChain:
    return next(value for value in values if isinstance(value, NftChain) and value.name == name)


def without(settings: Settings) -> frozenset[Nft]:
    return worlds.own_table({}, worlds.node("node1"), settings)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        (Settings(LocalDetector("10.244.0.0/16")), "ip daddr @cluster-ips ip saddr != 10.244.0.0/16 meta mark set"),
        (Settings(LocalDetector("10.244.3.1/16")), "ip daddr @cluster-ips ip saddr != 10.244.0.0/16 meta mark set"),
        (Settings(LocalDetector(interface="cni0")), 'ip daddr @cluster-ips iifname != "cni0" meta mark set'),
        (Settings(LocalDetector(interface="veth+")), 'ip daddr @cluster-ips iifname != "veth*" meta mark set'),
        (Settings(masquerade_all=True), "ip daddr @cluster-ips meta mark set"),
    ],
)
def test_ways_to_tell_a_local_pod(settings: Settings, rule: str) -> None:
    assert chain(without(settings), "services").rules[0].startswith(rule)


def test_without_a_way_to_tell_nothing_is_said_about_local_pods() -> None:
    assert "mark" not in " ".join(chain(without(Settings()), "services").rules)
    assert "pod traffic" not in spelled("t/outer", settings=Settings())


def test_another_mark() -> None:
    found = without(Settings(LocalDetector("10.0.0.0/8"), masquerade_bit=7))
    assert "meta mark & 0x00000080 != 0x00000000" in chain(found, "masquerading").rules[0]
    assert "meta mark set meta mark | 0x00000080" in chain(found, "services").rules[0]


@pytest.mark.parametrize(
    ("addresses", "elements", "rule"),
    [
        (("primary",), ["172.18.0.2"], "ip daddr @nodeport-ips meta l4proto . th dport"),
        (("192.168.1.2", "127.0.0.1"), ["192.168.1.2"], "ip daddr @nodeport-ips meta l4proto . th dport"),
        (None, [], "fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport"),
    ],
)
def test_node_port_addresses(addresses: tuple[str, ...] | None, elements: list[str], rule: str) -> None:
    found = without(Settings(node_port_addresses=addresses))
    there = [one.element for one in found if isinstance(one, NftElement) and one.set == "nodeport-ips"]
    sets = [one for one in found if isinstance(one, NftSet) and one.name == "nodeport-ips"]
    assert (there, len(sets)) == (elements, 0 if addresses is None else 1)
    assert chain(found, "services").rules[-1] == f"{rule} vmap @service-nodeports"


def test_node_ports_on_every_address() -> None:
    """With nodePortAddresses 0.0.0.0/0 they are served on the bridge's address too, and still not on loopback."""
    state = worlds.network(tables(OBJECTS, replace(SETTINGS, node_port_addresses=None)))
    ends = {
        to: {where(way) for way in walk(state, worlds.NAMES["node1"], packet(to, "tcp"))}
        for to in ("10.244.1.1:30011", "172.18.0.2:30011", "127.0.0.1:30011", "172.18.0.2:30012")
    }
    assert ends == {
        "10.244.1.1:30011": {"e1", "e2", "e3"},
        "172.18.0.2:30011": {"e1", "e2", "e3"},
        "127.0.0.1:30011": {"node1"},
        "172.18.0.2:30012": {"refused"},
    }


@pytest.mark.parametrize(
    ("ranges", "words"),
    [
        (["10.0.0.0/8"], "10.0.0.0/8"),
        (["10.0.0.1/32"], "10.0.0.1"),
        (["10.0.1.0/24", "10.0.0.0/24"], "10.0.0.0/23"),
        (["10.0.1.0/24", "10.0.2.0/24"], "10.0.1.0-10.0.2.255"),
        (["10.0.0.0/8", "10.1.0.0/16"], "10.0.0.0/8"),
        (["192.0.2.0/24", "10.0.0.9/32"], "{ 10.0.0.9, 192.0.2.0/24 }"),
    ],
)
def test_ranges_are_spelled_merged(ranges: list[str], words: str) -> None:
    assert proxy_nftables._among(ranges) == words


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        (("10.0.0.1", "10.0.0.1"), "10.0.0.1"),
        (("10.0.0.0", "10.0.0.255"), "10.0.0.0/24"),
        (("0.0.0.0", "255.255.255.255"), "0.0.0.0/0"),
        (("10.0.0.1", "10.0.0.2"), "10.0.0.1-10.0.0.2"),
        (("fd00::", "fd00::ffff"), "fd00::/112"),
    ],
)
def test_intervals(ends: tuple[str, str], words: str) -> None:
    assert nft_interval(*ends) == words


def test_ipv6_is_the_same_with_other_words() -> None:
    found = without(Settings(LocalDetector("fd00::/56"), service_cidrs=("fd01::/112",), family="ip6"))
    assert {value.family for value in found} == {"ip6"}
    text = "\n".join(line for value in found for line in nft_lines(value))
    assert not re.search(r"ipv4|\bip (?:s|d)addr", text)
    assert "ip6 saddr != fd00::/56" in text


# --- structure --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("node", worlds.NODES)
def test_nothing_leads_nowhere_and_everything_is_led_to(node: str) -> None:
    """Every chain and set a rule or map names is there; every chain but a base chain is named, and every set used."""
    found = tables(OBJECTS)[node]
    chains = {value.name: value for value in found if isinstance(value, NftChain)}
    sets = {value.name for value in found if isinstance(value, NftSet)}
    words = [rule for value in chains.values() for rule in value.rules]
    words += [value.data for value in found if isinstance(value, NftElement)]
    led = {target for line in words for target in re.findall(r"\b(?:jump|goto) ([^\s,}]+)", line)}
    used = {name for line in words for name in re.findall(r"@([^\s,}]+)", line)}
    assert led == {name for name, value in chains.items() if not value.hook}
    assert used == sets
    assert {value.set for value in found if isinstance(value, NftElement)} <= sets
    assert len({value.key for value in found}) == len(found)
    assert all(
        "unknown" not in {step.what for step in parse(rule)} for value in chains.values() for rule in value.rules
    )


def test_choices_are_written_out_evenly() -> None:
    for value in tables(OBJECTS)["node1"]:
        for rule in value.rules if isinstance(value, NftChain) else ():
            found = re.search(r"numgen random mod (\d+) v?map \{ (.*) \}", rule)
            if found:
                assert [part.split(" : ")[0] for part in found[2].split(", ")] == [*map(str, range(int(found[1])))]


def test_the_same_objects_give_the_same_values_whatever_their_order() -> None:
    assert tables(dict(reversed(OBJECTS.items()))) == tables(OBJECTS)


def test_of_two_services_with_one_address_the_first_by_name_has_it() -> None:
    text = worlds.SERVICES.replace("externalIPs: [198.51.100.16]", "externalIPs: [198.51.100.7]").replace(
        "externalIPs: [198.51.100.12]", "externalIPs: [198.51.100.7]"
    )
    more = "kind: Service\nmetadata: {name: also}\nspec: {clusterIP: 10.96.0.77, externalIPs: [198.51.100.7], "
    found = tables(worlds.load(f"{text}---\n{more}ports: [{{port: 80}}]}}"))["node1"]
    keys = [value.key for value in found]
    assert len(set(keys)) == len(keys)
    (taken,) = (
        value for value in found if isinstance(value, NftElement) and value.element == "198.51.100.7 . tcp . 80"
    )
    assert taken.comment == "t/also"


def test_one_changed_slice_changes_its_chain_and_nothing_else() -> None:
    before = tables(OBJECTS)["node1"]
    gone = Key("EndpointSlice", "t", "web-1")
    slice_ = OBJECTS[gone]
    assert isinstance(slice_, EndpointSlice)
    after = tables({**OBJECTS, gone: replace(slice_, endpoints=(slice_.endpoints or ())[1:])})["node1"]
    assert {value.key[3:] for value in before ^ after} == {
        ("chain", f"service-{names.nft_service('t/web:http', 'tcp')}"),
        # outer, ranges and ending still have that endpoint on port 8080
    }


# --- a whole cluster, and from mode to mode ---------------------------------------------------------------------------


def cluster(mode: str) -> model.Objects:
    places = {"node1": Place(pods=["a", "b"]), "node2": Place(pods=["c"])}
    return built(places, services={"web": "10.96.0.20"}, mode=mode)


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_a_node_has_the_rules_of_its_mode_alone(mode: str) -> None:
    want = render(cluster(mode))
    assert faults(want) == []
    values = want["demo.node.node1"]
    assert any(isinstance(value, NftTable) for value in values) is (mode == "nftables")
    kube = [value.name for value in values if isinstance(value, Chain) and "KUBE" in f"{value.name} {value.rules}"]
    assert bool(kube) is (mode == "iptables")
    assert any(isinstance(value, Chain) and "FLANNEL" in " ".join(value.rules) for value in values)
    assert Sysctl("net.ipv4.conf.all.route_localnet", "1" if mode == "iptables" else "0") in values


def test_from_mode_to_mode_every_value_of_the_old_one_goes() -> None:
    for one, other in pairwise(("iptables", "nftables", "iptables")):
        have, want = render(cluster(one)), render(cluster(other))
        changes = diff(have, want)
        deleted = {(change.netns, change.value) for change in changes if change.verb == "delete"}
        replaced = {(change.netns, change.old) for change in changes if change.verb == "replace"}
        left = {(netns, value) for netns in have for value in have[netns] - want[netns]}
        assert deleted | replaced == left


def test_additions_come_in_an_order_nft_takes_and_deletions_in_the_other() -> None:
    """Sets before the chains that look into them, chains before the elements that lead to them."""
    order = (NftTable, NftSet, NftChain, NftElement)
    have, want = render(cluster("iptables")), render(cluster("nftables"))
    for changes, kinds in ((diff(have, want), order), (diff(want, have), order[::-1])):
        found = [type(change.value) for change in changes if type(change.value) in order]
        assert list(dict.fromkeys(found)) == [kind for kind in kinds if kind in found]
        assert found == sorted(found, key=kinds.index)


def test_what_iptables_mode_was_tested_with_is_a_part_of_what_is_tested_here() -> None:
    assert IPTABLES_OBJECTS.items() <= OBJECTS.items()
