"""IPv6 and dual stack without a kernel: who has which addresses, which families a Service has, and where packets go."""

# ruff: noqa: E501 - a row of a table is one line

from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from nsnet import model, verify
from nsnet import names as names_
from nsnet.cli import trace
from nsnet.cli.explain import rule_lines
from nsnet.control import complete
from nsnet.control.addresses import NOWHERE, number, ranges, subnet, text
from nsnet.model import EndpointSlice, Node, Objects, Pod, Service, SubnetLease
from nsnet.programs.plain import Place
from nsnet.programs.podserver import Config, wanted
from nsnet.programs.podserver import Pod as Served
from nsnet.render import conntrack, render
from nsnet.state import Chain, Conntrack, File, NftTable, Route, State, Vxlan
from nsnet.store import keys
from nsnet.trace import Packet, answer, walk
from nsnet.trace.values import Way
from nsnet.verify.expect import Expectation
from tests.controlled import apply, key, load, one, refused, up
from tests.structure import faults

FOUR, SIX, BOTH, SIX_FIRST = "IPv4", "IPv6", "both", "IPv6 first"
PAIRS: Mapping[str, str] = {
    FOUR: "podSubnet: 10.244.0.0/16, serviceSubnet: 10.96.0.0/16",
    SIX: "podSubnet: 'fd00:10:244::/56', serviceSubnet: 'fd00:10:96::/112'",
    BOTH: "podSubnet: '10.244.0.0/16,fd00:10:244::/56', serviceSubnet: '10.96.0.0/16,fd00:10:96::/112'",
    SIX_FIRST: "podSubnet: 'fd00:10:244::/56,10.244.0.0/16', serviceSubnet: 'fd00:10:96::/112,10.96.0.0/16'",
}
TOPOLOGY = Path(__file__).parents[1] / "topologies" / "dual-stack.yaml"


def cluster(families: str, more: str = "", mode: str = "iptables") -> str:
    said = f"networking: {{{PAIRS[families]}, kubeProxyMode: {mode}}}"
    return f"{{apiVersion: nsnet/v1, kind: Cluster, {', '.join(filter(None, (said, more)))}}}\n"


def pod(name: str, node: str = "node1", more: str = "") -> str:
    ports = "[{containerPort: 80}, {containerPort: 53, protocol: UDP}]"
    return (
        f"---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: web}}{more}}}, "
        f"spec: {{nodeName: {node}, containers: [{{name: c, ports: {ports}}}]}}}}\n"
    )


def service(spec: str, name: str = "web") -> str:
    return f"---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{{spec}}}}}\n"


# --- addresses as numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "printed"),
    [("fd00:0:0::A", "fd00::a"), ("::1", "::1"), ("::ffff:1.2.3.4", "::ffff:102:304"), ("0.0.0.1", "0.0.0.1")],
)
def test_an_address_there_and_back(said: str, printed: str) -> None:
    assert text(number(said)) == printed


def test_the_families_never_meet() -> None:
    """::1 and 0.0.0.1 are different numbers, and no range of one family has an address of the other."""
    assert number("::1") != number("0.0.0.1")
    assert not subnet("0.0.0.0/0").has(number("::1"))
    assert not subnet("::/0").has(number("10.0.0.1"))
    assert [str(one) for one in ranges("10.244.7.0/16, fd00:10:244::9/56")] == ["10.244.0.0/16", "fd00:10:244::/56"]
    assert number("fe80::1%eth0") == NOWHERE


# --- who has which addresses ------------------------------------------------------------------------------------------


def addresses(objects: Objects) -> dict[str, str]:
    """Networks, machines, nodes' subnets and pods, each with what it has."""
    said = model.cluster_of(objects)
    assert isinstance(said.nodes, tuple)
    found = {network.name: network.subnet for network in said.underlay.networks}
    machines: list[model.NodeEntry | model.HostEntry] = [*said.nodes, *(said.hosts or ())]
    found |= {entry.name: " ".join((entry.address, *entry.addresses)) for entry in machines}
    found |= {f"{item.metadata.name} pods": " ".join(model.pod_cidrs(item)) for item in model.of(objects, Node)}
    pods = (item for item in model.of(objects, Pod) if item.metadata.namespace == "default")
    return found | {f"pod {item.metadata.name}": " ".join(model.pod_ips(item)) for item in pods}


def test_every_machine_and_pod_has_an_address_of_each_family() -> None:
    assert addresses(up(cluster(BOTH, "nodes: 1, hosts: [{name: client}]") + pod("a") + pod("b"))) == {
        "nodes": "172.18.0.0/16,fd00:172:18::/64",
        "outside": "203.0.113.0/24,2001:db8:113::/64",
        "node1": "172.18.0.2 fd00:172:18::2",
        "client": "203.0.113.2 2001:db8:113::2",
        "node1 pods": "10.244.1.0/24 fd00:10:244:1::/64",
        "pod a": "10.244.1.2 fd00:10:244:1::2",
        "pod b": "10.244.1.3 fd00:10:244:1::3",
    }


