"""What must be reachable, and whether it is; why not, when it is not.

    objects ─world→ places, endpoints ─expect, checks→ expectations ─run→ packets ─judge→ results ─report→ JUnit, rows

Everything but `run` is pure. `drift` makes results of the changes that a reconcile would make.
"""

from nsnet.verify.checks import checks
from nsnet.verify.expect import Expectation, describe, expectations, only
from nsnet.verify.judge import Result
from nsnet.verify.run import drift, run

__all__ = ["Expectation", "Result", "checks", "describe", "drift", "expectations", "only", "run"]
