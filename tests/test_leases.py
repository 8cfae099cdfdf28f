"""flannel's leases are renewed an hour before their end, as flanneld's `-subnet-lease-renew-margin` has it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from nsnet.controller.leases import Keeper
from nsnet.store import LEASE_SECONDS, Store, sqlite
from nsnet.store.keys import LEASES
from tests.test_store import Clock

OURS, THEIRS = "10.244.1.0-24", "10.244.2.0-24"
RECORD = b'{"PublicIP":"172.18.0.2","PublicIPv6":null,"BackendType":"vxlan"}'
HOUR = 3600


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("nsnet.controller.leases.time.monotonic", found)
    return found


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with sqlite.open_file(tmp_path / "state" / "store.db", clock=clock) as found:
        for name in (OURS, THEIRS):
            found.txn({}, {LEASES + name: RECORD}, lease=found.grant(LEASE_SECONDS))
        yield found


def left(store: Store, name: str) -> int:
    """Seconds that the lease of a record has left; -1 where there is no record any more."""
    store.reap()
    found = store.get(LEASES + name)
    return store.remaining(found.lease) if found else -1


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize(("hours", "renewed"), [(0, 0), (22, 0), (22.99, 0), (23, 1), (23.5, 1), (23.99, 1)])
def test_a_lease_is_renewed_in_its_last_hour(
    store: Store, clock: Clock, hours: float, renewed: int, restarted: bool
) -> None:
    """Whatever the keeper remembers; the record stays as it is, and another's is not touched."""
    keeper = Keeper()
    assert keeper.keep(store, [OURS]) == 0
    clock.now += hours * HOUR
    assert (Keeper() if restarted else keeper).keep(store, [OURS]) == renewed
    assert left(store, OURS) == LEASE_SECONDS - (0 if renewed else hours * HOUR)
    assert left(store, THEIRS) == LEASE_SECONDS - hours * HOUR
    found = store.get(LEASES + OURS)
    assert found is not None
    assert found.value == RECORD
    clock.now += (24.5 - hours) * HOUR  # the old grant has run out
    assert (left(store, OURS) > 0) == bool(renewed)
    assert left(store, THEIRS) == -1


def test_a_record_without_a_lease_is_given_one(store: Store) -> None:
    """What control has just written, or a reservation by hand."""
    store.txn({}, {LEASES + OURS: RECORD})
    assert Keeper().keep(store, [OURS]) == 1
    assert left(store, OURS) == LEASE_SECONDS


def test_every_day_of_a_week(store: Store, clock: Clock) -> None:
    """Looked at as often as the controller does: one renewal in 23 hours."""
    keeper, renewals = Keeper(), 0
    for _ in range(7 * 24 * 2):
        clock.now += HOUR / 2
        assert keeper.due()
        renewals += keeper.keep(store, [OURS])
        assert not keeper.due()
        assert left(store, OURS) > 0
    assert renewals == 7
