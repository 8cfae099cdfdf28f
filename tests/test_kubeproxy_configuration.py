"""A KubeProxyConfiguration: what of a real one is read, whose word counts, and what each mode and the kernel make of it.

What is wrong with one stands in tests/wrong/kubeproxy.txt.
"""

# ruff: noqa: E501, ISC004 - a row of a table is one line

import json

import msgspec
import pytest

from nsnet import model, names
from nsnet.controller.pace import RESYNC, Pace, pace
from nsnet.manifests import kubeproxy
from nsnet.model import KubeProxyConfiguration, Node, NodeAddress, NodeSpec, NodeStatus, ObjectMeta, Objects
from nsnet.render import conntrack, proxy_iptables, proxy_nftables, render
from nsnet.render.kubeproxy import LocalDetector, Told
from nsnet.state import Chain, Conntrack, File, Nft, NftElement, Sysctl
from nsnet.verify.world import world
from tests.controlled import apply, delete, events, load, refused, stored, up

HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
CLUSTER = "apiVersion: nsnet/v1\nkind: Cluster\nmetadata: {name: demo}\n"
NODE1 = names.node_netns("demo", "node1")

KUBEADM = """
apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection: {acceptContentTypes: "", burst: 0, contentType: "", kubeconfig: /var/lib/kube-proxy/kubeconfig.conf, qps: 0}
clusterCIDR: 10.244.0.0/16
configSyncPeriod: 0s
conntrack: {maxPerCore: null, min: null, tcpBeLiberal: false, tcpCloseWaitTimeout: null, tcpEstablishedTimeout: null, udpStreamTimeout: 0s, udpTimeout: 0s}
detectLocal: {bridgeInterface: "", interfaceNamePrefix: ""}
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables: {localhostNodePorts: null, masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
ipvs: {excludeCIDRs: null, minSyncPeriod: 0s, scheduler: "", strictARP: false, syncPeriod: 0s, tcpFinTimeout: 0s, tcpTimeout: 0s, udpTimeout: 0s}
kind: KubeProxyConfiguration
logging: {flushFrequency: 0, options: {json: {infoBufferSize: "0"}, text: {infoBufferSize: "0"}}, verbosity: 0}
metricsBindAddress: ""
mode: ""
nftables: {masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel: {enableDSR: false, forwardHealthCheckVip: false, networkName: "", rootHnsEndpointName: "", sourceVip: ""}
"""


def config(objects: Objects) -> KubeProxyConfiguration:
    found = model.kube_proxy_of(objects)
    assert found is not None
    return found


def told(words: str) -> Told:
    objects = load(CLUSTER + "---\n" + HEAD + words)
    return Told(model.cluster_of(objects), config(objects))


def mode(objects: Objects) -> str:
    return model.cluster_of(objects).networking.kubeProxyMode


# --- the document -----------------------------------------------------------------------------------------------------


def test_kubeadms_own_file_is_taken_and_changes_nothing() -> None:
    assert config(load(KUBEADM)).metadata.name == "kube-proxy"
    with_it, without = up(KUBEADM), up(CLUSTER)
    assert render(with_it) == render(without)
    assert render(stored(with_it)) == render(without)


@pytest.mark.parametrize(
    ("words", "soonest", "latest"),
    [
        ("", 0, RESYNC),
        ("iptables: {syncPeriod: 0s, minSyncPeriod: 0s}", 0, RESYNC),
        ("iptables: {syncPeriod: 30s, minSyncPeriod: 500ms}", 0.5, 30),
        ("mode: userspace\niptables: {syncPeriod: 1m}", 0, 60),
        ("mode: nftables\niptables: {syncPeriod: 30s}\nnftables: {minSyncPeriod: 1s}", 1, RESYNC),
    ],
)
def test_the_controllers_pace(words: str, soonest: float, latest: float) -> None:
    assert pace(up(f"{HEAD}{words}\n")) == Pace(soonest, latest)
    assert pace(up(CLUSTER)) == Pace(0, RESYNC)


@pytest.mark.parametrize(
    ("words", "plain"),
    [
        ("clusterCIDR: 10.244.0.0/16", True),
        ("iptables: {masqueradeAll: true}", False),
        ("nftables: {masqueradeAll: true}", True),  # which is not the mode
        ("detectLocalMode: NodeCIDR", False),
        ("mode: userspace", False),
    ],
)
def test_verify_asks_who_is_seen_where_the_defaults_hold(words: str, plain: bool) -> None:
    assert world(up(f"{HEAD}{words}\n")).plain is plain


