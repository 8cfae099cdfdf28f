"""What control is told about the world: who listens, and what time it is. It asks nobody itself."""

from collections.abc import Mapping

import msgspec

Listening = Mapping[str, frozenset[tuple[str, int]]]


class Facts(msgspec.Struct, frozen=True):
    """`listening`: network namespace → (protocol, port) pairs; None: nobody has looked.

    ("TCP", 80) and ("UDP", 53) are sockets; ("HTTP", 8080) says that what is asked there about its health is well,
    ("FAIL", 10256) that a load balancer asks there and gets no good answer, ("REFUSED why", 0) that a program there has
    refused its file, and why.

    Where nobody has looked, a pod keeps what was last seen of its ports, and a new one is taken to listen: so `plan` is
    what `up` reaches, and a verb that writes the store does not bring a dead pod back for a moment.

    `now` is RFC 3339 in UTC (`2026-01-31T12:00:00Z`); empty: no clock, nothing gets a time stamp and no grace period
    ends.

    `entropy` is what secrets are drawn from, once; empty: they are functions of names, as all else (`plan`, tests).
    """

    listening: Listening | None = None
    now: str = ""
    entropy: bytes = b""


NOTHING_SEEN = Facts()
