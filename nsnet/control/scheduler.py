"""Which node a pod runs on: what rules nodes out is kube-scheduler's, what chooses among the rest is simpler.

Ruled out: nodeSelector, required node affinity, taints, cordoned nodes, host ports that clash, required pod
anti-affinity (of the pod, and of those that are there), a subnet without a free address. Of the rest those without a
PreferNoSchedule taint come first, then those away from what the pod's preferred anti-affinity names, then those with
the fewest pods, then the first by name. A pod that has a node stays there. `nodeName` in a manifest passes all this by,
as in Kubernetes.

A pod that fits nowhere is no error: it stays Pending with kube-scheduler's sentence. Except where addresses run out:
that is a topology that is too small, and it is refused.

Sources: `pkg/scheduler/framework/plugins/*` (the sentences are theirs), facts/E2E.md (host ports).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import msgspec

from nsnet.control import dns
from nsnet.control.addresses import NOWHERE, around, number, subnet
from nsnet.control.kubernetes import of_the_cluster
from nsnet.control.table import Table, controller_of, of
from nsnet.errors import ObjectError
from nsnet.model import (
    ENDED,
    Condition,
    Key,
    Node,
    NodeSelectorTerm,
    Pod,
    PodAffinityTerm,
    PodSpec,
    PodStatus,
    Requirement,
    Taint,
    Toleration,
    annotation,
    container_ports,
    is_terminating,
    is_unschedulable,
    key_of,
    meets,
    pod_cidrs,
    runs_proxy,
    selects,
    subnets,
)

NO_ROOM = "Too many pods"
AFFINITY = "node(s) didn't match Pod's node affinity/selector"
PORTS = "node(s) didn't have free ports for the requested pod ports"
ANTI = "node(s) didn't match pod anti-affinity rules"
ELSEWHERE = "node(s) didn't have the address that nsnet/ip asks for"
ANY = ("", "0.0.0.0", "::")  # noqa: S104 - a hostIP that clashes with every other

HostPort = tuple[str, str, int]  # hostIP, protocol, port


def place(table: Table) -> None:
    """Gives every pod that has no node one, where one fits. Raises ObjectError where addresses run out."""
    pods, nodes = of(table, Pod), {key.name for key in of(table, Node)}
    lost = [key for key, pod in pods.items() if pod.spec.nodeName not in nodes and pod.status.phase not in ENDED]
    waiting = [key for key in lost if not pods[key].spec.nodeName]
    for key in lost:
        if pods[key].spec.nodeName:
            pods[key] = _pending(pods[key], f"there is no node {pods[key].spec.nodeName}")
    if not waiting:
        return
    board = _Board(table)
    specs: dict[tuple[int, str], tuple[PodSpec, PodSpec]] = {}  # pods of one template on one node share their spec
    for key in sorted(waiting, key=natural):
        pod = pods[key]
        node, reasons = board.choose(pod)
        if node:
            pair = specs.get((id(pod.spec), node))
            if pair is None:
                pair = specs[id(pod.spec), node] = pod.spec, msgspec.structs.replace(pod.spec, nodeName=node)
            pods[key] = msgspec.structs.replace(pod, spec=pair[1])
            board.add(pods[key])
        else:
            _refuse_without_room(table, pod, reasons, board)
            pods[key] = _pending(pod, _sentence(reasons, len(board.nodes)))


_DIGITS = re.compile(r"(\d+)$")


def natural(key: Key) -> tuple[str, str, int]:
    """By namespace and name, `web-2` before `web-10`."""
    found = _DIGITS.search(key.name)
    return (key.namespace, key.name[: found.start()], int(found[1])) if found else (key.namespace, key.name, 0)


def _pending(pod: Pod, message: str) -> Pod:
    conditions = (Condition("PodScheduled", "False", "Unschedulable", message),)
    status = PodStatus("Pending", conditions=conditions, message=message)
    return pod if pod.status == status else msgspec.structs.replace(pod, status=status)


def no_room(pod: Pod) -> bool:
    """Whether it waits for an address that another pod has to give back."""
    return is_unschedulable(pod) and NO_ROOM in pod.status.message


def _sentence(reasons: Counter[str], count: int) -> str:
    """As kube-scheduler says it: `0/2 nodes are available: 2 node(s) had untolerated taint {gpu: true}`."""
    listed = ", ".join(sorted(f"{times} {reason}" for reason, times in reasons.items()))
    return f"0/{count} nodes are available: {listed}."


# --- all nodes, with what is on them ----------------------------------------------------------------------------------


class _Board:
    """The nodes and what their pods take of them, while pods are placed one after the other."""

    def __init__(self, table: Table) -> None:
        self.nodes = {key.name: node for key, node in sorted(of(table, Node).items())}
        self.count = dict.fromkeys(self.nodes, 0)  # pods, for the choice
        self.room = {name: room(node) for name, node in self.nodes.items()}
        self.ports: dict[str, set[HostPort]] = {name: set() for name in self.nodes}
        self.apart: dict[str, list[Pod]] = defaultdict(list)  # pods that want to be apart from others, by node
        self.here: dict[str, list[Pod]] | None = None  # all pods by node; only where somebody asks
        self.static: dict[int, tuple[PodSpec, list[str]]] = {}  # per spec (held, so that its id stays its own)
        self.leaving = 0  # pods that are about to go
        self.pods = of(table, Pod)
        for pod in self.pods.values():
            if pod.spec.nodeName in self.nodes and pod.status.phase not in ENDED:
                self.add(pod)

    def add(self, pod: Pod) -> None:
        node = pod.spec.nodeName
        self.count[node] += not (of_the_cluster(pod) or dns.is_ours(pod) or runs_proxy(pod))
        self.room[node] -= not pod.spec.hostNetwork
        self.leaving += is_terminating(pod)
        self.ports[node].update(host_ports(pod))
        if _anti_terms(pod):
            self.apart[node].append(pod)
        if self.here is not None:
            self.here[node].append(pod)

    def choose(self, pod: Pod) -> tuple[str, Counter[str]]:
        """The node, or none and how many nodes each reason rules out."""
        reasons: Counter[str] = Counter()
        best: tuple[bool, int, int, str] | None = None
        wanted, fixed = host_ports(pod), [number(said) for said in subnets(annotation(pod, "nsnet/ip"))]
        anti = bool(_anti_terms(pod)) or bool(self.apart)
        for (name, node), static in zip(self.nodes.items(), self._static(pod), strict=True):
            reason = static or self._against(pod, name, wanted, fixed)
            if not reason and anti and self._too_near(pod, node):
                reason = ANTI
            if reason:
                reasons[reason] += 1
                continue
            rank = (_rather_not(pod.spec, node), self._rather_apart(pod, node), self.count[name], name)
            best = rank if best is None or rank < best else best
        return (best[3] if best else ""), reasons

    def _static(self, pod: Pod) -> list[str]:
        """Per node what rules it out for every pod of this spec; pods of one template share theirs."""
        found = self.static.get(id(pod.spec))
        if found is None:
            reasons = [why_not(pod.spec, node) for node in self.nodes.values()]
            found = self.static[id(pod.spec)] = pod.spec, reasons
        return found[1]

    def _against(self, pod: Pod, name: str, wanted: Collection[HostPort], fixed: list[int]) -> str:
        if wanted and any(clash(port, self.ports[name]) for port in wanted):
            return PORTS
        if pod.spec.hostNetwork:
            return ""
        if fixed and not _has_all(self.nodes[name], fixed):
            return ELSEWHERE
        return "" if self.room[name] > 0 else NO_ROOM

    def _too_near(self, pod: Pod, node: Node) -> bool:
        """Would the pod, or one that is there, stand where its anti-affinity forbids?"""
        for term in _anti_terms(pod):
            for other in self._domain(term, node):
                if _means(term, pod, other):
                    return True
        for others in self.apart.values():
            for other in others:
                for term in _anti_terms(other):
                    if self._same(term, node, self.nodes[other.spec.nodeName]) and _means(term, other, pod):
                        return True
        return False

    def _rather_apart(self, pod: Pod, node: Node) -> int:
        """The weight of those that the pod would rather not be near to."""
        anti = pod.spec.affinity.podAntiAffinity if pod.spec.affinity else None
        terms = (anti.preferredDuringSchedulingIgnoredDuringExecution or ()) if anti else ()
        return sum(
            item.weight
            for item in terms
            for other in self._domain(item.podAffinityTerm, node)
            if _means(item.podAffinityTerm, pod, other)
        )

    def _domain(self, term: PodAffinityTerm, node: Node) -> Iterator[Pod]:
        if self.here is None:
            self.here = defaultdict(list)
            for pod in self.pods.values():
                if pod.spec.nodeName and pod.status.phase not in ENDED:
                    self.here[pod.spec.nodeName].append(pod)
        for name, pods in self.here.items():
            if name in self.nodes and self._same(term, node, self.nodes[name]):
                yield from pods

    @staticmethod
    def _same(term: PodAffinityTerm, one: Node, other: Node) -> bool:
        """Are both nodes in one domain of the term's topology? A node without the label is in none."""
        value = one.metadata.labels.get(term.topologyKey)
        return value is not None and value == other.metadata.labels.get(term.topologyKey)


