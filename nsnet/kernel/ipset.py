"""ipsets of a namespace, by netlink (nfnetlink subsystem 6): read whole, and swapped in one step.

The tool `ipset` is not asked: a set of a thousand entries is three messages here, and one dump reads every set. A set
that is there and shall hold something else is written under another name, `TMP-…`, and then swapped with it: a packet
meets the old entries or the new ones, never some of both. The rules keep their set meanwhile, since they know it by an
index that the swap leaves alone. A `TMP-…` that a kill has left is one more set that nobody wants, and is deleted.

A set that a rule still names cannot be destroyed; `applying` writes sets before chains and destroys them after.

Sources: Linux `include/uapi/linux/netfilter/ipset/ip_set.h`, `net/netfilter/ipset/ip_set_core.c`.
"""

import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import ip_address
from struct import Struct

from nsnet.errors import MachineError
from nsnet.kernel.netlink import (
    NETLINK_NETFILTER,
    NLA_F_NESTED,
    NLM_F_CREATE,
    NLM_F_EXCL,
    PROTOCOLS,
    Failure,
    Message,
    Netlink,
    Request,
    attribute,
    attributes,
    inner,
    listed,
    nested,
    string,
    text,
)
from nsnet.kernel.netns import inside
from nsnet.state import Change, IpSet, Refusal

_SUBSYSTEM = 6 << 8
_CREATE, _DESTROY, _FLUSH, _SWAP, _LIST, _ADD = (_SUBSYSTEM | command for command in (2, 3, 4, 6, 7, 9))

_PROTOCOL_ATTR, _SETNAME, _TYPENAME, _REVISION, _FAMILY, _DATA, _ADT, _LINENO = 1, 2, 3, 4, 5, 7, 8, 9
_SETNAME2 = _TYPENAME  # of a swap
_IP, _CIDR, _PORT, _PROTO = 1, 3, 4, 7  # of an entry
_IPV4, _IPV6 = 1, 2
_NET_BYTEORDER = 0x4000

_PROTOCOL = attribute(_PROTOCOL_ATTR, b"\6")
_NFGENMSG = bytes(4)
_U16 = Struct("!H")
_U32 = Struct("!I")
_FAMILIES: Mapping[str, int] = {"inet": 2, "inet6": 10}
_NAMES: Mapping[int, str] = {number: name for name, number in _FAMILIES.items()}
_BY_NUMBER: Mapping[int, str] = {number: name for name, number in PROTOCOLS.items()}

REVISIONS: Mapping[str, int] = {"hash:ip": 4, "hash:net": 6, "hash:ip,port": 5}
"""Of each type: since Linux 3.19; the tool `ipset` refuses to list the oldest ones."""
TEMPORARY = "TMP-"
LONGEST = 31  # characters of a name
_ENTRIES_AT_ONCE = 500  # of one message, which has to fit an attribute's 64 KiB

_ERRORS: Mapping[int, str] = {  # ip_set.h: from IPSET_ERR_PRIVATE on
    4097: "the kernel speaks another ipset protocol",
    4098: "the kernel has no set of this type",
    4099: "there are too many sets",
    4100: "the set is in use",
    4101: "a set of this name is there already",
    4102: "the two sets are of different types",
    4103: "the entry is there already",
    4104: "the prefix length is not one a set takes",
    4352: "the set is full",
}
_BUSY = {os.strerror(errno.EBUSY), _ERRORS[4100]}
TRIES = 20  # of a set that is listed at this moment
_TAKES_NONE = {errno.EOPNOTSUPP, errno.EINVAL, errno.EPROTONOSUPPORT}


# --- reading ----------------------------------------------------------------------------------------------------------


def read(netns: str, names: frozenset[str] | None = None) -> frozenset[IpSet]:
    """The sets of a namespace; with `names`, those. A kernel without ipset shows none."""
    with inside(netns):
        try:
            netfilter = Netlink(NETLINK_NETFILTER)
        except OSError:
            return frozenset()
    with netfilter:
        try:
            answers = netfilter.dump([_list(name) for name in ([""] if names is None else sorted(names))])
        except OSError as error:
            if error.errno in _TAKES_NONE:
                return frozenset()
            raise
    return frozenset(one for messages in answers for one in _sets(messages))


def _list(name: str) -> Request:
    return Request(_LIST, 0, _NFGENMSG + _PROTOCOL + (text(_SETNAME, name) if name else b""))


def _sets(messages: Sequence[Message]) -> Iterator[IpSet]:
    """A set that is too long for one message goes on in the next, without its head."""
    heads: dict[str, tuple[str, str]] = {}
    entries: dict[str, set[str]] = {}
    for _, data, start, end in messages:
        found = attributes(data, start + len(_NFGENMSG), end)
        name = string(found[_SETNAME])
        if _TYPENAME in found:
            heads[name] = string(found[_TYPENAME]), _NAMES[found[_FAMILY][0]]
        entries.setdefault(name, set()).update(map(_entry, map(inner, listed(found.get(_ADT, b"")))))
    for name, (kind, family) in heads.items():
        yield IpSet(name, kind, frozenset(entries[name]), family)  # type: ignore[arg-type]


def _entry(found: dict[int, bytes]) -> str:
    """As `ipset` prints it; the length of a whole address is left out."""
    packed = next(iter(inner(found[_IP]).values()))
    words = str(ip_address(packed))
    if _CIDR in found and found[_CIDR][0] != 8 * len(packed):
        words += f"/{found[_CIDR][0]}"
    if _PORT in found:
        number = found[_PROTO][0]
        words += f",{_BY_NUMBER.get(number, number)}:{_U16.unpack(found[_PORT])[0]}"
    return words


