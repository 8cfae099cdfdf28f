"""Programs inside namespaces, with the real pod server: started, seen, told and ended."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsnet import names
from nsnet.diff import diff
from nsnet.kernel import apply, destroy, files, netns, observe, process
from nsnet.state import Change, File, Key, Listener, Netns, Process, Value
from tests.byhand import World, adds, merged, namespace

ROUTER, POD = names.fabric_netns("t", "router"), names.pod_netns("t", "default", "web")
CONFIG = str(names.run_dir("t") / "podserver.json")
PODSERVER = Process((sys.executable, "-m", "nsnet.programs.podserver", CONFIG))
MARK = "nsnet/t"


# What a program that is not ours does to be ready.
LISTENS = "import socket\nhere = socket.create_server(('', 0))\n"


def python(code: str, *words: str) -> Process:
    return Process((sys.executable, "-c", LISTENS + code, *words))


SLEEPER = python("import time\ntime.sleep(1000)")
STUBBORN = python("import signal, sys\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: signal.pause()")


@pytest.fixture(autouse=True)
def _empty() -> Iterator[None]:
    assert apply(adds(namespace(ROUTER) | namespace(POD))) == []
    yield
    assert destroy("t")
    assert process.running("t") == []
    assert not names.run_dir("t").exists()


def served(*ports: int) -> File:
    """The pod server's file: one pod, these ports."""
    pod = {"netns": POD, "namespace": "default", "pod": "web", "node": "n", "ip": "10.0.0.2", "hostname": "web"}
    return File(CONFIG, json.dumps({"pods": [{**pod, "tcp": ports, "udp": []}]}))


def wanted(*values: Value) -> World:
    return merged(namespace(ROUTER, *values), namespace(POD))


def write(*values: Value) -> list[str]:
    """Applies the difference to what is there; the reasons of what was refused."""
    return [refusal.reason for refusal in apply(diff(have(), wanted(*values)))]


def have() -> World:
    """Without sysctls and listeners."""
    keep = {"netns", "link", "process", "file"}
    return {name: frozenset(v for v in values if v.key[0] in keep) for name, values in observe("t").items()}


def programs() -> set[Process]:
    return {value for value in have()[ROUTER] if isinstance(value, Process)}


def ports() -> set[int]:
    keys: frozenset[Key] = frozenset({("listener",)})
    return {value.port for value in observe("t", {POD: keys})[POD] if isinstance(value, Listener)}


def pid_of(value: Process) -> int:
    (found,) = (found for found in process.running("t") if found.argv == value.argv)
    return found.pid


def told(fifo: int) -> str:
    """What comes out of a FIFO, within ten seconds."""
    assert select.select([fifo], [], [], 10)[0], "nothing was said"
    return os.read(fifo, 1000).decode()


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    path = tmp_path / "said"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDWR)
    yield path, reading
    os.close(reading)


# --- seen and started -------------------------------------------------------------------------------------------------


def test_a_started_program_is_observed_in_its_namespace_and_ended_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "of whoever typed up")
    monkeypatch.setenv("LANG", "C.UTF-8")
    assert write(SLEEPER) == []
    assert programs() == {SLEEPER}
    pid = pid_of(SLEEPER)
    assert os.getsid(pid) == pid
    assert Path(f"/proc/{pid}/ns/net").stat().st_ino == Path(netns.path_of(ROUTER)).stat().st_ino
    assert Path(f"/proc/{pid}/fd/0").readlink() == Path("/dev/null")
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
    assert {"NSNET_CLUSTER=t", f"NSNET_NETNS={ROUTER}", "LANG=C.UTF-8"} <= set(environment)
    assert not [word for word in environment if word.startswith("SECRET")]
    assert write(SLEEPER) == []
    assert pid_of(SLEEPER) == pid, "what runs is left alone"
    assert write() == []
    assert programs() == set()
    assert not Path(f"/proc/{pid}").exists()


def test_what_a_program_says_is_in_its_log(fifo: tuple[Path, int]) -> None:
    said = (
        "import sys, time\n"
        "print('one', flush=True)\n"
        "print('two', file=sys.stderr, flush=True)\n"
        "open(sys.argv[1], 'w').write('.')\n"
        "time.sleep(1000)"
    )
    for _ in range(2):
        assert write(python(said, str(fifo[0]))) == []
        told(fifo[1])
        assert write() == []
    log = names.run_dir("t") / "log" / f"{Path(sys.executable).name}.log"
    assert log.read_text() == "one\ntwo\n" * 2
    modes = [path.stat().st_mode & 0o777 for path in (log, log.parent, log.parent.parent)]
    assert modes == [0o600, 0o700, 0o700]


