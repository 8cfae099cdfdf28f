"""sync() and destroy() against the real kernel: killed at random moments they leave what the next one finishes."""

import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsnet import diff, kernel, names, reconcile, render
from nsnet.errors import NotReachedError
from nsnet.kernel import netns, teardown
from nsnet.model import Key, Object, Objects
from nsnet.reconcile import Listening, Rooms
from nsnet.store import sqlite
from nsnet.store.objects import save_objects
from tests.built import Place, built

NAME = "cut"
PLACES = {f"node{number}": Place(pods=[f"web-{number}-{pod}" for pod in range(4)]) for number in (1, 2)}
OBJECTS = built(PLACES, name=NAME, services={"web": "10.96.0.7"})


def _as_it_is(objects: Objects, _listening: Listening) -> dict[Key, Object]:
    return dict(objects)


ROOMS = Rooms(kernel.observe, kernel.apply, render.render, _as_it_is, diff.diff, diff.touched)

# Writes `!` when it holds the lock, and then does what is to be interrupted.
VICTIM = """
import sys
from nsnet import reconcile
from nsnet.store import sqlite
from tests.kernel import test_sync as test
with reconcile.lock(test.NAME):
    print("!", flush=True)
    if sys.argv[1] == "up":
        with sqlite.open_store(test.NAME) as store:
            reconcile.sync(store, test.NAME, using=test.ROOMS)
    else:
        reconcile.destroy(test.NAME)
"""


def left() -> list[str]:
    return teardown.left(NAME) + [str(path) for path in (names.state_dir(NAME), names.run_dir(NAME)) if path.exists()]


@pytest.fixture
def nothing() -> Iterator[None]:
    """Before and after the test nothing of the cluster is there."""
    assert left() == []
    yield
    with reconcile.lock(NAME):
        reconcile.destroy(NAME)
    assert left() == []


@pytest.fixture
def store(nothing: None) -> Iterator[sqlite.SqliteStore]:
    assert nothing is None
    with sqlite.open_store(NAME, create=True) as opened:
        save_objects(opened, {}, OBJECTS, 0)
        yield opened


def up(store: sqlite.SqliteStore) -> reconcile.Report:
    with reconcile.lock(NAME):
        return reconcile.sync(store, NAME, using=ROOMS)


def killed(verb: str, after: float) -> bool:
    """Runs up or down in another process and kills that `after` seconds; whether it was still at work."""
    with subprocess.Popen([sys.executable, "-c", VICTIM, verb], stdout=subprocess.PIPE) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"!\n"
        select.select([], [], [], after)
        victim.send_signal(signal.SIGKILL)
        return victim.wait() == -signal.SIGKILL


def seconds_of(verb: str) -> float:
    """How long it works when nobody kills it; the moments to kill at are shares of that, on any machine."""
    with subprocess.Popen([sys.executable, "-c", VICTIM, verb], stdout=subprocess.PIPE) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"!\n"
        start = time.perf_counter()
        assert victim.wait() == 0
        return time.perf_counter() - start


def test_up_twice_changes_nothing_the_second_time(store: sqlite.SqliteStore) -> None:
    first = up(store)
    assert first.refusals == ()
    assert (first.rounds, up(store).changes) == (2, 0)
    assert diff.diff(kernel.observe(NAME), render.render(OBJECTS)) == []


def test_up_killed_at_random_is_finished_by_the_next_up(store: sqlite.SqliteStore) -> None:
    chance = random.Random(3)
    interrupted = 0
    whole = seconds_of("up")
    with reconcile.lock(NAME):
        kernel.destroy(NAME)
    for _ in range(12):
        interrupted += killed("up", chance.uniform(0.0, 0.9 * whole))
        if chance.random() < 0.5:
            assert up(store).refusals == ()
            assert diff.diff(kernel.observe(NAME), render.render(OBJECTS)) == []
            with reconcile.lock(NAME):
                kernel.destroy(NAME)
    assert interrupted > 3
    up(store)
    assert diff.diff(kernel.observe(NAME), render.render(OBJECTS)) == []


def _stored_and_up() -> None:
    with sqlite.open_store(NAME, create=True) as store:
        save_objects(store, {}, OBJECTS, 0)
        up(store)


@pytest.mark.usefixtures("nothing")
def test_down_killed_at_random_is_finished_by_the_next_down() -> None:
    chance = random.Random(5)
    interrupted = 0
    _stored_and_up()
    whole = seconds_of("down")
    for _ in range(8):
        _stored_and_up()
        interrupted += killed("down", chance.uniform(0.0, 0.9 * whole))
        with reconcile.lock(NAME):
            assert reconcile.destroy(NAME)
        assert left() == []
    assert interrupted > 2


def test_what_cannot_be_made_is_said_in_the_kernels_words(store: sqlite.SqliteStore) -> None:
    foreign = names.pod_netns(NAME, "default", "web-1-0")
    subprocess.run(["ip", "netns", "add", foreign], check=True)
    with pytest.raises(NotReachedError, match=f"ip netns add {foreign}: "):
        up(store)
    assert foreign in netns.candidates(NAME)
    assert foreign not in netns.listing(NAME)
    subprocess.run(["ip", "netns", "delete", foreign], check=True)
    up(store)
    assert diff.diff(kernel.observe(NAME), render.render(OBJECTS)) == []


def test_clusters_with_the_same_addresses_stand_side_by_side(store: sqlite.SqliteStore, tmp_path: Path) -> None:
    other = built(PLACES, name="cut2", services={"web": "10.96.0.7"})
    up(store)
    with sqlite.open_file(tmp_path / "store.db") as second:
        save_objects(second, {}, other, 0)
        with reconcile.lock("cut2"):
            reconcile.sync(second, "cut2", using=ROOMS)
            assert up(store).changes == 0
            reconcile.destroy("cut2")
    assert netns.listing("cut2") == []
    assert diff.diff(kernel.observe(NAME), render.render(OBJECTS)) == []
