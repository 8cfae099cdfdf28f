"""sync(): ask the kernel what is there, write the difference to what is wanted, and look again until nothing differs.

    store ─→ objects ─render→ want ┐  with the faults among the objects
                                   ├─diff→ changes ─apply→ kernel ─┐
    kernel ──────────────observe→ have                             │ look again
      ↑            listeners in it │                               │
      │                            └─control→ objects changed? save, render, once more
      └────────────────────────────────────────────────────────────┘

The order matters. What is wanted and missing is made *before* readiness is computed: a pod server that died is started
again, and `apply` returns when its sockets are open, so its death never empties a Service. A look proves each namespace
after its last change; the second look is the same reading and the same comparison as the first (nmstate's verify).

What the store holds is what `control.complete` left there (verbs complete before they write), so it can be rendered.

Where nothing but rules and files change, the files of pods are written while the rules are still being read: what they
say (names, mostly) is not later than it has to be.

A whole look costs a third of a second for 300 pods, so whoever syncs again and again (the controller) hands in the last
report's `memory` and names what to look at: that, and what the changes of the objects since can touch, is all that is
read then. Chains that are written whole whatever stands there are read after that, and not before. Packet filters of
several thousand values that were written at once are not read back at once, which would take half as long again: a
transaction is whole or nothing. The memory is a cache of pure results; from time to time everything is looked at again
without it having any say in what differs: the kernel has the last word.

Rules are asked for a connection's first packet only, so a last step follows them: UDP conntrack entries that still lead
to an endpoint of before are deleted, in nodes whose rules were written and at every whole look. Nothing remembers which
those are; the objects and the entries say it. In a cluster with `policy.flushConntrack` the entries of what a policy
denies go with them, of every protocol.

What is broken on purpose is no exception to all this: a Fault among the objects changes what is wanted (`wanted`), or
holds keys that `diff` then skips. It ends by not being there.

One writer: whoever holds the cluster's lock (`locking.py`). What a look is limited to: `scopes.py`.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple, TypeVar

import msgspec

from nsnet import names
from nsnet.errors import MachineError, NotReachedError
from nsnet.garbage import uncollected
from nsnet.locking import BusyError, lock
from nsnet.model import LACKS, Fault, Key, Object, Objects, cluster_of, indexed, key_of, of
from nsnet.scopes import (
    FILTERS,
    LOAD,
    WHOLE,
    Listening,
    Rewritten,
    heard,
    loaded,
    merged,
    narrowed,
    released,
    rewritten_chains,
    scope_of,
    union,
    with_filters,
    with_listeners,
    without_filters,
)
from nsnet.state import (
    FILTER_KINDS,
    Change,
    Hold,
    Netns,
    Refusal,
    Scope,
    State,
    Value,
    is_held,
)
from nsnet.store import Conflict, Store, Unreachable, location
from nsnet.store.members import Member
from nsnet.store.objects import differ, differences, load_objects, refresh, save_differences

__all__ = [
    "FLOWS", "BusyError", "Listening", "Memory", "Progress", "Report", "Rooms", "Wanted", "completed", "destroy",
    "furnish", "furniture", "lock", "member", "nothing_left", "possible", "quiet", "rooms", "sync", "wanted",
]  # fmt: skip

T = TypeVar("T")
Progress = Callable[[str, int], None]  # the phase that begins, and how many things it is about (0: not known)

ROUNDS = 12
SHOWN = 5  # refusals that an error names
FLOWS = frozenset({("conntrack",)})


def _no_flows(_objects: Objects) -> Mapping[str, Any]:
    return {}


def _none_stale(_flows: Mapping[str, Any], _have: State) -> list[Change]:
    return []


def _no_holds(_objects: Objects) -> frozenset[Hold]:
    return frozenset()


class Rooms(NamedTuple):
    """The rooms a sync goes through; tests may furnish their own. `render` is `wanted`, with what is broken on purpose.

    `complete` says what follows from the objects once the kernel is as they want it.
    """

    observe: Callable[..., Mapping[str, frozenset[Value]]]
    apply: Callable[[Sequence[Change]], list[Refusal]]
    render: Callable[[Objects], State]
    complete: Callable[[Objects, Listening], dict[Key, Object]]
    diff: Callable[..., list[Change]]
    touched: Callable[[State, State], Scope]
    flows: Callable[[Objects], Mapping[str, Any]] = _no_flows  # netns → what `stale` compares its UDP entries with
    stale: Callable[[Mapping[str, Any], State], list[Change]] = _none_stale
    holds: Callable[[Objects], frozenset[Hold]] = _no_holds  # what nobody touches


class Memory(NamedTuple):
    """What the last sync ended with: pure results and the listeners it saw. May be dropped at any time."""

    objects: dict[Key, Object]
    revision: int
    want: State
    listening: Listening
    holds: frozenset[Hold] = frozenset()


class Report(msgspec.Struct, frozen=True):
    """How a sync went. `seconds` per phase: store, observe, control, render, diff, apply."""

    revision: int
    rounds: int
    changes: int
    refusals: tuple[Refusal, ...]
    seconds: dict[str, float]
    memory: Memory
    lines: tuple[str, ...] = ()  # the first few changes, for a log
    unreachable: Unreachable | None = None  # the store, so that this went by what was last known of it
    garbage: tuple[str, ...] = ()  # what was found in the store and is no object, each a sentence


def rooms() -> Rooms:
    """The real rooms."""
    from nsnet import diff, faults, kernel
    from nsnet.render import conntrack

    def complete(objects: Objects, listening: Listening) -> dict[Key, Object]:
        """A damage is done when nothing else is left to do: its values are held from then on."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        found = completed(objects, listening, now)
        return found if differ(objects, found) else dict(faults.marked(found))

    def render(objects: Objects) -> State:
        return wanted(objects).state

    def holds(objects: Objects) -> frozenset[Hold]:
        return wanted(objects).holds if of(objects, Fault) else frozenset()

    return Rooms(
        kernel.observe,
        kernel.apply,
        render,
        complete,
        partial(diff.diff, sort_up_to=LOAD),
        diff.touched,
        conntrack.flows,
        conntrack.stale,
        holds,
    )


