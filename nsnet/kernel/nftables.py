"""nftables: tables other than iptables' own, read by netlink and written by `nft`, value by value.

What was measured (nft 1.0.6, Linux 6.18; 5 endpoints per Service, so an anonymous map of 5 in each Service's chain):

    | Services | first load | `nft list table` | read here | `nft list chain`, one | read here | one changed, `nft -f` |
    | 1,000    | 0.18 s     | 0.11 s           | 0.11 s    | 42 ms                 | 0.8 ms    | 20-28 ms              |
    | 5,000    | 2.9 s      | 1.1-1.8 s        | 1.5-1.8 s | 750 ms                | 2-3 ms    | 41-65 ms              |

- The first load is the kernel's own time (2.5 of 2.9 s): it finds sets by going through the list of them, and names an
  anonymous one by looking at all names. No order of the lines changes that, and one transaction is as fast as many.
  Session affinity has a set and a chain per endpoint and pays for it: 1.1 s at 500 Services of 5, 4 s at 1,000, 26 s at
  2,000, nft alone just as much.
- `nft` reads all sets with all elements to list one chain, so a small look asks the kernel itself (`nftnl.py`).
- `nft -f` for a small change reads only chains and the names of sets.

One call is one transaction: a packet meets the old rules or the new ones. Where nft refuses a line, the change it
stands for is refused with nft's own sentence and the rest is tried again without it. Kernels before 6.2 notice late
that nothing leads to a chain any more: chains that could not go are tried once more when the rest is written.
"""

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache

from nsnet.errors import MachineError
from nsnet.kernel import nftnl
from nsnet.kernel.iptables import TABLES
from nsnet.kernel.netlink import NETLINK_NETFILTER, Message, Netlink, NetlinkError, Request, string
from nsnet.kernel.netns import inside
from nsnet.state import (
    Change,
    Key,
    Nft,
    NftChain,
    NftElement,
    NftSet,
    NftTable,
    Refusal,
    nft_delete_lines,
    nft_lines,
    nft_replace_lines,
)

READ_WHOLE = {"ip", "ip6"}  # tables of other families are read as tables alone: nobody wants one, they can only go
IPTABLES = frozenset((family, name) for family in ("ip", "ip6") for name in TABLES)
TRACE = "nsnet-trace"  # of live traces; the kernel removes it with them
OWNED = 2  # NFT_TABLE_F_OWNER

KEYS_ONE_BY_ONE = 400  # more than that: everything is read
DUMPS_AT_ONCE = 32
LINES_TRIED = 64  # refused changes in one call before the rest is given up

Piece = tuple[str, Change]  # a line of `nft -f`, with the change it belongs to


