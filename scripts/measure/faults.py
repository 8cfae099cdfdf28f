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
    faulted.healthy(cluster)  # and neighbours know each other
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
    kinds = [row.words[0] for row in rows]
    yield f"faults whose true cause trace names, {mode}", _score(kinds, named), "all", all(named)
    yield f"faults where predicted = observed, {mode}", _score(kinds, agreed), "all", all(agreed)
    middle = statistics.median(cleared)
    yield f"undoing a fault, {mode}", f"{middle:.2f} s (worst {max(cleared):.2f})", "< 1 s", middle < 1


def _score(kinds: list[str], good: list[bool]) -> str:
    """`30 of 31 (not rp-filter)`."""
    lost = ", ".join(kind for kind, right in zip(kinds, good, strict=True) if not right)
    return f"{sum(good)} of {len(kinds)}" + (f" (not {lost})" if lost else "")
