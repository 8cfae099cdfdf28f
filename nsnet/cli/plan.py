"""`plan` and `validate`: everything `up` does before it touches anything."""

from collections.abc import Iterator, Sequence
from shlex import quote

import click

from nsnet import control, diff, faults, manifests, model, names, reconcile, verify
from nsnet.cli import options
from nsnet.cli.context import need_root, opened
from nsnet.cli.files import load, parsed, placed, sources
from nsnet.cli.output import error, note, out
from nsnet.errors import InputError
from nsnet.manifests import Loaded
from nsnet.model import Key, Object, Objects
from nsnet.state import Change, File, Process, State, Veth, lines

SHOWN = 20


@options.verb("plan")
@options.files
@click.option("-o", "--output", type=click.Choice(("text", "sh")), default="text", help="sh: as a script.")
@options.cluster
def plan(files: tuple[str, ...], output: str, cluster: str | None) -> None:
    """Show the changes `up` would make, as lines a person could type; changes nothing.

    Root is needed only where the cluster is up already: then the plan is the way from what is there.
    """
    loaded = load(files, cluster)
    name = model.cluster_of(loaded.objects).metadata.name
    stored, have = _there(name)
    want = reconcile.wanted(wanted(loaded, stored))
    changes = diff.diff(have, want.state, holds=want.holds)
    for line in script(changes) if output == "sh" else as_text(changes):
        out(line)
    note(f"{len(changes)} changes" if changes else f"nothing to change: {name} is as the files say")


def wanted(loaded: Loaded, stored: Objects, facts: control.Facts | None = None) -> dict[Key, Object]:
    """What the store is to hold: the files are the whole truth, what was allocated before stays.

    Raises InputError, with its place in the file, for whatever cannot be.
    """

    def compute() -> dict[Key, Object]:
        admitted = control.admit(stored, loaded.objects, whole=True)
        seen = facts or control.Facts()
        completed = reconcile.completed(admitted, seen.listening, seen.now, seen.subnets)
        for fault in model.of(completed, model.Fault):
            faults.check(fault, completed)
        verify.checks(completed)  # the topology's own checks must lead somewhere
        return completed

    return placed(loaded, compute)


def _there(name: str) -> tuple[Objects, State]:
    """What stands already under that name: objects and kernel state; nothing where it is not up."""
    if not _is_up(name):
        return {}, {}
    need_root("plan")
    from nsnet import kernel

    return _stored(name), kernel.observe(name)


def _is_up(name: str) -> bool:
    try:
        return any(entry.name.startswith(f"{name}.") and names.kind_of(entry.name) for entry in names.NETNS.iterdir())
    except OSError:
        return False


def _stored(name: str) -> Objects:
    from nsnet.store.objects import load_objects

    try:
        with opened(name) as store:
            return load_objects(store)[0]
    except InputError:  # no store: its directory was deleted
        return {}


def as_text(changes: Sequence[Change]) -> Iterator[str]:
    """The lines of every change. A veth pair is made once, from the end that comes first; the other is then set."""
    made: set[str] = set()
    for change in changes:
        value = change.value
        if isinstance(value, Process) and change.verb == "add":
            yield from (_as_ours(line, change.netns) for line in lines(change))
        elif not isinstance(value, Veth) or change.verb != "add":
            yield from lines(change)
        elif f"{change.netns}/{value.name}" in made:
            yield from _pair_end(change.netns, value, f"address {value.mac} mtu {value.mtu} ")
            yield f"ip -n {change.netns} link set {value.name} {'up' if value.up else 'down'}"
        else:
            made.add(value.peer)
            yield from lines(change)
            yield from _pair_end(change.netns, value)


def _as_ours(line: str, netns: str) -> str:
    """With the environment by which a program is known as the cluster's (kernel/process.py)."""
    return line.replace(" setsid ", f" setsid env NSNET_CLUSTER={netns.partition('.')[0]} NSNET_NETNS={netns} ", 1)


def _pair_end(netns: str, value: Veth, shape: str = "") -> Iterator[str]:
    """Each end's alias says where the other is: the kernel itself tells that only by number."""
    yield f"ip -n {netns} link set {value.name} {shape}alias {value.peer}"


def script(changes: Sequence[Change]) -> Iterator[str]:
    """The same as a script for sh, with the contents of the files."""
    contents = {_line(change): change.value.content for change in changes if isinstance(change.value, File)}
    yield "#!/bin/sh"
    yield "set -e"
    for line in as_text(changes):
        content = contents.get(line)
        yield line if content is None else f"printf %s {quote(content)} | {line.partition('  #')[0]}"


def _line(change: Change) -> str:
    return lines(change)[-1]


@options.verb("validate", anywhere=True)
@options.files
@options.cluster
def validate(files: tuple[str, ...], cluster: str | None) -> int:
    """Check files; every error with file, line and field. No root, and nothing is changed."""
    read = sources(files)
    found = manifests.problems(read, cluster)
    for problem in found[:SHOWN]:
        error(str(problem), problem.hint)
    if len(found) > SHOWN:
        note(f"and {len(found) - SHOWN} more")
    if found:
        return InputError.exit_code
    loaded = parsed(read, cluster)
    reconcile.wanted(wanted(loaded, {}))
    for line in loaded.notes:
        note(f"note: {line}")
    out(f"{model.cluster_of(loaded.objects).metadata.name}: {_counted(loaded)}, all right")
    return 0


def _counted(loaded: Loaded) -> str:
    kinds = [key.kind for key in loaded.objects]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
