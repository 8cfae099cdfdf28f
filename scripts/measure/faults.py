"""The score of `trace`: of how many faults it names the true cause, and whether packets fare as it says."""

import statistics
import time
from collections.abc import Iterator

Line = tuple[str, str, str, bool]


def measure() -> Iterator[Line]:
    """Lines of the table, for the modes whose rules differ."""
    for mode in ("iptables", "nftables"):
        yield from _measured(mode)


def _measured(mode: str) -> Iterator[Line]:
    from nsnet import kernel
    from tests import faulted

    cluster = faulted.Cluster(mode)
    named, agreed, cleared, rows = [], [], [], faulted.rows()
    for row in rows:
        cluster.add(row.words)
        state, objects = kernel.observe(faulted.NAME), cluster.objects
        named.append(faulted.is_named(row, faulted.said(objects, state, row.question)))
        agreed.append(not faulted.disagreement(objects, state, row.question))
        start = time.perf_counter()
        cluster.clear()
        cleared.append(time.perf_counter() - start)
    cluster.down()
    lost = ", ".join(row.words[0] for row, good in zip(rows, named, strict=True) if not good)
    score = f"{sum(named)} of {len(rows)}" + (f" (not {lost})" if lost else "")
    yield f"faults whose true cause trace names, {mode}", score, "all", all(named)
    yield f"faults where predicted = observed, {mode}", f"{sum(agreed)} of {len(rows)}", "all", all(agreed)
    middle = statistics.median(cleared)
    yield f"undoing a fault, {mode}", f"{middle:.2f} s (worst {max(cleared):.2f})", "< 1 s", middle < 1
