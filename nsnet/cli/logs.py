"""`logs`: what the controller and the programs say, of a component or of a pod."""

import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import click

from nsnet import names
from nsnet.cli import options
from nsnet.cli.context import chosen, need_root, running
from nsnet.cli.output import note, out
from nsnet.cli.target import target
from nsnet.errors import InputError

CONTROLLER = "controller"
PROGRAMS = {"healthz": "exechealthz"}  # container → the program in it, where that has another name
GLANCE = 0.2  # s between two looks at a log that is followed

Logs = Mapping[str, list[Path]]


@options.verb("logs")
@click.argument("what", default=CONTROLLER, metavar="[COMPONENT|POD]")
@click.option("-c", "--container", default="", metavar="CONTAINER", help="A container of the pod (default: its first).")
@options.namespace
@click.option("--tail", type=click.IntRange(min=0), metavar="N", help="Only the last N lines.")
@click.option("-f", "--follow", is_flag=True, help="Go on until interrupted.")
@options.cluster
def logs(what: str, container: str, namespace: str, tail: int | None, follow: bool, cluster: str | None) -> None:
    """Show the log of a component, or of the programs in a pod.

    COMPONENT is controller (the default), or a program such as podserver or kubedns; of one that runs in several
    places each line says where.
    """
    need_root("logs")
    name = chosen(cluster)
    found = _components(name)
    paths = found.get(what) if not container else None
    if paths is None:
        paths = [_of_pod(name, found, what, namespace, container)]
    ends = {path: _show(path, tail, _prefix(name, path, paths)) for path in paths}
    while follow:
        time.sleep(GLANCE)
        ends = {path: _show_more(path, end, _prefix(name, path, paths)) for path, end in ends.items()}


def _directory(cluster: str) -> Path:
    return names.run_dir(cluster) / "log"


def _components(cluster: str) -> Logs:
    """Component → its logs, that of the whole cluster first."""
    found = defaultdict(list)
    for path in sorted(_directory(cluster).rglob("*.log"), key=lambda path: (len(path.parts), path)):
        found[path.stem].append(path)
    return dict(found)


def _of_pod(cluster: str, found: Logs, what: str, namespace: str, container: str) -> Path:
    """The log of one of the pod's containers; the first that has one, unless it is named."""
    try:
        place = target(running("logs", cluster).objects, what, namespace, container)
    except InputError as error:
        known = ", ".join(sorted(found)) or "none yet"
        if "/" in what or container:
            raise
        raise InputError(f'cluster {cluster} has no log of "{what}"', f"there are: {known}; {error}") from error
    inside = {path.stem: path for paths in found.values() for path in paths if path.parent.name == _rest(place.netns)}
    containers = [item.name for item in place.pod.spec.containers] if place.pod else []
    logged = {item: path for item in containers if (path := inside.get(PROGRAMS.get(item, item)))}
    if not logged or (container and container not in logged):
        raise InputError(f"{place.label} has no log of its own", "what serves in most pods: nsnet logs podserver")
    if not container and len(logged) > 1:
        note(f'Defaulted container "{next(iter(logged))}" out of: {", ".join(logged)}')
    return logged[container or next(iter(logged))]


def _rest(netns: str) -> str:
    return netns.partition(".")[2]


# --- lines ------------------------------------------------------------------------------------------------------------


def _prefix(cluster: str, path: Path, paths: list[Path]) -> str:
    """Where a line comes from, if there is more than one place: `[pod.kube-system.kube-dns-…]`."""
    if len(paths) < 2:
        return ""
    return "[cluster] " if path.parent == _directory(cluster) else f"[{path.parent.name}] "


def _show(path: Path, tail: int | None, prefix: str) -> int:
    """Prints it; where it ended, in bytes."""
    data = path.read_bytes()
    text = list(_lines(data))
    for line in text if tail is None else text[max(0, len(text) - tail) :]:
        out(prefix + line)
    sys.stdout.flush()
    return len(data)


def _show_more(path: Path, end: int, prefix: str) -> int:
    """Prints what has been written since; a log that is shorter than it was has been begun anew."""
    try:
        with path.open("rb") as log:
            size = log.seek(0, 2)
            log.seek(end if size >= end else 0)
            data = log.read()
    except FileNotFoundError:
        return 0
    whole = data[: data.rfind(b"\n") + 1]
    for line in _lines(whole):
        out(prefix + line)
    sys.stdout.flush()
    return (end if size >= end else 0) + len(whole)


def _lines(data: bytes) -> Iterator[str]:
    return iter(data.decode(errors="replace").splitlines())
