"""What the machine's kernel allows in number, and who sees the names of namespaces: read from /proc, nothing is tried.

Namespaces share these: a cluster of a thousand pods is, to them, a machine with a thousand neighbours and programs.

Source: Linux `Documentation/networking/ip-sysctl.rst` (gc_thresh3), `nf_conntrack-sysctl.rst`,
`admin-guide/sysctl/fs.rst` and `kernel.rst`; `man 7 inotify`, `namespaces` (user.max_net_namespaces) and
`mount_namespaces`.
"""

import json
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from nsnet import names
from nsnet.kernel.features import PATIENCE, Finding

PODS = 1000  # what the proposed values are enough for


class Limit(msgspec.Struct, frozen=True):
    """A number of the kernel. Below `enough` a cluster of PODS pods does not fit; `costs` says why."""

    sysctl: str
    enough: int
    costs: str
    zero_is_none: bool = False  # 0 stands for no limit


LIMITS: tuple[Limit, ...] = (
    Limit("user.max_net_namespaces", 2 * PODS, "each pod, node and host is a network namespace"),
    Limit("fs.inotify.max_user_instances", 128, "each dnsmasq takes one: clusters with more DNS pods do not get ready"),
    Limit("fs.inotify.max_user_watches", 8192, "each dnsmasq watches its files"),
    Limit("fs.file-max", 65536, "the pod server holds a socket for each port of each pod"),
    Limit("kernel.pid_max", 16384, "each DNS pod is three programs, each node of userspace mode one"),
    Limit("kernel.threads-max", 16384, "as kernel.pid_max"),
    Limit(
        "net.netfilter.nf_conntrack_max", 65536,
        "each connection through a Service is an entry in each node on its way; when they are full packets are dropped",
        zero_is_none=True,
    ),
    Limit(
        "net.ipv4.neigh.default.gc_thresh3", 1024,
        "one table for all namespaces; nsnet's own entries are permanent and do not count, others do",
    ),
    Limit("net.ipv6.neigh.default.gc_thresh3", 1024, "as for IPv4"),
    Limit("net.ipv6.route.max_size", 4096, "in old kernels IPv6 routes beyond it are refused"),
)  # fmt: skip
OPEN_FILES = 4096


def limits() -> list[Finding]:
    """Each number this kernel has, with the command that raises it where it is small."""
    found = [finding for limit in LIMITS for finding in _judged(limit)]
    return [*found, _open_files(), *_pids()]


def _judged(limit: Limit) -> Iterator[Finding]:
    try:
        value = int(Path("/proc/sys", *limit.sysctl.split(".")).read_text())
    except (OSError, ValueError):
        return
    good = value >= limit.enough or (limit.zero_is_none and value == 0)
    yield _number(limit.sysctl, value, f"sudo sysctl -w {limit.sysctl}={limit.enough}", limit.costs, good=good)


def _number(name: str, value: int, mend: str, costs: str, *, good: bool) -> Finding:
    if good:
        return Finding(name, good, "", costs, needed=False, found=str(value), about="limits")
    return Finding(name, good, mend, costs, needed=False, state="degraded", found=str(value), about="limits")


def _open_files() -> Finding:
    """The soft one is raised by programs that need more; the hard one is not."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    good = hard in (resource.RLIM_INFINITY, -1) or hard >= OPEN_FILES
    costs = "the pod server holds a socket for each port of each pod"
    return _number("open files (ulimit -Hn)", hard, f"ulimit -Hn {OPEN_FILES}, as root", costs, good=good)


def _pids() -> Iterator[Finding]:
    """pids.max of the control groups we are in (a container's, a CI job's): theirs may be far below the kernel's."""
    for path in _pids_max():
        text = path.read_text().strip() if path.is_file() else "max"
        if text != "max":
            good = int(text) >= 1024
            costs = "programs beyond it cannot be started"
            yield _number(str(path), int(text), f"raise it: echo max | sudo tee {path}", costs, good=good)


def _pids_max() -> Iterator[Path]:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, where = line.split(":", 2)
        if not controllers:
            yield Path(f"/sys/fs/cgroup{where}/pids.max")
        elif "pids" in controllers.split(","):
            yield Path(f"/sys/fs/cgroup/pids{where}/pids.max")


def propagation() -> Finding:
    """Whether names in /run/netns are seen outside of the mount namespace we are in, as `ip netns` makes them."""
    name = f"{names.NETNS} is seen by everybody"
    where, shared = max(_mounts(), key=lambda found: len(found[0]), default=("/", False))
    if not shared:
        costs = "programs with mounts of their own (containers, some services) do not see names made later"
        return _hidden(name, f"{where} is mounted private", costs, f"sudo mount --make-shared {where}")
    if _apart():
        costs = "namespaces that nsnet names are not there for programs outside, nor theirs for nsnet"
        return _hidden(name, "mounts apart from init's", costs, "run it outside of this container (or sandbox)")
    return Finding(name, ok=True, needed=False, about="mounts")


def _hidden(name: str, found: str, costs: str, mend: str) -> Finding:
    return Finding(name, False, mend, costs, needed=False, state="degraded", found=found, about="mounts")


def _apart() -> bool:
    """Where init cannot be looked at, nothing speaks for it."""
    try:
        return Path("/proc/1/ns/mnt").readlink() != Path("/proc/self/ns/mnt").readlink()
    except OSError:
        return False


def _mounts() -> Iterator[tuple[str, bool]]:
    """The mounts that /run/netns lies on, and whether they are shared."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, _ = line.partition(" - ")
        where, *optional = before.split()[4:]
        if Path(where) in (names.NETNS, *names.NETNS.parents):
            yield where, any(word.startswith("shared:") for word in optional)


def routes() -> list[str]:
    """What the machine itself routes, IPv4, as subnets; its default route is none."""
    try:
        words = ("ip", "-j", "-4", "route", "show", "table", "main")
        done = subprocess.run(words, capture_output=True, check=True, timeout=PATIENCE)
        found: list[dict[str, Any]] = json.loads(done.stdout or b"[]")
    except (OSError, subprocess.SubprocessError, ValueError):
        return []
    return [route["dst"] for route in found if route.get("dst", "default") != "default"]
