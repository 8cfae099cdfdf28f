"""The score of `trace`: of how many faults it names the true cause, and whether packets fare as it says."""

import statistics
import time
from collections.abc import Iterator

Line = tuple[str, str, str, bool]


def measure() -> Iterator[Line]:
    """Lines of the table, for the modes whose rules differ, and for clusters whose ways do."""
    for mode in ("iptables", "nftables"):
        yield from _measured(mode, mode)
    for world in ("racks", "dual-stack"):
        yield from _measured(world, "iptables", world)


def _measured(name: str, mode: str, world: str = "cluster") -> Iterator[Line]:
    from tests import faulted

    cluster = faulted.Cluster(mode, world)
    faulted.healthy(cluster)  # and neighbours know each other
    named, agreed, cleared = {}, {}, []
    for row in cluster.rows:
        cluster.add(row.words)
        objects = cluster.objects
        with faulted.held(objects, row.question):
            state = faulted.seen(row.question)
            named[str(row)] = faulted.is_named(row, faulted.said(objects, state, row.question))
            agreed[str(row)] = not faulted.disagreements(objects, state, [row.question, *row.well])
        start = time.perf_counter()
        cluster.clear()
        cleared.append(time.perf_counter() - start)
    cluster.down()
    yield f"faults whose true cause trace names, {name}", _score(named), "all", all(named.values())
    yield f"faults where predicted = observed, {name}", _score(agreed), "all", all(agreed.values())
    middle = statistics.median(cleared)
    yield f"undoing a fault, {name}", f"{middle:.2f} s (worst {max(cleared):.2f})", "< 1 s", middle < 1


def _score(good: dict[str, bool]) -> str:
    """`30 of 31 (not rp-filter --on node/node2)`."""
    lost = ", ".join(row for row, right in good.items() if not right)
    return f"{sum(good.values())} of {len(good)}" + (f" (not {lost})" if lost else "")
