"""Load balancers: the life of an address, which nodes are used, and the balancer's rules as whole texts."""

# ruff: noqa: PT018, ISC004 - a row of a table is one line

from datetime import UTC, datetime

import msgspec
import pytest

from nsnet import model, names
from nsnet.control import Facts, complete
from nsnet.model import Objects, Service
from nsnet.programs import healthcheck
from nsnet.programs.healthcheck import Check, node_page, service_page, wanted
from nsnet.programs.lbhealth import FAILURES, State, heard
from nsnet.programs.plain import Place
from nsnet.programs.web import response
from nsnet.render import conntrack, render
from nsnet.state import Chain, Conntrack, File, Neighbour, Route, Value
from nsnet.trace import Packet, walk
from nsnet.verify import describe
from nsnet.verify.expect import expectations
from tests.controlled import apply, delete, events, one, refused, stored, up
from tests.structure import faults

CLUSTER = """
{apiVersion: nsnet/v1, kind: Cluster, metadata: {name: demo}, dns: {enabled: false}, nodes: 3, loadBalancer: {%s},
 hosts: [{name: client, network: outside}, {name: near, network: nodes}]}
---
"""
POOL = CLUSTER % "addresses: [198.51.100.10-198.51.100.11]"
SERVICE = "{apiVersion: v1, kind: Service, metadata: {name: %s}, spec: {%s, ports: [{port: 80}]}}\n---\n"
POD = """
{apiVersion: v1, kind: Pod, metadata: {name: %s, labels: {app: web}}, spec: {nodeName: %s, containers: [{name: c}]}}
---
"""
PODS = POD % ("w1", "node1") + POD % ("w2", "node2")


def lb(name: str = "web", more: str = "selector: {app: web}") -> str:
    return SERVICE % (name, f"type: LoadBalancer, {more}")


def service(objects: Objects, name: str = "web") -> Service:
    found = one(objects, f"Service/{name}")
    assert isinstance(found, Service)
    return found


def addresses(objects: Objects, name: str = "web") -> list[str]:
    return [item.ip for item in service(objects, name).status.loadBalancer.ingress or ()]


def said(objects: Objects, name: str = "web") -> list[str]:
    return [line.split(": ", 1)[1] for line in events(objects) if line.startswith(f"Service {name}:")]


# --- the life of an address (facts/LB.md, "Object life") --------------------------------------------------------------


def test_without_an_address_it_has_its_cluster_ip_and_node_port_and_is_pending() -> None:
    objects = up(CLUSTER % "addresses: []" + PODS + lb())
    spec = service(objects).spec
    assert spec.clusterIP and spec.ports and spec.ports[0].nodePort
    assert addresses(objects) == []
    assert said(objects) == [
        "Pending: the Cluster document has no loadBalancer.addresses: add `loadBalancer: {addresses: "
        "[198.51.100.0/24]}`, or any range of yours; node ports work"
    ]


def test_a_pool_is_there_where_nobody_says_one() -> None:
    (address,) = addresses(up(CLUSTER % "" + lb()))
    assert address.startswith("198.51.100.")
    assert up(CLUSTER % "" + lb()) == up(CLUSTER % "" + lb())


def test_a_changed_type_keeps_what_it_may() -> None:
    first = up(POOL + PODS + SERVICE % ("web", "type: NodePort, selector: {app: web}"))
    port = service(first).spec.ports[0].nodePort  # type: ignore[index]
    second = apply(first, lb())
    assert service(second).spec.ports[0].nodePort == port  # type: ignore[index]
    (address,) = addresses(second)
    third = apply(second, lb().replace("port: 80", "port: 81, nodePort: 30001"))
    assert addresses(third) == [address]
    fourth = apply(third, SERVICE % ("web", "selector: {app: web}"))
    assert service(fourth).spec.ports[0].nodePort is None  # type: ignore[index]
    assert service(fourth).status == model.ServiceStatus()
    assert addresses(apply(fourth, lb("other", f"loadBalancerIP: {address}")), "other") == [address]


