"""The controller's parent: starts it again when it dies, after 0.1 s, then 0.2 s … 5 s. Does nothing else.

Small on purpose, so that nothing in it can break: it reads no store and touches no namespace. There is one per cluster
(a lock on a file in the run directory says so). A controller that it did not start itself, because an earlier
supervisor was killed, is waited for instead of doubled. When the controller ends in peace (the cluster is gone), so
does it.
"""

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from nsnet import names
from nsnet.controller.client import MODULE, environment, living, now

FIRST, LAST = 0.1, 5.0  # seconds until the next start
SETTLED = 10.0  # who lived that long dies anew, not again


def supervise(cluster: str) -> int:
    """Goes into the background and supervises until the controller ends in peace or a SIGTERM comes."""
    if os.fork():
        return 0
    held = _only_one(names.run_dir(cluster) / "supervisor.lock")
    if held < 0:
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    delay = FIRST
    while names.run_dir(cluster).is_dir():
        began = time.monotonic()
        if _one_life(cluster):
            return 0
        delay = FIRST if time.monotonic() - began > SETTLED else delay
        time.sleep(delay)
        delay = min(delay * 2, LAST)
    return 0


def _only_one(path: Path) -> int:
    """A lock held for life; -1 where another supervisor holds it (or the run directory is gone)."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (FileNotFoundError, BlockingIOError):
        return -1
    return fd


def _one_life(cluster: str) -> bool:
    """Lets one controller live and die; True when it ended in peace."""
    orphans = [found.pid for found in living(cluster) if not found.supervises]
    if orphans:
        _tell_ready()
        _outlive(orphans[0])
        return False
    child = subprocess.Popen(
        [sys.executable, "-m", MODULE, "--cluster", cluster],
        stdin=subprocess.DEVNULL, cwd="/", env=environment(cluster) | _ready_name(), pass_fds=_ready_fds(),
    )  # fmt: skip
    _forget_ready()
    try:
        code = child.wait()
    finally:
        child.terminate()
    if code != 0:
        sys.stderr.write(f"{now()} the controller ended with code {code}; it starts again\n")
        sys.stderr.flush()
    return code == 0


def _outlive(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        select.select([process], [], [])
        os.close(process)


def _ready_fds() -> list[int]:
    ready = os.environ.get("NSNET_READY_FD", "")
    return [int(ready)] if ready.isdigit() else []


def _ready_name() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name == "NSNET_READY_FD"}


def _tell_ready() -> None:
    for fd in _ready_fds():
        with contextlib.suppress(BrokenPipeError):  # whoever started us is gone
            os.write(fd, b"!")
    _forget_ready()


def _forget_ready() -> None:
    """Only the first controller tells whoever started us that it is ready: its copy is the only one left open."""
    for fd in _ready_fds():
        os.close(fd)
    os.environ.pop("NSNET_READY_FD", None)