@cache
def tool() -> str:
    """The path of `nft`. Raises MachineError when it is not installed."""
    found = shutil.which("nft", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        raise MachineError("nft is not installed", "run `scripts/setup`, or `apt-get install nftables`")
    return found


# --- reading ----------------------------------------------------------------------------------------------------------


def read(netns: str, only: frozenset[Key] | None = None) -> frozenset[Nft]:
    """The tables of a namespace with all that is in them, but iptables' own; with `only`, what has one of these keys.

    A kernel without nf_tables has none. Raises MachineError when the kernel does not answer.
    """
    with inside(netns):
        try:
            netfilter = Netlink(NETLINK_NETFILTER)
        except OSError:
            return frozenset()
    with netfilter:
        try:
            if only is None or len(only) > KEYS_ONE_BY_ONE or any(len(key) < 3 for key in only):
                every = _read_all(netfilter)
                return every if only is None or ("nft",) in only else frozenset(v for v in every if v.key in only)
            return frozenset(_read_some(netfilter, only))
        except NetlinkError as error:
            if error.errno in {errno.EOPNOTSUPP, errno.EINVAL, errno.EPROTONOSUPPORT}:
                return frozenset()
            raise MachineError(f"nf_tables in {netns}: {error.strerror}", "`nsnet doctor` says more") from error


def tables(netfilter: Netlink) -> list[NftTable]:
    """All that are neither iptables' nor there for a moment."""
    (found,) = netfilter.dump([nftnl.request(nftnl.GETTABLE)])
    every = [nftnl.table(message) for message in found if not _is_live_trace(message)]
    return [one for one in every if (one.family, one.name) not in IPTABLES]


def _is_live_trace(message: Message) -> bool:
    """Of a live trace that runs: it has an owner, with whom it goes. One without is a leftover."""
    _, found = nftnl.body(message)
    return string(found[1]) == TRACE and bool(nftnl.number(found.get(2, bytes(4))) & OWNED)


def _read_all(netfilter: Netlink) -> frozenset[Nft]:
    found: list[Nft] = []
    for one in tables(netfilter):
        found.append(one)
        if one.family in READ_WHOLE:
            found += _read_table(netfilter, one)
    return frozenset(found)


def _read_table(netfilter: Netlink, one: NftTable) -> Iterator[Nft]:
    asked = (nftnl.get_set(one.family, one.name), nftnl.get_rules(one.family, one.name))
    sets, rules, chains = netfilter.dump([*asked, nftnl.request(nftnl.GETCHAIN, one.family)])
    owners = [nftnl.set_of(message) for message in sets]
    listed = _listed(netfilter, [owner for owner in owners if not owner.flags & nftnl.DYNAMIC])
    contents = {owner.name: (owner, listed.get(owner.name, [])) for owner in owners}
    texts: dict[str, list[str]] = {}
    for message in rules:
        name, words = nftnl.rule(message, contents.get)
        texts.setdefault(name, []).append(words)
    for message in chains:
        value = nftnl.chain(message, ())
        if value.table == one.name:
            yield nftnl.chain(message, tuple(texts.get(value.name, ())))
    for owner, items in contents.values():
        if not owner.flags & nftnl.ANONYMOUS:
            yield owner.value
            yield from nftnl.values(owner, iter(items))


def _listed(netfilter: Netlink, owners: Sequence[nftnl.Set]) -> dict[str, list[nftnl.Element]]:
    """The elements of these sets."""
    found = {}
    for start in range(0, len(owners), DUMPS_AT_ONCE):
        window = owners[start : start + DUMPS_AT_ONCE]
        answers = netfilter.dump([nftnl.get_elements(owner.family, owner.table, owner.name) for owner in window])
        for owner, messages in zip(window, answers, strict=True):
            found[owner.name] = [item for message in messages for item in nftnl.elements(message, owner.data)]
    return found


def _read_some(netfilter: Netlink, only: frozenset[Key]) -> Iterator[Nft]:
    """Each by its own: chains and sets by name, elements by key."""
    known: dict[tuple[str, str, str], nftnl.Set | None] = {}
    there = {(one.family, one.name): one for one in tables(netfilter)}
    for key in sorted(only):
        family, table, kind, *names = (*key[1:3], *(key[3:] or ("table",)))
        if (family, table) not in there:
            continue
        if kind == "table":
            yield there[family, table]
        elif kind == "chain":
            yield from _one_chain(netfilter, family, table, names[0])
        else:
            place = family, table, names[0]
            if place not in known:
                known[place] = _one_set(netfilter, *place)
            owner = known[place]
            if owner is not None:
                yield from (owner.value,) if kind == "set" else _one_element(netfilter, owner, names[1])


def _get(netfilter: Netlink, request: Request) -> Message | None:
    """The answer; None where there is no such thing."""
    try:
        return netfilter.get(request)
    except NetlinkError as error:
        if error.errno == errno.ENOENT:
            return None
        raise


def _one_chain(netfilter: Netlink, family: str, table: str, name: str) -> Iterator[NftChain]:
    message = _get(netfilter, nftnl.get_chain(family, table, name))
    if message is None:
        return
    (rules,) = netfilter.dump([nftnl.get_rules(family, table, name)])
    contents = _asking(netfilter, family, table)
    yield nftnl.chain(message, tuple(nftnl.rule(one, contents)[1] for one in rules))


def _asking(netfilter: Netlink, family: str, table: str) -> nftnl.Contents:
    """A rule's sets, read when it names them; elements only of those that belong to the rule alone."""

    def contents(name: str) -> tuple[nftnl.Set, list[nftnl.Element]] | None:
        owner = _one_set(netfilter, family, table, name)
        if owner is None:
            return None
        return owner, _listed(netfilter, [owner])[name] if owner.flags & nftnl.ANONYMOUS else []

    return contents


def _one_set(netfilter: Netlink, family: str, table: str, name: str) -> nftnl.Set | None:
    message = _get(netfilter, nftnl.get_set(family, table, name))
    return nftnl.set_of(message) if message is not None else None


def _one_element(netfilter: Netlink, owner: nftnl.Set, words: str) -> Iterator[NftElement]:
    if owner.flags & nftnl.INTERVAL or words == nftnl.CATCH_ALL:  # a part of an interval, or no key at all
        yield from (
            one for one in nftnl.values(owner, iter(_listed(netfilter, [owner])[owner.name])) if one.element == words
        )
        return
    with suppress(ValueError):  # no key of this set
        message = _get(
            netfilter, nftnl.get_element(owner.family, owner.table, owner.name, nftnl.key_bytes(owner, words))
        )
        if message is not None:
            yield from nftnl.values(owner, nftnl.elements(message, owner.data))


# --- writing ----------------------------------------------------------------------------------------------------------


def write(netns: str, changes: Sequence[Change]) -> list[Refusal]:
    """Make these changes of nftables values in one transaction; what was refused, with nft's own sentence.

    Deleting what is not there is success. Raises MachineError when nft is missing.
    """
    with inside(netns):
        refusals = _write(list(changes))
        late = [
            item.change for item in refusals if item.change.verb == "delete" and isinstance(item.change.value, NftChain)
        ]
        if late:
            refusals = [item for item in refusals if item.change not in late] + _write(late)
    return refusals


def _write(left: list[Change]) -> list[Refusal]:
    refusals: list[Refusal] = []
    while left:
        pieces = list(lines(left))
        error = _nft(line for line, _ in pieces)
        if not error:
            return refusals
        found = _refused(error, pieces, left, give_up=len(refusals) >= LINES_TRIED)
        refusals += [item for item in found if not _is_absent(item)]
        left = [change for change in left if all(change is not item.change for item in found)]
    return refusals


def _nft(script: Iterable[str]) -> str:
    """Hand the lines to nft; empty, or what it said to refuse them."""
    done = subprocess.run(
        [tool(), "-f", "-"], input="\n".join([*script, ""]), capture_output=True, text=True, check=False
    )
    return (done.stderr.strip() or f"exit code {done.returncode}") if done.returncode else ""


_PLACE = re.compile(r"^[^\s:]*:(\d+):[-0-9]+: Error: (.*)$", re.MULTILINE)


def _refused(error: str, pieces: list[Piece], left: list[Change], *, give_up: bool) -> list[Refusal]:
    """Whose lines they were. Where nft names none, everything that is left is refused."""
    said = [(int(line), sentence) for line, sentence in _PLACE.findall(error)]
    if give_up or not said or any(not 0 < line <= len(pieces) for line, _ in said):
        return [Refusal(change, " ".join(error.split())) for change in left]
    found: dict[int, Refusal] = {}
    for line, sentence in said:
        text, change = pieces[line - 1]
        found.setdefault(id(change), Refusal(change, f"{sentence}: {text}"))
    return [*found.values()]


def _is_absent(refusal: Refusal) -> bool:
    return refusal.change.verb == "delete" and os.strerror(errno.ENOENT) in refusal.reason


def lines(changes: Sequence[Change]) -> Iterator[Piece]:
    """The transaction, in an order nft accepts: what is jumped to is there before, and goes after, who jumps to it."""
    going = {change.value.key for change in changes if isinstance(change.value, NftTable) and change.verb == "delete"}
    fresh = {change.value.key for change in changes if isinstance(change.value, NftTable) and change.verb != "delete"}
    some = [change for change in changes if change.verb != "delete" or change.value.key[:3] not in going]
    yield from _each(changes, NftTable, "delete", nft_delete_lines)
    yield from _each(some, NftTable, "add", nft_lines)
    yield from _replaced(some, NftTable)
    yield from _each(some, NftSet, "add", nft_lines)
    yield from _replaced(some, NftSet)
    yield from _chains(some, fresh)
    yield from _elements(some)
    yield from _gone(some)


Lines = Callable[[Nft], Iterator[str]]


def _each(changes: Sequence[Change], kind: type[Nft], verb: str, spell: Lines) -> Iterator[Piece]:
    for change in changes:
        if change.verb == verb and isinstance(change.value, kind):
            yield from ((line, change) for line in spell(change.value))


def _replaced(changes: Sequence[Change], kind: type[Nft]) -> Iterator[Piece]:
    for change in changes:
        if change.verb == "replace" and isinstance(change.value, kind) and isinstance(change.old, kind):
            yield from ((line, change) for line in nft_replace_lines(change.old, change.value))


def _chains(changes: Sequence[Change], fresh: set[Key]) -> Iterator[Piece]:
    """First that each is there and empty, then their rules: they may lead to each other."""
    rules: list[Piece] = []
    for change in changes:
        value = change.value
        if not isinstance(value, NftChain) or change.verb == "delete":
            continue
        made = nft_replace_lines(change.old, value) if isinstance(change.old, NftChain) else nft_lines(value)
        for line in made:
            if line.startswith("add rule "):
                rules.append((line, change))
            else:
                yield line, change
        if change.verb == "add" and value.key[:3] not in fresh:
            yield f"flush chain {value.family} {value.table} {value.name}", change
    yield from rules


def _elements(changes: Sequence[Change]) -> Iterator[Piece]:
    """What goes before what comes: an element with other data has the same key."""
    without = {change.value.key for change in changes if isinstance(change.value, NftSet) and change.verb == "delete"}
    coming: list[Piece] = []
    for change in changes:
        value = change.value
        if not isinstance(value, NftElement):
            continue
        if change.verb != "add" and (*value.key[:3], "set", value.set) not in without:
            yield from ((line, change) for line in nft_delete_lines(value))
        if change.verb != "delete":
            coming += [(line, change) for line in nft_lines(value)]
    yield from coming


def _gone(changes: Sequence[Change]) -> Iterator[Piece]:
    """Chains are emptied before any of them goes."""
    deleting: list[Piece] = []
    for line, change in _each(changes, NftChain, "delete", nft_delete_lines):
        if line.startswith("flush "):
            yield line, change
        else:
            deleting.append((line, change))
    yield from deleting
    yield from _each(changes, NftSet, "delete", nft_delete_lines)