def test_an_address_is_free_again_when_its_service_goes() -> None:
    objects = up(POOL + lb("a") + lb("b") + lb("c"))
    has = {name: addresses(objects, name) for name in "abc"}
    assert sorted(map(len, has.values())) == [0, 1, 1]
    waits = next(name for name in "abc" if not has[name])
    assert said(objects, waits)[-1] == (
        "Pending: no address is left in loadBalancer.addresses: 198.51.100.10-198.51.100.11"
    )
    gone = next(name for name in "abc" if has[name])
    assert addresses(delete(objects, f"Service/{gone}"), waits) == has[gone]


def test_local_has_a_health_port_and_cluster_has_none() -> None:
    objects = up(POOL + lb("web", "externalTrafficPolicy: Local, healthCheckNodePort: 30500"))
    assert service(objects).spec.healthCheckNodePort == 30500
    assert service(apply(objects, lb())).spec.healthCheckNodePort is None
    assert service(up(POOL + lb("web", "externalTrafficPolicy: Local"))).spec.healthCheckNodePort
    node_port = SERVICE % ("web", "type: NodePort, externalTrafficPolicy: Local")
    assert service(up(POOL + node_port)).spec.healthCheckNodePort is None


def test_another_class_is_left_to_others() -> None:
    objects = up(POOL + lb("web", "loadBalancerClass: example.com/theirs"))
    assert addresses(objects) == [] and not service(objects).status.conditions
    assert said(objects) == [
        "OtherClass: loadBalancerClass example.com/theirs is another balancer's: no address from here"
    ]


def test_a_class_stays_while_the_type_does() -> None:
    objects = up(POOL + lb())
    theirs = lb("web", "loadBalancerClass: example.com/theirs")
    assert refused(theirs, objects, whole=False).startswith(
        "Service default/web: spec.loadBalancerClass: may not change while the type is LoadBalancer"
    )
    assert addresses(apply(apply(objects, SERVICE % ("web", "type: NodePort")), theirs)) == []


def test_external_ips_are_nobodys_to_give() -> None:
    other = SERVICE % ("other", "externalIPs: [198.51.100.10]")
    assert addresses(up(POOL + other + lb())) == ["198.51.100.11"]


@pytest.mark.parametrize(
    ("more", "expected", "event"),
    [
        ("loadBalancerIP: 198.51.100.11", ["198.51.100.11"], ""),
        ("loadBalancerIP: 198.51.100.9", [], "198.51.100.9 was asked for and is not in loadBalancer.addresses: "),
        ("loadBalancerIP: 10.244.1.9", [], "10.244.1.9 was asked for and lies in podSubnet 10.244.0.0/16"),
        ("loadBalancerIP: 172.18.0.2", [], "172.18.0.2 was asked for and is node1's"),
        ("loadBalancerIP: 172.18.0.1", [], "172.18.0.1 was asked for and is the router's, or no machine's, in network"),
        ("loadBalancerIP: 127.0.0.1", [], "127.0.0.1 was asked for and is not an IPv4 address that can be reached"),
        ("loadBalancerIP: 198.51.100.10", [], "198.51.100.10 was asked for and is taken by Service default/first"),
    ],
)
def test_asked_for(more: str, expected: list[str], event: str) -> None:
    """Never another address than the one that was asked for."""
    objects = apply(up(POOL + lb("first", "loadBalancerIP: 198.51.100.10")), lb("web", more))
    assert addresses(objects) == expected
    assert [line for line in said(objects) if line.startswith("Pending")] == (
        [line for line in said(objects) if line.startswith(f"Pending: {event}")] if event else []
    )
    assert bool(event) == any(line.startswith(f"Pending: {event}") for line in said(objects) if event)


