"""Replies as bytes, by the bytes of the question after its id. All are of one zone: a new zone, a new cache.

A reply whose addresses come in another order each time is kept in TURNS of them, given out in turn: shuffled bytes cost
as little as any.
"""

from itertools import islice

ENTRIES = 10_000
BYTES = 16 << 20
LONGEST = 600  # a question with more than that is not one that comes twice
OVERHEAD = 250  # what an entry takes beside its bytes
TURNS = 8


class Turns:
    """The replies to one question, each in another order."""

    __slots__ = ("next", "replies")

    def __init__(self, reply: bytes) -> None:
        self.replies = [reply]
        self.next = 0

    def turn(self) -> bytes:
        self.next = (self.next + 1) % len(self.replies)
        return self.replies[self.next]


class Cache:
    """At most ENTRIES questions and BYTES; who came first goes first."""

    def __init__(self, entries: int = ENTRIES, size: int = BYTES) -> None:
        self.most = entries
        self.room = size
        self.size = 0
        self.single: dict[bytes, bytes] = {}
        self.several: dict[bytes, Turns] = {}

    def __len__(self) -> int:
        return len(self.single) + len(self.several)

    def get(self, key: bytes) -> bytes | None:
        """A reply without its id. None also while there are not yet TURNS of them."""
        reply = self.single.get(key)
        if reply is None:
            turns = self.several.get(key)
            if turns is not None and len(turns.replies) >= TURNS:
                return turns.turn()
        return reply

    def put(self, key: bytes, reply: bytes, *, ordered: bool) -> None:
        """`ordered`: it is the same each time."""
        if len(key) > LONGEST:
            return
        self.size += len(reply) + (0 if key in self.several else len(key) + OVERHEAD)
        if ordered:
            self.single[key] = reply
        elif key in self.several:
            self.several[key].replies.append(reply)
        else:
            self.several[key] = Turns(reply)
        while self.size > self.room or len(self) > self.most:
            self._drop()

    def _drop(self) -> None:
        """The oldest of the kind of which there are more."""
        if len(self.single) >= len(self.several):
            key = next(islice(self.single, 1))
            self.size -= len(key) + len(self.single.pop(key)) + OVERHEAD
        else:
            key = next(islice(self.several, 1))
            self.size -= len(key) + sum(map(len, self.several.pop(key).replies)) + OVERHEAD
