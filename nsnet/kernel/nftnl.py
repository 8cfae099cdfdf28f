"""nf_tables' netlink messages → values: what `nft list` would print, read without nft.

`nft` reads every set of the table, with all elements, before it prints one chain: 0.7 s at 5,000 Services, where each
Service has an anonymous map. The kernel itself gives one chain, one set or one element in microseconds, so a look after
a small change asks it directly. The price is this file: a rule comes as expressions (load a field into a register,
compare it, look it up …) and has to be put into words again. Words it does not know become `[ name ]`: such a rule is
equal to none that is wanted, which is all a look needs to say about it.

    payload, meta, ct, fib, numgen → a register holds a field      bitwise → masked, marked, or bits turned over
    cmp, range, lookup             → a match; a lookup with a destination is a (verdict) map
    immediate, nat, masq, reject, dynset → what is done

Sources: Linux `include/uapi/linux/netfilter/nf_tables.h`; libnftnl `include/libnftnl/udata.h` (comments); the words are
those of nft 1.0.6, but for `dnat ip addr . port to`, which every nft takes and this one prints as `dnat ip to`.
"""

import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from struct import Struct
from typing import Literal, NamedTuple

from nsnet.kernel.netlink import Message, Request, attribute, attributes, inner, listed, nested, string, text
from nsnet.state import NftChain, NftElement, NftSet, NftTable, nft_interval

NFPROTO: Mapping[int, str] = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
NUMBERS = {name: number for number, name in NFPROTO.items()}

_SUBSYSTEM = 10 << 8
GETTABLE, GETCHAIN, GETRULE, GETSET, GETSETELEM = (_SUBSYSTEM | kind for kind in (1, 4, 7, 10, 13))

ANONYMOUS, INTERVAL, MAP, TIMEOUT, DYNAMIC = 1, 4, 8, 0x10, 0x20
_FLAGS = ((2, "constant"), (INTERVAL, "interval"), (DYNAMIC, "dynamic"), (TIMEOUT, "timeout"))
_INTERVAL_END = 1
CATCH_ALL = "*"

_U32 = Struct(">I")
_S32 = Struct(">i")
_U64 = Struct(">Q")


# --- requests ---------------------------------------------------------------------------------------------------------


def request(kind: int, family: str = "", *wanted: bytes) -> Request:
    """Without attributes: a dump of that kind, of one family or (empty) of all."""
    return Request(kind, 0, bytes((NUMBERS.get(family, 0), 0, 0, 0)) + b"".join(wanted))


def get_chain(family: str, table: str, chain: str) -> Request:
    return request(GETCHAIN, family, text(1, table), text(3, chain))


def get_rules(family: str, table: str, chain: str = "") -> Request:
    return request(GETRULE, family, text(1, table), *([text(2, chain)] if chain else ()))


def get_set(family: str, table: str, name: str = "") -> Request:
    return request(GETSET, family, text(1, table), *([text(2, name)] if name else ()))


def get_elements(family: str, table: str, name: str) -> Request:
    return request(GETSETELEM, family, text(1, table), text(2, name))


def get_element(family: str, table: str, name: str, key: bytes) -> Request:
    """One element: an answer, or ENOENT."""
    item = nested(1, nested(1, attribute(1, key)))
    return request(GETSETELEM, family, text(1, table), text(2, name), nested(3, item))


# --- tables, chains and sets ------------------------------------------------------------------------------------------


def body(message: Message) -> tuple[str, dict[int, bytes]]:
    """The family and the attributes of an answer."""
    return NFPROTO.get(message.data[message.start], "?"), attributes(message.data, message.start + 4, message.end)


def number(payload: bytes) -> int:
    return int(_U32.unpack(payload)[0])


def table(message: Message) -> NftTable:
    family, found = body(message)
    return NftTable(string(found[1]), _comment(found.get(6), 0), family)


def chain(message: Message, rules: tuple[str, ...]) -> NftChain:
    family, found = body(message)
    hook = _hook(found) if 4 in found else ""
    return NftChain(string(found[1]), string(found[3]), rules, hook, _comment(found.get(12), 0), family)


_HOOKS = ("prerouting", "input", "forward", "output", "postrouting")


def _hook(found: dict[int, bytes]) -> str:
    hook = inner(found[4])
    kind, place = string(found.get(7, b"filter")), _HOOKS[number(hook[1])]
    policy = "drop" if 5 in found and number(found[5]) == 0 else "accept"
    return f"type {kind} hook {place} priority {_S32.unpack(hook[2])[0]}; policy {policy};"