@pytest.mark.parametrize("name", ["metallb.io/loadBalancerIPs", "kube-vip.io/loadbalancerIPs"])
def test_asked_for_by_annotation(name: str) -> None:
    text = lb().replace("{name: web}", f"{{name: web, annotations: {{{name}: 198.51.100.11}}}}")
    assert addresses(up(POOL + text)) == ["198.51.100.11"]


STATUS = "{name: %s}, status: {loadBalancer: {ingress: [{ip: %s}]}}"


@pytest.mark.parametrize(
    ("ip", "expected", "reason"),
    [("192.0.2.7", ["192.0.2.7"], "FromStatus"), ("10.244.1.9", None, "FromPool"), ("172.18.0.3", None, "FromPool")],
    ids=["free", "a pod's", "a node's"],
)
def test_the_address_of_a_dump_is_served_if_it_is_free(ip: str, expected: list[str] | None, reason: str) -> None:
    objects = up(POOL + lb().replace("{name: web}", STATUS % ("web", ip)))
    assert addresses(objects) == (expected or addresses(up(POOL + lb())))
    found = model.status_condition(service(objects), model.ADDRESS)
    assert found is not None and (found.status, found.reason) == ("True", reason)


def test_an_address_moves_when_the_pool_does_and_not_before() -> None:
    objects = up(POOL + lb())
    assert addresses(up(POOL + lb(), stored=objects)) == addresses(objects)
    moved = up(CLUSTER % "addresses: [192.0.2.8/30]" + lb(), stored=objects)
    assert addresses(moved)[0].startswith("192.0.2.")


@pytest.mark.parametrize(
    ("pool", "error"),
    [
        ("10.244.3.1-10.244.3.9", "10.244.3.1-10.244.3.9 overlaps podSubnet 10.244.0.0/16"),
        ("10.96.1.0/24", "10.96.1.0/24 overlaps serviceSubnet 10.96.0.0/16"),
    ],
)
def test_a_pool_lies_outside_of_the_cluster(pool: str, error: str) -> None:
    assert error in refused(CLUSTER % f"addresses: [{pool}]" + lb())


def test_machines_keep_out_of_the_pool_and_it_keeps_out_of_them() -> None:
    objects = up(CLUSTER % "addresses: [172.18.0.2-172.18.0.5]" + lb("a") + lb("b") + lb("c") + lb("d") + lb("e"))
    nodes = {model.internal_ip(node) for node in model.of(objects, model.Node)}
    found = [address for name in "abcde" for address in addresses(objects, name)]
    assert sorted(found) == [f"172.18.0.{last}" for last in (2, 3, 4, 5)]
    assert nodes == {f"172.18.0.{last}" for last in (6, 7, 8)}


def test_a_second_look_changes_nothing() -> None:
    objects = up(POOL + PODS + lb() + lb("two", "externalTrafficPolicy: Local, selector: {app: web}") + lb("three"))
    assert complete(objects) == objects
    assert complete(stored(objects)) == stored(objects)


# --- nodes ------------------------------------------------------------------------------------------------------------

LOCAL = "externalTrafficPolicy: Local, healthCheckNodePort: 30500, selector: {app: web}"


def word(**ports: tuple[str, int]) -> Facts:
    """As if all pods listened, and lbhealth had said that of nodes: `node1=("HTTP", 10256)`."""
    found = {names.node_netns("demo", node): frozenset({port, ("TCP", 6443)}) for node, port in ports.items()}
    pods = {names.pod_netns("demo", "default", pod): frozenset({("TCP", 80)}) for pod in ("w1", "w2")}
    return Facts({**found, **pods})


