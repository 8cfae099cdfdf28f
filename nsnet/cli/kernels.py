"""The kernels of all machines of a cluster as one: what `trace` and `capture` look at where several carry it.

Every namespace is asked for where it is. Switches are on every machine: those of another one are called
`multi.fabric.nodes@b`, and so are the peers of what is plugged into them. The router is plugged in on the first machine
alone, and the others' is left out. A machine is asked when a packet gets there (or a socket is to be opened there); one
that cannot be reached is left out with a warning, and the packet is lost to sight.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Self

import msgspec

from nsnet import kernel, model, names, state
from nsnet.cli.context import Running
from nsnet.cli.elsewhere import address_of, others
from nsnet.cli.output import note, warning
from nsnet.errors import MachineError, NotReachedError
from nsnet.kernel import beside, netns
from nsnet.kernel.everywhere import Other
from nsnet.kernel.remote import Talk
from nsnet.render import machines
from nsnet.state import Chain, Conntrack, Family, Scope, Value, Veth
from nsnet.store import location

State = dict[str, frozenset[Value]]
WHOLE: frozenset[tuple[str, ...]] = frozenset()


class Kernels:
    """Each machine's, asked when it is needed. A context manager."""

    def __init__(self, now: Running) -> None:
        self.now = now
        self.here = location.here(now.cluster).machine
        self.router = names.fabric_netns(now.cluster, "router")
        self.home_machine = machines.first(model.cluster_of(now.objects))
        self.places = machines.where(now.objects)
        self._others: dict[str, Other | None] = {}  # None: it cannot be reached

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for other in self.asked():
            other.talk.close()

    def machine(self, name: str) -> str:
        """Who has the namespace."""
        return name.partition("@")[2] or self.places.get(name, self.here)

    def home(self, name: str) -> Other | None:
        """Who has this namespace; None: this machine. Raises NotReachedError where that cannot be reached."""
        machine = self.machine(name)
        if machine == self.here:
            return None
        for other in self.reached([machine]):
            return other
        raise NotReachedError(f"{names.called(name)} is on machine {machine}, which cannot be reached")

    def reached(self, wanted: Iterable[str]) -> list[Other]:
        """Those of these machines that can be asked. All are called before the first is waited for."""
        wanted, now = list(wanted), self.now
        new = [name for name in wanted if name not in self._others]
        talks = {name: Talk(name, address_of(now.objects, name), now.cluster) for name in new}
        self._others |= {name: self._met(name, talk) for name, talk in talks.items()}
        return [other for name in wanted if (other := self._others[name]) is not None]

    def _met(self, name: str, talk: Talk) -> Other | None:
        try:
            clock = beside.offset(talk)
        except MachineError as error:
            talk.close()
            warning(f"{error}: what machine {name} carries is left out; {error.hint}")
            return None
        return Other(talk, clock, partial(self.called, name), plain)

    def asked(self) -> list[Other]:
        """The other machines that have been asked so far."""
        return [other for other in self._others.values() if other is not None]

    def called(self, machine: str, name: str) -> str:
        """What a namespace of that machine is called among those of all."""
        shared = names.kind_of(name) == "fabric" and name != self.router and machine != self.here
        return names.on_machine(name, machine) if shared else name

    def standing(self, machine: str, name: str) -> bool:
        return name != self.router or machine == self.home_machine

    def listing(self) -> list[str]:
        """The namespaces that are there, of all machines that can be reached."""
        here = [name for name in netns.listing(self.now.cluster) if self.standing(self.here, name)]
        fabric = [name for name in netns.candidates(self.now.cluster) if names.kind_of(name) == "fabric"]
        look = beside.Look({name: frozenset({("netns",)}) for name in (*fabric, *self.places)})
        return here + [name for other in self.reached(others(self.now)) for name in self._said(other, look)]

    def _said(self, other: Other, look: beside.Look) -> State:
        """With the names that everything has among all."""
        machine, found = other.talk.machine, other.talk.ask(look, beside.State)
        return {
            other.called(name): frozenset(_renamed(values, other.called))
            for name, values in found.items()
            if self.standing(machine, name)
        }

    def observe(self, only: Scope) -> State:
        """`kernel.observe`, wherever these are. Raises NotReachedError where a machine cannot be reached."""
        found: State = {}
        for home in {self.home(name) for name in only}:
            own = {name: keys for name, keys in only.items() if self.home(name) is home}
            if home is None:
                found |= kernel.observe(self.now.cluster, only=own)
            else:
                found |= self._said(home, beside.Look({plain(name): keys for name, keys in own.items()}))
        return found

    def whole(self, machine: str, tracked: str) -> State:
        """Everything of another machine, with conntrack's entries of that protocol; nothing where nobody answers."""
        for other in self.reached([machine]):
            nodes = [name for name, on in self.places.items() if on == machine and names.kind_of(name) == "node"]
            flows = beside.Look(dict.fromkeys(nodes, frozenset({("conntrack", tracked)})))
            more = self._said(other, flows) if tracked else {}
            found = self._said(other, beside.Look())
            return {name: values | more.get(name, frozenset()) for name, values in found.items()}
        return {}

    def look(self, tracked: str, expected: Mapping[str, str]) -> "Looking":
        """`kernel.look`, of all machines."""
        return Looking(self, kernel.look(self.now.cluster, tracked, expected), tracked)


