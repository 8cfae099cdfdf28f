"""Wiring: the changes that are rtnetlink messages, in few sends.

Links come first, namespace by namespace: bridges, then veth pairs from the side that is a bridge port, enslaved and up
in the creating message. Then one send per namespace says all the rest in the order in which it can be true: tunnels,
the far ends of pairs, ports, addresses, neighbours, forwarding entries, routes to networks, routes through gateways.

Interface numbers are chosen here, so a message can name a device that the message before it makes.
"""

import errno
import os
import random
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain
from typing import NamedTuple, get_args

from nsnet import names
from nsnet.kernel import netns, rtnl, tun
from nsnet.kernel.netlink import NETLINK_ROUTE, Netlink, Request
from nsnet.kernel.observing import observe
from nsnet.kernel.places import Place, Places, Shut
from nsnet.state import (
    Address,
    Bridge,
    BridgePort,
    Change,
    FdbEntry,
    Ipip,
    Link,
    Loopback,
    Neighbour,
    Route,
    Segments,
    Tun,
    Veth,
    Vxlan,
    Wireguard,
    far_end,
    in_place,
    is_uplink,
)

_End = tuple[str, str]  # namespace, device

_PAIRS = 64  # made in one send; each holds a descriptor of the other namespace open
_ABSENT = {errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.ENXIO, errno.EADDRNOTAVAIL}

# The order inside one send. Addresses go before others come: with a primary one the secondaries of its subnet go too.
_ADDS: Mapping[type, int] = {
    Loopback: 1, Bridge: 2, Veth: 2, Vxlan: 3, Ipip: 3, Tun: 3, Wireguard: 3, BridgePort: 4, Segments: 4, Address: 5,
    Neighbour: 6, FdbEntry: 7, Route: 8,
}  # fmt: skip
WIRED = frozenset(_ADDS)
_DELETES: Mapping[type, int] = {Address: 0, Route: 10, FdbEntry: 11, Neighbour: 12, BridgePort: 13, Segments: 13,
    Loopback: 14,
}  # fmt: skip


class _Pair(NamedTuple):
    """A veth pair to be made from the side of `near`; a change is missing where only the other end was asked for."""

    near_netns: str
    near: Veth
    near_change: Change | None
    far_netns: str
    far: Veth
    far_change: Change | None

    @property
    def change(self) -> Change:
        change = self.near_change or self.far_change
        assert change is not None
        return change


class _Message(NamedTuple):
    """A request with the change it belongs to; `optional` ones may be refused."""

    change: Change
    request: Request
    optional: bool = False


def _is_fabric(name: str) -> bool:
    return names.kind_of(name) == "fabric"


