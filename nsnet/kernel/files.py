"""The files that belong to namespaces: what programs read, flannel's subnet.env, what `ip netns exec` binds over /etc.

Where a file stands says whose it is, so nothing has to be remembered:

    /run/nsnet/<cluster>/<kind>.<name>/…      the namespace <cluster>.<kind>.<name>
    /run/nsnet/<cluster>/*.json, *.conf       <cluster>.fabric.router: what serves the whole cluster
    /etc/netns/<netns>/…                      <netns>

A file is written beside its place and renamed into it, so a reader sees the old one or the new one, whole.

Between writing a file and the moment its program has read it, somebody may kill us; afterwards the file would look
right and the program would still live by the old one. So a file that a running program has yet to read carries the
sticky bit (which means nothing on a file): it is observed as a mode nobody wants, and written and told again.
"""

import os
import stat
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from nsnet import names
from nsnet.state import File

UNREAD = stat.S_ISVTX

_SHARED = {".json", ".conf"}  # what stands beside the directories of the namespaces, all the rest there is no File
_LARGEST = 64 << 20  # bytes; nothing of ours comes near it


def observe(cluster: str) -> dict[str, set[File]]:
    """Namespace → its files; also for namespaces that do not exist any more."""
    found: defaultdict[str, set[File]] = defaultdict(set)
    for netns, path in _paths(cluster):
        for value in read(path):
            found[netns].add(value)
    return found


def _paths(cluster: str) -> Iterator[tuple[str, Path]]:
    for entry in _entries(names.run_dir(cluster)):
        netns = f"{cluster}.{entry.name}"
        if names.kind_of(netns) and _is_directory(entry):
            yield from ((netns, path) for path in _below(entry))
        elif entry.suffix in _SHARED:
            yield names.fabric_netns(cluster, "router"), entry
    for entry in _entries(names.ETC_NETNS):
        if entry.name.startswith(f"{cluster}.") and names.kind_of(entry.name):
            yield from ((entry.name, path) for path in _below(entry))


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _below(directory: Path) -> Iterator[Path]:
    for entry in _entries(directory):
        if _is_directory(entry):
            yield from _below(entry)
        else:
            yield entry


def read(path: Path) -> list[File]:
    """The file as a value; none when it is not there, or is a socket or another special file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    with os.fdopen(fd, "rb") as file:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode):
            return []
        content = file.read(_LARGEST).decode(errors="surrogateescape")
    return [File(str(path), content, stat.S_IMODE(about.st_mode))]


def belongs(path: str, netns: str) -> bool:
    """Whether a file of that path is observed as one of that namespace."""
    cluster = netns.partition(".")[0]
    place = Path(path)
    if ".." in place.parts:
        return False
    if place.is_relative_to(names.netns_run_dir(netns)) or place.is_relative_to(names.ETC_NETNS / netns):
        return True
    shared = place.parent == names.run_dir(cluster) and place.suffix in _SHARED
    return shared and netns == names.fabric_netns(cluster, "router")


def write(value: File, *, unread: bool = False) -> None:
    """Puts the file in its place; `unread` marks it for `has_been_read`. Raises OSError."""
    path = Path(value.path)
    _make_directories(path.parent)
    beside = path.with_name(f".{path.name}.new{path.suffix}")  # a fixed name: a leftover is observed, or overwritten
    try:
        _write(beside, value.content.encode(errors="surrogateescape"), value.mode | (UNREAD if unread else 0))
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def _write(path: Path, content: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        os.fchmod(fd, mode)


def _make_directories(directory: Path) -> None:
    """Ours are 0700; /etc/netns is everybody's."""
    if directory == names.ETC_NETNS:
        directory.mkdir(mode=0o755, exist_ok=True)
    elif directory.parent != directory and not directory.is_dir():
        _make_directories(directory.parent)
        directory.mkdir(mode=0o700, exist_ok=True)


def must_be_read(path: Path) -> None:
    """Marks a file that is there as one its program has yet to read again."""
    with suppress(FileNotFoundError):
        path.chmod(stat.S_IMODE(path.stat().st_mode) | UNREAD)


def has_been_read(path: Path) -> None:
    """Its program has read the file: takes the mark away."""
    with suppress(FileNotFoundError):
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~UNREAD)


def delete(path: str) -> None:
    """Removes the file, and the directories that are empty then. Raises OSError; what is absent is success."""
    place = Path(path)
    place.unlink(missing_ok=True)
    for directory in place.parents:
        if directory in {names.ETC_NETNS, names.RUN} or not _remove_if_empty(directory):
            return


def _remove_if_empty(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def delete_all(netns: str) -> None:
    """Removes every file and directory of a namespace. Raises OSError."""
    for directory in (names.netns_run_dir(netns), names.ETC_NETNS / netns):
        _delete_tree(directory)


def delete_cluster(cluster: str) -> None:
    """Removes the run directory of a cluster, and its directories in /etc/netns. Raises OSError."""
    _delete_tree(names.run_dir(cluster))
    for entry in _entries(names.ETC_NETNS):
        if entry.name.startswith(f"{cluster}.") and names.kind_of(entry.name):
            _delete_tree(entry)
    for directory in (names.RUN, names.ETC_NETNS):
        _remove_if_empty(directory)


def _delete_tree(directory: Path) -> None:
    for entry in _entries(directory):
        if _is_directory(entry):
            _delete_tree(entry)
        else:
            entry.unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        directory.rmdir()
