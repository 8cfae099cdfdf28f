"""What the fake kernel is trusted with, on the real one: rendered states stand as rendered, and lead to each other."""

from itertools import pairwise

from nsnet import kernel
from nsnet.diff import diff
from nsnet.state import Change, Listener, State
from tests.variants import NAMES, VARIANTS

CLUSTER = "demo"


def look() -> State:
    """What is there, without what is only ever observed."""
    return {
        netns: frozenset(value for value in values if not isinstance(value, Listener))
        for netns, values in kernel.observe(CLUSTER).items()
    }


def go(want: State) -> list[Change]:
    changes = diff(look(), want)
    assert [str(refusal) for refusal in kernel.apply(changes)] == []
    return changes


def test_every_state_stands_as_rendered_and_the_way_to_the_next_is_one_diff() -> None:
    """Each pair of neighbours in a round trip over all variants, in both directions."""
    tour = [*NAMES, *reversed(NAMES), "nothing"]
    for start, end in pairwise(["nothing", *tour]):
        go(VARIANTS[end])
        left = diff(look(), VARIANTS[end])
        assert [str(change) for change in left] == [], f"{start} → {end}"
    assert look() == {}