def room(node: Node) -> int:
    """How many pods a node's subnets have addresses for: all but network, broadcast and the bridge."""
    return max(0, min(subnet(cidr).size for cidr in pod_cidrs(node)) - 3)


def _has_all(node: Node, addresses: Iterable[int]) -> bool:
    """Are they all in the node's subnets? What is no address at all, ipam says."""
    there = [subnet(cidr) for cidr in pod_cidrs(node)]
    return all(around(address, there) is not None for address in addresses if address != NOWHERE)


def _refuse_without_room(table: Table, pod: Pod, reasons: Counter[str], board: _Board) -> None:
    """Where addresses are missing the topology is too small, unless somebody is about to give some back."""
    if NO_ROOM not in reasons or board.leaving or _replaced(table, pod):
        return
    full = [node for node in board.nodes.values() if board.room[node.metadata.name] <= 0]
    raise too_many(table, pod, full)


def _replaced(table: Table, pod: Pod) -> bool:
    """Does an older ReplicaSet of the same Deployment still have pods?"""
    owner = controller_of(pod.metadata)
    above = table["ReplicaSet"].get(owner) if owner else None  # type: ignore[call-overload]
    deployment = controller_of(above.metadata) if above else None
    if deployment is None:
        return False
    sets = table["ReplicaSet"].values()
    return any(item.spec.replicas and item is not above and controller_of(item.metadata) == deployment for item in sets)


