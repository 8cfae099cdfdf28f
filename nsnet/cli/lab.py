"""`lab`: learn to find and mend what breaks in networks of clusters.

The labs are files beside the topologies (`topologies/labs`); `nsnet.labs` says what they are. Which one runs, and how
many hints were given, stands in the cluster's own object.
"""

import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from nsnet import control, labs, model, verify
from nsnet.cli import options
from nsnet.cli.change import Change, write
from nsnet.cli.context import changing, clusters, need_root, running
from nsnet.cli.down import remove
from nsnet.cli.files import sources
from nsnet.cli.groups import Group
from nsnet.cli.output import coloured, note, out, print_json, print_table
from nsnet.cli.plan import wanted
from nsnet.cli.target import target
from nsnet.cli.up import build, going_on, until_ready
from nsnet.cli.words import did_you_mean
from nsnet.errors import InputError, NotReachedError
from nsnet.kernel.run import typed
from nsnet.labs import CLUSTER, Lab, Result, State, Step, Way
from nsnet.manifests import Loaded, Source, load
from nsnet.model import Key, Object, Objects

READY_SECONDS = 60.0
TIMEOUT = 0.9  # s; after one a SYN is sent again, and may be balanced to somebody who answers
FORGET_ALL = Step("conntrack -F", ("nodes",))
# A new attempt that has the port of an old one goes its way, for two minutes: what never had an answer is forgotten.
FORGET = tuple(Step(f"conntrack -D -p tcp --state {state}", ("nodes",)) for state in ("SYN_SENT", "SYN_RECV"))
LEVELS = {1: "first steps", 2: "takes a while", 3: "hard"}
CHECKOUT, INSTALLED = Path(__file__).parents[2] / "topologies" / "labs", Path(sys.prefix) / "share" / "nsnet" / "labs"


@click.group("lab", cls=Group)
def lab() -> None:
    r"""Learn to find and mend what breaks: each lab is a small cluster with one thing wrong.

    \b
    nsnet lab list
    nsnet lab start ip-forward     builds the cluster `lab`, breaks it, tells the story
    sudo ip netns exec lab.node.node1 …, nsnet shell node/node1, nsnet trace …     look, and mend it
    nsnet lab check                is it mended? nsnet lab hint, nsnet lab solve, nsnet lab reset help
    nsnet lab stop
    """


# --- which there are --------------------------------------------------------------------------------------------------


def directory() -> Path:
    """Where the labs are: in a checkout, or where `pip install` has put them."""
    return CHECKOUT if CHECKOUT.is_dir() else INSTALLED


def every() -> list[Lab]:
    """By level, then name. Raises InputError where a file is no lab."""
    found = [labs.parsed(path.read_text(), path.stem) for path in sorted(directory().glob("*.yaml"))]
    return sorted(found, key=lambda one: (one.level, one.name))


def named(name: str) -> Lab:
    """Raises InputError, with the nearest name."""
    known = [path.stem for path in directory().glob("*.yaml")]
    if name not in known:
        raise InputError(f'there is no lab "{name}"{did_you_mean(name, known)}', "nsnet lab list")
    return labs.parsed((directory() / f"{name}.yaml").read_text(), name)


def loaded(one: Lab) -> Loaded:
    """What `up` would build for it. Raises InputError."""
    topology = load(sources([str(directory() / one.topology)]), CLUSTER)
    own = load([Source(f"{one.name}.yaml", one.manifests.encode())], CLUSTER) if one.manifests else Loaded({})
    return labs.built(one, topology, own)


@lab.verb("list", anywhere=True)
@options.output("json", "name")
def list_(output: str | None) -> None:
    """List the labs, the easy ones first."""
    found = every()
    if output == "json":
        print_json([{"name": one.name, "title": one.title, "level": one.level} for one in found])
    elif output == "name":
        for one in found:
            out(one.name)
    else:
        print_table([("NAME", "LEVEL", "TITLE"), *((one.name, str(one.level), one.title) for one in found)])
        note(f"level {', '.join(f'{level}: {words}' for level, words in LEVELS.items())}; nsnet lab start NAME")


# --- start, reset, stop -----------------------------------------------------------------------------------------------


@lab.verb("start")
@click.argument("name", metavar="NAME")
def start(name: str) -> None:
    """Build the lab's cluster (in the place of another lab's), break it, and tell the story."""
    one = named(name)
    changing("lab")
    _not_ours()
    with going_on(CLUSTER, f"nsnet lab start {name}", "nsnet lab stop"):
        begin(one)
    for line in told(one):
        out(line)