class Set(NamedTuple):
    """A set as the kernel keeps it; `keys` and `data` are the names of its fields' types."""

    family: str
    table: str
    name: str
    flags: int
    keys: tuple[str, ...]
    data: tuple[str, ...]
    size: int  # bytes of a key
    timeout: int  # seconds
    comment: str

    @property
    def value(self) -> NftSet:
        kind = " . ".join(self.keys) + (f" : {' . '.join(self.data)}" if self.data else "")
        flags = tuple(name for bit, name in _FLAGS if self.flags & bit)
        return NftSet(self.table, self.name, kind, flags, self.timeout, self.comment, self.family)


def set_of(message: Message) -> Set:
    family, found = body(message)
    flags = number(found[3]) if 3 in found else 0
    data = _types(number(found[6])) if flags & MAP and 6 in found else ()
    timeout = int(_U64.unpack(found[11])[0]) // 1000 if 11 in found else 0
    keys = _types(number(found.get(4, bytes(4))))
    name, comment = string(found[2]), _comment(found.get(13), 7)
    return Set(family, string(found[1]), name, flags, keys, data, number(found[5]), timeout, comment)


_TYPES: Mapping[int, str] = {
    4: "integer", 7: "ipv4_addr", 8: "ipv6_addr", 9: "ether_addr", 12: "inet_proto", 13: "inet_service", 19: "mark",
    41: "ifname",
}  # fmt: skip
_LENGTHS: Mapping[str, int] = {
    "integer": 4, "ipv4_addr": 4, "ipv6_addr": 16, "ether_addr": 6, "inet_proto": 1, "inet_service": 2, "mark": 4,
    "ifname": 16,
}  # fmt: skip
ADDRESSES = ("ipv4_addr", "ipv6_addr")
_VERDICT = 0xFFFFFF00


def _types(code: int) -> tuple[str, ...]:
    """A concatenation is numbered by nft: six bits for each of its types."""
    if code == _VERDICT:
        return ("verdict",)
    parts = []
    while code:
        parts.append(_TYPES.get(code & 0x3F, f"type{code & 0x3F}"))
        code >>= 6
    return tuple(reversed(parts)) or ("type0",)


def _comment(userdata: bytes | None, kind: int) -> str:
    """A comment is one of the (type, length, value) triples that nft leaves with an object."""
    start = 0
    while userdata and start + 2 <= len(userdata):
        if userdata[start] == kind:
            return string(userdata[start + 2 : start + 2 + userdata[start + 1]])
        start += 2 + userdata[start + 1]
    return ""


# --- elements ---------------------------------------------------------------------------------------------------------


class Element(NamedTuple):
    """An element as it comes: the key's bytes (of a catch-all none), the data in words, its comment.

    `is_end`: it only ends an interval. `last`: the other end of one whose key has several fields.
    """

    key: bytes
    data: str
    is_end: bool
    comment: str
    last: bytes = b""


def elements(message: Message, kinds: tuple[str, ...]) -> Iterator[Element]:
    """What one answer lists; `kinds`: the types of a map's data."""
    _, found = body(message)
    for item in map(inner, listed(found.get(3, b""))):
        key, data = inner(item.get(1, b"")), inner(item.get(2, b""))
        words = _data(data, kinds) if data else ""
        is_end = 3 in item and bool(number(item[3]) & _INTERVAL_END)
        yield Element(key.get(1, b""), words, is_end, _comment(item.get(6), 0), inner(item.get(10, b"")).get(1, b""))


def values(owner: Set, items: Iterator[Element]) -> Iterator[NftElement]:
    """The elements of a named set as values."""
    for key, item in _spelled(owner, items, owner.keys):
        yield NftElement(owner.table, owner.name, key, item.data, item.comment, owner.family)


def _spelled(owner: Set, items: Iterable[Element], kinds: tuple[str, ...]) -> Iterator[tuple[str, Element]]:
    """Each element after its key in words; `kinds` of the fields that are looked for in it."""
    if owner.flags & INTERVAL and len(kinds) == 1:
        yield from _intervals(items, kinds[0])
        return
    for item in items:
        yield _concatenated(item.key, kinds, item.last) if item.key else CATCH_ALL, item