@pytest.mark.parametrize(
    ("more", "ports", "expected"),
    [
        ("selector: {app: web}", {}, "node1,node2,node3"),
        ("selector: {app: web}", {"node1": ("FAIL", 10256)}, "node2,node3"),
        ("selector: {app: web}", {"node1": ("FAIL", 30500)}, "node1,node2,node3"),
        ("selector: {app: web}", {f"node{n}": ("FAIL", 10256) for n in (1, 2, 3)}, ""),
        (LOCAL, {}, "node1,node2"),
        (LOCAL, {"node3": ("HTTP", 30500)}, "node1,node2,node3"),
        (LOCAL, {"node1": ("FAIL", 30500), "node2": ("HTTP", 30500)}, "node2"),
        (LOCAL, {"node1": ("FAIL", 10256)}, "node1,node2"),
    ],
    ids=["Cluster, nobody asked", "one fails", "another port fails", "all fail",
         "Local, nobody asked: where pods are", "the check decides", "its own port", "not the node's"],
)  # fmt: skip
def test_health_decides(more: str, ports: dict[str, tuple[str, int]], expected: str) -> None:
    objects = up(POOL + PODS + lb("web", more))
    after = complete(objects, word(**ports))
    assert ",".join(model.balanced_nodes(service(after))) == expected
    assert any(line.startswith("NoHealthyNode: ") for line in said(after)) == (not expected)


def test_what_was_found_stays_where_nobody_asks() -> None:
    """The checks' program starts anew, and no node comes back for it."""
    objects = up(POOL + PODS + lb())
    objects = complete(objects, word(node1=("FAIL", 10256)))
    assert model.balanced_nodes(service(complete(objects, word()))) == ("node2", "node3")
    assert model.balanced_nodes(service(complete(objects, word(node1=("HTTP", 10256))))) == (
        "node1", "node2", "node3",
    )  # fmt: skip


@pytest.mark.parametrize(
    "node",
    [
        "metadata: {name: node2, labels: {node.kubernetes.io/exclude-from-external-load-balancers: ''}}",
        "metadata: {name: node2}, spec: {taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]}",
    ],
    ids=["label", "taint"],
)
def test_nodes_that_get_nothing(node: str) -> None:
    objects = up(POOL + f"{{apiVersion: v1, kind: Node, {node}}}\n---\n" + PODS + lb())
    assert model.balanced_nodes(service(objects)) == ("node1", "node3")


@pytest.mark.parametrize(
    ("config", "more", "expected"),
    [
        ("mode: vip", "sessionAffinity: ClientIP", "AffinityPerNode: mode vip spreads connections by their ports"),
        ("mode: nodeport", "allocateLoadBalancerNodePorts: false", "NoNodePort: the balancer sends to node ports, and"),
    ],
)
def test_what_a_mode_cannot_do_is_said(config: str, more: str, expected: str) -> None:
    assert any(line.startswith(expected) for line in said(up(CLUSTER % config + lb("web", more))))


# --- rules ------------------------------------------------------------------------------------------------------------


def balancer(objects: Objects, kinds: tuple[type[Value], ...] = (Chain, Route)) -> list[str]:
    """The router's lines that balancing brings."""
    values = render(objects)["demo.fabric.router"]
    found = [value for value in values if isinstance(value, kinds)]
    assert faults(render(objects)) == []
    return sorted(
        [f"{item.table} {item.name}: {rule}" for item in found if isinstance(item, Chain) for rule in item.rules]
        + [str(item.dst) + f" {item.via} {item.nexthops}" for item in found if isinstance(item, Route)]
    )


