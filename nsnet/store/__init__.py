"""Objects on disk: the contract that SQLite (`sqlite.py`, a file of this machine) and etcd (`etcd.py`) both fulfil.

It is etcd's own contract (v3 API), cut down to what nsnet needs: keys in one flat, ordered space; every write raises
one revision for the whole store; a transaction compares the revisions at which keys were last written and puts or
deletes several keys at once; whoever knows a revision can ask what changed since, until those changes are compacted
away; a lease takes its keys with it when it runs out. Values are bytes; `keys.py` says which bytes stand under which
key, in Kubernetes' own registry layout, `objects.py` reads and writes whole sets of objects, `location.py` says where a
cluster's store is and `opening.py` opens it, `known.py` keeps what was known last while it is away.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol, Self

import msgspec

from nsnet.errors import MachineError, NsnetError

LEASE_SECONDS = 86_400  # flannel's


class Entry(msgspec.Struct, frozen=True):
    """A key and what stands there. `lease` is the id of the lease it goes with, 0 for none."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int = 0


class Event(msgspec.Struct, frozen=True):
    """A key was written at `revision`, or deleted (`value` is None). Delete events carry no value, as in etcd."""

    revision: int
    key: str
    value: bytes | None


class Conflict(NsnetError):  # noqa: N818 - etcd's word
    """A compare of a transaction did not hold: somebody else wrote `key` first. Read again and try again.

    Or we did, and the answer was lost with the connection to etcd: whoever reads again sees that.
    """

    exit_code = 1

    def __init__(self, key: str) -> None:
        super().__init__(f"{key} was changed by somebody else at the same moment", "run the command again")
        self.key = key


class Compacted(NsnetError):  # noqa: N818 - etcd's word
    """The changes since that revision are no longer kept (those since `revision` are): list everything instead."""

    exit_code = 1

    def __init__(self, since: int, revision: int) -> None:
        super().__init__(f"the changes since revision {since} are compacted up to revision {revision}")
        self.revision = revision


class Unreachable(MachineError):  # noqa: N818 - what it is
    """Nobody answers where the store is. What stands in the kernel goes on; what was to be written has to wait."""


Entries = tuple[list[Entry], int]
Events = tuple[list[Event], int]


class Store(Protocol):
    """One open store, used by one thread. Every method may raise MachineError (disk full, damaged), Unreachable."""

    def revision(self) -> int:
        """The store's revision: higher with every transaction that changed something (SQLite's begins at 0)."""
        ...

    def get(self, key: str) -> Entry | None: ...

    def list(self, prefix: str) -> Entries:
        """All entries whose key starts with `prefix`, in order of their keys, and the revision they stand for."""
        ...

    def written(self, keys: Iterable[str]) -> dict[str, int]:
        """At which revision each of the keys was last written; those that are absent are missing."""
        ...

    def txn(self, compares: Mapping[str, int], puts: Mapping[str, bytes | None], *, lease: int = 0) -> int:
        """Puts values (None deletes) at once, if each compared key was last written at that revision (0: is absent).

        Returns the revision of the store after it; deleting what is absent changes nothing. A put key goes with `lease`
        from now on. Raises Conflict, and then nothing was written; InputError where there is no such lease.
        """
        ...

    def changes(self, prefix: str, since: int) -> Events:
        """What happened to keys under `prefix` after revision `since`, oldest first, and the revision reached.

        Raises Compacted.
        """
        ...

    def wait(self, timeout: float) -> bool:
        """Waits at most `timeout` seconds for another process to change the store; True when one (perhaps) did.

        A change made since the last call that returned True counts, so that none can slip between looking and waiting.
        """
        ...

    def fileno(self) -> int:
        """For select: readable when `wait(0)` is worth calling. Wake-ups may get lost; call it now and then anyway."""
        ...

    def grant(self, ttl: int = LEASE_SECONDS) -> int:
        """A new lease of `ttl` seconds; returns its id."""
        ...

    def keep(self, lease: int) -> None:
        """Renews a lease for its whole TTL (etcd's keep-alive). Raises InputError where it is gone."""
        ...

    def attach(self, lease: int, key: str) -> int:
        """Writes the key again as it is, now going with `lease` (0: with none). Returns the revision.

        Raises InputError where there is no such lease or key.
        """
        ...

    def remaining(self, lease: int) -> int:
        """Whole seconds a lease still has; -1 where it is gone (or is 0), as etcd's time-to-live says it."""
        ...

    def revoke(self, lease: int) -> int:
        """Ends a lease and deletes its keys; a lease that is gone is success. Returns the revision."""
        ...

    def reap(self) -> int:
        """Ends all leases that have run out (etcd does it by itself). Returns the revision."""
        ...

    def compact(self, revision: int) -> None:
        """Forgets the changes up to and including `revision`; what stands now stays."""
        ...

    def gone(self) -> bool:
        """Was the store deleted (or replaced) under us? Then nobody else sees what is written here."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...