def key_bytes(owner: Set, words: str) -> bytes:
    """`10.96.0.10 . udp . 53` as the kernel keeps it. Raises ValueError where it is no key of this set."""
    parts = words.split(" . ")
    if len(parts) != len(owner.keys):
        raise ValueError(words)
    packed = [_packed(kind, part) for kind, part in zip(owner.keys, parts, strict=True)]
    if len(packed) == 1:
        return packed[0]
    return b"".join(part + bytes(-len(part) % 4) for part in packed)


def _packed(kind: str, words: str) -> bytes:
    match kind:
        case "ipv4_addr":
            return _address(socket.AF_INET, words)
        case "ipv6_addr":
            return _address(socket.AF_INET6, words)
        case "inet_proto":
            return bytes((_PROTOCOL_NUMBERS[words] if words in _PROTOCOL_NUMBERS else int(words),))
        case "inet_service":
            return int(words).to_bytes(2, "big")
    raise ValueError(kind)


def _address(family: int, words: str) -> bytes:
    try:
        return socket.inet_pton(family, words)
    except OSError as error:
        raise ValueError(words) from error


def _data(data: dict[int, bytes], kinds: tuple[str, ...]) -> str:
    return _verdict(data[2]) if 2 in data else _concatenated(data.get(1, b""), kinds)


_VERDICTS: Mapping[int, str] = {0: "drop", 1: "accept", -1: "continue", -3: "jump", -4: "goto", -5: "return"}


def _verdict(payload: bytes) -> str:
    found = inner(payload)
    word = _VERDICTS.get(_S32.unpack(found[1])[0], "?")
    return f"{word} {string(found[2])}" if 2 in found else word


def _concatenated(payload: bytes, kinds: tuple[str, ...], last: bytes = b"") -> str:
    """A key, or all from this one to `last`."""
    ends = zip(kinds, _fields(payload, kinds), _fields(last or payload, kinds), strict=True)
    return " . ".join(_span(kind, first, behind) for kind, first, behind in ends)


def _fields(payload: bytes, kinds: tuple[str, ...]) -> Iterator[bytes]:
    """Each begins at a multiple of four bytes."""
    start = 0
    for kind in kinds:
        length = _LENGTHS.get(kind, 4) if len(kinds) > 1 else len(payload)
        yield payload[start : start + length]
        start += (length + 3) & ~3


_PROTOCOLS: Mapping[int, str] = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp", 132: "sctp"}
_PROTOCOL_NUMBERS = {name: code for code, name in _PROTOCOLS.items()}


def _word(kind: str, payload: bytes) -> str:
    """Whatever others wrote has a word: of another length than its kind, or of no kind we know, its bytes."""
    match kind:
        case _ if len(payload) != _LENGTHS.get(kind):
            pass
        case "ipv4_addr":
            return socket.inet_ntoa(payload)
        case "ipv6_addr":
            return socket.inet_ntop(socket.AF_INET6, payload)
        case "inet_proto":
            return _PROTOCOLS.get(payload[0], str(payload[0]))
        case "inet_service":
            return str(int.from_bytes(payload, "big"))
        case "integer":
            return str(int.from_bytes(payload, sys.byteorder))
        case "mark":
            return f"0x{int.from_bytes(payload, sys.byteorder):08x}"
    return f"0x{payload.hex()}"


def _span(kind: str, first: bytes, last: bytes) -> str:
    ends = _word(kind, first), _word(kind, last)
    if kind in ADDRESSES and len(first) == len(last) == _LENGTHS[kind]:
        return nft_interval(*ends)
    return ends[0] if first == last else "-".join(ends)


def _intervals(items: Iterable[Element], kind: str) -> Iterator[tuple[str, Element]]:
    """Ranges, each begun by one element and ended by the next, in order."""
    ordered = sorted(items, key=lambda item: (item.key, not item.is_end))
    for position, item in enumerate(ordered):
        if item.is_end:
            continue
        if not item.key:
            yield CATCH_ALL, item
            continue
        behind = ordered[position + 1].key if position + 1 < len(ordered) else b""
        last = int.from_bytes(behind or b"\1" + bytes(len(item.key)), "big") - 1
        yield _span(kind, item.key, last.to_bytes(len(item.key), "big")), item


# --- rules ------------------------------------------------------------------------------------------------------------


class Field(NamedTuple):
    """What a register holds: a packet's field (`ip saddr`), or what was made of it; `size` in bytes."""

    words: str
    kind: str
    size: int
    mask: bytes = b""
    raw: bytes = b""  # of an immediate