def begin(one: Lab) -> None:
    """From nothing, or from another lab, to the broken network. Raises NotReachedError, MachineError."""
    until_ready(build(loaded(one), CLUSTER, recreate=False), READY_SECONDS)
    _break(one, dict, judged=True)
    write(CLUSTER, lambda stored: labs.hinted(stored, 0))  # from here on it can be solved


def again(one: Lab) -> None:
    """The broken network as it was when the lab began, in one step: all is put right, and broken."""
    whole = loaded(one).objects

    def change(stored: Objects) -> dict[Key, Object]:
        _, given = labs.running(model.cluster_of(stored))
        return labs.hinted(control.admit(stored, whole, whole=True), given)

    _break(one, change)


def _break(one: Lab, change: Change, *, judged: bool = False) -> None:
    def broken(stored: Objects) -> dict[Key, Object]:
        there = {key: obj for key, obj in change(stored).items() if key.kind != "Fault"}
        return {**there, **labs.damage(one, there)}

    _set_up(running("lab", CLUSTER).objects, (FORGET_ALL,))  # before it is broken: a full table is to stay full
    _, after = write(CLUSTER, broken, judged=judged)
    _set_up(after, (*one.undo, *one.begin))


def _set_up(now: Objects, asked: Sequence[Step]) -> None:
    for step in asked:
        for code, said in steps(now, step):
            if code:
                raise NotReachedError(f"the lab cannot be set up: {labs.shown(step)}: {said.strip()}")


def told(one: Lab) -> Iterator[str]:
    """The story, and what to do with it."""
    yield coloured(f"{one.title}  (lab {one.name}, level {one.level})", "cyan")
    yield ""
    yield one.story.rstrip()
    yield ""
    held = (
        "kube-proxy, flanneld and the CNI plugins keep their hands off: what you change stays."
        if one.held
        else ("The controllers are at work: change the objects, and the kernel follows.")
    )
    yield held
    yield "namespaces  ip netns list | grep ^lab.   for example: ip netns exec lab.node.node1 …, nsnet shell node/node1"
    yield "then        nsnet lab check, nsnet lab hint, nsnet lab reset, nsnet lab stop"


@lab.verb("show")
def show() -> None:
    """Tell the story of the running lab again."""
    for line in told(_current()[0]):
        out(line)


@lab.verb("reset")
def reset() -> None:
    """Back to the broken network as it was at the start; the hints stay given."""
    changing("lab")
    started = time.perf_counter()
    one, _ = _current()
    again(one)
    out(f"lab {one.name} is as it was at the start  ({time.perf_counter() - started:.2f} s)")


@lab.verb("stop")
def stop() -> None:
    """Remove the lab's cluster. Nothing there is success."""
    changing("lab")
    _not_ours()
    remove(CLUSTER)


def _not_ours() -> None:
    """Raises InputError where somebody's own cluster has the name that labs use."""
    there = _objects()
    if there and not labs.running(model.cluster_of(there))[0]:
        raise InputError(f"the cluster {CLUSTER} that is up is no lab", f"nsnet down {CLUSTER}, if it is not needed")


def _objects() -> Objects:
    """Of the cluster that labs use; empty where it is not up, or nothing was stored yet."""
    if CLUSTER not in clusters():
        return {}
    try:
        return running("lab", CLUSTER).objects
    except InputError:
        return {}


def _current() -> tuple[Lab, Objects]:
    """The lab that runs. Raises InputError where none does."""
    need_root("lab")
    now = _objects()
    name = labs.running(model.cluster_of(now))[0] if now else ""
    if not name:
        raise InputError("no lab is running", "nsnet lab list; nsnet lab start NAME")
    if not labs.is_set_up(model.cluster_of(now)):
        raise InputError(f"lab {name} was not set up to its end", f"nsnet lab start {name}")
    return named(name), now


# --- hints and solutions ----------------------------------------------------------------------------------------------


@lab.verb("hint")
def hint() -> None:
    """Give the next hint; there are three, each says more."""
    changing("lab")
    one, now = _current()
    _, given = labs.running(model.cluster_of(now))
    count = min(given + 1, len(one.hints))
    if count > given:
        write(CLUSTER, lambda stored: labs.hinted(stored, count))
    else:
        note("that was all: nsnet lab solve shows how it is mended")
    for number, words in enumerate(one.hints[:count], 1):
        out(f"{number}. {words.strip()}")


