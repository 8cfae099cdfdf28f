"""Intended, predicted and observed: where they part, in one sentence. Pure.

"should reach pod/web-1 via flannel.1; the rules send it there; last seen out cni0 of node/node1; flannel.1 has no FDB
entry for 0e:…": what is promised, whether the rules agree, how far it came, and why not further.
"""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from nsnet import names
from nsnet.state import Bridge, State, socket_address
from nsnet.trace import Way
from nsnet.trace.observed import Station, nearest, stations
from nsnet.verify.intent import Intent

if TYPE_CHECKING:  # what captures packets is not needed to foresee them
    from nsnet.verify.live import Observed

Place = Callable[[str], str]


class Predicted(msgspec.Struct, frozen=True):
    """A way and what became of it: `open` where something listens at its end, `back` why no answer returns.

    `large`: why packets of full size are lost where the small one arrives.
    """

    way: Way
    open: bool = True
    back: str = ""
    large: str = ""


class Parting(msgspec.Struct, frozen=True):
    """`agree`: all that is known of the three is the same. `sentence` says where they part, or that they do not."""

    agree: bool
    sentence: str


def predicted(state: State, intent: Intent | None, ways: Sequence[Predicted], place: Place) -> Parting:
    """Intention against prediction: the first way that does not do what was promised."""
    wrong = next((one for one in ways if not _keeps(intent, one)), None)
    if wrong is None:
        return Parting(True, "what the kernel has now leads where it should")
    way = wrong.way
    if _arrives(intent, way):
        lost = not wrong.open or wrong.back or wrong.large
        why = _why(wrong, place) if lost or not _hidden(intent, way) else _translated(way, place)
        return Parting(False, _joined(_should(intent, state, way), "it arrives there", why))
    return Parting(False, _joined(_should(intent, state, way), _rules(intent, way), _last(state, way, place),
                                  _why(wrong, place)))  # fmt: skip


def compared(state: State, intent: Intent | None, ways: Sequence[Predicted], seen: "Observed", place: Place) -> Parting:
    """All three. Where prediction and observation part, the first hop that differs is named.

    What kube-proxy's userspace process sends on is another packet than the one that was sent and watched; of UDP it has
    the same words in it and is seen, too.
    """
    there = stations(state, seen.hops)
    watched = [(way, one) for one in ways for way in (one.way.through, one.way) if way is not None]
    best, shared = nearest(state, [way for way, _ in watched], there, seen.packet)
    one = next(item for way, item in watched if way is best)
    foretold = stations(state, best.hops)
    if shared == len(foretold) == len(there) and _ended_alike(one, seen):
        if _keeps(intent, one):
            return Parting(True, "intended, predicted and observed agree" if intent else "predicted and observed agree")
        return Parting(False, f"{predicted(state, intent, [one], place).sentence}; observed as predicted")
    parts = [_should(intent, state, best), _rules(intent, best)]
    parts.append(f"last seen {_station(there[-1], place)}" if there else f"never seen outside {place(seen.where)}")
    if seen.dropped_by is not None:
        parts.append(f"dropped by {seen.dropped_by.what}: {seen.dropped_by.rule}")
    elif shared < len(there):
        expected = _station(foretold[shared], place) if shared < len(foretold) else "the end of its way"
        parts.append(f"it went {_station(there[shared], place)}, predicted was {expected}")
    elif shared < len(foretold):
        parts.append(f"it never came {_station(foretold[shared], place)}")
    else:
        parts.append(f"predicted was {_result(one, place)}, observed {_words(seen, place)}")
    return Parting(False, _joined(*parts))


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


# --- intended ---------------------------------------------------------------------------------------------------------


def _keeps(intent: Intent | None, one: Predicted) -> bool:
    way = one.way
    if intent is None:
        return True
    if intent.want == "refused":
        return way.result == "refused" or not one.open
    if intent.want == "nothing":
        return way.result != "delivered" or bool(one.back)
    return _arrives(intent, way) and one.open and not one.back and not one.large and not _hidden(intent, way)


def _arrives(intent: Intent | None, way: Way) -> bool:
    wanted = intent.netns if intent else frozenset[str]()
    return way.result == "delivered" and (not wanted or way.netns in wanted)


def _hidden(intent: Intent | None, way: Way) -> bool:
    """Does the receiver see another address than the sender's, where it should see that?"""
    return bool(intent and intent.seen_as) and way.packet.src != (intent.seen_as if intent else "")


