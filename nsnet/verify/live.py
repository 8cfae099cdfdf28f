"""One packet, sent and watched: on every device it passes, with the rules it matches and conntrack's entry of it.

beacon ─send→ kernel ─capture→ sightings, ruletrace→ rules ─trace.observed→ hops, in the words of the predicted way
"""

import errno
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Literal

import msgspec

from nsnet import names
from nsnet.errors import NotReachedError, NsnetError
from nsnet.kernel import bpf, everywhere, frames
from nsnet.kernel.beacon import Beacon
from nsnet.kernel.capture import Seen
from nsnet.kernel.everywhere import Everywhere, Homes, Rules, all_here
from nsnet.kernel.iptables import is_nft
from nsnet.kernel.nftables import TRACE
from nsnet.kernel.ruletrace import ChainName, Located, Told
from nsnet.model import Backend
from nsnet.state import Chain, Looking, NftChain, State, Vxlan, Wireguard
from nsnet.trace import Hop, Packet
from nsnet.trace.observed import Sighting, hops, unflooded

QUIET = 0.3  # s without any sign of the packet, after which it counts as lost
LONGEST = 3.0
_NO_ROUTE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL}  # the last two: prohibit, blackhole

End = Literal["answered", "reset", "error", "lost", "kept"]


class Observed(msgspec.Struct, frozen=True):
    """What was seen.

    `end`: answered, reset (by TCP), error (an ICMP error, in `words`), lost, or kept by its own namespace (never seen
    on a device). `where` is the namespace that ended it, or where it was last seen.
    """

    end: End
    where: str
    sightings: tuple[Sighting, ...]
    hops: tuple[Hop, ...]
    answers: tuple[str, ...] = ()  # the places that answers passed
    words: str = ""
    dropped_by: Hop | None = None
    connections: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def packet(self) -> Packet | None:
        """As it was when it was last seen."""
        return self.sightings[-1].packet if self.sightings else None


def observe(
    state: State,
    netns: str,
    asked: Packet,
    backend: Backend,
    ends: Sequence[str] = (),
    *,
    connections: bool = True,
    homes: Homes = all_here,
) -> Observed:
    """Sends the packet and watches it; `backend` is flannel's, `ends` further pods where it may arrive.

    `connections`: conntrack's entries are read, too (a process for each node that it passed). `homes`: which other
    machine has a namespace.

    Raises NotReachedError where it cannot be sent, MachineError where the kernel (or a machine) cannot be asked.
    """
    try:
        one = everywhere.beacon(homes, netns, asked.protocol, asked.dst, asked.dport, asked.sport)
    except NotReachedError as failed:
        return kept(netns, failed)
    places = list(dict.fromkeys([netns, *but_pods(state), *ends]))
    ruled = [name for name in places if _has_rules(state, name)]
    program, ports = looking_into(state, backend, one.filter)
    watched = [(name, "") for name in places]
    with Everywhere(watched, homes, program, 2048, Rules(ruled, one.number, one.matches)) as hearing:
        refused = hearing.send(one)
        seen = _watched(hearing, one, ports)
        told, places_of = hearing.told()
    found = understood(state, one, seen, told, places_of, refused)
    entries = _connections(homes, one, found.sightings) if connections else ()
    return msgspec.structs.replace(found, connections=entries)


def looking_into(state: State, backend: Backend, words: str) -> tuple[bpf.Program, frozenset[int]]:
    """The filter, which finds its packets in tunnels, too; and the UDP ports of these: flannel's and all there are."""
    program, known = bpf.inner_too(bpf.compiled(words), backend.port, backend.kind), frozenset(backend.udp_ports)
    nodes = (state[name] for name in but_pods(state) if names.kind_of(name) == "node")
    others = {value.port for values in nodes for value in values if isinstance(value, Vxlan)} - known
    for port in sorted(others):
        program = bpf.inner_too(program, port)
    return program, known | others


def but_pods(state: State) -> list[str]:
    """All namespaces but pods, which are many; none of those is read to find that out."""
    there = sorted(state.there) if isinstance(state, Looking) else state
    return [name for name in there if names.kind_of(name) != "pod" and name in state]


def kept(netns: str, failed: NotReachedError) -> Observed:
    """Where the namespace has no route for it. Raises NotReachedError again where it was something else."""
    why = failed.__cause__
    if isinstance(why, OSError) and why.errno in _NO_ROUTE:
        return Observed("kept", netns, (), (), words=why.strerror or "")
    raise failed


def _has_rules(state: State, netns: str) -> bool:
    if isinstance(state, Looking) and state.has_tables(netns):
        return True
    return any(isinstance(value, Chain | NftChain) for value in state.get(netns, ()))


def _watched(hearing: Everywhere, one: Beacon, ports: frozenset[int]) -> list[tuple[Seen, frames.Frame]]:
    """Until an answer has come home, or for a while nothing is seen any more."""
    found: list[tuple[Seen, frames.Frame]] = []
    start = last = time.monotonic()
    while time.monotonic() - last < QUIET and time.monotonic() - start < LONGEST:
        for seen in hearing.read(0.05):
            found.append((seen, frames.decode(seen.data, ports)))
            last = time.monotonic()
        if any(seen.netns == one.netns and not seen.outgoing and not _is_sent(one, frame) for seen, frame in found):
            return found + [(seen, frames.decode(seen.data, ports)) for seen in hearing.rest()]
    return found


