"""`policy try`: what would open and what would close if files were applied."""

from collections.abc import Iterator, Sequence

import msgspec

from nsnet import control, reconcile
from nsnet.cli import options
from nsnet.cli.change import facts, for_running
from nsnet.cli.context import Running, need_root, opened
from nsnet.cli.files import placed
from nsnet.cli.output import coloured, out, print_json, warning
from nsnet.cli.policy.reasons import yes
from nsnet.cli.policy.showing import SHOWN, grid, mark
from nsnet.control import policy as rules
from nsnet.model import Objects
from nsnet.store.objects import load_objects
from nsnet.verify import policy as ways
from nsnet.verify import table as tables
from nsnet.verify import world as worlds
from nsnet.verify.table import Protocol, Table
from nsnet.verify.world import Place, World

DNS = 53


class Change(msgspec.Struct, frozen=True):
    """A cell that would change; `because` is what decides it then."""

    source: str
    target: str
    protocol: str
    port: int
    open: bool
    because: tuple[str, ...]


@options.verb("try")
@options.filenames
@options.namespace_of_files
@options.output("json")
@options.cluster
def try_(filenames: tuple[str, ...], namespace: str, output: str | None, cluster: str | None) -> None:
    """Show what would change in the truth table if the files were applied; nothing is applied."""
    now, after = _tried(filenames, namespace, cluster)
    before = worlds.world(now.objects)
    then = worlds.world(after)
    found = list(changes(before, then))
    if output == "json":
        print_json({"changes": found})
        return
    for line in try_lines(before, then, found):
        out(line)


def _tried(filenames: tuple[str, ...], namespace: str, cluster: str | None) -> tuple[Running, Objects]:
    """The cluster, and what its objects would be. Raises InputError as `apply` does."""
    need_root("policy")
    name, loaded, incoming = for_running(filenames, namespace, cluster)
    with opened(name) as store:
        now = Running(name, *load_objects(store, warning))

    def compute() -> Objects:
        return reconcile.completed(control.admit(now.objects, incoming, whole=False), None, facts().now)

    return now, placed(loaded, compute)


def changes(before: World, then: World) -> Iterator[Change]:
    """What opens and what closes between the pods that are there before and after, on every port that they serve."""
    there = {pod.name: pod for pod in before.pods}
    stay = [pod for pod in then.pods if pod.name in there]
    for protocol, port in tables.served(stay):
        for target in (pod for pod in stay if tables.serves(pod, protocol, port) and _matters(pod, port)):
            for source in (pod for pod in stay if pod is not target):
                was = not ways.forbidden(before, there[source.name], there[target.name], protocol, port)
                if was == ways.forbidden(then, source, target, protocol, port):
                    yield _change(then, source, target, protocol, port)


def _matters(pod: Place, port: int) -> bool:
    """What a pod that serves the cluster's DNS has besides 53 is between its own containers."""
    return port == DNS or not (pod.runs and pod.name.startswith("kube-system/"))


def _change(then: World, source: Place, target: Place, protocol: str, port: int) -> Change:
    known = then.policy
    one = rules.decided(known, ways.end_of(known, source), ways.end_of(known, target), port, protocol)
    said = tuple(rules.sentence(side) for side in one.sides if side.allowed == one.allowed and side.selecting)
    return Change(source.name, target.name, protocol, port, one.allowed, said)


def try_lines(before: World, then: World, found: Sequence[Change]) -> Iterator[str]:
    """The tables with only the rows and columns in which something changes, then each change with its reason."""
    if not found:
        yield "nothing would change between the pods there are"
        return
    changed = {(one.source, one.target, one.protocol, one.port) for one in found}
    for protocol, port in dict.fromkeys((one.protocol, one.port) for one in found):
        mine = [one for one in found if (one.protocol, one.port) == (protocol, port)]
        yield coloured(f"{protocol} {port}, rows from, columns to (before>after)", "cyan")
        yield from _changed_grid(then, mine, changed)
        yield ""
    for one in found[:SHOWN]:
        yield f"pod/{one.source} → pod/{one.target} {one.protocol} {one.port}: {yes(not one.open)} → {yes(one.open)}"
        yield from (f"  {line}" for line in one.because or ("no policy selects it any more",))
    if len(found) > SHOWN:
        yield f"and {len(found) - SHOWN} more (-o json shows all)"
    opened_ = sum(one.open for one in found)
    yield f"{opened_} would open, {len(found) - opened_} would close; nothing was applied"
    gone = {pod.name for pod in before.pods} ^ {pod.name for pod in then.pods}
    if gone:
        yield f"not compared, because they would come or go: {', '.join(sorted(gone))}"


def _changed_grid(then: World, mine: Sequence[Change], changed: set[tuple[str, str, str, int]]) -> list[str]:
    protocol: Protocol = "UDP" if mine[0].protocol == "UDP" else "TCP"
    port = mine[0].port
    rows = tuple(pod for pod in then.pods if pod.name in {one.source for one in mine})
    columns = tuple(pod for pod in then.pods if pod.name in {one.target for one in mine})
    cells = []
    for source in rows:
        line = []
        for target in columns:
            sign = mark(not ways.forbidden(then, source, target, protocol, port))
            other = "X" if sign == "." else "."
            line.append(f"{other}>{sign}" if (source.name, target.name, protocol, port) in changed else sign)
        cells.append(line)
    return grid(Table(protocol, port, rows, columns, ()), cells)
