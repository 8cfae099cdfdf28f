"""What one machine of a cluster asks of another: its kernel state, packets as they pass, one packet sent there.

The asker has a `remote.Talk`; the verb `beside` answers it with `serve` until it goes. Requests are answered in their
order, with the functions that ask the kernel here. While packets are watched (`Watch`), what passed comes unasked as
`Heard`, until `Stop`; then `Ended` with the rest.

Machines have clocks of their own. `offset` asks for the other one's time a few times and takes the quickest answer: in
its middle the two clocks stood side by side, with an error of half the time it took (as NTP has it). A difference that
is not larger than that error is none: of machines that are emulated on one, say, or of two that NTP keeps together.
"""

import time
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from nsnet.errors import NsnetError
from nsnet.kernel import run
from nsnet.kernel.beacon import Beacon, beacon, send
from nsnet.kernel.bpf import Instruction
from nsnet.kernel.capture import Capture, Seen
from nsnet.kernel.observing import observe
from nsnet.kernel.remote import Frames, Talk, answered, refused, requests
from nsnet.kernel.ruletrace import ChainName, Match, RuleTrace, Told, located
from nsnet.state import Key, Value

TRIES = 7  # of asking for the time
GLANCE = 0.05  # s between two looks whether the asker has had enough


class Clock(msgspec.Struct, frozen=True, tag=True):
    """What time is it there? In ns since 1970."""


class Look(msgspec.Struct, frozen=True, tag=True):
    """`observe` there: everything, or what `only` names."""

    only: dict[str, frozenset[Key]] | None = None


class Aim(msgspec.Struct, frozen=True, tag=True):
    """`beacon` there."""

    netns: str
    protocol: str
    dst: str
    dport: int
    sport: int


class Shoot(msgspec.Struct, frozen=True, tag=True):
    """`send` there, while packets are watched."""

    beacon: Beacon


class Output(msgspec.Struct, frozen=True, tag=True):
    """What a command says in a namespace there."""

    netns: str
    argv: tuple[str, ...]


class Watch(msgspec.Struct, frozen=True, tag=True):
    """Packets in these (namespace, device) that the filter lets through, and of one packet the rules it matches."""

    places: list[tuple[str, str]]
    program: tuple[Instruction, ...]
    snapshot: int
    ruled: list[str] = []
    number: int = 0
    matches: tuple[Match, ...] = ()


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Enough has been seen."""


Asked = Clock | Look | Aim | Shoot | Output | Watch | Stop
State = dict[str, frozenset[Value]]


class Heard(msgspec.Struct, frozen=True, tag=True):
    """What has passed; nothing that is older than `until` (ns) comes any more."""

    until: int
    seen: list[Seen]


class Sent(msgspec.Struct, frozen=True, tag=True):
    """The packet has left, or was refused."""

    refused: str


class Ended(msgspec.Struct, frozen=True, tag=True):
    """The rest of it."""

    seen: list[Seen]
    drops: dict[str, int]
    gone: list[str]
    told: list[Told]
    places: list[tuple[str, ChainName, int, int]]  # as `ruletrace.located` has it


# --- the one who answers ----------------------------------------------------------------------------------------------


def serve(cluster: str, frames: Frames) -> None:
    """Answers until the asker goes."""
    try:
        for asked in requests(frames, Asked):
            try:
                frames.write(answered(_done(cluster, asked, frames)))
            except NsnetError as error:
                frames.write(refused(error))
    except BrokenPipeError:
        return


def _done(cluster: str, asked: Asked, frames: Frames) -> object:
    match asked:
        case Clock():
            return time.time_ns()
        case Look(only):
            return observe(cluster, only)
        case Aim(netns, protocol, dst, dport, sport):
            return beacon(netns, protocol, dst, dport, sport)
        case Output(netns, argv):
            return run.output(netns, argv)
        case Watch():
            return _watched(asked, frames)
    return None  # there is nothing to stop, and nobody who would see a packet


def _watched(asked: Watch, frames: Frames) -> Ended:
    with (
        Capture(asked.places, asked.program, asked.snapshot) as hearing,
        RuleTrace(asked.ruled, asked.number, asked.matches) as rules,
    ):
        frames.write(answered(Heard(0, [])))  # it has begun
        while (further := _further(frames, hearing.alive)) is not None:
            if further:
                frames.write(answered(Sent(send(further[0].beacon))))
            seen = hearing.read(GLANCE) if hearing.alive else []
            frames.write(answered(Heard(hearing.until, seen)))
        told = rules.read()
        rest = hearing.rest() if hearing.alive else []
        return Ended(rest, hearing.drops(), hearing.gone, told, [(*rule, at) for rule, at in located(told).items()])


def _further(frames: Frames, busy: bool) -> list[Shoot] | None:
    """What is asked while packets are watched: None where that is to end. Where there is nothing to watch, waits."""
    if busy and not frames.waiting(0):
        return []
    frame = frames.read()
    asked = msgspec.msgpack.decode(frame, type=Shoot | Stop) if frame is not None else Stop()
    return [asked] if isinstance(asked, Shoot) else None


# --- the one who asks -------------------------------------------------------------------------------------------------


class Offset(NamedTuple):
    """How far another machine's clock is ahead of ours, and how far that may be wrong, in ns; 0 where it is less."""

    ahead: int
    error: int


def offset(talk: Talk) -> Offset:
    best = min(_asked_times(talk), key=lambda times: times[2] - times[0])
    before, there, after = best
    error = (after - before) // 2
    ahead = there - (before + error)
    return Offset(ahead if abs(ahead) > error else 0, error)


def _asked_times(talk: Talk) -> Iterator[tuple[int, int, int]]:
    for _ in range(TRIES):
        before = time.time_ns()
        there = talk.ask(Clock(), int)
        yield before, there, time.time_ns()
