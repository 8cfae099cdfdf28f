"""NetworkPolicy: each rule of facts/NETPOL.md as rows.

A row: the policies, then lines `from > to:port[/protocol]` with what must be decided. Pods are a, b, c in namespaces
xxx, yyy, zzz (x/a is short for xxx/a), a on node1, b on node2, c on node3; all serve TCP 80 (named http), TCP 81, UDP 80
(named dns).
"""

import pytest

from nsnet.control import policy
from tests.policies import answers, asked, cluster, nine, pod, written

DENY = "podSelector: {}"
A = "podSelector: {matchLabels: {pod: a}}"
FROM_B = "from: [{podSelector: {matchLabels: {pod: b}}}]"
CIDR = "10.244.0.0/16"


def row(title: str, policies: list[str], **lines: list[str]) -> object:
    return pytest.param(policies, lines.get("yes", []), lines.get("no", []), id=title)


ROWS = [
    row("1: nobody selected, all open", [], yes=["x/a > y/b:80", "z/c > x/a:81", "x/a > x/b:80/UDP", "x/a > 8.8.8.8:53/UDP"]),
    row(
        "1: isolation is per pod and per direction",
        [written(A)],
        no=["x/b > x/a:80", "y/a > x/a:80", "8.8.8.8 > x/a:80"],
        yes=["x/b > x/c:80", "x/a > x/b:80", "x/a > y/a:80"],
    ),
    row("2: only its own namespace", [written(DENY)], no=["y/a > x/a:80"], yes=["x/a > y/a:80", "z/a > y/a:80"]),
    row("2: podSelector missing is all pods", [written("policyTypes: [Ingress]")], no=["y/a > x/a:80", "y/a > x/c:80"]),
    row("2: matchLabels without a value is empty", [written("podSelector: {matchLabels: }")], no=["y/a > x/b:80"]),
    row("3: nothing in it denies ingress", [written(DENY)], no=["x/a > x/b:80"], yes=["x/a > y/a:80"]),
    row("3: egress rules without policyTypes close ingress too", [written(f"{A}, egress: [{{ports: [{{port: 80}}]}}]")],
        no=["x/b > x/a:80", "x/a > x/b:81"], yes=["x/a > x/b:80"]),
    row("3: egress [] without policyTypes does not isolate egress", [written(f"{A}, egress: []")],
        no=["x/b > x/a:80"], yes=["x/a > x/b:80"]),
    row("3: policyTypes empty is policyTypes missing", [written(f"{A}, policyTypes: [], egress: [{{}}]")],
        no=["x/b > x/a:80"], yes=["x/a > x/b:80"]),
    row("3: policyTypes Egress leaves ingress open", [written(f"{A}, policyTypes: [Egress]")],
        no=["x/a > x/b:80"], yes=["x/b > x/a:80"]),
    row("4: rules of a direction that is not in policyTypes are ignored",
        [written(f"{A}, policyTypes: [Egress], ingress: [{{}}], egress: []")], no=["x/a > x/b:80"], yes=["x/b > x/a:80"]),
    row("4: and isolate nothing", [written(f"{A}, policyTypes: [Ingress], egress: [{{ports: [{{port: 81}}]}}]")],
        yes=["x/a > x/b:80"], no=["x/b > x/a:80"]),
    row("5: policies add up", [written(DENY, "x/deny"), written(f"{A}, ingress: [{{{FROM_B}}}]", "x/allow")],
        yes=["x/b > x/a:80"], no=["x/c > x/a:80", "x/b > x/c:80"]),
    row("5: and their rules do", [written(f"{A}, ingress: [{{{FROM_B}}}, {{ports: [{{port: 81}}]}}]")],
        yes=["x/b > x/a:80", "x/c > x/a:81", "x/b > x/a:81"], no=["x/c > x/a:80"]),
    row("6: peers and ports of one rule go together, two rules never mix",
        [written(f"{A}, ingress: [{{{FROM_B}, ports: [{{port: 80}}]}}, "
                 "{from: [{podSelector: {matchLabels: {pod: c}}}], ports: [{port: 81}]}]")],
        yes=["x/b > x/a:80", "x/c > x/a:81"], no=["x/b > x/a:81", "x/c > x/a:80"]),
    row("7: ingress [] is nobody", [written(f"{A}, ingress: []")], no=["x/b > x/a:80", "8.8.8.8 > x/a:80"]),
    row("7: ingress [{}] is everybody", [written(f"{A}, ingress: [{{}}]")],
        yes=["y/b > x/a:80", "8.8.8.8 > x/a:80/SCTP", "node2 > x/a:81/UDP", "x/b > x/a:0/ICMP"]),
    row("7: from [] is everybody, the outside included", [written(f"{A}, ingress: [{{from: [], ports: [{{port: 80}}]}}]")],
        yes=["8.8.8.8 > x/a:80", "y/a > x/a:80", "node2 > x/a:80"], no=["8.8.8.8 > x/a:81"]),
    row("7: ports [] is all ports of all protocols", [written(f"{A}, ingress: [{{{FROM_B}, ports: []}}]")],
        yes=["x/b > x/a:9", "x/b > x/a:9/UDP", "x/b > x/a:9/SCTP", "x/b > x/a:0/ICMP"], no=["x/c > x/a:9"]),
    row("8: podSelector alone is this namespace", [written(f"{A}, ingress: [{{{FROM_B}}}]")],
        yes=["x/b > x/a:80"], no=["y/b > x/a:80"]),
    row("8: namespaceSelector alone is all pods there",
        [written(f"{A}, ingress: [{{from: [{{namespaceSelector: {{matchLabels: {{ns: y}}}}}}]}}]")],
        yes=["y/a > x/a:80", "y/c > x/a:80"], no=["x/b > x/a:80", "z/a > x/a:80", "8.8.8.8 > x/a:80"]),
    row("8: both in one item is and",
        [written(f"{A}, ingress: [{{from: [{{namespaceSelector: {{matchLabels: {{ns: y}}}}, "
                 "podSelector: {matchLabels: {pod: b}}}]}]")],
        yes=["y/b > x/a:80"], no=["y/a > x/a:80", "x/b > x/a:80"]),
    row("8: in two items is or",
        [written(f"{A}, ingress: [{{from: [{{namespaceSelector: {{matchLabels: {{ns: y}}}}}}, "
                 "{podSelector: {matchLabels: {pod: b}}}]}]")],
        yes=["y/b > x/a:80", "y/a > x/a:80", "x/b > x/a:80"], no=["x/c > x/a:80", "z/b > x/a:80"]),
    row("8: {} is all of this namespace", [written(f"{A}, ingress: [{{from: [{{podSelector: {{}}}}]}}]")],
        yes=["x/c > x/a:80"], no=["y/c > x/a:80", "node2 > x/a:80"]),
    row("8: namespaceSelector {} is all pods, and nobody else",
        [written(f"{A}, ingress: [{{from: [{{namespaceSelector: {{}}}}]}}]")],
        yes=["x/c > x/a:80", "z/c > x/a:80"], no=["8.8.8.8 > x/a:80", "node2 > x/a:80"]),
    row("9: the name label is always there",
        [written(f"{A}, ingress: [{{from: [{{namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: yyy}}}}}}]}}]")],
        yes=["y/a > x/a:80"], no=["x/b > x/a:80", "z/a > x/a:80"]),
    row("9: the own namespace only if it matches",
        [written(f"{A}, ingress: [{{from: [{{namespaceSelector: {{matchExpressions: [{{key: ns, operator: NotIn, values: [x]}}]}}}}]}}]")],
        yes=["y/a > x/a:80"], no=["x/b > x/a:80"]),
    row("10: In needs the key",
        [written("podSelector: {matchExpressions: [{key: pod, operator: In, values: [a, c]}]}")],
        no=["x/b > x/a:80", "x/a > x/c:80"], yes=["x/a > x/b:80"]),
    row("10: NotIn matches where the key is absent",
        [written(f"{A}, ingress: [{{from: [{{podSelector: {{matchExpressions: [{{key: none, operator: NotIn, values: [q]}}]}}}}]}}]")],
        yes=["x/b > x/a:80"], no=["y/b > x/a:80"]),
    row("10: DoesNotExist matches where the key is absent",
        [written("podSelector: {matchExpressions: [{key: pod, operator: DoesNotExist}]}")], yes=["x/b > x/a:80"]),
    row("10: matchLabels and matchExpressions are anded",
        [written(f"{A.removesuffix('}')}, matchExpressions: [{{key: pod, operator: In, values: [b]}}]}}")],
        yes=["x/b > x/a:80", "x/a > x/b:80"]),
    row("11: ipBlock is any address, pods included", [written(f"{A}, ingress: [{{from: [{{ipBlock: {{cidr: {CIDR}}}}}]}}]")],
        yes=["x/b > x/a:80", "z/c > x/a:80", "node2 > x/a:80"], no=["8.8.8.8 > x/a:80", "172.18.0.3 > x/a:80"]),
    row("11: except takes out of that item only",
        [written(f"{A}, ingress: [{{from: [{{ipBlock: {{cidr: {CIDR}, except: [10.244.2.0/24]}}}}, "
                 "{ipBlock: {cidr: 10.244.2.3/32}}]}]")],
        yes=["z/c > x/a:80", "10.244.2.3 > x/a:80"], no=["10.244.2.200 > x/a:80", "10.244.2.9 > x/a:80"]),
    row("11: host bits may be set", [written(f"{A}, ingress: [{{from: [{{ipBlock: {{cidr: 203.0.113.77/24}}}}]}}]")],
        yes=["203.0.113.2 > x/a:80"], no=["203.0.114.2 > x/a:80"]),
    row("11: 0.0.0.0/0 is everybody of IPv4", [written(f"{A}, ingress: [{{from: [{{ipBlock: {{cidr: 0.0.0.0/0}}}}]}}]")],
        yes=["8.8.8.8 > x/a:80", "x/b > x/a:80"], no=["2001:db8::1 > x/a:80"]),
    row("12: protocol missing is TCP", [written(f"{A}, ingress: [{{ports: [{{port: 80}}]}}]")],
        yes=["x/b > x/a:80"], no=["x/b > x/a:80/UDP", "x/b > x/a:80/SCTP"]),
    row("12: port missing is all of that protocol", [written(f"{A}, ingress: [{{ports: [{{}}]}}]")],
        yes=["x/b > x/a:80", "x/b > x/a:6000"], no=["x/b > x/a:80/UDP", "x/b > x/a:0/ICMP"]),
    row("12: a name matches only with its protocol",
        [written(f"{A}, ingress: [{{ports: [{{port: http, protocol: UDP}}, {{port: dns, protocol: UDP}}]}}]")],
        yes=["x/b > x/a:80/UDP"], no=["x/b > x/a:80"]),
    row("12: a name is the destination's, on the way out as well",
        [written(f"{A}, policyTypes: [Egress], egress: [{{ports: [{{port: http}}]}}]")],
        yes=["x/a > y/b:80"], no=["x/a > y/b:81", "x/a > 8.8.8.8:80", "x/a > node2:80"]),
    row("12: an unknown name matches nothing and isolates all the same",
        [written(f"{A}, ingress: [{{ports: [{{port: nobody}}]}}]")], no=["x/b > x/a:80", "x/b > x/a:81"]),
    row("12: endPort is inclusive", [written(f"{A}, ingress: [{{ports: [{{port: 80, endPort: 82}}]}}]")],
        yes=["x/b > x/a:80", "x/b > x/a:81", "x/b > x/a:82"], no=["x/b > x/a:79", "x/b > x/a:83"]),
    row("13: TCP, UDP and SCTP are separate; SCTP isolates",
        [written(f"{A}, ingress: [{{ports: [{{port: 80, protocol: SCTP}}]}}]")],
        yes=["x/b > x/a:80/SCTP"], no=["x/b > x/a:80", "x/b > x/a:80/UDP"]),
    row("14: both ends must agree",
        [written(f"{A}, ingress: [{{{FROM_B}}}]", "x/in"), written("podSelector: {}, policyTypes: [Egress]", "y/out"),
         written(f"{A}, ingress: [{{from: [{{namespaceSelector: {{}}}}]}}]", "z/in")],
        yes=["x/b > x/a:80", "x/c > z/a:80"], no=["y/b > x/a:80", "y/b > z/a:80", "y/b > z/b:80"]),
    row("15: replies are not asked: the way back is a decision of its own",
        [written(f"{A}, policyTypes: [Egress]")], yes=["x/b > x/a:80"], no=["x/a > x/b:80"]),
    row("16: a pod to itself, its own node to it, every port",
        [written("podSelector: {}, policyTypes: [Ingress, Egress]")],
        yes=["x/a > x/a:80", "x/a > x/a:9/UDP", "node1 > x/a:80", "node1 > x/a:9/UDP", "172.18.0.2 > x/a:1",
             "10.244.1.1 > x/a:1", "node1 > x/a:0/ICMP"],
        no=["node2 > x/a:80", "172.18.0.3 > x/a:80", "x/a > node1:80", "x/a > node2:80"]),
    row("16: other nodes are addresses; through the tunnel they have their VTEP's",
        [written(f"{A}, ingress: [{{from: [{{ipBlock: {{cidr: 10.244.2.0/32}}}}]}}]")],
        yes=["node2 > x/a:80"], no=["node3 > x/a:80", "172.18.0.3 > x/a:80"]),
    row("17: the port is the pod's, not a Service's",
        [written(f"{A}, policyTypes: [Egress], egress: [{{ports: [{{port: 8000}}]}}]")],
        no=["x/a > x/b:80"], yes=["x/a > x/b:8000"]),
    row("18: the address that arrives counts",
        [written(f"{A}, ingress: [{{from: [{{ipBlock: {{cidr: 203.0.113.0/24}}}}]}}]")],
        yes=["203.0.113.2 > x/a:80"], no=["172.18.0.3 > x/a:80", "10.244.2.0 > x/a:80"]),
    row("19: DNS is not special", [written("podSelector: {}, policyTypes: [Egress]")],
        no=["x/a > 10.244.1.9:53/UDP", "x/a > 10.244.1.9:53"]),
    row("21: hostNetwork pods are not selected", [written("podSelector: {}, policyTypes: [Ingress, Egress]")],
        yes=["y/a > node1:7000", "node1 > y/a:80"]),
    row("21: nor matched as peers", [written(f"{A}, ingress: [{{from: [{{podSelector: {{}}}}]}}]"),
                                     written("podSelector: {matchLabels: {pod: b}}, ingress: [{from: [{podSelector: {}}]}]", "x/q")],
        yes=["node1 > x/a:80"], no=["node1 > x/b:80"]),
]  # fmt: skip


