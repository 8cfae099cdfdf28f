"""Network namespaces: create, delete, list, enter. The only setns(), unshare() and mount() of the project.

A namespace is known by its name in /run/netns, where `ip netns` and every other tool look for it, and is ours only when
its `lo` bears the cluster's mark as an alias. The mark is set before the name appears, so a name that leads to a
namespace without the mark is somebody else's and is never touched; and a name that leads nowhere (a plain file: its
maker was killed between the file and the mount, or between the unmount and the unlink) is a leftover of ours or of
`ip netns`, which fails on it too.

Entering moves the calling thread only, and `inside` always brings it back. A socket belongs for ever to the namespace
it was opened in, so nothing here stays inside longer than it takes to open one.

The kernel takes namespaces down behind the back of whoever dropped the last reference (0.7 s for 1,000 pods). `Witness`
says when it is over: an open directory under /proc/PID/net belongs to that namespace's tree without holding the
namespace, and the tree loses its entries after the devices have been unregistered (`cleanup_net` lets device
operations exit before subsystems).

Sources: iproute2 `ip/ipnetns.c`, Linux `net/core/net_namespace.c`, `fs/proc/proc_net.c`.
"""

import ctypes
import errno
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from nsnet import names
from nsnet.kernel import rtnl
from nsnet.kernel.netlink import NETLINK_ROUTE, Netlink

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_BIND, MS_MOVE, MS_REC = 0x1, 0x1000, 0x2000, 0x4000
MS_PRIVATE, MS_SLAVE, MS_SHARED = 0x40000, 0x80000, 0x100000
MNT_DETACH = 2

_HERE = "/proc/thread-self/ns/net"
_WITNESS = "/proc/thread-self/net/stat"  # the directory, and the entry in it that IPv4 routing puts there
_ENTRY = "rt_cache"
_POLL = 0.005  # s; the kernel has no event for the end of a namespace

_libc = ctypes.CDLL(None, use_errno=True)
_libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)
_libc.unshare.argtypes = (ctypes.c_int,)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


