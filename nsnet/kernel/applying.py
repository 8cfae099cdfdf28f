"""apply: changes written to the kernel, in the order that is fast, whatever order they come in.

The order, and why (figures: shared facts, FLOOR.md):

    1  programs that go                      they hold sockets, and sockets hold namespaces; those of a node that
                                             stays after 6b, because rules still lead to them (userspace mode)
    2  links that go                         all of a namespace in one wait of the kernel (20 ms), by group
    3  namespaces, all of them               phase-wise costs half of pod by pod
    4  sysctls                               a device copies conf.default when it is made
    4b sets and rules that keep packets out  of namespaces that have such ones: no pod is open before its policies

    then two lanes side by side, because what goes by rtnetlink and what processes do hardly wait for each other:

    5a bridges, then veth pairs              from the side that is a bridge port: enslaved and up in the same message
    6a one send per namespace                VXLAN, the far ends, ports, addresses, neighbours, FDB, routes
    7a sysctls of devices, their offloads, then queueing disciplines
    5b files                                 and programs are started; they get ready while iptables runs, but for those
                                             of a node that was there: its rules will lead to them at once
    6b ipsets, iptables and nftables         the processes of several namespaces side by side; of two modes the
                                             one that comes first, then the one that goes; sets that go after
                                             the chains that named them
    7b conntrack entries that go             after the rules that would make them anew

    8a WireGuard's keys and peers            their devices are there, and the files that hold the keys; a conntrack
                                             table that is filled, or emptied
    8  programs are ready, or have read      their files again
    9  namespaces that go                    the kernel takes their links down by itself

`wiring.py` is what goes by rtnetlink (2, 5, 6), `places.py` what is known of the namespaces meanwhile.

Every step tolerates that it was done before, and a kill between any two leaves something that the next look shows as
different. A namespace is only written to when it bears the mark. What the kernel refuses is collected, with its own
sentence, and stops nothing else.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from nsnet import names
from nsnet.errors import NsnetError
from nsnet.kernel import conntrack, ethtool, files, legacy, netns, process, qdisc, sysctl, tracking, wireguard
from nsnet.kernel.places import Places
from nsnet.kernel.wiring import WIRED, Wiring
from nsnet.state import (
    Chain,
    Change,
    Conntrack,
    ConntrackTable,
    File,
    IpSet,
    LegacyChain,
    Listener,
    Netns,
    NftChain,
    NftElement,
    NftSet,
    NftTable,
    Offload,
    OtherLink,
    Process,
    Qdisc,
    Refusal,
    Sysctl,
    Value,
    WireguardKey,
    WireguardPeer,
)

_WORKERS = max(2, os.cpu_count() or 1)
_NFT = (NftTable, NftSet, NftChain, NftElement)
_WRITTEN = {
    *WIRED, Qdisc, Netns, Sysctl, Chain, LegacyChain, *_NFT, IpSet, Process, File, Conntrack, Offload, WireguardKey,
    WireguardPeer, ConntrackTable,
}  # fmt: skip
_OBSERVED = {OtherLink, Listener}  # deleting a foreign link is wiring's; a listener goes with its program


def apply(changes: Sequence[Change]) -> list[Refusal]:
    """Writes the changes to the kernel; returns what it refused, each with its reason. Their order does not matter."""
    return _Apply(changes).run()


class _Apply:
    """One call of `apply`: what it has learnt on the way. Nothing of it outlives the call."""

    def __init__(self, changes: Sequence[Change]) -> None:
        self.going = {c.netns: c for c in changes if c.verb == "delete" and isinstance(c.value, Netns)}
        self.clusters = {c.netns.partition(".")[0] for c in changes}
        self.by_type: defaultdict[type, list[Change]] = defaultdict(list)
        for change in changes:
            if change.netns not in self.going:
                self.by_type[type(change.value)].append(change)
        self.places = Places()
        self.wiring = Wiring(self.places, self.by_type)
        self.unread: dict[Path, tuple[Change, list[process.Running]]] = {}

    def run(self) -> list[Refusal]:
        self._end_programs(late=False)
        programs = self._programs()
        self.wiring.delete_links()
        self._mark_unread(programs)
        self._create_namespaces()
        self._write_sysctls(of_interfaces=False)
        guarded = self._guarded_places()
        self._write_chains(lambda netns: netns in guarded)
        with ThreadPoolExecutor(1) as lane:
            others = lane.submit(self._files_programs_chains, programs, guarded)
            self.wiring.make_links()
            self.wiring.configure()
            self._write_sysctls(of_interfaces=True)
            self._write_with(ethtool.write, Offload)
            self._write_with(qdisc.write, Qdisc)
        started = others.result()
        self._write_with(wireguard.write, WireguardKey, WireguardPeer)
        self._write_with(tracking.write, ConntrackTable)
        self._await(started)
        self._tell_readers(visitors=True)
        self._refuse_others()
        self._delete_namespaces()
        return self.places.refusals

    def _files_programs_chains(
        self, programs: Sequence[process.Running], guarded: Collection[str]
    ) -> list[tuple[Change, process.Started]]:
        """The second lane; returns the programs that are getting ready.

        Both lanes learn of namespaces in `places`: twice at worst, never wrongly, since only the first makes devices.
        """
        self._write_files(programs)
        started = self._start(programs)
        first = [item for item in started if self._leads_to(item[0])]
        self._await(first)
        with ThreadPoolExecutor(1) as beside:
            telling = beside.submit(self._tell_readers, visitors=False)  # names need not wait for ten thousand rules
            self._write_chains(lambda netns: netns not in guarded)
            self._write_with(legacy.write, LegacyChain)
            self._write_with(conntrack.write, Conntrack)
        self._end_programs(late=True)
        telling.result()
        return [item for item in started if item not in first]

    # --- what a step may know ---

    def of(self, *types: type) -> Iterator[Change]:
        for each in types:
            yield from self.by_type[each]

    def refuse(self, change: Change, reason: str) -> None:
        self.places.refuse(change, reason)

    # --- programs ---

    def _leads_to(self, change: Change) -> bool:
        """Is it a program of a node that was there before, and stays? Rules may lead connections to it right now."""
        goes = any(other.netns == change.netns and other.verb == "delete" for other in self.by_type[Netns])
        return names.kind_of(change.netns) == "node" and change.netns not in self.places.fresh and not goes

    def _ends_late(self, change: Change) -> bool:
        """Unless another one starts there, which may want its port."""
        starts = any(other.netns == change.netns for other in self._adds(Process))
        return change.verb == "delete" and not starts and self._leads_to(change)

    def _end_programs(self, *, late: bool) -> None:
        going = (change for change in self.of(Process) if change.verb != "add")
        ending = {(c.netns, _argv(c)): c for c in going if self._ends_late(c) is late}
        if not ending:
            return
        for cluster in self.clusters:
            stayed = process.end_programs(cluster, lambda found: (found.netns, found.argv) in ending)
            for pid in stayed:
                self.refuse(next(iter(ending.values())), f"process {pid} does not end")

    def _programs(self) -> list[process.Running]:
        """The programs that run now, where that matters for one of the changes."""
        if not (self.by_type[Process] or self.by_type[File] or self._adds(Netns)):
            return []
        return [found for cluster in self.clusters for found in process.running(cluster)]

    def _adds(self, kind: type) -> list[Change]:
        return [change for change in self.by_type[kind] if change.verb != "delete"]

    def _mark_unread(self, programs: Sequence[process.Running]) -> None:
        """A program of ours may hold sockets in a namespace that is made anew: it will read its file again."""
        adds = self._adds(Netns)
        for program in programs if adds else ():
            for path in map(Path, program.argv):
                if _visits(program) and path.is_relative_to(names.RUN):
                    files.must_be_read(path)
                    self.unread.setdefault(path, (adds[0], []))[1].append(program)

    def _write_files(self, programs: Sequence[process.Running]) -> None:
        for change in self.of(File):
            value = change.value
            assert isinstance(value, File)
            if not files.belongs(value.path, change.netns):
                self.refuse(change, "the path is not one of the namespace's")
                continue
            readers = [found for found in programs if found.netns == change.netns and value.path in found.argv]
            try:
                self._write_file(change, value, readers)
            except OSError as error:
                self.refuse(change, str(error))

    def _write_file(self, change: Change, value: File, readers: list[process.Running]) -> None:
        if change.verb == "delete":
            files.delete(value.path)
            self.unread.pop(Path(value.path), None)
            return
        files.write(value, unread=bool(readers))
        if readers:
            self.unread[Path(value.path)] = (change, readers)

    def _start(self, programs: Sequence[process.Running]) -> list[tuple[Change, process.Started]]:
        there = {(found.netns, found.argv) for found in programs}
        started = []
        for name, _, changes in self.places.each(self._adds(Process)):
            for change in changes:
                value = change.value
                assert isinstance(value, Process)
                if (name, value.argv) in there:
                    continue
                try:
                    started.append((change, process.start(name, value.argv)))
                except OSError as error:
                    self.refuse(change, str(error))
        return started

    def _await(self, started: Iterable[tuple[Change, process.Started]]) -> None:
        """Ours first: they take longer, and tell by themselves."""
        for change, program in sorted(started, key=lambda item: item[1].ready is None):
            reason = process.await_ready(program)
            if reason:
                self.refuse(change, reason)

    def _tell_readers(self, *, visitors: bool) -> None:
        """Ours first, which answer when they live by the new file: what stands before them may only then forget.

        Those that visit other namespaces come when all of them are made.
        """
        told = [
            (path, reader)
            for path, (_, readers) in self.unread.items()
            for reader in readers
            if _visits(reader) is visitors
        ]
        ours = [item for item in told if process.is_ours(item[1].argv)]
        failed = {*self._told(ours), *self._told([item for item in told if item not in ours])}
        for path in {path for path, _ in told} - failed:
            files.has_been_read(path)

    def _told(self, readers: Sequence[tuple[Path, process.Running]]) -> Iterator[Path]:
        """Tells them side by side, and waits for all; the files that were not read."""
        with ThreadPoolExecutor(_WORKERS) as pool:
            reasons = pool.map(lambda item: process.reload(item[1], str(item[0])), readers)
            for (path, _), reason in zip(readers, reasons, strict=True):
                if reason:
                    self.refuse(self.unread[path][0], reason)
                    yield path

    # --- namespaces ---

    def _create_namespaces(self) -> None:
        adds = {change.netns: change for change in self._adds(Netns)}
        if not adds:
            return
        wanted = [(name, _mark(change)) for name, change in adds.items()]
        try:
            self.places.fresh, failures = netns.create(wanted)
        except OSError as why:  # /run/netns itself
            failures = dict.fromkeys(adds, why)
        for name, error in failures.items():
            reason = error.strerror or str(error)
            self.places.shut(name, reason)
            self.refuse(adds[name], reason)

    def _delete_namespaces(self) -> None:
        ours = [name for name, change in self.going.items() if self._may_go(name, change)]
        if ours:
            process.end_inhabitants(ours)
            for cluster in self.clusters:
                process.end_programs(cluster, lambda found: found.netns in self.going)
        for name in ours:
            try:
                files.delete_all(name)
                netns.delete(name)
            except OSError as error:
                self.refuse(self.going[name], str(error))
        if self.going or self.by_type[Netns]:
            for cluster in self.clusters:
                for name in netns.half_made(cluster):
                    netns.delete(name)

    def _may_go(self, name: str, change: Change) -> bool:
        mark = netns.mark_of(name)
        if mark is None or mark == names.mark(name.partition(".")[0]):
            return True
        self.refuse(change, "the namespace does not bear the cluster's mark")
        return False

    # --- sysctls and packet filters ---

    def _write_sysctls(self, *, of_interfaces: bool) -> None:
        some = (change for change in self.of(Sysctl) if sysctl.of_interface(change.value.key[1]) is of_interfaces)
        for name, _, changes in self.places.each(some):
            self._guarded(changes, partial(sysctl.write, name, changes))

    def _write_with(self, write: Callable[[str, Sequence[Change]], list[Refusal]], *kinds: type) -> None:
        """Values that a module of their own writes, namespace by namespace."""
        for name, _, changes in self.places.each(self.of(*kinds)):
            self._guarded(changes, partial(write, name, changes))

    def _guarded_places(self) -> frozenset[str]:
        """Namespaces where something that keeps packets out is written: there all rules stand before links come up."""
        many = ((c.netns, c.value) for c in self.by_type[Chain])
        chains = (netns for netns, v in many if isinstance(v, Chain) and v.name.startswith(names.POLICY_CHAINS))
        return frozenset(chains) | {c.netns for c in self.of(*_NFT, IpSet) if _guards(c.value)}

    def _write_chains(self, where: Callable[[str], bool]) -> None:
        """Sets before the chains that name them, and after those that did; what goes, last."""
        some = [change for change in self.of(Chain, *_NFT, IpSet) if where(change.netns)]
        if not some:
            return
        from nsnet.kernel import ipset, iptables, nftables

        chains, tables, sets = (
            list(self.places.each(change for change in some if isinstance(change.value, kinds)))
            for kinds in (Chain, _NFT, IpSet)
        )
        going = [job for job in tables if any(_is_table_gone(change) for change in job[2])]
        self._one_by_one(ipset.write, sets, lambda change: change.verb != "delete")
        self._side_by_side(nftables.write, [job for job in tables if job not in going])
        self._side_by_side(iptables.write, chains)
        self._side_by_side(nftables.write, going)
        self._one_by_one(ipset.destroy, sets, lambda change: change.verb == "delete")

    def _one_by_one(
        self,
        write: Callable[[str, Sequence[Change]], list[Refusal]],
        jobs: Iterable[tuple[str, object, list[Change]]],
        of: Callable[[Change], bool],
    ) -> None:
        """By netlink alone, which waits for no process."""
        for name, _, changes in jobs:
            mine = [change for change in changes if of(change)]
            self._guarded(mine, partial(write, name, mine))

    def _side_by_side(
        self, write: Callable[[str, Sequence[Change]], list[Refusal]], jobs: Iterable[tuple[str, object, list[Change]]]
    ) -> None:
        with ThreadPoolExecutor(_WORKERS) as pool:
            futures = [(changes, pool.submit(write, name, changes)) for name, _, changes in jobs]
        for changes, future in futures:
            self._guarded(changes, future.result)

    def _guarded(self, changes: Sequence[Change], work: Callable[[], list[Refusal]]) -> None:
        """A failure of the whole work is a refusal of all of it."""
        try:
            self.places.refusals += work()
        except (OSError, NsnetError) as why:
            for change in changes:
                self.refuse(change, str(why))

    def _refuse_others(self) -> None:
        """What is only ever observed cannot be written."""
        for kind, changes in self.by_type.items():
            for change in () if kind in _WRITTEN else changes:
                if change.verb != "delete" or kind not in _OBSERVED:
                    self.refuse(change, f"nothing here writes a value of kind {kind.__name__}")


def _visits(program: process.Running) -> bool:
    """May it hold sockets in namespaces other than its own?"""
    return names.kind_of(program.netns) == "fabric" and process.is_ours(program.argv)


def _guards(value: Value) -> bool:
    """Does it keep packets out that would pass without it? Then it has to stand before a link comes up."""
    match value:
        case IpSet():
            return True
        case NftTable(name=table) | NftChain(table=table) | NftSet(table=table) | NftElement(table=table):
            return table == names.POLICY_TABLE
    return False


def _argv(change: Change) -> tuple[str, ...]:
    assert isinstance(change.value, Process)
    return change.value.argv


def _is_table_gone(change: Change) -> bool:
    return change.verb == "delete" and isinstance(change.value, NftTable)


def _mark(change: Change) -> str:
    assert isinstance(change.value, Netns)
    return change.value.mark
