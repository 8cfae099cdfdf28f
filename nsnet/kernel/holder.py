"""Process 1 of a home without root (rootless.py): furnishes it, buries the dead, ends when nobody lives there any more.

    python -m nsnet.kernel.holder

Who lives there: controllers with their supervisors, and verbs that came in from outside (their parent is not to be
seen from here). With the last of them it ends, and the kernel kills what is left and takes every namespace down; only
the stores stay, in $XDG_STATE_HOME/nsnet.

Furnishing: /proc of the own process namespace; /run, /etc/netns and the state directory are our own. Where such a
directory is not there and cannot be made, the one above is covered by an empty one with links to what was in it.
"""

import os
import select
import signal
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from nsnet import names
from nsnet.kernel import rtnl
from nsnet.kernel.netlink import NETLINK_ROUTE, Netlink
from nsnet.kernel.netns import MS_BIND, MS_MOVE, MS_PRIVATE, MS_REC, mount

MODULE = "nsnet.kernel.holder"
CONTROLLER = b"nsnet.controller"
READY = "ready"
KEPT = ("HOME", "XDG_STATE_HOME")  # of our environment, beside what any program gets
SCRATCH = "/tmp"  # noqa: S108 - any directory that is there
ARRIVAL = 10.0  # s until somebody must have come in
GLANCE = 0.05  # s between two looks until then
HIDDEN = ".host"  # in a covered directory: what it covers
OWN_IN_RUN = ("netns", "nsnet", "xtables.lock")


def state_directory() -> Path | None:
    """Where stores outlive the namespaces: $XDG_STATE_HOME/nsnet; None where we cannot write there."""
    base = Path(os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser())
    directory = base / "nsnet"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    return directory if os.access(directory, os.W_OK | os.X_OK) else None


# --- furnishing -------------------------------------------------------------------------------------------------------


def furnish() -> None:
    """Raises OSError, with the path it is about."""
    stores = state_directory()
    kept = os.open(stores, os.O_PATH | os.O_CLOEXEC) if stores else -1
    mount("none", "/", MS_PRIVATE | MS_REC)
    mount("proc", "/proc", 0, "proc")
    _cover(Path("/run"), without=OWN_IN_RUN)
    _own(names.ETC_NETNS)
    _own(names.STATE)
    if kept >= 0:
        mount(f"/proc/self/fd/{kept}", str(names.STATE), MS_BIND)
        os.close(kept)
    with Netlink(NETLINK_ROUTE) as route:
        route.do(rtnl.up_or_down(rtnl.LO, True))


def _own(directory: Path) -> None:
    """An empty directory of our own in its place."""
    if not directory.is_dir():
        _cover(directory.parent, without=(directory.name,))
        directory.mkdir(mode=0o755)
    mount("tmpfs", str(directory), 0, "tmpfs")
    directory.chmod(0o755)


def _cover(directory: Path, without: Collection[str]) -> None:
    """An empty directory with links to what was in the one there is, but for some of it.

    Made elsewhere and moved there: what is bound after it is covered would bring its cover along.
    """
    mount("tmpfs", SCRATCH, 0, "tmpfs")
    new = Path(SCRATCH)
    new.chmod(0o755)
    hidden = new / HIDDEN
    hidden.mkdir()
    mount(str(directory), str(hidden), MS_BIND | MS_REC)
    for entry in os.scandir(hidden):
        if entry.name not in without:
            (new / entry.name).symlink_to(f"{HIDDEN}/{entry.name}")
    mount(SCRATCH, str(directory), MS_MOVE)


# --- holding ----------------------------------------------------------------------------------------------------------


def hold() -> None:
    """Until nobody lives here any more."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    living = _await_first(reading)
    while living:
        _wait(reading, living)
        living = list(_living())


def _await_first(reading: int) -> list[int]:
    for _ in range(int(ARRIVAL / GLANCE)):
        living = list(_living())
        if living:
            return living
        _wait(reading, (), GLANCE)
    return []


def _living() -> Iterator[int]:
    for name in os.listdir("/proc"):  # noqa: PTH208 - names
        if name.isdigit() and name != "1":
            with suppress(OSError):
                if _came_in(name) or CONTROLLER in Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0"):
                    yield int(name)


def _came_in(pid: str) -> bool:
    """Is its parent outside?"""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    return "\nPPid:\t0\n" in status


def _wait(reading: int, living: Collection[int], timeout: float | None = None) -> None:
    """Until one of these has gone or a child has died, which is buried."""
    handles = []
    for pid in living:
        with suppress(ProcessLookupError):
            handles.append(os.pidfd_open(pid))
    poll = select.poll()
    for fd in (reading, *handles):
        poll.register(fd, select.POLLIN)
    if len(handles) == len(living):
        poll.poll(None if timeout is None else timeout * 1000)
    for handle in handles:
        os.close(handle)
    if select.select([reading], [], [], 0)[0]:
        os.read(reading, 4096)
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def main() -> None:
    ready = int(os.environ.pop("NSNET_READY_FD"))
    try:
        furnish()
    except OSError as error:
        os.write(ready, f"furnishing it: {error}".encode())
        os._exit(1)
    os.chdir("/")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    os.write(ready, READY.encode())
    os.close(ready)
    hold()


if __name__ == "__main__":
    main()
