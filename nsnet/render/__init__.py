"""Objects → what must stand on the machine: pure, one file per component of the field.

A component is a function `render(view)` that yields (namespace, values) pairs; it may name a namespace more than once,
and several components may add to one. What they yield is united here. Each memoises on the small values of `view`, so
that a repeated render costs what changed.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

from nsnet import model
from nsnet.render import (
    chains,
    cni,
    dns,
    etc,
    flannel,
    health,
    ingress,
    lacking,
    loadbalancer,
    portmap,
    programs,
    spread,
    sysctls,
    underlay,
)
from nsnet.render.view import MEMO, View, view_of
from nsnet.state import State, Value

Component = Callable[[View], Iterator[tuple[str, Iterable[Value]]]]

COMPONENTS: tuple[Component, ...] = (
    underlay.render,
    cni.render,
    flannel.render,
    chains.render,
    portmap.render,
    programs.render,
    health.render,
    loadbalancer.render,
    dns.render,
    ingress.render,
    etc.render,
)


def render(objects: model.Objects, here: str = "") -> State:
    """The wanted state of a cluster whose objects `control.complete` left behind; with `here` that machine's part.

    Every value is spelled as the kernel shows it, so that equality with an observed one means that nothing is to do.
    Raises ObjectError where the objects ask for what is not built yet.
    """
    seen = view_of(model.indexed(objects), here)
    parts: defaultdict[str, list[Iterable[Value]]] = defaultdict(list)
    for component in COMPONENTS:
        for netns, values in component(seen):
            parts[netns].append(values)
    want = {netns: _united(values) for netns, values in parts.items()}
    for netns, said in sysctls.said(seen).items():
        want[netns] = frozenset(sysctls.over(want[netns], netns, said))
    return spread.own(seen, lacking.without(seen.cluster, want))


def _united(parts: list[Iterable[Value]]) -> frozenset[Value]:
    """One frozenset; of the same one or two (a pod's network, its files) the same object, which compares at once."""
    first, last = parts[0], parts[-1]
    if len(parts) <= 2 and isinstance(first, frozenset) and isinstance(last, frozenset):
        return first if len(parts) == 1 else _both(first, last)
    return frozenset().union(*parts)


@lru_cache(maxsize=MEMO)
def _both(one: frozenset[Value], other: frozenset[Value]) -> frozenset[Value]:
    return one | other
