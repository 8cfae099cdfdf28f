"""Which pairs to ask when there are too many to ask all. Pure; the same seed gives the same pairs.

All ordered pairs of 200 pods are 39,800 and take some ten seconds over all protocols; of 1,000 pods, a million. So
above ALL_PAIRS_UP_TO pods a sample is asked, in which every pod is ROUNDS times source and ROUNDS times target, and
every ordered pair of nodes (a node with itself, too) occurs: what breaks in flannel breaks per pair of nodes, what
breaks in CNI breaks per pod.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from random import Random
from typing import TypeVar

ALL_PAIRS_UP_TO = 200
ROUNDS = 8
OTHER_NODES = 32  # with which each exchanges packets of full size

T = TypeVar("T")


def pairs(items: Sequence[T], node: Callable[[T], str], *, everything: bool, seed: int) -> list[tuple[T, T]]:
    """Ordered pairs (source, target), ordered by source; all of them, or a sample that covers."""
    if everything or len(items) <= ALL_PAIRS_UP_TO:
        return list(permutations(items, 2))
    rng = Random(seed)
    order = rng.sample(range(len(items)), len(items))
    chosen = {
        (order[at], order[(at + shift) % len(order)])
        for shift in rng.sample(range(1, len(order)), ROUNDS)
        for at in range(len(order))
    }
    chosen |= _missing_node_pairs([node(item) for item in items], chosen, rng)
    return [(items[source], items[target]) for source, target in sorted(chosen)]


def _missing_node_pairs(nodes: list[str], chosen: set[tuple[int, int]], rng: Random) -> set[tuple[int, int]]:
    """One pair of pods for every pair of nodes that `chosen` leaves out."""
    places: dict[str, list[int]] = {}
    for index, name in enumerate(nodes):
        places.setdefault(name, []).append(index)
    seen = {(nodes[source], nodes[target]) for source, target in chosen}
    return {
        _two(places[near], places[far], rng)
        for near in places
        for far in places
        if (near, far) not in seen and (near != far or len(places[near]) > 1)
    }


def _two(sources: list[int], targets: list[int], rng: Random) -> tuple[int, int]:
    source = rng.choice(sources)
    return source, rng.choice([target for target in targets if target != source])


def node_pairs(items: Sequence[T], node: Callable[[T], str]) -> Iterator[tuple[T, T]]:
    """A pair for every ordered pair of nodes (each with itself), in turns; of many nodes each has only some others."""
    places: dict[str, list[T]] = {}
    for item in items:
        places.setdefault(node(item), []).append(item)
    names = sorted(places)
    for index, near in enumerate(names):
        others = rotated([name for name in names if name != near], index, OTHER_NODES)
        for turn, far in enumerate((near, *others)):
            sources, targets = places[near], places[far]
            source = sources[turn % len(sources)]
            target = next((one for one in rotated(targets, index + turn, 2) if one != source), None)
            if target is not None:
                yield source, target


def rotated(items: Sequence[T], start: int, count: int) -> list[T]:
    """`count` of the items, from `start` on, round and round; all where there are no more than that."""
    if len(items) <= count:
        return list(items)
    return [items[(start + step) % len(items)] for step in range(count)]
