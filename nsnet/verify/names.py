"""What names must lead to, asked as a pod asks: at the DNS Service's address, so through kube-proxy's rules. Pure.

For every Service its A record (and its AAAA record, in the world of IPv6), over UDP and TCP, from a pod on every node
(many nodes: on another one each time). And what a pod's environment says: the address and port in its variables must
answer as the Service's do.

Questions and answers are packed and read here by hand (RFC 1035 §4), for the oracle shall not be the server's library.
The source of what must come is the Kubernetes DNS specification 1.1.0.
"""

from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from typing import NamedTuple

import msgspec

from nsnet import model
from nsnet.model import SERVICE_NAME, EndpointSlice, Family, Objects, Service
from nsnet.verify import world as worlds
from nsnet.verify.world import Place, World

A, CNAME, AAAA, OPT = 1, 5, 28, 41
KINDS: dict[Family, int] = {"ip": A, "ip6": AAAA}
IDENT = b"ns"
SIZE = 4096  # of the answer over UDP that we say we take
NXDOMAIN = 3


class Question(msgspec.Struct, frozen=True):
    """The A record of `name`: exactly these addresses; none: the name does not exist; `alias`: where a CNAME leads.

    `family` ip6 asks for the AAAA record.
    """

    name: str
    addresses: frozenset[str] = frozenset()
    alias: str = ""
    family: Family = "ip"

    def __str__(self) -> str:
        return self.alias or ", ".join(sorted(self.addresses)[:4]) or "no such name"


def questions(world: World, objects: Objects) -> Iterator[Question]:
    """One per Service that has addresses of the world's family."""
    domain = world.cluster.networking.dnsDomain
    slices: dict[tuple[str, str], list[EndpointSlice]] = {}
    for item in model.of(objects, EndpointSlice):
        slices.setdefault((item.metadata.namespace, item.metadata.labels.get(SERVICE_NAME, "")), []).append(item)
    for service in model.of(objects, Service):
        meta = service.metadata
        name = f"{meta.name}.{meta.namespace}.svc.{domain}"
        if service.spec.type == "ExternalName":
            if world.cluster.dns.flavour == "coredns" and not _is_inside(service.spec.externalName, domain):
                yield Question(name, alias=service.spec.externalName.rstrip(".").lower(), family=world.family)
            continue
        if service.spec.clusterIP == "None":
            addresses = frozenset(_ready(slices.get((meta.namespace, meta.name), ())))
        else:
            addresses = frozenset(model.cluster_ips(service.spec))
        own = frozenset(address for address in addresses if model.family_of(address) == world.family)
        if own or not addresses:  # a name that has only addresses of the other family exists all the same
            yield Question(name, own, family=world.family)


def _is_inside(name: str, domain: str) -> bool:
    """Leads to another name of the zone, which may lead further: that is a test's business."""
    return name.rstrip(".").lower().endswith(f".{domain}")


def _ready(slices: Sequence[EndpointSlice]) -> Iterator[str]:
    for item in slices:
        for endpoint in item.endpoints or ():
            if item.addressType != "FQDN" and (endpoint.conditions is None or endpoint.conditions.ready is not False):
                yield endpoint.addresses[0]


def server(world: World, objects: Objects) -> Service | None:
    """Whom pods ask, about addresses of every family; None where there is no DNS, or nobody behind it is ready."""
    services = {model.key_of(item): item for item in model.of(objects, Service)}
    found = model.dns_service(services, world.cluster)
    if found is None or not any(worlds.proxied(found, family) for family in KINDS):
        return None
    mine = model.API_FAMILIES[model.family_of(found.spec.clusterIP)]
    there = any(
        endpoint.conditions is None or endpoint.conditions.ready is not False
        for item in model.of(objects, EndpointSlice)
        if item.metadata.labels.get(SERVICE_NAME) == found.metadata.name and item.addressType == mine
        if item.metadata.namespace == found.metadata.namespace
        for endpoint in item.endpoints or ()
    )
    return found if there else None


def askers(world: World) -> list[Place]:
    """A pod on every node, the first by name that is not DNS itself if there is one."""
    found: dict[str, Place] = {}
    for pod in sorted(world.pods, key=lambda pod: (pod.runs, pod.name)):
        found.setdefault(pod.node, pod)
    return [found[node.name] for node in world.nodes if node.name in found]


# --- on the wire ------------------------------------------------------------------------------------------------------


def packed(name: str, *, stream: bool, family: Family = "ip") -> bytes:
    """A question for the A or AAAA record, with EDNS."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.rstrip(".").split("."))
    head = IDENT + bytes.fromhex("0100 0001 0000 0000 0001")  # recursion desired; one question, one OPT
    message = (
        head
        + labels
        + b"\0"
        + bytes([0, KINDS[family], 0, 1])
        + bytes([0, 0, OPT])
        + SIZE.to_bytes(2, "big")
        + bytes(6)
    )
    return len(message).to_bytes(2, "big") + message if stream else message


class Said(NamedTuple):
    """An answer: its code, its addresses, and the targets of its aliases."""

    rcode: int
    addresses: frozenset[str]
    aliases: frozenset[str]
    cut: bool


def read(message: bytes, *, stream: bool) -> Said | None:
    """None for what is no answer to a question of ours."""
    data = message[2:] if stream else message
    try:
        return _read(data) if data[:2] == IDENT and data[2] & 0x80 else None
    except (IndexError, ValueError):
        return None


def _read(data: bytes) -> Said:
    addresses, aliases = set[str](), set[str]()
    at = _after_name(data, 12) + 4
    for _ in range(int.from_bytes(data[6:8], "big")):
        at = _after_name(data, at)
        kind, length = int.from_bytes(data[at : at + 2], "big"), int.from_bytes(data[at + 8 : at + 10], "big")
        at += 10
        if kind in KINDS.values():
            addresses.add(str(ip_address(data[at : at + length])))
        elif kind == CNAME:
            aliases.add(_name(data, at))
        at += length
    return Said(data[3] & 15, frozenset(addresses), frozenset(aliases), bool(data[2] & 2))


def _after_name(data: bytes, at: int) -> int:
    while data[at]:
        if data[at] >= 0xC0:
            return at + 2
        at += data[at] + 1
    return at + 1


def _name(data: bytes, at: int) -> str:
    """The name at that place, in lower case; a pointer may only lead back, so this ends."""
    labels: list[str] = []
    limit = at
    while data[at]:
        if data[at] >= 0xC0:
            at = int.from_bytes(data[at : at + 2], "big") & 0x3FFF
            if at >= limit:
                raise IndexError("a pointer that leads forward")
            limit = at
            continue
        labels.append(data[at + 1 : at + 1 + data[at]].decode("latin-1").lower())
        at += data[at] + 1
    return ".".join(labels)


def wrong(question: Question, said: Said | None) -> str:
    """What is wrong with an answer; empty where nothing is."""
    if said is None:
        return "an answer that is not DNS"
    if question.alias:
        return "" if question.alias in said.aliases else f"no CNAME to {question.alias}"
    if not question.addresses:
        return "" if said.rcode == NXDOMAIN else f"code {said.rcode}, wanted NXDOMAIN"
    if said.rcode:
        return f"code {said.rcode}, wanted {question}"
    missing, more = question.addresses - said.addresses, said.addresses - question.addresses
    if more or (missing and not said.cut):
        return f"{', '.join(sorted(said.addresses)) or 'no address'}, wanted {question}"
    return ""
