"""From namespace to namespace: routing, bridges, veth pairs and tunnels, with netfilter's hooks where the kernel's are.

A packet that a namespace sends goes OUTPUT → route → POSTROUTING → device; one that comes in goes PREROUTING → route →
INPUT, or FORWARD → POSTROUTING → device. A bridge with `net.bridge.bridge-nf-call-iptables` shows what it forwards to
PREROUTING, FORWARD and POSTROUTING too. Each step gives all trips that may come of it; a trip that ends is a Way.

Two facts that decide real failures, found by sending packets (facts/FAILURES.md):
- with bridge-nf-call-iptables a DNAT to an address behind the same bridge is bridged, not routed: the frame may leave
  by the port it came in only when that port has hairpin on;
- without it an answer between two pods of one bridge never passes the node's conntrack: its source is the wrong one.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from ipaddress import ip_address
from itertools import islice

import msgspec
from msgspec.structs import replace

from nsnet import state as kernel
from nsnet.names import called, kind_of
from nsnet.state import Bridge, BridgePort, Route, State, Veth, Vxlan
from nsnet.trace import netfilter, ports, process, tunnels
from nsnet.trace.values import Flow, Hop, Packet, Result, Trip, Way
from nsnet.trace.view import BRIDGE_NF, FORWARDING, View, family_of, is_loopback, lookup, source, view

STRAYS = "tcp sequence set"  # in a rule after which a segment is none of its connection's
_TOLERATED = 4  # bytes above its MTU that a device still takes: room for a VLAN tag (is_skb_forwardable)
BE_LIBERAL = "net.netfilter.nf_conntrack_tcp_be_liberal"
ROUTE_LOCALNET = "net.ipv4.conf.all.route_localnet"


class World(msgspec.Struct, frozen=True, eq=False):
    """What a walk looks at: the state, the `recent` lists as they stand, and conntrack entries an answer may meet.

    `family`: with which eyes; a tunnel's outer packet may have others than what it carries.
    """

    state: State
    recent: Collection[tuple[str, str]] = ()
    flows: tuple[Flow, ...] = ()
    family: kernel.Family = "ip"
    views: dict[tuple[str, kernel.Family], View] = {}

    def here(self, netns: str) -> View:
        found = self.views.get((netns, self.family))
        if found is None:
            found = self.views[netns, self.family] = self._seen(netns)
        return found

    def _seen(self, netns: str) -> View:
        chains = self.state.chains(netns, self.family) if isinstance(self.state, kernel.Looking) else None
        return view(self.state.get(netns, frozenset()), self.family, chains)

    def tracked(self, netns: str, protocol: str) -> Iterable[kernel.Conntrack]:
        """The connections that conntrack knows there: read now, where the state is read piece by piece."""
        if isinstance(self.state, kernel.Looking):
            return self.state.tracked(netns, protocol)
        return self.here(netns).tracked.values()

    def macs(self) -> Callable[[str, str], str]:
        """The MAC of the other end of a cable, by its namespace and name."""
        if isinstance(self.state, kernel.Looking):
            return self.state.mac
        return lambda netns, dev: self.here(netns).mac(dev)


class Station(msgspec.Struct, frozen=True):
    """A device that hears what is sent on a wire; bridges in between as (namespace, bridge, port in, port out)."""

    netns: str
    dev: str
    crossed: tuple[tuple[str, str, str, str], ...] = ()
    port: str = ""  # of a bridge: the port by which it hears
    narrow: tuple[int, str, str] | None = (
        None  # the smallest MTU of a device that hears on the way: bytes, where, which
    )


def walk(
    state: State,
    netns: str,
    packet: Packet,
    recent: Collection[tuple[str, str]] = (),
    *,
    size: int = 0,
    most: int | None = None,
) -> list[Way]:
    """Every way the first packet of a connection can go that a process in `netns` opens; no more than `most`.

    `recent`: what the xt_recent lists hold, as (list name, source address); by default nobody has been seen before.
    `size`: of the whole IP packet in bytes, which may not be fragmented; 0: a small one.
    """
    world = World(state, recent, family=family_of(packet.dst))
    ends = (end for way in _send(world, Trip(netns, packet, size=size)) for end in _through_process(world, way))
    return list(islice(ends, most))


def _through_process(world: World, way: Way) -> Iterator[Way]:
    """kube-proxy's userspace process takes the packet for one to itself, and sends another (process.py)."""
    item = process.served(world.state, way)
    if item is None:
        yield way
    elif not item.endpoints:
        yield process.without_endpoint(way, item)
    else:
        for packet in process.asked(item):
            for onward in _send(world, Trip(way.netns, packet)):
                yield process.joined(way, process.picks(way, item), onward, 1 / len(item.endpoints))


