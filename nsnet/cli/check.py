"""`verify`: every expectation that follows from the objects and the topology's own checks, answered by real packets."""

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from nsnet import diff, kernel, reconcile, verify
from nsnet.cli import elsewhere, options
from nsnet.cli.context import Running, chosen, running
from nsnet.cli.failing import guarded
from nsnet.cli.output import coloured, error, note, out, print_json, print_table, progress
from nsnet.cli.trace_lines import look_of
from nsnet.errors import InputError, NotReachedError
from nsnet.render import machines
from nsnet.store import location
from nsnet.verify import Expectation, Result, report
from nsnet.verify.asking import PAUSE
from nsnet.verify.why import explained

SHOWN = 20
DRIFT = "drift"
REPORT = "verify.xml"  # in a bundle


class Wish(msgspec.Struct, frozen=True):
    """What shall be verified, and how stubbornly."""

    only: str = ""
    all_pairs: bool = False
    retry: int = 0
    keep_going: bool = False


@options.verb("verify")
@click.option("--list", "listing", is_flag=True, help="Print the expectations; send nothing.")
@click.option("--only", default="", metavar="REGEX", help="Only those whose name it finds (`drift` is one, too).")
@click.option("--all-pairs", is_flag=True, help="All pairs of pods; above some hundred pods a sample is the default.")
@click.option("--retry", type=click.IntRange(min=0), default=0, metavar="N", help="Ask what failed again, N times.")
@click.option("--keep-going", is_flag=True, help="Ask everything, also after failures.")
@click.option("--everywhere", is_flag=True, help="On the cluster's other machines, too, which ssh must reach.")
@click.option("--compare-modes", is_flag=True, help="Instead: a copy under each kubeProxyMode, side by side.")
@options.bundle_on_failure
@click.option("--junit-file", type=click.Path(dir_okay=False), metavar="FILE", help="Write a JUnit report.")
@options.output("json")
@options.cluster
def verify_(
    listing: bool,
    only: str,
    all_pairs: bool,
    retry: int,
    keep_going: bool,
    everywhere: bool,
    compare_modes: bool,
    bundle_on_failure: Path | None,
    junit_file: str | None,
    output: str | None,
    cluster: str | None,
) -> int:
    """Prove with packets that what should be reachable is, and what should not be is not.

    Sockets are opened inside every namespace by one process. Drift, kernel state that is not as wanted, fails as well.
    """
    if compare_modes and (listing or only or all_pairs or retry or keep_going or junit_file):
        raise InputError("--compare-modes asks everything and prints its own table", "leave the other options out")
    if everywhere and (listing or junit_file or output or compare_modes):
        raise InputError("--everywhere prints a table for each machine", "leave the other forms of output out")

    def work(further: dict[str, str]) -> int:
        now = running("verify", cluster)
        if compare_modes:
            from nsnet.cli.compare import compare_modes as compare

            return compare(now, output)
        wish = Wish(only, all_pairs, retry, keep_going)
        found, drift = wished(now, wish)
        if listing:
            _print_list(found, output)
            return 0
        started = time.perf_counter()
        results = results_of(now, found, wish, drift=drift)
        seconds = time.perf_counter() - started
        further[REPORT] = report.junit(results)
        if junit_file:
            _write(junit_file, further[REPORT])
        if output == "json":
            print_json({"passed": report.passed(results), "results": [report.document(item) for item in results]})
        else:
            _print(results, seconds)
        code = 0 if report.passed(results) else NotReachedError.exit_code
        return max([code, *_elsewhere(now, wish)]) if everywhere else code

    return guarded(bundle_on_failure, lambda: chosen(cluster), work)


def _elsewhere(now: Running, wish: Wish) -> Iterator[int]:
    """The same on every other machine of the cluster; the exit codes."""
    words = [*(("--only", wish.only) if wish.only else ()), "--retry", str(wish.retry)]
    words += ["--all-pairs"] * wish.all_pairs + ["--keep-going"] * wish.keep_going
    for machine in elsewhere.others(now):
        out(f"machine {machine}")
        sys.stdout.flush()
        yield elsewhere.run(now, machine, "verify", *words)


