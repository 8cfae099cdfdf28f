"""iptables: chains read and written by its own tools, as text in its own spelling.

Both builds work (`xtables-nft-multi`, `xtables-legacy-multi`); which one is the machine's choice (Debian's
alternatives), and `tool` is the only place that knows. Rules stay strings: what `iptables-save` prints `render` spells.

Why it is done this way (iptables 1.8.9, nft build, 5 endpoints per Service; `facts/FLOOR.md` and measured here):
- A first load goes whole, without `--noflush`: 2 s at 5,000 Services against 64 s with it. Chain lines stand in hash
  order: sorted by name they would make every later `iptables-save` 15-20 times slower.
- Later changes go by `--noflush` with only the chains that change. What it costs then (30 ms at 1,000 Services, 100 ms
  at 5,000) is the kernel validating the table. A long chain of which little changes is edited by rule number: rewriting
  KUBE-SERVICES costs 340 ms at 5,000 Services, editing a rule of it 130 ms.
- A few chains are read one process each, side by side (3 ms; 50 ms for a chain of 5,000 rules); `iptables-save` of all
  takes 140 ms at 1,000 Services and 680 ms at 5,000. `-S` inside iptables-restore reads many of a table in 2 ms.

One call is one transaction per table. When the tool refuses a line, the change it stands for is refused with the
tool's own sentence, and the rest is tried again without it.
"""

import os
import re
import shutil
import socket
import struct
import subprocess
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path

from nsnet.errors import MachineError
from nsnet.kernel.netlink import (
    NETLINK_NETFILTER,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    Netlink,
    Request,
    attributes,
    inner,
    string,
)
from nsnet.kernel.netns import inside
from nsnet.state import Chain, Change, Family, Refusal

EVERY_FAMILY: tuple[Family, ...] = ("ip", "ip6")
Piece = tuple[str, Change | None]  # one or more lines of iptables-restore, with the change they belong to
Pieces = Iterator[Piece]

HOOKS: Mapping[str, tuple[str, ...]] = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "security": ("INPUT", "FORWARD", "OUTPUT"),
}
"""The tables, each with its built-in chains."""
TABLES = frozenset(HOOKS)
LEGACY_TABLES: Mapping[Family, Path] = {
    "ip": Path("/proc/thread-self/net/ip_tables_names"), "ip6": Path("/proc/thread-self/net/ip6_tables_names"),
}  # fmt: skip
"""Where the older build's tables of this thread's namespace are named."""
BUILT_IN = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})

CHAINS_ONE_BY_ONE = 160  # more are read whole: at 5,000 Services that takes twice as long as these one by one
PROCESSES_AT_ONCE = 8
LONG_CHAIN = 64  # rules; shorter ones are rewritten
TRIES = 5  # of a look at some chains while others commit
LINES_TRIED = 64  # refused changes in one call before the rest is given up