class Wanted(NamedTuple):
    """What shall stand on the machine, and what is left alone whatever it is."""

    state: State
    holds: frozenset[Hold] = frozenset()


def wanted(objects: Objects) -> Wanted:
    """What follows from completed objects for the kernel, with the faults that stand among them."""
    from nsnet import faults, render

    cluster = cluster_of(objects).metadata.name
    healthy = {**render.render(faults.asked(objects), location.here(cluster).machine), **furniture(cluster)}
    return Wanted(faults.broken(healthy, objects), faults.holds(healthy, objects))


def furniture(cluster: str) -> State:
    """What shall stand whatever the objects say: the etcd in which they do, if the cluster has one of its own."""
    from nsnet.render import etcd

    if location.here(cluster).store != location.INSIDE:
        return {}
    return dict([etcd.values(cluster, str(location.etcd_dir(cluster)))])


def furnish(cluster: str) -> None:
    """Makes that stand, before the store is opened. Whoever calls holds the lock. Raises NotReachedError."""
    from nsnet import diff, kernel

    want = furniture(cluster)
    scope: Scope = dict.fromkeys(want, WHOLE)
    refusals = kernel.apply(diff.diff(kernel.observe(cluster, only=scope), want, only=scope)) if want else []
    if refusals:
        raise NotReachedError(_sentences(refusals), "`nsnet logs etcd` shows what it says")


def completed(
    objects: Objects, listening: Listening | None, now: str, subnets: Mapping[str, str] | None = None
) -> dict[Key, Object]:
    """`control.complete`, with what faults do to what it makes; those whose time is over are gone."""
    from nsnet import control, faults

    standing = faults.standing(objects, now)
    return dict(
        faults.derived(control.complete(standing, control.Facts(listening, now, os.urandom(32), subnets or {})))
    )