def wished(now: Running, wish: Wish) -> tuple[list[Expectation], bool]:
    """The expectations asked for, and whether drift is. Raises InputError where --only finds nothing."""
    every = [*verify.expectations(now.objects, all_pairs=wish.all_pairs), *verify.checks(now.objects)]
    found = _from_here(now, every)
    if not wish.only:
        return found, True
    try:
        return verify.only(found, wish.only), _finds_drift(wish.only)
    except InputError:
        if _finds_drift(wish.only):
            return [], True
        raise


def _from_here(now: Running, found: list[Expectation]) -> list[Expectation]:
    """Those whose packets start on this machine; the others are another machine's to ask."""
    here, places = location.here(now.cluster).machine, machines.where(now.objects)
    kept = [item for item in found if places.get(item.netns, here) == here]
    if len(kept) < len(found):
        away = ", ".join(sorted(set(places.values()) - {here}))
        note(f"note: {len(found) - len(kept)} checks start on other machines: run `nsnet verify` on {away}, too")
    return kept


def _finds_drift(pattern: str) -> bool:
    try:
        return re.search(pattern, DRIFT) is not None
    except re.error:
        return False


def results_of(now: Running, found: list[Expectation], wish: Wish, *, drift: bool) -> list[Result]:
    """Drift first, then packets; with `retry` drift is looked at again, too: the controller may be mending it."""
    lines = _drift(now) if drift else []
    results = verify.run(found, progress=_show, retry=wish.retry, keep_going=wish.keep_going)
    for number in range(wish.retry):
        if report.passed(lines):
            break
        time.sleep(PAUSE if number else 0)
        lines = _drift(now)
    progress("")
    look = look_of({}, now.objects)
    with elsewhere.kernels(now) as kernels:
        state = (lambda: kernels.look("", {})) if kernels else (lambda: kernel.observe(now.cluster))
        return [*lines, *explained(found, results, now.objects, state, look.place)]


def _drift(now: Running) -> list[Result]:
    progress("comparing the kernel with what is wanted")
    want = reconcile.wanted(now.objects)
    return verify.drift(diff.diff(kernel.observe(now.cluster), want.state, holds=want.holds))


def _show(done: int, total: int) -> None:
    progress(f"verifying: {done} of {total} calls")


def _print_list(found: list[Expectation], form: str | None) -> None:
    if form == "json":
        print_json([report.listed(item) for item in found])
        return
    for item in found:
        out(f"{item.name}: {verify.describe(item)}")


def _print(results: list[Result], seconds: float) -> None:
    print_table(
        [("CHECKED", "PASSED", "FAILED", "SKIPPED"), *(tuple(map(str, row)) for row in report.summary(results))]
    )
    print_failures(results)
    out(closing(results, seconds))


def print_failures(results: list[Result]) -> None:
    """A line for each failure, on stdout: they are what was asked for."""
    failures = report.rows(results)
    why = {result.name: result.why for result in results if result.why}
    for _, name, reason in failures[:SHOWN]:
        out(f"{coloured('FAILED', 'red')}  {name}: {reason}")
        if name in why:
            out(f"        {coloured(why[name], 'yellow')}")
    if len(failures) > SHOWN:
        out(f"and {len(failures) - SHOWN} more (--only REGEX, -o json and --junit-file show all)")


def closing(results: list[Result], seconds: float) -> str:
    """`63 checks passed, 214 calls (0.21 s)`."""
    calls = sum(result.calls for result in results if not result.skipped)
    good = len([result for result in results if result.ok])
    word = f"all {good} checks passed" if good == len(results) else f"{good} of {len(results)} checks passed"
    return f"{coloured(word, 'green' if good == len(results) else 'red')}, {calls} calls  ({seconds:.2f} s)"


def after_up(now: Running, further: dict[str, str]) -> int:
    """What `up` does with a cluster that stands: everything, once more for what failed; the exit code.

    `further` gets the report, for a bundle.
    """
    started = time.perf_counter()
    found, _ = wished(now, Wish())
    results = results_of(now, found, Wish(retry=1), drift=True)
    further[REPORT] = report.junit(results)
    print_failures(results)
    out(closing(results, time.perf_counter() - started))
    if report.passed(results):
        return 0
    error("the cluster does not do what it should", "nsnet verify --keep-going; nsnet status")
    return NotReachedError.exit_code


def _write(name: str, text: str) -> None:
    try:
        Path(name).write_text(text)
    except OSError as failed:
        raise InputError(f"{name}: {failed.strerror}", "name a file that can be written") from failed