@cache
def tool(name: str, family: Family = "ip") -> str:
    """The path of `iptables`, `iptables-save` or `iptables-restore`. Raises MachineError when it is not installed."""
    wanted = name.replace("iptables", "ip6tables", 1) if family == "ip6" else name
    found = shutil.which(wanted, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        raise MachineError(f"{wanted} is not installed", "run `scripts/setup`, or `apt-get install iptables`")
    return found


def is_nft(family: Family = "ip") -> bool:
    """Is this the build that writes nf_tables (and not the one that writes the older xtables)?"""
    return "nft" in Path(tool("iptables", family)).resolve().name


# --- reading ----------------------------------------------------------------------------------------------------------


def read(
    netns: str, only: frozenset[tuple[str, str]] | None = None, families: Iterable[Family] = ("ip",)
) -> frozenset[Chain]:
    """The chains of a namespace; with `only`, those of these (table, chain) pairs that exist. `families`: of which.

    An empty built-in chain with policy ACCEPT is no value. Raises MachineError when the tool fails.
    """
    with inside(netns):
        return frozenset().union(*(_read(family, only) for family in families))


def _read(family: Family, only: frozenset[tuple[str, str]] | None) -> frozenset[Chain]:
    if only is not None and len(only) <= CHAINS_ONE_BY_ONE:
        return frozenset(_read_each(family, sorted(only)))
    every = saved("iptables-save", family)
    return every if only is None else frozenset(chain for chain in every if (chain.table, chain.name) in only)


def saved(name: str, family: Family) -> frozenset[Chain]:
    """What the tool of that name prints, as chains. Raises MachineError when it fails."""
    done = subprocess.run([tool(name, family)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise MachineError(f"{name}: {sentence(done.stderr)}", "`nsnet doctor` says what this machine lacks")
    return parse(done.stdout, family)


def _read_each(family: Family, wanted: list[tuple[str, str]]) -> Iterator[Chain]:
    for start in range(0, len(wanted), PROCESSES_AT_ONCE):
        window = wanted[start : start + PROCESSES_AT_ONCE]
        running = [(table, _listing(family, table, chain)) for table, chain in window]
        for table, process in running:
            out, _ = process.communicate()  # a chain that is not there is an error of the tool, and no chain
            if process.returncode == 0:
                yield from _listed(out, table, family)


def read_some(netns: str, wanted: Mapping[str, Iterable[str]], family: Family) -> list[Chain]:
    """Those of these chains (by table, which must be there) that exist, by one process.

    `-S` is a line of iptables-restore's, too. Its COMMIT then has nothing to write, and neither build writes anything.
    A chain that is not there ends it: then all are read one by one. What the nft build prints is taken only if nobody
    committed meanwhile: a single listing is not one transaction, as iptables-save's is. Where they commit all the time
    that is asked, for everything.
    """
    asked = {table: list(names) for table, names in wanted.items()}
    with inside(netns):
        for _ in range(TRIES):
            before = _generation()
            found = _list_some(asked, family)
            if _generation() == before:
                return found
        every = saved("iptables-save", family)
    return [chain for chain in every if chain.name in asked.get(chain.table, ())]


def _generation() -> bytes:
    """nf_tables' generation, which every commit that writes something raises; empty where there are no nf_tables."""
    with suppress(OSError), Netlink(NETLINK_NETFILTER) as netfilter:
        message = netfilter.get(Request(_NFT_GETGEN, 0, bytes(4)))
        return attributes(message.data, message.start + 4, message.end)[_NFTA_GEN_ID]
    return b""


def _list_some(asked: Mapping[str, list[str]], family: Family) -> list[Chain]:
    argv = [tool("iptables-restore", family), "-w", "5", "--noflush"]
    lines = [
        line for table, names in asked.items() for line in (f"*{table}", *(f"-S {name}" for name in names), "COMMIT")
    ]
    done = subprocess.run(argv, input="\n".join([*lines, ""]), capture_output=True, text=True, check=False)
    every = [(table, name) for table, names in asked.items() for name in names]
    if done.returncode:
        return [*_read_each(family, every)]
    listings = zip(every, _blocks(done.stdout), strict=True)
    return [chain for (table, _), block in listings for chain in _listed_before(block, table, family)]


def _blocks(text: str) -> list[str]:
    """What several `-S` printed, chain by chain."""
    return re.split(r"\n(?=-[NP] )", text.rstrip("\n")) if text else []


def _listing(family: Family, table: str, chain: str) -> subprocess.Popen[str]:
    argv = [tool("iptables", family), "-w", "-t", table, "-S", chain]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def _listed(text: str, table: str, family: Family) -> Iterator[Chain]:
    """What `iptables -S CHAIN` prints: `-N CHAIN` or `-P CHAIN POLICY`, then its rules."""
    head, *lines = text.splitlines()
    _, name, *policy = head.split(" ")
    chain = Chain(table, name, tuple(_rule_of(line) for line in lines), "".join(policy), family)
    if not _is_void(chain):
        yield chain


@lru_cache(maxsize=1 << 8)
def _listed_before(text: str, table: str, family: Family) -> tuple[Chain, ...]:
    """Of what many nodes print alike."""
    return tuple(_listed(text, table, family))


def parse(text: str, family: Family = "ip") -> frozenset[Chain]:
    """What `iptables-save` prints, as chains."""
    table = ""
    policies: dict[tuple[str, str], str] = {}
    rules: dict[tuple[str, str], list[str]] = {}
    for line in text.splitlines():
        if line.startswith("-A "):
            rules[table, line.split(" ", 2)[1]].append(_rule_of(line))
        elif line.startswith(":"):
            name, policy, *_ = line[1:].split(" ")
            policies[table, name] = "" if policy == "-" else policy
            rules[table, name] = []
        elif line.startswith("*"):
            table = line[1:]
    every = (Chain(*key, tuple(lines), policies[key], family) for key, lines in rules.items())
    return frozenset(chain for chain in every if not _is_void(chain))


def _rule_of(line: str) -> str:
    return line.split(" ", 2)[2] if line.count(" ") > 1 else ""


def _is_void(chain: Chain) -> bool:
    return chain.policy == "ACCEPT" and not chain.rules


# --- writing ----------------------------------------------------------------------------------------------------------


def write(netns: str, changes: Sequence[Change]) -> list[Refusal]:
    """Make these changes of Chain values (one iptables-restore); what was refused, with the tool's sentence.

    Deleting a chain that is not there is success. A built-in one that is not wanted any more goes altogether, where the
    build has it made only when somebody needs it. Raises MachineError when the tools are missing.
    """
    refusals: list[Refusal] = []
    with inside(netns):
        for family in EVERY_FAMILY:
            mine = [change for change in changes if _chain(change).family == family]
            refusals += _write(mine, family)
            if any(change.verb == "delete" and _chain(change).name in BUILT_IN for change in mine) and is_nft(family):
                _tidy(mine)
    return refusals


def _tidy(changes: Sequence[Change]) -> None:
    """The empty hooks of chains that are gone, and a table without any chain; what cannot go is as good as gone."""
    gone = [_chain(change) for change in changes if change.verb == "delete" and _chain(change).name in BUILT_IN]
    with suppress(FileNotFoundError):
        for chain in gone:
            _nft("delete", "chain", chain.family, chain.table, chain.name)
        for table in {(chain.family, chain.table) for chain in gone}:
            if "chain " not in _nft("list", "table", *table):
                _nft("delete", "table", *table)


def _nft(*words: str) -> str:
    return subprocess.run(["nft", *words], capture_output=True, text=True, check=False).stdout


def _chain(change: Change) -> Chain:
    assert isinstance(change.value, Chain)
    return change.value


def _write(changes: list[Change], family: Family) -> list[Refusal]:
    refusals: list[Refusal] = []
    left = changes
    while left:
        whole = all(change.verb == "add" for change in left) and _is_empty(family)
        # Tables before a refused line are already written, so a second try must not edit by rule number again.
        pieces = list(_whole(left) if whole else changed(left, edit=not refusals))
        argv = [tool("iptables-restore", family), *([] if whole else ["--noflush"])]
        error = restore(argv, pieces)
        if not error:
            return refusals
        refused = _refused(error, pieces, left, give_up=len(refusals) >= LINES_TRIED)
        refusals += refused
        left = [change for change in left if all(change is not item.change for item in refused)]
    return refusals


def restore(argv: list[str], pieces: Iterable[Piece]) -> str:
    """Hand the lines to a restoring tool; empty, or what it said to refuse them."""
    text = "\n".join([*(lines for lines, _ in pieces), ""])
    done = subprocess.run([*argv, "-w", "5"], input=text, capture_output=True, text=True, check=False)
    return (done.stderr.strip() or f"exit code {done.returncode}") if done.returncode else ""


def _refused(error: str, pieces: list[Piece], left: list[Change], *, give_up: bool) -> list[Refusal]:
    """Whose line it was. Where the tool names none, everything that is left is refused."""
    found = re.search(r"line:? (\d+)", error)
    number = int(found[1]) if found else 0
    index, line = _place(pieces, number)
    change = pieces[index][1]
    if line and change is not None and not give_up:
        return [Refusal(change, f"{sentence(error)}: {line}")]
    guilty = left if give_up or not line else _guilty_of_table(error, pieces[:index]) or left
    return [Refusal(change, sentence(error)) for change in guilty]


def _place(pieces: list[Piece], number: int) -> tuple[int, str]:
    """Which piece holds the line of this number (from 1), and the line; (0, "") when there is none."""
    for index, (text, _) in enumerate(pieces):
        lines = text.split("\n")
        if 0 < number <= len(lines):
            return index, lines[number - 1]
        number -= len(lines)
    return 0, ""


def _guilty_of_table(error: str, pieces: list[Piece]) -> list[Change]:
    """Whose fault a refused COMMIT is: who jumps to the chain it misses, else (legacy names nobody) the whole table."""
    start = max((index for index, (text, _) in enumerate(pieces) if text.startswith("*")), default=0)
    mine = {id(change): change for _, change in pieces[start:] if change is not None}
    missing = re.search(r"Chain '([^']+)' does not exist", error)
    if missing is None:
        return [*mine.values()]
    jump = re.compile(rf"-[jg] {re.escape(missing[1])}(?= |$)")
    return [change for change in mine.values() if any(jump.search(rule) for rule in _chain(change).rules)]


def sentence(error: str) -> str:
    """The tool's own sentence on one line, without its advice to read the manual."""
    kept = [line.strip() for line in error.splitlines() if line.strip() and not line.startswith("Try `")]
    return " ".join(kept)


# --- lines for iptables-restore, with the changes they belong to ------------------------------------------------------


def _by_table(changes: list[Change]) -> dict[str, list[Change]]:
    tables: dict[str, list[Change]] = {}
    for change in sorted(changes, key=lambda change: zlib.crc32(_chain(change).name.encode())):
        tables.setdefault(_chain(change).table, []).append(change)
    return tables


def _whole(changes: list[Change]) -> Pieces:
    """Everything there will be, for tables that are empty."""
    for table, mine in sorted(_by_table(changes).items()):
        yield f"*{table}", None
        yield from ((f":{_chain(change).name} {_chain(change).policy or '-'} [0:0]", change) for change in mine)
        for change in mine:
            yield from _appended(change)
        yield "COMMIT", None


def changed(changes: list[Change], *, edit: bool) -> Pieces:
    """Only what changes. Chains are emptied first and deleted last, when nothing jumps to them any more."""
    for table, mine in sorted(_by_table(changes).items()):
        yield f"*{table}", None
        edited = [change for change in mine if edit and _is_edit(change)]
        rewritten = [change for change in mine if change not in edited]
        for change in rewritten:
            yield from _emptied(change)
        for change in rewritten:
            yield from _filled(change)
        for change in edited:
            yield from _edited(change)
        for change in rewritten:
            if change.verb == "delete" and _chain(change).name not in BUILT_IN:
                yield f"-X {_chain(change).name}", change
        yield "COMMIT", None


def _emptied(change: Change) -> Pieces:
    """`:CHAIN` makes a chain or empties it, so that neither its presence nor its absence is an error."""
    chain = _chain(change)
    if chain.name not in BUILT_IN:
        yield f":{chain.name} - [0:0]", change
        return
    yield f"-F {chain.name}", change
    yield f"-P {chain.name} {'ACCEPT' if change.verb == 'delete' else chain.policy or 'ACCEPT'}", change


def _filled(change: Change) -> Pieces:
    if change.verb != "delete":
        yield from _appended(change)


def _appended(change: Change) -> Pieces:
    chain = _chain(change)
    if chain.rules:
        start = f"-A {chain.name} "
        yield start + f"\n{start}".join(chain.rules), change


def _is_edit(change: Change) -> bool:
    """Is it cheaper to edit the chain than to write it again: is it long, and does little of it change?"""
    old, new = change.old, _chain(change)
    if change.verb != "replace" or not isinstance(old, Chain) or len(old.rules) < LONG_CHAIN:
        return False
    gone, come = set(old.rules) - set(new.rules), set(new.rules) - set(old.rules)
    if old.policy != new.policy or len(gone) + len(come) > len(old.rules) // 8:
        return False
    return [rule for rule in old.rules if rule not in gone] == [rule for rule in new.rules if rule not in come]


def _edited(change: Change) -> Pieces:
    """What goes, from the end, so that the numbers before it still hold; then what comes, from the beginning."""
    old, new = change.old, _chain(change)
    assert isinstance(old, Chain)
    before, after = set(old.rules), set(new.rules)
    for number, rule in reversed([*enumerate(old.rules, 1)]):
        if rule not in after:
            yield f"-D {new.name} {number}", change
    for number, rule in enumerate(new.rules, 1):
        if rule not in before:
            yield f"-I {new.name} {number} {rule}".rstrip(), change


# --- are the tables empty? --------------------------------------------------------------------------------------------

_NFT_GETCHAIN, _NFT_NEWCHAIN, _NFT_GETRULE, _NFT_NEWRULE = ((10 << 8) | kind for kind in (4, 3, 7, 6))
_NFT_GETGEN, _NFTA_GEN_ID = (10 << 8) | 16, 1
_NFTA_CHAIN_HOOK = 4
_NFTA_TABLE = 1


def _is_empty(family: Family) -> bool:
    """Has nf_tables neither rules nor chains (but built-in ones) in iptables' tables? It takes microseconds.

    The older build has no table at all before somebody asks for one.
    """
    if not is_nft(family):
        names = LEGACY_TABLES[family]
        return names.exists() and not names.read_bytes()
    if any(_is_iptables(body) for body in _dumped(_NFT_GETRULE, _NFT_NEWRULE, family)):
        return False
    chains = (body for body in _dumped(_NFT_GETCHAIN, _NFT_NEWCHAIN, family) if _is_iptables(body))
    return all(_NFTA_CHAIN_HOOK in inner(body) for body in chains)


def _is_iptables(body: bytes) -> bool:
    """Rules and chains name their table first; kube-proxy's nftables mode, for one, has a table of its own."""
    return string(inner(body)[_NFTA_TABLE]) in TABLES


def _dumped(request: int, answer: int, family: Family) -> Iterator[bytes]:
    """The bodies of a dump's messages; it ends early when the caller does."""
    nfproto = {"ip": 2, "ip6": 10}[family]
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as netfilter:
        netfilter.send(struct.pack("=IHHIIBBH", 20, request, NLM_F_REQUEST | NLM_F_DUMP, 1, 0, nfproto, 0, 0))
        while True:
            data = netfilter.recv(1 << 16)
            while data:
                length, kind = struct.unpack_from("=IH", data)
                if kind != answer:
                    return
                yield data[20:length]
                data = data[(length + 3) & ~3 :]