class Wiring:
    """The rtnetlink part of one apply."""

    def __init__(self, places: Places, changes: Mapping[type, Sequence[Change]]) -> None:
        self.places = places
        self.changes = changes
        self.ports: dict[_End, Change] = {(c.netns, _device(c)): c for c in self._adds(BridgePort)}
        self.done: set[tuple[str, tuple[str, ...]]] = set()  # written together with something else
        self.ends: dict[_End, _Pair] = {}  # veth ends that are made, not changed in place

    def _of(self, *types: type) -> Iterator[Change]:
        for each in types:
            yield from self.changes.get(each, ())

    def _adds(self, kind: type) -> list[Change]:
        return [change for change in self._of(kind) if change.verb != "delete"]

    # --- links ---

    def delete_links(self) -> None:
        links = self._of(*get_args(Link))
        going = [change for change in links if change.verb == "delete" or _is_made_anew(change)]
        for name, place, changes in self.places.each(going):
            there = {place.index[_device(c)]: c for c in changes if _device(c) in place.index}
            if there and not self._delete_group(name, list(there)):
                self._send(name, [_Message(change, rtnl.gone(number)) for number, change in there.items()], going=True)
            for change in there.values():
                place.index.pop(_device(change), None)

    def _delete_group(self, name: str, numbers: Sequence[int]) -> bool:
        """Deletes many links of a namespace at once; whether they are gone."""
        if len(numbers) == 1:
            return False
        group = random.getrandbits(30) + 1  # nobody else's
        requests = [*(rtnl.grouped(number, group) for number in numbers), rtnl.group_gone(group)]
        try:
            with self.places.socket(name) as route:
                last = route.ask(requests).get(len(numbers))
        except (Shut, OSError):
            return False
        return last is None or last.code == errno.ENODEV

    def make_links(self) -> None:
        """The fabric's first, so that a node has eth0 before it has cni0, as everywhere.

        Where it must choose a source itself (masquerading what goes out by `lo`) the kernel takes the first device.
        """
        bridges = [change for change in self._adds(Bridge) if not _is_in_place(change)]
        by_near: defaultdict[str, list[_Pair]] = defaultdict(list)
        for pair in self._pairs():
            by_near[pair.near_netns].append(pair)
        for fabric in (True, False):
            self._make_bridges([change for change in bridges if _is_fabric(change.netns) == fabric])
            for name, some in by_near.items():
                if _is_fabric(name) == fabric:
                    self._make_both_ends(name, some)
        self._make_tuns([change for change in self._adds(Tun) if not _is_in_place(change)])

    def _make_bridges(self, adds: list[Change]) -> None:
        for name, place, changes in self.places.each(adds):
            missing = [change for change in changes if not self._is_there(change, place)]
            messages = (self._packed(change, partial(_bridge, change, place)) for change in missing)
            self._send(name, list(chain.from_iterable(messages)))

    def _make_tuns(self, adds: list[Change]) -> None:
        """By ioctl, one by one: no netlink message makes them, and the kernel chooses their numbers."""
        for name, place, changes in self.places.each(adds):
            for change in changes:
                if not self._is_there(change, place):
                    try:
                        place.learn(_device(change), tun.make(name, _device(change)))
                    except OSError as why:
                        self.places.refuse(change, why.strerror or str(why))

    def _make_both_ends(self, name: str, pairs: list[_Pair]) -> None:
        self._make_pairs(name, pairs)
        for pair in pairs:
            if pair.far_change is None and (pair.far_netns, pair.far.name) in self.ends:
                number = self.places.at(pair.far_netns).index[pair.far.name]
                self._send(pair.far_netns, list(_far_end(pair.change, pair.far, number)))

    def _is_there(self, change: Change, place: Place) -> bool:
        """Whether a link of that name exists already: success if it is what is wanted, else a refusal."""
        if _device(change) not in place.index:
            return False
        if not _is_already_so(change):
            self.places.refuse(change, os.strerror(errno.EEXIST))
        return True

    def _pairs(self) -> list[_Pair]:
        """The pairs to be made. Of two ends the near one is the bridge port; one change alone makes a whole pair."""
        adds = (change for change in self._adds(Veth) if not is_uplink(change.value))
        ends = {(c.netns, _device(c)): c for c in adds if not _is_in_place(c)}
        pairs = []
        while ends:
            (name, dev), change = ends.popitem()
            value = change.value
            assert isinstance(value, Veth)
            other_netns, _, other_dev = value.peer.rpartition("/")
            other_change = ends.pop((other_netns, other_dev), None)
            other = other_change.value if other_change else Veth(other_dev, f"{name}/{dev}", "", value.mtu, value.up)
            assert isinstance(other, Veth)
            pair = _Pair(name, value, change, other_netns, other, other_change)
            one, two = (name, dev), (other_netns, other_dev)
            if one not in self.ports and (two in self.ports or two < one):
                pair = _Pair(other_netns, other, other_change, name, value, change)
            pairs.append(pair)
        return pairs[::-1]

    def _make_pairs(self, name: str, pairs: Sequence[_Pair]) -> None:
        changes = [change for pair in pairs for change in (pair.near_change, pair.far_change) if change]
        try:
            place = self.places.at(name)
            with self.places.socket(name) as route:
                for start in range(0, len(pairs), _PAIRS):
                    self._make_some(route, place, pairs[start : start + _PAIRS])
        except (Shut, OSError) as why:
            self.places.refuse_all(changes, str(why))

    def _make_some(self, route: Netlink, place: Place, pairs: Sequence[_Pair]) -> None:
        messages: list[_Message] = []
        with ExitStack() as opened:
            for pair in pairs:
                try:
                    far = self.places.at(pair.far_netns)
                    fd = netns.open_fd(pair.far_netns)
                except (Shut, OSError) as why:
                    self.places.refuse(pair.change, f"{pair.far_netns}: {why}")
                    continue
                opened.callback(os.close, fd)
                if not self._stands(pair, place, far):
                    messages += self._packed(pair.change, partial(self._pair, pair, place, far, fd))
            self._ask(route, messages)

    def _stands(self, pair: _Pair, near: Place, far: Place) -> bool:
        """Whether one of the ends is there already, and so the pair cannot be made."""
        known = ((pair.near_change, near), (pair.far_change, far))
        there = [self._is_there(change, place) for change, place in known if change]  # each says its own refusal
        return any(there)

    def _pair(self, pair: _Pair, near: Place, far: Place, fd: int) -> Iterator[_Message]:
        self.ends[pair.near_netns, pair.near.name] = self.ends[pair.far_netns, pair.far.name] = pair
        numbers = near.make(pair.near.name), far.make(pair.far.name)
        port = self.ports.get((pair.near_netns, pair.near.name))
        hairpin, master = False, 0
        if port is not None and isinstance(port.value, BridgePort) and port.value.bridge in near.index:
            hairpin, master = port.value.hairpin, near.index[port.value.bridge]
            self.done.add((port.netns, port.value.key))
        yield _Message(pair.change, rtnl.pair(pair.near, pair.far, numbers, fd, master))
        yield _Message(pair.change, rtnl.named(numbers[0], f"{pair.far_netns}/{pair.far.name}", hairpin))

    # --- everything else that is netlink ---

    def configure(self) -> None:
        self._make_trunks()
        self._make_uplinks()
        kinds = (
            Loopback, Bridge, Veth, Vxlan, Ipip, Tun, Wireguard, BridgePort, Segments, Address, Neighbour, FdbEntry,
            Route,
        )  # fmt: skip
        changes = [change for change in self._of(*kinds) if self._is_left(change)]
        for name, place, some in self.places.each(changes):
            messages = (
                self._packed(change, partial(self._messages, change, place)) for change in sorted(some, key=_rank)
            )
            self._send(name, list(chain.from_iterable(messages)))

    def _make_trunks(self) -> None:
        """Tunnels that the machine itself carries: made from its own namespace, in theirs."""
        adds = [change for change in self._adds(Vxlan) if _is_trunk(change.value) and not _is_in_place(change)]
        for name, place, changes in self.places.each(adds):
            missing = [change for change in changes if not self._is_there(change, place)]
            try:
                with Netlink(NETLINK_ROUTE) as route, ExitStack() as opened:
                    fd = netns.open_fd(name)
                    opened.callback(os.close, fd)
                    self._ask(route, [_Message(change, _trunk(change, place, fd)) for change in missing])
            except OSError as why:
                self.places.refuse_all(missing, str(why))

    def _make_uplinks(self) -> None:
        """Cables to a bridge of the machine's own: made from its namespace, in theirs."""
        adds = [change for change in self._adds(Veth) if is_uplink(change.value) and not _is_in_place(change)]
        for name, place, changes in self.places.each(adds):
            missing = [change for change in changes if not self._is_there(change, place)]
            try:
                with Netlink(NETLINK_ROUTE) as route, ExitStack() as opened:
                    own = {one.name: one for one in rtnl.interfaces(route.dump([rtnl.GET_LINKS])[0]).values()}
                    fd = netns.open_fd(name)
                    opened.callback(os.close, fd)
                    for change in missing:
                        self._ask(route, self._packed(change, partial(_uplink, change, place, own, fd)))
            except OSError as why:
                self.places.refuse_all(missing, str(why))
            made = [change for change in missing if _device(change) in place.index]
            self._send(name, [message for change in made for message in _named_and_up(change, place)])

    def _is_left(self, change: Change) -> bool:
        """Whether the change is not yet done, as part of something else."""
        value = change.value
        match value:
            case Loopback(up):
                return not (up and change.netns in self.places.fresh)
            case Bridge():
                return change.verb != "delete" and _is_in_place(change)
            case Veth() if is_uplink(value):
                return change.verb != "delete" and _is_in_place(change)
            case Veth(name):
                pair = self.ends.get((change.netns, name))
                return change.verb != "delete" and (pair is None or pair.far_change is change)
            case Vxlan():
                return change.verb != "delete" and (bool(value.dev) or _is_in_place(change))
            case Ipip() | Tun() | Wireguard():
                return change.verb != "delete"
        return (change.netns, value.key) not in self.done

    def _messages(self, change: Change, place: Place) -> Iterator[_Message]:
        value = change.value
        if isinstance(value, rtnl.Tunnel) and not _is_in_place(change):
            if not self._is_there(change, place):
                dev = place.index[value.dev] if isinstance(value, Vxlan) else 0
                yield _Message(change, rtnl.tunnel(value, place.make(value.name), dev))
        elif isinstance(value, Veth) and (change.netns, value.name) in self.ends:
            yield from _far_end(change, value, place.index[value.name])
        else:
            yield from (_Message(change, request) for request in rtnl.requests(value, change.verb, place.index))

    def _packed(self, change: Change, pack: Callable[[], Iterable[_Message]]) -> list[_Message]:
        """The messages of one change; none, and a refusal, where it names what is not there or cannot be said.

        Deleting what hangs on a device that is not there is success.
        """
        try:
            return list(pack())
        except KeyError as missing:
            self.places.refuse_all([change], f"{missing.args[0]!r} is not there")
        except (ValueError, OSError, LookupError, struct.error) as error:
            self.places.refuse_all([change], str(error))
        return []

    def _send(self, name: str, messages: Sequence[_Message], *, going: bool = False) -> None:
        """Sends them in a namespace; `going`: their changes are done when what they name is not there."""
        if not messages:
            return
        try:
            with self.places.socket(name) as route:
                self._ask(route, messages, going=going)
        except (Shut, OSError) as why:
            self.places.refuse_all({id(message.change): message.change for message in messages}.values(), str(why))

    def _ask(self, route: Netlink, messages: Sequence[_Message], *, going: bool = False) -> None:
        """Sends them; what is refused becomes a refusal of its change, unless what that asks for is already so."""
        for position, failure in route.ask([message.request for message in messages]).items():
            change = messages[position].change
            absent = (going or change.verb == "delete") and failure.code in _ABSENT
            present = failure.code == errno.EEXIST and _is_already_so(change)
            if not (messages[position].optional or absent or present):
                self.places.refuse(change, str(failure))


