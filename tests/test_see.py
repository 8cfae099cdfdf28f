"""Intended, predicted, observed: the sentence where they part; and the pages and pictures, without a kernel."""

from xml.etree import ElementTree as ET

import pytest
from msgspec.structs import replace

from nsnet import names
from nsnet.cli import graph, line, realised, snapshot
from nsnet.cli.context import Running
from nsnet.cli.trace_lines import look_of
from nsnet.errors import InputError
from nsnet.render import render
from nsnet.state import Address, Chain, FdbEntry, Neighbour, Route, State, Sysctl, Value, Veth
from nsnet.trace import Hop, Packet, walk
from nsnet.trace.observed import Sighting, hops, stations, unflooded
from nsnet.verify import parted
from nsnet.verify import why as whys
from nsnet.verify.expect import Expectation
from nsnet.verify.intent import intended
from nsnet.verify.judge import Result
from nsnet.verify.live import End, Observed
from nsnet.verify.why import explained, foretold
from tests.built import Place, built

OBJECTS = built({"node1": Place(pods="ab"), "node2": Place(pods="c")}, services={"web": "10.96.0.10"})
STATE = render(OBJECTS)
PLACE = look_of(STATE, OBJECTS).place
NODE1, NODE2 = names.node_netns("demo", "node1"), names.node_netns("demo", "node2")
SWITCH = names.fabric_netns("demo", "nodes")
POD_A, POD_C = (names.pod_netns("demo", "default", name) for name in "ac")
TO_C = Packet("tcp", "10.244.2.2", 80)
MAC = names.vtep_mac("demo", "node2", 1)


def without(netns: str, kind: type[Value]) -> State:
    return {**STATE, netns: frozenset(value for value in STATE[netns] if not isinstance(value, kind))}


# --- intended ---------------------------------------------------------------------------------------------------------

PROMISES = [
    ("pod to pod", POD_A, TO_C, "reach: pod/c"),
    ("pod to Service", POD_A, Packet("tcp", "10.96.0.10", 80), "reach: pod/a or pod/b or pod/c"),
    ("another port of it", POD_A, Packet("tcp", "10.96.0.10", 81), None),
    ("nobody's address", POD_A, Packet("tcp", "192.0.2.9", 80), None),
    ("host to pod", names.host_netns("demo", "client"), TO_C, "nothing: pod/c shall be out of reach of host/client"),
    ("host to Service", names.host_netns("demo", "client"), Packet("tcp", "10.96.0.10", 80),
     "nothing: Service default/web shall be out of reach of host/client"),
    ("node to node", NODE1, Packet("icmp", "172.18.0.3"), "reach: node/node2"),
    ("from nowhere", "demo.pod.default.nobody", TO_C, None),
]  # fmt: skip


@pytest.mark.parametrize(("netns", "packet", "said"), [row[1:] for row in PROMISES], ids=[row[0] for row in PROMISES])
def test_what_the_objects_promise(netns: str, packet: Packet, said: str | None) -> None:
    found = intended(OBJECTS, netns, packet)
    assert (f"{found.want}: {found.words}" if found else None) == said


def test_a_service_without_endpoints_refuses() -> None:
    objects = {key: obj for key, obj in OBJECTS.items() if key.kind != "EndpointSlice"}
    found = intended(objects, POD_A, Packet("tcp", "10.96.0.10", 80))
    assert found is not None
    assert (found.want, found.words) == ("refused", "Service default/web has no endpoint")


# --- predicted --------------------------------------------------------------------------------------------------------

