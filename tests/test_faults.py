"""The catalogue without a kernel: what each fault changes and leaves, who may have it where, what is said of it."""

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from nsnet import faults, model, names
from nsnet.cli import fault as cli
from nsnet.cli import graph
from nsnet.diff import diff
from nsnet.errors import InputError, ObjectError
from nsnet.faults import CATALOGUE
from nsnet.faults.services import VALID
from nsnet.model import Fault, FaultSpec, FaultStatus, Key, Object, ObjectMeta
from nsnet.render import render
from nsnet.state import SYSCTLS, Chain, ConntrackTable, Hold, Offload, State, Sysctl, Value, lines
from nsnet.trace import Packet, walk
from nsnet.trace.further import lost_when_large
from nsnet.trace.observed import stations
from tests.controlled import up
from tests.faulted import HERE, netns_of, rows

OBJECTS = up((HERE / "cluster.yaml").read_text().replace("name: faulted", "name: demo"))
STATE = render(OBJECTS)
WHERE = {"node": "node/node1", "machine": "node/node1", "any": "node/node1", "pod": "pod/default/a",
         "service": "svc/default/far"}  # fmt: skip


def made(kind: str, *on: str, **spec: Any) -> Fault:
    return Fault(ObjectMeta(name=kind), FaultSpec(kind, on, **spec))


def with_(*found: Fault) -> dict[Key, Object]:
    return {**OBJECTS, **{model.key_of(item): item for item in found}}


def wanted(objects: Mapping[Key, Object]) -> State:
    return faults.broken(render(faults.asked(objects)), objects)


FAILURES = {  # what people debug, as the field's issues have it, and the kinds that make it
    "MTU black hole": {"mtu-black-hole", "mtu"},
    "br_netfilter off": {"bridge-nf-off"},
    "FORWARD policy DROP, and rules in the other iptables": {"forward-drop", "legacy-forward-drop"},
    "ip_forward off": {"ip-forward-off"},
    "a pod cannot reach itself through its Service": {"hairpin-off", "hairpin-no-masquerade"},
    "missing masquerade": {"no-masquerade", "no-egress-masquerade"},
    "stale UDP conntrack": {"stale-conntrack"},
    "DNS: 5-second delays and ndots": {"dns-slow", "ndots"},
    "externalTrafficPolicy: Local without a local endpoint": {"local-policy"},
    "rp_filter and asymmetric routing": {"rp-filter"},
    "stale FDB or ARP after a VTEP changed": {"stale-vtep", "missing-fdb"},
    "VNI or port mismatch, or 8472 blocked": {"vni-mismatch", "vxlan-port-mismatch", "vxlan-blocked"},
    "VXLAN checksum offload": {"vxlan-checksum"},
    "wrong targetPort, wrong selector, no ready endpoints": {"wrong-target-port", "no-endpoints", "pod-stopped"},
    "overlapping CIDRs": {"overlapping-cidr"},
    "conntrack INVALID, then RST": {"conntrack-invalid"},
    "conntrack table full": {"conntrack-full"},
    "a NetworkPolicy that forgets DNS": {"policy-forgets-dns"},
    "pod default route missing": {"no-default-route"},
    "duplicate pod IP": {"duplicate-ip"},
    "double NAT": {"double-nat"},
    "node has no route for the Service range": {"no-service-route"},
}  # fmt: skip
IMPAIRED = {"link-down", "loss", "delay", "rate", "duplicate", "reorder", "mtu", "partition", "node-down"}
STOPPED = {"kube-proxy-stopped", "flanneld-stopped", "kubedns-stopped", "pod-stopped"}


def test_every_failure_that_people_debug_can_be_made() -> None:
    assert set(CATALOGUE) == set().union(*FAILURES.values()) | IMPAIRED | STOPPED | {"hands-off"}


@pytest.mark.parametrize("kind", CATALOGUE)
def test_every_kind_says_all_there_is_to_say_and_can_be(kind: str) -> None:
    known = CATALOGUE[kind]
    assert all((known.title, known.symptom, known.cause, known.detect, known.mend))
    assert not known.symptom.endswith(" ")
    assert any((known.damage, known.hold, known.asked, known.derived))
    assert all(option.default == "" or option.fits(option.default) for option in known.options)
    assert all(option.fits(option.example) for option in known.options)
    fault = made(kind, WHERE[known.places])
    faults.check(fault, with_(fault))
    said = "\n".join(cli.described(known))
    assert said.startswith(f"{kind}: {known.title}\nsymptom  ")
    assert f"nsnet fault add {kind}" in said