def too_many(table: Table, pod: Pod, full: Sequence[Node]) -> ObjectError:
    """The error that a pod's node, or all its nodes, have no address left; it names who wants so many."""
    obj, field = _top(table, pod)
    ranges = [f"{node.metadata.name}'s subnet {node.spec.podCIDR} holds {room(node)} pods" for node in full[:3]]
    more = f" and {len(full) - 3} more nodes are full" if len(full) > 3 else ""
    total = sum(room(node) for node in full)
    hint = f"at most {total} pods fit there: choose fewer, more nodes, or a smaller flannel.SubnetLen"
    if obj.kind == "Cluster":
        hint = "there is no room for the cluster's DNS: say fewer, or dns: {enabled: false}"
    return ObjectError(obj, field, f"too many pods: {', '.join(ranges)}{more}", hint)


_COUNTED = {"DaemonSet": "", "Job": "", "Cluster": "dns.replicas"}


def _top(table: Table, pod: Pod) -> tuple[Key, str]:
    """The object that a person wrote which wants the pod, and the field of it."""
    key, meta = key_of(pod), pod.metadata
    field = "spec.nodeName" if pod.spec.nodeName else ""
    while (above := controller_of(meta)) is not None and above in table[above[0]]:
        key = Key(*above)
        meta = table[key.kind][key].metadata
        field = _COUNTED.get(key.kind, "spec.replicas")
    return key, field


