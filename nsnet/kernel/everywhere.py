"""Packets of several machines as one: what passes here and on other machines of the cluster, in the order of its times.

Each machine puts its own packets in order (`capture.py`) and says up to when it has told everything. What is older than
the oldest of these times can be overtaken by nothing; a machine that says nothing for a second is not waited for.
Times of another machine are moved by how far its clock is ahead of ours (`beside.offset`), as well as that can be known
over the network: two packets of different machines that are less than that apart may stand in the wrong order.
"""

import select
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Self

from nsnet.errors import NsnetError
from nsnet.kernel import bpf, run
from nsnet.kernel.beacon import Beacon, send
from nsnet.kernel.beacon import beacon as aimed
from nsnet.kernel.beside import GLANCE, Aim, Ended, Heard, Offset, Output, Sent, Shoot, Stop, Watch
from nsnet.kernel.capture import Capture, Seen
from nsnet.kernel.remote import Talk
from nsnet.kernel.ruletrace import Located, Match, RuleTrace, Told, located

STALLED = 1.0  # s without a word from a machine, until it is not waited for
_ALWAYS = 1 << 63


class Other(NamedTuple):
    """Another machine: who to ask, how its clock goes, and what its namespaces are called among those of all."""

    talk: Talk
    clock: Offset
    called: Callable[[str], str]
    plain: Callable[[str], str]


Homes = Callable[[str], Other | None]


def all_here(_netns: str) -> None:
    """The homes of a cluster that one machine carries alone."""


class Rules(NamedTuple):
    """The one packet whose rules are wanted: in which namespaces, and how it is known (`ruletrace`)."""

    ruled: Sequence[str] = ()
    number: int = 0
    matches: tuple[Match, ...] = ()


def beacon(homes: Homes, netns: str, protocol: str, dst: str, dport: int, sport: int) -> Beacon:
    """`beacon.beacon`, in a namespace wherever it is."""
    home = homes(netns)
    if home is None:
        return aimed(netns, protocol, dst, dport, sport)
    return home.talk.ask(Aim(home.plain(netns), protocol, dst, dport, sport), Beacon)


def output(homes: Homes, netns: str, argv: Sequence[str]) -> str:
    """`run.output`, in a namespace wherever it is."""
    home = homes(netns)
    return run.output(netns, argv) if home is None else home.talk.ask(Output(home.plain(netns), tuple(argv)), str)


class _Far:
    """The packets of one other machine."""

    def __init__(self, other: Other, watch: Watch) -> None:
        self.other = other
        self.until = 0
        self.heard = time.monotonic()
        self.ended: Ended | None = None
        self.sent: str | None = None  # of a packet that it was asked to send: why not, or empty
        other.talk.tell(watch)

    def pull(self) -> list[Seen]:
        """What it has told by now. Raises NsnetError where it is gone."""
        found: list[Seen] = []
        while self.ended is None and self.other.talk.frames.waiting(0):
            found += self.next()
        return found

    def next(self) -> list[Seen]:
        said: Heard | Ended | Sent = self.other.talk.answer(Heard | Ended | Sent)  # type: ignore[arg-type]
        self.heard = time.monotonic()
        if isinstance(said, Sent):
            self.sent = said.refused
            return []
        if isinstance(said, Ended):
            self.ended, self.until = said, _ALWAYS
        else:
            self.until = said.until - self.other.clock.ahead
        return [self._moved(one) for one in said.seen]

    def _moved(self, one: Seen) -> Seen:
        return one._replace(time=one.time - self.other.clock.ahead, netns=self.other.called(one.netns))


