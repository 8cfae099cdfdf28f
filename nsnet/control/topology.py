"""Hints of EndpointSlices: which endpoints the kube-proxies of which zone or node shall prefer.

- `trafficDistribution`: PreferSameZone (once PreferClose) hints every endpoint to its own zone, PreferSameNode to its
  own node as well (`staging/src/k8s.io/endpointslice/trafficdist`).
- Annotation `service.kubernetes.io/topology-mode: Auto` (once `topology-aware-hints`), which wins over it: endpoints
  are shared out to zones by the zones' part of the cluster's CPUs; a zone with more than its part lends some to others
  (`staging/src/k8s.io/endpointslice/topologycache`). Where that would overload a zone by more than a fifth, or nodes or
  endpoints do not say their zone, there are no hints at all, and `why_not` says why.

All nodes here are one machine: each counts the same. Control plane nodes do not count, as upstream.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import ceil

import msgspec

from nsnet.model import ZONE, Endpoint, EndpointHints, ForZone, Key, Node, Service

MODES = ("service.kubernetes.io/topology-mode", "service.kubernetes.io/topology-aware-hints")  # the first that is there
CONTROL_PLANE = {"node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"}
OVERLOAD = 0.2


class Zones(msgspec.Struct, frozen=True):
    """`of`: each node's zone, empty where it has none. `shares`: each zone's part of the cluster's CPUs."""

    of: Mapping[str, str]
    shares: Mapping[str, float]
    complete: bool  # every node that counts has a zone


def zones(nodes: Mapping[Key, Node]) -> Zones:
    of = {key.name: node.metadata.labels.get(ZONE, "") for key, node in nodes.items()}
    workers = [key.name for key, node in nodes.items() if not node.metadata.labels.keys() & CONTROL_PLANE]
    counted = [of[name] for name in workers if of[name]]
    shares = {zone: counted.count(zone) / len(counted) for zone in sorted(set(counted))}
    return Zones(of, shares, len(counted) == len(workers))


def is_auto(service: Service) -> bool:
    annotations = service.metadata.annotations
    said = next((annotations[name] for name in MODES if name in annotations), "")
    return said in ("Auto", "auto")


def hinted(service: Service, endpoints: Sequence[Endpoint], known: Zones) -> tuple[Endpoint, ...]:
    """The endpoints of all slices of a Service, in their order, with their hints; those not ready get none."""
    if not is_auto(service):
        return tuple(_with(one, _preferred(service, one)) for one in endpoints)
    if why_not(endpoints, known):
        return tuple(endpoints)
    return tuple(_shared_out(endpoints, known))


def _with(endpoint: Endpoint, hints: EndpointHints | None) -> Endpoint:
    return msgspec.structs.replace(endpoint, hints=hints) if hints is not None and _is_ready(endpoint) else endpoint


def _is_ready(endpoint: Endpoint) -> bool:
    return endpoint.conditions is None or endpoint.conditions.ready is not False


def _preferred(service: Service, endpoint: Endpoint) -> EndpointHints | None:
    distribution = service.spec.trafficDistribution
    if distribution not in ("PreferClose", "PreferSameZone", "PreferSameNode"):
        return None
    in_zone = (ForZone(endpoint.zone),) if endpoint.zone else ()
    on_node = (ForZone(endpoint.nodeName),) if distribution == "PreferSameNode" and endpoint.nodeName else ()
    return EndpointHints(in_zone, on_node) if in_zone or on_node else None


# --- Auto -------------------------------------------------------------------------------------------------------------


def why_not(endpoints: Sequence[Endpoint], known: Zones) -> str:
    """Why there are no hints under Auto; empty where there are."""
    ready = [one for one in endpoints if _is_ready(one)]
    if not known.complete:
        return f"one or more nodes have no label {ZONE}"
    if len(known.shares) < 2:
        return "all nodes are in one zone"
    if any(not one.zone for one in ready):
        return "one or more endpoints have no zone"
    if len(ready) < len(known.shares):
        return f"there are fewer endpoints ({len(ready)}) than zones ({len(known.shares)})"
    least = sum(ceil(share * len(ready) / (1 + OVERLOAD)) for share in known.shares.values())
    if least > len(ready):
        return f"{len(ready)} endpoints cannot be shared out without overloading a zone by more than {OVERLOAD:.0%}"
    return ""


def _shared_out(endpoints: Sequence[Endpoint], known: Zones) -> Iterator[Endpoint]:
    """Every endpoint to its own zone, but for those that a zone lends."""
    ready = [one for one in endpoints if _is_ready(one)]
    lends, borrows = _moves([one.zone or "" for one in ready], known.shares)
    for one in endpoints:
        zone = one.zone or ""
        if _is_ready(one) and lends.get(zone):
            lends[zone] -= 1
            zone = next(other for other, count in borrows.items() if count)
            borrows[zone] -= 1
        yield _with(one, EndpointHints((ForZone(zone),), ()))


def _moves(have: Sequence[str], shares: Mapping[str, float]) -> tuple[dict[str, int], dict[str, int]]:
    """How many endpoints each zone lends and borrows: always one from whom has most to spare to whom lacks most."""
    spare = {zone: have.count(zone) - share * len(have) for zone, share in shares.items()}
    lends: dict[str, int] = {}
    borrows: dict[str, int] = {}
    while True:
        giver, taker = max(spare, key=spare.__getitem__), min(spare, key=spare.__getitem__)
        given, taken = spare[giver], -spare[taker]
        if min(given, taken) < 0.5 or max(given, taken) < 1.0:
            return lends, borrows
        lends[giver], borrows[taker] = lends.get(giver, 0) + 1, borrows.get(taker, 0) + 1
        spare[giver] -= 1
        spare[taker] += 1