def answer(state: State, way: Way, asked: Packet, *, size: int = 0) -> list[Way]:
    """The answer's way back. It counts as delivered only where it started, and from the address that was `asked`.

    `asked` is the packet given to `walk`; an empty source there stands for the one the kernel chose. `size` as there.
    """
    if way.through is not None:
        return _answered_twice(state, way, way.through, asked)
    came, start = way.packet, way.flows[0].netns if way.flows else way.netns
    back = Packet(came.protocol, came.src, came.sport, came.dst, came.dport)
    world = World(state, flows=way.flows, family=family_of(back.dst))
    sent = _send(world, Trip(way.netns, back, size=size))
    return [_judged(state, way, end, start, asked) for end in sent]


def _answered_twice(state: State, way: Way, client: Way, asked: Packet) -> list[Way]:
    """The endpoint answers the process, and the process its client."""
    own = way.flows[len(client.flows) :]
    sent = own[0].came if own else way.packet
    found = []
    for first in answer(state, replace(way, through=None, flows=own), sent):
        if first.result != "delivered":
            found.append(first)
            continue
        found += [replace(last, hops=(*first.hops, *last.hops)) for last in answer(state, client, asked)]
    return found


def _judged(state: State, way: Way, end: Way, start: str, asked: Packet) -> Way:
    if end.result != "delivered":
        unmasked = end.result == "unreachable" and way.flows and way.packet.src == way.flows[0].came.src
        if unmasked and kind_of(way.netns) in {"fabric", "host"} and kind_of(start) == "pod":
            return replace(end, reason=f"{end.reason}: nothing masqueraded {way.packet.src} on its way out")
        return end
    if end.netns != start:
        return replace(
            end, result="unreachable", reason=f"the answer comes to {called(end.netns)}, not to {called(start)}"
        )
    if end.packet.src != asked.dst or (asked.dport and end.packet.sport != asked.dport):
        heard = kernel.socket_address(end.packet.src, end.packet.sport)
        why = f"the answer comes from {heard}, which nobody asked{_past_conntrack(state, way, end)}"
        return replace(end, result="dropped", reason=why)
    return end


def _past_conntrack(state: State, way: Way, end: Way) -> str:
    """Why the answer was not translated back.

    It does not pass where the packet was, or is not shown to netfilter, or is none that conntrack knows.
    """
    place = next((flow.netns for flow in way.flows if flow.came.dst != flow.left.dst), "")
    if not place:
        return ""
    stray = next((hop for hop in end.hops if STRAYS in hop.rule), None)
    if stray is not None:
        by = f"{stray.what} of {called(stray.netns)} moves its sequence number out of the window"
        why = f"{by}, {BE_LIBERAL} is 0, and no rule drops what is INVALID"
        return f": conntrack on {called(place)} takes it for INVALID and does not translate it back ({why})"
    here = view(state.get(place, frozenset()), family_of(end.packet.src))
    if any(hop.netns == place for hop in end.hops) and not here.shows_bridged:
        return f": {called(place)} bridges it past conntrack, {BRIDGE_NF[here.family]} is 0"
    return f": it does not come back through {called(place)}, for nothing masqueraded {way.packet.src} there"


# --- a namespace sends, or hears --------------------------------------------------------------------------------------


def _send(world: World, trip: Trip) -> Iterator[Way]:
    """A process of the namespace sends: the route decides the source, then OUTPUT may change the destination."""
    here = world.here(trip.netns)
    route = lookup(here, trip.packet.dst)
    if route is None or route.kind in {"unreachable", "prohibit", "blackhole"}:
        yield _end("unreachable", trip, _no_route(trip, route))
        return
    first = next(_branches(here, route), (route.dev, route.via))
    src = trip.packet.src or source(here, route, *first)
    trip = _known(world, replace(trip, packet=replace(trip.packet, src=src), dev_out=first[0]))
    for outcome, after in netfilter.hook("OUTPUT", trip, here, world.recent):
        if outcome != "accept":
            yield _ended(outcome, after)
        else:
            yield from _onward(world, netfilter.back_to(after), here)


