"""How a program of ours is spoken to: lines on the unix socket beside the file it reads, `CONFIG.sock`."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

Answer = Callable[[str], AsyncIterator[str]]
"""From a line that was said to the lines that answer it, as they come; none hangs up."""


async def listen(config: Path, answer: Answer) -> None:
    """Opens the socket; asyncio removes the one of a program that died. Raises OSError."""

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

    await asyncio.start_unix_server(converse, f"{config}.sock")