def test_ipv6_alone() -> None:
    assert addresses(up(cluster(SIX, "nodes: 1, hosts: []") + pod("a"))) == {
        "nodes": "fd00:172:18::/64",
        "node1": "fd00:172:18::2",
        "node1 pods": "fd00:10:244:1::/64",
        "pod a": "fd00:10:244:1::2",
    }


def test_the_first_family_is_the_first_address() -> None:
    found = addresses(up(cluster(SIX_FIRST, "nodes: 1, hosts: []") + pod("a")))
    assert found["node1"] == "fd00:172:18::2 172.18.0.2"
    assert found["node1 pods"] == "fd00:10:244:1::/64 10.244.1.0/24"
    assert found["pod a"] == "fd00:10:244:1::2 10.244.1.2"


def test_what_is_said_counts() -> None:
    """Of a pair, of both families in `addresses`, in a podCIDR and in an annotation; what is not said is given."""
    more = (
        "underlay: {networks: [{name: nodes, subnet: 10.1.0.0/24}, {name: outside, subnet: ['192.0.2.0/24', 'fd01::/64']}]}, "
        "nodes: [{name: a, addresses: ['fd00:172:18::9'], podCIDR: '10.244.7.0/24,fd00:10:244:7::/64'}, {name: b}], "
        "hosts: [{name: client, address: 'fd01::5'}]"
    )
    fixed = ", annotations: {nsnet/ip: '10.244.7.9, fd00:10:244:7::99'}"
    six = ", annotations: {nsnet/ip: 'fd00:10:244:7::98'}"
    found = addresses(up(cluster(BOTH, more) + pod("p", "a", fixed) + pod("q", "a", six)))
    assert found == {
        "nodes": "10.1.0.0/24,fd00:172:18::/64",
        "outside": "192.0.2.0/24,fd01::/64",
        "a": "10.1.0.2 fd00:172:18::9",
        "b": "10.1.0.3 fd00:172:18::2",
        "client": "fd01::5 192.0.2.2",
        "a pods": "10.244.7.0/24 fd00:10:244:7::/64",
        "b pods": "10.244.1.0/24 fd00:10:244:1::/64",
        "pod p": "10.244.7.9 fd00:10:244:7::99",
        "pod q": "10.244.7.2 fd00:10:244:7::98",
    }


@pytest.mark.parametrize(
    ("said", "services"),
    [
        ("podSubnet: 'fd00:1::/56'", "fd00:10:96::/112"),
        ("podSubnet: [10.1.0.0/16, 'fd00:1::/56']", "10.96.0.0/16,fd00:10:96::/112"),
        ("podSubnet: ['fd00:1::/56', 10.1.0.0/16]", "fd00:10:96::/112,10.96.0.0/16"),
        ("podSubnet: 10.1.0.0/16", "10.96.0.0/16"),
    ],
)
def test_a_range_that_is_not_said_has_the_families_of_the_other(said: str, services: str) -> None:
    objects = up(f"{{apiVersion: nsnet/v1, kind: Cluster, networking: {{{said}}}}}")
    networking = model.cluster_of(objects).networking
    assert networking.serviceSubnet == services
    assert networking.clusterDNS == text(ranges(services)[0].first + 10)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("networking: {podSubnet: 'fd00:1::/56', serviceSubnet: 10.96.0.0/16}", "serviceSubnet: is IPv4, and podSubnet IPv6 (the same families in the same order, as serviceSubnet: fd00:10:96::/112)"),
        ("networking: {podSubnet: '10.1.0.0/16,fd00:1::/56', serviceSubnet: 'fd00:2::/112,10.2.0.0/16'}", "serviceSubnet: is IPv6 and IPv4, and podSubnet IPv4 and IPv6"),
        ("networking: {serviceSubnet: 'fd00:2::/64'}", "networking.serviceSubnet: fd00:2::/64 is too large"),
        ("networking: {serviceSubnet: 'fd00:2::/125'}", "networking.serviceSubnet: fd00:2::/125 is too small (at least a /124)"),
        ("networking: {podSubnet: 'fd00:1::/125'}", "networking.podSubnet: fd00:1::/125 is too small (at least a /124"),
        ("networking: {podSubnet: 'fd00::/56', serviceSubnet: 'fd00::/112'}", "podSubnet fd00::/56 overlaps serviceSubnet fd00::/112"),
        ("networking: {podSubnet: 'fd00:1::/56'}, underlay: {networks: [{name: x, subnet: 'fd00:1::/64'}]}", "podSubnet fd00:1::/56 overlaps network x fd00:1::/64"),
        ("networking: {podSubnet: 'fd00:1::/56'}, flannel: {IPv6SubnetLen: 56}", "flannel.IPv6SubnetLen: 56 does not go with podSubnet fd00:1::/56 (from 58 (four subnets) to 126)"),
        ("networking: {podSubnet: 'fd00:1::/56'}, flannel: {IPv6SubnetMin: 'fd00:1::1'}", "flannel.IPv6SubnetMin: fd00:1::1 is not the beginning of a /64"),
        ("flannel: {EnableIPv6: true}", "flannel.EnableIPv6: is true, and networking.podSubnet is 10.244.0.0/16 (leave it out"),
        ("networking: {podSubnet: 'fd00:1::/56'}, flannel: {Backend: {VNI: 10000}}", "flannel.Backend.VNI: flannel-v6.10000 is longer than a device's name may be"),
        ("nodes: [{name: a, addresses: ['fd00::9']}]", "nodes[0].addresses[0]: fd00::9: network nodes has no IPv6 subnet"),
        ("networking: {podSubnet: 'fd00:1::/56'}, nodes: [{name: a, address: 'fd00:172:18::1'}]", "nodes[0].address: fd00:172:18::1 is taken by the router, in network nodes"),
        ("networking: {podSubnet: 'fd00:1::/56'}, nodes: [{name: a, podCIDR: 'fd00:2::/64'}]", "nodes[0].podCIDR: fd00:2::/64 is outside podSubnet fd00:1::/56"),
    ],
)  # fmt: skip
def test_refused_topologies(words: str, said: str) -> None:
    assert said in refused(f"{{apiVersion: nsnet/v1, kind: Cluster, {words}}}")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("fd00:10:244:2::2", "fd00:10:244:2::2 is no pod address in node1's subnet fd00:10:244:1::/64"),
        ("'10.244.1.2,fd00:10:244:1::1'", "fd00:10:244:1::1 is no pod address in node1's subnet fd00:10:244:1::/64"),
    ],
)
def test_fixed_addresses_that_cannot_be_had(said: str, message: str) -> None:
    assert message in refused(cluster(BOTH) + pod("a", more=f", annotations: {{nsnet/ip: {said}}}"))


