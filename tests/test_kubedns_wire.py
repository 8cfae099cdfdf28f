"""Bytes in, bytes out: what is taken for a question, how replies are cut, what is kept, and that no bytes hurt."""

import asyncio
import random
import struct
from collections.abc import Callable

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsnet.programs.kubedns import upstream, wire
from nsnet.programs.kubedns.answers import Answers
from nsnet.programs.kubedns.cache import LONGEST, OVERHEAD, TURNS, Cache
from nsnet.programs.kubedns.config import Config, Endpoint, Port, Service
from nsnet.programs.kubedns.upstream import Upstream
from nsnet.programs.kubedns.zone import Zone
from tests.kubedns_world import COREDNS, KUBE_DNS, NOON, changed

WEB = "web.default.svc.cluster.local."
MANY = "many.default.svc.cluster.local."


def many(count: int) -> Service:
    """A headless Service."""
    port = (Port("pg", "TCP", 5432),)
    return Service(
        "default", "many", (), port, "", tuple(Endpoint(f"10.1.{n // 250}.{n % 250}", "", port) for n in range(count))
    )


def serving(config: Config = COREDNS) -> Answers:
    answers = Answers(Upstream())
    answers.use(Zone(config, NOON))
    return answers


def query(name: str = WEB, kind: str = "A", **how: object) -> bytes:
    return dns.message.make_query(name, kind, id=4711, **how).to_wire()  # type: ignore[arg-type]


def said(answers: Answers, data: bytes, *, stream: bool = False) -> bytes:
    reply = answers.reply(data, stream=stream)
    assert isinstance(reply, bytes)
    return reply


def read(answers: Answers, data: bytes, *, stream: bool = False) -> dns.message.Message:
    return dns.message.from_wire(said(answers, data, stream=stream))


# --- what is a question -----------------------------------------------------------------------------------------------


def header(ident: int = 4711, flags: int = 0x0100, *counts: int) -> bytes:
    return struct.pack("!HHHHHH", ident, flags, *(counts or (1, 0, 0, 0)))


ROOT_A = b"\0\0\1\0\1\0\0\0\0\0\4\1\2\3\4"
QUESTION = b"\3web\7default\3svc\7cluster\5local\0\0\1\0\1"


