"""The loop: waits until something may have changed, syncs, and tells whoever waits for it.

What wakes it: the store's socket; notifications of node and fabric namespaces (pods have too many, and what happens to
a pod's link shows at its node's end); pidfds of the programs that run; clients; and time. A hint leads to a look at the
namespace it came from (first of all where a program has ended, for somebody may be waiting for it), a change of the
store to a look at what it touches, and every few seconds everything is looked at. Hints that our own changes caused are
read away after each sync.

Looking must not cost more than a tenth of a processor: after a look that took 0.3 s of processor time, the next that
nobody asked for comes 3 s later at the earliest. Changes of the store and clients never wait for that; what they may
have to wait for is kube-proxy's minSyncPeriod (pace.py).

A sync that fails is an answer for those who wait and a line in the log, and is tried again after 0.2 s … 30 s.
"""

import contextlib
import gc
import json
import math
import os
import selectors
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nsnet import faults, kernel, names, reconcile
from nsnet.control.flannel import lease_name
from nsnet.controller.client import log_path, now, socket_path
from nsnet.controller.leases import Keeper
from nsnet.controller.pace import RESYNC, Pace, pace
from nsnet.errors import InputError, NsnetError
from nsnet.kernel import health, notify, process
from nsnet.kernel.netns import identity
from nsnet.model import Node, cluster_of, of
from nsnet.reconcile import BusyError, Memory, Report
from nsnet.render import machines
from nsnet.scopes import LISTENERS, WHOLE
from nsnet.state import Change, Key, Netns, Refusal
from nsnet.store import Store, Unreachable, known, location, opening
from nsnet.store.keys import CLUSTERS, GONE
from nsnet.store.members import Member

SHARE = 0.1  # of one processor, for looks that nobody asked for
DEBOUNCE = 0.05  # seconds in which further hints are awaited
BUSY = 0.05  # seconds until the lock is asked for again
POLL = 0.5  # seconds until the store is asked whether a wake-up was lost
RETRY_FIRST, RETRY_LAST = 0.2, 30.0
PATIENCE = 1.0  # for an etcd that does not answer: what stands has to be looked after meanwhile
LOG_BYTES = 1 << 20
LINE_BYTES, CLIENTS = 4096, 64

Hints = dict[str, frozenset[Key]]


def run(cluster: str) -> int:
    """Runs the cluster's controller until the cluster is gone (0).

    3 when another controller is running; 1 when that cannot be, as with a store that nobody can open: whoever starts us
    tries again.
    """
    os.umask(0o077)
    try:
        return _life(cluster)
    except NsnetError as error:
        _log(cluster, f"ends: {error}")
        return 1


def _life(cluster: str) -> int:
    try:
        opened = _opened(cluster)
    except InputError:
        if not _was_taken_down(cluster):
            raise
    else:
        with contextlib.closing(opened) as store:
            if not _live(cluster, store):
                return 3
        if not _was_taken_down(cluster):
            return 0
    with reconcile.lock(cluster):
        reconcile.destroy(cluster)
    return 0


def _live(cluster: str, store: Store) -> bool:
    """One loop until its end; False where another controller is running."""
    with contextlib.ExitStack() as stack:
        server = _listen(socket_path(cluster))
        if server is None:
            _log(cluster, "another controller is running")
            return False
        stack.enter_context(contextlib.closing(server))
        loop = Loop(cluster, store, server)
        stack.enter_context(contextlib.closing(loop))
        _tell_ready()
        _log(cluster, f"controller {os.getpid()} runs")
        why = loop.run()
        _log(cluster, f"ends: {why}")
        if loop.member is not None:
            with contextlib.suppress(NsnetError):
                loop.member.leave()
    return True


def _was_taken_down(cluster: str) -> bool:
    """Was it on another machine that `nsnet down` was typed? Then what this one carries goes, too."""
    at = location.here(cluster)
    if not at.machine or at.store in {location.SQLITE, location.INSIDE}:
        return False
    from nsnet.store.etcd import EtcdStore

    with contextlib.suppress(NsnetError), EtcdStore(location.location(cluster, at.store), PATIENCE) as store:
        return store.get(GONE) is not None
    return False


