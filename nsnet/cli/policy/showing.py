"""`policy show`: the truth table, wanted against seen."""

from collections.abc import Iterator, Sequence

import click

from nsnet.cli import options
from nsnet.cli.context import running
from nsnet.cli.output import coloured, note, out, print_json, progress, table
from nsnet.control.policy.words import HOST_NETWORK
from nsnet.errors import InputError, NotReachedError
from nsnet.verify import table as tables
from nsnet.verify import world as worlds
from nsnet.verify.table import Protocol, Table
from nsnet.verify.world import Place

NAMED_UP_TO = 110  # characters; a wider table's columns have numbers instead of names
SHOWN = 20


def speaks(function: options.Function) -> options.Function:
    words = click.Choice(("TCP", "UDP"), case_sensitive=False)
    return click.option("--protocol", type=words, help="Only this one (for --port the default is TCP).")(function)


@options.verb("show")
@click.argument("namespaces", nargs=-1, metavar="[NAMESPACE…]")
@click.option("-A", "--all-namespaces", is_flag=True, help="The pods of all namespaces.")
@click.option("--port", "ports", type=click.IntRange(1, 65535), multiple=True, metavar="N", help="Default: all served.")
@speaks
@click.option("--wanted", is_flag=True, help="Only what the policies say; send no packets.")
@options.output("json")
@options.cluster
def show(
    namespaces: tuple[str, ...],
    all_namespaces: bool,
    ports: tuple[int, ...],
    protocol: Protocol | None,
    wanted: bool,
    output: str | None,
    cluster: str | None,
) -> int:
    """Print who may reach whom: rows from, columns to, one table per port; `.` open, `X` closed.

    Every cell is asked with a packet and shown as `wanted/seen` where the two differ; exit code 1 if any does. Without
    a NAMESPACE it is default.
    """
    if all_namespaces and namespaces:
        raise InputError("-A and a namespace contradict each other", "leave one out")
    now = running("policy", cluster)
    world = worlds.world(now.objects)
    spaces = () if all_namespaces else namespaces or ("default",)
    found = tables.tables(world, spaces, ports, protocol)
    if not wanted:
        found = tables.look(found, progress=lambda done, total: progress(f"asked {done} of {total}"))
        progress("")
    if output == "json":
        print_json({"agree": not any(one.different for one in found), "tables": [_document(one) for one in found]})
    else:
        for line in show_lines(found):
            out(line)
        if any(not spaces or pod.name.partition("/")[0] in spaces for pod in world.guests):
            note(HOST_NETWORK)
    return NotReachedError.exit_code if any(one.different for one in found) else 0


def show_lines(found: Sequence[Table]) -> Iterator[str]:
    """Every table with a line on what it says, and the pairs that packets find otherwise."""
    for number, one in enumerate(found):
        if number:
            yield ""
        yield coloured(f"{one.protocol} {one.port}, rows from, columns to", "cyan")
        yield from grid(one, [[_cell(*pair) for pair in row] for row in _pairs(one)])
        yield _closing(one)
        for source, target in one.different[:SHOWN]:
            yield f"{coloured('DIFFERS', 'red')}  {_words(one, source, target)}"
        if len(one.different) > SHOWN:
            yield f"and {len(one.different) - SHOWN} more (-o json shows all)"


def _pairs(one: Table) -> Iterator[list[tuple[bool, bool | None]]]:
    """Cells as (wanted, seen); what was not asked is seen as wanted."""
    for row, wanted in enumerate(one.wanted):
        yield list(zip(wanted, one.seen[row] if one.seen else wanted, strict=True))


def _cell(wanted: bool, seen: bool | None) -> str:
    if seen is None:
        return f"{mark(wanted)}?"
    return mark(wanted) if wanted == seen else f"{mark(wanted)}/{mark(seen)}"


def mark(is_open: bool) -> str:
    return "." if is_open else "X"


def grid(one: Table, cells: Sequence[Sequence[str]]) -> list[str]:
    """The table as text; names without their namespace where there is only one, numbers where it would be too wide."""
    several = len({pod.name.partition("/")[0] for pod in (*one.sources, *one.targets)}) > 1
    names = {pod: pod.name if several else pod.name.partition("/")[2] for pod in (*one.sources, *one.targets)}
    heads = [names[pod] for pod in one.targets]
    rows = [[names[pod], *line] for pod, line in zip(one.sources, cells, strict=True)]
    if sum(len(head) + 2 for head in heads) > NAMED_UP_TO:
        numbers = {pod: str(number) for number, pod in enumerate(one.sources, 1)}
        heads = [numbers.get(pod, names[pod]) for pod in one.targets]
        rows = [[f"{numbers[pod]} {row[0]}", *row[1:]] for pod, row in zip(one.sources, rows, strict=True)]
    return table([["", *heads], *rows], gap=2)


def _closing(one: Table) -> str:
    cells = [wanted for row in one.wanted for wanted in row]
    said = f"{sum(cells)} of {len(cells)} open"
    if not one.seen:
        return f"{said}; no packets were sent"
    unknown = sum(seen is None for row in one.seen for seen in row)
    more = f"; {unknown} marked ? cannot be told: nobody listens there" if unknown else ""
    good = "packets agree" if not one.different else f"packets find {len(one.different)} otherwise (wanted/seen)"
    return f"{said}, {coloured(good, 'red' if one.different else 'green')}{more}"


def _words(one: Table, source: Place, target: Place) -> str:
    want = one.wanted[one.sources.index(source)][one.targets.index(target)]
    found = "wanted open, nothing passes" if want else "wanted closed, packets pass"
    return f"{source.label} → {target.label} {one.protocol} {one.port}: {found}"


def _document(one: Table) -> dict[str, object]:
    return {
        "protocol": one.protocol,
        "port": one.port,
        "from": [pod.name for pod in one.sources],
        "to": [pod.name for pod in one.targets],
        "wanted": one.wanted,
        "seen": one.seen or None,
    }
