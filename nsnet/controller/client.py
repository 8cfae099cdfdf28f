"""What verbs do with a controller: start it, stop it, wait until it has brought the kernel to a revision.

The protocol is one line of JSON each way on `/run/nsnet/<cluster>/controller.sock`:

    {"converge": 17}   →  {"ok": true, "revision": 17, "changes": 268}, or {"error": "…", "hint": "…", "exit_code": 1}
    {"status": true}   →  {"pid": 4711, "started": "…", "revision": 17, "changes": 268, "error": "", "drift": 0, …}

`changes` are those it has made since it started.
"""

import contextlib
import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from nsnet import names
from nsnet.errors import InputError, MachineError, NotReachedError, NsnetError
from nsnet.kernel import process

MODULE = "nsnet.controller"
KINDS = {kind.exit_code: kind for kind in (NsnetError, NotReachedError, InputError, MachineError)}
START_SECONDS = 15.0
BUILD_SECONDS = 1800.0  # thousands of pods on a busy machine
STOP_SECONDS = 5.0


def socket_path(cluster: str) -> Path:
    return names.run_dir(cluster) / "controller.sock"


def log_path(cluster: str) -> Path:
    return names.run_dir(cluster) / "log" / "controller.log"


def now() -> str:
    """The time, as the log says it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def resync() -> float:
    """Seconds after which everything is looked at, if that is cheap: NSNET_RESYNC. Raises InputError."""
    said = os.environ.get("NSNET_RESYNC") or "5"
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(said)) < math.inf:
            return seconds
    raise InputError(f'NSNET_RESYNC: "{said}" is no number of seconds', "unset it, or say e.g. NSNET_RESYNC=5")


# --- asking -----------------------------------------------------------------------------------------------------------


def converge(cluster: str, revision: int, timeout: float = 60.0) -> int | None:
    """Waits until the controller has brought the kernel to `revision` of the store; returns the revision it reached.

    None where no controller lives (or it died meanwhile): then take the lock and sync yourself. Never call it while
    holding the lock. Raises what the sync raised (NotReachedError, InputError, MachineError); NotReachedError when
    `timeout` seconds are over.
    """
    answer = _converged(cluster, revision, timeout)
    return None if answer is None else int(answer["revision"])


def build(cluster: str, revision: int) -> int:
    """Starts a controller that builds this machine's part of the cluster, and waits; how many changes that took.

    One that lives already follows to `revision`. One that was started for it and cannot reach that is stopped: it would
    try for ever. Raises as `converge`.
    """
    lived = bool(living(cluster))
    before = status(cluster) if lived else None
    start(cluster)
    try:
        answer = _converged(cluster, revision, BUILD_SECONDS)
    except NsnetError:
        if not lived:
            stop(cluster)
        raise
    if answer is None:
        raise NotReachedError(f"the controller of {cluster} has died", f"it starts again; read {log_path(cluster)}")
    return int(answer.get("changes", 0)) - int((before or {}).get("changes", 0))


def _converged(cluster: str, revision: int, timeout: float) -> dict[str, Any] | None:
    """What a controller says that has reached the revision; None where none lives. Raises as `converge`."""
    try:
        answer = _ask(cluster, {"converge": revision}, timeout)
    except TimeoutError:
        raise NotReachedError(
            f"the controller has not reached revision {revision} within {timeout:.0f} s", f"read {log_path(cluster)}"
        ) from None
    if answer is None or answer.get("ok"):
        return answer
    kind = KINDS.get(answer.get("exit_code", 6), NsnetError)
    raise kind(str(answer.get("error")), str(answer.get("hint", "")))


def status(cluster: str, timeout: float = 2.0) -> dict[str, Any] | None:
    """What the controller says about itself; None where none lives, or where it is busy for `timeout` seconds."""
    try:
        return _ask(cluster, {"status": True}, timeout)
    except TimeoutError:
        return None


def _ask(cluster: str, question: dict[str, Any], timeout: float) -> dict[str, Any] | None:
    """One line there, one line back. Raises TimeoutError; None where nobody answers."""
    deadline = time.monotonic() + timeout
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(timeout)
        try:
            asking.connect(str(socket_path(cluster)))
            asking.sendall(json.dumps(question).encode() + b"\n")
            line = _line(asking, deadline)
        except (FileNotFoundError, ConnectionError):
            return None
    answer = json.loads(line) if line.endswith(b"\n") else None
    return answer if isinstance(answer, dict) else None


def _line(asking: socket.socket, deadline: float) -> bytes:
    said = b""
    while not said.endswith(b"\n"):
        asking.settimeout(max(0.001, deadline - time.monotonic()))
        part = asking.recv(65536)
        if not part:
            break
        said += part
    return said


# --- starting ---------------------------------------------------------------------------------------------------------


def start(cluster: str, timeout: float = START_SECONDS) -> None:
    """Starts the supervisor and with it the controller, and waits until that one can be asked. No root, no controller.

    Nothing happens where a supervisor lives. Whoever calls has stored the cluster. Raises NotReachedError with the last
    lines of its log when it does not come up.
    """
    if any(found.supervises for found in living(cluster)):
        return
    log = log_path(cluster)
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    reading, writing = os.pipe()
    try:
        _launch(cluster, log, writing)
        os.close(writing)
        if select.select([reading], [], [], timeout)[0] and os.read(reading, 1):
            return
        if not any(found.supervises for found in living(cluster)):  # else another verb has just started it too
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-3:])
            raise NotReachedError(f"the controller of {cluster} did not start: {tail}", f"read {log}")
    finally:
        os.close(reading)


def _launch(cluster: str, log: Path, ready: int) -> None:
    """The launched process forks the supervisor and ends, so that no child of ours is left."""
    with open(log, "ab", opener=process.private) as out:
        subprocess.run(
            [sys.executable, "-m", MODULE, "--cluster", cluster, "--supervise"],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/", check=False,
            env=environment(cluster) | {"NSNET_READY_FD": str(ready)}, pass_fds=[ready], start_new_session=True,
        )  # fmt: skip


def environment(cluster: str) -> dict[str, str]:
    """What the controller runs with, and is known by. Raises InputError where what it is told cannot be."""
    resync()
    return {**process.environment("NSNET_RESYNC"), "NSNET_CLUSTER": cluster}


# --- stopping ---------------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    pid: int
    supervises: bool


def stop(cluster: str, timeout: float = STOP_SECONDS) -> int:
    """Ends the supervisor and then the controller, and waits until they are gone; returns how many there were.

    None there is success. Whoever does not end in time is killed. Raises NotReachedError where not even that helps.
    """
    ended = 0
    while found := sorted(living(cluster), key=lambda item: not item.supervises):
        with contextlib.ExitStack() as stack:
            for pid, handle in [(item.pid, _held(item.pid, stack)) for item in found]:
                if handle >= 0 and not _end(handle, timeout):
                    raise NotReachedError(
                        f"process {pid}, the controller of {cluster}, does not end", f"cat /proc/{pid}/stack"
                    )
        ended += len(found)
    return ended


def _held(pid: int, stack: contextlib.ExitStack) -> int:
    """A pidfd; -1 where the process is gone."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return -1
    stack.callback(os.close, handle)
    return handle


def _end(handle: int, timeout: float) -> bool:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, number)
            signal.pidfd_send_signal(handle, signal.SIGCONT)  # a stopped process ends only when it goes on
        if select.select([handle], [], [], timeout)[0]:
            return True
    return False


def living(cluster: str) -> list[Found]:
    """The cluster's supervisors and controllers that live in our mount and pid namespaces."""
    found = (_identify(int(name), cluster) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208 - names
    return [item for item in found if item is not None and item.pid != os.getpid()]


def _identify(pid: int, cluster: str) -> Found | None:
    argv = process.words(pid, "cmdline")
    if MODULE not in argv or ("--cluster", cluster) not in pairwise(argv):
        return None
    if f"NSNET_CLUSTER={cluster}" not in process.words(pid, "environ") or not _beside_us(pid):
        return None
    return Found(pid, "--supervise" in argv)


def _beside_us(pid: int) -> bool:
    """Does the process live in our mount and pid namespaces?"""
    kinds = ("mnt", "pid")
    try:
        return all(Path(f"/proc/{pid}/ns/{kind}").stat() == Path(f"/proc/self/ns/{kind}").stat() for kind in kinds)
    except OSError:
        return False