def _hear(world: World, trip: Trip) -> Iterator[Way]:
    """A packet comes in by `dev_in`."""
    here = world.here(trip.netns)
    trip = trip if trip.looped else _known(world, trip)
    for outcome, one in netfilter.hook("PREROUTING", trip, here, world.recent):
        after = one if trip.looped else netfilter.back_to(one)
        if outcome != "accept":
            yield _ended(outcome, after)
        elif _is_martian(after, here):
            yield _end("dropped", after, f"{trip.dev_in} takes no loopback address: route_localnet is 0")
        elif here.family == "ip" and here.is_local(after.packet.src) and not trip.looped:  # IPv6 has no such check
            yield _end("dropped", after, _own_source(after))
        elif here.is_local(after.packet.dst):
            yield from _input(world, after, here)
        elif not here.forwards:
            yield _end("dropped", after, f"{FORWARDING[here.family]} is 0")
        elif not _is_plausible(after, here):
            yield _end("dropped", after, _implausible(after, here))
        else:
            yield from _forward(world, after, here)


def _own_source(trip: Trip) -> str:
    why = f"martian source: {trip.packet.src} is this namespace's own address"
    itself = any(flow.came.dst != flow.left.dst for flow in trip.flows) and trip.packet.dst == trip.packet.src
    return f"{why}: nothing masqueraded its way to itself" if itself else why


def _implausible(trip: Trip, here: View) -> str:
    route = lookup(here, trip.packet.src)
    back = f"but by {next(_branches(here, route))[0]} ({_spelled(route)})" if route else "nor by any other device"
    return f"rp_filter is 1, and {trip.packet.src} is not routed back by {trip.dev_in} {back}"


def _spelled(route: Route) -> str:
    return kernel.text(route).removeprefix("ip route replace ")


def _input(world: World, trip: Trip, here: View) -> Iterator[Way]:
    for outcome, one in netfilter.hook("INPUT", trip, here, world.recent):
        after = netfilter.back_from(one)
        hops = (*after.hops, Hop(trip.netns, f"delivered to {after.packet.dst}"))
        yield _ended(outcome, after) if outcome != "accept" else _end("delivered", _noted(replace(after, hops=hops)))


def _forward(world: World, trip: Trip, here: View) -> Iterator[Way]:
    if trip.ttl <= 1:
        yield _end("dropped", trip, "the packet goes round in circles: its TTL is used up")
        return
    route = lookup(here, trip.packet.dst)
    dev = next(_branches(here, route), ("", ""))[0] if route else ""
    for outcome, after in netfilter.hook("FORWARD", replace(trip, ttl=trip.ttl - 1, dev_out=dev), here, world.recent):
        if outcome != "accept":
            yield _ended(outcome, after)
        else:
            yield from _onward(world, after, here)


def _known(world: World, trip: Trip) -> Trip:
    """What conntrack says of it: an answer to a connection that passed here, or something new."""
    entries = (flow for flow in world.flows if flow.netns == trip.netns)
    entry = next((flow for flow in entries if netfilter.is_answer(trip.packet, flow.left)), None)
    here = world.here(trip.netns)
    known = replace(trip, reply=entry, came=trip.packet, translated=False, entry=False, liberal=here.is_on(BE_LIBERAL))
    return known if entry else _remembered(known, here)


def _remembered(trip: Trip, here: View) -> Trip:
    """An entry that the connection (the client's same port) made before: it is translated as it was, by no rule."""
    packet = trip.packet
    entry = here.tracked.get((packet.protocol, packet.src, packet.sport, packet.dst, packet.dport))
    if entry is None or not entry.rewritten:
        return trip
    ip, _, port = entry.answerer.rpartition(":")
    hop = Hop(trip.netns, f"conntrack has an entry of before: to {entry.answerer}")
    to = replace(packet, dst=ip.strip("[]"), dport=int(port))
    return replace(trip, packet=to, entry=True, translated=True, hops=(*trip.hops, hop))


def _noted(trip: Trip) -> Trip:
    """The connection as it leaves the namespace: what conntrack will need to recognise the answer."""
    if (
        trip.came is None
        or trip.reply is not None
        or trip.invalid
        or any(flow.netns == trip.netns for flow in trip.flows[-1:])
    ):
        return trip
    return replace(trip, flows=(*trip.flows, Flow(trip.netns, trip.came, trip.packet)))


def _is_martian(trip: Trip, here: View) -> bool:
    """Loopback addresses are for `lo` only, unless route_localnet says otherwise."""
    loopback = is_loopback(trip.packet.src) or is_loopback(trip.packet.dst)
    return loopback and trip.dev_in != "lo" and not _takes_loopback(here, trip.dev_in)