def test_a_cluster_that_gets_a_second_family_keeps_its_first() -> None:
    """And gives it back: `up` with the first file again leaves no IPv6 behind."""
    four = up(cluster(FOUR) + pod("a") + pod("b") + service("selector: {app: web}, ports: [{port: 80}]"))
    both = up(cluster(BOTH) + pod("a") + pod("c") + service("selector: {app: web}, ports: [{port: 80}]"), four)
    assert model.pod_ips(one(both, "Pod/a")) == ("10.244.1.2", "fd00:10:244:1::2")  # type: ignore[arg-type]
    assert model.pod_ips(one(both, "Pod/c")) == ("10.244.1.5", "fd00:10:244:1::3")  # type: ignore[arg-type]
    assert ips(both) == ips(four)
    again = up(cluster(FOUR) + pod("a"), both)
    assert model.pod_ips(one(again, "Pod/a")) == ("10.244.1.2",)  # type: ignore[arg-type]
    assert not [value for values in render(again).values() for value in values if is_of_ipv6(value)]


def is_of_ipv6(value: object) -> bool:
    """A value of the state, files apart: /etc/hosts names ::1 always."""
    return not isinstance(value, File) and ("ip6" in repr(value) or "fd00:" in repr(value))


def test_complete_changes_nothing_the_second_time() -> None:
    for families in PAIRS:
        objects = up(cluster(families) + pod("a") + service("selector: {app: web}, ports: [{port: 80}]"))
        assert complete(objects) == objects


# --- leases -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("families", "name", "record"),
    [
        (
            BOTH,
            "10.244.1.0-24&fd00:10:244:1::-64",
            (
                '{"PublicIP":"172.18.0.2","PublicIPv6":"fd00:172:18::2","BackendType":"vxlan",'
                '"BackendData":{"VNI":1,"VtepMAC":"f2:34:c4:a1:43:ca"},'
                '"BackendV6Data":{"VNI":1,"VtepMAC":"fe:60:b1:1f:6e:6b"}}'
            ),
        ),
        (
            SIX,
            "0.0.0.0-0&fd00:10:244:1::-64",
            (
                '{"PublicIP":"0.0.0.0","PublicIPv6":"fd00:172:18::2","BackendType":"vxlan",'
                '"BackendV6Data":{"VNI":1,"VtepMAC":"fe:60:b1:1f:6e:6b"}}'
            ),
        ),
    ],
)
def test_a_lease_stands_in_the_store_as_flannel_writes_it(families: str, name: str, record: str) -> None:
    (lease,) = model.of(up(cluster(families, "nodes: 1")), SubnetLease)
    assert (lease.metadata.name, lease.subnets[-1]) == (name, "fd00:10:244:1::/64")
    path = keys.path_of(model.key_of(lease))
    assert keys.encode(lease).decode() == record
    bare = msgspec.structs.replace(lease, metadata=model.ObjectMeta(name=name))
    assert keys.decode(path, keys.encode(lease)) == bare


# --- a Service's families ---------------------------------------------------------------------------------------------