@pytest.mark.parametrize(("policies", "yes", "no"), ROWS)
def test_rule(policies: list[str], yes: list[str], no: list[str]) -> None:
    wanted = dict.fromkeys(yes, True) | dict.fromkeys(no, False)
    assert wanted
    assert answers(cluster(*policies), wanted) == wanted


def test_every_rule_has_a_row() -> None:
    """15 and 19 are packets' business as well; 20 is below."""
    said = {int(str(param.id).partition(":")[0]) for param in ROWS}  # type: ignore[attr-defined]
    assert said == set(range(1, 22)) - {20}


def test_rule_20_changes_count_at_once() -> None:
    """Labels of pods and namespaces, and who has an address now."""
    only_b = written(f"{A}, ingress: [{{from: [{{namespaceSelector: {{matchLabels: {{ns: y}}}}}}, {FROM_B[7:-1]}]}}]")
    before, line = cluster(only_b), {"x/c > x/a:80": True, "z/a > x/a:80": True, "y/a > x/a:80": True}
    assert answers(before, line) == {"x/c > x/a:80": False, "z/a > x/a:80": False, "y/a > x/a:80": True}
    relabelled = nine().replace('namespace: xxx, labels: {pod: "c"}', 'namespace: xxx, labels: {pod: "b"}')
    swapped = relabelled.replace("labels: {ns: z}", "labels: {ns: w}").replace("ns: y}", "ns: z}").replace("ns: w}", "ns: y}")
    assert answers(cluster(only_b, base=swapped), line) == {
        "x/c > x/a:80": True, "z/a > x/a:80": True, "y/a > x/a:80": False,
    }  # fmt: skip


