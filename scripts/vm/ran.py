"""Which kernel tests ran on which kernel, from pytest's JUnit files.

`-o junit_family=xunit1` has it write file names, `-o junit_suite_name` the kernel's release.

ran.py skipped FILE         the tests that were skipped there, one a line, as pytest takes them
ran.py report FILE…         what was skipped on each kernel and why; exit code 1 when a test ran on none

What needs a file that "is not on this machine" (the published manifests, which tests read where they are) needs no
other kernel: it is told, and no error.
"""

import sys
from pathlib import Path
from xml.etree import ElementTree as ET

Skips = dict[str, str]  # test → why
ABSENT = "is not on this machine"


def read(path: str) -> tuple[str, set[str], Skips]:
    """The kernel's release, the tests that ran, and those that were skipped."""
    root = ET.parse(path).getroot()  # noqa: S314  (written by pytest a moment ago)
    suite = root.find("testsuite")
    ran: set[str] = set()
    skips: Skips = {}
    for case in root.iter("testcase"):
        skipped = case.find("skipped")
        if skipped is None or skipped.get("type") == "pytest.xfail":
            ran.add(_name(case))
        else:
            skips[_name(case)] = skipped.get("message", "")
    return "?" if suite is None else suite.get("name", "?"), ran, skips


def _name(case: ET.Element) -> str:
    """As pytest takes it; a module that skips itself is in no class and stands for its file."""
    file, owner = case.get("file", ""), case.get("classname", "")
    if not owner:
        return file or case.get("name", "").replace(".", "/") + ".py"
    inner = owner.removeprefix(file.removesuffix(".py").replace("/", ".")).strip(".")
    return "::".join(filter(None, (file, *inner.split("."), case.get("name"))))


def skipped(path: str) -> int:
    if Path(path).exists():
        print("\n".join(read(path)[2]))
    return 0


def report(paths: list[str]) -> int:
    runs = [read(path) for path in paths if Path(path).exists()]
    anywhere = set[str]().union(*(ran for _, ran, _ in runs))
    for_kernels = ({test for test, why in skips.items() if ABSENT not in why} for _, _, skips in runs)
    nowhere = set[str]().union(*for_kernels) - anywhere
    for kernel, ran, skips in runs:
        print(f"kernel {kernel}: {len(ran)} tests ran, {len(skips)} skipped")
        for test, why in sorted(skips.items()):
            print(f"  {test}: {why} ({'ran on another kernel' if test in anywhere else 'ran nowhere'})")
    if nowhere and len(runs) > 1:
        print(f"error: {len(nowhere)} tests ran on none of the {len(runs)} kernels", file=sys.stderr)
    elif len(runs) > 1:
        print("every test ran on at least one of them")
    return int(bool(nowhere) and len(runs) > 1)


if __name__ == "__main__":
    sys.exit(skipped(sys.argv[2]) if sys.argv[1] == "skipped" else report(sys.argv[2:]))