Contents = Callable[[str], tuple[Set, list[Element]] | None]
"""A set of this table by name with its elements (those of an anonymous one), or None where it is not there."""


class UnknownError(ValueError):
    """An expression, or a use of one, that has no words here."""


def rule(message: Message, contents: Contents) -> tuple[str, str]:
    """The chain's name and the rule in words."""
    _, found = body(message)
    reader = _Reader(contents)
    for item in map(inner, listed(found.get(4, b""))):
        name = string(item[1])
        try:
            reader.take(name, inner(item.get(2, b"")))
        except (ValueError, KeyError, IndexError):
            reader.words.append(f"[ {name} ]")
    comment = _comment(found.get(7), 0)
    return string(found[2]), " ".join([*reader.words, *([f'comment "{comment}"'] if comment else ())])


_PAYLOADS: Mapping[tuple[int, int], tuple[str, str, int]] = {
    (1, 12): ("ip saddr", "ipv4_addr", 4), (1, 16): ("ip daddr", "ipv4_addr", 4),
    (2, 0): ("th sport", "inet_service", 2), (2, 2): ("th dport", "inet_service", 2),
    (2, 4): ("tcp sequence", "sequence", 4), (2, 13): ("tcp flags", "tcp flag", 1),
    (1, 2): ("ip length", "inet_service", 2), (1, 4): ("ip6 length", "inet_service", 2),
    (1, 8): ("ip6 saddr", "ipv6_addr", 16), (1, 24): ("ip6 daddr", "ipv6_addr", 16),
}  # fmt: skip
_METAS: Mapping[int, tuple[str, str, int]] = {
    3: ("meta mark", "mark", 4), 6: ("iifname", "ifname", 16), 7: ("oifname", "ifname", 16),
    16: ("meta l4proto", "inet_proto", 1),
}  # fmt: skip
_CTS: Mapping[int, str] = {0: "ct state", 2: "ct status"}
_BITS: Mapping[str, tuple[tuple[int, str], ...]] = {
    "ct state": ((1, "invalid"), (2, "established"), (4, "related"), (8, "new"), (64, "untracked")),
    "ct status": ((1, "expected"), (2, "seen-reply"), (4, "assured"), (8, "confirmed"), (16, "snat"), (32, "dnat")),
}
_ADDRESS_TYPES: Mapping[int, str] = {1: "unicast", 2: "local", 3: "broadcast", 4: "anycast", 5: "multicast"}
_FLIPPED: Mapping[str, Literal["little", "big"]] = {"mark": sys.byteorder, "sequence": "big"}
_NAT_FLAGS = ((0x4, "random"), (0x10, "fully-random"), (0x8, "persistent"))