def _takes_loopback(here: View, dev: str) -> bool:
    """On for all devices, or for this one (as the portmap plugin sets it). IPv6 has no such switch."""
    if here.family != "ip":
        return False
    return here.is_on(ROUTE_LOCALNET) or here.is_on(f"net.ipv4.conf.{dev.replace('.', '/')}.route_localnet")


def _is_plausible(trip: Trip, here: View) -> bool:
    """Strict reverse path filtering: the way back to the source must be the device it came in by."""
    if here.family != "ip" or here.sysctls.get("net.ipv4.conf.all.rp_filter") != "1" or trip.dev_in == "lo":
        return True
    route = lookup(here, trip.packet.src)
    return route is not None and trip.dev_in in {dev for dev, _ in _branches(here, route)}


# --- out by a device --------------------------------------------------------------------------------------------------


def _branches(here: View, route: Route) -> Iterator[tuple[str, str]]:
    """(device, gateway) of a route; several for ECMP."""
    if route.nexthops:
        yield from ((dev, via) for via, dev in route.nexthops)
        return
    dev = route.dev
    if not dev and route.via:
        towards = lookup(here, route.via)
        dev = towards.dev if towards else ""
    yield dev, route.via


def _onward(world: World, trip: Trip, here: View) -> Iterator[Way]:
    """Routed (again, for the destination may have changed), then POSTROUTING, then out."""
    route = lookup(here, trip.packet.dst)
    if route is None or route.kind in {"unreachable", "prohibit", "blackhole"}:
        yield _end("unreachable", trip, _no_route(trip, route))
        return
    branches = list(_branches(here, route))
    if route.dev != "lo" and is_loopback(trip.packet.src) and not _takes_loopback(here, branches[0][0]):
        why = "route_localnet is 0" if here.family == "ip" else "IPv6 has no route_localnet"
        yield _end("dropped", trip, f"a loopback source may not leave by {branches[0][0]}: {why}")
        return
    for dev, via in branches:
        if (trip.netns, dev) in trip.carriers:
            why = f"what {dev} sends to {trip.packet.dst} is routed into {dev} itself"
            yield _end("dropped", _share(trip, 1 / len(branches)), why)
            continue
        what = Hop(trip.netns, f"out {dev}" + (f" via {via}" if via else ""), _spelled(route))
        leaving = replace(trip, dev_out=dev, hops=(*trip.hops, what), chance=trip.chance / len(branches))
        for outcome, after in _postrouting(world, leaving, here):
            if outcome != "accept":
                yield _ended(outcome, _unsent(after))
            else:
                yield from _out(world, _noted(netfilter.back_from(after)), here, via)


def _postrouting(world: World, trip: Trip, here: View) -> Iterator[netfilter.Step]:
    """The hook, and behind it conntrack, which keeps the connection, or the packet goes nowhere."""
    for outcome, after in _hook("POSTROUTING", world, trip, here):
        if outcome != "accept" or after.ports is None:
            yield outcome, after
        else:
            yield from ports.confirmed(after, world.tracked(trip.netns, after.packet.protocol))


def _out(world: World, trip: Trip, here: View, via: str) -> Iterator[Way]:
    for lost, after in _queued(trip, here, trip.dev_out):
        if lost:
            yield _end("dropped", _unsent(after), lost)
        else:
            yield from _sent(world, after, here, via)


def _queued(trip: Trip, here: View, dev: str) -> Iterator[tuple[str, Trip]]:
    """What the device's queueing discipline makes of it: why it is lost (by chance), and the packet that goes on."""
    qdisc = here.qdiscs.get(dev)
    if qdisc is None:
        yield "", trip
        return
    seen = replace(trip, hops=(*trip.hops, Hop(trip.netns, f"qdisc {dev} {qdisc.kind}: {', '.join(qdisc.words)}")))
    if qdisc.loss:
        yield f"{qdisc.kind} on {dev} loses {qdisc.loss:g}% of what leaves by it", _share(seen, qdisc.loss / 100)
    if qdisc.loss < 100:
        yield "", _share(seen, 1 - qdisc.loss / 100)


def _share(trip: Trip, chance: float) -> Trip:
    return replace(trip, chance=trip.chance * chance)


