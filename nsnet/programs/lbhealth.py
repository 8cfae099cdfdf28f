"""The balancer's health checks: asks a port of every node by HTTP, as a cloud's load balancer does.

A node that says 200 is in at once; one that fails twice in a row is out. It is asked every 2 seconds, and 3 seconds
without an answer are a failure (cloud-provider-kind's figures, facts/LB.md). A check that is new believes the first
answer it gets, and is asked again and again until there is one or SETTLED seconds are over: a node's health port may
open a moment later.

    python -m nsnet.programs.lbhealth CONFIG.json

CONFIG is {"checks": [{"netns", "address", "port", "path"}]}; `netns` is the node's, by which the answers are called.
Lines on the unix socket CONFIG.sock: `reload` → `ok` once the file has been read; `health` → {netns: {port: true or
false}} as JSON; `watch` → a line at once and whenever a word of that has changed.
"""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from itertools import count
from pathlib import Path

import msgspec

from nsnet.programs import lines, plain, start

PERIOD, PATIENCE = 2.0, 3.0  # s
FAILURES = 2
SETTLED, AGAIN = 3.0, 0.1  # s
AT_ONCE = 64  # questions under way
log = partial(plain.log, "lbhealth")


class Check(msgspec.Struct, frozen=True):
    netns: str
    address: str
    port: int
    path: str = "/healthz"


class Config(msgspec.Struct, frozen=True):
    checks: tuple[Check, ...] = ()


class State(msgspec.Struct):
    """What is known of a check: `well` None is nothing yet."""

    well: bool | None = None
    failures: int = 0


def heard(state: State, answer: bool | None, *, settled: bool) -> State:
    """The state after an answer, None being silence: one success is in, two failures are out."""
    if answer:
        return State(True, 0)
    failures = state.failures + 1
    if state.well is None:
        return State(None if answer is None and not settled else False, failures)
    return State(state.well and failures < FAILURES, failures)


async def ask(check: Check, room: asyncio.Semaphore) -> bool | None:
    """Does it say 200 within PATIENCE? None: it says nothing."""
    question = f"GET {check.path} HTTP/1.1\r\nHost: {check.address}:{check.port}\r\nConnection: close\r\n\r\n"
    async with room:
        try:
            async with asyncio.timeout(PATIENCE):
                reader, writer = await asyncio.open_connection(check.address, check.port)
                try:
                    writer.write(question.encode())
                    status = await reader.readline()
                finally:
                    writer.close()
        except (OSError, TimeoutError, ValueError):
            return None
    return status.split(b" ", 2)[1:2] == [b"200"] if status.startswith(b"HTTP/") else None


class Checker:
    """Every check with its state, and a task that asks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.room = asyncio.Semaphore(AT_ONCE)
        self.states: dict[Check, State] = {}
        self.tasks: dict[Check, asyncio.Task[None]] = {}
        self.changed = asyncio.Condition()

    async def reload(self) -> str:
        """`ok`, or what is wrong with the file."""
        try:
            config = msgspec.json.decode(self.path.read_bytes(), type=Config)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            log(f"{self.path}: {error}")
            return f"error: {error}"
        for check in self.tasks.keys() - set(config.checks):
            self.tasks.pop(check).cancel()
            del self.states[check]
        for check in config.checks:
            if check not in self.tasks:
                self.states[check] = State()
                self.tasks[check] = asyncio.create_task(self.work(check))
        async with self.changed:
            self.changed.notify_all()
        return "ok"

    async def work(self, check: Check) -> None:
        """Asks for ever: until there is a first answer over and over, then every PERIOD, answered or not.

        So what falls silent is out after at most FAILURES * PERIOD + PATIENCE. Who was overtaken is not heard.
        """
        loop = asyncio.get_running_loop()
        began, newest = loop.time(), 0
        while self.states[check].well is None:
            answer = await ask(check, self.room)
            settled = loop.time() - began >= SETTLED
            await self._note(check, heard(self.states[check], answer, settled=settled))
            await asyncio.sleep(AGAIN)

        async def question(number: int) -> None:
            nonlocal newest
            answer = await ask(check, self.room)
            if number > newest:
                newest = number
                await self._note(check, heard(self.states[check], answer, settled=True))

        async with asyncio.TaskGroup() as questions:
            for number in count(1):
                questions.create_task(question(number))
                await asyncio.sleep(PERIOD)

    async def _note(self, check: Check, new: State) -> None:
        old, self.states[check] = self.states[check], new
        if new.well != old.well:
            log(f"{check.netns}: {check.address}:{check.port} is {'well' if new.well else 'not well'}")
            async with self.changed:
                self.changed.notify_all()

    def health(self) -> str:
        """What is known, as JSON."""
        found: dict[str, dict[str, bool]] = {}
        for check, state in self.states.items():
            if state.well is not None:
                found.setdefault(check.netns, {})[str(check.port)] = state.well
        return msgspec.json.encode(found, order="sorted").decode()

    async def answer(self, line: str) -> AsyncIterator[str]:
        if line == "reload":
            yield await self.reload()
        elif line == "health":
            yield self.health()
        elif line == "watch":
            said = ""
            while True:
                async with self.changed:
                    await self.changed.wait_for(lambda said=said: self.health() != said)  # type: ignore[misc]
                said = self.health()
                yield said


async def run(path: Path) -> None:
    checker = Checker(path)
    await lines.listen(path, checker.answer)
    await checker.reload()
    await start.until_told(checker.reload)


if __name__ == "__main__":
    start.with_config(run)