SELECTED = "selector: {app: web}, ports: [{port: 80}]"
HEADLESS = "clusterIP: None, ports: [{port: 80}]"
MATRIX = [
    # cluster, spec, ipFamilies and ipFamilyPolicy afterwards, or the field and sentence of the refusal
    (FOUR, "", "IPv4 SingleStack"),
    (FOUR, "ipFamilyPolicy: SingleStack", "IPv4 SingleStack"),
    (FOUR, "ipFamilyPolicy: PreferDualStack", "IPv4 PreferDualStack"),
    (FOUR, "ipFamilyPolicy: RequireDualStack", "spec.ipFamilyPolicy: this cluster is not configured for dual-stack"),
    (FOUR, "ipFamilies: [IPv4]", "IPv4 SingleStack"),
    (FOUR, "ipFamilies: [IPv6]", "spec.ipFamilies[0]: IPv6 is not configured on this cluster"),
    (FOUR, "ipFamilies: [IPv4, IPv6], ipFamilyPolicy: PreferDualStack", "spec.ipFamilies[1]: IPv6 is not configured"),
    (FOUR, "clusterIP: 'fd00:10:96::9'", "spec.clusterIP: IPv6 is not configured on this cluster"),
    (SIX, "", "IPv6 SingleStack"),
    (SIX, "ipFamilyPolicy: PreferDualStack", "IPv6 PreferDualStack"),
    (SIX, "ipFamilyPolicy: RequireDualStack", "spec.ipFamilyPolicy: this cluster is not configured for dual-stack"),
    (SIX, "ipFamilies: [IPv4]", "spec.ipFamilies[0]: IPv4 is not configured on this cluster"),
    (SIX, "clusterIP: 10.96.0.9", "spec.clusterIP: IPv4 is not configured on this cluster"),
    (BOTH, "", "IPv4 SingleStack"),
    (BOTH, "ipFamilies: [IPv6]", "IPv6 SingleStack"),
    (BOTH, "ipFamilyPolicy: PreferDualStack", "IPv4,IPv6 PreferDualStack"),
    (BOTH, "ipFamilyPolicy: RequireDualStack", "IPv4,IPv6 RequireDualStack"),
    (BOTH, "ipFamilies: [IPv6], ipFamilyPolicy: PreferDualStack", "IPv6,IPv4 PreferDualStack"),
    (BOTH, "ipFamilies: [IPv6], ipFamilyPolicy: RequireDualStack", "IPv6,IPv4 RequireDualStack"),
    (BOTH, "ipFamilies: [IPv6, IPv4], ipFamilyPolicy: RequireDualStack", "IPv6,IPv4 RequireDualStack"),
    (BOTH, "ipFamilies: [IPv4, IPv6]", "spec.ipFamilyPolicy: must be RequireDualStack or PreferDualStack when multiple ipFamilies"),
    (BOTH, "ipFamilies: [IPv4, IPv4], ipFamilyPolicy: PreferDualStack", "spec.ipFamilies: IPv4 is given twice"),
    (BOTH, "clusterIP: 'fd00:10:96::9'", "IPv6 SingleStack"),
    (BOTH, "clusterIP: 'fd00:10:96::9', ipFamilyPolicy: PreferDualStack", "IPv6,IPv4 PreferDualStack"),
    (BOTH, "clusterIPs: [10.96.0.9, 'fd00:10:96::9'], ipFamilyPolicy: PreferDualStack", "IPv4,IPv6 PreferDualStack"),
    (BOTH, "clusterIPs: [10.96.0.9, 'fd00:10:96::9']", "spec.ipFamilyPolicy: must be RequireDualStack or PreferDualStack when multiple clusterIPs"),
    (BOTH, "clusterIPs: [10.96.0.9, 10.96.0.8], ipFamilyPolicy: PreferDualStack", "spec.clusterIPs: may specify no more than one IP for each IP family"),
    (BOTH, "clusterIP: 10.96.0.9, ipFamilies: [IPv6]", "spec.clusterIPs[0]: 10.96.0.9 is IPv4, and ipFamilies[0] says IPv6"),
    (BOTH, "clusterIP: 'fd00:10:97::9'", "spec.clusterIP: fd00:10:97::9 is outside serviceSubnet 10.96.0.0/16,fd00:10:96::/112 (write networking: {serviceSubnet: fd00:10:97::/112}"),
    (BOTH, "clusterIP: 'fd00:10:96::1'", "spec.clusterIP: fd00:10:96::1 is taken by Service default/six"),
    (BOTH, "clusterIPs: [None, 10.96.0.9]", "spec.clusterIPs: None must be the first and only value"),
    (SIX_FIRST, "", "IPv6 SingleStack"),
    (SIX_FIRST, "ipFamilyPolicy: PreferDualStack", "IPv6,IPv4 PreferDualStack"),
    # headless with a selector: as any other; without one even what the cluster has not
    (FOUR, "clusterIP: None, ipFamilies: [IPv6]", "spec.ipFamilies[0]: IPv6 is not configured on this cluster"),
    (FOUR, "clusterIP: None, ipFamilyPolicy: RequireDualStack", "spec.ipFamilyPolicy: this cluster is not configured"),
    (BOTH, "clusterIP: None, ipFamilyPolicy: RequireDualStack", "IPv4,IPv6 RequireDualStack"),
    (FOUR, f"{HEADLESS}, ipFamilies: [IPv6]", "IPv6 SingleStack"),
    (FOUR, f"{HEADLESS}, ipFamilyPolicy: PreferDualStack", "IPv4,IPv6 PreferDualStack"),
    (FOUR, f"{HEADLESS}, ipFamilyPolicy: RequireDualStack", "IPv4,IPv6 RequireDualStack"),
    (SIX, f"{HEADLESS}, ipFamilyPolicy: RequireDualStack", "IPv6,IPv4 RequireDualStack"),
    (SIX, f"{HEADLESS}", "IPv6 SingleStack"),
]  # fmt: skip


