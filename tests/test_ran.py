"""scripts/vm/ran.py: what ran on which kernel, from files that pytest itself writes."""

import subprocess
import sys
from pathlib import Path

import pytest

RAN = Path(__file__).parents[1] / "scripts" / "vm" / "ran.py"
TESTS = """
import os
import pytest

def test_always():
    pass

@pytest.mark.parametrize("kind", ["netem [delay]", "tbf"])
def test_some(kind):
    if kind not in os.environ["HAS"].split(","):
        pytest.skip(f"no {kind}")

class TestInside:
    @pytest.mark.xfail
    def test_known(self):
        raise AssertionError
"""


@pytest.fixture
def top(tmp_path: Path) -> Path:
    (tmp_path / "test_one.py").write_text(TESTS)
    (tmp_path / "test_module.py").write_text("import pytest\npytest.skip('never', allow_module_level=True)\n")
    return tmp_path


def junit(top: Path, release: str, has: str, *words: str) -> Path:
    path = top / f"{release}.xml"
    options = ("-o", "junit_family=xunit1", "-o", f"junit_suite_name={release}")
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options)
    env = {"HAS": has, "PATH": "/usr/bin:/bin"}
    subprocess.run((*command, f"--junitxml={path}", *words), cwd=top, env=env, capture_output=True, check=True)
    return path


def ran(*words: str | Path) -> tuple[int, list[str]]:
    done = subprocess.run([sys.executable, RAN, *words], capture_output=True, text=True, check=False)
    return done.returncode, [*done.stdout.splitlines(), *done.stderr.splitlines()]


def test_what_was_skipped_is_what_pytest_is_given(top: Path) -> None:
    ours = junit(top, "6.18", "tbf")
    assert ran("skipped", ours) == (0, ["test_module.py", "test_one.py::test_some[netem [delay]]"])
    assert ran("skipped", top / "none.xml") == (0, [])
    again = junit(top, "6.1", "netem [delay]", *ran("skipped", ours)[1][1:])
    assert ran("report", ours, again) == (1, [
        "kernel 6.18: 3 tests ran, 2 skipped",
        "  test_module.py: collection skipped (ran nowhere)",
        "  test_one.py::test_some[netem [delay]]: no netem [delay] (ran on another kernel)",
        "kernel 6.1: 1 tests ran, 0 skipped",
        "error: 1 tests ran on none of the 2 kernels",
    ])  # fmt: skip


def test_what_needs_a_file_needs_no_other_kernel(top: Path) -> None:
    (top / "test_module.py").write_text("import pytest\ndef test_data(): pytest.skip('/data is not on this machine')\n")
    ours, theirs = (junit(top, release, "tbf,netem [delay]") for release in ("6.18", "6.1"))
    line = "  test_module.py::test_data: /data is not on this machine (ran nowhere)"
    code, lines = ran("report", ours, theirs)
    assert (code, lines.count(line)) == (0, 2)


def test_all_ran_somewhere(top: Path) -> None:
    (top / "test_module.py").unlink()
    ours, theirs = junit(top, "6.18", "tbf"), junit(top, "6.1", "netem [delay]")
    code, lines = ran("report", ours, theirs)
    assert (code, lines[-1]) == (0, "every test ran on at least one of them")
    assert ran("report", theirs)[0] == 0  # one kernel alone proves nothing either way