def test_a_shell_inside_and_a_child_of_a_program_are_no_programs_of_ours() -> None:
    parent = python(
        "import subprocess, sys, time\nsubprocess.Popen([sys.executable, *sys.argv[1:]])\ntime.sleep(1000)",
        "-c",
        "import time\ntime.sleep(999)",
    )
    assert write(parent) == []
    with netns.inside(ROUTER):
        shell = subprocess.Popen(
            ["sleep", "1000"],
            env={**os.environ, "NSNET_CLUSTER": "t"},
            start_new_session=True,
            stdout=subprocess.DEVNULL,
        )
    try:
        assert programs() == {parent}
    finally:
        shell.kill()
        shell.wait()


def test_a_program_that_died_is_not_there_and_comes_back() -> None:
    assert write(SLEEPER) == []
    pid = pid_of(SLEEPER)
    kill(pid)
    assert programs() == set()
    assert write(SLEEPER) == []
    assert pid_of(SLEEPER) != pid


def kill(pid: int) -> None:
    handle = os.pidfd_open(pid)
    signal.pidfd_send_signal(handle, signal.SIGKILL)
    assert select.select([handle], [], [], 10)[0]
    os.close(handle)


def test_of_two_copies_one_is_left() -> None:
    for _ in range(2):
        assert process.await_ready(process.start(ROUTER, SLEEPER.argv)) == ""
    assert programs() == {Process(SLEEPER.argv, copies=2)}
    assert write(SLEEPER) == []
    assert programs() == {SLEEPER}


def test_one_that_does_not_want_to_go_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PATIENCE", 0.2)
    assert write(STUBBORN) == []
    assert write() == []
    assert programs() == set()


def test_one_that_not_even_that_ends_is_said_of_its_own_change(monkeypatch: pytest.MonkeyPatch) -> None:
    assert write(SLEEPER, STUBBORN) == []
    with monkeypatch.context() as kernel:
        kernel.setattr(process, "PATIENCE", 0.1)
        kernel.setattr(signal, "SIGKILL", signal.SIGTERM)
        (refusal,) = apply([Change("delete", ROUTER, value) for value in (SLEEPER, STUBBORN)])
    assert refusal.change.value == STUBBORN
    assert refusal.reason == f"process {pid_of(STUBBORN)} does not end"


def test_starting_what_cannot_be_run_is_refused() -> None:
    assert write(Process(("/no/such/program", "--now"))) == ["[Errno 2] No such file or directory: '/no/such/program'"]
    assert programs() == set()


# --- ready ------------------------------------------------------------------------------------------------------------


def test_apply_returns_when_the_pod_servers_sockets_are_open() -> None:
    assert write(served(80, 8080), PODSERVER) == []
    assert programs() == {PODSERVER}
    assert ports() == {80, 8080}


def test_a_program_that_ends_before_it_is_ready_is_refused_with_its_last_words() -> None:
    missing = Process((sys.executable, "-m", "nsnet.programs.nosuch", CONFIG))
    (reason,) = write(missing)
    assert reason == f"ended before it was ready, status 1: {sys.executable}: No module named nsnet.programs.nosuch"
    assert programs() == set()


def test_a_program_that_is_never_ready_is_refused_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "READY", 0.2)
    mute = python("import time\ntime.sleep(1000)", "-m", "nsnet.programs.mute")
    (reason,) = write(mute)
    assert reason.startswith("not ready after 0.2 s")
    assert programs() == set()


# --- the file it reads ------------------------------------------------------------------------------------------------


def test_a_changed_file_is_read_again_before_apply_returns() -> None:
    assert write(served(80), PODSERVER) == []
    pid = pid_of(PODSERVER)
    assert write(served(81, 82), PODSERVER) == []
    assert ports() == {81, 82}
    assert pid_of(PODSERVER) == pid
    assert diff(have(), wanted(served(81, 82), PODSERVER)) == []