@lab.verb("solve")
@click.argument("number", required=False, type=click.IntRange(min=1), metavar="[N]")
@click.option("--show", "only_show", is_flag=True, help="Show the ways, and run nothing.")
def solve(number: int | None, only_show: bool) -> int:
    """Mend it by the first way that the lab knows, or the Nth, typing each command; and check it."""
    changing("lab")
    one, now = _current()
    if only_show:
        for index, way in enumerate(one.solutions, 1):
            out(coloured(f"{index}. {way.name}", "cyan"))
            for step in way.steps:
                out(f"   {labs.shown(step)}")
        return 0
    if number and number > len(one.solutions):
        raise InputError(f"lab {one.name} knows {len(one.solutions)} ways", "nsnet lab solve --show")
    way = one.solutions[(number or 1) - 1]
    out(coloured(way.name, "cyan"))
    for words in walked(now, way):
        out(f"  {words}")
    return checked(one)


def walked(now: Objects, way: Way) -> Iterator[str]:
    """Runs a way's commands, each said before it is run. Raises NotReachedError where one fails."""
    for step in way.steps:
        yield labs.shown(step)
        for code, said in steps(now, step):
            if code:
                raise NotReachedError(f"{labs.shown(step)}: exit code {code}: {said.strip()}", "nsnet lab reset")


def steps(now: Objects, step: Step) -> Iterator[tuple[int, str]]:
    """Exit code and output of the command in each of its places."""
    if not step.where:
        nsnet, *words = step.argv
        assert nsnet == "nsnet", step
        yield typed("", (sys.executable, "-m", "nsnet", "--cluster", CLUSTER, *words), stdin=step.stdin)
    for word in step.where:
        for place in labs.places(word, now):
            yield typed(target(now, place).netns, step.argv, stdin=step.stdin)


# --- is it mended? ----------------------------------------------------------------------------------------------------


@lab.verb("check")
@options.output("json")
def check(output: str | None) -> int:
    """Is it mended? Asks with packets and looks at the state; exit code 1 where something is still wrong."""
    return checked(_current()[0], output)


def checked(one: Lab, output: str | None = None) -> int:
    """Prints what is asked and found; the exit code."""
    found = results(one, running("lab", CLUSTER).objects)
    solved = all(good for _, good, _ in found)
    if output == "json":
        rows = [{"name": name, "passed": good, "reason": why} for name, good, why in found]
        print_json({"lab": one.name, "solved": solved, "checks": rows})
    else:
        for name, good, why in found:
            word = coloured("passed", "green") if good else coloured("FAILED", "red")
            out(f"{word}  {name}" + (f": {why}" if why else ""))
        out(coloured("solved", "green") if solved else coloured("not solved yet", "red") + ": nsnet lab hint")
        if solved:
            out(one.lesson.rstrip())
    return 0 if solved else NotReachedError.exit_code


def results(one: Lab, now: Objects, patience: float = 0) -> list[Result]:
    """Is the cluster what it was? Then the lab's own questions; then whether all else works, too.

    Nothing is asked twice: what fails now and then is not mended.
    """
    found = labs.as_it_was(one, wanted(loaded(one), {}), now)
    if not all(good for _, good, _ in found):
        return found
    for step in FORGET:
        list(steps(now, step))
    questions = verify.checks(labs.asked(one, now))
    seconds = patience or one.patience or TIMEOUT
    told = verify.run(questions, retry=0, timeout=seconds, tries=1)
    answers = [(item.title, result.ok, result.reason) for item, result in zip(questions, told, strict=True)]
    found += [*labs.counted(one, answers), *_states(one.state, now)]
    if all(good for _, good, _ in found):
        found += _rest(one, now)
    return found


def _states(asked: Sequence[State], now: Objects) -> Iterator[Result]:
    for item in asked:
        yield from (item.judge(code, said) for code, said in steps(now, item.step))


def _rest(one: Lab, now: Objects) -> Iterator[Result]:
    """What follows from the objects, as `nsnet verify` asks it; packets of full size with the lab's patience."""
    every = verify.expectations(now)
    asked = [item for item in every if not (one.spared and re.search(one.spared, item.name))]
    large = [item for item in asked if item.filler and one.patience]
    told = verify.run([item for item in asked if item not in large], retry=1, keep_going=False)
    told += verify.run(large, timeout=one.patience) if large else []
    failed = [result for result in told if not result.ok and not result.skipped]
    yield "everything else in the cluster works", not failed, f"{failed[0].name}: {failed[0].reason}" if failed else ""
