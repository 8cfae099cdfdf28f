"""Processes inside namespaces: seen in /proc, started, told to read their file again, ended.

There are no pid files. A program of ours is whoever leads a session and carries NSNET_NETNS=<netns> in its environment
(so a person's shell inside the namespace, or a child of the program, is none); its argv says which one it is. The
inode of /proc/PID/ns/net says where it really is: one whose namespace has lost its name (somebody deleted it and it was
made anew) still counts as a copy, so that `copies` is never the wanted 1 and it is ended and started again.

A program says that it is ready by a byte on the descriptor NSNET_READY_FD (`ksft_wait` of the kernel's selftests does
the same), so nobody sleeps and hopes. It is told that its file has changed on the socket FILE.sock and answers when it
lives by the new one. Programs of others (dnsmasq) are ready when they listen, and get SIGHUP.

Ending goes by pidfd, so a number that has been given to another process in the meantime is never signalled.
"""

import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from nsnet import names
from nsnet.kernel import netns as namespaces
from nsnet.kernel import sockdiag
from nsnet.state import Process

READY = 30.0  # s until a started program must be ready, on a busy machine too
RELOAD = 30.0  # s until it must live by its new file
LISTENING = 10.0  # s until a program of others must listen
GLANCE = 0.005  # s between two looks at whether it does
PATIENCE = 3.0  # s between SIGTERM and SIGKILL

KEPT = ("PATH", "LANG", "LC_ALL", "TZ", "PYTHONDONTWRITEBYTECODE")  # of our environment
PACKAGES = Path(__file__).parents[2]  # where this very nsnet lies

_CLUSTER, _NETNS, _READY_FD = "NSNET_CLUSTER", "NSNET_NETNS", "NSNET_READY_FD"
_OURS = "nsnet.programs."
_LAST_WORDS = 2000  # bytes of a log that are looked at for the reason of a failure

Identity = tuple[int, int]  # device and inode of a namespace


class Running(NamedTuple):
    """A program of ours. `place` is where it is, `netns` the name it was started for."""

    pid: int
    netns: str
    argv: tuple[str, ...]
    place: Identity


# --- who is there ---------------------------------------------------------------------------------------------------


def _pids() -> Iterator[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isdigit())  # noqa: PTH208 - iterdir is 5 times slower


def _place(pid: int) -> Identity | None:
    """The network namespace of a process; None when it is gone (a zombie is in none)."""
    try:
        about = Path(f"/proc/{pid}/ns/net").stat()
    except OSError:
        return None
    return about.st_dev, about.st_ino


