"""What every program of ours that runs on asyncio does when it starts and when it ends."""

import asyncio
import inspect
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn

from nsnet.programs.plain import all_descriptors, tell_ready


async def until_told(reload: Callable[[], object], ended: asyncio.Event | None = None) -> None:
    """Tells that we are ready; SIGHUP reloads from then on. Returns after SIGTERM or SIGINT, or when `ended` is set.

    `reload` may be a coroutine function.
    """
    ended = ended or asyncio.Event()
    loop = asyncio.get_running_loop()
    reloads: set[asyncio.Future[object]] = set()

    def hangup() -> None:
        answer = reload()
        if inspect.isawaitable(answer):
            reloads.add(asyncio.ensure_future(answer))

    loop.add_signal_handler(signal.SIGHUP, hangup)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    tell_ready()  # SIGHUP may come right after
    await ended.wait()


def with_config(run: Callable[[Path], Coroutine[Any, Any, int | None]]) -> NoReturn:
    """`main` of a program that takes one word, its file, and ends with the code that `run` returns."""
    all_descriptors()
    sys.exit(asyncio.run(run(Path(sys.argv[1]))))