def _is_trunk(value: object) -> bool:
    return isinstance(value, Vxlan) and not value.dev


def _trunk(change: Change, place: Place, fd: int) -> Request:
    assert isinstance(change.value, Vxlan)
    return rtnl.tunnel(change.value, place.make(change.value.name), netns_fd=fd)


def _uplink(change: Change, place: Place, own: Mapping[str, rtnl.Interface], fd: int) -> Iterator[_Message]:
    """The pair, from the side of the machine's bridge. Raises LookupError where there is none of that name."""
    value = change.value
    assert isinstance(value, Veth)
    bridge = own.get(value.peer[1:])
    if bridge is None or bridge.kind != "bridge":
        raise LookupError(f"this machine has no bridge {value.peer[1:]}: it must be there before")
    near = Veth(far_end(value), "", "", value.mtu)
    yield _Message(change, rtnl.pair(near, value, (0, place.make(value.name)), fd, bridge.number))


def _named_and_up(change: Change, place: Place) -> Iterator[_Message]:
    assert isinstance(change.value, Veth)
    yield from _far_end(change, change.value, place.index[change.value.name])


def _device(change: Change) -> str:
    assert isinstance(change.value, Link | BridgePort)
    return change.value.name


def _bridge(change: Change, place: Place) -> list[_Message]:
    assert isinstance(change.value, Bridge)
    return [_Message(change, request) for request in rtnl.bridge(change.value, place.make(change.value.name))]