def _opened(cluster: str) -> Store:
    """The store. The cluster's own etcd is made to stand where it does not; whoever starts us may hold the lock."""
    with contextlib.suppress(Unreachable):
        return opening.open_store(cluster, patience=PATIENCE)
    with reconcile.lock(cluster):
        reconcile.furnish(cluster)
    return opening.open_store(cluster, patience=PATIENCE)


def _listen(path: Path) -> socket.socket | None:
    """The socket for clients; None where a living controller has it. What a dead one left is replaced."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            with contextlib.suppress(TimeoutError):  # it is busy
                probe.connect(str(path))
            return None
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    server.bind(str(path))  # mode 0600 by the umask
    server.listen(CLIENTS)
    return server


def _tell_ready() -> None:
    ready = os.environ.pop("NSNET_READY_FD", "")
    if ready.isdigit():
        with contextlib.suppress(OSError):
            os.write(int(ready), b"!")
            os.close(int(ready))


def _settle() -> None:
    """What a whole look left behind stays: no later collection of garbage goes through all objects once more."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


class Client:
    """A connection: what it said so far, and the revision it waits for."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.said = b""
        self.wanted: int | None = None

    def answer(self, what: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self.socket.send(json.dumps(what).encode() + b"\n")
        self.socket.close()


class Loop:
    """Everything the controller knows may be dropped at any time: `memory` is a cache, the rest are sockets."""

    def __init__(self, cluster: str, store: Store, server: socket.socket) -> None:
        self.cluster = cluster
        self.store = store
        self.server = server
        self.memory: Memory | None = None
        self.revision = -1  # reached by the last good sync
        self.error: NsnetError | None = None
        self.failures = 0
        self.changes = self.drift = 0
        self.syncs = self.looks = 0  # of these syncs, those that looked at everything
        self.started = now()
        self.cost = 0.0  # processor seconds of the last look
        self.pace = Pace()
        self.ended = -math.inf  # when the last sync did
        self.hints: Hints = {}
        self.urgent = False  # a program has ended: its namespace is looked at before anything else
        self.clients: set[Client] = set()
        self.sockets: dict[str, socket.socket] = {}  # namespace → its notifications
        self.places: dict[str, object] = {}  # namespace → which one it was when subscribed to
        self.rooms = reconcile.rooms()._replace(apply=self._apply)
        self.programs: dict[int, tuple[int, str]] = {}  # pid → pidfd, namespace
        self.shared = location.here(cluster).store != location.SQLITE
        self.keeper = Keeper()
        self.garbage: set[str] = set()  # what stands in the store and is no object, as far as the log says it
        at = location.here(cluster)
        self.member = Member(store, at.machine, at.id) if at.machine else None
        self.health: socket.socket | None = None  # on which the balancer's checks tell of a change
        self.selector = selectors.EpollSelector()
        self.due = self.resync = time.monotonic()
        self.selector.register(server, selectors.EVENT_READ, self._accept)
        self.selector.register(store, selectors.EVENT_READ, lambda: None)

    def run(self) -> str:
        """Waits and syncs; returns why it ended."""
        while True:
            self._wait()
            why = self._gone()
            if why:
                return why
            if time.monotonic() >= min(self.due, self.resync):
                self._sync()

    def close(self) -> None:
        for client in self.clients:
            client.answer({"error": "the controller ends", "exit_code": 1})
        for listener in self.sockets.values():
            listener.close()
        for handle, _ in self.programs.values():
            os.close(handle)
        if self.health is not None:
            self.health.close()
        self.selector.close()
        socket_path(self.cluster).unlink(missing_ok=True)

    # --- waiting ------------------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        left = min(self.due, self.resync) - time.monotonic()
        with contextlib.suppress(NsnetError):  # the sync meets it, too
            self._beat()
        for key, _ in self.selector.select(max(0.0, min(left, POLL))):
            handler: Callable[[], None] = key.data
            handler()
        try:
            if self.store.wait(0):
                self.due = self._soonest()  # also while syncs fail: this may be the cure
        except NsnetError:  # a sync meets it, too, answers who waits, and has the patience
            self._soon(POLL)
        for netns in [netns for netns, place in self.places.items() if place != identity(netns)]:
            self._unsubscribe(netns)
            self._hint(netns, 0)

    def _beat(self) -> None:
        """Says to the other machines that we are here."""
        if self.member is not None and self.member.due() and not isinstance(self.error, Unreachable):
            self.member.beat()

    def _soonest(self) -> float:
        return max(time.monotonic(), self.ended + self.pace.soonest)

    def _soon(self, seconds: float) -> None:
        """A sync that was asked for; while syncs fail, it does not come before its time."""
        if not self.failures:
            self.due = min(self.due, time.monotonic() + seconds)

    def _hint(self, netns: str, seconds: float) -> None:
        self.hints[netns] = WHOLE
        self._soon(seconds)

    def _gone(self) -> str:
        if self.store.gone():
            return "the cluster's store is gone"
        if not names.run_dir(self.cluster).is_dir():
            return "the cluster's run directory is gone"
        if isinstance(self.error, Unreachable):
            return ""
        with contextlib.suppress(NsnetError):  # a store that cannot be read is not gone
            if not self.store.list(CLUSTERS)[0]:
                return "the store holds no cluster any more"
        return ""

    # --- syncing ------------------------------------------------------------------------------------------------------

    def _sync(self) -> None:
        whole = self.memory is None or (time.monotonic() >= self.resync and not self.urgent)
        hints, self.hints, self.urgent = self.hints, {}, False
        began, cpu = time.monotonic(), _cpu()
        try:
            with reconcile.lock(self.cluster, timeout=0):
                if self.store.gone():
                    return
                if self.memory is None:
                    reconcile.furnish(self.cluster)
                with contextlib.suppress(Unreachable):  # the sync meets it, too
                    self._beat()
                report = reconcile.sync(
                    self.store,
                    self.cluster,
                    only=None if whole else hints,
                    memory=self.memory,
                    using=self.rooms,
                    member=self.member,
                )
        except BusyError:
            self.hints = hints | self.hints
            self.due = self.resync = time.monotonic() + BUSY
            return
        except NsnetError as error:
            self._failed(error)
        except Exception as error:  # noqa: BLE001 - one bad sync must not end the loop
            _log(self.cluster, "".join(traceback.format_exception(error)))
            self._failed(NsnetError(f"{type(error).__name__}: {error}", f"read {log_path(self.cluster)}"))
        else:
            self._reached(report, whole, time.monotonic() - began)
            if whole:
                _settle()
            if whole and not report.changes:
                self.cost = _cpu() - cpu
        self.ended = time.monotonic()
        self._plan(whole)
        self._answer()
        self._watch()
        self._keep_leases()

    def _keep_leases(self) -> None:
        """flannel's, of the nodes that are here."""
        if not self.shared or self.memory is None or not self.keeper.due():
            return
        places, machine = machines.of_nodes(cluster_of(self.memory.objects)), location.here(self.cluster).machine
        nodes = [node for node in of(self.memory.objects, Node) if places.get(node.metadata.name, "") == machine]
        subnets = {name for node in nodes if (name := lease_name(node.spec.podCIDRs))}
        try:
            if self.keeper.keep(self.store, subnets):
                self.due = time.monotonic()  # the revision is another one now
        except NsnetError as error:
            _log(self.cluster, f"leases could not be renewed: {error}")

    def _apply(self, changes: Sequence[Change]) -> list[Refusal]:
        """An open socket keeps its namespace alive: those of namespaces that are to go are closed before."""
        for change in changes:
            if change.verb == "delete" and isinstance(change.value, Netns) and change.netns in self.sockets:
                self._unsubscribe(change.netns)
        return kernel.apply(changes)

    def _reached(self, report: Report, whole: bool, seconds: float) -> None:
        if report.unreachable is not None:
            self._failed(report.unreachable, report.memory)
        elif self.error is not None:
            _log(self.cluster, "the sync succeeds again")
        for line in report.garbage:
            if line not in self.garbage:
                _log(self.cluster, f"warning: skipped what is no object of ours: {line}")
        self.garbage.update(report.garbage)
        self.changes += report.changes
        if report.revision == self.revision:
            self.drift += report.changes
        if report.changes:
            look = "everything" if whole else "what was touched"
            _log(self.cluster, f"revision {report.revision}: {report.changes} changes, {seconds:.3f} s, saw {look}")
            for line in report.lines:
                _log(self.cluster, f"    {line}")
        self.syncs += 1
        self.looks += whole
        if report.unreachable is None:
            self.memory, self.revision, self.pace = report.memory, report.revision, pace(report.memory.objects)
            self.error, self.failures = None, 0
            known.forget(self.cluster)

    def _failed(self, error: NsnetError, memory: Memory | None = None) -> None:
        """`memory`: what may be kept of what was known, where it is the store alone that fails."""
        if self.error is None or str(self.error) != str(error):
            _log(self.cluster, f"the sync failed: {error}")
        if isinstance(error, Unreachable) and memory is not None and not isinstance(self.error, Unreachable):
            known.keep(self.cluster, memory.objects, memory.revision)
        self.error, self.memory = error, memory
        self.failures += 1

    def _plan(self, whole: bool) -> None:
        """When to look again if nobody asks: so that looking costs at most its share; after a failure with patience."""
        now = time.monotonic()
        self.due = math.inf
        if self.failures:
            self.due = self.resync = now + min(RETRY_FIRST * 2 ** min(self.failures - 1, 16), RETRY_LAST)
        elif whole:
            self.resync = now + max(self.pace.latest, self.cost / SHARE)
        self.due = min([self.due, *(now + seconds for seconds in self._ends())])
        if self.member is not None and (left := self.member.patience()):
            self.due = min(self.due, now + left)

    def _ends(self) -> list[float]:
        """In how many seconds faults end by themselves."""
        objects = self.memory.objects if self.memory else {}
        return [max(0.0, end.timestamp() - time.time()) for end in faults.ends(objects)]

    def _answer(self) -> None:
        """Tells those whose revision is reached; where the sync failed all: what they wrote was there when it began."""
        failed = self.error is not None
        for client in [client for client in self.clients if client.wanted is not None]:
            if failed or (client.wanted or 0) <= self.revision:
                self._reply(client, self._outcome())

    def _outcome(self) -> dict[str, Any]:
        if self.error is None:
            return {"ok": True, "revision": self.revision, "changes": self.changes}
        return {"error": str(self.error), "hint": self.error.hint, "exit_code": self.error.exit_code}

    # --- what is watched ----------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Subscribes to what is there now; what our own changes made the sockets say is read away."""
        if self.memory is None:
            return
        want = self.memory.want
        wanted = {netns for netns in want if names.kind_of(netns) in {"node", "fabric"}}
        for netns in self.sockets.keys() - wanted:
            self._unsubscribe(netns)
        for netns in wanted - self.sockets.keys():
            self._subscribe(netns)
        for netns in list(self.sockets):
            self._read(netns)
        self._watch_programs()
        self._watch_health()

    def _subscribe(self, netns: str) -> None:
        with contextlib.suppress(OSError):
            listener = notify.subscribe(netns)
            self.sockets[netns], self.places[netns] = listener, identity(netns)
            self.selector.register(listener, selectors.EVENT_READ, lambda: self._notified(netns))

    def _unsubscribe(self, netns: str) -> None:
        listener = self.sockets.pop(netns)
        del self.places[netns]
        self.selector.unregister(listener)
        listener.close()

    def _notified(self, netns: str) -> None:
        if netns in self.sockets and self._read(netns):
            self._hint(netns, max(DEBOUNCE, min(self.cost / SHARE, RESYNC)))

    def _read(self, netns: str) -> bool:
        try:
            return notify.changed(self.sockets[netns])
        except OSError:
            self._unsubscribe(netns)
            return True

    def _watch_health(self) -> None:
        if self.health is None:
            self.health = health.watch(self.cluster)
            if self.health is not None:
                self.selector.register(self.health, selectors.EVENT_READ, self._health_changed)

    def _health_changed(self) -> None:
        """What it says is asked for when the nodes' listeners are looked at. Its end is seen as any program's is."""
        assert self.health is not None
        said = b""
        with contextlib.suppress(OSError):
            said = self.health.recv(1 << 16)
        if not said:
            self.selector.unregister(self.health)
            self.health.close()
            self.health = None
            return
        for netns in self.memory.want if self.memory else ():
            if names.kind_of(netns) == "node":
                self.hints.setdefault(netns, LISTENERS)
        self._soon(0)

    def _watch_programs(self) -> None:
        living = {found.pid: found.netns for found in process.running(self.cluster)}
        for pid in self.programs.keys() - living.keys():  # ended by the sync, or while it looked elsewhere
            self._hint(self._forget(pid), 0)
        for pid in living.keys() - self.programs.keys():
            with contextlib.suppress(ProcessLookupError):
                handle = os.pidfd_open(pid)
                self.programs[pid] = handle, living[pid]
                self.selector.register(handle, selectors.EVENT_READ, self._when_dead(pid))

    def _when_dead(self, pid: int) -> Callable[[], None]:
        def died() -> None:
            netns = self._forget(pid)
            _log(self.cluster, f"process {pid} in {netns} has ended")
            self.urgent = True
            self._hint(netns, 0)

        return died

    def _forget(self, pid: int) -> str:
        """Where it was."""
        handle, netns = self.programs.pop(pid)
        self.selector.unregister(handle)
        os.close(handle)
        return netns

    # --- clients ------------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self.server.accept()
            connection.setblocking(False)
            if len(self.clients) >= CLIENTS:
                connection.close()
                return
            client = Client(connection)
            self.clients.add(client)
            self.selector.register(connection, selectors.EVENT_READ, lambda: self._listen_to(client))

    def _listen_to(self, client: Client) -> None:
        part = b""
        with contextlib.suppress(OSError):
            part = client.socket.recv(LINE_BYTES)
        client.said += part
        if part and b"\n" not in client.said and len(client.said) < LINE_BYTES:
            return
        self.selector.unregister(client.socket)
        if b"\n" in client.said:
            self._asked(client)
        else:
            self.clients.discard(client)
            client.socket.close()

    def _asked(self, client: Client) -> None:
        match _parsed(client.said):
            case {"converge": int(revision)} if self.error is None and revision <= self.revision:
                self._reply(client, self._outcome())
            case {"converge": int(revision)}:
                client.wanted = revision
                self.due = min(self.due, self._soonest())  # also while syncs fail: somebody waits for an answer
            case {"status": True}:
                self._reply(client, self._status())
            case _:
                self._reply(client, {"error": "not a question that a controller answers", "exit_code": 6})

    def _reply(self, client: Client, what: dict[str, Any]) -> None:
        self.clients.discard(client)
        client.answer(what)

    def _status(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "started": self.started,
            "revision": self.revision,
            "changes": self.changes,
            "error": str(self.error or ""),
            "drift": self.drift,
            "syncs": self.syncs,
            "looks": self.looks,
            "look": round(self.cost, 3),
            "watched": len(self.sockets) + len(self.programs),
        }


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _cpu() -> float:
    """Processor seconds of this process and of the tools it has run."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _log(cluster: str, line: str) -> None:
    """One line in the log; a log of a megabyte is put aside first (everybody who has it open appends)."""
    with contextlib.suppress(OSError):
        log = log_path(cluster)
        if log.stat().st_size > LOG_BYTES:
            shutil.copyfile(log, log.with_suffix(".log.1"))
            os.truncate(log, 0)
    with contextlib.suppress(OSError):  # a log that cannot be written must not end the controller
        sys.stderr.write(f"{now()} {line}\n")
        sys.stderr.flush()
