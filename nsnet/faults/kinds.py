"""What the catalogue knows of each kind of fault."""

import re
from collections.abc import Callable, Iterable
from typing import Literal

import msgspec

from nsnet.faults.draft import Draft, Site
from nsnet.model import Objects
from nsnet.state import Hold

Places = Literal["node", "pod", "machine", "service", "any"]
"""What a fault may be on; a machine is a node or a host, `any` one of these or a pod."""

OF_THE_KERNEL = frozenset({"string", "legacy"})
"""What a fault needs that is asked of the kernel (`kernel.demands`) before the fault is stored."""


class Option(msgspec.Struct, frozen=True):
    """`NAME=VALUE`, or the value alone for a kind's first one.

    `form` is a regular expression; `read` raises ValueError for what has that form and is no such value.
    """

    name: str
    default: str
    form: str
    example: str
    words: str
    read: Callable[[str], object] = str

    def fits(self, value: str) -> bool:
        if re.fullmatch(self.form, value) is None:
            return False
        try:
            self.read(value)
        except ValueError:
            return False
        return True


def between(least: int, most: int) -> Callable[[str], object]:
    """Of an option that is a number."""

    def read(value: str) -> int:
        if not least <= int(value) <= most:
            raise ValueError(value)
        return int(value)

    return read


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """A fault: what people see, why, how they find it with ordinary tools, and how they mend it by hand.

    What it does is one or more of four functions: `damage` on the desired state, `hold` (keys that nobody touches),
    `asked` on the objects that are rendered, `derived` on what the controllers made of them. `needs` are words of what
    the cluster must have (`vxlan`) or the kernel (`netem`, `string`).
    """

    name: str
    title: str
    symptom: str
    cause: str
    detect: tuple[str, ...]
    mend: tuple[str, ...]
    places: Places = "node"
    everywhere: bool = False  # without `on`: all of them
    pairs: bool = False  # it stands between `on` and `to`
    options: tuple[Option, ...] = ()
    needs: tuple[str, ...] = ()
    damage: Callable[[Draft, Site], None] | None = None
    hold: Callable[[Draft, Site], Iterable[Hold]] | None = None
    asked: Callable[[Objects, Site], Objects] | None = None
    derived: Callable[[Objects, Site], Objects] | None = None
    source: str = ""  # issues where people met it