class Everywhere:
    """As `capture.Capture`, for places that may be on other machines. A context manager."""

    def __init__(
        self,
        places: Iterable[tuple[str, str]],
        homes: Homes = all_here,
        program: bpf.Program = bpf.EVERYTHING,
        snapshot: int = bpf.SNAPSHOT,
        rules: Rules = Rules(),  # noqa: B008 - a value
    ) -> None:
        """`homes`: which other machine has a namespace; None: this one. Raises NsnetError as any of them does."""
        by_machine: dict[Other | None, list[tuple[str, str]]] = {}
        for netns, dev in places:
            home = homes(netns)
            by_machine.setdefault(home, []).append((home.plain(netns) if home else netns, dev))
        ruled = {home: [name for name in rules.ruled if homes(name) == home] for home in by_machine}
        self._homes = homes
        self._waiting: list[Seen] = []
        self._lost: list[str] = []
        self._told: list[Told] = []
        self._located: Located = {}
        self._far = [
            _Far(home, Watch(own, program, snapshot, [home.plain(name) for name in ruled[home]], *rules[1:]))
            for home, own in by_machine.items()
            if home is not None
        ]
        self._here = Capture(by_machine.get(None, []), program, snapshot)
        self._rules = RuleTrace(ruled.get(None, []), rules.number, rules.matches)
        for far in self._far:
            far.next()  # it has begun

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._here.close()
        self._rules.close()

    @property
    def others(self) -> list[Other]:
        """The other machines that take part."""
        return [far.other for far in self._far]

    @property
    def alive(self) -> bool:
        """Is there still anything to look at?"""
        return self._here.alive or any(far.ended is None for far in self._far)

    @property
    def gone(self) -> list[str]:
        """What went away while it was looked at, as sentences."""
        away = [sentence for far in self._far if far.ended for sentence in far.ended.gone]
        return [*self._here.gone, *away, *self._lost]

    def drops(self) -> dict[str, int]:
        """Namespace → packets that its kernel has dropped; of other machines once all has ended."""
        away = {
            far.other.called(name): lost for far in self._far if far.ended for name, lost in far.ended.drops.items()
        }
        return {**self._here.drops(), **away}

    def read(self, timeout: float) -> list[Seen]:
        """What has passed and can be overtaken by nothing any more; waits at most `timeout` seconds for the first."""
        if self._here.alive:
            self._waiting += self._here.read(min(timeout, GLANCE) if self._far else timeout)
        else:
            select.select([far.other.talk.frames.source for far in self._far if not far.ended], [], [], timeout)
        for far in self._far:
            self._waiting += self._pulled(far, far.pull)
        patient = time.monotonic() - STALLED
        untils = [far.until for far in self._far if far.heard > patient]
        return self._up_to(min([*untils, self._here.until if self._here.alive else _ALWAYS]))

    def send(self, one: Beacon) -> str:
        """`beacon.send`, from wherever its namespace is. Raises NsnetError where that machine is gone."""
        home = self._homes(one.netns)
        if home is None:
            return send(one)
        far = next(far for far in self._far if far.other is home)
        home.talk.tell(Shoot(one))
        while far.sent is None:
            self._waiting += far.next()
        return far.sent

    def _pulled(self, far: _Far, pull: Callable[[], list[Seen]]) -> list[Seen]:
        try:
            return pull()
        except NsnetError as error:
            self._lost.append(str(error))
            far.ended, far.until = Ended([], {}, [], [], []), _ALWAYS
            return []

    def _up_to(self, horizon: int) -> list[Seen]:
        ready = [one for one in self._waiting if one.time <= horizon]
        self._waiting = [one for one in self._waiting if one.time > horizon]
        return sorted(ready, key=lambda one: one.time)

    def rest(self) -> list[Seen]:
        """Everything that is there at this moment; it ends on the other machines."""
        self.end()
        self._waiting += self._here.rest() if self._here.alive else []
        return self._up_to(_ALWAYS)

    def end(self) -> None:
        """Enough has been seen on the other machines: what they still have to say is fetched."""
        going = [far for far in self._far if far.ended is None]
        for far in going:
            self._pulled(far, lambda far=far: far.other.talk.tell(Stop()) or [])  # type: ignore[misc]
        for far in going:
            while far.ended is None:
                self._waiting += self._pulled(far, far.next)

    def told(self) -> tuple[list[Told], Located]:
        """The rules the packet matched, each namespace's in its order; and where each stands in its chain."""
        self.end()
        told = self._rules.read()
        found = located(told)
        for far in self._far:
            ended, called = far.ended, far.other.called
            if ended:
                told += [step._replace(netns=called(step.netns)) for step in ended.told]
                found |= {(called(netns), chain, handle): at for netns, chain, handle, at in ended.places}
        return told, found
