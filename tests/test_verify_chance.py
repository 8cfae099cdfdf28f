"""The numbers behind verify: error rates of the spread test, coverage of the sample, size of the windows."""

from itertools import permutations
from math import comb
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsnet.kernel.probe import Learned, Probe, echo_of, windows
from nsnet.verify import sample
from nsnet.verify.chance import ERROR_RATE, MOST_CALLS, calls, likelihood


@pytest.mark.parametrize(("endpoints", "wanted"), [(1, 1), (2, 22), (3, 39), (5, 73), (10, 160), (1000, MOST_CALLS)])
def test_calls(endpoints: int, wanted: int) -> None:
    assert calls(endpoints) == wanted


@pytest.mark.parametrize("endpoints", range(2, 60))
def test_so_many_calls_that_one_which_never_answers_is_told_and_not_one_call_more(endpoints: int) -> None:
    total = calls(endpoints)
    others, rest = divmod(total, endpoints - 1)
    counts = [0] + [others + (index < rest) for index in range(endpoints - 1)]
    assert likelihood(counts) < ERROR_RATE
    assert 2 * endpoints * (1 - 1 / endpoints) ** (total - 1) > ERROR_RATE


def test_the_bound_holds_exactly_for_two_endpoints() -> None:
    """All 2^22 ways to call two endpoints: those called implausible are fewer than the error rate allows."""
    total = calls(2)
    accused = sum(comb(total, one) for one in range(total + 1) if likelihood([one, total - one]) < ERROR_RATE)
    assert 0 < accused / 2**total <= ERROR_RATE


def test_a_fair_choice_is_not_accused() -> None:
    rng = Random(1)
    for _ in range(300):
        endpoints = rng.randint(2, 30)
        drawn = [rng.randrange(endpoints) for _ in range(calls(endpoints))]
        assert likelihood(drawn.count(index) for index in range(endpoints)) >= ERROR_RATE


@pytest.mark.parametrize(
    ("counts", "told"), [([200, 100, 100], True), ([30, 5, 4], True), ([20, 10, 9], False), ([], False)]
)
def test_an_unfair_choice_is(counts: list[int], told: bool) -> None:
    assert (likelihood(counts) < ERROR_RATE) == told


# --- the sample -------------------------------------------------------------------------------------------------------


def test_few_pods_are_asked_in_all_pairs() -> None:
    assert sample.pairs("abc", str, everything=False, seed=0) == list(permutations("abc", 2))


@given(st.lists(st.integers(0, 12), min_size=201, max_size=260), st.integers())
def test_the_sample_covers_every_pod_both_ways_and_every_pair_of_nodes(nodes: list[int], seed: int) -> None:
    pods = list(enumerate(nodes))
    found = sample.pairs(pods, lambda pod: f"node{pod[1]}", everything=False, seed=seed)
    assert len(set(found)) == len(found)
    assert all(source != target for source, target in found)
    for side in (0, 1):
        times = [pair[side] for pair in found]
        assert all(times.count(pod) >= sample.ROUNDS for pod in pods[::20])
    wanted = {(near, far) for near in nodes for far in nodes if near != far or nodes.count(near) > 1}
    assert {(source[1], target[1]) for source, target in found} == wanted
    assert found == sample.pairs(pods, lambda pod: f"node{pod[1]}", everything=False, seed=seed)


@pytest.mark.parametrize(
    ("start", "count", "wanted"), [(0, 2, "ab"), (3, 2, "da"), (7, 3, "dab"), (1, 4, "abcd"), (5, 9, "abcd")]
)
def test_rotated(start: int, count: int, wanted: str) -> None:
    assert "".join(sample.rotated("abcd", start, count)) == wanted


# --- windows ----------------------------------------------------------------------------------------------------------


def ping(source: str, target: str, one_bridge: bool = False) -> Probe:
    """A probe between two pods; on one bridge each learns the other."""
    learns = (Learned(source, target), Learned(target, source)) if one_bridge else ()
    return Probe(source, "ICMP", "10.0.0.1", learns=learns)


def test_what_learns_nothing_comes_first_and_in_order() -> None:
    """In one window with the rest, so that all silence is waited for together."""
    probes = [ping("a", "b", one_bridge=True), ping("c", "d"), ping("b", "a", one_bridge=True), ping("a", "d")]
    assert list(windows(probes)) == [[1, 3, 0, 2]]


def test_both_directions_and_all_protocols_of_a_pair_share_their_entries() -> None:
    probes = [ping(source, target, one_bridge=True) for _ in range(3) for source, target in permutations("abc", 2)]
    found = list(windows(probes, entries=2))
    assert [
        {frozenset((probes[index].netns, probes[index].learns[0].address)) for index in part} for part in found
    ] == [
        {frozenset("ab")},
        {frozenset("ac")},
        {frozenset("bc")},
    ]
    assert [len(part) for part in found] == [6, 6, 6]


def test_a_windows_probes_are_ordered_by_where_they_start() -> None:
    probes = [ping(source, target, one_bridge=True) for source, target in permutations("cab", 2)]
    (found,) = windows(probes)
    assert [probes[index].netns for index in found] == list("aabbcc")


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("abcdefgh"), st.booleans())),
    st.integers(2, 20),
)
def test_no_window_learns_more_than_it_may_and_none_is_forgotten(
    pairs: list[tuple[str, str, bool]], entries: int
) -> None:
    probes = [ping(source, target, learns and source != target) for source, target, learns in pairs]
    found = list(windows(probes, entries=entries))
    assert sorted(index for part in found for index in part) == list(range(len(probes)))
    for part in found:
        assert len({entry for index in part for entry in probes[index].learns}) <= entries


def test_one_probe_that_learns_more_than_a_window_holds_stands_alone() -> None:
    many = Probe("a", "TCP", "10.96.0.1", 80, learns=tuple(Learned("a", f"10.0.0.{n}") for n in range(9)))
    assert list(windows([ping("a", "b", one_bridge=True), many, ping("c", "d", one_bridge=True)], entries=4)) == [
        [0],
        [1],
        [2],
    ]


# --- packets ----------------------------------------------------------------------------------------------------------

IP = bytes.fromhex("45c0004871490000400190a7cb007101cb007102")
UNREACHABLE = IP + bytes.fromhex("0300fcff00000000 4500002c64b7400040018fb6cb0071020a600001 080025559ee40001")


@pytest.mark.parametrize(
    ("packet", "wanted"),
    [
        (IP + bytes.fromhex("00002d559ee40001"), (0, 0x9EE4, 1)),
        (UNREACHABLE, (3, 0x9EE4, 1)),
        (UNREACHABLE[:-4], (-1, 0, 0)),
        (UNREACHABLE[:28], (-1, 0, 0)),
        (IP, (-1, 0, 0)),
        (b"", (-1, 0, 0)),
        (b"\x4f", (-1, 0, 0)),
    ],
)
def test_which_echo_a_packet_is_about(packet: bytes, wanted: tuple[int, int, int]) -> None:
    assert echo_of(packet) == wanted


@given(st.binary())
def test_no_packet_is_too_odd(packet: bytes) -> None:
    assert len(echo_of(IP + packet)) == len(echo_of(packet)) == 3
