"""Clusters without root: a user namespace in which we are root, with a mount, network and process namespace of its own.

    nsnet --rootless VERB …
      └ is there a home (holder.py) of ours? else fork → user namespace → the others → fork → the holder, its process 1
      └ fork → into the holder's namespaces → fork → the verb, root of what is inside, and of nothing else

A home is found in /proc by its command line and owner, as controllers are; nothing else tells of it. It ends with the
last controller and the last verb inside, and takes all that is left there with it. A user has one, with every cluster.

Both forks are needed: who enters a user namespace cannot come back, and only children are in the process namespace.

Sources: user_namespaces(7), pid_namespaces(7), setns(2) (a pidfd, since Linux 5.8), ioctl_nsfs(2).
"""

import ctypes
import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from nsnet.errors import MachineError
from nsnet.kernel import holder, process
from nsnet.kernel.features import Finding
from nsnet.kernel.netns import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    move_to,
    unshare,
)

INNER = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS
NS_GET_PARENT = 0xB702

PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None)

INSIDE = "NSNET_INSIDE_ROOTLESS"  # in the environment of what runs in a home
GONE = 125  # how the process in between tells that the home ended just now
TRIES = 5
PASSED_ON = (signal.SIGTERM, signal.SIGHUP)

SWITCHES = (  # file, what it says where user namespaces are off, the command that switches them on
    ("/proc/sys/user/max_user_namespaces", "0", "sudo sysctl -w user.max_user_namespaces=10000"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sudo sysctl -w kernel.unprivileged_userns_clone=1"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    ),
)


def enter() -> None:
    """From here on we are in our home, which is made where there is none; whoever called us waits, and ends as we do.

    Returns in a new process. To be called before there are threads. Raises MachineError where this machine does not
    allow it.
    """
    if INSIDE in os.environ:
        return
    for _ in range(TRIES):
        with _one_at_a_time():
            home = find() or _make()
        between = os.fork()
        if not between:
            _go_in(home)  # returns in the verb's own process
            return
        code = _outlive(between)
        if code != GONE:
            os._exit(code)
    raise MachineError("the namespaces of --rootless end as soon as they are made", "please report it")


def user_namespaces() -> Finding:
    """May somebody without root make a user namespace here, and be root in it? Asked by trying."""
    child = os.fork()
    if not child:
        with suppress(OSError):
            _be_root_inside()
            unshare(CLONE_NEWNS | CLONE_NEWNET)
            os._exit(0)
        os._exit(1)
    ok = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return Finding("user namespaces", ok, _switch(), "nsnet --rootless: clusters without root", needed=False)


def _switch() -> str:
    """The command that switches them on."""
    for path, off, command in SWITCHES:
        with suppress(OSError):
            if Path(path).read_text().strip() == off:
                return command
    if not Path("/proc/self/ns/user").exists():
        return "kernel option CONFIG_USER_NS"
    return "outside a container, or in one that allows it (a seccomp profile may forbid unshare and mount)"


# --- the one there is -------------------------------------------------------------------------------------------------


def find() -> int:
    """The process 1 of our home; 0 where there is none."""
    for name in os.listdir("/proc"):  # noqa: PTH208 - names
        if name.isdigit() and _is_home(int(name)):
            return int(name)
    return 0


def _is_home(pid: int) -> bool:
    """A holder of ours, in a process namespace right below our own."""
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if holder.MODULE.encode() not in argv or Path(f"/proc/{pid}").stat().st_uid != os.getuid():
            return False
        with Path(f"/proc/{pid}/ns/pid").open("rb") as inner:
            above = fcntl.ioctl(inner, NS_GET_PARENT)
    except OSError:
        return False
    try:
        return os.path.samestat(os.fstat(above), Path("/proc/self/ns/pid").stat())
    finally:
        os.close(above)


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Two verbs at once shall not make two homes. Where we may write nowhere nothing can be locked."""
    directory = holder.state_directory()
    if directory is None:
        yield
        return
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


# --- making it --------------------------------------------------------------------------------------------------------


def _make() -> int:
    """The process 1 of a new home. Raises MachineError."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        _become_home(writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        words = told.read().decode(errors="replace")
    os.waitpid(child, 0)
    if words != holder.READY:
        raise MachineError(f"user namespaces are not to be had: {words or 'the kernel ended it'}", _switch())
    found = find()
    if not found:
        raise MachineError("the namespaces of --rootless ended at once", _switch())
    return found


def _become_home(writing: int) -> NoReturn:
    """In a process of its own: namespaces, and the holder as their process 1. Says on the pipe what went wrong."""
    step = "a user namespace"
    try:
        os.setsid()
        _be_root_inside()
        step = "mount, network and process namespaces in it"
        unshare(INNER)
        if os.fork():
            os._exit(0)
        os.set_inheritable(writing, True)
        env = process.environment(*holder.KEPT) | {"NSNET_READY_FD": str(writing)}
        os.execve(sys.executable, [sys.executable, "-m", holder.MODULE], env)  # noqa: S606 - no shell is the point
    except OSError as error:
        os.write(writing, f"{step}: {error.strerror or error}".encode())
    os._exit(1)


def _be_root_inside() -> None:
    """A user namespace in which our user and group are root's, the only ones there. Raises OSError."""
    user, group = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path(f"/proc/self/{name}").write_text(text, encoding="ascii")


# --- going in ---------------------------------------------------------------------------------------------------------


def _go_in(home: int) -> None:
    """In the process in between: enters, and returns in a child that is inside; ends as that does."""
    at = _working_directory()
    try:
        move_to(home, CLONE_NEWUSER | INNER)
        verb = os.fork()
    except OSError:
        os._exit(GONE)
    _end_with_parent()
    if verb:
        os._exit(_outlive(verb))
    with suppress(OSError):
        os.chdir(at)  # entering a mount namespace leads to its root
    os.environ.pop("NSNET_ROOTLESS", None)
    os.environ[INSIDE] = "1"


def _end_with_parent() -> None:
    """Whoever kills the one who waits ends us as well. To be said inside: who enters a user namespace forgets it."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _working_directory() -> Path:
    try:
        return Path.cwd()
    except OSError:  # somebody has removed it
        return Path("/")


def _pass_on(child: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it has gone, and we are about to
        os.kill(child, number)


def _outlive(child: int) -> int:
    """Waits for the child, passing on what ends us; a Ctrl-C reaches it by itself. Its exit code."""
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    for number in PASSED_ON:
        signal.signal(number, lambda got, _: _pass_on(child, got))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else 128 - code
