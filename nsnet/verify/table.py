"""Truth tables: which pod may reach which, on one port, as the policies say and as packets find it.

A cell that policy closes is asked once and waits a short time with all the others; one that is open is asked a second
time if the first packet meets silence. Pure but for `look`, which sends the packets.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Literal

import msgspec

from nsnet.control import policy
from nsnet.errors import InputError
from nsnet.kernel import probe as kernel
from nsnet.kernel.probe import Answer, Probe
from nsnet.verify import expect
from nsnet.verify.asking import shifted
from nsnet.verify.policy import end_of
from nsnet.verify.world import Place, World

AT_ONCE = 8192
TIMEOUTS = {"TCP": 0.25, "UDP": 0.5}  # s; the kernel itself answers a SYN at once, a datagram waits for the pod server
Protocol = Literal["TCP", "UDP"]
Cells = tuple[tuple[bool | None, ...], ...]


class Table(msgspec.Struct, frozen=True):
    """Rows are `sources`, columns `targets`; True: open. `seen` has None where no packet can tell, () before `look`."""

    protocol: Protocol
    port: int
    sources: tuple[Place, ...]
    targets: tuple[Place, ...]
    wanted: tuple[tuple[bool, ...], ...]
    seen: Cells = ()

    @property
    def different(self) -> list[tuple[Place, Place]]:
        """The pairs (source, target) that packets find otherwise than wanted."""
        return [
            (source, target)
            for source, wanted, seen in zip(self.sources, self.wanted, self.seen, strict=bool(self.seen))
            for target, want, saw in zip(self.targets, wanted, seen, strict=True)
            if saw is not None and saw != want
        ]


def tables(
    world: World, namespaces: Collection[str] = (), ports: Collection[int] = (), protocol: Protocol | None = None
) -> list[Table]:
    """One table per protocol and port, over the pods of some namespaces (none named: of all).

    Without `ports` every port that a pod there serves, with those that serve it for columns; else all pods. Raises
    InputError where there is no pod, or no port.
    """
    pods = [pod for pod in world.pods if not namespaces or _namespace(pod) in namespaces]
    if not pods:
        where = f" in namespace {', '.join(sorted(namespaces))}" if namespaces else ""
        raise InputError(f"there is no pod with a network of its own{where}", "nsnet get po -A")
    known = {_namespace(pod) for pod in world.pods}
    for missing in sorted(set(namespaces) - known):
        raise InputError(f"there is no pod with a network of its own in namespace {missing}", "nsnet get po -A")
    chosen = [(protocol or "TCP", port) for port in ports] or served(pods, protocol)
    if not chosen:
        raise InputError("no pod there serves a port", "say one: --port 80")
    return [_table(world, pods, spoken, port, everybody=bool(ports)) for spoken, port in chosen]


def _namespace(pod: Place) -> str:
    return pod.name.partition("/")[0]


def served(pods: Sequence[Place], protocol: Protocol | None = None) -> list[tuple[Protocol, int]]:
    """The protocols and ports that any of the pods serves, ordered."""
    found: set[tuple[Protocol, int]] = {("TCP", port) for pod in pods for port in pod.tcp}
    found |= {("UDP", port) for pod in pods for port in pod.udp}
    return sorted(item for item in found if protocol in (None, item[0]))


def serves(pod: Place, protocol: str, port: int) -> bool:
    return port in (pod.tcp if protocol == "TCP" else pod.udp)


def _table(world: World, pods: Sequence[Place], protocol: Protocol, port: int, *, everybody: bool) -> Table:
    known = world.policy
    targets = [pod for pod in pods if everybody or serves(pod, protocol, port)]
    ends = [end_of(known, pod) for pod in targets]
    wanted = tuple(
        tuple(policy.allows(known, source, end, port, protocol) for end in ends)
        for source in (end_of(known, pod) for pod in pods)
    )
    return Table(protocol, port, tuple(pods), tuple(targets), wanted)


# --- as packets find it -----------------------------------------------------------------------------------------------


def look(found: Sequence[Table], *, progress: kernel.Progress | None = None) -> list[Table]:
    """The same tables with what packets find, all of a protocol together. Never raises for what the network does."""
    total, done = sum(len(one.sources) * len(one.targets) for one in found), 0
    answers: dict[str, Iterator[Answer]] = {}
    for spoken, timeout in TIMEOUTS.items():
        asked = [item for one in found if one.protocol == spoken for item in probes(one)]
        told = progress and shifted(progress, done, total)
        answers[spoken] = iter(kernel.probe(asked, timeout=timeout, concurrency=AT_ONCE, progress=told))
        done += len(asked)
    return [msgspec.structs.replace(one, seen=seen(one, answers[one.protocol])) for one in found]


def probes(table: Table) -> Iterator[Probe]:
    """A call per cell, row by row: a connection over TCP, a question over UDP."""
    payload = expect.WHOAMI if table.protocol == "UDP" else b""
    for source, row in zip(table.sources, table.wanted, strict=True):
        for target, want in zip(table.targets, row, strict=True):
            yield Probe(
                source.netns,
                table.protocol,
                target.address,
                table.port,
                payload,
                learns=expect.learned(source, target),
                tries=0 if want else 1,
            )


def seen(table: Table, answers: Iterator[Answer]) -> Cells:
    return tuple(
        tuple(_passed(table, target, next(answers)) for target in table.targets) for _ in table.sources
    )  # fmt: skip


def _passed(table: Table, target: Place, answer: Answer) -> bool | None:
    """What an answer says of policy. A refusal is policy's only where somebody listens; else it may be the pod's own.

    What a pod that runs its own program says over UDP is not known, and silence of its says nothing.
    """
    if answer.outcome == "ok":
        return True
    listens = serves(target, table.protocol, table.port)
    if answer.outcome == "error" or (table.protocol == "UDP" and (target.runs or not listens)):
        return None
    return False if listens or answer.outcome in {"timeout", "unreachable"} else None
