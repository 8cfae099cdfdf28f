"""Many packets at once, sent and watched as `live.py` watches one: which way each took, and how it ended.

One session of captures sees them all, told apart by their cookies, and all wait together for those that nobody
answers. Which rules they matched is not asked: who finds one that went another way than foretold sends that one again.
"""

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack

from nsnet.errors import NotReachedError
from nsnet.kernel import bpf, frames
from nsnet.kernel.beacon import Beacon, beacon, cookies, fire
from nsnet.kernel.capture import Capture, Seen
from nsnet.model import Backend
from nsnet.state import State
from nsnet.trace import Packet
from nsnet.verify.live import Observed, but_pods, kept, looking_into, understood

QUIET = 0.4  # s without any sign of any of them
LONGEST = 10.0
AT_ONCE = 500

Asked = tuple[str, Packet]
"""The namespace that sends, and what."""
Heard = dict[bytes, list[tuple[Seen, frames.Frame]]]
"""What was seen of each, by its cookie."""


def observe_all(state: State, asked: Sequence[Asked], backend: Backend, ends: Iterable[str] = ()) -> list[Observed]:
    """What was seen of each; `ends` are pods where they may arrive. All namespaces are this machine's.

    Raises NotReachedError where one cannot be sent, MachineError where the kernel cannot be asked.
    """
    pods = sorted(set(ends))
    parts = (asked[start : start + AT_ONCE] for start in range(0, len(asked), AT_ONCE))
    return [found for part in parts for found in _volley(state, part, backend, pods)]


def _volley(state: State, asked: Sequence[Asked], backend: Backend, ends: Sequence[str]) -> Iterator[Observed]:
    aimed = list(_aimed(asked))
    beacons = [one for one in aimed if isinstance(one, Beacon)]
    places = list(dict.fromkeys([*(netns for netns, _ in asked), *but_pods(state), *ends]))
    words = " or ".join(sorted({one.filter_of_all for one in beacons}))
    heard, refused = _watched(places, beacons, *looking_into(state, backend, words)) if beacons else ({}, {})
    for one in aimed:
        if isinstance(one, Observed):
            yield one
        else:
            yield understood(state, one, heard[one.cookie], (), {}, refused[one.cookie])


def _aimed(asked: Sequence[Asked]) -> Iterator[Beacon | Observed]:
    """The packets; what its own namespace has no route for is not sent. No two of one place have the same port."""
    protocols = {packet.protocol for _, packet in asked}
    of_each = {protocol: cookies(protocol, len(asked)) for protocol in protocols}
    taken: set[tuple[str, str, int]] = set()
    for netns, packet in asked:
        try:
            one = _free(netns, packet, next(of_each[packet.protocol]), taken)
        except NotReachedError as failed:
            yield kept(netns, failed)
            continue
        taken.add((netns, one.protocol, one.sport))
        yield one


def _free(netns: str, packet: Packet, cookie: bytes, taken: Collection[tuple[str, str, int]]) -> Beacon:
    while True:
        one = beacon(netns, packet.protocol, packet.dst, packet.dport, packet.sport, cookie)
        if packet.sport or not one.sport or (netns, one.protocol, one.sport) not in taken:
            return one


def _watched(
    places: Sequence[str], beacons: Sequence[Beacon], program: bpf.Program, ports: frozenset[int]
) -> tuple[Heard, dict[bytes, str]]:
    """What was seen of each, and why it was refused, if it was."""
    heard: Heard = {one.cookie: [] for one in beacons}
    refused = {}
    with ExitStack() as opened, Capture([(name, "") for name in places], program, 2048) as hearing:
        for one in beacons:
            sock, refused[one.cookie] = fire(one)
            opened.enter_context(sock)
            if one.protocol == "tcp":
                sock.close()
        for seen in _until_quiet(hearing):
            frame = frames.decode(seen.data, ports)
            cookie = next((word for word in _cookies(frame) if word in heard), b"")
            if cookie:
                heard[cookie].append((seen, frame))
    return heard, refused


def _until_quiet(hearing: Capture) -> Iterator[Seen]:
    start = last = time.monotonic()
    while time.monotonic() - last < QUIET and time.monotonic() - start < LONGEST:
        for seen in hearing.read(0.05):
            last = time.monotonic()
            yield seen
    yield from hearing.rest()


def _cookies(frame: frames.Frame) -> Iterator[bytes]:
    """Where a packet, its answer or an error about it has the cookie."""
    inner = frame.innermost
    said = inner.quoted.innermost if inner.quoted else inner
    if said.protocol == "tcp":
        yield said.seq.to_bytes(4, "big")
        yield ((said.ack - 1) & 0xFFFFFFFF).to_bytes(4, "big")
    else:
        yield said.payload[5:13]
        yield said.payload[:8]
