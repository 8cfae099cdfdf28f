"""A pod's hostPort: the portmap plugin's chains as whole texts, and packets walked through them in every mode."""

import pytest

from nsnet.model import Objects
from nsnet.render import conntrack, render
from nsnet.state import Chain, Conntrack, State, Sysctl
from nsnet.trace import Packet, answer, walk
from tests.controlled import up
from tests.fake import dangling

TOPOLOGY = """
{{apiVersion: nsnet/v1, kind: Cluster, metadata: {{name: w}}, nodes: 2, dns: {{enabled: false}},
networking: {{kubeProxyMode: {mode}}}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: web}}
spec:
  nodeName: node1
  containers:
  - name: c
    ports: [{{containerPort: 8080, hostPort: 80}}, {{containerPort: 53, protocol: UDP, hostPort: 5353}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: lo}}
spec: {{nodeName: node1, containers: [{{name: c, ports: [{{containerPort: 8080, hostPort: 81, hostIP: 127.0.0.1}}]}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: own}}
spec: {{nodeName: node1, containers: [{{name: c, ports: [{{containerPort: 8080, hostPort: 81, hostIP: 172.18.0.2}}]}}]}}
---
{{apiVersion: v1, kind: Pod, metadata: {{name: other}}, spec: {{nodeName: node2, containers: [{{name: c}}]}}}}
"""
MODES = ("iptables", "nftables", "userspace")
NODE1, NODE2 = "w.node.node1", "w.node.node2"


def objects(mode: str) -> Objects:
    return up(TOPOLOGY.format(mode=mode))


STATES = {mode: render(objects(mode)) for mode in MODES}
WEB, LO, OWN = "CNI-DN-76111baea4ad72da20878", "CNI-DN-95257677d498ad14208b4", "CNI-DN-d31c756a155032170c2b9"
IDS = {
    LO: "10b1d5047dff120b8e14ae1d27a3bfd639bfe463b8ae84be803b91f8a992ff6d",
    OWN: "d3c8254e2b04ec4e3bd913948c5d9312b8685fdacec17263925b3abc6e7c1d3e",
    WEB: "82b3ade9d00cd1642a4d420e670d6cd98eb4849a2ee0ff66d6689e645c8eb33f",
}
COMMENT = {chain: rf'-m comment --comment "dnat name: \"cbr0\" id: \"{digits}\""' for chain, digits in IDS.items()}
TEXT = f"""\
{WEB}
  -s 10.244.1.0/24 -p tcp -m tcp --dport 80 -j CNI-HOSTPORT-SETMARK
  -s 127.0.0.1/32 -p tcp -m tcp --dport 80 -j CNI-HOSTPORT-SETMARK
  -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.244.1.4:8080
  -s 10.244.1.0/24 -p udp -m udp --dport 5353 -j CNI-HOSTPORT-SETMARK
  -s 127.0.0.1/32 -p udp -m udp --dport 5353 -j CNI-HOSTPORT-SETMARK
  -p udp -m udp --dport 5353 -j DNAT --to-destination 10.244.1.4:53
{LO}
  -s 10.244.1.0/24 -d 127.0.0.1/32 -p tcp -m tcp --dport 81 -j CNI-HOSTPORT-SETMARK
  -s 127.0.0.1/32 -d 127.0.0.1/32 -p tcp -m tcp --dport 81 -j CNI-HOSTPORT-SETMARK
  -d 127.0.0.1/32 -p tcp -m tcp --dport 81 -j DNAT --to-destination 10.244.1.2:8080
{OWN}
  -s 10.244.1.0/24 -d 172.18.0.2/32 -p tcp -m tcp --dport 81 -j CNI-HOSTPORT-SETMARK
  -s 127.0.0.1/32 -d 172.18.0.2/32 -p tcp -m tcp --dport 81 -j CNI-HOSTPORT-SETMARK
  -d 172.18.0.2/32 -p tcp -m tcp --dport 81 -j DNAT --to-destination 10.244.1.3:8080
CNI-HOSTPORT-DNAT
  -p tcp {COMMENT[LO]} -m multiport --dports 81 -j {LO}
  -p tcp {COMMENT[OWN]} -m multiport --dports 81 -j {OWN}
  -p tcp {COMMENT[WEB]} -m multiport --dports 80 -j {WEB}
  -p udp {COMMENT[WEB]} -m multiport --dports 5353 -j {WEB}
CNI-HOSTPORT-MASQ
  -m mark --mark 0x2000/0x2000 -j MASQUERADE
CNI-HOSTPORT-SETMARK
  -m comment --comment "CNI portfwd masquerade mark" -j MARK --set-xmark 0x2000/0x2000
"""


