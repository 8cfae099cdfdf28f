"""What every program of ours that runs on asyncio does when it starts and when it ends."""

import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import Callable


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


def heed_signals(on_hangup: Callable[[], object], ended: asyncio.Event) -> None:
    """SIGHUP calls, SIGTERM and SIGINT set `ended`. To be done before `tell_ready`: SIGHUP may come right after."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, on_hangup)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
