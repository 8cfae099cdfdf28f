"""kube-proxy's userspace mode: its rules as whole texts, and a packet table walked through them and the process.

Row: sender, destination:port, protocol, who may answer, source seen there (`=`: the sender's own).
"""

from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsnet.model import Key, Object
from nsnet.render import proxy_userspace, services
from nsnet.render.proxy_userspace import FIRST, LAST, proxy_ports
from nsnet.state import Chain, Value
from nsnet.trace import Packet, Way, answer, service_of, walk
from tests import worlds
from tests.fake import dangling

OBJECTS = worlds.load(worlds.SERVICES)


def found(objects: Mapping[Key, Object]) -> tuple[proxy_userspace.Proxied, ...]:
    return proxy_userspace.proxied(services.join(objects), objects)


def built_in() -> frozenset[Chain]:
    rules: dict[tuple[str, str], list[str]] = {}
    for table, chain, rule in proxy_userspace.JUMPS:
        rules.setdefault((table, chain), []).append(rule)
    return frozenset(Chain(table, chain, tuple(lines), "ACCEPT") for (table, chain), lines in rules.items())


def values(objects: Mapping[Key, Object], node: str) -> frozenset[Value]:
    every = found(objects)
    chains = proxy_userspace.node_chains(every, services.place(worlds.node(node)))
    program = proxy_userspace.program(worlds.NAMES[node], proxy_userspace.configuration(every))
    return frozenset((*chains, *built_in(), *program))


STATE = worlds.network({name: values(OBJECTS, name) for name in worlds.NODES})


# --- whole texts ------------------------------------------------------------------------------------------------------

ONE = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.11
  type: NodePort
  externalIPs: [198.51.100.11]
  sessionAffinity: ClientIP
  ports: [{name: http, port: 80, nodePort: 30011}]
---
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.244.2.2], nodeName: node2}
- {addresses: [10.244.1.2], nodeName: node1}
- {addresses: [10.244.1.3], nodeName: node1, conditions: {ready: false, serving: true, terminating: true}}
"""
TEXT = """\
filter KUBE-NODEPORT-NON-LOCAL
  -p tcp -m comment --comment "t/web:http" -m tcp --dport 61413 -m state --state NEW -j ACCEPT
nat KUBE-NODEPORT-CONTAINER
  -p tcp -m comment --comment "t/web:http" -m tcp --dport 30011 -j REDIRECT --to-ports 61413
nat KUBE-NODEPORT-HOST
  -p tcp -m comment --comment "t/web:http" -m tcp --dport 30011 -j DNAT --to-destination 172.18.0.2:61413
nat KUBE-PORTALS-CONTAINER
  -d 10.96.0.11/32 -p tcp -m comment --comment "t/web:http" -m tcp --dport 80 -j REDIRECT --to-ports 61413
  -d 198.51.100.11/32 -p tcp -m comment --comment "t/web:http" -m tcp --dport 80 -m physdev ! --physdev-is-in \
-j REDIRECT --to-ports 61413
  -d 198.51.100.11/32 -p tcp -m comment --comment "t/web:http" -m tcp --dport 80 -m addrtype --dst-type LOCAL \
-j REDIRECT --to-ports 61413
nat KUBE-PORTALS-HOST
  -d 10.96.0.11/32 -p tcp -m comment --comment "t/web:http" -m tcp --dport 80 -j DNAT --to-destination 172.18.0.2:61413
  -d 198.51.100.11/32 -p tcp -m comment --comment "t/web:http" -m tcp --dport 80 -m addrtype --dst-type LOCAL \
