"""look: what `observe` would say, read piece by piece while somebody goes through it.

One packet of a cluster of 1,000 pods passes some ten namespaces, and of a node's 9,000 chains some twenty. So a
namespace is read when it is asked for, and is then what it was. Its chains are read on their own, each with those that
it leads every packet to; what leads away one address alone (`-d 10.96.0.7/32`: a Service of thousands) waits until it
is asked for. Nor is every pod looked at that is plugged into a bridge, to see whether it is the other end: who goes on
to it finds that out, for there the cable is looked at from both ends.

What a packet's way asks of it is what `observe` gives: tests compare the two.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from nsnet import names, state
from nsnet.errors import MachineError
from nsnet.kernel import conntrack, netns, observing
from nsnet.state import KINDS, Chain, Conntrack, Family, Key, Value

_NOT_OF = {"pod": {"nft", "legacy", "ipset", "offload"}, "node": set[str]()}  # as `observe` has it
_AT_ONCE = 2  # nodes whose chains are read ahead
_LEADS_ON = re.compile(r"-[jg] (\S+)")
_ONE_CASE = re.compile(r"-d [0-9a-f.:]+/(?:32|128) |--dport \d+ ")
_NAME = re.compile(r"[^\s\"']+")
_NO_CHAINS = frozenset({
    "ACCEPT", "DROP", "RETURN", "REJECT", "DNAT", "SNAT", "MASQUERADE", "REDIRECT", "MARK", "LOG", "NFLOG", "CT",
})  # fmt: skip


def look(cluster: str, tracked: str = "", expected: Mapping[str, str] | None = None) -> "Looking":
    """The cluster's namespaces, each read when it is asked for; raises MachineError as `observe` does, then.

    `tracked`: a protocol whose conntrack entries on nodes are read, too. `expected`: MAC → `netns/device`, where it is
    looked for first.
    """
    return Looking(cluster, tracked, expected or {})


class Looking(state.Looking):
    """A State of those namespaces that bear the cluster's mark."""

    def __init__(self, cluster: str, tracked: str, expected: Mapping[str, str]) -> None:
        self._cluster, self._tracked, self._expected = cluster, tracked, expected
        self.there = frozenset(netns.candidates(cluster))
        self._seen = observing.Seen(cluster)
        self._macs: dict[str, dict[str, str]] = {}
        self._flows: dict[tuple[str, str], frozenset[Conntrack]] = {}
        self._known: dict[str, frozenset[Value] | None] = {}
        self._chains: dict[tuple[str, Family], _Chains] = {}
        self._ahead: dict[tuple[str, Family], Future[_Chains]] = {}
        self._pool = ThreadPoolExecutor(_AT_ONCE, "ahead")
        self._alike: dict[tuple[str, Family], _Alike] = {}

    def __getitem__(self, name: str) -> frozenset[Value]:
        if name not in self._known and name in self.there:
            self._known[name] = self._read(name)
        values = self._known.get(name)
        if values is None:
            raise KeyError(name)
        return values

    def _read(self, name: str) -> frozenset[Value] | None:
        try:
            wanted = {name: _kinds(name, self._tracked)}
            return observing.read(self._cluster, wanted, self.there, self._seen, trusting=True).get(name)
        except FileNotFoundError:  # it went away
            return None
        except PermissionError as error:
            raise MachineError(f"cannot look into network namespaces: {error.strerror}", "run it as root") from error

    def __iter__(self) -> Iterator[str]:
        return (name for name in sorted(self.there) if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def chains(self, name: str, family: Family) -> Mapping[tuple[str, str], Chain]:
        """The chains of a namespace by table and name."""
        key = name, family
        if key not in self._chains:
            there = name in self and names.kind_of(name) != "pod"
            if there and key in self._ahead:
                self._chains[key] = self._ahead[key].result()
            else:
                self._chains[key] = _Chains(name, family, self._alike_of(name, family), there=there)
        return self._chains[key]

    def _alike_of(self, name: str, family: Family) -> "_Alike":
        return self._alike.setdefault((names.kind_of(name), family), {})

    def ahead(self, nodes: Iterable[str], family: Family) -> None:
        """Beside all else, at first one alone: that tells what is asked for on the others."""
        for name in nodes:
            if name in self.there and names.kind_of(name) != "pod" and (name, family) not in self._ahead:
                first = next((read for (_, other), read in self._ahead.items() if other == family), None)
                chains = _Chains(name, family, self._alike_of(name, family), there=True)
                self._ahead[name, family] = self._pool.submit(chains.begun, first)

    def mac(self, name: str, dev: str) -> str:
        if name not in self._macs:
            found = self._seen.looks.get(name) if name in self else None
            self._macs[name] = {one.name: one.mac for one in found.links.values()} if found else {}
        return self._macs[name].get(dev, "")

    def likely(self, mac: str) -> str:
        return self._expected.get(mac, "")

    def tracked(self, name: str, protocol: str) -> frozenset[Conntrack]:
        key = name, protocol
        if key not in self._flows:
            self._flows[key] = conntrack.read(name, (protocol,)) if name in self else frozenset()
        return self._flows[key]

    def has_tables(self, name: str) -> bool:
        return name in self and names.kind_of(name) != "pod" and bool(observing.with_tables(name))


def _kinds(name: str, tracked: str) -> frozenset[Key]:
    """Everything that `observe` reads there, but chains."""
    left_out = _NOT_OF.get(names.kind_of(name), {"ipset"}) | {"chain"}
    flows = {("conntrack", tracked)} if tracked and names.kind_of(name) == "node" else set()
    return frozenset((kind,) for kind in KINDS - left_out) | flows


_Alike = dict[str, frozenset[str]]
"""By table the further chains that the built-in ones led to in namespaces of one kind."""


class _Chains(Mapping[tuple[str, str], Chain]):
    """Of one namespace and family. Built-in chains are read together, others when they are asked for.

    Nodes are alike, so what the first one's led to is read with them; where there is none of that name it costs a
    little more.
    """

    __hash__ = object.__hash__  # what is made of them is kept by that

    def __init__(self, name: str, family: Family, alike: _Alike, *, there: bool) -> None:
        self._netns, self._family, self._alike, self._there = name, family, alike, there
        self._known: dict[tuple[str, str], Chain | None] = {}
        self._tables_there: frozenset[str] | None = None

    @property
    def _tables(self) -> frozenset[str]:
        """Not a `cached_property`: that has one lock for all, and a thread reads others ahead."""
        if self._tables_there is None:
            self._tables_there = self._begin()
        return self._tables_there

    def _begin(self) -> frozenset[str]:
        from nsnet.kernel import iptables

        found = observing.tables(self._netns, self._family) if self._there else frozenset[str]()
        self._learn({table: {*iptables.HOOKS[table], *self._alike.get(table, ())} for table in found})
        for table in found:
            learnt = {name for where, name in self._known if where == table}
            self._alike[table] = self._alike.get(table, frozenset()) | learnt
        return found

    def begun(self, after: "Future[_Chains] | None") -> "_Chains":
        """Itself, with the built-in chains read, `after` those of another one."""
        if after:
            after.exception()  # waits; what went wrong there is told to whoever asks for it
        _ = self._tables
        return self

    def __getitem__(self, key: tuple[str, str]) -> Chain:
        if key[0] in self._tables and key not in self._known and _may_be_chain(key[1]):
            self._learn({key[0]: (key[1],)})
        chain = self._known.get(key)
        if chain is None:
            raise KeyError(key)
        return chain

    def _learn(self, wanted: Mapping[str, Collection[str]]) -> None:
        """These chains of each table, and all to which they lead every packet."""
        from nsnet.kernel import iptables

        while wanted:
            found = iptables.read_some(self._netns, wanted, self._family)
            self._known |= dict.fromkeys((table, name) for table, asked in wanted.items() for name in asked)
            self._known |= {(chain.table, chain.name): chain for chain in found}
            wanted = self._next(found)

    def _next(self, found: Iterable[Chain]) -> dict[str, set[str]]:
        wanted: dict[str, set[str]] = {}
        for chain in found:
            for name in _led_to(chain):
                if (chain.table, name) not in self._known:
                    wanted.setdefault(chain.table, set()).add(name)
        return wanted

    def __iter__(self) -> Iterator[tuple[str, str]]:
        from nsnet.kernel import iptables

        every = iptables.read(self._netns, None, (self._family,)) if self._tables else frozenset[Chain]()
        self._known |= {(chain.table, chain.name): chain for chain in every}
        return iter([(chain.table, chain.name) for chain in every])

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _may_be_chain(name: str) -> bool:
    """Rules without a target lead nowhere, and to list a chain without a name would list them all."""
    return bool(_NAME.fullmatch(name)) and name not in _NO_CHAINS


def _led_to(chain: Chain) -> set[str]:
    """The chains that its rules send packets to, whatever their address."""
    jumps = (_LEADS_ON.search(rule) for rule in chain.rules if not _ONE_CASE.search(rule))
    return {jump[1] for jump in jumps if jump and _may_be_chain(jump[1])}
