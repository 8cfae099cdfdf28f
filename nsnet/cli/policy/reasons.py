"""`policy why`: is one connection allowed, and which policies and rules decide."""

from collections.abc import Iterator, Sequence
from ipaddress import ip_address

import click
import msgspec

from nsnet import model
from nsnet.cli import options
from nsnet.cli.context import running
from nsnet.cli.decided import end_of
from nsnet.cli.output import coloured, out, print_json
from nsnet.cli.policy.showing import speaks
from nsnet.cli.target import target
from nsnet.cli.trace import destination
from nsnet.cli.trace_lines import Destination
from nsnet.control import policy as rules
from nsnet.control.policy import Decision, End
from nsnet.control.policy.words import HOST_NETWORK
from nsnet.errors import InputError, NotReachedError
from nsnet.model import Objects, Service
from nsnet.verify import policy as ways
from nsnet.verify import world as worlds
from nsnet.verify.table import Protocol
from nsnet.verify.world import Place, World


class Case(msgspec.Struct, frozen=True):
    """One way of a connection: `words` say to which pod. Several decisions where objects do not tell the sender."""

    words: str
    decisions: tuple[Decision, ...]

    @property
    def verdict(self) -> str:
        said = {one.allowed for one in self.decisions}
        return "allowed or denied, by the address that arrives" if len(said) > 1 else yes(said == {True})


def yes(allowed: bool) -> str:
    return "allowed" if allowed else "denied"


@options.verb("why")
@click.argument("source", metavar="FROM")
@click.argument("to", metavar="TO[:PORT]")
@speaks
@options.namespace
@options.output("json")
@options.cluster
def why(
    source: str, to: str, protocol: Protocol | None, namespace: str, output: str | None, cluster: str | None
) -> int:
    """Say whether a connection is allowed, and which policies and rules decide.

    FROM is a pod, node/N, host/H or an address; TO is one of these or svc/NAME, of which every endpoint is named.
    Things of other namespaces are pod/NAMESPACE/NAME, svc/NAMESPACE/NAME. Exit code 1 where all of it is denied.
    """
    now = running("policy", cluster)
    spoken = protocol or "TCP"
    known = rules.index(now.objects)
    start = source_of(now.objects, known, source, namespace)
    end = destination(now.objects, to, namespace, spoken.lower())
    found = cases(now.objects, start, end, spoken, as_is=source == start.address)
    if output == "json":
        print_json(_why_document(start, end, spoken, found))
    else:
        for line in why_lines(known, start, end, spoken, found):
            out(line)
    return 0 if any(one.allowed for case in found for one in case.decisions) else NotReachedError.exit_code


def source_of(objects: Objects, known: rules.Index, text: str, namespace: str) -> End:
    try:
        return known.at(str(ip_address(text)))
    except ValueError:
        return end_of(known, target(objects, text, namespace))


def cases(objects: Objects, start: End, end: Destination, protocol: Protocol, *, as_is: bool = False) -> list[Case]:
    """What is decided of each endpoint where the address is a Service's, else of the address itself.

    `as_is`: the source is an address, and not the node that has it and may take another on its way. Raises
    NotReachedError for a Service that has no endpoint for the one who asks.
    """
    world = worlds.world(objects)
    known, there = world.policy, world.policy.at(end.address)
    for service in model.of(objects, Service):
        for port in service.spec.ports or ():
            outer = there.kind == "node" and port.nodePort == end.port
            inner = (service.spec.clusterIP, port.port) == (end.address, end.port)
            if port.protocol == protocol and (outer or inner):
                return list(_service_cases(world, start, service, port, there if outer else None))
    source = start if as_is else rules.as_source(known, start, there)
    return [Case(f"{there}", (rules.decided(known, source, there, end.port, protocol),))]


def _service_cases(
    world: World, start: End, service: Service, port: model.ServicePort, entry: End | None
) -> Iterator[Case]:
    name = f"svc/{service.metadata.namespace}/{service.metadata.name}"
    place = _place(world, start)
    node = world.node(entry.node if entry else place.node if place and place.node else "")
    if place is None or node is None:
        raise InputError(f"{start} has no way to the clusterIP of {name}", "name one of its pods, or node/N:NODEPORT")
    local = entry is not None and service.spec.externalTrafficPolicy == "Local" and place.kind == "host"
    candidates = worlds.backends(world, service, port)
    found = worlds.for_local(candidates, node) if local else worlds.for_cluster(candidates, node)
    if not found:
        raise NotReachedError(f"{name} has no endpoint to choose", f"nsnet describe svc {service.metadata.name}")
    way = ways.Way(place, node, "UDP" if port.protocol == "UDP" else "TCP", (port.nodePort or 0) if entry else 0, local)
    for backend in found:
        end = world.policy.at(backend.address)
        yield Case(f"{name} by {end} port {backend.port}", tuple(ways.decisions(world, way, backend)))


def _place(world: World, start: End) -> Place | None:
    places = {"pod": world.pods, "node": world.nodes, "outside": world.hosts}[start.kind]
    return next((place for place in places if place.name == start.name), None)


def why_lines(known: rules.Index, start: End, end: Destination, protocol: str, found: Sequence[Case]) -> Iterator[str]:
    """What was asked, then each case with its verdict and what decides it, and a last word on hostNetwork."""
    yield f"{protocol} from {start} to {end.words}"
    for case in found:
        good = any(one.allowed for one in case.decisions)
        yield coloured(f"{case.words}: {case.verdict}", "green" if good else "red")
        for one in case.decisions:
            if len(case.decisions) > 1:
                yield f"  where it arrives from {one.source} ({one.source.address}): {yes(one.allowed)}"
            yield from (f"  {line}" for line in rules.because(known, one))
    ends = (start, *(one.destination for case in found for one in case.decisions))
    if any(one.kind == "node" for one in ends):
        yield HOST_NETWORK


def _why_document(start: End, end: Destination, protocol: str, found: Sequence[Case]) -> dict[str, object]:
    return {
        "from": str(start),
        "to": end.words,
        "protocol": protocol,
        "cases": [
            {
                "to": case.words,
                "decisions": [
                    {
                        "allowed": one.allowed,
                        "seenFrom": one.source.address,
                        "egress": _side(one.egress),
                        "ingress": _side(one.ingress),
                    }
                    for one in case.decisions
                ],
            }
            for case in found
        ],
    }


def _side(side: rules.Side) -> dict[str, object]:
    return {
        "allowed": side.allowed,
        "pod": side.pod,
        "selectedBy": side.selecting,
        "allowedBy": [str(clause) for clause in side.allowing],
        "because": rules.sentence(side),
    }
