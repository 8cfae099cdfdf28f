"""The balancer's health checks: what they make of answers, and of who asks for them."""

import asyncio
from pathlib import Path

import pytest

from nsnet.programs import lines
from nsnet.programs.lbhealth import Check, Checker, ask


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", True),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", False),
        (b"HTTP/1.1 200\r\n\r\n", False),  # no space after the code: `200\r\n` is none
        (b"HTTP/1.1\r\n\r\n", False),
        (b"HTTP/", False),
        (b"SSH-2.0-x\r\n", None),
        (b"", None),
    ],
)
def test_answers(said: bytes, answer: bool | None) -> None:
    async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        writer.close()

    async def asked() -> bool | None:
        server = await asyncio.start_server(answered, "127.0.0.1", 0)
        async with server:
            return await ask(Check("n", "127.0.0.1", server.sockets[0].getsockname()[1]), asyncio.Semaphore(1))

    assert asyncio.run(asked()) is answer


def test_a_watcher_that_hangs_up_is_forgotten(tmp_path: Path) -> None:
    """At once, though nothing changes any more."""
    config = tmp_path / "lbhealth.json"
    config.write_text('{"checks": []}')

    async def watched() -> None:
        checker = Checker(config)
        async with await lines.listen(config, checker.answer):
            before = asyncio.all_tasks()
            reader, writer = await asyncio.open_unix_connection(f"{config}.sock")
            writer.write(b"health\nwatch\n")
            assert [await reader.readline() for _ in range(2)] == [b"{}\n"] * 2
            serving = asyncio.all_tasks() - before
            assert serving
            writer.close()
            await writer.wait_closed()
            _, pending = await asyncio.wait(serving, timeout=5)
            assert not pending

    asyncio.run(watched())


def test_who_says_a_line_and_closes_that_half_is_answered(tmp_path: Path) -> None:
    config = tmp_path / "lbhealth.json"
    config.write_text('{"checks": []}')

    async def said() -> bytes:
        async with await lines.listen(config, Checker(config).answer):
            reader, writer = await asyncio.open_unix_connection(f"{config}.sock")
            writer.write(b"reload\nhealth\nnonsense\nhealth\n")
            writer.write_eof()
            answer = await reader.read()
            writer.close()
            return answer

    assert asyncio.run(said()) == b"ok\n{}\n"
