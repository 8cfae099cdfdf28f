"""Every fault on a real cluster: its symptom and only that, the cause named, predicted = observed, undone exactly."""

from collections.abc import Iterator

import pytest

from nsnet import kernel
from tests import faulted
from tests.faulted import Cluster, Row


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    yield made
    made.down()


@pytest.fixture(scope="module")
def before(cluster: Cluster) -> dict[str, str]:
    """What the kernel's own tools print of the healthy cluster."""
    questions = sorted({question for row in faulted.rows() for question in (row.question, *row.well)}, key=str)
    found = dict(zip(map(str, questions), faulted.outcomes(cluster.objects, questions, tries=3), strict=True))
    assert {question: outcome for question, outcome in found.items() if outcome != "ok"} == {}
    return faulted.texts()


@pytest.mark.parametrize("row", faulted.rows(), ids=str)
def test_a_fault_is_seen_named_and_undone(cluster: Cluster, before: dict[str, str], row: Row) -> None:
    healthy = faulted.settled()
    try:
        cluster.add(row.words)
        state, objects = kernel.observe(faulted.NAME), cluster.objects
        (outcome,), well = faulted.outcomes(objects, [row.question]), faulted.outcomes(objects, row.well, tries=3)
        words = faulted.said(objects, state, row.question)
        apart = faulted.disagreement(objects, state, row.question)
    finally:
        cluster.clear()
    assert outcome == row.outcome
    assert well == ["ok"] * len(row.well)
    assert faulted.is_named(row, words), words
    assert apart == ""
    after = faulted.settled()
    assert {name: after[name] ^ healthy[name] for name in healthy if after[name] != healthy[name]} == {}
    assert faulted.changes(before, faulted.texts()) == []