def test_userspace_modes_idle_time() -> None:
    """Of files of its time, until 1.25. Its default is the program's."""
    for said, there in (("250ms", 0.25), ("2s", 2.0), ("0s", None)):
        objects = up(f"{HEAD}mode: userspace\nudpIdleTimeout: {said}\n")
        (file,) = (item for item in render(objects)[NODE1] if isinstance(item, File) and "userproxy" in item.path)
        assert json.loads(file.content).get("udp_idle") == there


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("conntrack: {maxPerCore: 0, min: null}", ""),
        ("conntrack: {maxPerCore: 32768}", "conntrack.maxPerCore and conntrack.min have no effect"),
        ("mode: userspace\nportRange: 20000-21000", "portRange has no effect"),
        ("mode: userspace\nportRange: 0-0", ""),
        ("portRange: 20000-21000", ""),  # iptables mode has no proxy ports
        ("mode: userspace\nnodePortAddresses: [10.0.0.0/8]", "nodePortAddresses have no effect"),
    ],
)
def test_what_has_no_effect_is_said(words: str, said: str) -> None:
    found = [line for line in events(up(f"{HEAD}{words}\n")) if "KubeProxyConfiguration" in line]
    assert len(found) == bool(said)
    assert all(said in line for line in found)


def test_what_does_not_act_is_kept() -> None:
    objects = up(
        HEAD + "mode: nftables\nmetricsBindAddress: 0.0.0.0:10249\nnftables: {syncPeriod: 10s, masqueradeBit: 3}\n"
    )
    said = model.to_doc(config(stored(objects)))
    assert said["apiVersion"] == "kubeproxy.config.k8s.io/v1alpha1"
    assert said["metricsBindAddress"] == "0.0.0.0:10249"
    assert (said["nftables"]["syncPeriod"], said["nftables"]["masqueradeBit"]) == ("10s", 3)


@pytest.mark.parametrize(
    ("struct", "name"),
    [
        (KubeProxyConfiguration, "KubeProxyConfiguration"),
        (model.KubeProxyIPTablesConfiguration, "KubeProxyIPTablesConfiguration"),
        (model.KubeProxyNFTablesConfiguration, "KubeProxyNFTablesConfiguration"),
        (model.KubeProxyConntrackConfiguration, "KubeProxyConntrackConfiguration"),
        (model.DetectLocalConfiguration, "DetectLocalConfiguration"),
    ],
)
def test_structs_declare_fields_of_the_schema(struct: type[msgspec.Struct], name: str) -> None:
    assert set(struct.__struct_fields__) - {"raw"} <= kubeproxy.TYPES[name].keys()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0), ("0s", 0), ("30s", 30), ("1h30m", 5400), ("24h0m0s", 86400), ("500ms", 0.5), (".5h", 1800), ("+2m", 120),
        ("", None), ("30", None), ("-1s", None), ("1 s", None), ("s", None), ("1d", None), ("1h-2m", None), ("++1s", None),
    ],
)  # fmt: skip
def test_durations(text: str, seconds: float | None) -> None:
    assert model.seconds(text) == seconds


# --- whose word counts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cluster", "said", "counts"),
    [
        ("", "", "iptables"),
        ("", "nftables", "nftables"),
        ("nftables", "", "nftables"),
        ("nftables", "nftables", "nftables"),
        ("iptables", "iptables", "iptables"),
    ],
)
def test_the_mode(cluster: str, said: str, counts: str) -> None:
    networking = f"networking: {{kubeProxyMode: {cluster}}}\n" if cluster else ""
    objects = up(f"{CLUSTER}{networking}---\n{HEAD}mode: '{said}'\n")
    assert mode(objects) == counts
    tables = {type(value) for value in render(objects)[NODE1]}
    assert (Nft.__args__[0] in tables) == (counts == "nftables")


def test_a_mode_that_nobody_said_follows_the_configuration() -> None:
    objects = up(CLUSTER)
    assert mode(objects) == "iptables"
    objects = apply(stored(objects), HEAD + "mode: nftables\n")
    assert mode(objects) == "nftables"
    assert mode(apply(stored(objects), HEAD + "mode: iptables\n")) == "iptables"
    assert mode(delete(stored(objects), "KubeProxyConfiguration/kube-proxy")) == "iptables"
    assert mode(up(CLUSTER, stored(objects))) == "iptables"


