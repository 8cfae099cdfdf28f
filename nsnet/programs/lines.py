"""How a program of ours is spoken to: lines on the unix socket beside the file it reads, `CONFIG.sock`."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

Answer = Callable[[str], AsyncIterator[str]]
"""From a line that was said to the lines that answer it, as they come; none hangs up."""


async def listen(config: Path, answer: Answer) -> None:
    """Opens the socket. Raises OSError."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError, asyncio.CancelledError):  # a line without an end; our own end
            while line := (await reader.readline()).decode(errors="replace").strip():
                said = False
                async for words in answer(line):
                    writer.write(f"{words}\n".encode())
                    await writer.drain()
                    said = True
                if not said:
                    break
        writer.close()

    await asyncio.start_unix_server(converse, sock=_beside(config))


async def take_reloads(config: Path, reload: Callable[[], Awaitable[str]]) -> None:
    """Listens for lines `reload`, which are answered by what `reload` says."""

    async def answer(line: str) -> AsyncIterator[str]:
        if line == "reload":
            yield await reload()

    await listen(config, answer)


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
