"""Places: the namespaces that one apply writes to, and what it was refused. Nothing of it outlives the call.

A namespace is looked at once, before the first write: does it bear the mark (else nothing is written there), and which
interface numbers has it? New ones all have the same, so only the first is asked.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from nsnet import names
from nsnet.kernel import netns, rtnl
from nsnet.kernel.netlink import Netlink
from nsnet.state import Change, Refusal


class Shut(Exception):  # noqa: N818 - no error of a person's, it ends in a Refusal
    """A namespace that cannot be written to, and why."""


class Place:
    """The interface numbers of a namespace, those of the devices about to be made among them."""

    def __init__(self, index: Mapping[str, int]) -> None:
        self.index = dict(index)
        self._top = max(self.index.values(), default=rtnl.LO)

    def make(self, device: str) -> int:
        """The number that a new device will have."""
        self._top += 1
        self.index[device] = self._top
        return self._top

    def learn(self, device: str, number: int) -> None:
        """A device that the kernel has just made, with the number it chose."""
        self.index[device] = number
        self._top = max(self._top, number)


class Places:
    """What one apply has learnt of the namespaces, and the refusals it has collected."""

    def __init__(self) -> None:
        self.refusals: list[Refusal] = []
        self._refused: set[int] = set()
        self.fresh: set[str] = set()
        self._blank: dict[str, int] | None = None  # what a new namespace has: lo, and what tunnel modules put there
        self._known: dict[str, Place] = {}
        self._shut: dict[str, str] = {}

    def refuse(self, change: Change, reason: str) -> None:
        """A change is refused once, for the first reason: what follows from that tells nothing new."""
        if id(change) not in self._refused:
            self._refused.add(id(change))
            self.refusals.append(Refusal(change, reason))

    def refuse_all(self, changes: Iterable[Change], reason: str) -> None:
        """Deleting what is in a namespace that is not there is success."""
        for change in changes:
            if change.verb != "delete":
                self.refuse(change, reason)

    def shut(self, name: str, reason: str) -> None:
        """Nothing can be written in that namespace."""
        self._shut[name] = reason

    def at(self, name: str) -> Place:
        """The namespace, which must be ours. Raises Shut."""
        if name in self._shut:
            raise Shut(self._shut[name])
        if name not in self._known:
            try:
                self._known.setdefault(name, self._learn(name))  # another lane may have been there meanwhile
            except Shut as why:
                self.shut(name, str(why))
                raise
        return self._known[name]

    def _learn(self, name: str) -> Place:
        if name in self.fresh and self._blank is not None:
            return Place(self._blank)
        links = self._links(name)
        index = {one.name: one.number for one in links.values()}
        if name in self.fresh:
            self._blank = index
        elif links[rtnl.LO].alias != names.mark(name.partition(".")[0]):
            raise Shut("the namespace does not bear the cluster's mark")
        return Place(index)

    def _links(self, name: str) -> rtnl.Interfaces:
        with self.socket(name) as route:
            try:
                return rtnl.interfaces(route.dump([rtnl.GET_LINKS])[0])
            except OSError as error:
                raise Shut(str(error)) from error

    def socket(self, name: str) -> Netlink:
        """A route socket in that namespace. Raises Shut."""
        try:
            return netns.netlink(name)
        except FileNotFoundError:
            raise Shut("no such network namespace") from None
        except OSError as error:
            raise Shut(str(error)) from error

    def each(self, changes: Iterable[Change]) -> Iterator[tuple[str, Place, list[Change]]]:
        """The namespaces of these changes that can be written to; the changes of others are refused."""
        grouped: defaultdict[str, list[Change]] = defaultdict(list)
        for change in changes:
            grouped[change.netns].append(change)
        for name, some in grouped.items():
            try:
                place = self.at(name)
            except Shut as why:
                self.refuse_all(some, str(why))
                continue
            yield name, place, some