def test_a_mode_that_was_said_stays_said() -> None:
    objects = up(CLUSTER + "networking: {kubeProxyMode: iptables}\n")
    error = refused(HEAD + "mode: nftables\n", stored(objects), whole=False)
    assert "networking.kubeProxyMode iptables" in error


@pytest.mark.parametrize(
    ("networking", "said", "error"),
    [
        ("kubeProxyMode: iptables", "mode: nftables",
         'KubeProxyConfiguration kube-proxy: mode: is nftables, and Cluster "demo" says networking.kubeProxyMode iptables '
         "(write the mode in one of the two, or the same in both)"),
        ("podSubnet: 10.1.0.0/16", "clusterCIDR: 10.244.0.0/16",
         'KubeProxyConfiguration kube-proxy: clusterCIDR: is 10.244.0.0/16, and Cluster "demo" says networking.podSubnet 10.1.0.0/16 '
         "(leave clusterCIDR out, or write networking.podSubnet: 10.244.0.0/16 in the Cluster document)"),
        ("dnsDomain: cluster.local", "clusterCIDR: 10.244.0.0/17",
         'KubeProxyConfiguration kube-proxy: clusterCIDR: is 10.244.0.0/17, and Cluster "demo" says networking.podSubnet 10.244.0.0/16 '
         "(leave clusterCIDR out, or write networking.podSubnet: 10.244.0.0/17 in the Cluster document)"),
    ],
)  # fmt: skip
def test_where_the_two_disagree_both_are_named(networking: str, said: str, error: str) -> None:
    assert refused(f"{CLUSTER}networking: {{{networking}}}\n---\n{HEAD}{said}\n") == error


def test_a_second_one_of_another_name_is_refused() -> None:
    objects = up(HEAD + "mode: iptables\n")
    assert refused(HEAD + "metadata: {name: other}\n", stored(objects), whole=False) == (
        "KubeProxyConfiguration other: metadata.name: there is another one, kube-proxy "
        "(keep one KubeProxyConfiguration; delete the other)"
    )


# --- what the modes make of it ----------------------------------------------------------------------------------------

NODE = Node(
    ObjectMeta(name="node1"),
    NodeSpec("10.244.1.0/24", ("10.244.1.0/24",)),
    NodeStatus(
        (
            NodeAddress("InternalIP", "172.18.0.2"),
            NodeAddress("InternalIP", "192.168.1.2"),
            NodeAddress("Hostname", "n"),
        )
    ),
)


@pytest.mark.parametrize(
    ("words", "detector"),
    [
        ("", LocalDetector("10.244.0.0/16")),
        ("detectLocalMode: ClusterCIDR", LocalDetector("10.244.0.0/16")),
        ("detectLocalMode: NodeCIDR", LocalDetector("10.244.1.0/24")),
        ("detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}", LocalDetector(interface="cni0")),
        (
            "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth}",
            LocalDetector(interface="veth+"),
        ),
    ],
)
def test_local_detection(words: str, detector: LocalDetector) -> None:
    assert proxy_iptables.settings_on(NODE, told(words)).detector == detector
    assert proxy_nftables.settings_on(NODE, told(words)).detector == detector


@pytest.mark.parametrize(
    ("words", "iptables", "nftables", "loopback"),
    [
        ("[]", None, ("primary",), True),
        ("[primary]", ("172.18.0.2",), ("primary",), False),
        ("[172.18.0.0/16]", ("172.18.0.2",), ("172.18.0.2",), False),
        ("[192.168.0.0/16, 172.18.0.2/32]", ("172.18.0.2", "192.168.1.2"), ("172.18.0.2", "192.168.1.2"), False),
        ("[10.244.0.0/16]", ("10.244.1.1", "10.244.1.0"), ("10.244.1.1", "10.244.1.0"), False),
        ("[127.0.0.0/8]", ("127.0.0.1",), ("127.0.0.1",), True),
        ("[0.0.0.0/0]", None, None, True),
        ("['fd00::/8']", None, None, True),  # none of the family: all of it
        ("[198.51.100.0/24]", (), (), False),
    ],
)
def test_node_port_addresses(words: str, iptables: object, nftables: object, loopback: bool) -> None:
    said = told(f"nodePortAddresses: {words}")
    settings = proxy_iptables.settings_on(NODE, said)
    assert (settings.node_port_addresses, settings.localhost_node_ports) == (iptables, loopback)
    assert proxy_nftables.settings_on(NODE, said).node_port_addresses == nftables


