"""Why a check failed: the packet's predicted way against what was promised, in one sentence for each failure.

Only failures are looked at, and only so many: thousands of them have a few causes. A node that is gone fails half of
all checks, and each sentence takes milliseconds.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from nsnet.model import Objects
from nsnet.names import called
from nsnet.state import State
from nsnet.trace import Packet, answer, walk
from nsnet.trace.further import lost_when_large
from nsnet.trace.listening import is_open
from nsnet.verify.intent import Intent, intended
from nsnet.verify.parted import Place, Predicted, predicted

if TYPE_CHECKING:
    from nsnet.verify.expect import Expectation
    from nsnet.verify.judge import Result

MOST = 1000
IN_ORDER = "its way is as it should be by what the kernel has now: sent again it may pass, or the answer is at fault"


def explained(
    expectations: Sequence["Expectation"],
    results: Sequence["Result"],
    objects: Objects,
    observe: Callable[[], State],
    place: Place,
) -> list["Result"]:
    """The results, the first failed ones with their `why`; the kernel is looked at only when something failed."""
    failed = [index for index, one in enumerate(results) if not one.ok and not one.skipped][:MOST]
    found = list(results)
    state = observe() if failed else {}
    for index in failed:
        sentence = why(state, objects, expectations[index], place)
        found[index] = msgspec.structs.replace(found[index], why=sentence)
    return found


def why(state: State, objects: Objects, item: "Expectation", place: Place) -> str:
    """One sentence; empty where the packet's own namespace is not there."""
    if item.netns not in state:
        return f"the namespace {item.netns} is not there"
    packet = Packet(item.protocol.lower(), item.address, item.port)
    parting = predicted(state, _intent(objects, item, packet), foretold(state, item.netns, packet), place)
    return IN_ORDER if parting.agree else parting.sentence


def _intent(objects: Objects, item: "Expectation", packet: Packet) -> Intent:
    """What the expectation wants; who may answer is told by the objects."""
    if item.want != "ok":
        want, words = ("refused", "it is wanted so") if item.want == "refused" else ("nothing", "nothing should pass")
        return Intent(want, words)  # type: ignore[arg-type]
    found = intended(objects, item.netns, packet)
    return found if found is not None and found.want == "reach" else Intent("reach", item.target)


def foretold(state: State, netns: str, packet: Packet) -> list[Predicted]:
    """Every way of the packet, with what becomes of its answer."""
    ways = []
    for way in walk(state, netns, packet):
        heard = way.result == "delivered" and is_open(state, way)
        lost = (
            next((back for back in answer(state, way, packet) if back.result != "delivered"), None) if heard else None
        )
        back = f"{lost.result} at {called(lost.netns)}: {lost.reason}" if lost else ""
        ways.append(Predicted(way, heard or way.result != "delivered", back))
    return with_large(state, netns, packet, ways)


def with_large(state: State, netns: str, packet: Packet, ways: Sequence[Predicted]) -> list[Predicted]:
    """Where the small packet and its answer arrive on all ways: why those of full size do not, if they do not."""
    if not all(one.way.result == "delivered" and one.open and not one.back for one in ways):
        return list(ways)
    lost = lost_when_large(state, netns, packet, [one.way for one in ways])
    large = f"at {called(lost.netns)} {lost.reason}" if lost else ""
    return [msgspec.structs.replace(one, large=large) for one in ways]