@pytest.mark.parametrize(("families", "spec", "expected"), MATRIX)
def test_ip_families(families: str, spec: str, expected: str) -> None:
    """What Kubernetes' API server makes of ipFamilies, ipFamilyPolicy and clusterIPs (KEP-563)."""
    whole = spec if "ports:" in spec else ", ".join(filter(None, (spec, SELECTED)))
    other = service(f"{SELECTED}, clusterIP: 'fd00:10:96::1'", "six") if "taken" in expected else ""
    if ":" in expected:
        assert expected in refused(cluster(families) + other + service(whole)).removeprefix("Service default/web: ")
        return
    found = one(up(cluster(families) + service(whole)), "Service/web")
    assert isinstance(found, Service)
    assert f"{','.join(found.spec.ipFamilies or ())} {found.spec.ipFamilyPolicy}" == expected
    if "None" not in whole:
        of = [model.API_FAMILIES[model.family_of(ip)] for ip in found.spec.clusterIPs or ()]
        assert tuple(of) == found.spec.ipFamilies
        assert found.spec.clusterIP == (found.spec.clusterIPs or ("",))[0]


def test_an_ipv4_cluster_says_what_to_write_for_ipv6() -> None:
    said = refused(cluster(FOUR) + service("ipFamilies: [IPv6], selector: {app: web}, ports: [{port: 80}]"))
    hint = 'networking: {podSubnet: "10.244.0.0/16,fd00:10:244::/56", serviceSubnet: "10.96.0.0/16,fd00:10:96::/112"}'
    assert hint in said
    networking = hint.replace('"', "'")
    up(f"{{apiVersion: nsnet/v1, kind: Cluster, {networking}}}\n" + service(f"ipFamilies: [IPv6], {SELECTED}"))


def ips(objects: Objects, name: str = "web") -> tuple[str, ...]:
    found = objects[key(f"Service/{name}")]
    assert isinstance(found, Service)
    return model.cluster_ips(found.spec)


def test_addresses_stay_while_the_policy_changes() -> None:
    """From one to both and back: what was given stays, as `kubectl edit` leaves it."""
    first = up(cluster(BOTH) + service(SELECTED))
    both = apply(first, service(f"{SELECTED}, ipFamilyPolicy: PreferDualStack"))
    assert ips(both)[:1] == ips(first)
    assert len(ips(both)) == 2
    assert ips(apply(both, service(f"{SELECTED}, ipFamilyPolicy: RequireDualStack"))) == ips(both)
    assert ips(apply(both, service(f"{SELECTED}, ipFamilyPolicy: SingleStack"))) == ips(first)
    assert ips(apply(both, service(f"{SELECTED}, ipFamilies: [IPv6]"))) == ips(both)[1:]


def test_default_kubernetes_has_one_family() -> None:
    for families, address, endpoint in ((BOTH, "10.96.0.1", "172.18.0.2"), (SIX, "fd00:10:96::1", "fd00:172:18::2")):
        objects = up(cluster(families))
        assert ips(objects, "kubernetes") == (address,)
        assert slices(objects, "kubernetes") == {model.API_FAMILIES[model.family_of(address)]: {endpoint}}


# --- endpoints --------------------------------------------------------------------------------------------------------


def slices(objects: Objects, name: str = "web") -> dict[str, set[str]]:
    """addressType → addresses."""
    label = "kubernetes.io/service-name"
    mine = [item for item in model.of(objects, EndpointSlice) if item.metadata.labels.get(label) == name]
    return {item.addressType: {each.addresses[0] for each in item.endpoints or ()} for item in mine}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (SELECTED, {"IPv4": {"10.244.1.2", "10.244.2.2"}}),
        (f"{SELECTED}, ipFamilies: [IPv6]", {"IPv6": {"fd00:10:244:1::2", "fd00:10:244:2::2"}}),
        (
            f"{SELECTED}, ipFamilyPolicy: PreferDualStack",
            {"IPv4": {"10.244.1.2", "10.244.2.2"}, "IPv6": {"fd00:10:244:1::2", "fd00:10:244:2::2"}},
        ),
        (
            f"{SELECTED}, clusterIP: None, ipFamilyPolicy: RequireDualStack",
            {"IPv4": {"10.244.1.2", "10.244.2.2"}, "IPv6": {"fd00:10:244:1::2", "fd00:10:244:2::2"}},
        ),
    ],
)
def test_one_slice_per_family(spec: str, expected: dict[str, set[str]]) -> None:
    objects = up(cluster(BOTH) + pod("a") + pod("b", "node2") + service(spec))
    assert slices(objects) == expected
    (endpoints,) = [item for item in model.of(objects, model.Endpoints) if item.metadata.name == "web"]
    first = next(iter(expected.values()))
    assert {each.ip for subset in endpoints.subsets or () for each in subset.addresses or ()} == first


