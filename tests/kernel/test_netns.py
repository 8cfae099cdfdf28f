"""Namespaces: whose they are, entering and coming home, what a kill leaves, and when they are really gone."""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from nsnet import names
from nsnet.diff import diff
from nsnet.kernel import apply, destroy, netlink, netns, observe, teardown
from nsnet.state import Bridge, Loopback, Netns
from tests.byhand import World, adds, cluster, merged, namespace, pair

ONE, TWO, MARK = "t.node.one", "t.pod.default.two", "nsnet/t"


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    for name in ("t", "t-2"):
        assert destroy(name)
    assert left() == []


def left() -> list[str]:
    """Everything of ours on the machine."""
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if "/run/netns" in line]
    there = list(names.NETNS.iterdir()) if names.NETNS.exists() else []
    return [*teardown.left("t"), *teardown.left("t-2"), *mounts, *map(str, there)]


def here() -> str:
    return str(Path("/proc/thread-self/ns/net").readlink())


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


# --- names and marks --------------------------------------------------------------------------------------------------


def test_created_with_mark_and_lo_up_and_seen_by_ip_netns() -> None:
    assert netns.create([(ONE, MARK), (TWO, MARK)]) == ({ONE, TWO}, {})
    found = observe("t", {name: frozenset({("netns",), ("link",)}) for name in (ONE, TWO)})
    assert found == {name: {Netns(MARK), Loopback()} for name in (ONE, TWO)}
    assert sorted(line.split()[0] for line in ip("netns", "list").splitlines()) == [ONE, TWO]
    assert "UP" in ip("-n", ONE, "link", "show", "lo")
    assert netns.create([(ONE, MARK)]) == (set(), {}), "creating what is there is success"


def test_a_name_of_somebody_elses_is_refused() -> None:
    ip("netns", "add", ONE)
    made, failures = netns.create([(ONE, MARK), (TWO, MARK)])
    assert made == {TWO}
    assert str(failures[ONE]) == f"[Errno 17] /run/netns/{ONE} leads to a namespace that does not bear 'nsnet/t'"
    assert netns.listing("t") == [TWO]
    assert netns.candidates("t") == [ONE, TWO]
    assert destroy("t")
    assert netns.candidates("t") == [ONE]
    ip("netns", "delete", ONE)


def test_what_ip_netns_does_beside_us_works() -> None:
    netns.create([(ONE, MARK)])
    ip("netns", "add", "theirs")
    ip("netns", "delete", ONE)
    assert netns.listing("t") == []
    netns.create([(ONE, MARK)])
    ip("netns", "delete", "theirs")
    assert netns.listing("t") == [ONE]


def test_a_name_that_leads_nowhere_is_a_leftover() -> None:
    netns.create([(TWO, MARK)])
    Path(netns.path_of(ONE)).touch()
    assert netns.half_made("t") == [ONE]
    assert netns.listing("t") == [TWO]
    assert set(observe("t")) == {TWO}
    assert netns.create([(ONE, MARK)]) == ({ONE}, {})
    Path(netns.path_of("t.pod.default.three")).touch()
    apply(adds(namespace("t.pod.default.four")))
    assert netns.half_made("t") == []


def test_deleting_what_is_not_there_is_success() -> None:
    netns.delete(ONE)
    assert netns.mark_of(ONE) is None
    assert netns.identity(ONE) is None
    assert destroy("t")


def test_clusters_are_those_whose_mark_is_found() -> None:
    netns.create([(ONE, MARK), ("t-2.node.one", "nsnet/t-2")])
    ip("netns", "add", "other.node.one")
    assert netns.clusters() == {"t", "t-2"}
    ip("netns", "delete", "other.node.one")


# --- entering ---------------------------------------------------------------------------------------------------------


def test_inside_and_home_again() -> None:
    netns.create([(ONE, MARK), (TWO, MARK)])
    home = here()
    with netns.inside(ONE):
        one = here()
        with netns.inside(TWO):
            two = here()
        assert here() == one
    assert here() == home
    assert len({home, one, two}) == 3
    fd = netns.open_fd(ONE)
    with netns.inside(fd):
        assert here() == one
    os.close(fd)
    with pytest.raises(KeyError), netns.inside(ONE):
        raise KeyError
    assert here() == home


@pytest.mark.parametrize(("make", "error"), [(False, FileNotFoundError), (True, OSError)])
def test_a_name_that_leads_to_no_namespace_cannot_be_entered(make: bool, error: type[OSError]) -> None:
    netns.create([(TWO, MARK)])
    if make:
        Path(netns.path_of(ONE)).touch()
    home = here()
    with pytest.raises(error), netns.inside(ONE):
        pytest.fail("entered")
    assert here() == home


