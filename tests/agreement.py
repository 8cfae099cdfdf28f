"""Random small clusters with Services, and what each packet must meet: straight from facts/KUBEPROXY.md §0 and §1.

This is the third voice in tests/test_modes_agree.py. It shares no code with `render` or `trace`, and does not look at
objects: it knows a scenario in its own few words, of which `objects` makes the cluster.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec
from hypothesis import strategies as st

from nsnet import model
from nsnet.model import (
    Endpoint,
    EndpointConditions,
    EndpointHints,
    EndpointPort,
    EndpointSlice,
    ForZone,
    Key,
    LoadBalancerIngress,
    LoadBalancerStatus,
    Object,
    ObjectMeta,
    Service,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
)
from tests.built import Place, built

TARGET = 8080
CLIENT = "client"


class Node(NamedTuple):
    zone: str
    pods: int


class End(NamedTuple):
    """An endpoint: a pod, its state, and the hints in its slice."""

    pod: str
    state: str  # ready, unready, ending (it still serves) or gone
    zone: str = ""
    node: str = ""


class Spec(NamedTuple):
    """A Service, of one port."""

    kind: str
    protocol: str
    external: bool  # has an external address
    outside_local: bool
    inside_local: bool
    sticky: bool
    ranges: tuple[str, ...]
    ends: tuple[End, ...]


class Scenario(NamedTuple):
    nodes: tuple[Node, ...]
    specs: tuple[Spec, ...]

    @property
    def names(self) -> list[str]:
        return [f"n{number}" for number in range(1, len(self.nodes) + 1)]

    @property
    def pods(self) -> dict[str, str]:
        """Each pod's address."""
        return {
            f"p{number}-{place}": f"10.244.{number}.{place + 1}"
            for number, node in enumerate(self.nodes, 1)
            for place in range(1, node.pods + 1)
        }

    def node_of(self, pod: str) -> str:
        return f"n{pod[1:].partition('-')[0]}"

    def zone_of(self, node: str) -> str:
        return self.nodes[int(node[1:]) - 1].zone


# --- how they come about ----------------------------------------------------------------------------------------------

RANGES = ((), (), ("10.244.1.2/32",), ("172.18.0.0/29", "10.244.2.0/24"), ("192.168.0.0/16", "0.0.0.0/0"))
NODES = st.builds(Node, st.sampled_from(("", "a", "b")), st.integers(1, 2))


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    scenario = Scenario(tuple(draw(st.lists(NODES, min_size=1, max_size=3))), ())
    return scenario._replace(specs=tuple(draw(st.lists(specs(scenario), min_size=1, max_size=2))))


@st.composite
def specs(draw: st.DrawFn, scenario: Scenario) -> Spec:
    kind = draw(st.sampled_from(("ClusterIP", "NodePort", "LoadBalancer")))
    external = draw(st.booleans())
    return Spec(
        kind,
        draw(st.sampled_from(("tcp", "udp"))),
        external,
        (kind != "ClusterIP" or external) and draw(st.booleans()),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.sampled_from(RANGES)) if kind == "LoadBalancer" else (),
        tuple(draw(ends(scenario))),
    )


@st.composite
def ends(draw: st.DrawFn, scenario: Scenario) -> list[End]:
    chosen = draw(st.lists(st.sampled_from(sorted(scenario.pods)), unique=True, max_size=4))
    hints = draw(st.sampled_from(("none", "zones", "nodes", "some")))
    states = st.sampled_from(("ready", "ready", "unready", "ending", "gone"))
    found = [End(pod, draw(states)) for pod in chosen]
    if hints == "none":
        return found
    return [end if hints == "some" and draw(st.booleans()) else _hinted(scenario, end, hints) for end in found]


def _hinted(scenario: Scenario, end: End, hints: str) -> End:
    node = scenario.node_of(end.pod)
    return end._replace(zone=scenario.zone_of(node), node=node if hints == "nodes" else "")


# --- as objects -------------------------------------------------------------------------------------------------------

CONDITIONS = {
    "ready": EndpointConditions(),
    "unready": EndpointConditions(ready=False, serving=False),
    "ending": EndpointConditions(ready=False, serving=True, terminating=True),
    "gone": EndpointConditions(ready=False, serving=False, terminating=True),
}


def addresses(index: int) -> tuple[str, int, str, str]:
    """A Service's clusterIP, node port, external address and load balancer's address."""
    return f"10.96.0.{10 + index}", 30010 + index, f"198.51.100.{10 + index}", f"192.0.2.{10 + index}"


