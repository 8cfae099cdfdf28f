"""Packets of several machines on one clock: how far another one is ahead is measured, and its times moved by that."""

import time
from functools import partial
from typing import Any

import pytest

from nsnet import names
from nsnet.kernel.beside import Clock, Ended, Heard, Offset, Stop, offset
from nsnet.kernel.capture import Seen
from nsnet.kernel.everywhere import Everywhere, Other

SECOND = 1_000_000_000
MILLISECOND = 1_000_000


class Machine:
    """Another machine's end of a talk: its clock is ahead, and answers take their time on the way."""

    def __init__(self, ahead: int, times: tuple[int, ...] = (), *, way: float = 0.0) -> None:
        self.ahead, self.way = ahead, way
        self.frames = self
        self.machine = "b"
        heard = [Heard(0, []), *(Heard(at + ahead, [seen("node", at + ahead)]) for at in times)]
        self.told: list[Any] = heard

    def ask(self, what: object, _kind: type) -> int:
        assert isinstance(what, Clock)
        time.sleep(self.way)
        now = time.time_ns() + self.ahead
        time.sleep(self.way)
        return now

    def tell(self, what: object) -> None:
        if isinstance(what, Stop):
            self.told.append(Ended([], {"node": 3}, [], [], []))

    def waiting(self, _timeout: float) -> bool:
        return bool(self.told)

    def answer(self, _kind: object) -> Any:
        return self.told.pop(0)


def seen(netns: str, at: int) -> Seen:
    return Seen(at, netns, "eth0", False, b"", 0)


@pytest.mark.parametrize("way", [0.0, 0.002])
@pytest.mark.parametrize("ahead", [-3 * SECOND, 0, 5 * SECOND])
def test_how_far_a_clock_is_ahead(ahead: int, way: float) -> None:
    found = offset(Machine(ahead, way=way))  # type: ignore[arg-type]
    assert abs(found.ahead - ahead) <= found.error < 50 * MILLISECOND


def test_a_difference_that_may_be_an_error_is_none() -> None:
    """Machines that are emulated on one have one clock, and it shall stay one."""
    assert offset(Machine(MILLISECOND // 2, way=0.002)).ahead == 0  # type: ignore[arg-type]


def _plain(name: str) -> str:
    return name.partition("@")[0]


def test_what_machines_have_seen_is_put_in_order_of_one_clock() -> None:
    """The later is ahead by five seconds, and behind by two; the count of drops is asked for at the end."""
    made = {"b": Machine(5 * SECOND, (10, 30, 50)), "c": Machine(-2 * SECOND, (20, 40, 60))}
    others: dict[str, Any] = {}
    for name, machine in made.items():
        called = partial(names.on_machine, machine=name)
        others[name] = Other(machine, Offset(machine.ahead, 0), called, _plain)  # type: ignore[arg-type]
    with Everywhere([("node@b", ""), ("node@c", "")], lambda netns: others[netns[-1]]) as hearing:
        assert hearing.alive
        found = hearing.rest()
        assert [(one.time, one.netns[-1]) for one in found] == [
            (10, "b"), (20, "c"), (30, "b"), (40, "c"), (50, "b"), (60, "c"),
        ]  # fmt: skip
        assert not hearing.alive
        assert hearing.drops() == {"node@b": 3, "node@c": 3}
