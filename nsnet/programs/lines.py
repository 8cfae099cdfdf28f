"""How a program of ours is spoken to: lines on the unix socket beside the file it reads, `CONFIG.sock`."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from nsnet.programs.plain import beside

Answer = Callable[[str], AsyncIterator[str]]
"""From a line that was said to the lines that answer it, as they come; none hangs up."""


async def listen(config: Path, answer: Answer) -> asyncio.Server:
    """Opens the socket, which stays open as long as the program runs. Raises OSError."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        coming = asyncio.ensure_future(reader.readline())
        with contextlib.suppress(OSError, ValueError, asyncio.CancelledError):  # a line without an end; our own end
            while line := (await coming).decode(errors="replace").strip():
                coming = asyncio.ensure_future(reader.readline())
                if not await _say(answer(line), writer, coming):
                    break
        coming.cancel()
        writer.close()

    return await asyncio.start_unix_server(converse, sock=beside(config))


async def _say(answer: AsyncIterator[str], writer: asyncio.StreamWriter, coming: asyncio.Future[bytes]) -> bool:
    """Whether there was an answer. It may have no end: who has hung up gets one line, and no second."""
    words = await anext(answer, None)
    said = words is not None
    while words is not None:
        writer.write(f"{words}\n".encode())
        await writer.drain()
        words = await _following(answer, coming)
    return said


async def _following(answer: AsyncIterator[str], coming: asyncio.Future[bytes]) -> str | None:
    """The next line of an answer; None at its end, or when nothing comes any more from whoever asked."""
    words: asyncio.Future[str | None] = asyncio.ensure_future(anext(answer, None))
    either: set[asyncio.Future[Any]] = {words, coming}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not words.done() and not coming.result():
            return None
        return await words
    finally:
        words.cancel()


async def take_reloads(config: Path, reload: Callable[[], Awaitable[str]]) -> None:
    """Listens for lines `reload`, which are answered by what `reload` says."""

    async def answer(line: str) -> AsyncIterator[str]:
        if line == "reload":
            yield await reload()

    await listen(config, answer)