def test_killed_between_writing_a_file_and_telling_its_program_the_next_sync_tells_it() -> None:
    assert write(served(80), PODSERVER) == []
    files.write(served(81), unread=True)  # and here the writer was killed
    assert ports() == {80}
    assert write(served(81), PODSERVER) == []
    assert ports() == {81}
    assert diff(have(), wanted(served(81), PODSERVER)) == []


def test_a_pods_namespace_that_is_made_anew_gets_its_sockets_again() -> None:
    assert write(served(80), PODSERVER) == []
    netns.delete(POD)
    assert write(served(80), PODSERVER) == []
    assert ports() == {80}
    assert diff(have(), wanted(served(80), PODSERVER)) == []


def test_killed_between_making_a_namespace_and_telling_the_next_sync_tells() -> None:
    assert write(served(80), PODSERVER) == []
    netns.delete(POD)
    files.must_be_read(Path(CONFIG))  # what apply does first; it was killed after it had made the namespace
    netns.create([(POD, MARK)])
    assert ports() == set()
    assert write(served(80), PODSERVER) == []
    assert ports() == {80}


def test_a_program_of_others_gets_sighup(fifo: tuple[Path, int]) -> None:
    code = (
        "import signal, sys\n"
        "say = lambda *_: open(sys.argv[1], 'w').write(open(sys.argv[2]).read())\n"
        "signal.signal(signal.SIGHUP, say)\n"
        "say()\n"
        "while True: signal.pause()"
    )
    config = str(names.run_dir("t") / "x.conf")
    reader = python(code, str(fifo[0]), config)
    assert write(File(config, "one"), reader) == []
    assert told(fifo[1]) == "one"
    assert write(File(config, "two"), reader) == []
    assert told(fifo[1]) == "two"


def test_whoever_has_its_number_by_now_is_left_alone() -> None:
    """SIGHUP has the lower number: it would be the one that ends it."""
    argv = ("sleep", "60")
    with subprocess.Popen(argv) as other:
        assert process.reload(process.Running(other.pid, ROUTER, argv, (0, 0)), CONFIG) == ""
        other.terminate()
    assert other.returncode == -signal.SIGTERM


def test_a_program_that_does_not_answer_is_a_refusal_and_stays_different() -> None:
    assert write(served(80), PODSERVER) == []
    Path(f"{CONFIG}.sock").unlink()
    assert write(served(81), PODSERVER) == ["podserver does not answer: No such file or directory"]
    (change,) = diff(have(), wanted(served(81), PODSERVER))
    assert change.value == served(81)


# --- lost and gone ----------------------------------------------------------------------------------------------------


def test_a_program_whose_namespace_lost_its_name_is_started_anew() -> None:
    assert write(served(80), PODSERVER) == []
    pid = pid_of(PODSERVER)
    netns.delete(ROUTER)
    netns.create([(ROUTER, MARK)])
    assert programs() == {Process(PODSERVER.argv, copies=0)}
    assert write(served(80), PODSERVER) == []
    assert programs() == {PODSERVER}
    assert pid_of(PODSERVER) != pid
    assert ports() == {80}


def test_with_a_namespace_goes_whatever_runs_in_it_and_nothing_else() -> None:
    assert write(SLEEPER) == []
    outside = subprocess.Popen(["sleep", "1000"])
    with netns.inside(ROUTER):
        shell = subprocess.Popen(["sleep", "1000"])
    try:
        apply([Change("delete", ROUTER, Netns(MARK))])
        assert shell.wait(10) == -signal.SIGTERM
        assert outside.poll() is None
        assert process.running("t") == []
        assert set(observe("t")) == {POD}
    finally:
        for each in (outside, shell):
            each.kill()
            each.wait()


def test_destroy_ends_what_runs_even_where_the_name_is_gone() -> None:
    assert write(served(80), PODSERVER) == []
    pid = pid_of(PODSERVER)
    netns.delete(ROUTER)
    assert destroy("t")
    assert not Path(f"/proc/{pid}").exists()


def test_another_cluster_with_a_similar_name_is_left_alone() -> None:
    other = names.fabric_netns("t-2", "router")
    assert apply([*adds(namespace(other, SLEEPER)), Change("add", ROUTER, SLEEPER)]) == []
    assert destroy("t")
    assert [found.netns for found in process.running("t-2")] == [other]
    assert destroy("t-2")
    assert process.running("t-2") == []
