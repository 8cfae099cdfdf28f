"""NetworkPolicy decided: `tests/policy/rules.txt` has rows for each rule of facts/NETPOL.md; here is the rest."""

from pathlib import Path
from typing import Any

import pytest

from nsnet.control import policy
from nsnet.errors import InputError
from tests.deciding import answers, asked, cluster, nine, pod, written

DENY = "podSelector: {}"
A = "podSelector: {matchLabels: {pod: a}}"
FROM_B = "from: [{podSelector: {matchLabels: {pod: b}}}]"


def rows() -> list[Any]:
    text = (Path(__file__).parent / "policy" / "rules.txt").read_text()
    found = []
    for block in text.split("=====\n")[1:]:
        title, *lines = block.splitlines()
        said = [line.partition(": ") for line in lines if line[0] not in ".X"]
        wanted = {
            question: line[0] == "." for line in lines if line[0] in ".X" for question in line[3:].split(", ")
        }  # fmt: skip
        found.append(pytest.param([written(spec, name) for name, _, spec in said], wanted, id=title))
    return found


@pytest.mark.parametrize(("policies", "wanted"), rows())
def test_rule(policies: list[str], wanted: dict[str, bool]) -> None:
    assert wanted
    assert answers(cluster(*policies), wanted) == wanted


def test_every_rule_has_a_row() -> None:
    """15 and 19 are packets' business as well; 20 is below."""
    said = {int(str(param.id).partition(":")[0]) for param in rows()}
    assert said == set(range(1, 22)) - {20}


def test_rule_20_changes_count_at_once() -> None:
    """Labels of pods and namespaces, and who has an address now."""
    only_b = written(f"{A}, ingress: [{{from: [{{namespaceSelector: {{matchLabels: {{ns: yy}}}}}}, {FROM_B[7:-1]}]}}]")
    before, line = cluster(only_b), {"x/c > x/a:80": True, "z/a > x/a:80": True, "y/a > x/a:80": True}
    assert answers(before, line) == {"x/c > x/a:80": False, "z/a > x/a:80": False, "y/a > x/a:80": True}
    relabelled = nine().replace('namespace: xxx, labels: {pod: "c"}', 'namespace: xxx, labels: {pod: "b"}')
    swapped = (
        relabelled.replace("labels: {ns: zz}", "labels: {ns: ww}")
        .replace("ns: yy}", "ns: zz}")
        .replace("ns: ww}", "ns: yy}")
    )
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
        written(
            f"{A}, ingress: [{{ports: [{{port: 81}}]}}, {{{FROM_B}, ports: [{{port: 81}}, {{port: http}}]}}]", "x/in"
        ),
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
    with pytest.raises(InputError, match="pod/xxx/nobody: there is no such end"):
        policy.decide(objects, "pod/xxx/nobody", "pod/xxx/a", 80)