def member(store: Store, cluster: str) -> Member | None:
    """This machine, for a sync that is not the controller's: it tells nothing and has no charge."""
    at = location.here(cluster)
    return Member(store, at.machine, at.id) if at.machine else None


def quiet(_phase: str, _count: int) -> None: ...


# --- before anything is done ------------------------------------------------------------------------------------------


def possible(objects: Objects) -> dict[Key, Object]:
    """The objects, if this machine can be what they want; asked before they are stored.

    What can be left out is, and the Cluster says so from then on. Raises MachineError (what the kernel lacks, by its
    option), ObjectError as render does. Needs root.
    """
    from nsnet.kernel import demands, features

    whole = _lacking(objects, "")
    lacking = demands.lacking(wanted(whole).state)
    without = "sctp" if any(item.name == features.SCTP for item in lacking) else ""
    needed = [item for item in lacking if item.name != features.SCTP]
    if needed:
        first, *more = needed
        why = f" ({first.why})" if first.why else ""
        further = f", nor {', '.join(item.name for item in more)}" if more else ""
        raise MachineError(f"this machine has no {first.name}{why}{further}; nothing was changed", first.mend)
    return _lacking(whole, without)


def _lacking(objects: Objects, what: str) -> dict[Key, Object]:
    """The objects, with a Cluster that says what its kernel lacks."""
    cluster = cluster_of(objects)
    annotations = {name: said for name, said in cluster.metadata.annotations.items() if name != LACKS}
    annotations |= {LACKS: what} if what else {}
    if annotations == cluster.metadata.annotations:
        return dict(objects)
    meta = msgspec.structs.replace(cluster.metadata, annotations=annotations)
    return {**objects, key_of(cluster): msgspec.structs.replace(cluster, metadata=meta)}


@contextlib.contextmanager
def nothing_left(store: Store, cluster: str) -> Iterator[None]:
    """Whatever ends the first writing of a store, before it, leaves no empty store behind."""
    try:
        yield
    finally:
        if store.revision() == 0:
            shutil.rmtree(names.state_dir(cluster), ignore_errors=True)


# --- sync -------------------------------------------------------------------------------------------------------------


def sync(
    store: Store,
    cluster: str,
    *,
    only: Scope | None = None,
    memory: Memory | None = None,
    progress: Progress = quiet,
    using: Rooms | None = None,
    member: Member | None = None,
) -> Report:
    """Brings the kernel to what the store says; whoever calls holds the lock.

    `member` is this machine, where the cluster is spread over several: whoever is in charge does control, by what all
    of them hear, and the others tell what they hear.

    Looks at everything; with `only` (and the `memory` of the last sync) at what that names and at what the changes of
    the objects since can touch. Raises NotReachedError where the kernel refuses the same change twice or nothing
    settles; and what control raises.
    """
    with uncollected():
        return _Sync(store, cluster, using or rooms(), progress, member).run(only, memory)