def objects(scenario: Scenario, mode: str) -> dict[Key, Object]:
    places = {
        name: Place(pods=[pod for pod in scenario.pods if scenario.node_of(pod) == name]) for name in scenario.names
    }
    found = built(places, name="ag", mode=mode)
    for key, obj in list(found.items()):
        if isinstance(obj, model.Node):
            zone = scenario.zone_of(obj.metadata.name)
            labels = {"topology.kubernetes.io/zone": zone} if zone else {}
            found[key] = msgspec.structs.replace(obj, metadata=msgspec.structs.replace(obj.metadata, labels=labels))
    for index, spec in enumerate(scenario.specs):
        found |= model.by_key(_service(scenario, index, spec))
    return found


def _service(scenario: Scenario, index: int, spec: Spec) -> list[Object]:
    address, node_port, external, balanced = addresses(index)
    service = Service(
        ObjectMeta(name=f"s{index}", namespace="default"),
        ServiceSpec(
            type=spec.kind,
            clusterIP=address,
            clusterIPs=(address,),
            externalIPs=(external,) if spec.external else (),
            externalTrafficPolicy="Local" if spec.outside_local else "",
            internalTrafficPolicy="Local" if spec.inside_local else "Cluster",
            sessionAffinity="ClientIP" if spec.sticky else "None",
            loadBalancerSourceRanges=spec.ranges,
            ports=(
                ServicePort(
                    80,
                    protocol=spec.protocol.upper(),
                    targetPort=TARGET,
                    nodePort=None if spec.kind == "ClusterIP" else node_port,
                ),
            ),
        ),
    )
    if spec.kind == "LoadBalancer":
        ingress = LoadBalancerStatus((LoadBalancerIngress(ip=balanced),))
        service = msgspec.structs.replace(service, status=ServiceStatus(ingress))
    endpoints = tuple(_endpoint(scenario, end) for end in spec.ends)
    meta = ObjectMeta(name=f"s{index}-a", namespace="default", labels={"kubernetes.io/service-name": f"s{index}"})
    return [service, EndpointSlice(meta, "IPv4", endpoints, (EndpointPort(TARGET, protocol=spec.protocol.upper()),))]


def _endpoint(scenario: Scenario, end: End) -> Endpoint:
    hints = EndpointHints((ForZone(end.zone),) if end.zone else (), (ForZone(end.node),) if end.node else ())
    return Endpoint(
        (scenario.pods[end.pod],),
        CONDITIONS[end.state],
        nodeName=scenario.node_of(end.pod),
        hints=hints if end.zone or end.node else None,
    )


# --- what must happen -------------------------------------------------------------------------------------------------


class Question(NamedTuple):
    """A packet: from whom (a pod, a node or the client), to which address and port of which Service, how called."""

    sender: str
    spec: Spec
    address: str
    port: int
    way: str  # cluster, other port, node, loopback, bridge, external, balanced
    node: str = ""  # whose node port


class Expected(NamedTuple):
    """`ways`: (who answers, which source is seen); or a word. `situation`: what a mode may do otherwise."""

    ways: frozenset[tuple[str, str]] = frozenset()
    word: str = ""
    situation: str = ""


def questions(scenario: Scenario) -> Iterator[Question]:
    senders = [*scenario.pods, *scenario.names, CLIENT]
    for index, spec in enumerate(scenario.specs):
        address, node_port, external, balanced = addresses(index)
        for sender in senders:
            yield Question(sender, spec, address, 80, "cluster")
            yield Question(sender, spec, address, 81, "other port")
            if spec.external:
                yield Question(sender, spec, external, 80, "external")
            if spec.kind == "LoadBalancer":
                yield Question(sender, spec, balanced, 80, "balanced")
            if spec.kind != "ClusterIP":
                for node in scenario.names:
                    yield Question(sender, spec, _address(scenario, node), node_port, "node", node)
                if sender in scenario.names:
                    yield Question(sender, spec, "127.0.0.1", node_port, "loopback", sender)
                if sender in scenario.pods:
                    home = scenario.node_of(sender)
                    yield Question(sender, spec, f"10.244.{home[1:]}.1", node_port, "bridge", home)


def expected(scenario: Scenario, asked: Question) -> Expected:
    """What kube-proxy of the node where the packet is looked at does with it, in iptables mode."""
    home = _home(scenario, asked.sender)
    if asked.way not in ("node", "loopback", "bridge") and not home:
        return Expected(word="unreachable")  # nobody routes such an address to a node
    if asked.way == "other port":
        return Expected(word="unreachable", situation="other port")
    if asked.way == "cluster":
        return _inside(scenario, asked, home)
    return _outside(scenario, asked, asked.node or home, _seen_there(scenario, asked))