IN_ORDER = "what the kernel has now leads where it should"
FAULTS = [
    ("healthy", STATE, IN_ORDER),
    ("fdb", without(NODE1, FdbEntry),
     ("should reach pod/c via flannel.1; it comes to out flannel.1 of node/node1; unreachable at node/node1: flannel.1 "
     f"has no FDB entry for {MAC}, the MAC of 10.244.2.0")),
    ("no way back", without(NODE2, Route),
     ("should reach pod/c via flannel.1; it arrives there; the answer: unreachable at node/node2: no route to "
     "10.244.1.2")),
    ("forwarding off",
     {**STATE, NODE2: frozenset(Sysctl(value.name, "0") if isinstance(value, Sysctl) and "forward" in value.name
                                else value for value in STATE[NODE2])},
     ("should reach pod/c via flannel.1; it comes to in flannel.1 of node/node2; dropped at node/node2: "
     "net.ipv4.ip_forward is 0")),
    ("a rule",
     {**STATE, NODE2: frozenset(replace(value, rules=("-p tcp -j DROP", *value.rules))
                                if isinstance(value, Chain) and value.name == "FORWARD" else value
                                for value in STATE[NODE2])},
     ("should reach pod/c via flannel.1; it comes to in flannel.1 of node/node2; dropped at node/node2 by filter "
     "FORWARD: -p tcp -j DROP")),
]  # fmt: skip


@pytest.mark.parametrize(("state", "sentence"), [row[1:] for row in FAULTS], ids=[row[0] for row in FAULTS])
def test_prediction_against_promise(state: State, sentence: str) -> None:
    said = parted.predicted(state, intended(OBJECTS, POD_A, TO_C), foretold(state, POD_A, TO_C), PLACE)
    assert (said.agree, said.sentence) == (sentence == IN_ORDER, sentence)


def test_verify_says_why_of_the_first_failures_and_looks_only_then(monkeypatch: pytest.MonkeyPatch) -> None:
    item = Expectation(group="pod-to-pod", source="pod/default/a", netns=POD_A, target="pod/default/c",
                       protocol="TCP", address="10.244.2.2", port=80)  # fmt: skip
    good, bad = Result(name="x", group="g", ok=True), Result(name="x", group="g", ok=False, reason="no answer")
    looked: list[State] = []

    def look() -> State:
        looked.append(without(NODE1, FdbEntry))
        return looked[-1]

    assert explained([item], [good], OBJECTS, look, PLACE) == [good]
    assert looked == []
    monkeypatch.setattr(whys, "MOST", 20)
    found = explained([item] * 30, [bad] * 30, OBJECTS, look, PLACE)
    assert len(looked) == 1
    assert [bool(one.why) for one in found] == [True] * 20 + [False] * 10
    assert found[0].why.startswith("should reach pod/c via flannel.1; ")


# --- observed ---------------------------------------------------------------------------------------------------------

SENT = Packet("tcp", "10.244.2.2", 80, "10.244.1.2", 40000)


def port_to(netns: str, other: str) -> str:
    return next(value.name for value in STATE[netns] if isinstance(value, Veth) and value.peer == other)


def mac_of(netns: str, dev: str) -> str:
    return next(value.mac for value in STATE[netns] if isinstance(value, Veth) and value.name == dev)


def seen(netns: str, dev: str, direction: str, carrier: str = "", mac: str = "") -> Sighting:
    return Sighting(netns, dev, direction == "out", SENT, carrier, mac)


WAY = [
    seen(POD_A, "eth0", "out"),
    seen(NODE1, port_to(NODE1, f"{POD_A}/eth0"), "in"),
    seen(NODE1, "cni0", "in"),
    seen(NODE1, "flannel.1", "out"),
    seen(NODE1, "eth0", "out", "172.18.0.3"),
    seen(SWITCH, port_to(SWITCH, f"{NODE1}/eth0"), "in", "172.18.0.3"),
    seen(SWITCH, port_to(SWITCH, f"{NODE2}/eth0"), "out", "172.18.0.3"),
    seen(NODE2, "eth0", "in", "172.18.0.3"),
    seen(NODE2, "flannel.1", "in"),
    seen(NODE2, "cni0", "out"),
    seen(NODE2, port_to(NODE2, f"{POD_C}/eth0"), "out"),
    seen(POD_C, "eth0", "in"),
]


