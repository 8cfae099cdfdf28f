"""Is this the spread of a fair choice? An exact bound, with a stated error rate.

kube-proxy chooses an endpoint for every connection independently and uniformly (with probability 1/n, 1/(n-1), … 1).
So how often one of n endpoints answers in C calls is binomial(C, 1/n), exactly. A spread is called implausible when
some endpoint's count is so far out that, over all n endpoints and both sides together (Bonferroni), chance gives such
a count less often than ERROR_RATE. That bound holds for every n and C, where chi-square is an approximation that is
worst far out in the tail, which is where we stand. One false alarm in a million tests: a cluster of a thousand
Services is wrongly accused once in a thousand runs.

The number of calls follows from the same rate: so many that an endpoint which never answers is itself implausible.
"""

from collections.abc import Iterable
from math import ceil, exp, lgamma, log, log1p

ERROR_RATE = 1e-6
MOST_CALLS = 5000


def calls(endpoints: int, rate: float = ERROR_RATE) -> int:
    """How many calls it takes until an endpoint that was never chosen cannot be put down to chance.

    For 2 endpoints 22, for 3 39, for 10 160; at most MOST_CALLS (reached at some 260 endpoints).
    """
    if endpoints < 2:
        return 1
    return min(MOST_CALLS, ceil(log(rate / (2 * endpoints)) / log1p(-1 / endpoints)))


def likelihood(counts: Iterable[int]) -> float:
    """A bound on how often chance gives a spread as uneven as this one; `counts` has one entry per endpoint, 0 too."""
    found = list(counts)
    total = sum(found)
    if len(found) < 2 or not total:
        return 1.0
    tail = min(min(_at_most(count, total, 1 / len(found)), _at_least(count, total, 1 / len(found))) for count in found)
    return min(1.0, 2 * len(found) * tail)


def _exactly(count: int, total: int, chance: float) -> float:
    ways = lgamma(total + 1) - lgamma(count + 1) - lgamma(total - count + 1)
    return exp(ways + count * log(chance) + (total - count) * log1p(-chance))


def _at_most(count: int, total: int, chance: float) -> float:
    return sum(_exactly(k, total, chance) for k in range(count + 1))


def _at_least(count: int, total: int, chance: float) -> float:
    return sum(_exactly(k, total, chance) for k in range(count, total + 1))
