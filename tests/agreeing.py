"""Intended, predicted and observed for many packets of one cluster: which are asked, and where the three part.

All are sent at once (`verify.volley`). One that fared otherwise than foretold is sent again, alone and with the rules
it matches: a kernel rations its ICMP errors, and alone it needs to share with nobody.
"""

import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from nsnet import model
from nsnet.cli import trace, trace_lines
from nsnet.cli.target import Target
from nsnet.cli.trace import foretold
from nsnet.cli.trace_lines import Look, Traced
from nsnet.kernel import netns
from nsnet.model import Family, Objects
from nsnet.state import State
from nsnet.trace import Packet
from nsnet.verify import hostports, parted
from nsnet.verify import world as worlds
from nsnet.verify.intent import intended
from nsnet.verify.live import Observed, observe
from nsnet.verify.volley import observe_all
from nsnet.verify.world import Place, World

TOPOLOGIES = Path(__file__).parents[1] / "topologies"
Question = tuple[Target, Packet]
RATIONED = (Path("/proc/sys/net/ipv4/icmp_ratelimit"), Path("/proc/sys/net/ipv6/icmp/ratelimit"))
USUALLY = "1000\n"  # ms between two errors to one place


def document(topology: str, name: str, mode: str, backend: str = "vxlan") -> str:
    """The topology as a cluster of this name, in this mode of kube-proxy, with this backend of flannel's."""
    docs: list[dict[str, Any]] = [
        doc for doc in yaml.safe_load_all((TOPOLOGIES / f"{topology}.yaml").read_text()) if doc
    ]
    cluster = next((doc for doc in docs if doc["kind"] == "Cluster"), None)
    if cluster is None:
        cluster = {"apiVersion": "nsnet/v1", "kind": "Cluster"}
        docs.append(cluster)
    cluster["metadata"] = {"name": name}
    cluster.setdefault("networking", {})["kubeProxyMode"] = mode
    if backend != "vxlan":
        cluster["flannel"] = {"Backend": {"Type": backend}}
    return yaml.safe_dump_all(docs)


def asked(objects: Objects, *, everybody: bool = False) -> Iterator[Question]:
    """From a pod of each node, a node and a host: to every pod, every Service port at each of its addresses, every node
    port on every node, every hostPort, and a ping; in each family that the cluster has.

    `everybody`: from every pod, node and host, and pings of all of them.
    """
    for family in model.families_of(model.cluster_of(objects)):
        yield from _asked(objects, worlds.world(objects, family), family, everybody=everybody)


def _asked(objects: Objects, world: World, family: Family, *, everybody: bool) -> Iterator[Question]:
    ours = [pod for pod in world.pods if everybody or pod.name.startswith("default/")]
    some = [*{pod.node: pod for pod in ours}.values(), world.nodes[0], world.hosts[0]]
    every = [*ours, *world.nodes, *world.hosts]
    for source in every if everybody else some:
        start = Target(source.netns, source.name, source.label)
        yield from ((start, Packet("tcp", pod.address, pod.tcp[0])) for pod in ours if pod.tcp)
        yield from ((start, packet) for packet in _to_services(world, family))
        yield from ((start, packet) for packet in _to_host_ports(objects, world, family, source))
        pinged = every if everybody else [world.nodes[-1]]
        yield from ((start, Packet("icmp", place.address)) for place in pinged if place.netns != source.netns)


def _to_services(world: World, family: Family) -> Iterator[Packet]:
    for service in world.services:
        for port in service.spec.ports or ():
            spoken = port.protocol.lower()
            every = (service.spec.clusterIP, *(service.spec.externalIPs or ()), *model.balanced_addresses(service))
            for address in dict.fromkeys(every):
                if model.family_of(address) == family:
                    yield Packet(spoken, address, port.port)
            if port.nodePort:
                yield from (Packet(spoken, node.address, port.nodePort) for node in world.nodes)


def _to_host_ports(objects: Objects, world: World, family: Family, source: Place) -> Iterator[Packet]:
    for found in hostports.questions(world, objects) if family == "ip" else ():
        if found.source.netns == source.netns:
            yield Packet(found.protocol.lower(), found.address, found.port)


def differences(objects: Objects, state: State, questions: Iterable[Question], *, meant: bool = True) -> list[str]:
    """Where what is intended (if that is `meant`, too), predicted and observed part, in sentences."""
    every = list(questions)
    _forget(state)
    look = trace_lines.look_of(state, objects)
    ways = [trace.traced(state, start, packet) for start, packet in every]
    ends = {one.way.netns for found in ways for one in found}
    packets = [(start.netns, packet) for start, packet in every]
    seen = observe_all(state, packets, model.cluster_of(objects).flannel.Backend, ends)
    found = []
    for question, foreseen, one in zip(every, ways, seen, strict=True):
        if _parting(objects, look, question, foreseen, one, meant=meant):
            again = _alone(objects, state, question, foreseen)
            found.append(_parting(objects, look, question, foreseen, again, meant=meant))
    return [sentence for sentence in found if sentence]


def _forget(state: State) -> None:
    """No place remembers what it has learnt of its neighbours, or rations its ICMP errors: the walk knows neither.

    But for those that ration them on purpose.
    """
    for place in state:
        subprocess.run(["ip", "-n", place, "neigh", "flush", "all"], check=True, capture_output=True)
        with netns.inside(place):
            for rationed in RATIONED:
                if rationed.exists() and rationed.read_text() == USUALLY:
                    rationed.write_text("0")


def _alone(objects: Objects, state: State, question: Question, foreseen: Sequence[Traced]) -> Observed:
    start, packet = question
    backend, ends = model.cluster_of(objects).flannel.Backend, [one.way.netns for one in foreseen]
    return observe(state, start.netns, packet, backend, ends, connections=False)


def _parting(
    objects: Objects, look: Look, question: Question, foreseen: Sequence[Traced], seen: Observed, *, meant: bool
) -> str:
    """In a sentence; empty where they agree."""
    start, packet = question
    intent = intended(objects, start.netns, packet) if meant else None
    said = parted.compared(look.state, intent, [foretold(one, look) for one in foreseen], seen, look.place)
    return "" if said.agree else f"{start.label} → {packet}: {said.sentence}"
