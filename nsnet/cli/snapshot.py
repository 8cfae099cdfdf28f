"""`snapshot` and `diff`: the kernel state as lines a person would type, kept under a name; and what changed since.

Kept as values in the cluster's state directory, so that `diff` compares by identity: a chain whose rules changed shows
these rules, and nothing that only stands elsewhere in a list counts as changed.
"""

import os
import re
from collections.abc import Iterator, Sequence
from difflib import unified_diff
from pathlib import Path

import click
import msgspec

from nsnet import kernel, names
from nsnet import state as kernels
from nsnet.cli import options
from nsnet.cli.context import chosen, need_root
from nsnet.cli.output import Colour, coloured, out, print_json
from nsnet.cli.words import did_you_mean
from nsnet.errors import InputError, NotReachedError
from nsnet.state import File, State, Value

NAME = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_.]{0,62}")
Kept = dict[str, list[Value]]


class Line(msgspec.Struct, frozen=True):
    """One line that came (+) or went (-), in a namespace."""

    netns: str
    sign: str
    text: str


@options.verb("snapshot")
@click.argument("name", required=False, metavar="[NAME]")
@click.option("--delete", is_flag=True, help="Forget it.")
@options.output("json")
@options.cluster
def snapshot(name: str | None, delete: bool, output: str | None, cluster: str | None) -> None:
    """Keep what the kernel has now, every device, route, rule and process, under NAME; without NAME list what is kept.

    `nsnet diff NAME` shows what changed since. `down` removes them with the cluster.
    """
    need_root("snapshot")
    own = chosen(cluster)
    if name is None:
        found = kept_names(own)
        print_json(found) if output == "json" else out(
            "\n".join(found) or "none is kept: nsnet snapshot NAME keeps one"
        )
    elif delete:
        _path(own, name, there=True).unlink()
    else:
        state = kernel.observe(own)
        _write(_path(own, name), state)
        count = sum(map(len, state.values()))
        said = {"name": name, "namespaces": len(state), "values": count}
        print_json(said) if output == "json" else out(f"{name}: {count} values of {len(state)} namespaces")


@options.verb("diff")
@click.argument("name", metavar="NAME")
@options.output("json")
@options.cluster
def diff(name: str, output: str | None, cluster: str | None) -> int:
    """Show what changed in the kernel since the snapshot NAME. Exit code 1: something did."""
    need_root("diff")
    own = chosen(cluster)
    before = _read(_path(own, name, there=True))
    found = list(changes(before, kernel.observe(own)))
    if output == "json":
        print_json(found)
    else:
        for line in printed(found):
            out(line)
    return NotReachedError.exit_code if found else 0


def printed(found: Sequence[Line]) -> Iterator[str]:
    """By namespace, as a diff looks."""
    last = ""
    for line in found:
        if line.netns != last:
            yield coloured(line.netns, "cyan")
            last = line.netns
        colour: Colour = "green" if line.sign == "+" else "red"
        yield coloured(f"{line.sign} {line.text}", colour)


# --- where they are kept ----------------------------------------------------------------------------------------------


def _directory(cluster: str) -> Path:
    return names.STATE / cluster / "snapshots"


def kept_names(cluster: str) -> list[str]:
    directory = _directory(cluster)
    return sorted(path.stem for path in directory.glob("*.json")) if directory.is_dir() else []


def _path(cluster: str, name: str, *, there: bool = False) -> Path:
    if NAME.fullmatch(name) is None:
        raise InputError(f'"{name}" cannot be the name of a snapshot', "letters, digits, - _ and ., at most 63")
    path = _directory(cluster) / f"{name}.json"
    if there and not path.exists():
        known = kept_names(cluster)
        raise InputError(
            f'there is no snapshot "{name}"{did_you_mean(name, known)}', f"nsnet snapshot {name} keeps one"
        )
    return path


def _write(path: Path, state: State) -> None:
    """Whole or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    ordered = {name: sorted(values, key=lambda value: value.key) for name, values in sorted(state.items())}
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_bytes(msgspec.json.encode(ordered))
    draft.replace(path)


def _read(path: Path) -> Kept:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Kept)
    except msgspec.MsgspecError as error:
        raise InputError(f"{path}: {error}", "it was kept by another nsnet: keep a new one") from error


# --- what changed -----------------------------------------------------------------------------------------------------


def changes(before: Kept, now: State) -> Iterator[Line]:
    """Line by line: what went, what came."""
    for netns in sorted(before.keys() | now.keys()):
        if netns not in now:
            yield Line(netns, "-", f"ip netns add {netns}")
        elif netns not in before:
            yield Line(netns, "+", f"ip netns add {netns}")
        else:
            yield from _inside(netns, before[netns], now[netns])


def _inside(netns: str, before: Sequence[Value], now: frozenset[Value]) -> Iterator[Line]:
    old, new = {value.key: value for value in before}, {value.key: value for value in now}
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield from _changed(netns, old.get(key), new.get(key))


def _changed(netns: str, old: Value | None, new: Value | None) -> Iterator[Line]:
    for text in unified_diff(_texts(old), _texts(new), n=0, lineterm=""):
        if text[:1] in "+-" and text[:3] not in ("+++", "---"):
            yield Line(netns, text[0], text[1:])


def _texts(value: Value | None) -> list[str]:
    if value is None:
        return []
    lines = kernels.words(value)
    if isinstance(value, File):
        lines += [f"{value.path}: {line}" for line in value.content.splitlines()]
    return lines
