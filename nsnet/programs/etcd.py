"""`python -m nsnet.programs.etcd DIRECTORY`: the cluster's own etcd, one member with its data and socket there.

etcd itself says nothing when it is ready, takes a socket's name only without a path, and would outlive whoever started
it with the data locked; so this parent changes the directory, tells when etcd is healthy, and takes it along when it
ends, however that happens (PR_SET_PDEATHSIG).
"""

import contextlib
import ctypes
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from nsnet.programs.plain import log, tell_ready

SOCKET = "etcd.sock:0"
HEALTHY_SECONDS = 25.0
GLANCE = 0.02
PR_SET_PDEATHSIG = 1
CLIENT, PEER = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
ARGV = (
    "etcd", "--name", "nsnet", "--data-dir", "data",
    "--listen-client-urls", f"{CLIENT},unix://{SOCKET}", "--advertise-client-urls", CLIENT,
    "--listen-peer-urls", PEER, "--initial-advertise-peer-urls", PEER, "--initial-cluster", f"nsnet={PEER}",
    "--auto-compaction-mode", "revision", "--auto-compaction-retention", "5000",
    "--heartbeat-interval", "50", "--election-timeout", "500", "--logger", "zap", "--log-level", "warn",
)  # fmt: skip


def main(directory: str) -> int:
    Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chdir(directory)
    Path(SOCKET).unlink(missing_ok=True)  # of one that was killed; two at once are kept apart by the lock on the data
    member = subprocess.Popen(ARGV, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent)  # noqa: PLW1509 - no threads
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: member.terminate())
    if _healthy(member):
        tell_ready()
    code = member.wait()
    log("etcd", f"etcd ended with code {code}")
    return 0 if code in (0, -signal.SIGTERM) else 1


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _healthy(member: "subprocess.Popen[bytes]") -> bool:
    """Waits until it takes requests; False when it ends before, or takes too long."""
    deadline = time.monotonic() + HEALTHY_SECONDS
    while member.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if _health():
                return True
        time.sleep(GLANCE)
    return False


def _health() -> bool:
    connection = http.client.HTTPConnection("localhost", timeout=2)
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as sock:
        sock.settimeout(2)
        sock.connect(SOCKET)
        connection.sock = sock
        connection.request("GET", "/health")
        return b"true" in connection.getresponse().read()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
