"""`nsnet trace` and `nsnet rules` without a kernel: what they say of a rendered state, as a person reads it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from nsnet import model, names
from nsnet.cli import main as cli
from nsnet.cli import trace, trace_lines
from nsnet.cli.explain import rule_lines
from nsnet.cli.sentences import sentence
from nsnet.cli.target import target
from nsnet.errors import InputError, NotReachedError
from nsnet.model import Service
from nsnet.render import render
from nsnet.state import Chain, FdbEntry, Listener, Neighbour, Route, State, Sysctl, Value
from nsnet.trace import Packet
from tests.built import Place, built

GOLDEN = Path(__file__).parent / "golden"
NODES = {"node1": Place(pods="ab"), "node2": Place(pods="c")}
OBJECTS = built(NODES, services={"web": "10.96.0.10"})
STATE = render(OBJECTS)
NODE1, NODE2 = names.node_netns("demo", "node1"), names.node_netns("demo", "node2")
POD_C = names.pod_netns("demo", "default", "c")


def text(start: str, to: str, state: State = STATE, objects: model.Objects = OBJECTS, protocol: str = "tcp") -> str:
    """What `nsnet trace START TO` prints."""
    source, end = target(objects, start), trace.destination(objects, to, "default", protocol)
    asked = Packet(protocol, end.address, end.port)
    found = trace.traced(state, source, asked)
    return "\n".join(
        trace_lines.report(trace_lines.Followed(source, end, asked, found, trace_lines.look_of(state, objects)))
    )


def changed(netns: str, fault: Callable[[Value], Value | None], *more: Value) -> State:
    values = [fault(value) for value in STATE[netns]]
    return {**STATE, netns: frozenset([value for value in values if value is not None]) | frozenset(more)}


# --- whole texts ------------------------------------------------------------------------------------------------------

MAC = names.vtep_mac("demo", "node2", 1)
POD_TO_POD = f"""\
tcp from pod/a to pod/c, 10.244.2.2 port 80
pod/a
  out eth0 via 10.244.1.1  (10.244.0.0/16 via 10.244.1.1 dev eth0)
node/node1
  in cni0
  filter FORWARD: is it pod traffic?
      -m comment --comment "flanneld forward" -j FLANNEL-FWD
  filter FLANNEL-FWD: pod traffic may be forwarded
      -s 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
  out flannel.1 via 10.244.2.0  (10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink)
  vxlan id 1 to 172.18.0.3  (fdb {MAC} dst 172.18.0.3)
  out eth0  (172.18.0.0/16 dev eth0 proto kernel scope link src 172.18.0.2)
switch nodes
  bridge br0, node-node1 → node-node2
node/node2
  in eth0
  delivered to 172.18.0.3
  in flannel.1
  filter FORWARD: is it pod traffic?
      -m comment --comment "flanneld forward" -j FLANNEL-FWD
  filter FLANNEL-FWD: pod traffic may be forwarded
      -s 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
  out cni0  (10.244.2.0/24 dev cni0 proto kernel scope link src 10.244.2.1)
pod/c
  in eth0
  delivered to 10.244.2.2
delivered to pod/c at 10.244.2.2:80
reply: back to pod/a from 10.244.2.2:80, by pod/c → node/node2 → switch nodes → node/node1 → pod/a"""


def test_pod_to_pod_over_vxlan() -> None:
    assert text("a", "pod/c") == POD_TO_POD


TO_A_SERVICE = """\
tcp from host/client to 10.96.0.10:80
host/client
  out eth0 via 203.0.113.1  (default via 203.0.113.1 dev eth0)
switch outside
  bridge br0, host-client → router
router
  in outside