def test_a_connection_goes_to_one_of_the_nodes() -> None:
    more = "loadBalancerIP: 198.51.100.10, selector: {app: web}"
    text = POOL + PODS + lb("web", more).replace("port: 80", "port: 80, nodePort: 30080")
    own = "load balancer: its own connections"
    seg = "load balancer: on one segment with the node, which would answer past it"
    chain = "LB-SVC-LOLE4ISW44XBNF3G"
    third, half = (f"-m statistic --mode random --probability {p}" for p in ("0.33333333349", "0.50000000000"))
    assert balancer(up(text)) == [
        'filter INPUT: -m conntrack --ctstate NEW -m comment --comment "load balancer: what was not sent on" '
        "-j LB-INPUT",
        'filter LB-INPUT: -d 198.51.100.10/32 -p tcp -m comment --comment "no Service has this port here" -j REJECT '
        "--reject-with tcp-reset",
        'filter LB-INPUT: -d 198.51.100.10/32 -p udp -m comment --comment "no Service has this port here" -j REJECT '
        "--reject-with icmp-port-unreachable",
        f'nat LB-POSTROUTING: -m comment --comment "{own}" -m addrtype --src-type LOCAL -m conntrack --ctstate DNAT '
        "-j MASQUERADE --random-fully",
        f'nat LB-POSTROUTING: -s 172.18.0.0/16 -d 172.18.0.0/16 -m comment --comment "{seg}" -m conntrack --ctstate '
        "DNAT -j MASQUERADE --random-fully",
        'nat LB-SERVICES: -d 198.51.100.10/32 -p tcp -m comment --comment "default/web at the load balancer" -m tcp '
        f"--dport 80 -j {chain}",
        f'nat {chain}: -p tcp -m comment --comment "default/web -> node1" {third} -j DNAT --to-destination '
        "172.18.0.2:30080",
        f'nat {chain}: -p tcp -m comment --comment "default/web -> node2" {half} -j DNAT --to-destination '
        "172.18.0.3:30080",
        f'nat {chain}: -p tcp -m comment --comment "default/web -> node3" -j DNAT --to-destination 172.18.0.4:30080',
        'nat OUTPUT: -m comment --comment "load balancer addresses" -j LB-SERVICES',
        'nat POSTROUTING: -m comment --comment "load balancer: whose source changes" -j LB-POSTROUTING',
        'nat PREROUTING: -m comment --comment "load balancer addresses" -j LB-SERVICES',
    ]


def lines(objects: Objects, word: str) -> list[str]:
    return [line for line in balancer(objects) if word in line]


def test_affinity_is_a_hash_of_the_client() -> None:
    found = lines(up(POOL + lb("web", "sessionAffinity: ClientIP")), "-> node")
    assert [line.partition('" ')[2].partition(" -j")[0] for line in found] == [
        f"-m cluster --cluster-local-nodemask 0x0000000{mask} --cluster-total-nodes 3 --cluster-hash-seed 0x00000001"
        for mask in (1, 2, 4)
    ]


def test_more_nodes_than_the_hash_has_parts() -> None:
    text = (POOL + lb("web", "sessionAffinity: ClientIP")).replace("nodes: 3", "nodes: 70")
    found = lines(up(text), "-> node")
    assert len(set(found)) == len(found) == 70
    assert all(line.count("-m cluster ") == 2 and "--cluster-total-nodes 3 " in line for line in found)


def test_ranges_are_asked_at_the_balancer() -> None:
    objects = up(POOL + lb("web", "loadBalancerSourceRanges: [192.0.2.0/24, 203.0.113.0/24]"))
    entries = [line.partition(" -m ")[0] for line in lines(objects, "nat LB-SERVICES: -s")]
    (address,) = addresses(objects)
    assert entries == [
        f"nat LB-SERVICES: -s {cidr} -d {address}/32 -p tcp" for cidr in ("192.0.2.0/24", "203.0.113.0/24")
    ]
    assert len(lines(objects, "takes other sources only")) == 1
    everybody = up(POOL + lb("web", "loadBalancerSourceRanges: [192.0.2.0/24, 0.0.0.0/0]"))
    assert lines(everybody, "takes other sources only") == [] and lines(everybody, "LB-SERVICES: -d") != []


def test_without_a_healthy_node_it_is_refused() -> None:
    objects = up(POOL + lb("web", "externalTrafficPolicy: Local, selector: {app: nobody}"))
    assert [line.partition("--comment ")[2] for line in lines(objects, "has no ")] == [
        '"default/web has no node to send to" -m tcp --dport 80 -j REJECT --reject-with tcp-reset'
    ]
    assert lines(objects, "nat ") == []


