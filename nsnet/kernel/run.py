"""Runs a command in a namespace, as `ip netns exec` does, with the hostname of what lives there.

The command gets the network namespace; a mount namespace of its own, in which /sys shows that namespace's devices and
the files of /etc/netns/<netns>/ lie over those of /etc; and a UTS namespace with the hostname. The sockets of name
service caches are covered: nscd and systemd-resolved would answer with the machine's names.

Source: iproute2 `lib/namespace.c` (netns_switch, bind_etc), `man ip-netns`.
"""

import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from nsnet import names
from nsnet.errors import MachineError, NotReachedError
from nsnet.kernel import netns
from nsnet.kernel.netns import CLONE_NEWNS, CLONE_NEWUTS, MS_BIND, MS_RDONLY, MS_REC, MS_SLAVE

CACHES = ("/run/nscd/socket", "/var/run/nscd/socket", "/run/systemd/resolve/io.systemd.Resolve")


def replace_process(
    name: str, argv: Sequence[str], *, hostname: str, env: Mapping[str, str], etc: Path | None = None
) -> NoReturn:
    """This process becomes the command, inside the namespace. Returns only by raising.

    `etc` is a directory whose files lie over those of /etc, besides (and over) the namespace's own.

    Raises NotReachedError where the namespace is not there, MachineError where the kernel refuses, FileNotFoundError or
    PermissionError (of `argv[0]`) where there is no such command.
    """
    try:
        with netns.inside(name):
            _own_view(name, hostname, etc)
            for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and the command would inherit that
                signal.signal(number, signal.SIG_DFL)
            os.execvpe(argv[0], list(argv), dict(env))  # noqa: S606 - no shell is the point
    except FileNotFoundError as error:
        if error.filename == netns.path_of(name):
            raise NotReachedError(
                f"the namespace {name} is not there", "nsnet status; nsnet up FILE builds it"
            ) from error
        raise


def output(name: str, argv: Sequence[str], *, timeout: float = 30) -> str:
    """What the command prints, run in the namespace. Raises MachineError where it is missing, NotReachedError else.

    After `timeout` seconds it is ended, which is a NotReachedError, too.
    """
    try:
        with netns.inside(name):
            process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        with process:
            out, complaint = _communicate(process, timeout)
    except subprocess.TimeoutExpired as error:
        raise NotReachedError(f"{argv[0]} in {name} did not end within {timeout:.0f} s") from error
    except FileNotFoundError as error:
        if error.filename == netns.path_of(name):
            raise NotReachedError(
                f"the namespace {name} is not there", "nsnet status; nsnet up FILE builds it"
            ) from error
        raise MachineError(f"there is no {argv[0]} on this machine", "scripts/setup installs it") from error
    if process.returncode:
        raise NotReachedError(f"{argv[0]} in {name}: {complaint.strip() or process.returncode}")
    return out


def _communicate(process: subprocess.Popen[str], timeout: float) -> tuple[str, str]:
    try:
        return process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def typed(netns_name: str, argv: Sequence[str], *, stdin: str = "", timeout: float = 30) -> tuple[int, str]:
    """A command as a person types it, by `ip netns exec` or (no namespace) here: its exit code, and all that it said.

    124 where it takes longer than `timeout` seconds, 127 where there is no such command, as timeout(1) and a shell say.
    """
    words = ("ip", "netns", "exec", netns_name, *argv) if netns_name else tuple(argv)
    try:
        done = subprocess.run(
            words,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError:
        return 127, f"there is no {words[0]} on this machine"
    except subprocess.TimeoutExpired:
        return 124, f"it takes longer than {timeout:.0f} s"
    return done.returncode, done.stdout


def _own_view(name: str, hostname: str, etc: Path | None) -> None:
    """Mount and UTS namespaces of our own, filled; nothing of it is seen outside."""
    try:
        netns.unshare(CLONE_NEWNS | CLONE_NEWUTS)
        netns.mount("", "/", MS_SLAVE | MS_REC)
        _mount_sysfs(name)
        _bind_etc(names.etc_dir(name))
        if etc is not None:
            _bind_etc(etc)
        _cover_caches()
        socket.sethostname(hostname)
    except OSError as error:
        raise MachineError(
            f"the kernel refuses a view of {name}: {error}", "are we root, outside a sandbox?"
        ) from error


def _mount_sysfs(name: str) -> None:
    """Over the one that is there: a read-only one (in a container) takes only a read-only one on top of it."""
    flags = MS_RDONLY if os.statvfs("/sys").f_flag & os.ST_RDONLY else 0
    netns.mount(name, "/sys", flags, "sysfs")


def _bind_etc(directory: Path) -> None:
    for path in _files(directory):
        target = Path("/etc") / path.name
        if target.exists():  # a mount needs something to lie on; ip netns exec leaves out the rest, too
            netns.mount(str(path), str(target), MS_BIND)


def _files(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


def _cover_caches() -> None:
    for cache in {os.path.realpath(cache) for cache in CACHES}:
        if os.path.lexists(cache):
            netns.mount("/dev/null", cache, MS_BIND)