def test_only_the_calling_thread_moves() -> None:
    netns.create([(ONE, MARK)])
    home, seen = here(), []
    with netns.inside(ONE):
        other = threading.Thread(target=lambda: seen.append(Path("/proc/self/ns/net").readlink()))
        other.start()
        other.join()
        inside = here()
    assert here() == home != inside


# --- really gone ------------------------------------------------------------------------------------------------------


def test_gone_means_that_the_links_are_gone() -> None:
    """The other end of a pair stands in a namespace that stays: it goes when the kernel takes the pair down."""
    witness = merged(namespace("t-2.fabric.w", Bridge("br0", "02:00:00:00:00:01")), namespace(ONE))
    pairs = [pair(f"t-2.fabric.w/v{number}", "br0", f"{ONE}/e{number}", f"10.0.{number}.1/24") for number in range(20)]
    assert apply(adds(merged(witness, *pairs))) == []
    assert len(devices("t-2.fabric.w")) == 22
    assert destroy("t")
    assert devices("t-2.fabric.w") == ["lo", "br0"]


def devices(name: str) -> list[str]:
    with netns.inside(name):
        return [device for _, device in socket.if_nameindex()]


def test_who_is_still_held_is_not_gone() -> None:
    netns.create([(ONE, MARK)])
    fd = netns.open_fd(ONE)
    assert not destroy("t", timeout=0.2)
    os.close(fd)
    assert left() == []


def test_destroy_needs_no_state_and_no_run_directory() -> None:
    want = cluster("t", 2, 2)
    assert apply(adds(want)) == []
    assert not names.run_dir("t").exists()
    assert destroy("t")
    assert left() == []


def test_clusters_with_the_same_addresses_do_not_see_each_other() -> None:
    one, two = cluster("t", 2, 2), cluster("t-2", 2, 2)
    assert apply([*adds(one), *adds(two)]) == []
    assert (diff(observe("t"), one), diff(observe("t-2"), two)) == ([], [])
    assert destroy("t")
    assert observe("t") == {}
    assert diff(observe("t-2"), two) == []


# --- killed at any write ----------------------------------------------------------------------------------------------

WRITES = {"send", "mount", "umount", "unshare", "open", "unlink", "rename", "chmod", "write"}
WANT = cluster("t", 2, 2)


def child(work: Callable[[], object], kill_at: int | None) -> int | None:
    """Runs `work` in a child that kills itself before its n-th write; how many it made, None if it was killed."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(writing, str(counted(work, kill_at)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        said = answer.read()
    _, status = os.waitpid(pid, 0)
    assert bool(said) is not os.WIFSIGNALED(status)
    return int(said) if said else None


def counted(work: Callable[[], object], kill_at: int | None) -> int:
    """One netlink request per send, so that every single one can be the last."""
    netlink._SEND = 1
    seen = 0

    def note(_frame: FrameType, event: str, called: Any) -> None:
        nonlocal seen
        python, builtin = event == "call" and _frame.f_code.co_name in WRITES, event == "c_call"
        if python or (builtin and called.__name__ in WRITES):
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(note)
    work()
    sys.setprofile(None)
    return seen


def build() -> object:
    return apply(adds(WANT))


def heal(want: World) -> int:
    """Rounds until nothing differs."""
    for rounds in range(6):
        changes = diff(observe("t"), want)
        if not changes:
            return rounds
        assert apply(changes) == []
    pytest.fail(f"still different: {changes[0]}")


def moments(work: Callable[[], object], seed: int, count: int) -> list[int]:
    total = child(work, None)
    assert total is not None
    assert total > 50
    return sorted(random.Random(seed).sample(range(1, total + 1), count))


def test_killed_at_any_write_of_a_build_the_next_sync_heals() -> None:
    for moment in [*moments(build, 1, 25), *range(1, 10)]:
        assert destroy("t")
        assert child(build, moment) is None
        assert heal(WANT) <= 3, f"killed at write {moment}"


def test_killed_at_any_write_of_a_build_destroy_leaves_nothing() -> None:
    for moment in moments(build, 2, 25):
        assert destroy("t")
        assert child(build, moment) is None
        assert destroy("t")
        assert left() == [], f"killed at write {moment}"


def test_killed_at_any_write_of_destroy_the_next_leaves_nothing() -> None:
    build()
    for moment in moments(lambda: destroy("t"), 3, 30):
        heal(WANT)
        child(lambda: destroy("t"), moment)
        assert destroy("t")
        assert left() == [], f"killed at write {moment}"


def test_killed_at_any_write_of_a_change_the_next_sync_heals() -> None:
    """From three pods on each node to one, with a node less."""
    for moment in range(1, 120, 5):
        assert heal(cluster("t", 3, 3)) < 6
        changes = diff(observe("t"), WANT)
        child(lambda changes=changes: apply(changes), moment)  # type: ignore[misc]
        assert heal(WANT) <= 3, f"killed at write {moment}"