def test_an_address_is_whose_it_is_now() -> None:
    objects = cluster(written(f"{A}, ingress: [{{{FROM_B}}}]"))
    known = policy.index(objects)
    b, c = known.pods["xxx/b"].address, known.pods["xxx/c"].address
    wanted = {f"{b} > x/a:80": True, f"{c} > x/a:80": False}
    assert answers(objects, wanted) == wanted


def test_named_ports_differ_from_pod_to_pod() -> None:
    other = pod("xxx/d", "pod=d", ports="ports: [{containerPort: 8080, name: http}]")
    objects = cluster(other, written("podSelector: {}, ingress: [{ports: [{port: http}]}]"))
    wanted = {"x/a > x/d:8080": True, "x/a > x/d:80": False, "x/d > x/a:80": True, "x/d > x/a:8080": False}
    assert answers(objects, wanted) == wanted


@pytest.mark.parametrize(
    ("backend", "seen"),
    [
        ("{Type: vxlan}", "10.244.2.0"),
        ("{Type: vxlan, DirectRouting: true}", "172.18.0.3"),
        ("{Type: host-gw}", "172.18.0.3"),
    ],
)
def test_the_address_by_which_a_node_comes(backend: str, seen: str) -> None:
    base = nine().replace("nodes: 3}", f"nodes: 3, flannel: {{Backend: {backend}}}}}", 1)
    assert asked(cluster(base=base), "node2 > x/a:80").source.address == seen


