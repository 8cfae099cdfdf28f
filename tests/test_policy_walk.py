"""Every policy set's truth table, asked of `trace.walk` over what `render` makes of it: no packet, no root."""

import pytest

from nsnet.render import render
from nsnet.trace import Packet, policy_of, walk
from tests import policies
from tests.policies import FIXTURES, Case, Fixture
from tests.structure import faults

BASES = {
    (fixture.name, mode): policies.objects_of(fixture, mode)
    for fixture in FIXTURES
    for mode in ("iptables", "nftables")
}
CASES = [(fixture, case) for fixture in FIXTURES for case in fixture.cases]


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
@pytest.mark.parametrize(("fixture", "case"), CASES, ids=[f"{one.name}: {case.name}" for one, case in CASES])
def test_the_table_is_what_walk_predicts(fixture: Fixture, case: Case, mode: str) -> None:
    objects = policies.with_policies(BASES[fixture.name, mode], case.policies)
    want = render(objects)
    assert faults(want) == []
    who = policies.ends(objects)
    every = policies.flows(fixture, who)
    wrong = []
    for flow, passes in policies.expected(case, every, who).items():
        (way,) = walk(want, who[flow[0]].netns, Packet(flow[3], *policies.address(flow, who)))
        if (way.result == "delivered") != passes:
            wrong.append(f"{flow}: {way}")
        elif not passes and ":" not in flow[1]:
            assert way.result == "dropped"
            assert policy_of(way.hops[-1].rule), way
    assert wrong == []
