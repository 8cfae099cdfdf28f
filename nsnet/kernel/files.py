"""The files that belong to namespaces: what programs read, flannel's subnet.env, what `ip netns exec` binds over /etc.

Where a file stands says whose it is, so nothing has to be remembered:

    /run/nsnet/<cluster>/<kind>.<name>/…      the namespace <cluster>.<kind>.<name>
    /run/nsnet/<cluster>/*.json, *.conf       <cluster>.fabric.router: what serves the whole cluster
    /etc/netns/<netns>/…                      <netns>

A file is written beside its place and renamed into it, so a reader sees the old one or the new one, whole. There are
three per pod, thousands in all: what is done for each is plain system calls, which take a quarter of pathlib's time.

Between writing a file and the moment its program has read it, somebody may kill us; afterwards the file would look
right and the program would still live by the old one. So a file that a running program has yet to read carries the
sticky bit (which means nothing on a file): it is observed as a mode nobody wants, and written and told again.
"""

import os
import stat
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import suppress
from ipaddress import ip_interface
from pathlib import Path

from nsnet import names
from nsnet.state import File

UNREAD = stat.S_ISVTX

_SHARED = {".json", ".conf"}  # what stands beside the directories of the namespaces, all the rest there is no File
_SUBNETS = {"FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"}
_LARGEST = 64 << 20  # bytes; nothing of ours comes near it


def observe(cluster: str, only: Collection[str] | None = None) -> dict[str, set[File]]:
    """Namespace → its files; also for namespaces that do not exist any more. `only`: of these namespaces."""
    found: defaultdict[str, set[File]] = defaultdict(set)
    for netns, path in _paths(cluster) if only is None else _paths_of(cluster, only):
        for value in read(path):
            found[netns].add(value)
    return found


def _paths(cluster: str) -> Iterator[tuple[str, str]]:
    router = names.fabric_netns(cluster, "router")
    for entry in _scan(names.run_dir(cluster)):
        netns = f"{cluster}.{entry.name}"
        if names.kind_of(netns) and entry.is_dir(follow_symlinks=False):
            yield from ((netns, path) for path in _below(entry.path))
        elif _is_shared(entry.name):
            yield router, entry.path
    for entry in _scan(names.ETC_NETNS):
        if entry.name.startswith(f"{cluster}.") and names.kind_of(entry.name):
            yield from ((entry.name, path) for path in _below(entry.path))


def subnet_envs(cluster: str) -> dict[str, str]:
    """Node → the subnets that its subnet.env says, with commas: what flanneld would take again."""
    found = {}
    for path in names.run_dir(cluster).glob("node.*/flannel/subnet.env"):
        with suppress(OSError, ValueError):
            lines = (line.partition("=") for line in path.read_text().splitlines())
            said = [str(ip_interface(value).network) for name, _, value in lines if name in _SUBNETS]
            found[path.parent.parent.name.removeprefix("node.")] = ",".join(said)
    return found


def _paths_of(cluster: str, only: Collection[str]) -> Iterator[tuple[str, str]]:
    router = names.fabric_netns(cluster, "router")
    for netns in only:
        for directory in (names.netns_run_dir(netns), names.etc_dir(netns)):
            yield from ((netns, path) for path in _below(directory))
    if router in only:
        yield from ((router, entry.path) for entry in _scan(names.run_dir(cluster)) if _is_shared(entry.name))


def _is_shared(name: str) -> bool:
    return os.path.splitext(name)[1] in _SHARED  # noqa: PTH122 - a name, no path


def _scan(directory: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _below(directory: Path | str) -> Iterator[str]:
    for entry in _scan(directory):
        if entry.is_dir(follow_symlinks=False):
            yield from _below(entry.path)
        else:
            yield entry.path


def read(path: Path | str) -> list[File]:
    """The file as a value; none when it is not there, or is a socket or another special file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode):
            return []
        content = _whole(fd, about.st_size).decode(errors="backslashreplace")  # nobody wants such a one
    finally:
        os.close(fd)
    return [File(str(path), content, stat.S_IMODE(about.st_mode))]


def _whole(fd: int, size: int) -> bytes:
    """All of it, at most _LARGEST bytes; mostly one read."""
    content = os.read(fd, min(size + 1, _LARGEST))
    while size < len(content) < _LARGEST or 0 < len(content) < size:  # it grows, or the kernel gave less
        more = os.read(fd, _LARGEST - len(content))
        if not more:
            break
        content += more
    return content


def belongs(path: str, netns: str) -> bool:
    """Whether a file of that path is observed as one of that namespace."""
    if "/../" in f"{path}/":
        return False
    cluster, _, rest = netns.partition(".")
    if path.startswith((f"{names.ETC_NETNS}/{netns}/", f"{names.RUN}/{cluster}/{rest}/")):
        return True
    directory, _, name = path.rpartition("/")
    shared = directory == f"{names.RUN}/{cluster}" and _is_shared(name)
    return shared and netns == names.fabric_netns(cluster, "router")


def write(value: File, *, unread: bool = False) -> None:
    """Puts the file in its place; `unread` marks it for `has_been_read`. Raises OSError."""
    directory, _, name = value.path.rpartition("/")
    beside = f"{directory}/.{name}.new{os.path.splitext(name)[1]}"  # noqa: PTH122 - fixed: a leftover is observed
    content = value.content.encode(errors="surrogateescape")
    try:
        try:
            _write(beside, content, value.mode | (UNREAD if unread else 0))
        except FileNotFoundError:
            _make_directory(directory)
            _write(beside, content, value.mode | (UNREAD if unread else 0))
        os.replace(beside, value.path)  # noqa: PTH105 - see the module's beginning
    except OSError:
        Path(beside).unlink(missing_ok=True)
        raise


def _write(path: str, content: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(fd, left) :]
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def _make_directory(directory: str) -> None:
    try:
        os.mkdir(directory, 0o700)  # noqa: PTH102 - mostly /etc/netns/<netns>, and that is all
    except FileExistsError:
        return
    except FileNotFoundError:
        _make_directories(Path(directory))


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
    """Removes the file, and the directories that are empty then. Raises OSError; what is absent is success.

    With it goes the socket beside it, by which its program was told to read it (`process.reload`) and which has ended.
    """
    place = Path(path)
    place.unlink(missing_ok=True)
    socket = Path(f"{path}.sock")
    if socket.is_socket():
        socket.unlink(missing_ok=True)
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
    for directory in (names.netns_run_dir(netns), names.etc_dir(netns)):
        _delete_tree(directory)


def delete_cluster(cluster: str) -> None:
    """Removes the run directory of a cluster, and its directories in /etc/netns. Raises OSError."""
    _delete_tree(names.run_dir(cluster))
    for entry in _scan(names.ETC_NETNS):
        if entry.name.startswith(f"{cluster}.") and names.kind_of(entry.name):
            _delete_tree(names.etc_dir(entry.name))
    for directory in (names.RUN, names.ETC_NETNS):
        _remove_if_empty(directory)


def _delete_tree(directory: Path) -> None:
    for entry in _scan(directory):
        if entry.is_dir(follow_symlinks=False):
            _delete_tree(Path(entry.path))
        else:
            Path(entry.path).unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        directory.rmdir()