def _sent(world: World, trip: Trip, here: View, via: str) -> Iterator[Way]:
    dev = trip.dev_out
    if dev == "lo" or here.is_local(trip.packet.dst):
        yield from _hear(world, replace(trip, dev_in="lo", looped=True))
    elif dev not in here.links:
        yield _end("unreachable", trip, f"there is no device {dev}")
    elif not here.is_up(dev):
        yield _end("unreachable", trip, f"{dev} is down")
    elif trip.size > here.mtu(dev) > 0:
        yield from _too_big(world, trip, here, via)
    elif isinstance(here.links[dev], tunnels.Tunnel):
        yield from _tunnel(world, trip, here, via or trip.packet.dst)
    else:
        yield from _wire(world, trip, here, via or trip.packet.dst)


def _too_big(world: World, trip: Trip, here: View, via: str) -> Iterator[Way]:
    """Its own sender makes it smaller (or fragments it); any other is told by ICMP, and then sends less."""
    mtu = here.mtu(trip.dev_out)
    if not trip.dev_in or not trip.whole:
        yield from _out(world, replace(trip, size=mtu), here, via)
        return
    back = trip.came.src if trip.came else trip.packet.src
    told = Trip(trip.netns, Packet("icmp", back), error=True)
    lost = next((end for end in _send(replace(world, flows=()), told) if end.result != "delivered"), None)
    if lost is None:
        hop = Hop(trip.netns, f"too big for {trip.dev_out}: ICMP tells {back}, which sends {mtu} bytes from now on")
        yield from _out(world, replace(trip, size=mtu, hops=(*trip.hops, hop)), here, via)
        return
    by = lost.hops[-1].what if lost.hops and lost.hops[-1].rule == lost.reason else "its way"
    why = f"{trip.dev_out} takes {mtu} bytes, it has {trip.size}, and the ICMP that should say so is {lost.result}"
    yield _end("dropped", trip, f"{why} at {called(lost.netns)} by {by}: {lost.reason}")


def _next(trip: Trip, netns: str, dev: str, port: str = "") -> Trip:
    """The packet in the next namespace: marks, devices and conntrack's knowledge stay behind."""
    hops = (*trip.hops, Hop(netns, f"in {dev}"))
    return Trip(
        netns, trip.packet, dev_in=dev, port_in=port, hops=hops, flows=trip.flows, chance=trip.chance, ttl=trip.ttl,
        size=trip.size, whole=trip.whole, error=trip.error, stray=trip.stray,
    )  # fmt: skip


# --- a wire: veth pairs and bridges -----------------------------------------------------------------------------------


def _wire(world: World, trip: Trip, here: View, nexthop: str) -> Iterator[Way]:
    dev = trip.dev_out
    mac = here.neighbours.get((dev, nexthop))
    found = next(
        (one for one in _stations(world, trip.netns, dev, mac or "") if _takes(world, one, mac, nexthop)), None
    )
    if found is None:
        yield _lost_on_wire(world, trip, here, mac, nexthop)
    elif trip.size and found.narrow and trip.size > found.narrow[0] + _TOLERATED:
        mtu, where, port = found.narrow
        yield _end(
            "dropped", trip, f"{port} of {called(where)} takes {mtu} bytes, it has {trip.size}: dropped without a word"
        )
    elif not mac and (unheard := _unheard(world, trip, found, nexthop)):
        yield unheard
    elif _hairpin_missing(trip, here, found):
        why = f"hairpin is off on {trip.port_in}: a frame may not leave by the port it came in"
        yield _end("dropped", _unsent(trip), why)
    else:
        yield from _cross(world, trip, found, found.crossed)


def _unheard(world: World, trip: Trip, station: Station, nexthop: str) -> Way | None:
    """IPv6 asks for a neighbour by ICMP, which bridges show to netfilter as they show the packet itself.

    What is not let through is not heard, and then nothing is sent. (ARP is shown to nobody.)
    """
    if world.family != "ip6":
        return None
    group = ip_address(int(ip_address("ff02::1:ff00:0")) | int(ip_address(nexthop)) & 0xFFFFFF)
    for netns, bridge, *_ in station.crossed:
        asking = Trip(netns, Packet("icmp", str(group), src=trip.packet.src), dev_in=bridge, dev_out=bridge, asks=True)
        refused = next((one for outcome, one in _bridged(world, asking) if outcome != "accept"), None)
        if refused is not None:
            by = f"{refused.hops[-1].what}: {refused.hops[-1].rule}"
            why = f"nobody hears who asks for the neighbour {nexthop}: dropped on {called(netns)} by {by}"
            return _end("unreachable", _unsent(trip), why)
    return None


