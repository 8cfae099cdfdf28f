"""flannel's leases live 24 hours in an etcd; whoever looks after a node renews its lease an hour before the end.

As flanneld does it (facts/FLANNEL.md §2, `pkg/subnet/etcd/local_manager.go`): a new grant and the record put again as
it is, so that every watcher sees it; the old grant runs out without effect. A record without a grant (what control has
just written, or a reservation somebody put there by hand) is given one. Where nobody renews for 24 hours the lease
ends, and the other nodes forget the way there, as they should.

A SQLite store is one machine's: there is nobody to outlive, and its leases are kept by its being there.
"""

import time
from collections.abc import Collection

from nsnet.errors import InputError
from nsnet.store import LEASE_SECONDS, Conflict, Entry, Store
from nsnet.store.keys import LEASES

MARGIN = 3600  # flannel's -subnet-lease-renew-margin, 60 minutes
LOOK = 30.0  # seconds between two looks at what others may have put


class Keeper:
    """Renews leases. What it knows (when each runs out) is asked again when it is forgotten."""

    def __init__(self) -> None:
        self._until: dict[tuple[str, int], float] = {}  # of a record (key, revision): when it is to be renewed
        self._next = 0.0

    def due(self) -> bool:
        return time.monotonic() >= self._next

    def keep(self, store: Store, subnets: Collection[str]) -> int:
        """Renews what is due of these leases (their names, `10.244.1.0-24`); how many that were."""
        self._next = time.monotonic() + LOOK
        mine = [entry for entry in store.list(LEASES)[0] if entry.key.removeprefix(LEASES) in subnets]
        known = {(entry.key, entry.mod_revision): self._ends(store, entry) for entry in mine}
        renewed = [entry for entry in mine if known[entry.key, entry.mod_revision] <= time.monotonic()]
        self._until = known
        return len([entry for entry in renewed if _renewed(store, entry)])

    def _ends(self, store: Store, entry: Entry) -> float:
        """When the record must be renewed (monotonic seconds)."""
        known = self._until.get((entry.key, entry.mod_revision))
        return known if known is not None else time.monotonic() + store.remaining(entry.lease) - MARGIN


def _renewed(store: Store, entry: Entry) -> bool:
    """False where somebody else has just put it: that has a lease of its own, or is seen at the next look."""
    lease = store.grant(LEASE_SECONDS)
    try:
        store.txn({entry.key: entry.mod_revision}, {entry.key: entry.value}, lease=lease)
    except (Conflict, InputError):
        store.revoke(lease)
        return False
    return True
