"""`capture`: the packets that pass a pod, a node, a host, or every hop of the cluster, on one clock.

One process has a socket in each namespace, so what is printed (or written) is in the true order across all hops, and a
packet under way appears once on each device it passes. Captured bytes are never trusted: what cannot be read is shown
as that.
"""

import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol, Self

import click
import msgspec

from nsnet import model, names
from nsnet.cli import elsewhere, options
from nsnet.cli.context import Running, running
from nsnet.cli.durations import DURATION
from nsnet.cli.output import coloured, note, warning
from nsnet.cli.target import target
from nsnet.cli.trace import destination
from nsnet.cli.trace_lines import look_of
from nsnet.errors import InputError
from nsnet.kernel import bpf, frames, interrupt, netns, pcapng
from nsnet.kernel.capture import Seen
from nsnet.kernel.everywhere import Everywhere, all_here
from nsnet.model import Objects

if TYPE_CHECKING:
    from nsnet.cli.kernels import Kernels

LARGEST = 1 << 30  # bytes of a file where --size does not say
PATIENCE = 0.25  # s between two looks at the clock and at Ctrl-C
UNITS = {"": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Limits(msgspec.Struct, frozen=True):
    """When to stop, each 0 for never: packets, seconds, bytes of the file."""

    count: int = 0
    seconds: float = 0.0
    size: int = LARGEST


@options.verb("capture")
@click.argument("where", metavar="TARGET[:IF]")
@click.argument("words", nargs=-1, metavar="[FILTER]")
@click.option("-w", "--write", metavar="FILE", help="Write pcapng, one interface per hop; - is stdout.")
@click.option("--all-hops", is_flag=True, help="Every node, switch, router and host as well as TARGET.")
@click.option("-c", "--count", type=click.IntRange(min=1), metavar="COUNT", help="Stop after so many packets.")
@click.option("--duration", type=DURATION, default=0.0, metavar="TIME", help="Stop after that time: 30s, 5m.")
@click.option("--size", metavar="BYTES", help="Stop before the file has more: 100M. Default: 1G.")
@click.option("--snaplen", type=click.IntRange(14, bpf.SNAPSHOT), default=bpf.SNAPSHOT, help="Bytes of each packet.")
@click.option("-v", "--verbose", is_flag=True, help="All layers, in scapy's words (slower).")
@options.namespace
@options.output("json")
@options.cluster
def capture(
    where: str,
    words: tuple[str, ...],
    write: str | None,
    all_hops: bool,
    count: int | None,
    duration: float,
    size: str | None,
    snaplen: int,
    verbose: bool,
    namespace: str,
    output: str | None,
    cluster: str | None,
) -> None:
    """Show the packets that pass a pod, a node or a host; with --all-hops on their whole way, in true order.

    FILTER is tcpdump's (man pcap-filter); it is asked of packets inside VXLAN, IPIP and flannel's UDP, too, and may
    name `pod/web-0`, `svc/web`, `node/node1` or `host/client` for their addresses. Ctrl-C ends it and leaves a whole
    file. -o json prints one document per line.

    Examples: nsnet capture web-0 tcp port 80 · nsnet capture node/node1:cni0 -c 10 · nsnet capture web-0 --all-hops -w
    way.pcapng host svc/web
    """
    limits = Limits(count or 0, duration, _bytes(size))
    if write and output:
        raise InputError("-w and -o contradict each other", "leave one out")
    if size and not write:
        raise InputError("--size is about a file", "-w FILE, or leave --size out")
    now = running("capture", cluster)
    look = look_of({}, now.objects, namespace)
    backend = model.cluster_of(now.objects).flannel.Backend
    asked = bpf.compiled(_with_addresses(now.objects, words, namespace))
    program, ports = bpf.inner_too(asked, backend.port, backend.kind), frozenset({*backend.udp_ports, 4789})
    form = "file" if write else output or ("verbose" if verbose else "lines")
    with (
        elsewhere.kernels(now) as kernels,
        Everywhere(
            places := _places(now, where, namespace, kernels, all_hops=all_hops),
            kernels.home if kernels else all_here,
            program,
            snaplen,
        ) as hearing,
        _sink(form, write, look.place, ports, snaplen, limits) as sink,
    ):
        if kernels:
            from nsnet.cli.kernels import tell_clocks

            tell_clocks(hearing.others)
        note(f"capturing {_what(places, look.place)}; Ctrl-C ends it")
        with interrupt.asked() as stopped:
            _run(hearing, sink, limits, stopped)
        _farewell(hearing, sink, look.place)


def _what(places: Sequence[tuple[str, str]], place: Callable[[str], str]) -> str:
    if len(places) > 1:
        return f"on all devices of {len(places)} namespaces"
    name, dev = places[0]
    return f"on {dev or 'all devices'} of {place(name)}"


# --- what is wanted ---------------------------------------------------------------------------------------------------


def _places(
    now: Running, where: str, namespace: str, kernels: "Kernels | None", *, all_hops: bool
) -> list[tuple[str, str]]:
    """(namespace, device) of each socket; an empty device is all of them."""
    name, _, dev = where.partition(":")
    own = target(now.objects, name, namespace).netns
    if not all_hops:
        return [(own, dev)]
    if dev:
        raise InputError("--all-hops is about all devices", f"leave out :{dev}")
    every = [
        other
        for other in (kernels.listing() if kernels else netns.listing(now.cluster))
        if names.kind_of(other) != "pod"
    ]
    return [(other, "") for other in dict.fromkeys([own, *every])]


_NAMED = re.compile(r"(?:po|pod|svc|service|no|node|host|deploy)s?/[^\s()]+")


def _with_addresses(objects: Objects, words: Sequence[str], namespace: str) -> str:
    """The filter, with the address for each `pod/web-0`."""

    def address(found: re.Match[str]) -> str:
        return destination(objects, found[0], namespace, "icmp").address

    return _NAMED.sub(address, " ".join(words))


def _bytes(text: str | None) -> int:
    if text is None:
        return LARGEST
    found = re.fullmatch(r"(\d+)([kMG]?)", text)
    if found is None:
        raise InputError(f'--size: "{text}" is no size', "for example 100M or 1G")
    return int(found[1]) * UNITS[found[2]]


# --- the loop ---------------------------------------------------------------------------------------------------------


class Sink(Protocol):
    """Takes packets. `full`: it wants no more."""

    full: bool

    def take(self, seen: Sequence[Seen]) -> None: ...
    def end(self, drops: dict[str, int]) -> None: ...


def _run(hearing: Everywhere, sink: "_Counting", limits: Limits, stopped: Callable[[], bool]) -> None:
    """Until a limit is reached, Ctrl-C came, or nothing is left to look at."""
    end = time.monotonic() + limits.seconds if limits.seconds else float("inf")
    while not (stopped() or sink.full or time.monotonic() >= end or not hearing.alive):
        sink.take(hearing.read(min(PATIENCE, max(0.0, end - time.monotonic()))))
    if not sink.full:
        sink.take(hearing.rest())


def _farewell(hearing: Everywhere, sink: "_Counting", place: Callable[[str], str]) -> None:
    hearing.end()
    drops = {place(name): lost for name, lost in hearing.drops().items()}
    with suppress(BrokenPipeError):
        sink.end(drops)
    for sentence in hearing.gone:
        name, colon, rest = sentence.partition(": ") if ": " in sentence else sentence.partition(" ")
        warning(f"{place(name)}{colon}{rest}")
    lost = sum(drops.values())
    note(f"{sink.count} packet{'s' * (sink.count != 1)} captured, {lost} dropped by the kernel")
    for where, number in sorted(drops.items()):
        if number:
            warning(f"{number} packets were dropped on {where}: they came faster than they were read")


class _Counting:
    """A sink with a count and a limit of packets."""

    def __init__(self, inner: Sink, limit: int) -> None:
        self._inner, self._limit = inner, limit
        self.count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if isinstance(self._inner, _File):
            self._inner.close()

    @property
    def full(self) -> bool:
        return self._inner.full or bool(self._limit and self.count >= self._limit)

    def take(self, seen: Sequence[Seen]) -> None:
        wanted = seen[: self._limit - self.count] if self._limit else seen
        if wanted:
            self._inner.take(wanted)
            self.count += len(wanted)

    def end(self, drops: dict[str, int]) -> None:
        self._inner.end(drops)


def _sink(
    form: str, write: str | None, place: Callable[[str], str], ports: frozenset[int], snaplen: int, limits: Limits
) -> _Counting:
    if write is not None:
        return _Counting(_File(write, place, snaplen, limits.size), limits.count)
    return _Counting(_Lines(form, place, ports), limits.count)


# --- lines ------------------------------------------------------------------------------------------------------------


class _Lines:
    """A line for each packet, or a JSON document."""

    full = False

    def __init__(self, form: str, place: Callable[[str], str], ports: frozenset[int]) -> None:
        self._form, self._place, self._ports = form, place, ports

    def take(self, seen: Sequence[Seen]) -> None:
        sys.stdout.write("".join(f"{self._words(one)}\n" for one in seen))
        sys.stdout.flush()

    def end(self, drops: dict[str, int]) -> None:
        if self._form == "json":
            sys.stdout.write(msgspec.json.encode({"dropped": drops}).decode() + "\n")

    def _words(self, one: Seen) -> str:
        frame = frames.decode(one.data, self._ports)
        if self._form == "json":
            return msgspec.json.encode(document(one, frame, self._place(one.netns))).decode()
        return line(one, frame, self._place(one.netns), deep=self._form == "verbose")


def line(one: Seen, frame: frames.Frame, where: str, *, deep: bool = False) -> str:
    """`14:02:01.000123 node/node1 cni0 in  tcp …`: when, where, by which device, and what."""
    when = datetime.fromtimestamp(one.time // 1_000_000_000).astimezone().strftime("%H:%M:%S")
    micros = one.time // 1000 % 1_000_000
    words = (frames.dissected(one.data) if deep else "") or frames.line(frame)
    cut = f" [{len(one.data)} of {one.length} bytes]" if len(one.data) < one.length else ""
    direction = "out" if one.outgoing else "in "
    return f"{when}.{micros:06} {coloured(where, 'cyan')} {one.dev} {direction} {words}{cut}"


def document(one: Seen, frame: frames.Frame, where: str) -> dict[str, object]:
    """What a script gets of a packet: `packet` is the innermost one, `vxlan` (`ipip`, `udp`) what carried it."""
    inner = frame.innermost
    found: dict[str, object] = {
        "time": f"{one.time // 1_000_000_000}.{one.time % 1_000_000_000:09}",
        "where": where,
        "netns": one.netns,
        "device": one.dev,
        "direction": "out" if one.outgoing else "in",
        "length": one.length,
        "captured": len(one.data),
        "packet": _packet(inner),
        "words": frames.line(frame),
    }
    if frame.inner is not None:
        number = {"vni": frame.vni} if frame.vni >= 0 else {}
        found["vxlan" if number else frame.protocol] = {**number, "src": frame.src, "dst": frame.dst}
    return found


_PRINTED = ("protocol", "src", "dst", "sport", "dport", "flags", "seq", "ack", "length", "kind", "code", "ttl", "note")


def _packet(frame: frames.Frame) -> dict[str, object]:
    values = {name: getattr(frame, name) for name in _PRINTED}
    return {name: value for name, value in values.items() if value not in ("", -1)}


# --- a file -----------------------------------------------------------------------------------------------------------


class _File:
    """pcapng. Only whole blocks are left in it: what a full disk cuts off is taken back."""

    def __init__(self, path: str, place: Callable[[str], str], snaplen: int, largest: int) -> None:
        self._path, self._place, self._largest = path, place, largest
        self._writer = pcapng.Writer(snaplen)
        self._file = _opened(path)
        self._size = 0
        self.full = False
        self._write(self._writer.start())

    def close(self) -> None:
        if self._path != "-":
            self._file.close()

    def take(self, seen: Sequence[Seen]) -> None:
        room = self._largest - self._size
        parts: list[bytes] = []
        for block in self._blocks(seen):
            room -= len(block)
            if room < 0:
                self.full = True
                break
            parts.append(block)
        self._write(b"".join(parts))

    def _blocks(self, seen: Sequence[Seen]) -> Iterator[bytes]:
        for one in seen:
            where = self._place(one.netns)
            yield self._writer.packet(where, one.dev, one.time, one.data, one.length, outgoing=one.outgoing)

    def end(self, drops: dict[str, int]) -> None:
        self._write(self._writer.end(drops))

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                left = left[self._file.write(left) :]
        except BrokenPipeError:
            raise  # as of every verb: who read it has gone
        except OSError as error:
            if self._path != "-":
                with suppress(OSError):  # a FIFO has no end that could be taken back
                    self._file.truncate(self._size)
            raise InputError(f"{self._path}: {error.strerror}", "what was captured before is in the file") from error
        self._size += len(data)


def _opened(path: str) -> IO[bytes]:
    if path == "-":
        return open(sys.stdout.fileno(), "wb", buffering=0, closefd=False)
    try:
        return Path(path).open("wb", buffering=0)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "name a file that can be written") from error
