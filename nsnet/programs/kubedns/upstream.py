"""Questions to other servers: a new id and a new source port each, answers checked against the question.

A question goes over UDP, and over TCP when the answer says that there is more. The servers are asked in order, each for
PATIENCE seconds, twice around, until DEADLINE. An answer with an error in it is an answer.
"""

import asyncio
import contextlib
import secrets
from ipaddress import ip_address

PATIENCE = 1.5
DEADLINE = 4.5  # a resolver asks again after five seconds
AT_ONCE = 512
TC = 0x02


class Upstream:
    """Counts what is under way; more than AT_ONCE is not."""

    def __init__(self) -> None:
        self.asked = 0
        self.failed = 0
        self.under_way = 0

    async def ask(self, question: bytes, servers: tuple[str, ...]) -> bytes | None:
        """The answer, with the question's id; None when nobody gave one. `question` is a whole message."""
        self.asked += 1
        answer = None
        if self.under_way < AT_ONCE:
            self.under_way += 1
            try:
                answer = await _first_answer(question, servers)
            finally:
                self.under_way -= 1
        self.failed += answer is None
        return answer and question[:2] + answer[2:]


async def _first_answer(question: bytes, servers: tuple[str, ...]) -> bytes | None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DEADLINE):
            for server in (*servers, *servers):
                message = secrets.token_bytes(2) + question[2:]
                with contextlib.suppress(OSError, TimeoutError, EOFError):  # no answer: the next one
                    async with asyncio.timeout(PATIENCE):
                        return await _exchange(message, *address(server))
    return None


def address(server: str) -> tuple[str, int]:
    """`10.0.0.1`, `10.0.0.1:5353`, `fd00::1`, `[fd00::1]:5353`. Raises OSError for anything else."""
    with contextlib.suppress(ValueError):
        return str(ip_address(server)), 53
    host, _, port = server.rpartition(":")
    with contextlib.suppress(ValueError):
        if 0 < int(port) < 65536:
            return str(ip_address(host.strip("[]"))), int(port)
    raise OSError(f"{server} is not an address")


async def _exchange(message: bytes, host: str, port: int) -> bytes:
    answer = await _over_udp(message, host, port)
    if answer[2] & TC:
        with contextlib.suppress(OSError, TimeoutError, EOFError):  # better half an answer than none
            async with asyncio.timeout(PATIENCE):
                return await _over_tcp(message, host, port)
    return answer


class Waiting(asyncio.DatagramProtocol):
    """Takes the one datagram that answers `message`; others may send what they like."""

    def __init__(self, message: bytes) -> None:
        self.message = message
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, _: object) -> None:
        if not self.answer.done() and answers(self.message, data):
            self.answer.set_result(data)

    def error_received(self, error: Exception) -> None:
        """Nobody listens there."""
        if not self.answer.done():
            self.answer.set_exception(error)


async def _over_udp(message: bytes, host: str, port: int) -> bytes:
    loop = asyncio.get_running_loop()
    transport, waiting = await loop.create_datagram_endpoint(lambda: Waiting(message), remote_addr=(host, port))
    try:
        transport.sendto(message)
        return await waiting.answer
    finally:
        transport.close()


async def _over_tcp(message: bytes, host: str, port: int) -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(len(message).to_bytes(2, "big") + message)
        answer = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        if not answers(message, answer):
            raise OSError("not an answer to the question")
        return answer
    finally:
        writer.close()


def answers(message: bytes, data: bytes) -> bool:
    """Whether `data` answers `message`: the id, the operation and the question are the same (the case may differ)."""
    if len(data) < 12 or data[:2] != message[:2] or not data[2] & 0x80 or (data[2] ^ message[2]) & 0x78:
        return False
    end = _end_of_name(message)
    same = data[12:end].lower() == message[12:end].lower()
    return data[4:6] == message[4:6] and same and data[end : end + 4] == message[end : end + 4]


def _end_of_name(message: bytes) -> int:
    """Where the name of a question of ours ends, which is whole and well-formed."""
    at = 12
    while message[at]:
        at += message[at] + 1
    return at + 1