def test_snat_is_for_all() -> None:
    objects = up(CLUSTER % "snat: true" + lb())
    assert lines(objects, "LB-POSTROUTING: ") == [
        'nat LB-POSTROUTING: -m comment --comment "load balancer: snat is on" -m conntrack --ctstate DNAT '
        "-j MASQUERADE --random-fully"
    ]


def test_mode_vip_is_routes() -> None:
    text = CLUSTER % "mode: vip, addresses: [198.51.100.10]" + PODS + lb("web", LOCAL)
    hops = "(('172.18.0.2', 'nodes'), ('172.18.0.3', 'nodes'))"
    assert balancer(up(text)) == [f"198.51.100.10/32  {hops}"]
    one_node = text.replace("nodeName: node2", "nodeName: node1")
    assert balancer(up(one_node)) == ["198.51.100.10/32 172.18.0.2 ()"]


def test_mode_vip_announces_no_service_without_endpoints() -> None:
    """As MetalLB; the router refuses then. By the node ports (the other mode) kube-proxy does."""
    vip = CLUSTER % "mode: vip, addresses: [198.51.100.10]"
    nobody = up(vip + lb("web", "selector: {app: nobody}"))
    assert not any(line.startswith("198.51.100.10/32") for line in balancer(nobody))
    silent = "NoEndpoints: no endpoint is ready, so that in mode vip no node announces the address"
    assert any(line.startswith(silent) for line in said(nobody))
    assert len(lines(nobody, "has no node to send to")) == 1
    assert model.balanced_nodes(service(up(POOL + lb("web", "selector: {app: nobody}"))))
    ending = delete(
        up(vip + PODS.replace("spec: {", "spec: {terminationGracePeriodSeconds: 9, ") + lb()), "Pod/w1", "Pod/w2"
    )
    assert len(balancer(ending)) == 1


def test_machines_of_its_network_find_an_address_at_the_router() -> None:
    objects = up(CLUSTER % "addresses: [172.18.0.200]" + lb())
    state = render(objects)
    found = {
        netns: value.mac for netns, values in state.items() for value in values
        if isinstance(value, Neighbour) and value.ip == "172.18.0.200"
    }  # fmt: skip
    machines = {f"demo.node.node{n}" for n in (1, 2, 3)} | {"demo.host.near"}
    assert found == dict.fromkeys(machines, names.mac("172.18.0.1", "02:42"))


def test_udp_entries_to_nodes_that_are_out_go() -> None:
    text = POOL + PODS + lb("web", "loadBalancerIP: 198.51.100.10, selector: {app: web}")
    objects = up(text.replace("port: 80", "port: 53, protocol: UDP, nodePort: 30053"))
    objects = complete(objects, word(node1=("FAIL", 10256)))
    router = "demo.fabric.router"
    kept = Conntrack("203.0.113.2", 4000, "198.51.100.10", 53, "172.18.0.3:30053")
    gone = Conntrack("203.0.113.2", 4001, "198.51.100.10", 53, "172.18.0.2:30053")
    other = Conntrack("203.0.113.2", 4002, "198.51.100.10", 54, "198.51.100.10:54")
    there = {router: frozenset({kept, gone, other})}
    assert [change.value for change in conntrack.stale(conntrack.flows(objects), there)] == [gone]
    without = delete(objects, "Service/web")
    assert [change.value for change in conntrack.stale(conntrack.flows(without), there)] == [kept, gone]


def ways(objects: Objects, source: str, to: str) -> dict[str, tuple[float, str]]:
    """Where a packet of that host can end → how likely, and the source seen there."""
    found: dict[str, tuple[float, str]] = {}
    for way in walk(render(objects), names.host_netns("demo", source), Packet("tcp", to, 80)):
        where = f"{way.result} {way.netns.rpartition('.')[2]}"
        found[where] = (round(found.get(where, (0.0, ""))[0] + way.chance, 3), way.packet.src)
    return found


