"""Sysctls of a namespace, read and written through /proc/sys/net, which shows the namespace of whoever opens it.

Every write is read back: in a child namespace some knobs are read-only and `sysctl -w` still exits 0, and a kernel
may clamp a value. What reads back differently is a refusal. A write costs the more, the more namespaces the machine
has, so only nodes and the fabric have sysctls (`state.SYSCTLS`), and who has a sysctl.conf, what that names.

Source: procps `sysctl.conf(5)` (a dot inside an interface name is written /), Linux `net/sysctl_net.c`.
"""

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from nsnet import names
from nsnet.kernel.netns import inside
from nsnet.state import Change, Refusal, Sysctl

_ROOT = "/proc/sys"
_SWAPPED = str.maketrans("./", "/.")
_LARGEST = 4096  # bytes of a value

# Devices that are there keep what `default` was when they came; what is written to `all`, default and they get.
_OF_LATER, _OF_ALL = (f"net.ipv6.conf.{name}.disable_ipv6" for name in ("default", "all"))


def _path(name: str) -> str:
    return f"{_ROOT}/{name.translate(_SWAPPED)}"


def read(netns: str, wanted: Iterable[str], but: Collection[str] = ()) -> frozenset[Sysctl]:
    """The sysctls of these names in a namespace, `*` being any one interface `but` these.

    What the kernel lacks is left out.
    """
    with inside(netns):
        return frozenset(found for name in wanted for found in _read_all(name, but))


def further(netns: str) -> list[str]:
    """The names in the namespace's sysctl.conf: what is looked at there beside what is looked at everywhere."""
    try:
        fd = os.open(f"{names.RUN}/{netns.replace('.', '/', 1)}/{names.SYSCTL_FILE}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # in nearly every pod
        return []
    with os.fdopen(fd, encoding="utf-8", errors="replace") as file:
        text = file.read()
    return [line.partition("=")[0].strip() for line in text.splitlines() if "=" in line]


def _read_all(name: str, but: Collection[str]) -> Iterator[Sysctl]:
    path = _path(name)
    directory, every, rest = path.partition("*")
    if not every:
        yield from _read(name, path)
        return
    for interface in os.listdir(directory):  # noqa: PTH208 - of a hundred, a Path each costs more than the look
        if interface not in but:
            yield from _read(name.replace("*", interface.replace(".", "/")), f"{directory}{interface}{rest}")


def _read(name: str, path: str) -> Iterator[Sysctl]:
    """A node has a hundred, so a Path for each would cost more than the kernel does."""
    try:
        knob = os.open(path, os.O_RDONLY)
    except OSError:  # not in this kernel, write-only, or gone with its interface
        return
    try:
        yield Sysctl(name, os.read(knob, _LARGEST).decode("ascii").rstrip("\n"))
    except OSError:
        return
    finally:
        os.close(knob)


def write(netns: str, changes: Sequence[Change]) -> list[Refusal]:
    """Writes the sysctls of one namespace and reads each back. Deleting one does nothing: there is no absent sysctl."""
    with inside(netns):
        answers = [(change, _write(change.value)) for change in changes if change.verb != "delete"]
    return [Refusal(change, reason) for change, reason in answers if reason]


def _write(value: object) -> str:
    """Why it was refused, or nothing."""
    assert isinstance(value, Sysctl)
    path = Path(_path(value.name))
    try:
        with (Path(_path(_OF_ALL)) if value.name == _OF_LATER else path).open("w", encoding="ascii") as knob:
            knob.write(value.value)
        now = path.read_text(encoding="ascii").rstrip("\n")
    except OSError as error:
        return f"{path}: {error.strerror}"
    return "" if now.split() == value.value.split() else f"{path} reads back as {now!r}"
