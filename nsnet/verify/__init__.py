"""What must be reachable, and whether it is; why not, when it is not.

    objects ─world→ places, endpoints ─expect, own→ expectations ─asking→ packets ─judge→ results ─report→ JUnit, rows

Everything but `asking` is pure. `drift` makes results of the changes that a reconcile would make.
"""

from typing import TYPE_CHECKING

from nsnet import ondemand

if TYPE_CHECKING:
    from nsnet.verify.asking import drift, run
    from nsnet.verify.expect import Expectation, describe, expectations, only
    from nsnet.verify.judge import Result
    from nsnet.verify.own import checks

__all__ = ["Expectation", "Result", "checks", "describe", "drift", "expectations", "only", "run"]

_OF_EXPECT = ("Expectation", "describe", "expectations", "only")
__getattr__ = ondemand.attributes(
    __name__,
    {"Result": "judge", "checks": "own", "drift": "asking", "run": "asking", **dict.fromkeys(_OF_EXPECT, "expect")},
)