def chains(state: State, netns: str) -> dict[str, tuple[str, ...]]:
    found = (value for value in state[netns] if isinstance(value, Chain) and value.table == "nat")
    return {value.name: value.rules for value in found}


@pytest.mark.parametrize("mode", MODES)
def test_the_chains_are_the_plugins_in_every_mode(mode: str) -> None:
    found = {name: rules for name, rules in chains(STATES[mode], NODE1).items() if name.startswith("CNI-")}
    assert "".join(f"{name}\n" + "".join(f"  {rule}\n" for rule in found[name]) for name in sorted(found)) == TEXT


@pytest.mark.parametrize("mode", MODES)
def test_its_jumps_stand_after_kube_proxys_and_its_masquerade_before_all(mode: str) -> None:
    found = chains(STATES[mode], NODE1)
    jump = "-m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT"
    assert found["PREROUTING"][-1] == found["OUTPUT"][-1] == jump
    assert found["POSTROUTING"][0] == '-m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ'
    assert list(dangling(STATES[mode][NODE1])) == []


@pytest.mark.parametrize("mode", MODES)
def test_a_node_without_a_host_port_has_nothing_of_it(mode: str) -> None:
    assert not [rule for rules in chains(STATES[mode], NODE2).values() for rule in rules if "CNI-" in rule]
    assert [
        {value.value for value in STATES[mode][netns] if value == Sysctl("net.ipv4.conf.cni0.route_localnet", said)}
        for netns, said in ((NODE1, "1"), (NODE2, "0"))
    ] == [{"1"}, {"0"}]


def test_twenty_ports_need_two_rules() -> None:
    ports = ", ".join(f"{{containerPort: {8000 + number}, hostPort: {8000 + number}}}" for number in range(20))
    text = f"""
{{apiVersion: nsnet/v1, kind: Cluster, metadata: {{name: w}}, nodes: 1, dns: {{enabled: false}}}}
---
{{apiVersion: v1, kind: Pod, metadata: {{name: many}}, spec: {{containers: [{{name: c, ports: [{ports}]}}]}}}}
"""
    rules = chains(render(up(text)), NODE1)["CNI-HOSTPORT-DNAT"]
    assert [rule.partition("--dports ")[2].split(" ")[0].count(",") + 1 for rule in rules] == [15, 5]


TABLE = """
# sender       destination        protocol  who   source seen
client         172.18.0.2:80      tcp       web   203.0.113.2
node2          172.18.0.2:80      tcp       web   172.18.0.3
node1          172.18.0.2:80      tcp       web   172.18.0.2
node1          127.0.0.1:80       tcp       web   10.244.1.1
node1          10.244.1.1:80      tcp       web   10.244.1.1
web            172.18.0.2:80      tcp       web   10.244.1.1
own            172.18.0.2:80      tcp       web   10.244.1.1
other          172.18.0.2:80      tcp       web   172.18.0.3
client         172.18.0.2:5353    udp       web   203.0.113.2
node1          127.0.0.1:5353     udp       web   10.244.1.1
# two pods share a number, each on its address
client         172.18.0.2:81      tcp       own   203.0.113.2
node1          127.0.0.1:81       tcp       lo    10.244.1.1
# TCP's port is not UDP's, and another node has none
client         172.18.0.2:80      udp       node1 203.0.113.2
client         172.18.0.3:80      tcp       node2 203.0.113.2
"""
ROWS = [line.split() for line in TABLE.splitlines() if line and not line.startswith("#")]


def place(name: str) -> str:
    kind = "node" if name.startswith("node") else "host" if name == "client" else "pod.default"
    return f"w.{kind}.{name}"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("row", ROWS, ids=[" ".join(row[:3]) for row in ROWS])
def test_packets(row: list[str], mode: str) -> None:
    sender, to, protocol, who, seen = row
    address, _, port = to.rpartition(":")
    packet = Packet(protocol, address, int(port))
    (way,) = walk(STATES[mode], place(sender), packet)
    assert (way.result, way.netns, way.packet.src) == ("delivered", place(who), seen)
    if who == "web":
        replies = answer(STATES[mode], way, packet)
        assert [(reply.result, reply.netns) for reply in replies] == [("delivered", place(sender))]


@pytest.mark.parametrize("mode", MODES)
def test_udp_entries_to_another_pod_than_the_ports_are_stale(mode: str) -> None:
    known = conntrack.flows(objects(mode))
    fresh = Conntrack("203.0.113.2", 4711, "172.18.0.2", 5353, "10.244.1.4:53")
    old = Conntrack("203.0.113.2", 4712, "172.18.0.2", 5353, "10.244.1.99:53")
    found = conntrack.stale(known, {NODE1: frozenset({fresh, old})})
    assert [change.value for change in found] == [old]
