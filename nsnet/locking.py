"""One writer: whoever holds the cluster's `lock`.

It is a lock on a file outside the cluster's own run directory, so that `down` can remove that; the kernel drops it when
its holder dies, however that happens.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nsnet import names
from nsnet.errors import MachineError, NotReachedError


class BusyError(NotReachedError):
    """Another nsnet works on the cluster, and the time to wait for it is over."""


@contextlib.contextmanager
def lock(cluster: str, *, waiting: Callable[[int], None] | None = None, timeout: float | None = None) -> Iterator[None]:
    """Holds the cluster's lock. `waiting` is told (the holder's pid, 0 if not known) when somebody else has it.

    Raises BusyError after `timeout` seconds (None: waits for ever); MachineError where /run/nsnet cannot be written.
    Never wait for the controller (`controller.converge`) while holding it: the controller waits for the lock.
    """
    path = names.RUN / f"{cluster}.lock"
    try:
        fd = _acquire(path, waiting, timeout)
    except OSError as error:
        raise MachineError(f"cannot lock {path}: {error.strerror}", "run it as root") from error
    try:
        yield
    finally:
        if _is_at(fd, path):
            path.unlink()  # still held: who waits for it sees afterwards that it is not there any more, and opens anew
        os.close(fd)
        with contextlib.suppress(OSError):
            path.parent.rmdir()  # when nothing of any cluster is in it


def _acquire(path: Path, waiting: Callable[[int], None] | None, timeout: float | None) -> int:
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        with contextlib.suppress(FileNotFoundError, FileExistsError):  # the directory goes away or comes just now
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                waiting = _flock(fd, waiting, deadline, path)
                if _is_at(fd, path):
                    os.truncate(fd, 0)
                    os.pwrite(fd, b"%d\n" % os.getpid(), 0)
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)


def _flock(
    fd: int, waiting: Callable[[int], None] | None, deadline: float | None, path: Path
) -> Callable[[int], None] | None:
    """Locks; returns `waiting` if it has not been called yet."""
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is not None:
                waiting(_holder(fd))
                waiting = None
            if deadline is None:
                fcntl.flock(fd, fcntl.LOCK_EX)
                return waiting
            if time.monotonic() >= deadline:
                raise BusyError(
                    f"another nsnet (pid {_holder(fd)}) is changing cluster {path.stem}", "try again when it is done"
                ) from None
            time.sleep(0.02)
        else:
            return waiting


def _holder(fd: int) -> int:
    said = os.pread(fd, 32, 0).strip()
    return int(said) if said.isdigit() else 0


def _is_at(fd: int, path: Path) -> bool:
    """Is the file we locked still the one that others will find?"""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), there)