def _lost_on_wire(world: World, trip: Trip, here: View, mac: str | None, nexthop: str) -> Way:
    """Nobody hears it: there is no carrier, or it comes to a switch that leads to nobody who is meant."""
    link = here.links.get(trip.dev_out)
    other, _, port = link.peer.rpartition("/") if isinstance(link, Veth) else ("", "", "")
    there = world.here(other)
    if port in there.links and not there.is_up(port):
        return _end(
            "unreachable",
            _unsent(trip),
            f"no carrier: {port} of {called(other)}, the other end of {trip.dev_out}, is down",
        )
    if isinstance(link, Bridge) and not _has_carrier(world, here, trip.dev_out):
        return _end("unreachable", _unsent(trip), f"no carrier: nothing is plugged into {trip.dev_out} that is up")
    bridge = there.bridge_of(port)
    if bridge is None or mac is None:
        lost = trip if mac else _unsent(trip)  # nobody answers ARP
        return _end("unreachable", lost, _nobody(world, here, trip.dev_out, mac, nexthop))
    arrived = replace(trip, netns=other, hops=(*trip.hops, Hop(other, f"in {port}")))
    return _end("unreachable", arrived, _nobody(world, there, bridge.bridge, mac, nexthop))


def _has_carrier(world: World, here: View, bridge: str) -> bool:
    """Is one of its ports up, and the other end of that cable?"""
    for port in here.ports.values():
        link = here.links.get(port.name)
        if port.bridge == bridge and here.is_up(port.name):
            other, _, dev = link.peer.rpartition("/") if isinstance(link, Veth) else ("", "", "")
            if not other or world.here(other).is_up(dev):
                return True
    return False


def _unsent(trip: Trip) -> Trip:
    """Without the step out of the device, which it never leaves."""
    last = max(i for i, hop in enumerate(trip.hops) if hop.what.startswith(f"out {trip.dev_out}"))
    return replace(trip, hops=(*trip.hops[:last], *trip.hops[last + 1 :]))


def _nobody(world: World, here: View, dev: str, mac: str | None, nexthop: str) -> str:
    port = _port_with(world, here, dev, mac) if mac else ""
    if port and not here.is_up(port):
        return f"{port}, behind which {nexthop} is, is down"
    trunk = here.links.get(port)
    if mac and isinstance(trunk, Vxlan):
        address = here.fdb.get((port, mac), "")
        there = f"where nobody has the MAC {mac} of {nexthop}" if _far_switch(world, trunk, address) else ""
        return f"{port} leads to {address}, {there or 'a machine of which nothing is known here'}"
    return f"nobody on {dev} has the MAC {mac} that {nexthop} has here" if mac else f"nobody on {dev} has {nexthop}"


def _port_with(world: World, here: View, bridge: str, mac: str) -> str:
    """The port of a bridge whose other end has a MAC, up or down. A node may have hundreds: plain code, few calls.

    A trunk's forwarding entries say which MACs are behind it; to a bridge of the machine's own goes what is not here.
    """
    links, mac_of = here.links, world.macs()
    for port in (*_first(world, here, bridge, mac), *here.ports.values()):
        link = links.get(port.name)
        if port.bridge == bridge and isinstance(link, Vxlan) and (port.name, mac) in here.fdb:
            return port.name
        if port.bridge == bridge and isinstance(link, Veth):
            other, _, dev = link.peer.rpartition("/")
            if mac_of(other, dev) == mac:
                here.behind[bridge, mac] = port.name
                return port.name
    return next((port.name for port in here.ports.values() if kernel.is_uplink(links.get(port.name))), "")


def _first(world: World, here: View, bridge: str, mac: str) -> Iterator[BridgePort]:
    """Where to look first: where it was last, or where it should be."""
    last = here.ports.get(here.behind.get((bridge, mac), ""))
    if last:
        yield last
    elif isinstance(world.state, kernel.Looking) and (likely := world.state.likely(mac)):
        yield from (port for port in here.ports.values() if _leads_to(here, port.name) == likely)


def _takes(world: World, station: Station, mac: str | None, nexthop: str) -> bool:
    """By its MAC where a neighbour entry says which, else whoever answers ARP for the address."""
    there = world.here(station.netns)
    return there.mac(station.dev) == mac if mac else nexthop in there.local


def _hairpin_missing(trip: Trip, here: View, station: Station) -> bool:
    """A DNAT on the way in, to behind the same port: bridged, see the top of this file."""
    bridge = isinstance(here.links.get(trip.dev_out), Bridge)
    if not (bridge and trip.translated and trip.dev_in == trip.dev_out and here.shows_bridged):
        return False
    port = here.ports.get(trip.port_in)
    return port is not None and not port.hairpin and _leads_to(here, trip.port_in) == f"{station.netns}/{station.dev}"