unreachable at router: no route to 10.96.0.10"""


def test_a_clusterip_is_of_no_use_outside() -> None:
    assert text("host/client", "10.96.0.10") == TO_A_SERVICE


SVC, SEP = names.kube_chain("SVC", "default/web", "TCP"), names.kube_sep("default/web", "TCP", "10.244.2.2:80")
LAST_WAY = f"""\
way 3, chance 33%
node/node2
  nat {SVC}: what is left, to endpoint 10.244.2.2:80 (pod c)  [default/web]
      -m comment --comment "default/web -> 10.244.2.2:80" -j {SEP}
  nat {SEP}: the destination becomes 10.244.2.2:80 (pod c)  [default/web]
      -p tcp -m comment --comment "default/web" -m tcp -j DNAT --to-destination 10.244.2.2:80
      to 10.96.0.10:80 → 10.244.2.2:80
  out cni0  (10.244.2.0/24 dev cni0 proto kernel scope link src 10.244.2.1)
  nat POSTROUTING: shall it leave with this node's address?
      -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
  nat KUBE-POSTROUTING: take the mark away, it has done its work
      -j MARK --set-xmark 0x4000/0x0
  nat KUBE-POSTROUTING: the source becomes this node's address
      -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
      from 172.18.0.3 → 10.244.2.1
pod/c
  in eth0
  delivered to 10.244.2.2
delivered to pod/c at 10.244.2.2:80 by Service default/web, chosen on node/node2, seen there as from 10.244.2.1
reply: back to node/node2 from 10.96.0.10:80, by pod/c → node/node2"""


def test_a_service_is_a_set_of_ways_with_what_changes() -> None:
    said = text("node/node2", "svc/web")
    assert said.startswith("tcp from node/node2 to svc/web, its clusterIP 10.96.0.10 port 80\nnode/node2\n")
    assert said.count(f"-j {SVC}\n") == 1  # what all ways share stands once, above them
    assert "\nfrom here one of 3 ways:\n\nway 1, chance 33%\n" in said
    assert said.endswith(LAST_WAY)


NFT = built(NODES, services={"web": "10.96.0.10"}, mode="nftables")
NFT_CHAIN = f"service-{names.nft_service('default/web', 'TCP')}"
NFT_WAY = f"""\
way 1, chance 33%
node/node1
  kube-proxy {NFT_CHAIN}: by chance to one of 3: 10.244.1.2:80 (pod a), 10.244.1.3:80 (pod b), 10.244.2.2:80 (pod c)  \
[default/web]
      meta l4proto tcp dnat ip addr . port to numgen random mod 3 map {{ 0 : 10.244.1.2 . 80, 1 : 10.244.1.3 . 80, \
2 : 10.244.2.2 . 80 }}
      to 10.96.0.10:80 → 10.244.1.2:80
  filter FORWARD: is it pod traffic?
      -m comment --comment "flanneld forward" -j FLANNEL-FWD
  filter FLANNEL-FWD: pod traffic may be forwarded
      -s 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
  out cni0  (10.244.1.0/24 dev cni0 proto kernel scope link src 10.244.1.1)
  kube-proxy nat-postrouting: shall it leave with this node's address?
      jump masquerading
  kube-proxy masquerading: a pod that reached itself: the source becomes this node's address
      ct status dnat ip saddr . ip daddr . meta l4proto . th dport @hairpin-connections masquerade fully-random
      from 10.244.1.2 → 10.244.1.1
