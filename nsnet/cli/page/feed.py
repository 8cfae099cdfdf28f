"""What pages follow: the newest version of each document. Who waits is woken by a new one; nothing else is kept."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

BEAT = 15.0  # s without news after which a reader is asked for a sign of life


class Feed:
    """Documents by name, as JSON; written by one thread, followed by many."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._documents: dict[str, bytes] = {}
        self._readers = 0
        self._joined = 0

    def put(self, name: str, value: Any) -> None:
        """A new version of a document; nobody is woken where it says the same as before."""
        data = msgspec.json.encode(value)
        with self._news:
            if self._documents.get(name) != data:
                self._documents[name] = data
                self._news.notify_all()

    def follow(self) -> Iterator[tuple[str, bytes]]:
        """All documents there are, then each new version. After `BEAT` seconds of silence ("", b"")."""
        seen: dict[str, bytes] = {}
        with self._reading():
            while True:
                new = self._newer(seen)
                yield from new.items() or (("", b""),)
                seen |= new

    def need_reader(self) -> None:
        """Returns when somebody reads: what nobody looks at needs no work."""
        with self._news:
            self._news.wait_for(lambda: self._readers)

    @property
    def joined(self) -> int:
        """How many readers have come so far."""
        return self._joined

    def _newer(self, seen: dict[str, bytes]) -> dict[str, bytes]:
        def newer() -> dict[str, bytes]:
            return {name: data for name, data in self._documents.items() if seen.get(name) is not data}

        with self._news:
            self._news.wait_for(newer, timeout=BEAT)
            return newer()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._news:
            self._readers += 1
            self._joined += 1
            self._news.notify_all()
        try:
            yield
        finally:
            with self._news:
                self._readers -= 1