def _oserror(call: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{call}: {os.strerror(code)}")


def setns(fd: int, kind: int = CLONE_NEWNET) -> None:
    """Moves the calling thread into the namespace of `fd`. Use `inside`, which brings it back."""
    if _libc.setns(fd, kind) < 0:
        raise _oserror("setns")


def unshare(kind: int) -> None:
    if _libc.unshare(kind) < 0:
        raise _oserror("unshare")


def mount(source: str, target: str, flags: int, kind: str = "none") -> None:
    if _libc.mount(source.encode(), target.encode(), kind.encode(), flags, None) < 0:
        raise _oserror(f"mount {target}")


def umount(target: str, flags: int = 0) -> None:
    if _libc.umount2(target.encode(), flags) < 0:
        raise _oserror(f"umount {target}")


def path_of(name: str) -> str:
    return f"{names.NETNS}/{name}"


def open_fd(name: str) -> int:
    """A descriptor of the namespace; it keeps the namespace alive until it is closed. Raises FileNotFoundError."""
    return os.open(path_of(name), os.O_RDONLY | os.O_CLOEXEC)


@contextmanager
def _returning() -> Iterator[None]:
    """Whatever happens inside, the thread is afterwards in the namespace it was in before."""
    home = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        setns(home)
        os.close(home)


@contextmanager
def inside(where: str | int) -> Iterator[None]:
    """Runs the block in a namespace, given by its name in /run/netns or by a descriptor, and returns home.

    Raises FileNotFoundError for a name that is not there and OSError (EINVAL) for one that leads to no namespace.
    """
    fd = open_fd(where) if isinstance(where, str) else where
    try:
        with _returning():
            setns(fd)
            yield
    finally:
        if isinstance(where, str):
            os.close(fd)


def move_to(pid: int, kinds: int) -> None:
    """Moves this process, which has one thread, into namespaces of another, for good. Raises OSError."""
    handle = os.pidfd_open(pid)
    try:
        setns(handle, kinds)
    finally:
        os.close(handle)


@contextmanager
def throw_away() -> Iterator[None]:
    """Runs the block in a network namespace of its own, which is gone afterwards. Raises OSError without the right."""
    with _returning():
        unshare(CLONE_NEWNET)
        yield


def netlink(where: str | int, protocol: int = NETLINK_ROUTE) -> Netlink:
    """A netlink socket of that namespace, for a thread that stays where it is."""
    with inside(where):
        return Netlink(protocol)


# --- whose is it ----------------------------------------------------------------------------------------------------


def candidates(cluster: str) -> list[str]:
    """The names in /run/netns that have the form of the cluster's, ours or not, sorted."""
    return sorted(name for name in _there() if name.startswith(f"{cluster}.") and names.kind_of(name))


def _there() -> list[str]:
    try:
        return os.listdir(names.NETNS)  # noqa: PTH208 - of a thousand, a Path each costs more than the look
    except FileNotFoundError:
        return []


def mark_of(name: str) -> str | None:
    """The alias of `lo` in that namespace; None when the name leads to no namespace."""
    try:
        with netlink(name) as route:
            return rtnl.interface(route.get(rtnl.GET_LO)).alias
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise


def listing(cluster: str) -> list[str]:
    """The namespaces that bear the cluster's mark, sorted."""
    mark = names.mark(cluster)
    return [name for name in candidates(cluster) if mark_of(name) == mark]


def clusters() -> set[str]:
    """The clusters that some namespace in /run/netns bears the mark of."""
    possible = {name.partition(".")[0] for name in _there() if names.kind_of(name)}
    return {
        cluster for cluster in possible if any(mark_of(name) == names.mark(cluster) for name in candidates(cluster))
    }


def identity(name: str) -> tuple[int, int] | None:
    """Device and inode of the namespace, as /proc/PID/ns/net shows them; None when the name leads to no namespace."""
    try:
        there, around = (names.NETNS / name).stat(), names.NETNS.stat()
    except FileNotFoundError:
        return None
    return None if there.st_dev == around.st_dev else (there.st_dev, there.st_ino)


def half_made(cluster: str) -> list[str]:
    """Names of the cluster's form that lead to no namespace: leftovers of a create or delete that was killed."""
    return [name for name in candidates(cluster) if identity(name) is None]


# --- create and delete ----------------------------------------------------------------------------------------------


def create(wanted: Iterable[tuple[str, str]]) -> tuple[set[str], dict[str, OSError]]:
    """Makes namespaces, given as (name, mark), each with `lo` up: which are new, and what could not be made, by name.

    One that is there and bears the mark is in neither. FileExistsError: the name leads to somebody else's namespace.
    """
    made: set[str] = set()
    failures: dict[str, OSError] = {}
    _prepare()
    with _returning():
        for name, mark in wanted:
            try:
                if _create(name, mark):
                    made.add(name)
            except OSError as error:
                failures[name] = error
    return made, failures


def _prepare() -> None:
    """/run/netns as `ip netns add` prepares it: a shared mount, so that other mount namespaces follow."""
    directory = str(names.NETNS)
    names.NETNS.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        mount("", directory, MS_SHARED | MS_REC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        mount(directory, directory, MS_BIND | MS_REC)
        mount("", directory, MS_SHARED | MS_REC)


def _create(name: str, mark: str) -> bool:
    """Whether it was necessary."""
    if identity(name) is not None:
        if mark_of(name) != mark:
            raise FileExistsError(errno.EEXIST, f"{path_of(name)} leads to a namespace that does not bear {mark!r}")
        return False
    unshare(CLONE_NEWNET)
    with Netlink(NETLINK_ROUTE) as route:
        route.do(rtnl.marked(mark))
    if names.kind_of(name) != "pod":
        _without_ipv6()
    os.close(os.open(path_of(name), os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o444))
    mount(_HERE, path_of(name), MS_BIND)
    return True


def _without_ipv6() -> None:
    """Devices that come later start without IPv6 (`rtnl.py` says why).

    A write costs the more, the more namespaces there are: a pod has one device, which gets the same by netlink.
    """
    with suppress(FileNotFoundError):  # the machine has no IPv6
        fd = os.open("/proc/sys/net/ipv6/conf/default/disable_ipv6", os.O_WRONLY)
        try:
            os.write(fd, b"1")
        finally:
            os.close(fd)


def delete(name: str) -> None:
    """Drops the name. The namespace goes when nothing else holds it (a process or socket inside, a descriptor)."""
    path = path_of(name)
    with suppress(FileNotFoundError):
        while identity(name) is not None:
            umount(path, MNT_DETACH)
        (names.NETNS / name).unlink()


def tidy() -> None:
    """Undoes what `_prepare` did to /run/netns once nobody has a name in it."""
    directory = str(names.NETNS)
    with suppress(OSError):  # not there, not empty, not a mount of its own: all as it should be
        if not _there() and _is_bind_of_itself(directory):
            umount(directory)


def _is_bind_of_itself(directory: str) -> bool:
    """Whether the directory is a mount of its own that shows a folder of the file system around it."""
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    rows = [row.split() for row in mounts.splitlines()]
    return any(row[4] == directory and row[3] != "/" for row in rows)


# --- when it is really gone -----------------------------------------------------------------------------------------


class Witness:
    """Says when namespaces, once dropped, are really gone with all their links. Holds no namespace alive."""

    def __init__(self) -> None:
        self._trees: list[int] = []

    def watch(self, name: str) -> None:
        """Begins to watch a namespace that is there. Raises OSError, also when no descriptor is left for it."""
        with inside(name):
            self._trees.append(os.open(_WITNESS, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

    def wait(self, timeout: float) -> bool:
        """Waits at most `timeout` seconds; whether all watched namespaces are gone. Watches none afterwards."""
        deadline = time.monotonic() + timeout
        try:
            while self._trees:
                while self._trees and _is_over(self._trees[-1]):
                    os.close(self._trees.pop())
                if self._trees and time.monotonic() > deadline:
                    return False
                if self._trees:
                    time.sleep(_POLL)
            return True
        finally:
            self.close()

    def close(self) -> None:
        _close(self._trees)
        self._trees = []


def _is_over(tree: int) -> bool:
    try:
        os.stat(_ENTRY, dir_fd=tree)
    except FileNotFoundError:
        return True
    return False


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
