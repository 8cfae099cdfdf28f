"""What network policies become: selectors by index, ranges, and the packet filters' own spellings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsnet import model
from nsnet.model import LabelSelector, Requirement
from nsnet.render import conntrack, policy, policy_iptables, ranges, render
from nsnet.render.labels import Index
from nsnet.render.policy_flows import PROTOCOLS
from nsnet.state import Chain, Conntrack, IpSet, NftElement, Value
from tests import policies
from tests.policies import EDGE, NINE

# --- selectors --------------------------------------------------------------------------------------------------------

_KEYS, _VALUES = st.sampled_from(["app", "tier", "x"]), st.sampled_from(["", "a", "b"])
_LABELS = st.dictionaries(_KEYS, _VALUES)
_REQUIREMENTS = st.builds(
    Requirement,
    _KEYS,
    st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist"]),
    st.lists(_VALUES, max_size=2).map(tuple),
)
_SELECTORS = st.builds(LabelSelector, st.none() | _LABELS, st.none() | st.lists(_REQUIREMENTS, max_size=2).map(tuple))


@given(st.dictionaries(st.sampled_from("abcdef"), _LABELS), _SELECTORS)
def test_the_index_selects_what_each_would_be_selected_by(
    labelled: dict[str, dict[str, str]], selector: LabelSelector
) -> None:
    expected = {name for name, labels in labelled.items() if model.selects(selector, labels)}
    assert Index(labelled).select(selector) == expected


# --- ranges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ([("10.0.0.0/8", ())], ["10.0.0.0/8"]),
        ([("10.0.0.5/8", ())], ["10.0.0.0/8"]),
        ([("192.0.2.7/32", ())], ["192.0.2.7"]),
        ([("0.0.0.0/0", ())], ["0.0.0.0/1", "128.0.0.0/1"]),
        ([("10.0.0.0/30", ("10.0.0.1/32",))], ["10.0.0.0", "10.0.0.2/31"]),
        ([("10.0.0.0/30", ("10.0.0.0/31", "10.0.0.2/31"))], []),
        ([("10.0.0.0/24", ("10.0.0.0/25",)), ("10.0.0.0/26", ())], ["10.0.0.0/26", "10.0.0.128/25"]),
        ([("10.0.0.0/25", ()), ("10.0.0.128/25", ())], ["10.0.0.0/24"]),
    ],
)
def test_blocks_with_holes_as_networks(blocks: list[tuple[str, tuple[str, ...]]], expected: list[str]) -> None:
    assert list(ranges.networks(policy._blocks(tuple(blocks), "ip"))) == expected


def test_blocks_of_the_other_family_are_left_out() -> None:
    blocks = (("10.0.0.0/8", ()), ("fd00::/8", ("fd00::/9",)))
    assert list(ranges.networks(policy._blocks(blocks, "ip"))) == ["10.0.0.0/8"]
    assert list(ranges.networks(policy._blocks(blocks, "ip6"))) == ["fd80::/9"]


# --- where rules stand ------------------------------------------------------------------------------------------------

BASES = {mode: policies.objects_of(NINE, mode) for mode in ("iptables", "nftables")}


def _nodes(text: str, mode: str = "iptables") -> dict[str, frozenset[Value]]:
    """What a set adds to each node."""
    with_them, without = (render(policies.with_policies(BASES[mode], one)) for one in (text, ""))
    return {netns: values - without[netns] for netns, values in with_them.items()}


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_only_nodes_of_selected_pods_have_rules(mode: str) -> None:
    added = _nodes("x/p: {podSelector: {matchLabels: {pod: a}}}", mode)
    assert [netns for netns, values in added.items() if values] == ["nine.node.node1"]


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_a_policy_that_selects_nobody_adds_nothing(mode: str) -> None:
    assert not any(_nodes("x/p: {podSelector: {matchLabels: {pod: q}}}", mode).values())


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_a_label_changes_sets_and_no_rule(mode: str) -> None:
    """A peer's label: only a set's contents are written, wherever the set is."""
    text = "x/p: {ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {pod: b}}}], ports: [{port: web}]}]}"  # noqa: E501 - a document is a line
    before = policies.with_policies(BASES[mode], text)
    after = policies.patched(before, model.Key("Pod", "v", "a"), {"pod": "b"})
    old, new = render(before), render(after)
    changed = {value for netns in new for value in new[netns] ^ old[netns]}
    assert changed
    assert all(isinstance(value, IpSet | NftElement) for value in changed)


def test_the_first_jumps_of_forward_and_input() -> None:
    """kube-proxy's and flanneld's chains accept, so the policies' stand before them."""
    (node,) = [values for values in _nodes("x/p: {podSelector: {matchLabels: {pod: a}}}").values() if values]
    first = {value.name: value.rules[0] for value in node if isinstance(value, Chain) and value.policy}
    assert first == {
        "FORWARD": '-m comment --comment "network policies" -j KUBE-ROUTER-FORWARD',
        "INPUT": '-m comment --comment "network policies" -j KUBE-ROUTER-INPUT',
    }