@pytest.mark.parametrize("kind", [name for name, known in CATALOGUE.items() if known.damage or known.asked])
def test_what_it_changes_is_what_a_look_sees_and_undoes(kind: str) -> None:
    """Only sysctls that are read and wanted anyway, or there would be no way back."""
    known = CATALOGUE[kind]
    on = () if known.everywhere else (WHERE[known.places],)
    fault = made(kind, *on, means="netem" if "netem" in known.needs else "")
    broken = wanted(with_(fault))
    if kind == "kube-proxy-stopped":  # changes something in userspace mode alone
        assert broken == STATE
        return
    there, back = diff(STATE, broken), diff(broken, STATE)
    assert there
    assert back
    read = {name for found in SYSCTLS.values() for name in found}
    values = [change.value for change in there]
    assert {value.name for value in values if isinstance(value, Sysctl)} <= read
    assert {change.netns for change in there} == {change.netns for change in back}


def test_faults_stand_beside_each_other() -> None:
    """Several on one node, and two on one link, whose discipline does both."""
    objects = with_(
        made("ip-forward-off", "node/node1"),
        made("delay", "node/node1", options={"delay": "5ms"}, means="netem"),
        made("loss", "node/node1", options={"loss": "1%"}, means="netem"),
    )
    node = names.node_netns("demo", "node1")
    changes = [line for change in diff(STATE, wanted(objects)) for line in lines(change) if change.netns == node]
    assert changes == [
        f"ip netns exec {node} sysctl -w net.ipv4.ip_forward=0",
        f"tc -n {node} qdisc replace dev eth0 root netem limit 10000 delay 5000us loss 1%",
    ]


def test_nothing_is_broken_without_a_fault() -> None:
    assert faults.broken(STATE, OBJECTS) is STATE
    assert faults.asked(OBJECTS) is OBJECTS
    assert faults.derived(OBJECTS) is OBJECTS
    assert faults.holds(STATE, OBJECTS) == frozenset()


@pytest.mark.parametrize("kind", [kind for kind in CATALOGUE.values() if kind.damage], ids=lambda kind: kind.name)
def test_a_namespace_that_is_not_wanted_here_is_not_made(kind: faults.Kind) -> None:
    """Of a cluster over several machines every machine wants its own namespaces alone."""
    where = {"service": ("svc/default/far",), "pod": ("pod/default/c",)}.get(kind.places, ("node/node2",))
    fault = made(kind.name, *where, to=("node/node1",) if kind.pairs else (), leave="keys")
    here = {netns: values for netns, values in STATE.items() if netns != names.node_netns("demo", "node2")}
    objects = with_(msgspec.structs.replace(fault, status=FaultStatus(done=True)))
    assert faults.broken(here, objects).keys() == here.keys()
    assert kind.hold or all(netns in here for netns, _ in faults.holds(here, objects))


def test_a_time_that_is_none_never_comes() -> None:
    """One that came past `check`: what stands in the store may be anybody's."""
    objects = with_(made("ip-forward-off", "node/node1", until="tomorrow"))
    assert faults.standing(objects, "2026-12-01T10:00:00Z") == objects
    assert list(faults.ends(objects)) == []


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (made("ip-forward"), 'spec.fault: there is no fault "ip-forward" (did you mean ip-forward-off?)'),
        (made("ip-forward-off"), "spec.where: is missing"),
        (made("ip-forward-off", "node/nodeX"), "spec.where: there is no node/nodeX"),
        (made("ip-forward-off", "pod/default/a"), "spec.where: ip-forward-off cannot be on pod/default/a"),
        (made("ip-forward-off", "node/node1", to=("node/node2",)), "spec.to: ip-forward-off has one side only"),
        (made("partition", "node/node1", to=("node/node1",)), "spec.to: node/node1 is on both sides"),
        (made("mtu", "node/node1", options={"size": "1"}), "spec.options.size: mtu has no such option"),
        (made("loss", "node/node1", options={"loss": "200%"}), 'spec.options.loss: "200%" does not fit'),
        (made("mtu", "node/node1", options={"mtu": "99999"}), 'spec.options.mtu: "99999" does not fit'),
        (made("vni-mismatch", "node/node1", options={"vni": "16777216"}), 'spec.options.vni: "16777216" does not fit'),
        (made("vxlan-port-mismatch", "node/node1", options={"port": "0"}), 'spec.options.port: "0" does not fit'),
        (made("wrong-target-port", "svc/default/far", options={"port": "65536"}), '"65536" does not fit'),
        (made("overlapping-cidr", "node/node1", options={"cidr": "999.1.1.1/99"}), '"999.1.1.1/99" does not fit'),
        (made("ip-forward-off", "node/node1", until="tomorrow"), 'spec.until: "tomorrow" is no time'),
        (made("ip-forward-off", "node/node1", until="2026-13-01T10:00:00Z"), 'spec.until: "2026-13-01T10:00:00Z"'),
        (made("ip-forward-off", "node/node1", until="2026-12-01T10:00:00+05:00"), "is no time"),
        (made("no-endpoints", "svc/default/far", leave="keys"), 'spec.leave: "keys" is not possible'),
        (made("ip-forward-off", "node/node1", leave="it"), 'spec.leave: "it" is not possible'),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_field(fault: Fault, said: str) -> None:
    with pytest.raises(ObjectError) as refused:
        faults.check(fault, OBJECTS)
    assert said in str(refused.value)
    assert refused.value.hint


