"""The machines of one cluster, as they tell each other by way of the etcd: who is there, who listens, who is in charge.

    /registry/nsnet/machines/<name>     under a lease of its own: which installation it is, and who listens in its
                                        namespaces; it goes when nobody renews the lease any more
    /registry/nsnet/charge              the machine whose controller runs control; under that machine's lease

Every machine renders and applies what is its own. Control (workloads, scheduler, endpoints) needs to know who listens
everywhere, and one at a time does it: whoever has the charge. The record's revision is a fencing token: control's
writes compare it, so that nothing lands of a machine that only thinks it is still in charge (its lease has run out
while it was asleep, say, and another one has taken over).
"""

import time
from collections.abc import Collection, Mapping

import msgspec

from nsnet.errors import InputError
from nsnet.store import Conflict, Entry, Store
from nsnet.store.keys import CHARGE, FENCE, MACHINES
from nsnet.store.objects import Claim

TTL = 10  # seconds a machine may be silent until its pods are no longer ready
BEAT = 2.5
GLANCE = 0.5
FIRST_WORDS = 2.0  # for which control waits, once

Listening = Mapping[str, frozenset[tuple[str, int]]]


class Told(msgspec.Struct, frozen=True):
    """A machine's record. `id` is the installation's, so that one that starts again is not taken for another.

    `reached`: the last writing of objects (the fence's revision) that its kernel has followed.
    `heard`: of who is in charge, the last record of another machine (its revision) that control has gone by.
    """

    id: str
    reached: int = 0
    heard: int = 0
    listening: dict[str, list[tuple[str, int]]] = {}


class Member:
    """This machine among the others. Used by the thread that uses the store."""

    def __init__(self, store: Store, machine: str, ident: str) -> None:
        self.store = store
        self.machine = machine
        self.ident = ident
        self._key = MACHINES + machine
        self._lease = 0
        self._beaten = 0.0
        self._told: bytes = b""
        self._reached = self._heard = 0
        self._patient = 0.0  # until when control may wait for machines that have said nothing yet
        self._silent = False  # there are such
        self.claim: Claim | None = None  # with which control writes, while the charge is ours

    def due(self) -> bool:
        return time.monotonic() >= self._beaten + BEAT

    def beat(self) -> None:
        """Says that we are here; joins (again) where the others have given us up, or our record went by other hands.

        Raises InputError where another machine goes by our name; Unreachable.
        """
        if self._lease:
            try:
                self.store.keep(self._lease)
                self._beaten = time.monotonic()
            except InputError:
                self._lease = 0
        there = self._record()
        if not self._lease or there is None or there.lease != self._lease:
            self._join(there)

    def check(self) -> None:
        """Raises InputError where another machine goes by our name; Unreachable."""
        self._record()

    def _record(self) -> Entry | None:
        there = self.store.get(self._key)
        if there is not None and (other := _decoded(there.value)) is not None and other.id != self.ident:
            raise InputError(
                f"another machine goes by the name {self.machine}",
                f"give this one another name (--machine), or wait {TTL} s if the other one is gone",
            )
        return there

    def _join(self, there: Entry | None) -> None:
        lease = self._lease or self.store.grant(TTL)
        value = self._told or msgspec.json.encode(Told(self.ident))
        try:
            self.store.txn({self._key: there.mod_revision if there else 0}, {self._key: value}, lease=lease)
        except Conflict:
            self._lease = 0
            self.store.revoke(lease)
            self._record()  # says whose it is by now
            raise
        self._lease, self._beaten = lease, time.monotonic()

    def leave(self) -> None:
        """In peace: the others know at once."""
        if self._lease:
            self.store.revoke(self._lease)
            self._lease = 0

    def tell(self, listening: Listening, revision: int) -> None:
        """Writes who listens here, and that the kernel is as the objects of `revision`, where that has changed."""
        written = self.store.written([FENCE]).get(FENCE, 0)
        said = {netns: sorted(ports) for netns, ports in sorted(listening.items())}
        self._reached = written if written <= revision else self._reached
        value = msgspec.json.encode(Told(self.ident, self._reached, self._heard, said))
        if value == self._told or not self._lease:
            return
        try:
            self.store.txn({}, {self._key: value}, lease=self._lease)
        except InputError:
            self._lease = 0  # the others have given us up: the next beat joins again, and says it
        self._told = value

    def heard(self, own: Listening) -> dict[str, frozenset[tuple[str, int]]] | None:
        """Who listens where, on every machine that is there; None while control may wait (`patience`).

        When next it tells, control has gone by that.
        """
        entries = [entry for entry in self.store.list(MACHINES)[0] if entry.key != self._key]
        said = {entry.mod_revision: told for entry in entries if (told := _decoded(entry.value)) is not None}
        self._silent = any(told.reached == 0 for told in said.values())
        if self.patience():
            return None
        self._heard = max(said, default=0)
        others = (told.listening.items() for told in said.values())
        return {netns: frozenset(ports) for each in others for netns, ports in each} | dict(own)

    def in_charge(self) -> bool:
        """Whether control is ours to do; takes the charge where nobody has it."""
        taken = self._taken()
        had, self.claim = self.claim, Claim(self.machine, taken) if taken else None
        if self.claim not in (None, had):
            self._patient = time.monotonic() + FIRST_WORDS
        return taken > 0

    def patience(self) -> float:
        """For how many seconds control may still wait: who has just taken the charge lets others say their first words.

        They are building what they carry, and for what they say then control would have to write once more.
        """
        return max(0.0, self._patient - time.monotonic()) if self._silent else 0.0

    def _taken(self) -> int:
        """The revision at which the charge became ours; 0 where it is not."""
        there = self.store.get(CHARGE)
        if there is not None:
            ours = there.value == self.machine.encode() and there.lease == self._lease
            return there.mod_revision if ours else 0
        if not self._lease:
            return 0
        try:
            return self.store.txn({CHARGE: 0}, {CHARGE: self.machine.encode()}, lease=self._lease)
        except (Conflict, InputError):
            return 0


def _decoded(value: bytes) -> Told | None:
    """None for garbage."""
    try:
        return msgspec.json.decode(value, type=Told)
    except msgspec.MsgspecError:
        return None


def behind(store: Store, expected: Collection[str] = ()) -> list[str]:
    """The machines that have not followed what was written last: of those that are there, and of those expected.

    Whoever is in charge has followed when control has gone by what all others say; while nobody is, no machine has.
    """
    written = store.written([FENCE]).get(FENCE, 0)
    charge = store.get(CHARGE)
    entries = {entry.key.removeprefix(MACHINES): entry for entry in store.list(MACHINES)[0]}
    each = {name: told for name, entry in entries.items() if (told := _decoded(entry.value)) is not None}
    late = {name for name, told in each.items() if charge is None or told.reached < written}
    holder = charge.value.decode() if charge else ""
    others = [entries[name].mod_revision for name in each.keys() - {holder}]
    if holder in each and each[holder].heard < max(others, default=0):
        late.add(holder)
    return sorted({*late, *(name for name in expected if name not in each)})


def await_all(store: Store, timeout: float, expected: Collection[str] = ()) -> list[str]:
    """Waits until nobody is behind; who still is after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while left := behind(store, expected):
        if time.monotonic() >= deadline:
            return left
        store.wait(min(GLANCE, max(0.0, deadline - time.monotonic())))
    return []
