"""`fault`: break it on purpose, see what is broken, mend it.

A fault is an object in the store; `add` and `clear` write it as any verb does and wait until the kernel has followed.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import click

from nsnet import faults, model, names
from nsnet.cli import options
from nsnet.cli.change import write
from nsnet.cli.context import changing, chosen, clusters, running
from nsnet.cli.durations import DURATION
from nsnet.cli.groups import Group
from nsnet.cli.kinds import kind_named
from nsnet.cli.output import as_list, coloured, note, out, print_json, print_table
from nsnet.cli.target import HOSTS, spaced, target
from nsnet.cli.words import did_you_mean
from nsnet.errors import InputError
from nsnet.faults import CATALOGUE, Kind
from nsnet.manifests.forms import is_dns_subdomain
from nsnet.model import Fault, FaultSpec, Key, Object, ObjectMeta, Objects

MOST = 3  # places in a row of the table
LONGEST = 10 * 365 * 24 * 3600  # s a fault may be meant to last


@click.group("fault", cls=Group)
@options.cluster_before
def fault() -> None:
    r"""Break the network on purpose, the ways networks break; list what is broken, mend it.

    \b
    nsnet fault list --available      the catalogue; nsnet fault show KIND says symptom, cause, how to find and mend it
    nsnet fault add ip-forward-off --on node/node2 --for 30s
    nsnet fault add delay 100ms --on node/node1
    nsnet fault clear                 everything as it was
    """


# --- list and show ----------------------------------------------------------------------------------------------------


@fault.verb("list")
@click.option("--available", is_flag=True, help="The catalogue: what can be broken.")
@options.output("json", "wide", "name")
@options.cluster
def list_(available: bool, output: str | None, cluster: str | None) -> None:
    """List what is broken now; with --available (or where no cluster is up) what can be."""
    if available or not (cluster or clusters()):
        _print_catalogue(output)
        return
    now = running("fault", cluster)
    found = model.of(now.objects, Fault)
    if output == "json":
        print_json(as_list(map(document, found)))
    elif output == "name":
        for item in found:
            out(item.metadata.name)
    elif not found:
        note("nothing is broken: nsnet fault list --available shows what can be")
    else:
        print_table(_rows(found, wide=output == "wide"))


def document(item: Fault) -> dict[str, object]:
    """The object, and what the catalogue says of its kind."""
    kind = CATALOGUE.get(item.spec.fault)
    return {**model.to_doc(item), **({"describes": kind_document(kind)} if kind else {})}


def _rows(found: Sequence[Fault], *, wide: bool) -> Iterator[list[str]]:
    yield ["NAME", "FAULT", "ON", "TO", "ENDS", "STATUS", *(["SYMPTOM"] if wide else [])]
    for item in found:
        spec, kind = item.spec, CATALOGUE.get(item.spec.fault)
        state = ("left alone" if item.status.done else "being done") if spec.leave else "kept"
        wording = " ".join([spec.fault, *(f"{name}={value}" for name, value in spec.options.items())])
        more = [kind.symptom if kind else "<unknown>"] if wide else []
        yield [
            item.metadata.name,
            wording,
            _some(spec.on, wide=wide) or "everywhere",
            _some(spec.to, wide=wide) or "-",
            left(spec.until),
            state,
            *more,
        ]


def _some(places: Sequence[str], *, wide: bool) -> str:
    """Places as people say them; of many the first ones, unless there is room."""
    found = [place.replace("/default/", "/", 1) for place in places]
    most = len(found) if wide or len(found) <= MOST + 1 else MOST
    return ",".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


def left(until: str) -> str:
    """`in 25s`; `never`."""
    end = faults.time_of(until)
    if end is None:
        return "never"
    seconds = (end - datetime.now(UTC)).total_seconds()
    return f"in {max(0, round(seconds))}s"


def _print_catalogue(output: str | None) -> None:
    kinds = list(CATALOGUE.values())
    if output == "json":
        print_json([kind_document(kind) for kind in kinds])
    elif output == "name":
        for kind in kinds:
            out(kind.name)
    else:
        wide = output == "wide"
        head = ("FAULT", "ON", "WHAT", *(("SYMPTOM",) if wide else ()))
        rows = [(kind.name, _on(kind), kind.title, *((kind.symptom,) if wide else ())) for kind in kinds]
        print_table([head, *rows])


def _on(kind: Kind) -> str:
    words = faults.WORDS[kind.places].replace("NAME", "N").replace(" or ", "|").replace(", ", "|")
    return f"[{words}]" if kind.everywhere else words


def kind_document(kind: Kind) -> dict[str, object]:
    """What the catalogue says, without functions."""
    return {
        "name": kind.name, "title": kind.title, "symptom": kind.symptom, "cause": kind.cause, "detect": kind.detect,
        "mend": kind.mend, "on": faults.WORDS[kind.places], "everywhere": kind.everywhere, "pairs": kind.pairs,
        "options": kind.options, "source": kind.source,
    }  # fmt: skip


@fault.verb("show", anywhere=True)
@click.argument("kind", metavar="KIND")
@options.output("json")
def show(kind: str, output: str | None) -> None:
    """Show a kind of the catalogue: its symptom and cause, how it is found with ordinary tools, how it is mended."""
    found = named(kind)
    if output == "json":
        print_json(kind_document(found))
        return
    for line in described(found):
        out(line)


def named(word: str) -> Kind:
    """Raises InputError, with the nearest name."""
    if word not in CATALOGUE:
        near = did_you_mean(word, CATALOGUE)
        raise InputError(f'there is no fault "{word}"{near}', "nsnet fault list --available")
    return CATALOGUE[word]


def described(kind: Kind) -> Iterator[str]:
    """A page of the catalogue."""
    yield coloured(f"{kind.name}: {kind.title}", "cyan")
    yield f"symptom  {kind.symptom}"
    yield f"cause    {kind.cause}"
    yield "detect"
    yield from (f"  {line}" for line in kind.detect)
    yield "mend by hand"
    yield from (f"  {line}" for line in kind.mend)
    usage = " ".join(filter(None, (
        f"nsnet fault add {kind.name}", *(f"[{item.name}={item.example}]" for item in kind.options),
        f"[--on {faults.WORDS[kind.places]}]" if kind.everywhere else f"--on {faults.WORDS[kind.places]}",
        "[--to …]" if kind.pairs else "",
    )))  # fmt: skip
    yield f"break it  {usage}"
    yield from (f"  {item.name}: {item.words} (default: {item.default or 'none'})" for item in kind.options)
    if kind.source:
        yield f"seen in  {kind.source}"


# --- add and clear ----------------------------------------------------------------------------------------------------


@fault.verb("add")
@click.argument("kind", metavar="KIND")
@click.argument("values", nargs=-1, metavar="[VALUE | NAME=VALUE]…")
@click.option("--on", "on", multiple=True, metavar="PLACE", help="Where: node/N, pod, host/H, svc/S; may be repeated.")
@click.option("--to", "to", multiple=True, metavar="PLACE", help="The other side, of what stands between two.")
@click.option("--for", "duration", type=DURATION, metavar="TIME", help="It ends by itself, as 30s, 5m, 1h.")
@click.option("--name", metavar="NAME", help="What it is called; default: the kind and where.")
@click.option(
    "--leave", type=click.Choice(faults.LEAVES), help="Do the damage once, then leave it (or the whole places) alone."
)
@options.namespace
@options.cluster
def add(
    kind: str,
    values: tuple[str, ...],
    on: tuple[str, ...],
    to: tuple[str, ...],
    duration: float | None,
    name: str | None,
    leave: str | None,
    namespace: str,
    cluster: str | None,
) -> None:
    """Break something. It stays broken, whatever anybody does in the kernel, until `fault clear` or its time is over.

    With --leave the damage is done once and then left alone, so that it can be mended by hand.
    """
    found = named(kind)
    until = _until(duration)
    if name is not None and not is_dns_subdomain(name):
        raise InputError(
            f'"{name}" can be no name', f"lower-case letters, digits, - and .; without --name it is {found.name}-PLACE"
        )
    changing("fault")
    own = chosen(cluster)
    added: list[Fault] = []

    def change(stored: Objects) -> dict[Key, Object]:
        here = tuple(placed(stored, item, namespace) for word in on for item in word.split(","))
        there = tuple(placed(stored, item, namespace) for word in to for item in word.split(","))
        spec = FaultSpec(found.name, here, there, assigned(found, values), until=until, leave=leave or "")
        item = Fault(ObjectMeta(name=name or called(spec)), spec)
        key = model.key_of(item)
        if key in stored:
            raise InputError(f"{key.name} stands already", f"nsnet fault clear {key.name}, or --name another")
        added[:] = [item]
        return {**stored, key: item}

    write(own, change, judged=not faults.OF_THE_KERNEL.isdisjoint(found.needs))
    for item in added:
        out(f"fault/{item.metadata.name} added" + (f", ends {left(item.spec.until)}" if item.spec.until else ""))


def placed(objects: Objects, text: str, namespace: str) -> str:
    """A place as the object has it: pod/NAMESPACE/NAME. Raises InputError where it is not there."""
    namespace, text = spaced(text, namespace)
    word, slash, name = text.rpartition("/")
    if slash and word not in HOSTS and kind_named(word) == "Service":
        if Key("Service", namespace, name) not in objects:
            near = did_you_mean(name, [key.name for key in objects if key.kind == "Service"])
            raise InputError(f'there is no Service "{name}" in namespace {namespace}{near}', "nsnet get svc -A")
        return f"svc/{namespace}/{name}"
    if not slash and Key("Node", "", text) in objects and Key("Pod", namespace, text) not in objects:
        raise InputError(f'"{text}" would be a pod', f"--on node/{text}")
    found = target(objects, text, namespace)
    if found.pod is not None:
        return f"pod/{found.pod.metadata.namespace}/{found.pod.metadata.name}"
    return found.label


def assigned(kind: Kind, values: Sequence[str]) -> dict[str, str]:
    """`100ms`, `delay=100ms jitter=10ms`. Raises InputError for what the kind does not have."""
    said: dict[str, str] = {}
    for number, word in enumerate(values):
        option, equals, value = word.partition("=")
        if not equals and number == 0 and kind.options:
            said[kind.options[0].name] = word
        elif equals and option:
            said[option] = value
        else:
            has = ", ".join(f"{item.name}={item.example}" for item in kind.options) or "none"
            raise InputError(f'{kind.name}: "{word}" is not NAME=VALUE', f"its options: {has}")
    return said


def called(spec: FaultSpec) -> str:
    """`ip-forward-off-node2`: a name that says it; a hash stands for many places."""
    where = "-".join(place.rpartition("/")[2] for place in (*spec.on, *spec.to))
    name = f"{spec.fault}-{where}" if where else spec.fault
    return name if len(name) <= 63 else f"{spec.fault}-{names.suffix(where, 8)}"


def _until(duration: float | None) -> str:
    if duration is None:
        return ""
    if not 0 < duration <= LONGEST:
        raise InputError("--for: it ends after more than nothing, and within ten years", "as 30s, 5m or 1h")
    end = datetime.now(UTC) + timedelta(seconds=duration + 1, microseconds=-1)  # whole seconds
    return end.strftime(faults.UNTIL)


@fault.verb("clear")
@click.argument("which", nargs=-1, metavar="[NAME]…")
@options.cluster
def clear(which: tuple[str, ...], cluster: str | None) -> None:
    """Undo faults by name (or kind); without a name all of them."""
    changing("fault")
    gone: list[str] = []

    def change(stored: Objects) -> dict[Key, Object]:
        gone[:] = cleared(model.of(stored, Fault), which)
        return {key: obj for key, obj in stored.items() if key.kind != "Fault" or key.name not in gone}

    write(chosen(cluster), change)
    for name in gone:
        out(f"fault/{name} cleared")
    if not gone:
        note("nothing was broken")


def cleared(standing: Sequence[Fault], which: Sequence[str]) -> list[str]:
    """The names of those that shall go; a lab's own stay. Raises InputError where a word means none, or only such."""
    known = {item.metadata.name: item for item in standing}
    for word in which:
        meant = [item for name, item in known.items() if word in (name, item.spec.fault)]
        if not meant:
            hint = f"there are: {', '.join(known) or 'none'}"
            raise InputError(f'there is no fault "{word}"{did_you_mean(word, known)}', hint)
        if all(map(_is_of_lab, meant)):
            raise InputError(f"{word} is the lab's own damage", "mend it by hand; nsnet lab solve shows how")
    chosen_ones = [item for name, item in known.items() if not which or {name, item.spec.fault} & set(which)]
    return [item.metadata.name for item in chosen_ones if not _is_of_lab(item)]


def _is_of_lab(item: Fault) -> bool:
    return model.LAB in item.metadata.labels
