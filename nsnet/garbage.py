"""When not to look for garbage."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """For who makes a hundred thousand values, none of them in a cycle: going through them for garbage is in vain."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextmanager
def kept() -> Iterator[None]:
    """The same, for values that stay as long as the process: nobody goes through them later, either."""
    with uncollected():
        yield
        gc.freeze()