def test_a_fault_of_the_tunnel_needs_one() -> None:
    cluster = model.cluster_of(OBJECTS)
    backend = msgspec.structs.replace(cluster.flannel.Backend, Type="host-gw")
    other = msgspec.structs.replace(cluster, flannel=msgspec.structs.replace(cluster.flannel, Backend=backend))
    with pytest.raises(ObjectError, match="there is no tunnel"):
        faults.check(made("vni-mismatch", "node/node1"), {**OBJECTS, model.key_of(cluster): other})


# --- the checksum of a tunnel's packet --------------------------------------------------------------------------------

NODE, FAR = names.node_netns("demo", "node1"), "10.96.0.102"
POSTROUTING = Chain("nat", "KUBE-POSTROUTING")
TO_FAR, PING = Packet("tcp", FAR, 80), Packet("icmp", "10.244.2.2")


def _postrouting(*rules: str) -> Chain:
    return msgspec.structs.replace(POSTROUTING, rules=("-m mark ! --mark 0x4000/0x4000 -j RETURN", *rules))


@pytest.mark.parametrize(
    ("values", "netns", "packet", "result"),
    [
        ((), NODE, TO_FAR, "dropped"),
        ((Offload("flannel.1", ("tx", "tso")),), NODE, TO_FAR, "delivered"),
        ((Offload("eth0", ("tso",)),), NODE, TO_FAR, "delivered"),  # nobody looks at sums that nobody has computed
        ((_postrouting("-j MASQUERADE"),), NODE, TO_FAR, "delivered"),
        ((_postrouting("-j MARK --set-xmark 0x4000/0x0", "-j MASQUERADE --random-fully"),), NODE, TO_FAR, "delivered"),
        ((), NODE, Packet("udp", "172.18.0.2", 30082), "dropped"),  # it goes by lo at first, which offloads
        ((), NODE, Packet("udp", FAR, 5300), "delivered"),  # the sum of the node's own UDP is made before eth0
        ((), names.host_netns("demo", "client"), Packet("udp", "172.18.0.2", 30082), "dropped"),
        ((), names.pod_netns("demo", "default", "a"), TO_FAR, "delivered"),  # not masqueraded
        ((), NODE, PING, "delivered"),
    ],
)
def test_a_wrong_checksum_takes_an_offload_a_new_port_and_somebody_who_looks(
    values: tuple[Value, ...], netns: str, packet: Packet, result: str
) -> None:
    state = dict(wanted(with_(made("vxlan-checksum", "node/node1"))))
    keys = {value.key for value in values}
    state[NODE] = frozenset({*values, *(value for value in state[NODE] if value.key not in keys)})
    assert [way.result for way in walk(state, netns, packet)] == [result]


# --- where a packet is seen last --------------------------------------------------------------------------------------

SIX = up((HERE / "dual-stack.yaml").read_text().replace("name: faulted", "name: demo"))
B, B6 = Packet("tcp", "10.244.1.3", 80), Packet("tcp", "fd00:10:244:1::3", 80)


@pytest.mark.parametrize(
    ("objects", "fault", "netns", "packet", "last", "why"),
    [
        (OBJECTS, made("forward-drop", "node/node1"), "a", B, "node1 in cni0", "policy DROP"),
        (OBJECTS, made("loss", "node/node2", options={"loss": "100%"}, means="statistic"), "c", B,
         "node2 out flannel.1", "-o eth0 -j DROP"),
        (OBJECTS, made("node-down", "node/node2"), "node2", Packet("tcp", "10.244.2.2", 80), "",
         "no carrier: nothing is plugged into cni0 that is up"),
        (SIX, made("forward-drop", "node/node1"), "a", B, "node1 in cni0", "policy DROP"),
        (SIX, made("forward-drop", "node/node1"), "a", B6, "",
         "nobody hears who asks for the neighbour fd00:10:244:1::3: dropped on node/node1 by filter FORWARD"),
    ],
)  # fmt: skip
def test_what_is_not_let_through_goes_out_nowhere(
    objects: Mapping[Key, Object], fault: Fault, netns: str, packet: Packet, last: str, why: str
) -> None:
    state = wanted({**objects, model.key_of(fault): fault})
    (way,) = walk(state, netns_of(netns).replace("faulted.", "demo."), packet)
    seen = [f"{names.called(place).rpartition('/')[2]} {how} {dev}" for place, how, dev in stations(state, way.hops)]
    assert way.result in {"dropped", "unreachable"}
    assert why in way.reason
    assert (seen[-1] if seen else "") == last