@pytest.mark.parametrize(
    ("spec", "more", "said"),
    [
        (
            "externalIPs: ['fd00:9::1']",
            "",
            "KubeProxyIncorrectIPVersion fd00:9::1 in externalIPs has incorrect IP version: the Service has IPv4 alone",
        ),
        ("externalIPs: ['fd00:9::1'], ipFamilyPolicy: PreferDualStack", "", ""),
        (
            "type: LoadBalancer, loadBalancerSourceRanges: [10.0.0.0/8], ipFamilies: [IPv6]",
            "",
            "KubeProxyIncorrectIPVersion 10.0.0.0/8 in loadBalancerSourceRanges has incorrect IP version: the Service has IPv6 alone",
        ),
        (
            "",
            "IPv6 fd00:10:244:1::9",
            "WrongFamily its addresses are IPv6, and Service web has IPv4: kube-proxy ignores it",
        ),
        ("", "IPv4 10.244.1.9", ""),
    ],
)
def test_what_is_of_the_wrong_family_is_said(spec: str, more: str, said: str) -> None:
    kind, _, address = more.partition(" ")
    slice_ = (
        f"---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: {kind}, "
        f"metadata: {{name: mine, labels: {{kubernetes.io/service-name: web}}}}, "
        f"endpoints: [{{addresses: ['{address}']}}], ports: [{{port: 80}}]}}\n"
    )
    objects = up(
        cluster(BOTH) + pod("a") + service(", ".join(filter(None, (spec, SELECTED)))) + (slice_ if more else "")
    )
    reasons = {"KubeProxyIncorrectIPVersion", "WrongFamily"}
    found = [f"{event.reason} {event.message}" for event in model.of(objects, model.Event) if event.reason in reasons]
    assert found == [said] * bool(said)


# --- what is rendered -------------------------------------------------------------------------------------------------


def world(families: str, mode: str = "iptables") -> tuple[Objects, State]:
    both = "ipFamilyPolicy: PreferDualStack"
    objects = up(
        cluster(families, mode=mode)
        + pod("a")
        + pod("b", "node2")
        + service(f"{SELECTED}, {both}, type: NodePort")
        + service(f"{both}, selector: {{app: nobody}}, ports: [{{port: 80}}]", "none")
        + service(f"{both}, selector: {{app: web}}, ports: [{{port: 53, protocol: UDP}}]", "dns")
        + service(f"{SELECTED}, {both}, sessionAffinity: ClientIP", "sticky")
        + service(f"{SELECTED}, {both}, type: NodePort, externalTrafficPolicy: Local", "near")
    )
    return objects, render(objects)


@pytest.mark.parametrize("families", PAIRS)
@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_nothing_is_wrong_with_the_state(families: str, mode: str) -> None:
    _, state = world(families, mode)
    assert faults(state) == []


SINGLE = (
    ("default/kubernetes:https", "tcp"),
    ("kube-system/kube-dns:dns", "udp"),
    ("kube-system/kube-dns:dns-tcp", "tcp"),
)


def test_both_families_have_the_same_rules() -> None:
    """Chains of the same names stand in both, but for Services of one family; KUBE-SEP has the address in its name."""
    _, state = world(BOTH)
    values = state["demo.node.node1"]
    names = {family: set[tuple[str, str]]() for family in ("ip", "ip6")}
    for value in values:
        if isinstance(value, Chain) and not value.name.startswith("KUBE-SEP-"):
            names[value.family].add((value.table, value.name))
    single = {names_.kube_chain("SVC", *port) for port in SINGLE}
    assert names["ip"] - names["ip6"] == {("nat", chain) for chain in single}
    assert names["ip6"] <= names["ip"]
    firewall = {
        value.family: value.rules for value in values if isinstance(value, Chain) and value.name == "KUBE-FIREWALL"
    }
    assert [bool(firewall["ip"]), bool(firewall["ip6"])] == [True, False]  # node ports on loopback: IPv4 alone


@pytest.mark.parametrize(("families", "tables"), [(FOUR, {"ip"}), (SIX, {"ip6"}), (BOTH, {"ip", "ip6"})])
def test_nothing_stands_of_a_family_the_cluster_has_not(families: str, tables: set[str]) -> None:
    for mode in ("iptables", "nftables"):
        _, state = world(families, mode)
        values = [value for found in state.values() for value in found]
        assert {value.family for value in values if isinstance(value, Chain)} == tables
        assert {value.family for value in values if isinstance(value, NftTable)} == (
            tables if mode == "nftables" else set()
        )
    assert any(map(is_of_ipv6, values)) == ("ip6" in tables)