# --- one pod and one node ---------------------------------------------------------------------------------------------


def why_not(spec: PodSpec, node: Node, *, running: bool = False) -> str:
    """What rules the node out for pods of this spec, whatever else runs there; empty where nothing does.

    `running`: what ends a pod that is there already, for which of all taints only NoExecute counts.
    """
    taint = _untolerated(spec, node, ("NoExecute",) if running else ("NoSchedule", "NoExecute"))
    if taint:
        return taint
    labels = node.metadata.labels
    if spec.nodeSelector and any(labels.get(name) != value for name, value in spec.nodeSelector.items()):
        return AFFINITY
    affinity = spec.affinity.nodeAffinity if spec.affinity else None
    required = affinity.requiredDuringSchedulingIgnoredDuringExecution if affinity else None
    if required and not any(_fits(term, node) for term in required.nodeSelectorTerms):
        return AFFINITY
    return ""


def _fits(term: NodeSelectorTerm, node: Node) -> bool:
    """An empty term matches nothing (component-helpers nodeaffinity)."""
    fields = {"metadata.name": node.metadata.name}
    if not term.matchExpressions and not term.matchFields:
        return False
    return _all(term.matchExpressions, node.metadata.labels) and _all(term.matchFields, fields)


def _all(requirements: Iterable[Requirement], labels: Mapping[str, str]) -> bool:
    return all(meets(requirement, labels) for requirement in requirements)


def _untolerated(spec: PodSpec, node: Node, effects: Collection[str]) -> str:
    taints = node.spec.taints
    if node.spec.unschedulable:
        taints = (*taints, Taint("node.kubernetes.io/unschedulable", "NoSchedule"))
    for taint in taints:
        if taint.effect in effects and not tolerated(taint, spec.tolerations or ()):
            if taint.key == "node.kubernetes.io/unschedulable":
                return "node(s) were unschedulable"
            return f"node(s) had untolerated taint {{{taint.key}: {taint.value}}}"
    return ""


def _rather_not(spec: PodSpec, node: Node) -> bool:
    return any(
        taint.effect == "PreferNoSchedule" and not tolerated(taint, spec.tolerations or ())
        for taint in node.spec.taints
    )


def tolerated(taint: Taint, tolerations: Iterable[Toleration]) -> bool:
    """An empty key with Exists tolerates every taint, an empty effect every effect."""
    return any(
        (not item.effect or item.effect == taint.effect)
        and (item.key == taint.key or (not item.key and item.operator == "Exists"))
        and (item.operator == "Exists" or item.value == taint.value)
        for item in tolerations
    )


def host_ports(pod: Pod) -> tuple[HostPort, ...]:
    """The ports of its node that a pod takes; with hostNetwork every containerPort is one."""
    taken = (port for port in container_ports(pod) if port.hostPort or pod.spec.hostNetwork)
    return tuple((port.hostIP, port.protocol, port.hostPort or port.containerPort) for port in taken)


def clash(wanted: HostPort, taken: Collection[HostPort]) -> bool:
    """The same protocol and port, on the same address or where one of the two takes all addresses."""
    address, protocol, port = wanted
    return any(
        (protocol, port) == (other[1], other[2]) and (address == other[0] or address in ANY or other[0] in ANY)
        for other in taken
    )


def _anti_terms(pod: Pod) -> tuple[PodAffinityTerm, ...]:
    anti = pod.spec.affinity.podAntiAffinity if pod.spec.affinity else None
    return (anti.requiredDuringSchedulingIgnoredDuringExecution or ()) if anti else ()


def _means(term: PodAffinityTerm, pod: Pod, other: Pod) -> bool:
    """Is `other` one of those that the term of `pod` wants to be apart from?"""
    spaces = term.namespaces or (pod.metadata.namespace,)
    return (
        other is not pod
        and other.metadata.namespace in spaces
        and term.labelSelector is not None
        and selects(term.labelSelector, other.metadata.labels)
    )