def _is_sent(one: Beacon, frame: frames.Frame) -> bool:
    inner = frame.innermost
    return inner.protocol == one.spoken and one.is_sent(inner.seq, inner.payload, inner.kind)


def understood(
    state: State,
    one: Beacon,
    seen: Sequence[tuple[Seen, frames.Frame]],
    told: Sequence[Told],
    places: Located,
    refused: str,
) -> Observed:
    """What became of a packet: of what was seen of it and its answers, and the rules that were told."""
    sightings = unflooded(state, [_sighting(what, frame) for what, frame in seen if _is_sent(one, frame)])
    answers = [(what, frame.innermost) for what, frame in seen if not _is_sent(one, frame)]
    rules, dropped = _rules(state, told, places)
    way = hops(state, sightings, rules)
    end, where, words = _end(one, sightings, answers, refused)
    return Observed(
        end=end,
        where=where,
        sightings=sightings,
        hops=way,
        answers=tuple(place for place, _ in groupby(what.netns for what, _ in answers)),
        words=words,
        dropped_by=dropped if end in {"lost", "kept"} else None,
        notes=tuple(_notes(state, sightings)),
    )


def _notes(state: State, sightings: Sequence[Sighting]) -> Iterator[str]:
    if not is_nft():
        yield "iptables is the legacy build: which rules matched is not told by this kernel"
    keyed = {
        (netns, value.name)
        for netns in {one.netns for one in sightings}
        for value in state.get(netns, ())
        if isinstance(value, Wireguard)
    }
    dev = next((one.dev for one in sightings if one.outgoing and (one.netns, one.dev) in keyed), "")
    if dev:
        yield f"what leaves {dev} is encrypted: nobody sees it again before the other end takes it out"


def _sighting(seen: Seen, frame: frames.Frame) -> Sighting:
    inner = frame.innermost
    packet = Packet(inner.protocol.removesuffix("6"), inner.dst, inner.dport, inner.src, inner.sport)
    return Sighting(
        seen.netns, seen.dev, seen.outgoing, packet, frame.dst if frame.inner is not None else "", frame.mac_dst
    )


def _end(
    one: Beacon, sightings: Sequence[Sighting], answers: Sequence[tuple[Seen, frames.Frame]], refused: str
) -> tuple[End, str, str]:
    if answers:
        first, frame = answers[0]
        if frame.quoted is not None:
            return "error", first.netns, frames.line(frame).partition(" for ")[0]
        return ("reset" if "RST" in frame.flags else "answered"), first.netns, ""
    if not sightings:
        return "kept", one.netns, refused
    return "lost", sightings[-1].netns, ""


def _rules(state: State, told: Sequence[Told], places: Located) -> tuple[dict[str, list[list[Hop]]], Hop | None]:
    """The rules of each pass through each namespace, as the state spells them; and the one that dropped the packet."""
    found: dict[str, list[list[Hop]]] = {}
    dropped: Hop | None = None
    for netns, group in groupby(told, key=lambda one: one.netns):
        steps = list(group)
        texts = _texts(state, netns, places)
        for ours, same in groupby(steps, key=lambda one: one.table == TRACE):
            if ours:  # our own table comes first in every pass
                continue
            passed = [(step, _hop(step, texts)) for step in same]
            found.setdefault(netns, []).append([hop for step, hop in passed if step.handle])
            dropped = next((hop for step, hop in passed if step.verdict == "drop"), dropped)
    return found, dropped


def _hop(step: Told, texts: dict[tuple[ChainName, int], str]) -> Hop:
    what = f"{step.table} {step.chain}"
    if not step.handle:
        return Hop(step.netns, what, f"policy {step.verdict}")
    return Hop(step.netns, what, texts.get((step.chain_name, step.handle), f"rule handle {step.handle}"))


def _texts(state: State, netns: str, places: Located) -> dict[tuple[ChainName, int], str]:
    chains: dict[ChainName, tuple[str, ...]] = {
        (value.family, value.table, value.name): value.rules
        for value in state.get(netns, ())
        if isinstance(value, Chain | NftChain)
    }
    if isinstance(state, Looking):
        for family, table, chain in {name for where, name, _ in places if where == netns}:
            apart = state.chains(netns, "ip6" if family == "ip6" else "ip")
            if (table, chain) in apart:
                chains.setdefault((family, table, chain), apart[table, chain].rules)
    return {
        (chain, handle): chains[chain][index]
        for (where, chain, handle), index in places.items()
        if where == netns and index < len(chains.get(chain, ()))
    }


def _connections(homes: Homes, one: Beacon, sightings: Sequence[Sighting]) -> tuple[tuple[str, str], ...]:
    """(namespace, conntrack's line) of every node it passed; none where conntrack(8) is missing."""
    found = []
    first = {sighting.netns: sighting.packet for sighting in reversed(sightings) if not sighting.carrier}
    for netns, packet in reversed(first.items()):
        if names.kind_of(netns) == "node":
            words = ["conntrack", "-L", "-f", "ipv6" if ":" in packet.dst else "ipv4"]
            words += ["-p", one.spoken.replace("6", "v6"), "--orig-src", packet.src, "--orig-dst", packet.dst]
            if packet.dport:
                words += ["--sport", str(packet.sport), "--dport", str(packet.dport)]
            try:
                found += [(netns, line.strip()) for line in everywhere.output(homes, netns, words).splitlines()]
            except NsnetError:
                continue
    return tuple(found)