def _leads_to(here: View, port: str) -> str:
    link = here.links.get(port)
    return link.peer if isinstance(link, Veth) else ""


def _stations(world: World, netns: str, dev: str, mac: str) -> Iterator[Station]:
    """Every device on the wire of this one, nearest first; behind a bridge that one alone which has the MAC, if any."""
    here = world.here(netns)
    if isinstance(here.links.get(dev), Bridge):
        yield from _behind(world, netns, dev, "", (), {(netns, dev)}, mac)
    else:
        yield from _across(world, netns, dev, (), set(), mac)


Crossed = tuple[tuple[str, str, str, str], ...]
Narrow = tuple[int, str, str] | None


def _across(
    world: World, netns: str, dev: str, crossed: Crossed, seen: set[tuple[str, str]], mac: str, before: Narrow = None
) -> Iterator[Station]:
    """What is at the other end of a veth pair: a device of a namespace, or a bridge with all its other ports."""
    link = world.here(netns).links.get(dev)
    if isinstance(link, Vxlan):
        yield from _by_trunk(world, netns, link, crossed, seen, mac, before)
        return
    if isinstance(link, Veth) and kernel.is_uplink(link):
        yield from _by_bridge(world, netns, link, crossed, seen, mac, before)
        return
    if not isinstance(link, Veth) or not link.up:
        return
    other, _, name = link.peer.rpartition("/")
    there = world.here(other)
    far = there.links.get(name)
    if not isinstance(far, Veth) or not far.up or far.peer != f"{netns}/{dev}":
        return
    port = there.bridge_of(name)
    narrow = min(before or (far.mtu, other, name), (far.mtu, other, name))
    if port is None:
        yield Station(other, name, crossed, narrow=narrow)
    elif (other, port.bridge) not in seen and there.is_up(port.bridge):
        seen.add((other, port.bridge))
        yield Station(other, port.bridge, crossed, name, narrow)
        yield from _behind(world, other, port.bridge, name, crossed, seen, mac, narrow)


def _by_trunk(
    world: World, netns: str, trunk: Vxlan, crossed: Crossed, seen: set[tuple[str, str]], mac: str, before: Narrow
) -> Iterator[Station]:
    """What is behind the same switch on the machine that the trunk's forwarding entry names; nothing is flooded."""
    other = _far_switch(world, trunk, world.here(netns).fdb.get((trunk.name, mac), ""))
    if other is None or not trunk.up:
        return
    there = world.here(other.netns)
    port = there.bridge_of(other.dev)
    if port is not None and there.is_up(other.dev) and there.is_up(port.bridge):
        yield from _behind(world, other.netns, port.bridge, other.dev, crossed, seen, mac, before)


def _by_bridge(
    world: World, netns: str, uplink: Veth, crossed: Crossed, seen: set[tuple[str, str]], mac: str, before: Narrow
) -> Iterator[Station]:
    """What is behind the switches of other machines that are plugged into the same bridge."""
    for other in _fabric(world) if uplink.up else ():
        there = world.here(other)
        for link in there.links.values() if other != netns else ():
            port = there.bridge_of(link.name) if isinstance(link, Veth) and link.peer == uplink.peer else None
            if port is not None and there.is_up(port.name) and there.is_up(port.bridge):
                yield from _behind(world, other, port.bridge, port.name, crossed, seen, mac, before)


def _fabric(world: World) -> list[str]:
    there = world.state.there if isinstance(world.state, kernel.Looking) else world.state
    return sorted(name for name in there if kind_of(name) == "fabric")


def _far_switch(world: World, trunk: Vxlan, address: str) -> Station | None:
    """Where a switch's VXLAN device comes out on the machine that has the address."""
    for netns in _fabric(world) if address else ():
        for link in world.here(netns).links.values():
            if isinstance(link, Vxlan) and (link.vni, link.port, link.local) == (trunk.vni, trunk.port, address):
                return Station(netns, link.name)
    return None


def _behind(
    world: World,
    netns: str,
    bridge: str,
    port_in: str,
    crossed: Crossed,
    seen: set[tuple[str, str]],
    mac: str,
    narrow: Narrow = None,
) -> Iterator[Station]:
    """What is behind the ports of a bridge, without the one the frame came in by."""
    here = world.here(netns)
    direct = here.ports.get(_port_with(world, here, bridge, mac)) if mac else None
    ports = [direct] if direct else sorted(here.ports.values(), key=lambda item: item.name)
    for port in ports:
        if port.bridge == bridge and port.name != port_in:
            step = (*crossed, (netns, bridge, port_in, port.name)) if port_in else crossed
            out = (here.mtu(port.name), netns, port.name)
            wide = min(narrow or out, out) if port_in else narrow
            yield from _across(world, netns, port.name, step, seen, mac, wide)