def test_each_family_has_its_tunnel() -> None:
    _, state = world(BOTH)
    tunnels = sorted(
        (value.name, value.local, value.mtu) for value in state["demo.node.node1"] if isinstance(value, Vxlan)
    )
    assert tunnels == [("flannel-v6.1", "fd00:172:18::2", 1430), ("flannel.1", "172.18.0.2", 1430)]
    (way,) = [value for value in state["demo.node.node1"] if isinstance(value, Route) and value.dev == "flannel-v6.1"]
    assert way == Route("fd00:10:244:2::/64", "flannel-v6.1", "fd00:10:244:2::", onlink=True)


def told(words: str) -> str:
    head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1, kind: KubeProxyConfiguration"
    return f"---\n{{{head}, {words}}}\n"


def rules(objects: Objects, family: str, table: str, name: str) -> tuple[str, ...]:
    values = render(objects)["demo.node.node1"]
    key = ("chain", family, table, name)
    return next(value.rules for value in values if isinstance(value, Chain) and value.key == key)


def test_kube_proxy_is_told_of_both_families() -> None:
    """A pair of clusterCIDRs that agrees; nodePortAddresses of one family leave the other with every address."""
    agreed = "clusterCIDR: '10.244.0.0/16,fd00:10:244::/56', nodePortAddresses: ['fd00:172:18::/64']"
    objects = up(cluster(BOTH) + pod("a") + told(agreed))
    four, six = (rules(objects, family, "nat", "KUBE-SERVICES")[-1] for family in ("ip", "ip6"))
    assert "--dst-type LOCAL" in four
    assert six.startswith("-d fd00:172:18::2/128 ")
    assert "--dst-type" not in six
    other = refused(cluster(BOTH) + told("clusterCIDR: '10.244.0.0/16,fd00:10:245::/56'"))
    assert "clusterCIDR: is 10.244.0.0/16,fd00:10:245::/56, and Cluster" in other


def test_stale_flows_of_ipv6_go_too() -> None:
    objects, _ = world(BOTH)
    address = ips(objects, "dns")[1]
    flows = conntrack.flows(objects)
    good = Conntrack("fd00:10:244:1::9", 4000, address, 53, "[fd00:10:244:2::2]:53")
    gone = msgspec.structs.replace(good, sport=4001, answerer="[fd00:10:244:2::77]:53")
    changes = conntrack.stale(flows, {"demo.node.node1": frozenset([good, gone])})
    assert [change.value for change in changes] == [gone]


# --- where packets go -------------------------------------------------------------------------------------------------


def results(way: Way, state: State, asked: Packet) -> str:
    """The walk's word for one way, its answer included."""
    if way.result != "delivered":
        return way.result
    back = {reply.result for reply in answer(state, way, asked)}
    return "delivered" if back == {"delivered"} else "no answer"


def predicted(item: Expectation, state: State) -> tuple[set[str], set[str]]:
    """How a call ends by the walk, and the namespaces where it does."""
    asked = Packet(item.protocol.lower(), item.address, item.port)
    ways = walk(state, item.netns, asked)
    return {results(way, state, asked) for way in ways}, {way.netns for way in ways if way.result == "delivered"}


ENDS = {"ok": {"delivered"}, "refused": {"refused"}, "timeout": {"dropped"}, "unreachable": {"unreachable"}}


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
@pytest.mark.parametrize("families", [SIX, BOTH, SIX_FIRST])
def test_the_walk_keeps_every_expectation(families: str, mode: str) -> None:
    """Of each family as many expectations as of the other, and the rendered rules lead every packet as they say."""
    objects, state = world(families, mode)
    found = verify.expectations(objects)
    names = {f"default/{name}": f"demo.pod.default.{name}" for name in "ab"}
    wrong = []
    for item in found:
        ended, places = predicted(item, state)
        if item.want == "refused" and item.group not in {"service", "nodeport", "outside", "environment"}:
            continue
        if ended != ENDS[item.want] or (item.answers <= names.keys() and item.answers and item.want == "ok"
                                        and places != {names[who] for who in item.answers}):  # fmt: skip
            wrong.append((item.name, item.want, ended, places))
    assert wrong == []
    of_six = sum(":" in item.address for item in found)
    assert of_six > 60
    if families == SIX:
        assert of_six == len(found)