def _is_in_place(change: Change) -> bool:
    """Whether a link keeps its kind and what it is, and only mac, mtu or up change."""
    return change.verb == "replace" and change.old is not None and in_place(change.old, change.value)


def _is_made_anew(change: Change) -> bool:
    return change.verb == "replace" and isinstance(change.value, Link) and not _is_in_place(change)


def _far_end(change: Change, value: Veth, number: int) -> Iterator[_Message]:
    """What the creating message could not say of a pair's other end."""
    yield _Message(change, rtnl.named(number, value.peer))
    if value.mtu >= rtnl.MIN_IPV6_MTU:
        yield _Message(change, rtnl.without_ipv6(number), optional=True)
    if value.up:
        yield _Message(change, rtnl.up_or_down(number, True))


def _rank(change: Change) -> tuple[int, bool]:
    """Routes that go through a gateway come after those that lead to it."""
    value = change.value
    through = isinstance(value, Route) and bool(value.via or value.nexthops)
    return (_DELETES if change.verb == "delete" else _ADDS)[type(value)], through


def _is_already_so(change: Change) -> bool:
    """Asks the kernel whether what is there under the key is what is wanted."""
    cluster = change.netns.partition(".")[0]
    return change.value in observe(cluster, {change.netns: frozenset({change.value.key})}).get(change.netns, ())