pod/a
"""


def test_nftables_mode_in_its_own_words() -> None:
    said = text("a", "svc/web", render(NFT), NFT)
    assert NFT_WAY in said
    assert said.count("by Service default/web, chosen on node/node1") == 3


# --- how it ends ------------------------------------------------------------------------------------------------------


def without(kind: type[Value], text_in: str = "") -> Callable[[Value], Value | None]:
    return lambda value: None if isinstance(value, kind) and text_in in str(value) else value


def with_rule(chain: str, rule: str) -> Callable[[Value], Value]:
    def fault(value: Value) -> Value:
        if isinstance(value, Chain) and (value.table, value.name) == ("filter", chain):
            return replace(value, rules=(rule, *value.rules))
        return value

    return fault


def closed(value: Value) -> Value:
    if isinstance(value, Chain) and (value.table, value.name) == ("filter", "FORWARD"):
        return replace(value, policy="DROP", rules=())
    return value


def forwarding_off(value: Value) -> Value:
    return Sysctl(value.name, "0") if isinstance(value, Sysctl) and value.name == "net.ipv4.ip_forward" else value


DROP = "-p tcp -m tcp --dport 80 -j DROP"
REJECT = '-s 10.244.1.2/32 -m comment --comment "drop them" -j REJECT --reject-with icmp-port-unreachable'
ENDS = [
    ("fdb", changed(NODE1, without(FdbEntry)),
     f"unreachable at node/node1: flannel.1 has no FDB entry for {MAC}, the MAC of 10.244.2.0"),
    ("neighbour", changed(NODE1, without(Neighbour, "flannel")),
     "unreachable at node/node1: flannel.1 has no neighbour entry for 10.244.2.0"),
    ("rule", changed(NODE2, with_rule("FORWARD", DROP)), f"dropped on node/node2 by rule filter FORWARD: {DROP}"),
    ("reject", changed(NODE1, with_rule("FORWARD", REJECT)),
     f"refused on node/node1 by rule filter FORWARD: {REJECT}"),
    ("policy", changed(NODE2, closed), "dropped on node/node2 by a chain's policy: filter FORWARD"),
    ("ip_forward", changed(NODE2, forwarding_off), "dropped on node/node2 because net.ipv4.ip_forward is 0"),
    ("way back", changed(NODE2, without(Route, "10.244.1.0/24")),
     "reply: unreachable at router because no route to 10.244.1.2, by pod/c → node/node2 → switch nodes → router"),
    ("no listener", changed(POD_C, lambda value: value, Listener("TCP", 81)),
     "refused by pod/c: nothing listens on tcp 10.244.2.2:80 there"),
    ("listener elsewhere", changed(POD_C, lambda value: value, Listener("TCP", 80, "127.0.0.1")),
     "refused by pod/c: nothing listens on tcp 10.244.2.2:80 there"),
    ("listener of UDP", changed(POD_C, lambda value: value, Listener("UDP", 80)),
     "refused by pod/c: nothing listens on tcp 10.244.2.2:80 there"),
    ("listener", changed(POD_C, lambda value: value, Listener("TCP", 80)), POD_TO_POD.splitlines()[-1]),
]  # fmt: skip


@pytest.mark.parametrize(("state", "end"), [row[1:] for row in ENDS], ids=[row[0] for row in ENDS])
def test_the_last_line_says_where_and_why(state: State, end: str) -> None:
    assert text("a", "pod/c", state).splitlines()[-1] == end


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_a_service_without_endpoints_is_named(mode: str) -> None:
    objects = {key: obj for key, obj in built(NODES, services={"none": "10.96.0.9"}, mode=mode).items()
               if key.kind != "EndpointSlice"}  # fmt: skip
    last = text("a", "svc/none", render(objects), objects).splitlines()[-1]
    assert last.startswith("refused on node/node1 by rule ")
    assert "(Service default/none" in last
    assert "has no endpoints" in last


def test_what_state_cannot_tell_is_no_chance() -> None:
    state = changed(NODE2, with_rule("FORWARD", "-m owner --uid-owner 0 -j DROP"))
    said = text("a", "pod/c", state)
    assert said.count(", if a rule matches that state alone cannot decide\n") == 2
    assert "chance" not in said


def test_a_ping_has_no_ports() -> None:
    assert text("a", "pod/c", protocol="icmp").splitlines()[0] == "icmp from pod/a to pod/c, 10.244.2.2"
    assert text("a", "pod/c", protocol="icmp").splitlines()[-2] == "delivered to pod/c at 10.244.2.2"


def test_for_scripts() -> None:
    def said(state: State) -> Any:
        source, end = target(OBJECTS, "a"), trace.destination(OBJECTS, "svc/web", "default", "tcp")
        asked = Packet("tcp", end.address, end.port)
        found = trace.traced(state, source, asked)
        followed = trace_lines.Followed(source, end, asked, found, trace_lines.look_of(state, OBJECTS))
        return msgspec.to_builtins(trace_lines.document(followed))

    whole, broken = said(STATE), said(changed(NODE1, without(FdbEntry)))
    assert (whole["from"], whole["delivered"], broken["delivered"]) == ("pod/a", True, False)
    ends = [(way["result"], way["where"], round(way["chance"], 2), len(way["replies"])) for way in broken["ways"]]
    assert ends == [
        ("delivered", "pod/a", 0.33, 1),
        ("delivered", "pod/b", 0.33, 1),
        ("unreachable", "node/node1", 0.33, 0),
    ]
    dnat = next(hop for hop in whole["ways"][2]["hops"] if "DNAT" in hop.get("rule", ""))
    assert (dnat["service"], dnat["changed"]) == ("default/web", "to 10.96.0.10:80 → 10.244.2.2:80")


# --- TO ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "protocol", "expected"),
    [
        ("c", "tcp", ("10.244.2.2", 80, "pod/c, 10.244.2.2 port 80")),
        ("pod/c:81", "tcp", ("10.244.2.2", 81, "pod/c, 10.244.2.2 port 81")),
        ("svc/web", "tcp", ("10.96.0.10", 80, "svc/web, its clusterIP 10.96.0.10 port 80")),
        ("service/web:81", "udp", ("10.96.0.10", 81, "service/web, its clusterIP 10.96.0.10 port 81")),
        ("node/node2:30080", "tcp", ("172.18.0.3", 30080, "node/node2, 172.18.0.3 port 30080")),
        ("pod/default/c:81", "tcp", ("10.244.2.2", 81, "pod/c, 10.244.2.2 port 81")),
        ("svc/default/web", "tcp", ("10.96.0.10", 80, "svc/web, its clusterIP 10.96.0.10 port 80")),
        ("host/client", "icmp", ("203.0.113.2", 0, "host/client, 203.0.113.2")),
        ("10.244.2.2", "tcp", ("10.244.2.2", 80, "10.244.2.2:80")),
        ("192.0.2.1:443", "tcp", ("192.0.2.1", 443, "192.0.2.1:443")),
    ],
)
def test_to(to: str, protocol: str, expected: tuple[str, int, str]) -> None:
    found = trace.destination(OBJECTS, to, "default", protocol)
    assert (found.address, found.port, found.words) == expected


@pytest.mark.parametrize(
    ("to", "protocol", "error"),
    [
        ("svc/wob", "tcp", 'there is no Service "wob" in namespace default (did you mean web?)'),
        ("node/node2", "tcp", "node/node2: a TCP port is missing"),
        ("c", "udp", "c: a UDP port is missing"),
        ("192.0.2.1", "tcp", "192.0.2.1: a TCP port is missing"),
        ("c:http", "tcp", 'c:http: "http" is no port'),
        ("c:0", "tcp", 'c:0: "0" is no port'),
        ("c:65536", "tcp", 'c:65536: "65536" is no port'),
        ("lb", "tcp", "lb has an address in every network"),
        ("lb:80", "tcp", "lb has an address in every network"),
        ("svc/shop/web", "tcp", 'there is no Service "web" in namespace shop'),
        ("c:80", "icmp", "a ping has no ports"),
        ("svc/headless", "tcp", "svc/headless has no clusterIP"),
        ("svc/dns", "tcp", "svc/dns serves no TCP port"),
    ],
)
def test_wrong_to(to: str, protocol: str, error: str) -> None:
    docs: list[dict[str, Any]] = [
        {"clusterIP": "None", "ports": [{"port": 80}]},
        {"clusterIP": "10.96.0.53", "ports": [{"port": 53, "protocol": "UDP"}]},
    ]
    more = [
        model.from_doc({"apiVersion": "v1", "kind": "Service", "spec": doc,
                        "metadata": {"name": name, "namespace": "default"}})
        for name, doc in zip(("headless", "dns"), docs, strict=True)
    ]  # fmt: skip
    with pytest.raises(InputError) as said:
        trace.destination({**OBJECTS, **model.by_key(more)}, to, "default", protocol)
    assert str(said.value) == error


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("trace a c --udp --icmp", "error: --udp and --icmp contradict each other\nhint: leave one out\n"),
        ("trace a c --icmp --source-port 5", "error: a ping has no ports\nhint: leave out --source-port\n"),
    ],
)
def test_flags_that_contradict(words: str, error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(words.split()) == InputError.exit_code
    assert capsys.readouterr().err == error


# --- rules, in nftables mode ------------------------------------------------------------------------------------------


def test_every_value_of_nftables_mode_has_its_sentence() -> None:
    """Each rule and element of kube-proxy's golden text is known to `nsnet rules`."""
    lines = (GOLDEN / "proxy_nftables.txt").read_text().splitlines()
    said = {line: _said(line) for line in lines if line.startswith(("add rule ", "add element ", "add set affinity-"))}
    assert len(said) > 70
    assert [line for line, words in said.items() if not words] == []


