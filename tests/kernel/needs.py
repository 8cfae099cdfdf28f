"""What a test needs of the kernel: it asks, and is skipped with the reason where the kernel has not got it."""

import pytest

from nsnet.kernel import demands
from nsnet.kernel.features import FEATURES, IPV6
from nsnet.state import State


def features(*names: str) -> None:
    """Skips the test that calls it where one of these is missing."""
    known = {feature.name: feature for feature in (*FEATURES, *IPV6)}
    for found in demands.missing([known[name] for name in names]):
        pytest.skip(f"this kernel lacks {found.name}: {found.mend}")


def what_it_takes(wanted: State) -> None:
    """Skips the test that calls it where this state cannot stand."""
    features(*demands.demands(wanted))