class Looking(state.Looking):
    """Of this machine what is asked for is read; of another one everything, when first something of it is asked for."""

    def __init__(self, kernels: Kernels, near: state.Looking, tracked: str) -> None:
        self._kernels, self._near, self._tracked = kernels, near, tracked
        self._far: dict[str, State] = {}
        self._chains: dict[tuple[str, Family], _Chains] = {}
        self._flows: dict[tuple[str, str], frozenset[Conntrack]] = {}
        switches = [name for name in near.there if names.kind_of(name) == "fabric" and name != kernels.router]
        away = [names.on_machine(switch, machine) for machine in others(kernels.now) for switch in switches]
        here = [name for name in near.there if kernels.standing(kernels.here, name)]
        self.there = frozenset([*here, *kernels.places, *away])

    def _of(self, name: str) -> state.State:
        machine = self._kernels.machine(name)
        if machine == self._kernels.here:
            return self._near
        if machine not in self._far:
            self._far[machine] = self._kernels.whole(machine, self._tracked)
        return self._far[machine]

    def __getitem__(self, name: str) -> frozenset[Value]:
        if name not in self.there:
            raise KeyError(name)
        return self._of(name)[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name in sorted(self.there) if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def chains(self, name: str, family: Family) -> Mapping[tuple[str, str], Chain]:
        if self._of(name) is self._near:
            return self._near.chains(name, family)
        if (name, family) not in self._chains:
            chains = [value for value in self.get(name, frozenset()) if isinstance(value, Chain)]
            found = {(chain.table, chain.name): chain for chain in chains if chain.family == family}
            self._chains[name, family] = _Chains(found)
        return self._chains[name, family]

    def mac(self, name: str, dev: str) -> str:
        if self._of(name) is self._near:
            return self._near.mac(name, dev)
        links = (value for value in self.get(name, frozenset()) if isinstance(value, Veth))
        return next((link.mac for link in links if link.name == dev), "")

    def likely(self, mac: str) -> str:
        return self._near.likely(mac)

    def has_tables(self, name: str) -> bool:
        if self._of(name) is self._near:
            return self._near.has_tables(name)
        return any(isinstance(value, Chain) for value in self.get(name, frozenset()))

    def tracked(self, name: str, protocol: str) -> frozenset[Conntrack]:
        if self._of(name) is self._near:
            return self._near.tracked(name, protocol)
        key = name, protocol
        if key not in self._flows:
            there = self._kernels.observe({name: frozenset({("conntrack", protocol)})}).get(name, frozenset())
            self._flows[key] = frozenset(value for value in there if isinstance(value, Conntrack))
        return self._flows[key]

    def ahead(self, nodes: Iterable[str], family: Family) -> None:
        self._near.ahead((name for name in nodes if self._of(name) is self._near), family)


class _Chains(dict[tuple[str, str], Chain]):
    """Of one namespace and family; what is made of them is kept by which they are."""

    __hash__ = object.__hash__  # type: ignore[assignment]


def plain(name: str) -> str:
    """What it is called on its own machine."""
    return name.partition("@")[0]


def _renamed(values: Iterable[Value], called: Callable[[str], str]) -> Iterator[Value]:
    for value in values:
        if isinstance(value, Veth):
            peer, _, dev = value.peer.rpartition("/")
            yield msgspec.structs.replace(value, peer=f"{called(peer)}/{dev}")
        else:
            yield value


def tell_clocks(asked: Iterable[Other]) -> None:
    """How packets of other machines are put in order with ours: by their times, as well as these can be compared."""
    for other in asked:
        ahead, error = other.clock
        moved = f"its clock is {ahead / 1e6:+.3f} ms from ours, its times are moved by that" if ahead else "one clock"
        note(f"note: machine {other.talk.machine}: {moved} (known to ±{error / 1e6:.3f} ms)")