# --- writing ----------------------------------------------------------------------------------------------------------


def write(netns: str, changes: Sequence[Change]) -> list[Refusal]:
    """Makes and swaps sets; deletes are `destroy`. What the kernel refused, with the first reason for each set."""
    return _asked(netns, changes, lambda value: list(_written(value)))


def destroy(netns: str, changes: Sequence[Change]) -> list[Refusal]:
    """Deletes sets; one that is not there is success."""
    refusals = _asked(netns, changes, lambda value: [_named(_DESTROY, value.name)])
    return [refusal for refusal in refusals if refusal.reason != os.strerror(errno.ENOENT)]


def _asked(netns: str, changes: Sequence[Change], spell: Callable[[IpSet], list[Request]]) -> list[Refusal]:
    """A set that somebody just lists (`nsnet status`, `ipset list`) can neither be swapped nor destroyed: once more."""
    refusals: list[Refusal] = []
    left = list(changes)
    if not left:
        return []
    with inside(netns), Netlink(NETLINK_NETFILTER) as netfilter:
        for attempt in range(TRIES):
            batch = [(request, change) for change in left for request in spell(_value(change))]
            said = _refusals([change for _, change in batch], netfilter.ask([request for request, _ in batch]))
            last = attempt == TRIES - 1
            refusals += [refusal for refusal in said if last or refusal.reason not in _BUSY]
            left = [refusal.change for refusal in said if refusal.reason in _BUSY]
            if not left or last:
                break
            time.sleep(0.001 * (attempt + 1))
    return refusals


def _value(change: Change) -> IpSet:
    assert isinstance(change.value, IpSet)
    return change.value


def _refusals(changes: Sequence[Change], refused: Mapping[int, Failure]) -> list[Refusal]:
    first: dict[int, Refusal] = {}
    for position, failure in sorted(refused.items()):
        change = changes[position]
        first.setdefault(id(change), Refusal(change, _ERRORS.get(failure.code, str(failure))))
    return [*first.values()]


def _written(value: IpSet) -> Iterator[Request]:
    """Made where it is missing, filled under another name, swapped with that, and the other one destroyed.

    It does not matter what stands there before: a set left half written by a kill is emptied first.
    """
    other = f"{TEMPORARY}{value.name}"[:LONGEST]
    yield _create(value, value.name)
    yield _create(value, other)
    yield _named(_FLUSH, other)
    entries = sorted(value.entries)
    for start in range(0, len(entries), _ENTRIES_AT_ONCE):
        yield _add(other, entries[start : start + _ENTRIES_AT_ONCE])
    yield _named(_SWAP, value.name, text(_SETNAME2, other))
    yield _named(_DESTROY, other)


def _create(value: IpSet, name: str) -> Request:
    """Without NLM_F_EXCL a set of the same name and type that is there is no error."""
    head = text(_SETNAME, name) + text(_TYPENAME, value.kind) + attribute(_REVISION, bytes([REVISIONS[value.kind]]))
    family = attribute(_FAMILY, bytes([_FAMILIES[value.family]]))
    return Request(_CREATE, NLM_F_CREATE, _NFGENMSG + _PROTOCOL + head + family + nested(_DATA | NLA_F_NESTED))


def _named(command: int, name: str, more: bytes = b"") -> Request:
    return Request(command, 0, _NFGENMSG + _PROTOCOL + text(_SETNAME, name) + more)


def _add(name: str, entries: Sequence[str]) -> Request:
    items = nested(_ADT | NLA_F_NESTED, *(_packed(entry) for entry in entries))
    line = attribute(_LINENO | _NET_BYTEORDER, _U32.pack(0))
    return Request(_ADD, NLM_F_CREATE | NLM_F_EXCL, _NFGENMSG + _PROTOCOL + text(_SETNAME, name) + items + line)


def _packed(entry: str) -> bytes:
    """`10.0.0.1`, `10.0.0.0/8` or `10.0.0.1,tcp:80`."""
    words, _, port = entry.partition(",")
    address, _, length = words.partition("/")
    packed = ip_address(address).packed
    kind = (_IPV4 if len(packed) == 4 else _IPV6) | _NET_BYTEORDER
    parts = [nested(_IP | NLA_F_NESTED, attribute(kind, packed))]
    if length:
        parts.append(attribute(_CIDR, bytes([int(length)])))
    if port:
        protocol, _, number = port.partition(":")
        parts.append(attribute(_PORT | _NET_BYTEORDER, _U16.pack(int(number))))
        parts.append(attribute(_PROTO, bytes([PROTOCOLS[protocol]])))
    return nested(_DATA | NLA_F_NESTED, *parts)


# --- does this machine have it? ---------------------------------------------------------------------------------------

TRIED = (
    IpSet("nsnet-ip", "hash:ip", frozenset({"192.0.2.1"})),
    IpSet("nsnet-net", "hash:net", frozenset({"192.0.2.0/24"})),
    IpSet("nsnet-port", "hash:ip,port", frozenset({"192.0.2.1,sctp:80"})),
)


def tried() -> None:
    """Makes a set of each type where we are, and a rule that names one; raises where that cannot be done."""
    with Netlink(NETLINK_NETFILTER) as netfilter:
        refused = netfilter.ask([request for one in TRIED for request in _written(one)])
    if refused:
        raise MachineError(f"ipset: {next(iter(refused.values()))}", "`nsnet doctor` says what this machine lacks")
    rule = ["iptables", "-w", "-A", "FORWARD", "-m", "set", "--match-set", TRIED[0].name, "src", "-j", "DROP"]
    subprocess.run(rule, check=True)


if __name__ == "__main__":
    tried()