# --- because of what --------------------------------------------------------------------------------------------------


def test_a_decision_names_the_policies_and_the_rules() -> None:
    objects = cluster(
        written(DENY, "x/deny"),
        written(f"{A}, ingress: [{{ports: [{{port: 81}}]}}, {{{FROM_B}, ports: [{{port: 81}}, {{port: http}}]}}]", "x/in"),
        written("podSelector: {}, policyTypes: [Egress], egress: [{}]", "x/out"),
    )  # fmt: skip
    known = policy.index(objects)
    assert list(policy.because(known, asked(objects, "x/b > x/a:80"))) == [
        "egress of pod/xxx/b: allowed: selected by xxx/out; xxx/out egress[0] allows it",
        "  xxx/out egress[0]: to anybody, any port",
        "ingress of pod/xxx/a: allowed: selected by xxx/deny, xxx/in; xxx/in ingress[1] (from[0], ports[1]) allows it",
        "  xxx/in ingress[1] (from[0], ports[1]): from pods pod=b, port 81/TCP, http/TCP",
    ]
    assert list(policy.because(known, asked(objects, "y/b > x/a:80"))) == [
        "egress of pod/yyy/b: allowed: no policy selects it",
        "ingress of pod/xxx/a: denied: selected by xxx/deny, xxx/in; no rule allows it",
        "  xxx/deny ingress: nothing is allowed",
        "  xxx/in ingress[0] allows only from anybody, port 81/TCP",
        "  xxx/in ingress[1] allows only from pods pod=b, port 81/TCP, http/TCP",
    ]
    assert list(policy.because(known, asked(objects, "node1 > x/a:80"))) == [
        "egress: no pod at this end, so no policy",
        "ingress of pod/xxx/a: allowed: a pod's own node always reaches it",
    ]
    assert list(policy.because(known, asked(objects, "x/a > 8.8.8.8:53/UDP"))) == [
        "egress of pod/xxx/a: allowed: selected by xxx/out; xxx/out egress[0] allows it",
        "  xxx/out egress[0]: to anybody, any port",
        "ingress: no pod at this end, so no policy",
    ]


def test_decide_takes_words() -> None:
    objects = cluster(written(f"{A}, ingress: [{{{FROM_B}}}]"))
    assert policy.decide(objects, "pod/xxx/b", "pod/xxx/a", 80).allowed
    found = policy.decide(objects, "node/node2", "pod/xxx/a", 80, "UDP")
    assert (found.allowed, found.source.address, found.ingress.selecting) == (False, "10.244.2.0", ("xxx/p",))
    assert policy.decide(objects, "host/client", "pod/yyy/a", 80).allowed
    with pytest.raises(policy.decide.__globals__["InputError"], match="pod/xxx/nobody: there is no such end"):
        policy.decide(objects, "pod/xxx/nobody", "pod/xxx/a", 80)