def _read(pid: int, what: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes()
    except OSError:
        return b""


def words(pid: int, what: str) -> tuple[str, ...]:
    """Its `cmdline` or `environ`; empty when it is gone."""
    return tuple(word.decode(errors="surrogateescape") for word in _read(pid, what).split(b"\0")[:-1])


def _is_leader(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except OSError:
        return False


def _program(pid: int, cluster: str) -> Running | None:
    if not _is_leader(pid):
        return None
    mark = f"{_NETNS}={cluster}.".encode()
    found = next((word for word in _read(pid, "environ").split(b"\0") if word.startswith(mark)), None)
    argv, place = words(pid, "cmdline"), _place(pid)
    if found is None or not argv or place is None:
        return None
    return Running(pid, found.decode(errors="surrogateescape").partition("=")[2], argv, place)


def _is_still(program: Running) -> bool:
    """Is its pid that program's, and not given to another since?"""
    now = _program(program.pid, program.netns.partition(".")[0])
    return now is not None and now.argv == program.argv


def all_descriptors() -> None:
    """As many files for us as the system lets us have; the soft limit is only a default."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def running(cluster: str) -> list[Running]:
    """The programs that were started for the cluster, wherever they are now."""
    return [found for pid in _pids() if (found := _program(pid, cluster)) is not None]


def observe(cluster: str) -> dict[str, frozenset[Process]]:
    """Namespace → its programs, each argv once, with how many run."""
    copies: defaultdict[str, defaultdict[tuple[str, ...], list[Identity]]] = defaultdict(lambda: defaultdict(list))
    for found in running(cluster):
        copies[found.netns][found.argv].append(found.place)
    places = _Places(cluster)
    return {
        netns: frozenset(Process(argv, _copies(at, netns, places)) for argv, at in programs.items())
        for netns, programs in copies.items()
    }


class _Places:
    """Where the cluster's namespaces are; asked only for what is needed."""

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster
        self._known: dict[str, Identity | None] = {}

    def of(self, netns: str) -> Identity | None:
        if netns not in self._known:
            self._known[netns] = namespaces.identity(netns)
        return self._known[netns]

    def all(self) -> set[Identity | None]:
        return {self.of(netns) for netns in namespaces.candidates(self._cluster)}


def _copies(at: Collection[Identity], netns: str, places: _Places) -> int:
    """How many run; 0 when all that run are lost, in a namespace that has no name any more.

    The pod server visits other namespaces to open its sockets: in one of the cluster's it is not lost.
    """
    elsewhere = [place for place in at if place != places.of(netns)]
    lost = len([place for place in elsewhere if place not in places.all()]) if elsewhere else 0
    return 0 if lost == len(at) else len(at)


def inhabitants(netnses: Iterable[str]) -> list[int]:
    """Every process whose network namespace is one of these, whoever started it; never ourselves."""
    places = {namespaces.identity(netns) for netns in netnses} - {None}
    return [pid for pid in _pids() if pid != os.getpid() and _place(pid) in places] if places else []


# --- ending ---------------------------------------------------------------------------------------------------------


def end(pids: Iterable[int], still: Callable[[int], bool]) -> list[int]:
    """Ends processes: SIGTERM to all, then SIGKILL for those that stay. Returns those that did not go even then.

    `still` is asked again with the process held fast: is that pid (still) what it was listed for?
    """
    held = dict(_hold(pids, still))
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for handle in held.values():
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, number)
            _await_end(held, PATIENCE)
        return list(held)
    finally:
        for handle in held.values():
            os.close(handle)


def _hold(pids: Iterable[int], still: Callable[[int], bool]) -> Iterator[tuple[int, int]]:
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        if still(pid):
            yield pid, handle
        else:
            os.close(handle)


def _await_end(held: dict[int, int], timeout: float) -> None:
    """Takes those that end within `timeout` seconds out of `held`."""
    poll = select.poll()
    pids = {handle: pid for pid, handle in held.items()}
    for handle in pids:
        poll.register(handle, select.POLLIN)
    deadline = time.monotonic() + timeout
    while held:
        ended = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        for handle, _ in ended:
            poll.unregister(handle)
            del held[pids[handle]]
            os.close(handle)
        if not ended:
            return


def end_programs(cluster: str, which: Callable[[Running], bool]) -> list[Running]:
    """Ends those programs of the cluster that `which` names; those that stayed."""
    chosen = {found.pid: found for found in running(cluster) if which(found)}
    return [chosen[pid] for pid in end(chosen, lambda pid: _is_still(chosen[pid]))]


def end_inhabitants(netnses: Collection[str]) -> list[int]:
    """Ends everything inside these namespaces; the pids that stayed.

    Looked at twice: another nsnet that only looks around is in a namespace for some microseconds.
    """
    places = {namespaces.identity(netns) for netns in netnses} - {None}
    return end(inhabitants(netnses), lambda pid: _place(pid) in places)


# --- starting -------------------------------------------------------------------------------------------------------


class Started(NamedTuple):
    """A program that has been started and may not be ready yet."""

    process: subprocess.Popen[bytes]
    ready: int | None  # the reading end of its NSNET_READY_FD, if it speaks that
    log: Path
    netns: str = ""


def name_of(argv: tuple[str, ...]) -> str:
    """`podserver` for `python -m nsnet.programs.podserver`, else the tool's own name."""
    return _module(argv).removeprefix(_OURS) if is_ours(argv) else Path(argv[0]).name


def _module(argv: tuple[str, ...]) -> str:
    return argv[argv.index("-m") + 1] if "-m" in argv[:-1] else ""


def is_ours(argv: tuple[str, ...]) -> bool:
    """Whether the program is one of `nsnet.programs`, which tell when they are ready."""
    return _module(argv).startswith(_OURS)


def log_of(netns: str, argv: tuple[str, ...]) -> Path:
    """One per program; each pod has its own."""
    cluster, _, rest = netns.partition(".")
    directory = names.run_dir(cluster) / "log"
    return (directory / rest if names.kind_of(netns) == "pod" else directory) / f"{name_of(argv)}.log"


def start(netns: str, argv: tuple[str, ...]) -> Started:
    """Starts a program inside the namespace, leader of its own session. Raises OSError when it cannot be run."""
    log = log_of(netns, argv)
    _make_private(log.parent)
    reading, writing = os.pipe() if is_ours(argv) else (None, None)
    try:
        with open(log, "ab", opener=private) as output, namespaces.inside(netns):
            process = subprocess.Popen(
                argv,
                executable=shutil.which(argv[0]) or argv[0],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                umask=0o077,  # what it makes in the run directory is private
                env=_environment(netns, writing),
                pass_fds=() if writing is None else (writing,),
                start_new_session=True,
            )
    except BaseException:
        if reading is not None:
            os.close(reading)
        raise
    finally:
        if writing is not None:
            os.close(writing)
    threading.Thread(target=process.wait, daemon=True, name=f"reap {process.pid}").start()  # else it stays a zombie
    return Started(process, reading, log, netns)


def _make_private(directory: Path) -> None:
    above = [each for each in directory.parents if each.is_relative_to(names.RUN)]
    for each in (*reversed(above), directory):
        each.mkdir(mode=0o700, parents=True, exist_ok=True)


def private(path: str, flags: int) -> int:
    """Opens a file that is ours alone, as open() asks it of an `opener`."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def environment(*further: str) -> dict[str, str]:
    """What runs on when we have ended begins with: little, so that nothing of a user's shell leaks into it.

    `further`: names that are kept, too.
    """
    kept = {name: value for name, value in os.environ.items() if name in {*KEPT, *further}}
    return {**kept, "PYTHONPATH": str(PACKAGES)}


def _environment(netns: str, ready: int | None) -> Mapping[str, str]:
    own = {_CLUSTER: netns.partition(".")[0], _NETNS: netns}
    return environment() | own | ({} if ready is None else {_READY_FD: str(ready)})


def await_ready(started: Started) -> str:
    """Waits until the program says that it is ready: empty, or why it will not be. One that is not ready is ended."""
    if started.ready is None:
        return _await_listening(started)
    try:
        return _await_byte(started, started.ready, READY)
    finally:
        os.close(started.ready)


def _await_byte(started: Started, ready: int, timeout: float) -> str:
    poll = select.poll()  # select() ends at descriptor 1023
    poll.register(ready, select.POLLIN)
    if not poll.poll(timeout * 1000):
        _finish(started.process)
        return f"not ready after {timeout:g} s{_last_words(started.log)}"
    if os.read(ready, 1):
        return ""
    with suppress(subprocess.TimeoutExpired):
        started.process.wait(PATIENCE)
    _finish(started.process)
    return f"ended before it was ready, {_status(started.process.returncode)}{_last_words(started.log)}"


def _await_listening(started: Started) -> str:
    """The same for a program that does not speak that: it is ready when it takes TCP connections."""
    deadline = time.monotonic() + LISTENING
    while time.monotonic() < deadline:
        if _listens(started):
            return ""
        with suppress(subprocess.TimeoutExpired):
            started.process.wait(GLANCE)
            return f"ended at once, {_status(started.process.returncode)}{_last_words(started.log)}"
    _finish(started.process)
    return f"does not listen after {LISTENING:g} s{_last_words(started.log)}"


def _listens(started: Started) -> bool:
    """Is one of its sockets among those that listen in its namespace?"""
    try:
        with namespaces.inside(started.netns):
            diag = sockdiag.socket()
    except OSError:
        return False
    with diag:
        listening = {f"socket:[{inode}]" for inode in sockdiag.taking_connections(diag)}
    return bool(listening) and not listening.isdisjoint(_descriptors(started.process.pid))


def _descriptors(pid: int) -> Iterator[str]:
    with suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            with suppress(OSError):
                yield os.readlink(entry.path)  # noqa: PTH115 - a socket is no path


def _finish(program: subprocess.Popen[bytes]) -> None:
    """Ends a program that will not be ready, and waits until it has gone."""
    program.kill()
    with suppress(subprocess.TimeoutExpired):
        program.wait(PATIENCE)


def _status(code: int | None) -> str:
    if code is None:
        return "and does not go"
    return f"status {code}" if code >= 0 else f"by {signal.Signals(-code).name}"


def _last_words(log: Path) -> str:
    """The last line of the log, which mostly is the reason."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LAST_WORDS))
            words = file.read().decode(errors="replace").strip()
    except OSError:
        return ""
    return f": {words.splitlines()[-1]}" if words else f"; see {log}"


# --- the file it reads ----------------------------------------------------------------------------------------------


def reload(program: Running, path: str) -> str:
    """Tells a program that the file it reads has changed: empty once it lives by it, or why not.

    One that is stopped (SIGSTOP, a debugger) cannot answer, and nobody waits for it: its SIGHUP does, until it goes on.
    """
    if not is_ours(program.argv) or _is_stopped(program.pid):
        _hang_up(program)
        return ""
    try:
        return _ask(Path(f"{path}.sock"), b"reload\n", RELOAD)
    except OSError as error:
        return f"{name_of(program.argv)} does not answer: {error.strerror or error}"


def _hang_up(program: Running) -> None:
    for _, handle in _hold([program.pid], lambda _: _is_still(program)):
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGHUP)
        os.close(handle)


def _is_stopped(pid: int) -> bool:
    """Linux `proc_pid_stat(5)`: the state stands behind the name, which is in brackets."""
    return _read(pid, "stat").rpartition(b") ")[2][:1] in (b"T", b"t")


def status(path: str, timeout: float) -> str:
    """What a program of ours says of the file it reads: empty where all is well, or where nobody answers."""
    try:
        return _ask(Path(f"{path}.sock"), b"status\n", timeout)
    except OSError:
        return ""


def _ask(at: Path, question: bytes, timeout: float) -> str:
    """Says a line to a unix socket; empty for `ok`, else the answer. By its directory, since paths end at 108 bytes."""
    directory = os.open(at.parent, os.O_PATH | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(timeout)
            client.connect(f"/proc/self/fd/{directory}/{at.name}")
            client.sendall(question)
            with client.makefile("rb") as answers:
                answer = answers.readline(_LAST_WORDS).decode(errors="replace").strip()
    finally:
        os.close(directory)
    return "" if answer == "ok" else answer or "the connection was closed"