class _Sync:
    """One run: the rooms, and how long each took."""

    def __init__(
        self, store: Store, cluster: str, using: Rooms, progress: Progress, member: Member | None = None
    ) -> None:
        self.member = member
        self.store = store
        self.cluster = cluster
        self.rooms = using
        self.progress = progress
        self.seconds: dict[str, float] = {}
        self.count = 0
        self.lines: list[str] = []
        self.refusals: list[Refusal] = []
        self.refused: set[Any] = set()
        self.filtered: set[str] = set()  # namespaces whose packet filters were written, or no longer held
        self.unreachable: Unreachable | None = None
        self.garbage: list[str] = []
        self.holds: frozenset[Hold] = frozenset()
        self.made: set[str] = set()  # namespaces that were not there before: no connection is older than their rules

    def run(self, only: Scope | None, memory: Memory | None) -> Report:
        objects, revision = self._load(memory)
        scope: Scope | None = None
        old: State = {}
        before: Listening = {}
        if only is None or memory is None:
            want = self._render(objects)
        else:
            old, before = memory.want, memory.listening
            want = self._rendered_again(objects, memory)
            scope = union(only, self._timed("diff", self.rooms.touched, old, want))
            scope = union(scope, self._released(memory.holds))
        have = self._first_look(scope, old, want)
        listening = heard(have, scope, before)
        for number in range(1, ROUNDS + 1):
            changes = self._diff(have, want, scope, old)
            if changes:
                self._apply(changes)
                have, scope, listening = self._look_again(changes, have, want, scope, listening)
                continue
            completed = self._completed(objects, listening, revision)
            puts = self._timed("control", differences, objects, completed) if completed is not None else {}
            if completed is None or not puts:
                if completed is not None:
                    self._tell(listening, revision)
                self._forget_flows(objects, None if scope is None else self.filtered)
                return self._report(number, Memory(objects, revision, want, listening, self.holds))
            objects, revision = self._save(objects, completed, puts, revision)
            held = self.holds
            old, want = want, self._render(objects)
            if scope is not None:
                scope = self._timed("diff", self.rooms.touched, old, want)
                scope = union(scope, self._released(held))
                have = self._first_look(scope, old, want)
                listening = heard(have, scope, listening)
        raise self._unsettled(changes)

    def _completed(self, objects: dict[Key, Object], listening: Listening, revision: int) -> dict[Key, Object] | None:
        """What control makes of it; None where that has to wait, or is another machine's to do."""
        if self.unreachable is not None:
            return None
        self._tell(listening, revision)
        if self.member is not None:
            try:
                if not self.member.in_charge():
                    return None
                everywhere = self.member.heard(listening)
            except Unreachable as error:
                self.unreachable = error
                return None
            if everywhere is None:
                return None
            listening = everywhere
        return self._timed("control", self.rooms.complete, objects, listening)

    def _tell(self, listening: Listening, revision: int) -> None:
        """The other machines: who listens here, what the kernel has followed, and of whom control has heard."""
        if self.member is None or self.unreachable is not None:
            return
        try:
            self.member.tell(listening, revision)
        except Unreachable as error:
            self.unreachable = error

    def _first_look(self, scope: Scope | None, old: State, want: State) -> State:
        """While the rules of nodes are read, what programs in pods read is written: names need not wait for them.

        At ten thousand Services it takes a tenth of a second to read the rules that have to change.
        """
        rewritten = self._timed("diff", rewritten_chains, scope or {}, old, want)
        ahead = _written_ahead(scope or {}, rewritten)
        if not ahead:
            return self._read(scope, rewritten)
        with ThreadPoolExecutor(1) as beside:
            files = beside.submit(self._write_ahead, ahead, old, want)
            rules = self._read({netns: keys for netns, keys in (scope or {}).items() if netns not in ahead}, rewritten)
        return {**rules, **files.result()}

    def _write_ahead(self, scope: Scope, old: State, want: State) -> State:
        have = self._observe(scope)
        changes = self._diff(have, want, scope, old)
        if not changes:
            return have
        self._apply(changes)
        return self._observe(scope)

    def _read(self, scope: Scope | None, rewritten: Mapping[str, "Rewritten"]) -> State:
        """Reads the scope, but for chains that are written whole whatever stands there: the next look has those."""
        if scope is None or not rewritten:
            return self._observe(scope)
        less = {netns: (scope[netns] - chains.keys) | {("netns",)} for netns, chains in rewritten.items()}
        seen = self._observe({**scope, **less})
        return {**seen, **{netns: seen[netns] | rewritten[netns].old for netns in rewritten.keys() & seen.keys()}}

    def _released(self, held: Collection[Hold]) -> Scope:
        """Where holds have ended since: all is looked at, and kube-proxy (if it was that) cleans up."""
        scope = released(held, self.holds)
        self.filtered.update(scope)
        return scope

    def _look_again(
        self, changes: Sequence[Change], have: State, want: State, scope: Scope | None, listening: Listening
    ) -> tuple[State, Scope | None, Listening]:
        """Reads again what the changes can have touched."""
        loads = loaded(changes) - {netns for _, netns, _ in self.refused}
        if scope is not None:
            known = frozenset(netns for netns, keys in scope.items() if not keys)
            further = scope_of(change for change in changes if change.netns not in known)
            scope = with_listeners(changes, want, union(scope, further))
            seen = with_filters(self._observe(without_filters(scope, loads)), want, loads)
            return seen, scope, heard(seen, scope, listening)
        again = with_listeners(changes, want, {change.netns: WHOLE for change in changes})
        seen = with_filters(self._observe(without_filters(again, loads)), want, loads)
        have = merged(have, seen, again)
        return have, None, heard(have, None, {})

    def _forget_flows(self, objects: Objects, places: Collection[str] | None) -> None:
        """Deletes conntrack entries to endpoints of before, and where it is asked for those of what policies deny.

        In these namespaces; None: wherever there may be any.

        The rules must stand by then, or the next packet would bring back what was deleted.
        """
        if places is not None and not places:
            return
        flows = self._timed("render", self.rooms.flows, objects)
        looked_at = (netns for netns in flows if (places is None or netns in places) and netns not in self.made)
        scope = {netns: _asked(flows[netns]) for netns in looked_at}
        if not scope:
            return
        stale = self._timed("diff", self.rooms.stale, flows, self._observe(scope))
        stale = [change for change in stale if not is_held(self.holds, change.netns, change.value.key)]
        if stale:
            self._apply(stale)

    def _load(self, memory: Memory | None) -> tuple[dict[Key, Object], int]:
        self.progress("store", 0)
        objects: Objects
        if memory is None:
            objects, revision = self._timed("store", load_objects, self.store, self.garbage.append)
        else:
            try:
                objects, revision = self._timed(
                    "store", refresh, self.store, memory.objects, memory.revision, self.garbage.append
                )
            except Unreachable as error:  # what stands is kept as it was last wanted; what control makes of it waits
                self.unreachable = error
                objects, revision = memory.objects, memory.revision
        return indexed(objects), revision

    def _render(self, objects: Objects) -> State:
        self.progress("render", len(objects))
        self.holds = self._timed("render", self.rooms.holds, objects)
        return self._timed("render", self.rooms.render, objects)

    def _rendered_again(self, objects: dict[Key, Object], memory: Memory) -> State:
        """What was wanted of these very objects is wanted still: another machine's word alone may have woken us."""
        if objects is not memory.objects:
            return self._render(objects)
        self.holds = memory.holds
        return memory.want

    def _observe(self, scope: Scope | None) -> State:
        self.progress("observe", 0 if scope is None else len(scope))
        if scope is not None and not scope:
            return {}
        return self._timed("observe", self.rooms.observe, self.cluster, only=scope)

    def _diff(self, have: State, want: State, scope: Scope | None, old: State) -> list[Change]:
        aim = want if scope is None else narrowed(have, want, scope, old)
        return self._timed("diff", self.rooms.diff, have, aim, only=scope, holds=self.holds)

    def _apply(self, changes: Sequence[Change]) -> None:
        self.progress("apply", len(changes))
        self.count += len(changes)
        self.filtered.update(change.netns for change in changes if isinstance(change.value, FILTERS))
        self.made.update(change.netns for change in changes if isinstance(change.value, Netns) and change.verb == "add")
        self.lines += [str(change).split("\n")[0] for change in changes[: SHOWN - len(self.lines)]]
        refusals = self._timed("apply", self.rooms.apply, changes)
        again = [refusal for refusal in refusals if _identity(refusal.change) in self.refused]
        if again:
            raise NotReachedError(_sentences(again), "`nsnet doctor` says what this machine lacks")
        self.refused = {_identity(refusal.change) for refusal in refusals}
        self.refusals += refusals

    def _save(
        self, before: dict[Key, Object], after: dict[Key, Object], puts: Mapping[str, bytes | None], revision: int
    ) -> tuple[dict[Key, Object], int]:
        """Writes what control made of it; where somebody else wrote meanwhile, takes that instead."""
        claim = self.member.claim if self.member else None
        try:
            written = self._timed("store", save_differences, self.store, before, puts, revision, claim)
            if written > revision + 1:  # others may have written in between what no fence guards: a flanneld, a person
                now = self._timed("store", refresh, self.store, after, revision, self.garbage.append, puts)
                return indexed(now[0]), now[1]
            return indexed(after), written
        except Conflict:
            objects, revision = self._timed("store", refresh, self.store, before, revision, self.garbage.append)
            return indexed(objects), revision

    def _timed(self, phase: str, function: Callable[..., T], *args: Any, **named: Any) -> T:
        start = time.perf_counter()
        try:
            return function(*args, **named)
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    def _report(self, rounds: int, memory: Memory) -> Report:
        refusals = tuple(self.refusals)
        told = tuple(self.lines)
        found = (memory.revision, rounds, self.count, refusals, self.seconds, memory, told, self.unreachable)
        return Report(*found, tuple(self.garbage))

    def _unsettled(self, changes: Sequence[Change]) -> NotReachedError:
        first = str(changes[0]).split("\n")[0] if changes else "the objects"
        return NotReachedError(
            f"after {ROUNDS} rounds something still changes by itself: {first}",
            "is another program changing the cluster's namespaces?",
        )


