"""What every program of ours that runs on asyncio does when it starts and when it ends."""

import asyncio
import contextlib
import os
import resource
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

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


def heed_signals(on_hangup: Callable[[], object], ended: asyncio.Event) -> None:
    """SIGHUP calls, SIGTERM and SIGINT set `ended`. To be done before `tell_ready`: SIGHUP may come right after."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, on_hangup)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)


async def take_reloads(config: Path, reload: Callable[[], Awaitable[str]]) -> None:
    """Listens on the unix socket CONFIG.sock: a client that sends a line `reload` gets what `reload` says as a line."""

    async def told(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError, asyncio.CancelledError):  # a line without an end; our own end
            while await reader.readline() == b"reload\n":
                writer.write(f"{await reload()}\n".encode())
                await writer.drain()
        writer.close()

    await asyncio.start_unix_server(told, sock=_beside(config))


def _beside(config: Path) -> socket.socket:
    """Bound by its directory, since paths of unix sockets end at 108 bytes; one of a program that died goes."""
    name = f"{config.name}.sock"
    with contextlib.suppress(FileNotFoundError):
        config.with_name(name).unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    directory = os.open(config.parent, os.O_PATH | os.O_CLOEXEC)
    try:
        sock.bind(f"/proc/self/fd/{directory}/{name}")
    finally:
        os.close(directory)
    return sock