def test_each_mode_reads_its_own_section() -> None:
    said = told(
        "iptables: {masqueradeAll: true, masqueradeBit: 3}\nnftables: {masqueradeBit: 0}\nconntrack: {tcpBeLiberal: true}\n"
    )
    iptables, nftables = proxy_iptables.settings_on(NODE, said), proxy_nftables.settings_on(NODE, said)
    assert (iptables.masquerade_all, iptables.mark, iptables.conntrack_tcp_be_liberal) == (True, "0x8", True)
    assert (nftables.masquerade_all, nftables.mark) == (False, "0x00000001")


WEB = """
---
{apiVersion: v1, kind: Pod, metadata: {name: a, labels: {app: a}}, spec: {nodeName: node2, containers: [{name: c, ports: [{containerPort: 80}]}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {type: NodePort, clusterIP: 10.96.0.11, selector: {app: a}, ports: [{port: 80}]}}
"""


def rule(objects: Objects, node: str, chain: str, word: str) -> list[str]:
    values = render(objects)[names.node_netns("demo", node)]
    return [
        line
        for item in values
        if isinstance(item, Chain) and item.name.startswith(chain)
        for line in item.rules
        if word in line
    ]


def test_every_node_knows_its_own_pods_alone() -> None:
    objects = up(HEAD + "detectLocalMode: NodeCIDR\n" + WEB)
    for number in (1, 2):
        (line,) = rule(objects, f"node{number}", "KUBE-SVC-", "default/web cluster IP")
        assert line.startswith(f"! -s 10.244.{number}.0/24 -d 10.96.0.11/32 -p tcp")


def test_every_node_serves_node_ports_on_its_own_addresses() -> None:
    objects = up(HEAD + "nodePortAddresses: [172.18.0.0/16]\n" + WEB)
    for node, address in (("node1", "172.18.0.2"), ("node2", "172.18.0.3")):
        (line,) = rule(objects, node, "KUBE-SERVICES", "-j KUBE-NODEPORTS")
        assert line.startswith(f"-d {address}/32 ")
    objects = up(HEAD + "mode: nftables\nnodePortAddresses: [172.18.0.0/16]\n" + WEB)
    values = render(objects)[NODE1]
    assert [item.element for item in values if isinstance(item, NftElement) and item.set == "nodeport-ips"] == [
        "172.18.0.2"
    ]


@pytest.mark.parametrize(
    ("words", "different"),
    [
        ("", {}),
        ("mode: nftables", {"route_localnet": "0"}),
        ("iptables: {localhostNodePorts: false}", {"route_localnet": "0"}),
        ("nodePortAddresses: [172.18.0.0/16]", {"route_localnet": "0"}),
        ("conntrack: {tcpBeLiberal: true}", {"tcp_be_liberal": "1"}),
        ("conntrack: {tcpEstablishedTimeout: 1h0m0s, tcpCloseWaitTimeout: 90s}",
         {"tcp_timeout_established": "3600", "tcp_timeout_close_wait": "90"}),
        ("conntrack: {udpTimeout: 10s, udpStreamTimeout: 1m}", {"udp_timeout": "10", "udp_timeout_stream": "60"}),
        # 0: the node's own, which is Linux's default
        ("conntrack: {tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}",
         {"tcp_timeout_established": "432000", "tcp_timeout_close_wait": "60"}),
    ],
)  # fmt: skip
def test_sysctls(words: str, different: dict[str, str]) -> None:
    values = {value.name: value.value for value in render(up(f"{HEAD}{words}\n"))[NODE1] if isinstance(value, Sysctl)}
    usual = {value.name: value.value for value in render(up(CLUSTER))[NODE1] if isinstance(value, Sysctl)}
    assert values.keys() == usual.keys()
    found = {
        name.rpartition("nf_conntrack_")[2].rpartition(".")[2]: text
        for name, text in values.items()
        if usual[name] != text
    }
    assert found == different


# --- UDP conntrack entries that must go -------------------------------------------------------------------------------