class _Reader:
    """Goes through the expressions of one rule; `registers` are counted in four bytes, as their fields lie."""

    def __init__(self, contents: Contents) -> None:
        self.contents = contents
        self.words: list[str] = []
        self.registers: dict[int, Field] = {}
        self.since: tuple[Field, bytes] = (Field("", "", 0), b"")

    def take(self, name: str, found: dict[int, bytes]) -> None:
        step = _STEPS.get(name)
        if step is None:
            raise UnknownError(name)
        step(self, found)

    def load(self, register: bytes, field: Field) -> None:
        self.registers[_index(register)] = field

    def held(self, register: bytes) -> Field:
        return self.registers[_index(register)]

    # --- into a register ---

    def payload(self, found: dict[int, bytes]) -> None:
        words, kind, whole = _PAYLOADS[number(found[2]), number(found[3])]
        size = number(found[4])
        if size > whole:
            raise UnknownError(words)
        if 5 in found:  # NFTA_PAYLOAD_SREG: written, not read
            self.words.append(f"{words} set {self.held(found[5]).words}")
        else:
            self.load(found[1], Field(words, kind, size))

    def meta(self, found: dict[int, bytes]) -> None:
        words, kind, size = _METAS[number(found[2])]
        if 3 in found:
            self.words.append(f"{words} set {self.held(found[3]).words}")
        else:
            self.load(found[1], Field(words, kind, size))

    def ct(self, found: dict[int, bytes]) -> None:
        self.load(found[1], Field(_CTS[number(found[2])], "bits", 4))

    def fib(self, found: dict[int, bytes]) -> None:
        flags = {1: "saddr", 2: "daddr"}
        if number(found[2]) != 3:  # NFT_FIB_RESULT_ADDRTYPE
            raise UnknownError("fib")
        self.load(found[1], Field(f"fib {flags[number(found[3])]} type", "address type", 4))

    def numgen(self, found: dict[int, bytes]) -> None:
        how = {0: "inc", 1: "random"}[number(found[3])]
        offset = number(found[4]) if 4 in found else 0
        words = f"numgen {how} mod {number(found[2])}" + (f" offset {offset}" if offset else "")
        self.load(found[1], Field(words, "integer", 4))

    def bitwise(self, found: dict[int, bytes]) -> None:
        field = self.held(found[1])
        mask, xor = inner(found[4])[1], inner(found[5])[1]
        if not any(xor):
            self.load(found[2], field._replace(mask=mask))
            return
        if field.kind not in _FLIPPED:
            raise UnknownError("bitwise")
        kept, flipped = (int.from_bytes(part, _FLIPPED[field.kind]) for part in (mask, xor))
        if kept == 0xFFFFFFFF:
            self.load(found[2], field._replace(words=f"{field.words} ^ 0x{flipped:08x}"))
        elif kept == flipped ^ 0xFFFFFFFF:
            self.load(found[2], field._replace(words=f"{field.words} | 0x{flipped:08x}"))
        else:
            raise UnknownError("bitwise")

    def immediate(self, found: dict[int, bytes]) -> None:
        data = inner(found[2])
        if 2 in data:
            self.words.append(_verdict(data[2]))
        else:
            self.load(found[1], Field("", "", len(data[1]), raw=data[1]))

    # --- matches ---

    def cmp(self, found: dict[int, bytes]) -> None:
        how, field, value = number(found[2]), self.held(found[1]), inner(found[3])[1]
        if how == _NOT_LESS:  # nft says a range with two comparisons; the second one follows
            self.since = (field, value)
        elif how == _NOT_MORE and self.since[0] == field:
            self.words.append(f"{field.words} {_span(field.kind, self.since[1], value)}")
        else:
            self.words.append(_compared(field, value, negated={0: False, 1: True}[how]))

    def range(self, found: dict[int, bytes]) -> None:
        field, negated = self.held(found[1]), {0: False, 1: True}[number(found[2])]
        span = _span(field.kind, inner(found[3])[1], inner(found[4])[1])
        self.words.append(f"{field.words} {'!= ' if negated else ''}{span}")

    def lookup(self, found: dict[int, bytes]) -> None:
        name = string(found[1])
        known = self.contents(name)
        if known is None:
            raise UnknownError(name)
        owner, items = known
        words, kinds = self._key(found[2], owner.size)
        anonymous = bool(owner.flags & ANONYMOUS)
        every = _braces(owner, items, kinds) if anonymous else f"@{name}"
        if 3 in found:
            self._mapped(found[3], f"{words} {'vmap' if owner.data == ('verdict',) else 'map'} {every}", owner)
        else:
            negated = 5 in found and number(found[5]) & 1
            self.words.append(f"{words} {'!= ' if negated else ''}{every}")

    def _mapped(self, register: bytes, words: str, owner: Set) -> None:
        if owner.data == ("verdict",):
            self.words.append(words)
        else:
            self.load(register, Field(words, " . ".join(owner.data), 4 * len(owner.data)))

    def _key(self, register: bytes, size: int) -> tuple[str, tuple[str, ...]]:
        """The fields that lie one behind the other from this register on, as many as make the key."""
        fields, at, total = [], _index(register), 0
        while total < size:
            field = self.registers[at]
            fields.append(field)
            step = (field.size + 3) // 4
            at, total = at + step, total + (4 * step if size > 4 or fields[1:] else size)
        return " . ".join(field.words for field in fields), tuple(field.kind for field in fields)

    # --- what is done ---

    def nat(self, found: dict[int, bytes]) -> None:
        kind = {0: "snat", 1: "dnat"}[number(found[1])]
        family = NFPROTO[number(found[2])]
        address = self.held(found[3])
        behind = "".join(f" {name}" for bit, name in _NAT_FLAGS if 7 in found and number(found[7]) & bit)
        if not address.raw:
            what = "addr . port" if " . " in address.kind else "addr"
            self.words.append(f"{kind} {family} {what} to {address.words}{behind}")
            return
        ip = _word("ipv6_addr" if family == "ip6" else "ipv4_addr", address.raw)
        port = f":{_word('inet_service', self.held(found[5]).raw[:2])}" if 5 in found else ""
        self.words.append(f"{kind} to {f'[{ip}]' if port and family == 'ip6' else ip}{port}{behind}")

    def masq(self, found: dict[int, bytes]) -> None:
        flags = number(found[1]) if 1 in found else 0
        ends = [_word("inet_service", self.held(found[at]).raw[:2]) for at in (2, 3) if at in found]
        ports = f" to :{'-'.join(dict.fromkeys(ends))}" if ends else ""
        self.words.append(f"masquerade{ports}" + "".join(f" {name}" for bit, name in _NAT_FLAGS if flags & bit))

    def reject(self, found: dict[int, bytes]) -> None:
        if (number(found[1]), found[2]) not in ((0, b"\3"), (0, b"\4")):  # port unreachable, in IPv4 and in IPv6
            raise UnknownError("reject")
        self.words.append("reject")

    def dynset(self, found: dict[int, bytes]) -> None:
        how = {0: "add", 1: "update", 2: "delete"}[number(found[3])]
        self.words.append(f"{how} @{string(found[1])} {{ {self.held(found[4]).words} }}")

    def counter(self, _: dict[int, bytes]) -> None:
        self.words.append("counter")


