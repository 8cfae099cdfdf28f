"""`verify --compare-modes`: the running cluster's objects under each mode of kube-proxy, in namespaces nobody sees."""

import os
import sys
from itertools import count

import msgspec

from nsnet.cli.context import Running, clusters
from nsnet.cli.output import coloured, out, print_json, print_table, progress
from nsnet.errors import NotReachedError
from nsnet.kernel import sandbox
from nsnet.verify import compare, modes
from nsnet.verify.compare import Compared
from nsnet.verify.expect import Expectation

PREFIX = "modes-"


class _Line(msgspec.Struct):
    """One line of `nsnet.cli.alone`."""

    mode: str = ""
    words: list[str] = []
    questions: list[Expectation] = []


def compare_modes(now: Running, form: str | None) -> int:
    """Prints the table; the exit code. Raises MachineError where private namespaces cannot be made."""
    found = _found(now.cluster)
    progress("")
    if form == "json":
        print_json(compare.document(found))
    else:
        _print(found)
    return 0 if all(item.ok for item in found) else NotReachedError.exit_code


def _found(cluster: str) -> list[Compared]:
    asked: list[Expectation] = []
    words: dict[str, list[str]] = {}
    progress(f"building {cluster} in private namespaces")
    with sandbox.alone((sys.executable, "-m", "nsnet.cli.alone", cluster, _unused())) as lines:
        for text in lines:
            line = msgspec.json.decode(text, type=_Line)
            asked = line.questions or asked
            if line.mode:
                words[line.mode] = line.words
                progress(f"{len(words)} of {len(modes.MODES)} modes: {line.mode} is done")
    return compare.compared(asked, words)


def _unused() -> str:
    """A name that no cluster of this machine has, nor another comparison that runs now."""
    return next(name for number in count() if (name := f"{PREFIX}{os.getpid()}-{number}") not in clusters())


def _print(found: list[Compared]) -> None:
    print_table(compare.rows(found))
    wrong = [item for item in found if not item.ok]
    for item in wrong:
        listed = ", ".join(f"{mode}: {words}" for mode, words in item.words.items())
        out(f"{coloured('FAILED', 'red')}  {item.name}: {listed}")
    differ = len([item for item in found if item.different])
    word = "each as upstream has it" if not wrong else f"{len(wrong)} of them not known of upstream"
    out(f"{len(found)} checks under {len(modes.MODES)} modes: {differ} differ, {word}")