def test_sightings_become_the_predicted_hops() -> None:
    rule = Hop(NODE1, "filter FORWARD", "-j FLANNEL-FWD")
    found = hops(STATE, WAY, {NODE1: [[rule]]})
    assert [f"{PLACE(hop.netns)}: {hop.what}" for hop in found] == [
        "pod/a: out eth0",
        "node/node1: in cni0",
        "node/node1: filter FORWARD",
        "node/node1: out flannel.1",
        "node/node1: vxlan to 172.18.0.3",
        "node/node1: out eth0",
        "switch nodes: bridge br0, node-node1 → node-node2",
        "node/node2: in eth0",
        "node/node2: in flannel.1",
        "node/node2: out cni0",
        "pod/c: in eth0",
    ]
    (way,) = walk(STATE, POD_A, TO_C)
    assert stations(STATE, found) == stations(STATE, way.hops)


def test_copies_that_a_switch_floods_do_not_count() -> None:
    to_node2 = mac_of(NODE2, "eth0")
    router = next(netns for netns in STATE if netns.endswith("fabric.router"))
    flooded = [
        seen(SWITCH, "node-node1", "in", mac=to_node2),
        seen(SWITCH, port_to(SWITCH, f"{router}/nodes"), "out", mac=to_node2),
        seen(router, "nodes", "in", mac=to_node2),
        seen(SWITCH, "node-node2", "out", mac=to_node2),
        seen(NODE2, "eth0", "in", mac=to_node2),
    ]
    assert [one.dev for one in unflooded(STATE, flooded)] == ["node-node1", "node-node2", "eth0"]


def observed(count: int, end: End, dropped: Hop | None = None) -> Observed:
    some = tuple(WAY[:count])
    return Observed(end, some[-1].netns, some, hops(STATE, some, {}), dropped_by=dropped)


TOGETHER = [
    ("all agree", len(WAY), "answered", None, "intended, predicted and observed agree"),
    ("lost on the wire", 5, "lost", None,
     "should reach pod/c via flannel.1; last seen out eth0 of node/node1; it never came in br0 of switch nodes"),
    ("dropped by a rule", 9, "lost", Hop(NODE2, "other c", "drop"),
     "should reach pod/c via flannel.1; last seen in flannel.1 of node/node2; dropped by other c: drop"),
    ("not answered", len(WAY), "lost", None,
     ("should reach pod/c via flannel.1; last seen in eth0 of pod/c; predicted was delivered at pod/c, observed lost, "
     "last seen in pod/c")),
    ("reset", len(WAY), "reset", None,
     ("should reach pod/c via flannel.1; last seen in eth0 of pod/c; predicted was delivered at pod/c, observed "
      "refused by pod/c (TCP reset)")),
]  # fmt: skip


@pytest.mark.parametrize(("count", "end", "dropped", "sentence"), [row[1:] for row in TOGETHER],
                         ids=[row[0] for row in TOGETHER])  # fmt: skip
def test_where_the_three_part(count: int, end: End, dropped: Hop | None, sentence: str) -> None:
    intent, ways = intended(OBJECTS, POD_A, TO_C), foretold(STATE, POD_A, TO_C)
    said = parted.compared(STATE, intent, ways, observed(count, end, dropped), PLACE)
    assert (said.agree, said.sentence) == (end == "answered", sentence)


# --- snapshot and diff ------------------------------------------------------------------------------------------------