ROWS = [
    ("pod a", "pod b", "tcp", "b", "fd00:10:244:1::2"),
    ("pod a", "web", "tcp", "a b", "fd00:10:244:1::1 fd00:10:244:1::2"),  # to itself: masqueraded, else not
    ("pod a", "dns", "udp", "a b", "fd00:10:244:1::1 fd00:10:244:1::2"),
    ("pod a", "sticky", "tcp", "a b", "fd00:10:244:1::1 fd00:10:244:1::2"),
    ("pod a", "none", "tcp", "refused", ""),
    ("node node1", "web", "tcp", "a b", "fd00:10:244:1:: fd00:10:244:1::1"),
    ("host client", "web:node1", "tcp", "a b", "fd00:10:244:1:: fd00:10:244:1::1"),
    ("host client", "near:node1", "tcp", "a", "2001:db8:113::2"),  # Local: only here, and the client's address is seen
    ("host client", "near:node2", "tcp", "b", "2001:db8:113::2"),
    ("host client", "web", "tcp", "unreachable", ""),
]


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
@pytest.mark.parametrize(("sender", "to", "protocol", "expected", "seen"), ROWS)
def test_packets(mode: str, sender: str, to: str, protocol: str, expected: str, seen: str) -> None:
    """Sender, destination, protocol → who answers (or how it ends), and the source addresses they see. All IPv6."""
    objects, state = world(BOTH, mode)
    kind, _, name = sender.partition(" ")
    netns = f"demo.{kind}.default.{name}" if kind == "pod" else f"demo.{kind}.{name}"
    asked = Packet(protocol, *destination(objects, to))
    ways = walk(state, netns, asked)
    if expected in {"refused", "unreachable"}:
        assert {way.result for way in ways} == {expected}
        return
    assert {results(way, state, asked) for way in ways} == {"delivered"}
    assert {way.netns.rpartition(".")[2] for way in ways} == set(expected.split())
    assert {way.packet.src for way in ways} == set(seen.split())


def destination(objects: Objects, to: str) -> tuple[str, int]:
    """`pod b`, a Service's name (its IPv6 clusterIP), or `name:node` (its node port there)."""
    if to.startswith("pod "):
        found = objects[key(f"Pod/{to[4:]}")]
        assert isinstance(found, Pod)
        return model.pod_ips(found)[1], 80
    name, _, node = to.partition(":")
    service = objects[key(f"Service/{name}")]
    assert isinstance(service, Service)
    (port,) = service.spec.ports or ()
    if not node:
        return model.cluster_ips(service.spec)[1], port.port
    there = objects[key(f"Node/{node}")]
    assert isinstance(there, Node)
    return model.internal_ips(there)[1], port.nodePort or 0


# --- what a person reads ----------------------------------------------------------------------------------------------


def test_rules_are_told_by_family() -> None:
    for mode, words in (
        ("iptables", "to endpoint [fd00:10:244:2::2]:80 (pod b)"),
        ("nftables", "[fd00:10:244:2::2]:80 (pod b)"),
    ):
        objects, state = world(BOTH, mode)
        web = objects[key("Service/web")]
        assert isinstance(web, Service)
        four, six = "\n".join(rule_lines(objects, [web], state["demo.node.node1"])).split("--- IPv6 ---\n")
        assert four.startswith("--- IPv4 ---\ndefault/web: NodePort 10.96.")
        assert six.startswith(f"default/web: NodePort [{ips(objects)[1]}]:80/TCP, node port ")
        assert words in six
        assert f"to the Service's address [{ips(objects)[1]}]:80" in six


@pytest.mark.parametrize(
    ("to", "address", "port"),
    [
        ("[fd00:10:244:2::2]:81", "fd00:10:244:2::2", 81),
        ("[fd00:10:244:2::2]", "fd00:10:244:2::2", 80),
        ("fd00:10:244:2::2", "fd00:10:244:2::2", 80),
        ("pod/b", "10.244.2.2", 80),
    ],
)
def test_trace_takes_an_ipv6_address(to: str, address: str, port: int) -> None:
    """Without a port: the first that the pod serves, whichever of its addresses was named."""
    objects, _ = world(BOTH)
    found = trace.destination(objects, to, "default", "tcp")
    assert (found.address, found.port) == (address, port)


# --- files and programs -----------------------------------------------------------------------------------------------


def test_the_pod_server_opens_a_socket_per_family() -> None:
    config = Config((Served("n", "d", "a", "node1", "10.0.0.2", "a", tcp=(80,), ips=("10.0.0.2", "fd00::2")),))
    assert set(wanted(config, lambda _: 1)) == {Place("n", 1, "TCP", 80), Place("n", 1, "TCP", 80, "::")}
    alone = Config((Served("n", "d", "a", "node1", "fd00::2", "a", tcp=(80,), ips=("fd00::2",)),))
    assert set(wanted(alone, lambda _: 1)) == {Place("n", 1, "TCP", 80, "::")}


def test_the_topology_loads_with_a_list_too() -> None:
    text = TOPOLOGY.read_text().replace('"10.244.0.0/16,fd00:10:244::/56"', "[10.244.0.0/16, 'fd00:10:244::/56']")
    assert text != TOPOLOGY.read_text()
    said, plain = (model.cluster_of(load(words)) for words in (text, TOPOLOGY.read_text()))
    assert said.networking == plain.networking
