"""The same questions asked under each mode of kube-proxy: who finds what, side by side. Pure.

The questions are those of iptables mode, and a few that show where upstream's modes are known to part. A check whose
words differ between modes is explained by `modes.DIFFERENCES`, or it fails.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_network
from typing import Any, Literal

import msgspec

from nsnet.kernel.probe import Answer
from nsnet.model import Objects
from nsnet.verify import modes
from nsnet.verify import world as worlds
from nsnet.verify.expect import Expectation, Want, expectations
from nsnet.verify.judge import SIDE_BY_SIDE, met
from nsnet.verify.own import checks
from nsnet.verify.world import Place, World

UNUSED = 65432  # a port that hardly any Service has; the next lower ones where one does


class Compared(msgspec.Struct, frozen=True):
    """One check: what it finds in each mode, and why where that is not what it finds in iptables mode."""

    name: str
    group: str
    words: dict[str, str]
    reasons: dict[str, str]

    @property
    def ok(self) -> bool:
        return all(self.reasons.get(mode) for mode in self.different)

    @property
    def different(self) -> list[str]:
        return [mode for mode, words in self.words.items() if words != self.words[modes.USUAL]]


def questions(objects: Objects) -> list[Expectation]:
    """What is asked in every mode; `objects` as they are under iptables mode."""
    world = worlds.world(objects)
    return [*expectations(objects), *checks(objects), *_side_by_side(world)]


def words(asked: Sequence[Expectation], answers: Sequence[Sequence[Answer]]) -> list[str]:
    return [met(item, found) for item, found in zip(asked, answers, strict=True)]


def compared(asked: Sequence[Expectation], found: Mapping[str, Sequence[str]]) -> list[Compared]:
    """`found`: mode → words, in the order of the questions."""
    return [_one(item, {mode: every[index] for mode, every in found.items()}) for index, item in enumerate(asked)]


def _one(item: Expectation, found: dict[str, str]) -> Compared:
    usual = found[modes.USUAL]
    why = {mode: modes.reason(mode, item.group, item.name, usual, here) for mode, here in found.items()}
    return Compared(item.name, item.group, found, {mode: why[mode] for mode in found if found[mode] != usual})


# --- questions that show where modes part -----------------------------------------------------------------------------


def _side_by_side(world: World) -> Iterator[Expectation]:
    """About the first TCP Service with a node port, or the first there is; from a pod of the first node with one."""
    ports = [(service, port) for service in world.services for port in service.spec.ports or ()]
    tcp = [
        (service, port) for service, port in ports if port.protocol == "TCP" and worlds.backends(world, service, port)
    ]
    pod = next((pod for pod in world.pods), None)
    if not tcp or pod is None:
        return
    service = tcp[0][0]
    used = {port.port for other, port in ports if other.spec.clusterIP == service.spec.clusterIP}
    free = next(number for number in range(UNUSED, 0, -1) if number not in used)
    yield _question("a port that no Service has", pod, service.spec.clusterIP, free, "unreachable")
    yield from _unallocated(world, pod)
    everywhere = (port for other, port in tcp if other.spec.externalTrafficPolicy != "Local")
    public = next((port.nodePort for port in everywhere if port.nodePort), None)
    node = world.node(pod.node)
    if public and node is not None:
        yield _question("a node port on loopback", node, "127.0.0.1", public, "ok")
        bridge = min(node.every - {node.address}, key=_last, default="")
        yield from [_question("a node port on the bridge's address", pod, bridge, public, "ok")] if bridge else []


def _last(address: str) -> tuple[bool, int]:
    """The bridge has the first address of the node's subnet; flannel's device the one before."""
    return not address.endswith(".1"), int(address.rpartition(".")[2]) if "." in address else 0


def _unallocated(world: World, pod: Place) -> Iterator[Expectation]:
    networks = [ip_network(part) for part in world.cluster.networking.serviceSubnet.split(",") if ":" not in part]
    used = {service.spec.clusterIP for service in world.services}
    for network in networks[:1]:
        free = next(text for number in range(2, network.num_addresses) if (text := str(network[-number])) not in used)
        yield _question("an address that no Service has", pod, free, 80, "unreachable")


def _question(title: str, source: Place, address: str, port: int, want: Want) -> Expectation:
    protocol: Literal["TCP"] = "TCP"
    return Expectation(
        group=SIDE_BY_SIDE,
        title=f"{title}: {source.label} → {address}:{port}",
        source=source.label,
        netns=source.netns,
        target=address,
        protocol=protocol,
        address=address,
        port=port,
        want=want,
    )


# --- to be printed ----------------------------------------------------------------------------------------------------


def rows(found: Sequence[Compared]) -> list[tuple[str, ...]]:
    """The table, (check, words per mode …, why): checks of a group that find the same are one row."""
    every = list(found[0].words) if found else []
    count = Counter(map(_alike, found))
    first = {_alike(item): item for item in reversed(found)}
    return [("CHECK", *(mode.upper() for mode in every), "WHY"), *(_row(first[kind], count[kind]) for kind in count)]


def _alike(item: Compared) -> tuple[object, ...]:
    return item.group, *item.words.values(), *item.reasons.values(), item.name if item.group == SIDE_BY_SIDE else ""


def _row(item: Compared, count: int) -> tuple[str, ...]:
    name = item.name.partition(": ")[2].partition(": ")[0] if item.group == SIDE_BY_SIDE else f"{item.group} ({count})"
    if not item.ok:
        name = f"{name}, as {item.name.partition(': ')[2]}"
    said = [f"{mode}: {item.reasons[mode] or 'NOT KNOWN OF UPSTREAM'}" for mode in item.different]
    return name, *item.words.values(), "; ".join(said)


def document(found: Sequence[Compared]) -> dict[str, Any]:
    """The same as JSON, each check by itself."""
    return {
        "passed": all(item.ok for item in found),
        "checks": [
            {"name": item.name, "group": item.group, "modes": item.words, "why": item.reasons} for item in found
        ],
    }
