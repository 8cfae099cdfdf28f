"""`trace --live`: one packet sent and watched, printed in the lines of the predicted way, and compared with it."""

from collections.abc import Iterator

import msgspec

from nsnet import model, names
from nsnet.cli import trace, trace_lines
from nsnet.cli.explain import flows
from nsnet.cli.kernels import Kernels, tell_clocks
from nsnet.cli.output import coloured, out, print_json
from nsnet.cli.trace_lines import Followed
from nsnet.errors import NotReachedError
from nsnet.kernel.everywhere import all_here
from nsnet.model import Objects
from nsnet.trace import Packet, Way
from nsnet.trace.values import Flow, Result
from nsnet.verify import parted
from nsnet.verify.intent import Intent
from nsnet.verify.live import Observed, observe
from nsnet.verify.parted import Parting
from nsnet.verify.why import with_large

RESULTS: dict[str, Result] = {
    "answered": "delivered",
    "reset": "refused",
    "error": "refused",
    "lost": "dropped",
    "kept": "dropped",
}


class Watched(msgspec.Struct, frozen=True):
    """What was seen of the packet, where that parts from what was predicted and intended, and what was intended."""

    seen: Observed
    verdict: Parting
    intent: Intent | None


def watched(objects: Objects, followed: Followed, output: str | None, kernels: Kernels | None) -> int:
    """Sends, prints, and gives the exit code. Raises as `verify.live.observe` does."""
    found = sent(objects, followed, kernels)
    if output == "json":
        print_json(document(found, followed))
    else:
        for line in report(found, followed):
            out(line)
    if kernels:
        tell_clocks(kernels.asked())
    foretold = followed.asked.protocol == "udp" and all(one.good for one in followed.found)
    arrived = RESULTS[found.seen.end] == "delivered" or foretold
    return 0 if found.verdict.agree and arrived else NotReachedError.exit_code


def sent(objects: Objects, followed: Followed, kernels: Kernels | None) -> Watched:
    """Sends the packet. Raises as `verify.live.observe` does."""
    start, asked, found, look = followed.start, followed.asked, followed.found, followed.look
    backend = model.cluster_of(objects).flannel.Backend
    ends = [one.way.netns for one in found if names.kind_of(one.way.netns) == "pod"]
    seen = observe(look.state, start.netns, asked, backend, ends, homes=kernels.home if kernels else all_here)
    intent = trace.promised(objects, start, asked, found)
    ways = with_large(look.state, start.netns, asked, [trace.foretold(one, look) for one in found])
    return Watched(seen, parted.compared(look.state, intent, ways, seen, look.place), intent)


def way_of(seen: Observed, asked: Packet) -> Way:
    """The observed packet as a way: in each namespace it came as first and left as last seen there."""
    last = seen.packet or asked
    flows = []
    before = asked
    for netns in dict.fromkeys(one.netns for one in seen.sightings):
        own = [one.packet for one in seen.sightings if one.netns == netns and not one.carrier]
        if own:
            came = before if all(one.outgoing for one in seen.sightings if one.netns == netns) else own[0]
            flows.append(Flow(netns, came, own[-1]))
            before = own[-1]
    return Way(RESULTS[seen.end], seen.where, last, seen.words, seen.hops, tuple(flows))


def report(watch: Watched, followed: Followed) -> Iterator[str]:
    """The lines of `trace`, of what was seen; then what conntrack says, and the three beside each other."""
    seen, asked, look = watch.seen, followed.asked, followed.look
    yield f"{asked.protocol} from {followed.start.label} to {followed.end.words}, sent and seen"
    yield from trace_lines.way_lines(way_of(seen, asked), asked, look)
    rows = [(netns, row) for netns, line in seen.connections for row in flows(line, look.services)]
    for netns, (_, state, source, dest, answers, goes) in rows:
        yield f"conntrack on {look.place(netns)}: {source} → {dest}, answered by {answers} → {goes}  {state}"
    for words in seen.notes:
        yield f"note: {words}"
    yield f"intended:  {_intended(watch.intent)}"
    said = [trace_lines.verdict(one, asked, look) for one in followed.found]
    yield f"predicted: {said[0]}" + (f" (or {len(said) - 1} other ways)" if len(said) > 1 else "")
    yield f"observed:  {parted.ending(seen, look.place)}"
    yield coloured(f"verdict:   {watch.verdict.sentence}", "green" if watch.verdict.agree else "red")


def _intended(intent: Intent | None) -> str:
    if intent is None:
        return "the objects promise nothing about this address"
    return f"should reach {intent.words}" if intent.want == "reach" else f"{intent.want}: {intent.words}"


def document(watch: Watched, followed: Followed) -> dict[str, object]:
    """The predicted ways as without --live, and beside them what was seen."""
    seen, asked, look = watch.seen, followed.asked, followed.look
    way = way_of(seen, asked)
    observed = {
        "end": seen.end,
        "where": look.place(seen.where),
        "words": parted.ending(seen, look.place),
        "packet": seen.packet,
        "hops": trace_lines.hop_documents(way, asked, look),
        "answerPassed": [look.place(netns) for netns in seen.answers],
        "conntrack": [{"where": look.place(netns), "entry": entry} for netns, entry in seen.connections],
        "notes": list(seen.notes),
    }
    return {
        **trace_lines.document(followed),
        "promised": watch.intent,
        "observed": observed,
        "agree": watch.verdict.agree,
        "verdict": watch.verdict.sentence,
    }