@pytest.mark.parametrize(
    ("data", "rcode"),
    [
        (header() + QUESTION, "NOERROR"),
        (header() + QUESTION + b"trailing", "NOERROR"),
        (header(1, 0x2900) + QUESTION, "NOTIMP"),  # UPDATE
        (header(1, 0x2000) + QUESTION, "NOTIMP"),  # NOTIFY
        (header(1, 0x0100, 0, 0, 0, 0), "FORMERR"),
        (header(1, 0x0100, 2, 0, 0, 0) + QUESTION * 2, "FORMERR"),
        (header(1, 0x0100, 1, 1, 0, 0) + QUESTION, "FORMERR"),
        (header(1, 0x0100, 1, 0, 65535, 0) + QUESTION, "FORMERR"),
        (header(1, 0x0100, 1, 0, 0, 2) + QUESTION + ROOT_A * 2, "NOERROR"),
        (header(1, 0x0100, 1, 0, 0, 3) + QUESTION + ROOT_A * 3, "FORMERR"),
        (header() + QUESTION[:-1], "FORMERR"),
        (header() + b"\xc0\x0c\0\1\0\1", "FORMERR"),  # a name that points at itself
        (header() + b"\1a\xc0\x0c\0\1\0\1", "FORMERR"),
        (header() + b"\xc0\xff\0\1\0\1", "FORMERR"),
        (header() + b"\x40a\0\0\1\0\1", "FORMERR"),  # a label of a kind that there is not
        (header() + b"\x3f" + b"a" * 63 + (b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1", "FORMERR"),  # 320 bytes of name
        (header() + b"\0", "FORMERR"),
        (header(1, 0x0100, 1, 0, 0, 1) + QUESTION + b"\0\0\x29", "FORMERR"),
        (header(1, 0x0100, 1, 0, 0, 2) + QUESTION + (b"\0\0\x29\x10\0\0\0\0\0\0\0") * 2, "FORMERR"),  # EDNS twice
    ],
)
def test_codes(data: bytes, rcode: str) -> None:
    reply = said(serving(), data)
    assert reply[:2] == data[:2]
    assert reply[2] & 0x80
    assert dns.rcode.to_text(dns.rcode.Rcode(reply[3] & 15)) == rcode


@pytest.mark.parametrize("data", [b"", b"\0" * 11, header(1, 0x8180) + QUESTION, header(1, 0xFFFF), b"\xff" * 512])
def test_no_word_to_answers_and_scraps(data: bytes) -> None:
    assert serving().reply(data, stream=False) is None


def test_before_there_is_a_zone_nothing_is_denied() -> None:
    answers = Answers(Upstream())
    for name in (WEB, "nope.", "www.example.com."):
        assert read(answers, query(name)).rcode() == dns.rcode.SERVFAIL
    answers.use(Zone(COREDNS))
    assert read(answers, query()).rcode() == dns.rcode.NOERROR


def test_edns() -> None:
    plain, with_edns = read(serving(), query()), read(serving(), query(use_edns=0, payload=4096))
    assert plain.edns == -1
    assert (with_edns.edns, with_edns.payload) == (0, 4096)
    assert read(serving(), query(use_edns=0, payload=100)).payload == 512
    bad = read(serving(), query(use_edns=1))
    assert (bad.rcode(), bad.edns, bad.answer) == (dns.rcode.BADVERS, 0, [])


def test_flags_come_back() -> None:
    message = dns.message.make_query(WEB, "A", flags=dns.flags.RD | dns.flags.CD | dns.flags.AD)
    assert dns.flags.to_text(read(serving(), message.to_wire()).flags) == "QR AA RD CD"
    assert dns.flags.to_text(read(serving(KUBE_DNS), query(flags=0)).flags) == "QR AA RA"


def test_the_name_comes_back_as_it_was_asked() -> None:
    reply = said(serving(), query("wEb.DEFAULT.svc.cluster.LOCAL."))
    assert reply.count(b"\3wEb\7DEFAULT\3svc\7cluster\5LOCAL\0") == 1
    assert read(serving(), query("wEb.DEFAULT.svc.cluster.LOCAL.")).answer[0].to_text() == (
        "wEb.DEFAULT.svc.cluster.LOCAL. 5 IN A 10.96.5.5"
    )


# --- cutting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "count", "kind", "how", "answers", "additional", "cut"),
    [
        (COREDNS, 20, "A", {}, 20, 0, False),
        (COREDNS, 100, "A", {}, 29, 0, True),
        (COREDNS, 100, "A", {"use_edns": 0, "payload": 1232}, 73, 0, True),
        (COREDNS, 100, "A", {"use_edns": 0, "payload": 4096}, 100, 0, False),
        (COREDNS, 6, "SRV", {}, 6, 4, True),
        (KUBE_DNS, 100, "A", {}, 29, 0, True),
        (KUBE_DNS, 5, "SRV", {}, 5, 0, False),  # all additional records go first, and nobody is told
        (KUBE_DNS, 50, "SRV", {}, 6, 0, True),
    ],
)
def test_replies_are_cut(
    config: Config, count: int, kind: str, how: dict[str, int], answers: int, additional: int, cut: bool
) -> None:
    name = f"_pg._tcp.{MANY}" if kind == "SRV" else MANY
    serve = serving(changed(config, services=(many(count),)))
    reply = read(serve, query(name, kind, **how))
    sizes = [sum(len(rrset) for rrset in section) for section in (reply.answer, reply.additional)]
    assert (*sizes, bool(reply.flags & dns.flags.TC)) == (answers, additional, cut)
    assert len(said(serve, query(name, kind, **how))) <= how.get("payload", 512)
    whole = read(serve, query(name, kind, **how), stream=True)
    assert sum(len(rrset) for rrset in whole.answer) == count
    assert not whole.flags & dns.flags.TC


def test_even_a_stream_has_an_end() -> None:
    reply = said(serving(changed(COREDNS, services=(many(5000),))), query(MANY), stream=True)
    assert len(reply) <= 65535
    assert dns.message.from_wire(reply).flags & dns.flags.TC


def test_a_service_that_dns_cannot_name_spoils_only_its_own_answer() -> None:
    service = Service("default", "ext", external_name="a" * 64 + ".example.com")
    answers = serving(changed(COREDNS, services=(*COREDNS.services, service)))
    assert read(answers, query("ext.default.svc.cluster.local.", "CNAME")).rcode() == dns.rcode.SERVFAIL
    assert read(answers, query()).rcode() == dns.rcode.NOERROR


# --- keeping ----------------------------------------------------------------------------------------------------------


def test_what_was_said_is_kept_until_the_zone_changes() -> None:
    answers = serving()
    first = said(answers, query())
    again = said(answers, b"\1\2" + query()[2:])
    assert again == b"\1\2" + first[2:]
    assert (answers.hits, answers.misses) == (1, 1)
    answers.use(Zone(changed(COREDNS, services=())))
    assert read(answers, query()).rcode() == dns.rcode.NXDOMAIN
    assert (answers.hits, answers.misses) == (1, 2)


def test_a_question_with_a_cookie_is_not_kept() -> None:
    """The next one has another, and a flood of them would drive out what is asked again and again."""
    answers = serving()
    for n in range(3):
        cookie = dns.edns.GenericOption(dns.edns.OptionType.COOKIE, struct.pack("!Q", n))
        assert read(answers, query(use_edns=0, options=[cookie])).answer[0][0].to_text() == "10.96.5.5"
    assert len(answers.known.datagrams) == 0


def test_a_stream_is_not_told_what_a_datagram_was() -> None:
    answers = serving(changed(COREDNS, services=(many(100),)))
    assert read(answers, query(MANY)).flags & dns.flags.TC
    assert not read(answers, query(MANY), stream=True).flags & dns.flags.TC


@pytest.mark.parametrize(("config", "orders"), [(changed(COREDNS, loadbalance=True), 2), (COREDNS, 1), (KUBE_DNS, 2)])
def test_addresses_take_turns(config: Config, orders: int) -> None:
    random.seed(1)
    answers = serving(config)
    first = [read(answers, query("twins.default.svc.cluster.local.")).answer[0][0].to_text() for _ in range(40)]
    assert len(set(first)) == orders
    assert answers.misses <= TURNS
    assert answers.hits >= 40 - TURNS


def test_aliases_stay_in_front() -> None:
    name = "ext.default.svc.cluster.local."
    services = (many(9), Service("default", "ext", external_name=MANY))
    answers = serving(changed(COREDNS, services=services, loadbalance=True))
    for _ in range(20):
        reply = read(answers, query(name))
        assert [(rrset.name.to_text(), len(rrset)) for rrset in reply.answer] == [(name, 1), (MANY, 9)]


def test_the_cache_is_bounded() -> None:
    cache = Cache(entries=100)
    for n in range(1000):
        cache.put(b"%d" % n, b"reply", ordered=n % 3 > 0)
    assert len(cache) == 100
    assert cache.size == 100 * (3 + 5 + OVERHEAD)
    assert cache.get(b"998") == b"reply"
    assert cache.get(b"1") is None
    cache.put(b"x" * (LONGEST + 1), b"reply", ordered=True)
    assert cache.get(b"x" * (LONGEST + 1)) is None
    large = Cache(size=1000)
    for n in range(TURNS * 2):
        large.put(b"same", b"r" * 200, ordered=False)
        assert 0 <= large.size <= 1000, n


# --- bytes of others --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "right"),
    [
        (lambda reply: reply, True),
        (lambda reply: reply[:12] + reply[12:].replace(b"www", b"WWW"), True),
        (lambda reply: b"\0\0" + reply[2:], False),
        (lambda reply: reply[:2] + b"\1" + reply[3:], False),  # a question
        (lambda reply: reply[:2] + b"\xa8" + reply[3:], False),  # UPDATE
        (lambda reply: reply.replace(b"www", b"xxx"), False),
        (lambda reply: reply.replace(b"\0\0\1\0\1", b"\0\0\x1c\0\1"), False),  # AAAA
        (lambda reply: reply[:4] + b"\0\2" + reply[6:], False),
        (lambda reply: reply[:20], False),
        (lambda reply: reply[:11], False),
        (lambda _: b"", False),
    ],
)
def test_what_answers_a_question(change: Callable[[bytes], bytes], right: bool) -> None:
    message = wire.question(4711, "www.example.com.", "A")
    reply = message[:2] + b"\x81\x80" + message[4:]
    assert upstream.answers(message, change(reply)) == right


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.1", ("10.0.0.1", 53)),
        ("10.0.0.1:5353", ("10.0.0.1", 5353)),
        ("fd00::1", ("fd00::1", 53)),
        ("[fd00::1]:5353", ("fd00::1", 5353)),
    ],
)
def test_server_addresses(text: str, address: tuple[str, int]) -> None:
    assert upstream.address(text) == address


