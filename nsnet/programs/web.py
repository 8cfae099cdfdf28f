"""A small HTTP server for programs that have a few pages to show: GET and HEAD, one request per connection.

What a client can hold is bounded: CONNECTIONS at once (a further one is closed), MAX_HEAD bytes, DEADLINE seconds. HTTP
itself is llhttp's business (httptools).
"""

import asyncio
import socket
from collections.abc import Callable
from typing import NamedTuple

import httptools

from nsnet.programs.plain import everywhere

CONNECTIONS = 128
MAX_HEAD = 16 * 1024
DEADLINE = 10.0
TEXT = "text/plain; charset=utf-8"
JSON = "application/json"
HTML = "text/html; charset=utf-8"
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


class Page(NamedTuple):
    status: int
    body: bytes
    kind: str = TEXT
    headers: tuple[tuple[str, str], ...] = ()


Pages = Callable[[str, str], Page | None]
"""From path (without its query) and client (`ip:port`) to the page; None hangs up without a word."""


class _Request:
    """What llhttp found so far."""

    def __init__(self) -> None:
        self.url = b""
        self.done = False
        self.parser = httptools.HttpRequestParser(self)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_message_complete(self) -> None:
        self.done = True

    @property
    def path(self) -> str:
        return self.url.decode("utf-8", "replace").partition("?")[0]

    @property
    def method(self) -> str:
        method: bytes = self.parser.get_method()
        return method.decode("latin-1")


def response(page: Page, *, head: bool = False) -> bytes:
    """A whole answer; `head` leaves out the body but says its length."""
    lines = [
        f"HTTP/1.1 {page.status} {REASONS[page.status]}",
        f"Content-Type: {page.kind}",
        f"Content-Length: {len(page.body)}",
        *(f"{name}: {value}" for name, value in page.headers),
        *(["X-Content-Type-Options: nosniff"] if page.status >= 400 and not page.headers else []),
        "Connection: close",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + (b"" if head else page.body)


async def serve(pages: Pages, port: int = 0, *hosts: str, sock: socket.socket | None = None) -> asyncio.Server:
    """Listens at once, on these addresses (by default on all of the namespace) or on a socket that is open already.

    Raises OSError.
    """
    open_now: set[asyncio.StreamWriter] = set()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(open_now) >= CONNECTIONS:
            writer.transport.abort()
            return
        open_now.add(writer)
        try:
            async with asyncio.timeout(DEADLINE):
                await _answer(pages, reader, writer)
        except (OSError, TimeoutError, asyncio.CancelledError):  # the last: the program ends
            writer.transport.abort()
        finally:
            open_now.discard(writer)
            writer.close()

    if sock is not None:
        return await asyncio.start_server(converse, sock=sock)
    return await asyncio.start_server(converse, hosts or everywhere(), port)


async def _answer(pages: Pages, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    request = _Request()
    try:
        await _read(request, reader)
        page = _page(request, pages, writer) if request.done else None
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        page = Page(400, b"Bad Request\n")
    if page:
        writer.write(response(page, head=request.done and request.method == "HEAD"))
        await writer.drain()


async def _read(request: _Request, reader: asyncio.StreamReader) -> None:
    """Until the request is whole, the client has gone, or it has said too much (then it is not whole)."""
    size = 0
    while not request.done and size <= MAX_HEAD:
        data = await reader.read(4096)
        if not data:
            return
        size += len(data)
        request.parser.feed_data(data)


def _page(request: _Request, pages: Pages, writer: asyncio.StreamWriter) -> Page | None:
    if request.method not in {"GET", "HEAD"}:
        return Page(405, b"Method Not Allowed\n")
    host, port = writer.get_extra_info("peername")[:2]
    return pages(request.path, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