def _said(line: str) -> str:
    what, name, rest = line.removeprefix("add ").split(" ", 2)
    if what == "rule":
        return sentence(name, rest, {})
    text = re.sub(r' comment "[^"]*"', "", rest.removeprefix("{ ").removesuffix(" }"))
    return sentence(f"{'map' if ' : ' in text else 'set'} {name}", text, {})


RULES = f"""\
default/web: ClusterIP 10.96.0.10:80/TCP
  set cluster-ips {{ 10.96.0.10 }}
        a Service has 10.96.0.10: on ports that are not its own it is refused
  map service-ips {{ 10.96.0.10 . tcp . 80 : goto {NFT_CHAIN} }}
        to the Service's address 10.96.0.10:80
  set hairpin-connections {{ 10.244.2.2 . 10.244.2.2 . tcp . 80 }}
        10.244.2.2 (pod c) calls itself: masquerade, or it would answer itself
  chain {NFT_CHAIN}: meta l4proto tcp dnat ip addr . port to numgen random mod 3 map {{ 0 : 10.244.1.2 . 80, \
1 : 10.244.1.3 . 80, 2 : 10.244.2.2 . 80 }}
        by chance to one of 3: 10.244.1.2:80 (pod a), 10.244.1.3:80 (pod b), 10.244.2.2:80 (pod c)
"""