@pytest.mark.parametrize(("bit", "expected"), [(14, "0x10000"), (16, "0x20000"), (15, "0x10000")])
def test_the_mark_is_not_the_one_that_masquerades(bit: int, expected: str) -> None:
    assert policy_iptables.mark(bit) == expected


def test_a_rule_that_says_something_else_has_another_set() -> None:
    """Rules change in one step and sets in another, so no set may mean one thing to the old rule and another to the new."""  # noqa: E501 - a document is a line
    sets = [
        {
            value.name
            for values in _nodes(f"x/p: {{ingress: [{{from: [{peer}]}}]}}").values()
            for value in values
            if isinstance(value, IpSet)
        }
        for peer in ("{podSelector: {matchLabels: {pod: a}}}", "{podSelector: {matchLabels: {pod: b}}}")
    ]
    assert sets[0].isdisjoint(sets[1])


def test_long_names_and_many_policies_fit_in_a_comment() -> None:
    many = "\n".join(f"x/{'p' * 60}-{n}: {{}}" for n in range(20))
    for mode in BASES:
        rules = [
            rule for values in _nodes(many, mode).values() for value in values for rule in getattr(value, "rules", ())
        ]
        comments = [rule.split('"')[1] for rule in rules if '"' in rule]
        assert max(map(len, comments)) <= (255 if mode == "iptables" else 127)


# --- flows that end ---------------------------------------------------------------------------------------------------

FLUSHED = policies.objects_of(NINE, policy="{flushConntrack: true}")
WHO = policies.ends(FLUSHED)


def test_no_flow_is_judged_where_nobody_asked_for_it() -> None:
    text = "x/p: {}"
    asked = conntrack.flows(policies.with_policies(BASES["iptables"], text)).values()
    assert {flow.protocols for flow in asked} == {frozenset({"udp"})}
    found = conntrack.flows(policies.with_policies(FLUSHED, text))
    assert {flow.protocols for flow in found.values()} == {PROTOCOLS}


@pytest.mark.parametrize(
    ("start", "to", "answerer", "protocol", "goes"),
    [
        ("v/b", "x/a", "", "tcp", True),
        ("v/b", "x/a", "", "udp", True),
        ("x/b", "x/a", "", "tcp", False),  # allowed
        ("x/b", "x/a", "", "sctp", True),  # the port is TCP's
        ("x/a", "v/b", "", "tcp", False),  # from a pod whose egress is open
        ("v/b", "v/a", "", "tcp", False),  # neither is selected
        ("x/a", "x/a", "", "udp", False),  # itself
        ("node1", "x/a", "", "tcp", False),  # its own node
        ("node2", "x/a", "", "tcp", True),
        ("v/b", "", "x/a", "tcp", True),  # by a service: who answers counts
        ("x/b", "", "x/a", "tcp", False),
    ],
)
def test_which_entries_go(start: str, to: str, answerer: str, protocol: str, goes: bool) -> None:
    objects = policies.with_policies(FLUSHED, "x/p: {ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]}")
    entry = Conntrack(
        WHO[start].ip, 40000, WHO[to].ip if to else "10.96.0.80", 80, f"{WHO[answerer or to].ip}:80", protocol
    )
    changes = conntrack.stale(conntrack.flows(objects), {"nine.node.node1": frozenset({entry})})
    assert [change.value for change in changes] == ([entry] if goes else [])


def test_a_cluster_that_flushes_drops_what_belongs_to_no_connection() -> None:
    text = "x/p: {}"
    strict = render(policies.with_policies(FLUSHED, text))["nine.node.node1"]
    rules = {value.name: value.rules for value in strict if isinstance(value, Chain)}["KUBE-ROUTER-FORWARD"]
    assert rules[1].endswith("-m conntrack --ctstate NEW -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j DROP")


def test_a_pod_of_the_node_is_no_pod() -> None:
    """A hostNetwork pod is not selected: it would close its node."""
    objects = policies.with_policies(policies.objects_of(EDGE), "shop/p: {}")
    (one, two) = policy.guards(objects).values()
    assert {pod.pod for guard in (one, two) for pod in guard.isolated} == {"shop/web", "shop/far"}