_STEPS: Mapping[str, Callable[[_Reader, dict[int, bytes]], None]] = {
    name: getattr(_Reader, name)
    for name in (
        "payload", "meta", "ct", "fib", "numgen", "bitwise", "immediate", "cmp", "range", "lookup", "nat", "masq",
        "reject", "dynset", "counter",
    )
}  # fmt: skip


def _index(register: bytes) -> int:
    """Registers 1-4 have 16 bytes, 8-23 four: the same memory."""
    code = number(register)
    return (code - 1) * 4 if code < 8 else code - 8


def _compared(field: Field, value: bytes, *, negated: bool) -> str:
    sign = "!= " if negated else ""
    match field.kind:
        case kind if kind in ADDRESSES:
            return f"{field.words} {sign}{_prefix(field, value)}"
        case "bits":
            return f"{field.words} {_bits(field, value, negated=negated)}"
        case "tcp flag" if field.mask:
            flags = " | ".join(_flags(field.mask))
            return f"{field.words} & ({flags}) {'!=' if negated else '=='} {' | '.join(_flags(value))}"
        case "mark" if field.mask:
            return f"{field.words} & {_word('mark', field.mask)} {'!=' if negated else '=='} {_word('mark', value)}"
        case "ifname":
            return f'{field.words} {sign}"{string(value)}{"" if len(value) == 16 else "*"}"'
        case "address type":
            return f"{field.words} {sign}{_ADDRESS_TYPES[int.from_bytes(value, sys.byteorder)]}"
    return f"{field.words} {sign}{_word(field.kind, value)}"


_NOT_MORE, _NOT_LESS = 3, 5  # NFT_CMP_LTE, NFT_CMP_GTE


def _prefix(field: Field, value: bytes) -> str:
    """An address, whole or as far as it is compared: some of its bytes, or of its bits."""
    whole = _LENGTHS[field.kind]
    bits = sum(byte.bit_count() for byte in field.mask) if field.mask else 8 * field.size
    if field.mask and int.from_bytes(field.mask, "big") != (1 << 8 * whole) - (1 << 8 * whole - bits):
        raise UnknownError("mask")
    address = _word(field.kind, value.ljust(whole, b"\0"))
    return address if bits == 8 * whole else f"{address}/{bits}"


def _bits(field: Field, value: bytes, *, negated: bool) -> str:
    """`ct state new,related`: one of these bits is set."""
    if not negated or any(value) or not field.mask:
        raise UnknownError("bits")
    mask = int.from_bytes(field.mask, sys.byteorder)
    names = [name for bit, name in _BITS[field.words] if mask & bit]
    return ",".join(names)


_TCP_FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "ecn", "cwr")


def _flags(value: bytes) -> Iterator[str]:
    return (name for bit, name in enumerate(_TCP_FLAGS) if value[0] >> bit & 1)


def _braces(owner: Set, items: list[Element], kinds: tuple[str, ...]) -> str:
    """An anonymous set, sorted."""
    order = sys.byteorder if kinds == ("integer",) else "big"
    ordered = sorted(items, key=lambda item: int.from_bytes(item.key, order))
    every = (key + (f" : {item.data}" if item.data else "") for key, item in _spelled(owner, ordered, kinds))
    return f"{{ {', '.join(every)} }}"
