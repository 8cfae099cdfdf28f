"""The way of a packet between two ends of the picture: the document that `nsnet trace -o json` prints."""

from collections.abc import Sequence

from nsnet.cli import elsewhere, live, trace
from nsnet.cli.context import Running, running
from nsnet.cli.kernels import Kernels
from nsnet.cli.target import Target, spaced, target
from nsnet.errors import InputError
from nsnet.trace import Packet

WAYS = 24  # followed and shown; a Service of 1,000 endpoints has 1,000
PROTOCOLS = ("tcp", "udp", "icmp")

Document = dict[str, object]


def way(cluster: str, source: str, to: str, protocol: str, *, send: bool) -> Document:
    """From SOURCE to TO, predicted; with `send` a real packet, too. What lies in a namespace may be named with it.

    `more` says that there are further ways than the first `WAYS`, which nobody followed. Raises InputError (an end that
    is nothing, a port that is missing), NotReachedError, MachineError.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f'"{protocol}" is no protocol', f"one of {', '.join(PROTOCOLS)}")
    if not source or not to:
        raise InputError("a way has two ends", "FROM and TO")
    now = running("ui", cluster, to_read=True)
    namespace, first = spaced(source.strip(), "default")
    start = target(now.objects, first, namespace)
    end = trace.destination(now.objects, to.strip(), "default", protocol)
    asked = Packet(protocol, end.address, end.port)
    with elsewhere.kernels(now) as kernels:
        state, found = trace.looked(now, start, asked, WAYS + 1, kernels)
        look = trace.look_of(state, now.objects, namespace)
        shown = _sent(now, found, start, end, asked, look, kernels) if send else {}
    return {**trace.document(found[:WAYS], start, end, asked, look), "more": len(found) > WAYS, **shown}


def _sent(
    now: Running,
    found: Sequence[trace.Traced],
    start: Target,
    end: trace.Destination,
    asked: Packet,
    look: trace.Look,
    kernels: Kernels | None,
) -> Document:
    seen, verdict, intent = live.sent(now.objects, found, start, asked, look, kernels)
    said = live.document(seen, verdict, intent, found[:WAYS], start, end, asked, look)
    return {name: said[name] for name in ("observed", "agree", "verdict", "promised")}