-j DNAT --to-destination 172.18.0.2:61413
"""


def text(chains: frozenset[Chain]) -> str:
    ordered = sorted(chains, key=lambda chain: chain.key)
    return "".join(
        f"{chain.table} {chain.name}\n" + "".join(f"  {rule}\n" for rule in chain.rules) for chain in ordered
    )


def test_the_rules_of_one_service() -> None:
    chains = proxy_userspace.node_chains(found(worlds.load(ONE)), services.place(worlds.node("node1")))
    assert text(chains) == TEXT


def test_the_process_is_told_ready_endpoints_in_string_order() -> None:
    (service,) = msgspec.json.decode(proxy_userspace.configuration(found(worlds.load(ONE))))["services"]
    assert service == {
        "name": "t/web:http", "protocol": "tcp", "port": 61413, "node_port": 30011, "affinity": 10800,
        "endpoints": ["10.244.1.2:8080", "10.244.2.2:8080"],
    }  # fmt: skip


def test_without_a_service_there_are_empty_chains() -> None:
    chains = proxy_userspace.node_chains((), services.place(worlds.node("node1")))
    assert {(chain.table, chain.name) for chain in chains} == set(proxy_userspace.CHAINS)
    assert not any(chain.rules for chain in chains)


def test_no_jump_leads_nowhere() -> None:
    for name in worlds.NODES:
        assert list(dangling(STATE[worlds.NAMES[name]])) == []


# --- proxy ports ------------------------------------------------------------------------------------------------------

NAMED = st.tuples(st.text("abc", min_size=1, max_size=3), st.sampled_from(("tcp", "udp")))


@given(st.sets(NAMED, max_size=60), st.sets(st.tuples(st.sampled_from(("tcp", "udp")), st.integers(61000, 65535))))
def test_every_service_port_has_a_proxy_port_of_its_own(
    wanted: set[tuple[str, str]], taken: set[tuple[str, int]]
) -> None:
    ports = proxy_ports(wanted, taken)
    placed = {(protocol, port) for (_, protocol), port in ports.items()}
    assert len(placed) == len(wanted)
    assert not placed & taken
    assert ports == proxy_ports(sorted(wanted, reverse=True), taken)
    assert all(port in FIRST or port in LAST for port in ports.values())


def test_a_new_service_moves_hardly_any_other() -> None:
    many = [(f"ns/svc-{number}", "tcp") for number in range(500)]
    before, after = proxy_ports(many), proxy_ports([*many, ("a/new", "tcp")])
    assert sum(before[item] != after[item] for item in many) <= 1


def test_five_thousand_service_ports_find_room() -> None:
    ports = proxy_ports((f"ns/svc-{number}", "tcp") for number in range(10_000))
    assert len(set(ports.values())) == 10_000


def test_a_port_of_a_hostnetwork_pod_is_left_alone() -> None:
    port = proxy_ports([("t/web", "tcp")])["t/web", "tcp"]
    assert proxy_ports([("t/web", "tcp")], {("tcp", port)})["t/web", "tcp"] != port
    assert proxy_ports([("t/web", "tcp")], {("udp", port)})["t/web", "tcp"] == port


# --- packets ----------------------------------------------------------------------------------------------------------

TABLE = """
a1      10.96.0.11:80       tcp  e1|e2|e3   10.244.1.1|10.244.1.0
a2      10.96.0.11:80       tcp  e1|e2|e3   10.244.2.1|10.244.2.0
node1   10.96.0.11:80       tcp  e1|e2|e3   10.244.1.1|10.244.1.0
client  172.18.0.2:30011    tcp  e1|e2|e3   10.244.1.1|10.244.1.0
client  172.18.0.3:30011    tcp  e1|e2|e3   10.244.2.1|10.244.2.0
a1      172.18.0.2:30011    tcp  e1|e2|e3   10.244.1.1|10.244.1.0
a1      10.244.1.1:30011    tcp  e1|e2|e3   10.244.1.1|10.244.1.0
node1   172.18.0.3:30011    tcp  e1|e2|e3   10.244.2.1|10.244.2.0
node1   127.0.0.1:30011     tcp  e1|e2|e3   10.244.1.1|10.244.1.0
e1      10.96.0.11:80       tcp  e1|e2|e3   10.244.1.1|10.244.1.0
# no endpoint: the process takes the connection and closes it
a1      10.96.0.12:80       tcp  refused
client  172.18.0.2:30012    tcp  refused
# traffic policies are newer: every ready pod, from everywhere
client  172.18.0.3:30013    tcp  e1         10.244.2.0
a1      10.96.0.14:80       tcp  e3         10.244.1.0
# nor are source ranges asked
a2      192.0.2.15:80       tcp  e1         10.244.2.0
# an external address is not for pods, unless it is the node's own
a1      198.51.100.16:53    udp  unreachable
a1      10.96.0.16:53       udp  e1|e2      10.244.1.1
node2   10.96.0.16:53       udp  e1|e2      10.244.2.0
# terminating pods are no endpoints
a1      10.96.0.17:80       tcp  refused
# SCTP never was
a1      10.96.0.18:7        sctp unreachable
# other ports of a Service's address are routed on, as in iptables mode
a1      10.96.0.11:81       tcp  unreachable
a1      10.96.0.19:80       tcp  unreachable
"""
ROWS = [line.split() for line in TABLE.splitlines() if line and not line.startswith("#")]
PLACES = {netns: name for name, netns in worlds.NAMES.items()}


@pytest.mark.parametrize("row", ROWS, ids=[" ".join(row[:3]) for row in ROWS])
def test_packets(row: list[str]) -> None:
    sender, to, protocol, expected, *seen = row
    address, _, port = to.rpartition(":")
    packet = Packet(protocol, address, int(port))
    ways = walk(STATE, worlds.NAMES[sender], packet)
    assert {end(way) for way in ways} == set(expected.split("|")), "\n".join(map(str, ways))
    if seen:
        assert {way.packet.src for way in ways} == set(seen[0].split("|"))
        assert abs(sum(way.chance for way in ways) - 1) < 1e-9
        for way in ways:
            replies = answer(STATE, way, packet)
            assert [(reply.result, PLACES[reply.netns]) for reply in replies] == [("delivered", sender)]


def end(way: Way) -> str:
    return PLACES[way.netns] if way.result == "delivered" else way.result


def test_a_way_names_the_process_and_its_service() -> None:
    way = walk(STATE, worlds.NAMES["a1"], Packet("tcp", "10.96.0.11", 80))[0]
    step = next(hop for hop in way.hops if hop.what.startswith("process "))
    assert step.what == (
        "process userproxy: t/web:http picks 1 of 3 endpoints by turns: "
        "10.244.1.2:8080, 10.244.1.3:8080, 10.244.2.2:8080"
    )
    assert step.netns == worlds.NAMES["node1"]
    assert {service_of(hop.rule) for hop in way.hops if hop.rule.startswith("-")} >= {"t/web:http"}


def test_without_its_process_a_rule_leads_to_a_closed_port() -> None:
    """The process is killed: nothing follows the node, where nobody listens."""
    netns = worlds.NAMES["node1"]
    bare = {**STATE, netns: frozenset(value for value in STATE[netns] if not hasattr(value, "argv"))}
    (way,) = walk(bare, worlds.NAMES["a1"], Packet("tcp", "10.96.0.11", 80))
    assert (way.netns, way.through) == (netns, None)
    assert way.packet.dst == "10.244.1.1"