# --- conntrack --------------------------------------------------------------------------------------------------------

POD = names.pod_netns("demo", "default", "a")
LIBERAL = "net.netfilter.nf_conntrack_tcp_be_liberal"
STRANGE = "the answer comes from 10.244.2.2:80, which nobody asked: conntrack on node/node1 takes it for INVALID"
DROPPED = Chain("filter", "FORWARD", (VALID.replace("--ctstate", "-m conntrack --ctstate"),), "ACCEPT")


@pytest.mark.parametrize(
    ("values", "netns", "packet", "said"),
    [
        ((), POD, TO_FAR, STRANGE),
        ((), POD, Packet("tcp", "10.244.2.2", 80), ""),  # TCP copes with it where nothing is translated
        ((), names.pod_netns("demo", "default", "e"), TO_FAR, ""),  # of another node
        ((), POD, Packet("tcp", "10.96.0.101", 80), ""),  # it does not come from another node
        ((), POD, Packet("udp", FAR, 5300), ""),
        ((Sysctl(LIBERAL, "1"),), POD, TO_FAR, ""),
        ((DROPPED,), POD, TO_FAR, ""),  # it is sent again
    ],
)
def test_a_segment_out_of_the_window_is_not_translated_back(
    values: tuple[Value, ...], netns: str, packet: Packet, said: str
) -> None:
    state = dict(wanted(with_(made("conntrack-invalid", "node/node1"))))
    keys = {value.key for value in values}
    state[NODE] = frozenset({*values, *(value for value in state[NODE] if value.key not in keys)})
    lost = lost_when_large(state, netns, packet, walk(state, netns, packet))
    assert said in (lost.reason if lost else "")
    assert bool(lost) is bool(said)


@pytest.mark.parametrize(
    ("netns", "packet", "result"),
    [
        (POD, TO_FAR, "dropped"),
        (POD, Packet("tcp", "10.244.1.3", 80), "dropped"),  # bridged, and shown to netfilter all the same
        (NODE, PING, "dropped"),
        (names.pod_netns("demo", "default", "c"), PING, "delivered"),
        (names.pod_netns("demo", "default", "c"), Packet("tcp", "10.244.3.2", 80), "delivered"),
    ],
)
@pytest.mark.parametrize("table", [ConntrackTable(), ConntrackTable(filled=False)])
def test_through_a_full_table_nothing_new_comes(table: ConntrackTable, netns: str, packet: Packet, result: str) -> None:
    state = {**STATE, NODE: STATE[NODE] | {table}}
    assert {way.result for way in walk(state, netns, packet)} == {result}


def test_a_table_that_is_full_of_real_connections_is_nobodys_to_empty() -> None:
    full = {**STATE, NODE: STATE[NODE] | {ConntrackTable(filled=False)}}
    assert diff(full, STATE) == []
    filled = {**STATE, NODE: STATE[NODE] | {ConntrackTable(full=False)}}
    assert [line for change in diff(filled, STATE) for line in lines(change)] == [
        f"ip netns exec {NODE} conntrack -D -s 198.18.0.0/16"
    ]


# --- holds and lives --------------------------------------------------------------------------------------------------


def test_a_stopped_kube_proxy_is_a_hold_on_what_it_writes() -> None:
    node = names.node_netns("demo", "node1")
    held = faults.holds(STATE, with_(made("kube-proxy-stopped", "node/node1")))
    assert {netns for netns, _ in held} == {node}
    changed = render({key: obj for key, obj in OBJECTS.items() if key != Key("Service", "default", "far")})
    changes = diff(STATE, changed, holds=held)
    assert not [change for change in changes if change.netns == node]
    assert [change for change in changes if change.netns == names.node_netns("demo", "node2")]