def test_what_changed_since() -> None:
    before = {netns: list(values) for netns, values in STATE.items()}
    now = dict(without(NODE1, FdbEntry))
    now[NODE2] = frozenset(replace(value, rules=("-j DROP", *value.rules))
                           if isinstance(value, Chain) and value.name == "FORWARD" else value
                           for value in now[NODE2]) | {Address("eth0", "192.0.2.1/24")}  # fmt: skip
    del now[POD_C]
    assert [f"{PLACE(line.netns)} {line.sign} {line.text}" for line in snapshot.changes(before, now)] == [
        f"node/node1 - bridge fdb replace {MAC} dev flannel.1 dst 172.18.0.3 self permanent",
        "node/node2 + ip address add 192.0.2.1/24 dev eth0",
        "node/node2 + iptables -t filter -A FORWARD -j DROP",
        f"pod/c - ip netns add {POD_C}",
    ]
    assert list(snapshot.changes(before, STATE)) == []


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_mermaid() -> None:
    lines = list(graph.mermaid(graph.picture(OBJECTS)))
    assert lines[0] == "flowchart LR"
    assert '    subgraph n3["node1<br/>172.18.0.2, pods 10.244.1.0/24"]' in lines
    assert '  n9(["web<br/>10.96.0.10 80"])' in lines
    assert lines.count("  n9 --> n6") == 1
    assert sum(line.strip().startswith("subgraph") for line in lines) == sum(line.strip() == "end" for line in lines)


def test_svg_is_one_document_with_a_box_for_each() -> None:
    found = graph.picture(OBJECTS)
    root = ET.fromstring("\n".join(graph.svg(found)))
    space = "{http://www.w3.org/2000/svg}"
    assert {box.get("id") for box in root.iter(f"{space}g")} == {node.id for node in found.nodes}
    serves = {(path.get("data-from"), path.get("data-to")) for path in root.iter(f"{space}path")}
    assert serves == {("svc/default/web", f"pod/default/{name}") for name in "abc"}


def test_dot_quotes_names() -> None:
    lines = list(graph.dot(graph.picture(OBJECTS)))
    assert lines[0] == 'digraph "demo" {'
    assert lines[-1] == "}"
    assert sum(line.count("{") - line.count("}") for line in lines) == 0


# --- explain ----------------------------------------------------------------------------------------------------------

WHO = {"10.244.2.2": "pod c", "172.18.0.3": "node node2", "10.244.2.0/24": "the pods of node node2"}


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (Route("10.244.2.0/24", "flannel.1", "10.244.2.0", onlink=True), "the pods of node node2, through the overlay"),
        (Route("10.244.2.0/24", "eth0", "172.18.0.3"), "the pods of node node2, by the underlay itself (host-gw)"),
        (Route("default", "eth0", "172.18.0.1"), "everything else"),
        (Neighbour("cni0", "10.244.2.2", "0a:58:0a:f4:02:02"), "the MAC of pod c, written and not asked for by ARP"),
        (FdbEntry("flannel.1", MAC, "172.18.0.3"), "frames for this MAC go to node node2 in a UDP packet"),
        (Address("cni0", "10.244.1.1/24"), "the gateway of this node's pods"),
        (Sysctl("net.ipv4.ip_forward", "1"), "the node routes between its pods and the network"),
    ],
)
def test_each_line_has_its_reason(value: Value, why: str) -> None:
    assert realised.reason(value, WHO) == why


def test_what_has_no_page_is_said() -> None:
    with pytest.raises(InputError) as said:
        list(realised.page(Running("demo", OBJECTS), "lb", "default"))
    assert (str(said.value), said.value.hint) == ("lb cannot be explained", "nsnet rules lb shows its rules")


@pytest.mark.parametrize(
    ("dst", "dev", "leads"),
    [("10.244.2.0/24", "eth0", True), ("10.244.0.0/16", "flannel.1", True), ("default", "flannel.1", True),
     ("default", "eth0", False), ("10.244.3.0/24", "flannel.1", False)],
)  # fmt: skip
def test_which_routes_lead_to_the_pods_of_another_node(dst: str, dev: str, leads: bool) -> None:
    assert realised._leads_to_pods(Route(dst, dev), "10.244.2.0/24") is leads


def test_a_page_has_headings_once() -> None:
    lines = [line.Line("title", "", "one", "because"), line.Line("title", "", "two"),
             line.Line("ways", "ns", "three")]  # fmt: skip
    assert list(line.printed(lines)) == [
        "title",
        "  one",
        "        because",
        "  two",
        "\nways",
        "  ns",
        "    three",
    ]
