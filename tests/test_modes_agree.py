"""Random Services on random clusters: iptables rules = nftables rules = what the facts say, packet by packet; and what
userspace mode's rules and process make of it.

Only the rows of nsnet/verify/modes.py may differ, and each must differ as that table has it.
"""

from hypothesis import given, settings

from nsnet import names
from nsnet.render import render
from nsnet.state import State
from nsnet.trace import Packet, Way, walk
from nsnet.verify.modes import MODES, SITUATIONS
from tests import agreement
from tests.agreement import CLIENT, Expected, Question, Scenario


def netns(scenario: Scenario, who: str) -> str:
    if who == CLIENT:
        return names.host_netns("ag", who)
    return names.pod_netns("ag", "default", who) if who in scenario.pods else names.node_netns("ag", who)


def walked(scenario: Scenario, state: State, asked: Question) -> tuple[Expected, list[Way]]:
    packet = Packet(asked.spec.protocol, asked.address, asked.port, sport=40000)
    ways = walk(state, netns(scenario, asked.sender), packet)
    owners = {netns(scenario, pod): pod for pod in scenario.pods}
    words = {way.result for way in ways if way.result != "delivered"}
    found = {(owners.get(way.netns, "the node"), way.packet.src) for way in ways if way.result == "delivered"}
    if not words and {who for who, _ in found} == {"the node"}:
        return Expected(word="the node's own"), ways
    assert not (words and found), ways
    return Expected(frozenset(found), " ".join(sorted(words))), ways


def wanted_in(mode: str, scenario: Scenario, asked: Question) -> Expected:
    """Other than in iptables mode only where the table of differences says so."""
    usual = agreement.expected(scenario, asked)
    if mode != "userspace":
        return in_mode(usual, mode)
    found = agreement.in_process(scenario, asked)
    assert found.situation in SITUATIONS[mode] or found.word == usual.word == "unreachable"
    return found._replace(situation="")


def in_mode(expected: Expected, mode: str) -> Expected:
    if expected.situation in SITUATIONS.get(mode, {}):
        return Expected(word=SITUATIONS[mode][expected.situation].instead)
    return expected._replace(situation="")


@given(agreement.scenarios())
@settings(max_examples=40)
def test_modes_and_facts_agree(scenario: Scenario) -> None:
    for mode in MODES:
        state = render(agreement.objects(scenario, mode))
        for asked in agreement.questions(scenario):
            wanted = wanted_in(mode, scenario, asked)
            found, ways = walked(scenario, state, asked)
            assert found == wanted, f"{mode}: {asked}\n" + "\n".join(
                "\n".join([str(way), *map(str, way.hops)]) for way in ways
            )
