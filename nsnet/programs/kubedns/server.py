"""The sockets: UDP, and TCP by asyncio's streams.

A datagram that is in the cache costs one `recvfrom` and one `sendto`; AT_ONCE of them are taken before anybody else has
a turn. Bounds, so that no client can hurt the others: CONNECTIONS are open at once (then the oldest goes), and each has
DEADLINE seconds from one reply taken to the next, however fast it trickles. `upstream` bounds what waits for others.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable

from nsnet.programs.kubedns.answers import Answers
from nsnet.programs.plain import everywhere

AT_ONCE = 64
CONNECTIONS = 512
DEADLINE = 10.0
BACKLOG = 1024
Client = tuple[str, int] | tuple[str, int, int, int]  # a socket address of either family
BUFFER = 4 << 20  # of datagrams that wait while the zone is changed; the kernel gives what it allows


class Server:
    """Both transports on one port of every address of the namespace."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.datagrams = 0
        self.messages = 0
        self.rcodes = [0] * 16
        self.tasks: set[asyncio.Task[None]] = set()
        self.connections: dict[asyncio.StreamWriter, None] = {}  # in order of age

    async def listen(self, port: int, *hosts: str) -> int:
        """Opens both sockets of each address (by default of all), on one port where `port` is 0. Raises OSError."""
        for host in hosts or everywhere():
            stream = await asyncio.start_server(self._converse, host, port, backlog=BACKLOG)
            port = stream.sockets[0].getsockname()[1]
            sock = socket.socket(stream.sockets[0].family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            if sock.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as asyncio does
            sock.bind((host, port))
            asyncio.get_running_loop().add_reader(sock, self._read, sock)
        return port

    # --- UDP ---

    def _read(self, sock: socket.socket) -> None:
        for _ in range(AT_ONCE):
            try:
                data, client = sock.recvfrom(65535)
            except BlockingIOError:
                return
            except OSError:
                continue  # what an earlier reply met; it has been taken from the queue
            self.datagrams += 1
            reply = self.answers.reply(data, stream=False)
            if isinstance(reply, bytes):
                self._send(sock, reply, client)
            elif reply is not None:
                self._later(sock, reply, client)

    def _send(self, sock: socket.socket, reply: bytes, client: Client) -> None:
        self.rcodes[reply[3] & 15] += 1
        with contextlib.suppress(OSError):  # a client that is gone, or a buffer that is full: it will ask again
            sock.sendto(reply, client)

    def _later(self, sock: socket.socket, reply: Awaitable[bytes], client: Client) -> None:
        async def finish() -> None:
            self._send(sock, await reply, client)

        task = asyncio.create_task(finish())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    # --- TCP ---

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while len(self.connections) >= CONNECTIONS:
            oldest = next(iter(self.connections))
            del self.connections[oldest]
            oldest.transport.abort()
        self.connections[writer] = None
        try:
            await self._answer(reader, writer)
        except (OSError, EOFError, TimeoutError, asyncio.CancelledError):  # the last: the server ends
            writer.transport.abort()
        finally:
            self.connections.pop(writer, None)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Message after message, until the client goes or says what is none."""
        while True:
            async with asyncio.timeout(DEADLINE):
                length = int.from_bytes(await reader.readexactly(2), "big")
                data = await reader.readexactly(length)
                self.messages += 1
                reply = self.answers.reply(data, stream=True)
                if reply is None:
                    return
                written = reply if isinstance(reply, bytes) else await reply
                self.rcodes[written[3] & 15] += 1
                writer.write(len(written).to_bytes(2, "big") + written)
                await writer.drain()
