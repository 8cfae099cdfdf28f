"""In nftables mode: the faults whose cause, symptom or undoing is in the rules."""

from collections.abc import Iterator

import pytest

from tests import faulted
from tests.faulted import Cluster, Row

IN_RULES = {
    "forward-drop", "hairpin-no-masquerade", "no-masquerade", "double-nat", "local-policy", "no-endpoints",
    "wrong-target-port", "policy-forgets-dns", "partition", "loss",
}  # fmt: skip
ROWS = [row for row in faulted.rows() if row.words[0] in IN_RULES]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster("nftables")
    yield made
    made.down()


@pytest.fixture(scope="module")
def before(cluster: Cluster) -> dict[str, str]:
    return faulted.healthy(cluster)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_fault_is_seen_named_and_undone(cluster: Cluster, before: dict[str, str], row: Row) -> None:
    faulted.proved(cluster, before, row)
