"""Every lab as a student has it: broken, mended in each of its ways by commands that a person types, and not by the
ways that only look like it."""

from collections.abc import Iterator

import pytest

from nsnet.cli import lab
from nsnet.cli.context import running
from nsnet.labs import CLUSTER, Lab, Result, Way
from nsnet.model import Objects
from tests.kernel.test_cli_real import nsnet

LABS = lab.every()


@pytest.fixture(scope="module", autouse=True)
def _afterwards() -> Iterator[None]:
    yield
    nsnet("down", "--all")


def now() -> Objects:
    return running("lab", CLUSTER).objects


def wrong(one: Lab) -> list[Result]:
    return [result for result in lab.results(one, now()) if not result[1]]


def is_broken(one: Lab) -> bool:
    """Asked once, and not for long: what hangs, hangs; and an answer takes milliseconds."""
    return not all(good for _, good, _ in lab.results(one, now(), patience=0.7))


def walk(way: Way) -> list[str]:
    return list(lab.walked(now(), way))


@pytest.mark.parametrize("one", LABS, ids=[one.name for one in LABS])
def test_lab(one: Lab) -> None:
    lab.begin(one)
    assert wrong(one), "nothing is broken, as `lab check` asks"
    for way in one.wrong:
        walk(way)
        assert is_broken(one), f"this is taken for a repair: {way.name}"
        lab.again(one)
    for way in one.solutions:
        walk(way)
        assert wrong(one) == [], f"this is no repair: {way.name}"
        lab.again(one)
    assert is_broken(one), "reset does not break it again"