UDP = """
{apiVersion: v1, kind: Service, metadata: {name: dns}, spec: {type: NodePort, clusterIP: 10.96.0.53, externalIPs: [198.51.100.9], ports: [{name: udp, port: 53, protocol: UDP, nodePort: 30053}, {name: tcp, port: 53, protocol: TCP, nodePort: 30053}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: empty}, spec: {type: NodePort, clusterIP: 10.96.0.54, ports: [{port: 53, protocol: UDP, nodePort: 30054}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 10.96.0.80, ports: [{port: 80}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: dns-1, labels: {kubernetes.io/service-name: dns}}
addressType: IPv4
ports: [{name: udp, port: 5353, protocol: UDP}, {name: tcp, port: 5353, protocol: TCP}]
endpoints:
  - {addresses: [10.244.1.2]}
  - {addresses: [10.244.1.3], conditions: {ready: false, serving: true, terminating: true}}
  - {addresses: [10.244.1.4], conditions: {ready: false, serving: false}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}, addressType: IPv4, ports: [{port: 80}], endpoints: [{addresses: [10.244.1.2]}]}
"""


@pytest.mark.parametrize(
    ("to", "answerer", "goes"),
    [
        ("10.96.0.53:53", "10.244.1.2:5353", False),
        ("10.96.0.53:53", "10.244.1.3:5353", False),  # terminating, but it serves
        ("10.96.0.53:53", "10.244.1.4:5353", True),  # does not serve
        ("10.96.0.53:53", "10.244.1.2:53", True),  # another port
        ("10.96.0.53:53", "10.244.9.9:5353", True),  # none that is there
        ("10.96.0.53:53", "10.96.0.53:53", True),  # of before the Service was there
        ("10.96.0.53:54", "10.244.1.2:5353", True),  # no port of the Service any more
        ("10.96.0.53:54", "10.96.0.53:54", False),  # and never was
        ("10.96.0.99:53", "10.244.1.2:5353", True),  # of a Service that is gone: its clusterIP,
        ("172.18.0.2:30099", "10.244.1.2:5353", True),  # the node port it freed,
        ("198.51.100.99:53", "10.244.1.2:5353", True),  # its external address
        ("198.51.100.9:53", "10.244.9.9:5353", True),  # externalIP
        ("198.51.100.9:53", "10.244.1.2:5353", False),
        ("172.18.0.2:30053", "10.244.9.9:5353", True),  # node port
        ("172.18.0.2:30053", "10.244.1.2:5353", False),
        ("172.18.0.2:30053", "172.18.0.2:30053", True),  # of before the Service was there
        ("10.244.1.1:30053", "10.244.1.1:30053", True),  # the bridge's address is the node's, too
        ("203.0.113.2:30053", "203.0.113.2:30053", False),  # passes the node and is no node port's
        ("10.96.0.54:53", "10.244.9.9:5353", True),  # a Service that lost all its endpoints
        ("172.18.0.2:30054", "10.244.9.9:5353", True),
        ("10.96.0.54:53", "10.96.0.54:53", False),  # it was never rewritten
        ("10.244.1.2:5353", "10.244.1.2:5353", False),  # pod to pod
    ],
)
def test_stale_entries(to: str, answerer: str, goes: bool) -> None:
    flows = conntrack.flows(up(UDP))
    address, _, port = to.rpartition(":")
    entry = Conntrack("10.244.2.9", 40000, address, int(port), answerer)
    changes = conntrack.stale(flows, {NODE1: frozenset({entry})})
    assert [(change.verb, change.netns, change.value) for change in changes] == [("delete", NODE1, entry)] * goes


def test_a_change_reads_as_the_line_that_makes_it() -> None:
    entry = Conntrack("10.244.2.9", 40000, "10.96.0.53", 53, "10.244.9.9:5353")
    (change,) = conntrack.stale(conntrack.flows(up(UDP)), {NODE1: frozenset({entry})})
    assert (
        str(change) == f"ip netns exec {NODE1} conntrack -D -p udp -s 10.244.2.9 --sport 40000 -d 10.96.0.53 --dport 53"
    )


def test_every_node_is_looked_at() -> None:
    """And the balancer. Without any UDP Service, too: there may have been one."""
    router = names.fabric_netns("demo", "router")
    assert sorted(conntrack.flows(up(CLUSTER))) == [router, NODE1, names.node_netns("demo", "node2")]