def _written_ahead(scope: Scope, rewritten: Mapping[str, "Rewritten"]) -> Scope:
    """Namespaces in which only files change, where all else that changes is rules; there the order does not matter."""
    kinds = {netns: {key[0] for key in keys} for netns, keys in scope.items()}
    if not all(kinds.values()) or not set().union(*kinds.values()) <= {"file", *FILTER_KINDS}:
        return {}
    unread = (keys - rewritten[netns].keys if netns in rewritten else keys for netns, keys in scope.items())
    if not any(key[0] in FILTER_KINDS for keys in unread for key in keys):
        return {}  # the rules are written at once, and names beside them
    return {netns: keys for netns, keys in scope.items() if kinds[netns] == {"file"} and names.kind_of(netns) == "pod"}


def _asked(flow: object) -> frozenset[tuple[str, ...]]:
    """The kinds of entries that these flows judge: UDP alone, where they do not say."""
    return frozenset(("conntrack", protocol) for protocol in getattr(flow, "protocols", ())) or FLOWS


def _identity(change: Change) -> tuple[str, str, tuple[str, ...]]:
    return change.verb, change.netns, change.value.key


def _sentences(refusals: Sequence[Refusal]) -> str:
    more = f"\nand {len(refusals) - SHOWN} more" if len(refusals) > SHOWN else ""
    return "\n".join(str(refusal) for refusal in refusals[:SHOWN]) + more


# --- down -------------------------------------------------------------------------------------------------------------


def destroy(cluster: str, *, timeout: float = 10.0) -> bool:
    """Removes everything of the cluster: namespaces, processes, files, and then its state directory.

    Needs no store; nothing there is success. Whoever calls holds the lock and has stopped the controller. Waits at most
    `timeout` seconds until the kernel has taken down every link; returns whether it has. Raises NotReachedError where
    something of the cluster is left.
    """
    from nsnet.kernel import destroy, teardown

    gone = destroy(cluster, timeout=timeout)
    left = teardown.left(cluster)
    if left:
        more = f"\nand {len(left) - SHOWN} more" if len(left) > SHOWN else ""
        raise NotReachedError(
            "\n".join(f"still there: {line}" for line in left[:SHOWN]) + more, "run `nsnet down` again"
        )
    shutil.rmtree(names.state_dir(cluster), ignore_errors=True)
    return gone