@pytest.mark.parametrize(
    ("leave", "held"),
    [
        ("keys", {(names.node_netns("demo", "node1"), ("sysctl", "net.ipv4.ip_forward"))}),
        ("places", {(names.node_netns("demo", "node1"), ())}),
    ],
)
def test_what_is_left_alone_is_held_once_it_is_done(leave: str, held: set[Hold]) -> None:
    objects = with_(made("ip-forward-off", "node/node1", leave=leave))
    assert faults.holds(STATE, objects) == frozenset()
    done = faults.marked(objects)
    assert done[Key("Fault", "", "ip-forward-off")] == Fault(
        ObjectMeta(name="ip-forward-off"), FaultSpec("ip-forward-off", ("node/node1",), leave=leave), FaultStatus(True)
    )
    assert faults.holds(STATE, done) == held
    assert faults.marked(done) is done


@pytest.mark.parametrize(("now", "stands"), [("", 1), ("2026-01-01T00:00:00Z", 1), ("2026-01-01T00:00:01Z", 0)])
def test_a_fault_ends_with_its_time(now: str, stands: int) -> None:
    found = faults.standing(with_(made("ip-forward-off", "node/node1", until="2026-01-01T00:00:01Z")), now)
    assert len(model.of(found, Fault)) == stands


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "words", "options"),
    [
        ("delay", ["100ms"], {"delay": "100ms"}),
        ("delay", ["50ms", "jitter=5ms"], {"delay": "50ms", "jitter": "5ms"}),
        ("loss", ["loss=3%"], {"loss": "3%"}),
    ],
)
def test_values_are_said_as_people_say_them(kind: str, words: list[str], options: dict[str, str]) -> None:
    assert cli.assigned(CATALOGUE[kind], words) == options


@pytest.mark.parametrize("words", [["1", "2"], ["=x"]])
def test_values_that_mean_nothing_are_refused(words: list[str]) -> None:
    with pytest.raises(InputError, match="is not NAME=VALUE"):
        cli.assigned(CATALOGUE["delay"], words)


OF_LAB = Fault(ObjectMeta(name="lab-1", labels={model.LAB: "vni"}), FaultSpec("vni-mismatch", ("node/node1",)))
OWN = (made("mtu", "node/node1"), Fault(ObjectMeta(name="second"), FaultSpec("mtu", ("node/node2",))))


@pytest.mark.parametrize(
    ("which", "gone"),
    [((), ["mtu", "second"]), (("mtu",), ["mtu", "second"]), (("second",), ["second"])],
)
def test_faults_are_cleared_by_name_or_kind_and_a_labs_own_stay(which: tuple[str, ...], gone: list[str]) -> None:
    assert cli.cleared((OF_LAB, *OWN), which) == gone


@pytest.mark.parametrize(
    ("word", "said"),
    [("lab-1", "the lab's own damage"), ("vni-mismatch", "own damage"), ("secnd", r"did you mean second\?")],
)
def test_what_cannot_be_cleared_is_said(word: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        cli.cleared((OF_LAB, *OWN), (word,))


def test_a_node_without_its_kind_is_told_from_a_pod() -> None:
    assert cli.placed(OBJECTS, "a", "default") == "pod/default/a"
    assert cli.placed(OBJECTS, "pod/default/a", "shop") == "pod/default/a"  # as `fault list` prints it
    with pytest.raises(InputError) as refused:
        cli.placed(OBJECTS, "node1", "default")
    assert refused.value.hint == "--on node/node1"


def test_a_fault_is_called_after_what_and_where() -> None:
    assert cli.called(FaultSpec("partition", ("node/node1",), ("node/node2",))) == "partition-node1-node2"
    many = cli.called(FaultSpec("link-down", tuple(f"pod/default/pod-number-{n}" for n in range(9))))
    assert many.startswith("link-down-")
    assert len(many) <= 63


def test_the_picture_marks_what_is_broken() -> None:
    found = graph.picture(with_(made("ip-forward-off", "node/node2"), made("no-endpoints", "svc/default/far")))
    assert {node.id: node.faults for node in found.nodes if node.faults} == {
        "node/node2": ("ip-forward-off",), "svc/default/far": ("no-endpoints",),
    }  # fmt: skip
    for form in (graph.mermaid, graph.dot, graph.svg):
        assert "broken: ip-forward-off" in "\n".join(form(found))


def test_a_topology_may_hold_faults() -> None:
    text = (
        "apiVersion: nsnet/v1\nkind: Fault\nmetadata: {name: f}\nspec: {fault: ip-forward-off, where: [node/node1]}\n"
    )
    (fault,) = model.of(up(text), Fault)
    assert fault.spec == FaultSpec("ip-forward-off", ("node/node1",))


def test_the_table_names_kinds_that_are_there() -> None:
    assert {row.words[0] for row in rows()} <= set(CATALOGUE)