def in_process(scenario: Scenario, asked: Question) -> Expected:
    """The same in userspace mode: the process of the node where the packet is looked at asks any ready endpoint."""
    node = asked.node or _home(scenario, asked.sender)
    if not node or asked.way == "other port":
        return Expected(word="unreachable")
    if asked.way == "external":
        return Expected(word="unreachable", situation="not for pods")
    ready = [end.pod for end in asked.spec.ends if end.state == "ready"]
    if ready:
        usual = {pod for pod, _ in expected(scenario, asked).ways}
        same = "own connection" if usual == {*ready} else "no policies"
        return _to(scenario, ready, node, "", hidden=True, situation=same)
    missing, situation = ("refused", "accepts first") if asked.spec.protocol == "tcp" else ("dropped", "silent process")
    return Expected(word=missing, situation="no fallback" if _usable(asked.spec.ends) else situation)


def _inside(scenario: Scenario, asked: Question, home: str) -> Expected:
    spec = asked.spec
    found = _local(scenario, spec, home) if spec.inside_local else _near(scenario, spec, home)
    if not found:
        return Expected(word="dropped" if _usable(spec.ends) else "refused")
    source = _address(scenario, asked.sender)
    return _to(scenario, found, home, source, hidden=asked.sender in scenario.names)


def _outside(scenario: Scenario, asked: Question, node: str, source: str) -> Expected:
    spec = asked.spec
    itself = source in (_address(scenario, node), "127.0.0.1")
    situation = {"loopback": "loopback", "bridge": "other address"}.get(asked.way, "")
    if asked.way == "balanced" and not _in_ranges(spec.ranges, source):
        if _usable(spec.ends):
            return Expected(word="dropped")
        return Expected(word="unreachable" if itself else "refused", situation="ranges first")
    if not _usable(spec.ends):
        if itself and asked.way in ("external", "balanced"):
            return Expected(word="unreachable", situation="own output")  # it leaves the node, and nobody wants it
        return Expected(word="refused", situation=situation)
    pod = source in scenario.pods.values()
    if not spec.outside_local or itself or pod:
        hidden = not spec.outside_local or itself
        return _to(scenario, _near(scenario, spec, node), node, source, hidden=hidden, situation=situation)
    found = _local(scenario, spec, node)
    return _to(scenario, found, node, source, hidden=False) if found else Expected(word="dropped")


def _home(scenario: Scenario, sender: str) -> str:
    if sender == CLIENT:
        return ""
    return sender if sender in scenario.names else scenario.node_of(sender)


def _address(scenario: Scenario, who: str) -> str:
    if who == CLIENT:
        return "203.0.113.2"
    return scenario.pods[who] if who in scenario.pods else f"172.18.0.{int(who[1:]) + 1}"


def _seen_there(scenario: Scenario, asked: Question) -> str:
    """The source that the node sees which looks at it: flannel hides pods from other nodes."""
    if asked.way == "loopback":
        return "127.0.0.1"
    home = _home(scenario, asked.sender)
    stranger = asked.sender in scenario.pods and asked.node not in ("", home)
    return _address(scenario, home if stranger else asked.sender)


def _to(scenario: Scenario, pods: list[str], node: str, source: str, *, hidden: bool, situation: str = "") -> Expected:
    """Masqueraded, the packet has the address of the device by which it leaves; a pod to itself always is."""
    ways = set()
    for pod in pods:
        device = f"10.244.{node[1:]}.{1 if scenario.node_of(pod) == node else 0}"
        ways.add((pod, device if hidden or scenario.pods[pod] == source else source))
    return Expected(frozenset(ways), situation=situation)


# --- which endpoints --------------------------------------------------------------------------------------------------


def _usable(found: tuple[End, ...]) -> list[str]:
    ready = [end.pod for end in found if end.state == "ready"]
    return ready or [end.pod for end in found if end.state == "ending"]


def _local(scenario: Scenario, spec: Spec, node: str) -> list[str]:
    return _usable(tuple(end for end in spec.ends if scenario.node_of(end.pod) == node))


def _near(scenario: Scenario, spec: Spec, node: str) -> list[str]:
    ready = [end for end in spec.ends if end.state == "ready"]
    if all(end.node for end in ready) and any(end.node == node for end in ready):
        return [end.pod for end in ready if end.node == node]
    zone = scenario.zone_of(node)
    if zone and all(end.zone for end in ready) and any(end.zone == zone for end in ready):
        return [end.pod for end in ready if end.zone == zone]
    return _usable(spec.ends)


def _in_ranges(ranges: tuple[str, ...], source: str) -> bool:
    """By hand for the few ranges there are; a /0 lets everybody in."""
    if not ranges or "0.0.0.0/0" in ranges:
        return True
    known: Mapping[str, bool] = {
        "10.244.1.2/32": source == "10.244.1.2",
        "172.18.0.0/29": source.startswith("172.18.0."),
        "10.244.2.0/24": source.startswith("10.244.2."),
    }
    return any(known[cidr] for cidr in ranges)
