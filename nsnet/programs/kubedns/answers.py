"""A question in, a reply out: the zone, the cache and the other servers put together.

What the zone says is kept as bytes until the zone changes; what others say is not kept at all (dnsmasq, in front, does
that by their TTLs). Before there is a zone everything is SERVFAIL: a name that is not known yet must not be said not to
exist, for that is remembered.
"""

import random
from collections.abc import Awaitable
from typing import NamedTuple

import dns.exception
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from nsnet.programs.kubedns import wire
from nsnet.programs.kubedns.cache import Cache
from nsnet.programs.kubedns.upstream import Upstream
from nsnet.programs.kubedns.wire import SERVFAIL, Query
from nsnet.programs.kubedns.zone import Forward, Found, Record, Zone

AA = 0x04
SHUFFLED = {"A", "AAAA"}


class Known(NamedTuple):
    """A zone and what has been said from it, over UDP and over TCP."""

    zone: Zone | None
    datagrams: Cache
    streams: Cache


class Answers:
    """`known` is replaced as a whole: a reply is of one zone, and so is the cache that it is looked up in."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.known = Known(None, Cache(), Cache())
        self.hits = 0
        self.misses = 0
        self.dropped = 0
        self.reloads = 0

    def use(self, zone: Zone) -> None:
        self.known = Known(zone, Cache(), Cache())

    def reply(self, data: bytes, *, stream: bool) -> bytes | Awaitable[bytes] | None:
        """The reply to a datagram or a stream's message: at once or, if others must be asked, later. Never raises."""
        zone, *caches = self.known
        cache = caches[stream]
        kept = cache.get(data[2:])
        if kept is not None:
            self.hits += 1
            return data[:2] + kept
        query = wire.read(data, stream=stream)
        if not isinstance(query, Query):
            self.dropped += 1
            return query
        self.misses += 1
        if query.version > 0:
            return wire.failure(query, wire.BADVERS)
        if zone is None:
            return wire.failure(query, SERVFAIL)
        found = zone.find(query.labels, dns.rdatatype.to_text(query.kind), dns.rdataclass.to_text(query.kind_class))
        if isinstance(found, Forward):
            return self._forward(query, found.servers)
        if found.chase:
            return self._chase(query, zone, found)
        several = _is_several(zone, found)
        written = write(query, zone, shuffled(found) if several else found)
        if not query.once:
            cache.put(data[2:], written[2:], ordered=not several)
        return written

    async def _forward(self, query: Query, servers: tuple[str, ...]) -> bytes:
        """What others say, as they say it; only that it is not our own word (AA)."""
        answer = await self.upstream.ask(wire.forwarded(query), servers)
        if answer is None:
            return wire.failure(query, SERVFAIL)
        if len(answer) > query.size:
            return wire.truncated(query)
        return answer[:2] + bytes([answer[2] & ~AA]) + answer[3:]

    async def _chase(self, query: Query, zone: Zone, found: Found) -> bytes:
        """An alias that leads out of the zone: CoreDNS says it in any case, kube-dns only with what it leads to."""
        records: list[dns.rrset.RRset] = []
        cut = False
        rcode = "SERVFAIL"
        try:
            question = wire.question(query.ident, found.chase, dns.rdatatype.to_text(query.kind))
            answer = await self.upstream.ask(question, servers) if (servers := zone.servers(found.chase)) else None
            if answer is not None:
                rcode, records, cut = wire.answers(answer)
        except (dns.exception.DNSException, ValueError):
            rcode, records, cut = "SERVFAIL", [], False
        if zone.skydns:
            if rcode != "NOERROR":
                return write(query, zone, found._replace(answers=(), authority=(zone.soa(zone.apex),)))
            for record in records:
                record.ttl = zone.ttl  # all of one answer live as long as its shortest
        return write(query, zone, found, records, cut=cut)


def write(
    query: Query, zone: Zone, found: Found, more: list[dns.rrset.RRset] | None = None, *, cut: bool = False
) -> bytes:
    """SERVFAIL where a Service's or an external name cannot be written."""
    try:
        return wire.write(query, found, more or (), whole=zone.skydns, cut=cut)
    except (dns.exception.DNSException, ValueError):
        return wire.failure(query, SERVFAIL)


def _is_several(zone: Zone, found: Found) -> bool:
    """Whether there are addresses to give in another order each time."""
    addresses = [record for record in found.answers if record.kind in SHUFFLED]
    return len(addresses) > 1 and (zone.skydns or zone.config.loadbalance)


def shuffled(found: Found) -> Found:
    """The same, with the addresses in another order, after their aliases."""
    addresses: list[Record] = [record for record in found.answers if record.kind in SHUFFLED]
    random.shuffle(addresses)
    others = tuple(record for record in found.answers if record.kind not in SHUFFLED)
    return found._replace(answers=(*others, *addresses))