def test_trace_follows_a_connection_through_the_balancer() -> None:
    text = CLUSTER % "addresses: [198.51.100.10], mode: %s" + PODS + POD % ("w0", "node1") + lb("web", LOCAL)
    shares = {"delivered w0": 0.25, "delivered w1": 0.25, "delivered w2": 0.5}
    for mode in ("nodeport", "vip"):
        objects = up(text % mode)
        assert ways(objects, "client", "198.51.100.10") == {
            where: (share, "203.0.113.2") for where, share in shares.items()
        }
    near = ways(up(text % "nodeport"), "near", "198.51.100.10")
    assert near == {where: (share, "172.18.0.1") for where, share in shares.items()}
    assert ways(up(text % "nodeport"), "client", "198.51.100.11") == {"unreachable router": (1.0, "203.0.113.2")}


def test_trace_knows_whom_the_hash_chooses() -> None:
    objects = up(CLUSTER % "addresses: [198.51.100.10]" + PODS + lb("web", LOCAL + ", sessionAffinity: ClientIP"))
    assert [chance for chance, _ in ways(objects, "client", "198.51.100.10").values()] == [1.0]


# --- health ports and checks ------------------------------------------------------------------------------------------


def config(objects: Objects, name: str) -> bytes:
    values = render(objects)["demo.fabric.router"]
    return next(item.content.encode() for item in values if isinstance(item, File) and item.path.endswith(name))


def test_nodes_serve_what_the_configuration_says() -> None:
    kube_proxy = """
    {apiVersion: kubeproxy.config.k8s.io/v1alpha1, kind: KubeProxyConfiguration,
     healthzBindAddress: "127.0.0.1:10300", nodePortAddresses: [172.18.0.0/16]}
    ---
    """
    objects = up(POOL + kube_proxy.replace("\n    ", "\n") + PODS + lb("web", LOCAL))
    found = wanted(msgspec.json.decode(config(objects, "healthcheck.json"), type=healthcheck.Config))
    assert sorted((place.netns[-5:], place.address, place.port) for place in found) == [
        place
        for number in (1, 2, 3)
        for place in ((f"node{number}", "127.0.0.1", 10300), (f"node{number}", f"172.18.0.{number + 1}", 30500))
    ]
    counts = {place.netns[-5:]: item.endpoints for place, item in found.items() if isinstance(item, Check)}
    assert counts == {"node1": 1, "node2": 1, "node3": 0}
    asked = msgspec.json.decode(config(objects, "lbhealth.json"))["checks"]
    assert {(item["address"], item["port"]) for item in asked} == {(f"172.18.0.{n}", 30500) for n in (2, 3, 4)}


def test_nftables_mode_serves_on_the_primary_address() -> None:
    text = POOL.replace("nodes: 3", "nodes: 3, networking: {kubeProxyMode: nftables}")
    found = wanted(
        msgspec.json.decode(config(up(text + lb("web", LOCAL)), "healthcheck.json"), type=healthcheck.Config)
    )
    assert {place.address for place in found if place.port == 30500} == {f"172.18.0.{n}" for n in (2, 3, 4)}


def test_userspace_mode_has_no_port_per_service() -> None:
    """It knows no policy Local, so the balancer asks for the node's own health and uses every node."""
    text = POOL.replace("nodes: 3", "nodes: 3, networking: {kubeProxyMode: userspace}") + PODS + lb("web", LOCAL)
    objects = up(text)
    found = wanted(msgspec.json.decode(config(objects, "healthcheck.json"), type=healthcheck.Config))
    assert {place.port for place in found} == {10256}
    assert {item["port"] for item in msgspec.json.decode(config(objects, "lbhealth.json"))["checks"]} == {10256}
    assert model.balanced_nodes(service(objects)) == ("node1", "node2", "node3")


