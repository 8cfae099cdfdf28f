"""The other machines of a cluster that several carry: a verb run there, their kernels read as one with this one.

What starts a process there (`exec`, `shell`, `verify`) runs the same verb by ssh (`kernel.remote`). What looks
(`trace`, `capture`) asks from here: `Kernels` gives the state of all machines as that of one cluster, and says for each
namespace who has it. Switches are on every machine: those of another one are called `multi.fabric.nodes@b`. The router
is plugged in on the first machine alone, and the others' is left out.

A machine that cannot be reached is left out with a warning; a packet that would go there is lost to sight.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Self

import msgspec

from nsnet import kernel, model, names
from nsnet.cli.context import Running
from nsnet.cli.output import note, warning
from nsnet.errors import MachineError, NotReachedError
from nsnet.kernel import beside, netns, remote
from nsnet.kernel.everywhere import Other
from nsnet.kernel.remote import Talk
from nsnet.model import Objects
from nsnet.render import machines
from nsnet.state import Scope, State, Value, Veth
from nsnet.store import location

WHOLE: frozenset[tuple[str, ...]] = frozenset()


def machine_of(now: Running, netns: str) -> str:
    """The machine that has this namespace; empty where that is this one."""
    here = location.here(now.cluster).machine
    there = machines.where(now.objects).get(netns, here)
    return "" if there == here else there


def run(now: Running, machine: str, *words: str) -> int:
    """`nsnet WORDS` on that machine; its exit code."""
    return remote.run(_address(now.objects, machine), ("--cluster", now.cluster, *words))


def _address(objects: Objects, machine: str) -> str:
    entries = model.cluster_of(objects).underlay.machines
    return next(entry.address for entry in entries if entry.name == machine)


def others(now: Running) -> list[str]:
    """The cluster's other machines."""
    here = location.here(now.cluster).machine
    return [entry.name for entry in model.cluster_of(now.objects).underlay.machines if here and entry.name != here]


class Kernels:
    """The kernels of all machines of a cluster, each asked when it is needed. A context manager."""

    def __init__(self, now: Running) -> None:
        self._now = now
        self._here = location.here(now.cluster).machine
        self._places = machines.where(now.objects)
        self._router = names.fabric_netns(now.cluster, "router")
        self._home = machines.first(model.cluster_of(now.objects))
        self._others: dict[str, Other | None] = {}  # None: it cannot be reached

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for other in self._others.values():
            if other is not None:
                other.talk.close()

    def candidates(self) -> list[str]:
        """The namespaces of the cluster, as far as that is known without asking another machine."""
        return list(dict.fromkeys([*netns.candidates(self._now.cluster), *self._places]))

    def listing(self) -> list[str]:
        """The namespaces that are there, of all machines that can be reached."""
        here = [name for name in netns.listing(self._now.cluster) if self._here == self._home or name != self._router]
        look = beside.Look({name: frozenset({("netns",)}) for name in self.candidates()})
        away = [
            other.called(name)
            for other in self.reached(others(self._now))
            for name in other.talk.ask(look, beside.State)
            if other.talk.machine == self._home or name != self._router
        ]
        return [*here, *away]

    def observe(self, only: Scope | None = None) -> State:
        """As `kernel.observe`. Of the other machines those are asked of which a whole namespace is wanted."""
        if not self._here:
            return kernel.observe(self._now.cluster, only=only)
        own = None if only is None else {name: keys for name, keys in only.items() if self._machine(name) == self._here}
        state = dict(kernel.observe(self._now.cluster, only=own))
        if self._here != self._home:
            state.pop(self._router, None)
        for other in self.reached(others(self._now) if only is None else self._wanted(only)):
            state |= self._observed(other, only)
        return state

    def home(self, netns: str) -> Other | None:
        """Who has this namespace; None: this machine. Raises NotReachedError where that cannot be reached."""
        machine = self._machine(netns)
        if machine == self._here:
            return None
        for other in self.reached([machine]):
            return other
        raise NotReachedError(f"{names.called(netns)} is on machine {machine}, which cannot be reached")

    def asked(self) -> list[Other]:
        """The other machines that have been asked so far."""
        return [other for other in self._others.values() if other is not None]

    def reached(self, wanted: Iterable[str]) -> list[Other]:
        """Those of these machines that can be asked. All are called before the first is waited for."""
        names_ = list(wanted)
        objects, own = self._now.objects, self._now.cluster
        new = {name: Talk(name, _address(objects, name), own) for name in names_ if name not in self._others}
        self._others |= {name: self._met(name, talk) for name, talk in new.items()}
        return [other for name in names_ if (other := self._others[name]) is not None]

    def _met(self, name: str, talk: Talk) -> Other | None:
        try:
            clock = beside.offset(talk)
        except MachineError as error:
            talk.close()
            warning(f"{error}: what machine {name} carries is left out; {error.hint}")
            return None
        return Other(talk, clock, partial(self._named, name), _plain)

    def _machine(self, name: str) -> str:
        return name.partition("@")[2] or self._places.get(name, self._here)

    def _wanted(self, only: Scope) -> list[str]:
        asked = {self._machine(name) for name, keys in only.items() if not keys}
        return [name for name in others(self._now) if name in asked or self._others.get(name)]

    def _observed(self, other: Other, only: Scope | None) -> State:
        """Its switches, too, if anything is asked of it."""
        machine, wanted = other.talk.machine, None
        if only is not None:
            own = {_plain(name): keys for name, keys in only.items() if self._machine(name) == machine}
            wanted = {**own, **{name: WHOLE for name in only if names.kind_of(name) == "fabric"}}
        found = other.talk.ask(beside.Look(wanted), beside.State)
        if machine != self._home:
            found.pop(self._router, None)
        return {other.called(name): frozenset(_renamed(values, other.called)) for name, values in found.items()}

    def _named(self, machine: str, name: str) -> str:
        shared = names.kind_of(name) == "fabric" and name != self._router
        return names.on_machine(name, machine) if shared else name


def seen(now: Running, only: Scope) -> State:
    """`kernel.observe`, wherever these namespaces are. Raises NotReachedError where a machine cannot be reached."""
    with Kernels(now) as kernels:
        for name in only:
            kernels.home(name)
        return kernels.observe(only)


def _plain(name: str) -> str:
    return name.partition("@")[0]


def _renamed(values: Iterable[Value], called: Callable[[str], str]) -> Iterable[Value]:
    for value in values:
        if isinstance(value, Veth):
            peer, _, dev = value.peer.rpartition("/")
            yield msgspec.structs.replace(value, peer=f"{called(peer)}/{dev}")
        else:
            yield value


def places(objects: Objects, labels: Mapping[str, str]) -> dict[str, str]:
    """The labels, with those of what stands on several machines at once."""
    cluster = model.cluster_of(objects)
    switches = [names.fabric_netns(cluster.metadata.name, network.name) for network in cluster.underlay.networks]
    return {**labels} | {
        names.on_machine(switch, entry.name): f"{labels[switch]} on machine {entry.name}"
        for entry in cluster.underlay.machines
        for switch in switches
    }


def tell_clocks(others: Iterable[Other]) -> None:
    """How packets of other machines are put in order with ours: by their times, as well as these can be compared."""
    for other in others:
        ahead, error = other.clock
        moved = f"its clock is {ahead / 1e6:+.3f} ms from ours, its times are moved by that" if ahead else "one clock"
        note(f"note: machine {other.talk.machine}: {moved} (known to ±{error / 1e6:.3f} ms)")
