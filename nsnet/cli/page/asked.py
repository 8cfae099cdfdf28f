"""The way of a packet between two ends of the picture: the document that `nsnet trace -o json` prints."""

import msgspec

from nsnet.cli import elsewhere, live, trace, trace_lines
from nsnet.cli.context import running
from nsnet.cli.target import spaced, target
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
        look = trace_lines.look_of(state, now.objects, namespace)
        followed = trace_lines.Followed(start, end, asked, found, look)
        watch = live.sent(now.objects, followed, kernels) if send else None
    shown = msgspec.structs.replace(followed, found=found[:WAYS])
    said = live.document(watch, shown) if watch else trace_lines.document(shown)
    return {**said, "more": len(found) > WAYS}
