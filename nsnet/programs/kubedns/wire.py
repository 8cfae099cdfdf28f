"""Bytes to questions, records to bytes. dnspython reads and writes the format; no socket is seen here.

What is taken as a question is what miekg/dns takes, the library of both implementations: a message that is an answer
itself, or no message at all, gets nothing (or two servers could talk for ever); any operation but QUERY gets NOTIMP;
anything but one question, and no record but one or two additional ones, gets FORMERR.

A reply that is longer than the client takes loses records from its end. Over UDP 512 bytes, or what EDNS says, are
taken. CoreDNS then sets TC; kube-dns first drops all additional records and sets TC only if answers are lost, too.
"""

import struct
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.IN.A
import dns.rdtypes.IN.SRV
import dns.renderer
import dns.rrset

from nsnet.programs.kubedns.names import Labels
from nsnet.programs.kubedns.zone import Found, Record

HEADER = struct.Struct("!HHHHHH")
SMALLEST = 512
LARGEST = 65535
LARGEST_UDP = 65507
OPT_SIZE = 11
OPCODE = 0x7800
KEPT = 0x0110  # RD and CD come back as they were sent
FORMERR, SERVFAIL, NOTIMP, BADVERS = 1, 2, 4, 16
RENDERER: Any = dns.renderer.Renderer  # these have no types
A: Any = dns.rdtypes.IN.A.A
SRV: Any = dns.rdtypes.IN.SRV.SRV


class Query(NamedTuple):
    """A question. `size` is how long the reply may be, `payload` what EDNS said (-1: the client does not know EDNS)."""

    ident: int
    flags: int
    name: dns.name.Name
    kind: dns.rdatatype.RdataType
    kind_class: dns.rdataclass.RdataClass
    size: int
    payload: int = -1
    version: int = 0
    dnssec: int = 0  # EDNS' flag DO
    once: bool = False  # it has options (a cookie) that the next one will not have

    @property
    def labels(self) -> Labels:
        """The name as text, in its own spelling."""
        return tuple(label.decode("latin-1") for label in self.name.labels[:-1])


def read(data: bytes, *, stream: bool) -> Query | bytes | None:
    """A question; or the reply to what is none; or nothing, where nothing is to be said. Never raises."""
    if len(data) < HEADER.size:
        return None
    ident, flags, questions, answers, authority, additional = HEADER.unpack_from(data)
    if flags & dns.flags.QR:
        return None
    if flags & OPCODE:
        return refusal(data, NOTIMP)
    if questions != 1 or answers or authority or additional > 2:
        return refusal(data, FORMERR)
    try:
        message = dns.message.from_wire(data, keyring=False, ignore_trailing=True)
    except (dns.exception.DNSException, ValueError, struct.error):
        return refusal(data, FORMERR)
    question = message.question[0]
    edns = message.edns >= 0
    size = max(SMALLEST, message.payload) if edns else SMALLEST
    return Query(
        ident,
        flags & KEPT,
        question.name,
        question.rdtype,
        question.rdclass,
        LARGEST if stream else min(size, LARGEST_UDP),
        message.payload if edns else -1,
        message.edns,
        message.ednsflags & dns.flags.DO,
        bool(message.options),
    )


def refusal(data: bytes, rcode: int) -> bytes:
    """A reply of a header alone, to a message of which no more could be read."""
    ident, flags = struct.unpack_from("!HH", data)
    return HEADER.pack(ident, dns.flags.QR | (flags & (OPCODE | KEPT)) | rcode, 0, 0, 0, 0)


def failure(query: Query, rcode: int) -> bytes:
    """A reply of the question alone (and EDNS, where BADVERS needs it)."""
    return _render(query, dns.flags.QR | query.flags, rcode, [])


def truncated(query: Query) -> bytes:
    """`Ask again over TCP`, for a reply that others gave."""
    return _render(query, dns.flags.QR | dns.flags.TC | dns.flags.RA | query.flags, 0, [])