def _cross(world: World, trip: Trip, station: Station, left: Crossed) -> Iterator[Way]:
    """Over the bridges between here and the station, then in."""
    if not left:
        yield from _hear(world, _next(trip, station.netns, station.dev, station.port))
        return
    (netns, bridge, port_in, port_out), *rest = left
    hop = Hop(netns, f"bridge {bridge}, {port_in} → {port_out}")
    bridged = replace(trip, netns=netns, dev_in=bridge, dev_out=bridge, hops=(*trip.hops, hop), mark=0, looped=False)
    only_in = Hop(netns, f"in {port_in}")  # what the bridge does not pass on leaves by no port
    for outcome, one in _bridged(world, bridged):
        if outcome != "accept":
            yield _ended(outcome, _instead(one, len(trip.hops), only_in))
            continue
        for lost, after in _queued(one, world.here(netns), port_out):
            if lost:
                yield _end("dropped", _instead(after, len(trip.hops), only_in), lost)
            else:
                yield from _cross(world, after, station, tuple(rest))


def _instead(trip: Trip, index: int, hop: Hop) -> Trip:
    return replace(trip, hops=(*trip.hops[:index], hop, *trip.hops[index + 1 :]))


def _bridged(world: World, trip: Trip) -> Iterable[netfilter.Step]:
    """What netfilter makes of a frame that a bridge forwards, when the bridge shows it to netfilter at all."""
    here = world.here(trip.netns)
    if not here.shows_bridged:
        return [("accept", trip)]
    steps: list[netfilter.Step] = [("accept", _known(world, trip))]
    for name, then in (("PREROUTING", netfilter.back_to), ("FORWARD", _same), ("POSTROUTING", netfilter.back_from)):
        ended = [step for step in steps if step[0] != "accept"]
        hook = _postrouting if name == "POSTROUTING" else partial(_hook, name)
        going = [step for before, one in steps if before == "accept" for step in hook(world, one, here)]
        steps = ended + [(outcome, then(after)) for outcome, after in going]
    return [(outcome, _noted(after)) for outcome, after in steps]


def _hook(name: str, world: World, trip: Trip, here: View) -> Iterable[netfilter.Step]:
    return netfilter.hook(name, trip, here, world.recent)


def _same(trip: Trip) -> Trip:
    return trip


# --- tunnels ----------------------------------------------------------------------------------------------------------


def _tunnel(world: World, trip: Trip, here: View, nexthop: str) -> Iterator[Way]:
    """A packet of the node's own carries it; where that one ends, it comes out again."""
    try:
        sent = tunnels.carried(world.state, trip, here, nexthop)
    except tunnels.NotCarriedError as why:
        yield _end("unreachable", trip, str(why))
        return
    size = trip.size + sent.overhead if trip.size else 0
    hops = (*trip.hops, sent.hop)
    under = Trip(
        trip.netns,
        sent.outer,
        mark=trip.mark,
        hops=hops,
        chance=trip.chance,
        size=size,
        whole=False,
        carriers=(*trip.carriers, (trip.netns, trip.dev_out)),
    )
    for end in _send(replace(world, family=family_of(sent.outer.dst)), under):
        inner = replace(trip, hops=end.hops, chance=end.chance)
        try:
            dev = tunnels.taken_out(world.state, sent, trip, here, end, world.here(end.netns))
        except tunnels.NotCarriedError as why:
            yield _end("dropped", replace(inner, netns=end.netns), str(why))
            continue
        yield from _hear(world, _next(inner, end.netns, dev))


# --- ends -------------------------------------------------------------------------------------------------------------


def _no_route(trip: Trip, route: Route | None) -> str:
    return f"no route to {trip.packet.dst}" if route is None else f"the route to {route.dst} is {route.kind}"


def _ended(outcome: str, trip: Trip) -> Way:
    rule = trip.hops[-1].rule if trip.hops else ""
    return _end("refused" if outcome == "reject" else "dropped", trip, rule)


def _end(result: Result, trip: Trip, reason: str = "") -> Way:
    return Way(result, trip.netns, trip.packet, reason, trip.hops, trip.flows, trip.chance)