def _translated(way: Way, place: Place) -> str:
    """Where its source was changed, and by which rule."""
    netns = next((flow.netns for flow in way.flows if flow.came.src != flow.left.src), "")
    if not netns:
        return f"its sender calls itself {way.packet.src}"
    hops = (hop for hop in way.hops if hop.netns == netns and _MASQUERADES.search(hop.rule))
    rule = next((f"{hop.what}: {hop.rule}" for hop in reversed(list(hops))), "")
    return f"it is seen as from {way.packet.src}, which {place(netns)} made of it" + (f" by {rule}" if rule else "")


_MASQUERADES = re.compile(r"-j (?:MASQUERADE|SNAT)\b|\bmasquerade\b")


def _should(intent: Intent | None, state: State, way: Way) -> str:
    if intent is None:
        return ""
    if intent.want == "reach":
        device = _overlay(state, way)
        return f"should reach {intent.words}" + (f" via {device}" if device else "")
    return f"should be refused, for {intent.words}" if intent.want == "refused" else intent.words


def _overlay(state: State, way: Way) -> str:
    """The device by which it leaves the first node for others; none where it stays on that node's bridge."""
    out = (one for one in stations(state, way.hops) if one[1] == "out" and names.kind_of(one[0]) == "node")
    netns, _, device = next(out, ("", "", ""))
    bridges = {value.name for value in state.get(netns, ()) if isinstance(value, Bridge)}
    return "" if device in bridges else device


def _rules(intent: Intent | None, way: Way) -> str:
    """Do the rules choose an endpoint that was promised?"""
    translated = any(one.came.dst != one.left.dst for one in way.flows) or "DNAT" in str(way.hops)
    if intent is None or intent.want != "reach":
        return ""
    if not translated:
        by_rule = bool(way.reason) and bool(way.hops) and way.hops[-1].rule == way.reason
        unknown = intent.service and not by_rule and not _arrives(intent, way)
        return f"no rule knows {intent.service}" if unknown else ""
    return f"the rules send it to {way.packet.dst}"


# --- predicted and observed -------------------------------------------------------------------------------------------


def _last(state: State, way: Way, place: Place) -> str:
    there = stations(state, way.hops)
    return f"it comes to {_station(there[-1], place)}" if there else ""


def _why(one: Predicted, place: Place) -> str:
    way = one.way
    if way.result != "delivered":
        rule = way.hops[-1].what if way.hops and way.hops[-1].rule == way.reason else ""
        return f"{way.result} at {place(way.netns)}" + (f" by {rule}" if rule else "") + f": {way.reason}"
    if not one.open:
        where = socket_address(way.packet.dst, way.packet.dport)
        return f"nothing listens on {way.packet.protocol} {where} in {place(way.netns)}"
    if one.back:
        return f"the answer: {one.back}"
    return f"large packets are lost: {one.large}" if one.large else f"it is delivered to {place(way.netns)}"


def _station(station: Station, place: Place) -> str:
    netns, direction, dev = station
    return f"{direction} {dev} of {place(netns)}"


def _ended_alike(one: Predicted, seen: "Observed") -> bool:
    if one.way.result == "delivered":
        if not one.open:
            return seen.end in {"reset", "error"}
        silent = bool(one.back) or one.way.packet.protocol == "udp"  # a server of UDP need not answer what it is sent
        return seen.end == "answered" or (silent and seen.end == "lost")
    if one.way.result == "refused":
        return seen.end in {"reset", "error", "kept"}
    return seen.end in {"lost", "error", "kept"}


def _result(one: Predicted, place: Place) -> str:
    if one.way.result == "delivered" and not one.open:
        return f"refused by {place(one.way.netns)}"
    return f"{one.way.result} at {place(one.way.netns)}"


def _words(seen: "Observed", place: Place) -> str:
    where = place(seen.where)
    return {
        "answered": f"answered by {where}",
        "reset": f"refused by {where} (TCP reset)",
        "error": f"{seen.words or 'an ICMP error'} by {where}",
        "kept": f"kept by {where}" + (f" ({seen.words})" if seen.words else ""),
        "lost": f"lost, last seen in {where}",
    }[seen.end]


def ending(seen: "Observed", place: Place) -> str:
    """How the observed packet ended, in words."""
    return _words(seen, place)