def test_rules_of_a_service_in_nftables_mode() -> None:
    web = NFT[model.Key("Service", "default", "web")]
    assert isinstance(web, Service)
    assert "\n".join(rule_lines(NFT, [web], render(NFT)[NODE2])) == RULES


def test_rules_of_one_service_are_not_those_of_its_neighbours() -> None:
    """Names that begin alike, one of them without endpoints; both ports are 80."""
    objects = built(NODES, services={"web": "10.96.0.10", "web2": "10.96.0.11"}, mode="nftables")
    objects = {key: obj for key, obj in objects.items() if key != model.Key("EndpointSlice", "default", "web2-x")}
    values = render(objects)[NODE2]
    said = {item.metadata.name: "\n".join(rule_lines(objects, [item], values)) for item in model.of(objects, Service)}
    assert said["web"] == RULES
    assert (
        said["web2"]
        == """\
default/web2: ClusterIP 10.96.0.11:80/TCP
  set cluster-ips { 10.96.0.11 }
        a Service has 10.96.0.11: on ports that are not its own it is refused
  map no-endpoint-services { 10.96.0.11 . tcp . 80 : goto reject-chain }
        no endpoint: refused
"""
    )


def test_all_rules_in_nftables_mode_end_with_flannels() -> None:
    said = list(rule_lines(NFT, None, render(NFT)[NODE2]))
    assert [line for line in said if line and not line.startswith(" ")] == [
        "default/web: ClusterIP 10.96.0.10:80/TCP", "for all Services", "flannel",
    ]  # fmt: skip
    unexplained = [line for line, after in zip(said, [*said[1:], ""], strict=True)
                   if line.startswith("  ") and line[2] != " " and not after.startswith("        ")]  # fmt: skip
    assert unexplained == []


def test_a_pod_without_address_cannot_be_reached() -> None:
    pod = OBJECTS[model.Key("Pod", "default", "c")]
    assert isinstance(pod, model.Pod)
    pending = {**OBJECTS, model.key_of(pod): replace(pod, status=model.PodStatus())}
    with pytest.raises(NotReachedError, match="pod/c has no address"):
        trace.destination(pending, "c:80", "default", "tcp")
