"""What the fake kernel is trusted with, on the real one: rendered states stand as rendered, and lead to each other."""

from itertools import pairwise

import pytest

from nsnet import kernel
from nsnet.diff import diff
from nsnet.kernel import demands
from nsnet.state import Change, Listener, State
from tests.kernel import needs
from tests.variants import NAMES, VARIANTS

CLUSTER = "demo"
NOT_EVERYWHERE = ("ipip", "ipip, racks", "wireguard")  # what kernels without modules cannot be


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
    """Each pair of neighbours in a round trip over all variants that this kernel can be, in both directions."""
    possible = [name for name in NAMES if not demands.lacking(VARIANTS[name])]
    tour = [*possible, *reversed(possible), "nothing"]
    for start, end in pairwise(["nothing", *tour]):
        go(VARIANTS[end])
        left = diff(look(), VARIANTS[end])
        assert [str(change) for change in left] == [], f"{start} → {end}"
    assert look() == {}


@pytest.mark.parametrize("name", NOT_EVERYWHERE)
def test_so_do_those_that_few_kernels_can_be(name: str) -> None:
    """From the usual backend and back."""
    needs.what_it_takes(VARIANTS[name])
    for state in ("two nodes", name, "two nodes", "nothing"):
        go(VARIANTS[state])
        assert [str(change) for change in diff(look(), VARIANTS[state])] == [], state