def write(
    query: Query, found: Found, more: Iterable[dns.rrset.RRset] = (), *, whole: bool = False, cut: bool = False
) -> bytes:
    """The reply. `more` follows the answers; `whole`: additional records all or not at all; `cut`: TC whatever fits.

    Raises dns.exception.DNSException for a record that cannot be one (a label of more than 63 bytes in a Service).
    """
    flags = dns.flags.QR | query.flags
    flags |= (dns.flags.AA if found.authoritative else 0) | (dns.flags.RA if found.recursion else 0)
    flags |= dns.flags.TC if cut else 0
    rcode = dns.rcode.from_text(found.rcode)
    more = tuple(more)
    reply = _render(query, flags, rcode, _sections(query, found, more))
    if whole and found.additional and reply[2] & 0x02:
        return _render(query, flags, rcode, _sections(query, found._replace(additional=()), more))
    return reply


def _sections(query: Query, found: Found, more: tuple[dns.rrset.RRset, ...]) -> Iterator[tuple[int, dns.rrset.RRset]]:
    """Each record with its section, in order; made when they are written, for most of a thousand may not fit."""
    yield from ((dns.renderer.ANSWER, rrset) for rrset in chain(rrsets(query.name, found.answers), more))
    yield from ((dns.renderer.AUTHORITY, rrset) for rrset in rrsets(query.name, found.authority))
    yield from ((dns.renderer.ADDITIONAL, rrset) for rrset in rrsets(query.name, found.additional))


def _render(query: Query, flags: int, rcode: int, records: Iterable[tuple[int, dns.rrset.RRset]]) -> bytes:
    """As much as fits into `query.size`, with TC if that is not all."""
    room = query.size - (OPT_SIZE if query.payload >= 0 else 0)
    out = RENDERER(query.ident, flags | (rcode & 15), room)
    out.add_question(query.name, query.kind, query.kind_class)
    try:
        for section, record in records:
            out.add_rrset(section, record)
    except dns.exception.TooBig:
        out.flags |= dns.flags.TC
    if query.payload >= 0:
        out.max_size = query.size
        out.add_edns(0, rcode >> 4 << 24, max(SMALLEST, query.payload))
    out.write_header()
    reply: bytes = out.get_wire()
    return reply


def rrsets(asked: dns.name.Name, records: Iterable[Record]) -> Iterator[dns.rrset.RRset]:
    """One each, so that a reply can be cut between any two."""
    for record in records:
        name = dns.name.from_text(record.name) if record.name else asked
        yield dns.rrset.from_rdata(name, record.ttl, _data(record.kind, record.data))


def _data(kind: str, data: str) -> dns.rdata.Rdata:
    """As `dns.rdata.from_text`; without its parser for what there can be a thousand of in one reply."""
    made = None
    if kind == "A":
        made = A(dns.rdataclass.IN, dns.rdatatype.A, data)
    elif kind == "SRV":
        *numbers, target = data.split(" ")
        made = SRV(dns.rdataclass.IN, dns.rdatatype.SRV, *map(int, numbers), dns.name.from_text(target))
    return made or dns.rdata.from_text(dns.rdataclass.IN, kind, data)


def question(ident: int, name: str, kind: str) -> bytes:
    """A question of our own to another server. Raises dns.exception.DNSException when `name` is none."""
    return dns.message.make_query(name, kind, id=ident, use_edns=0, payload=1232).to_wire()


def forwarded(query: Query) -> bytes:
    """The client's question as it goes on to another server: without what was between the client and us."""
    counts = (1, 0, 0, int(query.payload >= 0))
    ending = struct.pack("!HH", query.kind, query.kind_class)
    edns = struct.pack("!xHHBBHH", dns.rdatatype.OPT, max(SMALLEST, query.payload), 0, 0, query.dnssec, 0)
    message = HEADER.pack(query.ident, query.flags, *counts) + (query.name.to_wire() or b"") + ending
    return message + edns if query.payload >= 0 else message


def answers(reply: bytes) -> tuple[str, list[dns.rrset.RRset], bool]:
    """Code, answer records and TC of another server's reply. Raises dns.exception.DNSException, ValueError."""
    message = dns.message.from_wire(reply, keyring=False, one_rr_per_rrset=True, ignore_trailing=True)
    kept = [rrset for rrset in message.answer if rrset.rdclass == dns.rdataclass.IN]
    return dns.rcode.to_text(message.rcode()), kept, bool(message.flags & dns.flags.TC)