@pytest.mark.parametrize(
    "text", ["", "dns.example.com", "dns.example.com:53", "10.0.0.1:dns", "10.0.0.1:65536", "10.0.0.1:0", ":53"]
)
def test_a_name_is_no_server_address(text: str) -> None:
    with pytest.raises(OSError, match="is not an address"):
        upstream.address(text)


PIECES = st.sampled_from(
    [
        QUESTION,
        header(),
        header(7, 0x0100, 1, 0, 0, 1),
        b"\0\0\x29\x10\0\0\0\0\0\0\0",
        b"\0\0\x29\2\0\0\xff\x80\0\0\4\0\x0a\0\0",
        b"\0\0\xfa\0\xff\0\0\0\0\0\0",  # TSIG
        b"\xc0\x0c",
        b"\xc0\x00",
        b"\3web\xc0\x10",
        b"\0\1\0\1",
        b"\0\x21\0\1",
        b"\0\xff\0\xff",
        b"\x3f" + b"a" * 63,
        b"\0",
    ]
)


@given(
    st.sampled_from([serving(), serving(KUBE_DNS)]),
    st.one_of(st.none(), st.tuples(st.integers(0, 255), st.integers(0, 6))),
    st.lists(st.one_of(PIECES, st.binary(max_size=30)), max_size=8),
    st.booleans(),
)
def test_no_bytes_hurt(answers: Answers, counts: tuple[int, int] | None, pieces: list[bytes], stream: bool) -> None:
    start = b"" if counts is None else struct.pack("!HHHHHH", 1, counts[0], 1, 0, 0, counts[1] % 3)
    data = start + b"".join(pieces)
    reply = answers.reply(data, stream=stream)
    if isinstance(reply, bytes):
        assert reply[:2] == data[:2]
        assert reply[2] & 0x80
        assert stream or len(reply) <= 65507
        dns.message.from_wire(reply, keyring=False)
    else:
        assert reply is None


@given(st.binary(min_size=0, max_size=200))
def test_no_upstream_s_bytes_hurt(tail: bytes) -> None:
    """An alias that leads outside, where somebody answers the right question with anything."""
    config = changed(COREDNS, upstreams=("192.0.2.1",))

    class Anything(Upstream):
        async def ask(self, question: bytes, servers: tuple[str, ...]) -> bytes:
            assert servers == ("192.0.2.1",)
            return question[:2] + b"\x81\x80\0\1\0\3\0\0\0\0" + question[12:33] + tail

    async def both() -> tuple[bytes, bytes]:
        answers = Answers(Anything())
        answers.use(Zone(config))
        chased = answers.reply(query("ext.default.svc.cluster.local."), stream=False)
        forwarded = answers.reply(query("www.example.com."), stream=False)
        assert chased is not None
        assert forwarded is not None
        assert not isinstance(chased, bytes)
        assert not isinstance(forwarded, bytes)
        return await chased, await forwarded

    chased, forwarded = asyncio.run(both())
    reply = dns.message.from_wire(chased)
    assert reply.answer[0].to_text() == "ext.default.svc.cluster.local. 5 IN CNAME www.example.com."
    assert forwarded[12:] == query("www.example.com.")[12:] + tail