def test_nobody_asks_where_nothing_is_balanced() -> None:
    values = render(up(POOL))["demo.fabric.router"]
    assert not [item for item in values if isinstance(item, File) and "lbhealth" in item.path]


def test_the_page_of_a_service_is_kube_proxys() -> None:
    page = service_page(Check(("0.0.0.0",), 30500, "shop", "web", 2))
    assert response(page).decode().replace("\r", "") == (
        "HTTP/1.1 200 OK\nContent-Type: application/json\nContent-Length: 111\nX-Content-Type-Options: nosniff\n"
        "X-Load-Balancing-Endpoint-Weight: 2\nConnection: close\n\n"
        '{\n\t"service": {\n\t\t"namespace": "shop",\n\t\t"name": "web"\n\t},\n'
        '\t"localEndpoints": 2,\n\t"serviceProxyHealthy": true\n}'
    )
    assert service_page(Check((), 30500, "shop", "web", 0)).status == 503


@pytest.mark.parametrize(
    ("path", "eligible", "status", "fields"),
    [
        ("/healthz", True, 200, {"nodeEligible": True}),
        ("/healthz", False, 503, {"nodeEligible": False}),
        ("/livez", True, 200, {}),
        ("/livez", False, 200, {}),
    ],
)
def test_the_page_of_a_node(path: str, *, eligible: bool, status: int, fields: dict[str, bool]) -> None:
    page = node_page(path, eligible=eligible, now=datetime(2026, 1, 31, 12, tzinfo=UTC))
    now = "2026-01-31T12:00:00Z"
    expected = {"lastUpdated": now, "currentTime": now, "healthy": True, **fields}
    expected["status"] = {"IPv4": {"lastUpdated": now, "healthy": True}}
    assert (page.status, msgspec.json.decode(page.body)) == (status, expected)
    assert node_page("/metrics", eligible=eligible, now=datetime.now(UTC)).status == 404


def test_a_place_is_one_namespace_and_no_other_of_its_name() -> None:
    assert Place("demo.node.node1", 1, "TCP", 80) != Place("demo.node.node1", 2, "TCP", 80)


@pytest.mark.parametrize(
    ("answers", "settled", "expected"),
    [
        ([True], False, True),
        ([False], False, False),  # a first answer is believed
        ([None], False, None),  # silence at first is not: the port may open a moment later
        ([None], True, False),
        ([True, False], False, True),
        ([True, None], False, True),
        ([True, False, None], False, False),  # two failures in a row
        ([True, False, True, False], False, True),
        ([False, True], False, True),  # one success
    ],
)
def test_two_failures_out_one_success_in(answers: list[bool | None], *, settled: bool, expected: bool | None) -> None:
    state = State()
    for answer in answers:
        state = heard(state, answer, settled=settled)
    assert state.well is expected
    assert FAILURES == 2


# --- verify -----------------------------------------------------------------------------------------------------------


def test_what_is_expected_of_an_address() -> None:
    text = CLUSTER % "addresses: [198.51.100.10]" + PODS + lb("web", LOCAL)
    found = {
        item.source: describe(item) for item in expectations(up(text)) if item.group == "loadbalancer"
    }  # fmt: skip
    pods = "default/w1 or default/w2 answers"
    assert found["host/client"] == f"{pods} and sees the sender, all of them, fairly over 22 calls"
    assert found["host/near"] == f"{pods}, all of them, fairly over 22 calls"
    assert found["pod/default/w1"] == f"{pods} and sees the sender"
    assert found["node/node3"] == pods
    ranged = expectations(up(text.replace("web}, ports", "web}, loadBalancerSourceRanges: [203.0.113.0/24], ports")))
    wants = {item.source: item.want for item in ranged if item.group == "loadbalancer"}
    assert wants == {
        "host/client": "ok", "host/near": "timeout", "node/node1": "timeout", "node/node2": "timeout",
        "node/node3": "timeout", "pod/default/w1": "timeout", "pod/default/w2": "timeout",
    }  # fmt: skip
