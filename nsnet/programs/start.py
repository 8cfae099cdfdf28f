"""What every program of ours that runs on asyncio does when it starts and when it ends."""

import asyncio
import contextlib
import inspect
import os
import resource
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn

ANY, ANY6 = "0.0.0.0", "::"  # noqa: S104 - all addresses of the pod's own namespace
_ADDRESSES = Path("/proc/self/net/if_inet6")  # one line per IPv6 address


def everywhere() -> tuple[str, ...]:
    """What to bind to for all addresses, those that come later too: IPv6 where the namespace has any, as `::1`."""
    with contextlib.suppress(OSError):  # a kernel without IPv6
        if _ADDRESSES.read_text(encoding="ascii"):
            return ANY, ANY6
    return (ANY,)


def all_descriptors() -> None:
    """As many files as the system lets us have: connections need them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def log(program: str, text: str) -> None:
    with contextlib.suppress(OSError):  # whoever read it may be gone
        os.write(2, f"{program}: {text}\n".encode(errors="replace"))


def tell_ready() -> None:
    """One byte to whoever started us (NSNET_READY_FD), when every socket is open."""
    fd = os.environ.pop("NSNET_READY_FD", "")
    if fd:
        with contextlib.suppress(OSError):
            os.write(int(fd), b"\n")
        os.close(int(fd))


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
