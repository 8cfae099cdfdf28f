"""What the functions of the catalogue work on: the desired state while faults change it, and the places they are about.

A `Draft` takes apart only the namespaces that are touched; `state` puts it together again. Nothing of it is kept.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from nsnet import model, names
from nsnet.model import Objects
from nsnet.state import (
    Address,
    Bridge,
    BridgePort,
    Chain,
    Family,
    Key,
    Neighbour,
    Route,
    State,
    Sysctl,
    Value,
    Veth,
    Vxlan,
)

T = TypeVar("T")


class Draft:
    """The desired state, changeable by namespace. What is named and not there is passed over: places come and go."""

    def __init__(self, state: State) -> None:
        self._state = dict(state)
        self._open: dict[str, dict[Key, Value]] = {}

    def state(self) -> State:
        return {**self._state, **{netns: frozenset(values.values()) for netns, values in self._open.items()}}

    def values(self, netns: str) -> dict[Key, Value]:
        """What is wanted in a namespace, by key; changing it changes the draft, unless the namespace is not there."""
        if netns not in self:
            return {}
        if netns not in self._open:
            self._open[netns] = {value.key: value for value in self._state[netns]}
        return self._open[netns]

    def __contains__(self, netns: object) -> bool:
        return netns in self._state

    def of(self, netns: str, kind: type[T]) -> list[T]:
        found = self._open[netns].values() if netns in self._open else self._state.get(netns, ())
        return sorted((value for value in found if isinstance(value, kind)), key=lambda value: value.key)  # type: ignore[attr-defined]

    def put(self, netns: str, value: Value) -> None:
        """In the place of what stands under its key; nothing is put into a namespace that is not there."""
        if netns in self:
            self.values(netns)[value.key] = value

    def drop(self, netns: str, value: Value) -> None:
        if netns in self:
            self.values(netns).pop(value.key, None)

    # --- what faults do more than once ---

    def set(self, netns: str, sysctl: str, value: str) -> None:
        """A sysctl that is wanted anyway (no other can be undone)."""
        if Sysctl(sysctl, "").key in self.values(netns):
            self.put(netns, Sysctl(sysctl, value))

    def rules(
        self,
        netns: str,
        table: str,
        chain: str,
        change: Callable[[tuple[str, ...]], Sequence[str]],
        family: Family = "ip",
    ) -> None:
        """Changes the rules of an iptables chain. A built-in one (its name has no `-`) is made where it is missing."""
        there = self.values(netns).get(("chain", family, table, chain))
        if there is None and "-" not in chain and netns in self:
            there = Chain(table, chain, (), "ACCEPT", family)
        if isinstance(there, Chain):
            self.put(netns, replace(there, rules=tuple(change(there.rules))))

    def first(self, netns: str, table: str, chain: str, rule: str, family: Family = "ip") -> None:
        """Puts a rule before all others."""
        self.rules(netns, table, chain, lambda rules: (rule, *rules), family)

    def link(self, netns: str, dev: str) -> Veth | Bridge | Vxlan | None:
        found = self.values(netns).get(("link", dev)) if netns in self else None
        return found if isinstance(found, Veth | Bridge | Vxlan) else None

    def uplink(self, netns: str) -> tuple[str, str]:
        """Where the other end of a namespace's `eth0` is: the switch (or node) and its port; empty where none is."""
        link = self.link(netns, "eth0")
        other, _, port = link.peer.rpartition("/") if isinstance(link, Veth) else ("", "", "")
        return other, port

    def down(self, netns: str, dev: str) -> None:
        """`ip link set DEV down`: with it the kernel drops its routes, neighbours and IPv6 addresses."""
        link = self.link(netns, dev)
        if link is None:
            return
        self.put(netns, replace(link, up=False))
        for value in list(self.values(netns).values()):
            routed = isinstance(value, Route) and (value.dev == dev or any(hop == dev for _, hop in value.nexthops))
            known = isinstance(value, Neighbour) and value.dev == dev
            addressed = isinstance(value, Address) and value.dev == dev and ":" in value.cidr
            if routed or known or addressed:
                self.drop(netns, value)

    def pods_of(self, node: str) -> Iterator[tuple[str, str]]:
        """The pods that hang on a node's bridge: (the node's port, the pod's namespace)."""
        for port in self.of(node, BridgePort):
            link = self.link(node, port.name)
            if isinstance(link, Veth):
                yield port.name, link.peer.rpartition("/")[0]

    def tunnels(self, netns: str) -> list[Vxlan]:
        return self.of(netns, Vxlan)


class Site(msgspec.Struct, frozen=True):
    """Where a fault is, in namespaces, and what else its function may ask. `on` empty: everywhere of its kind."""

    objects: Objects
    spec: model.FaultSpec
    options: dict[str, str]  # with the kind's defaults

    @property
    def cluster(self) -> model.Cluster:
        return model.cluster_of(self.objects)

    @property
    def families(self) -> tuple[Family, ...]:
        return model.families_of(self.cluster)

    def on(self) -> list[str]:
        return [netns for place in self.spec.on or self._everywhere() if (netns := self.netns(place))]

    def to(self) -> list[str]:
        """The other side: as said, else all nodes that are not on this one."""
        said = self.spec.to or [place for place in self._everywhere() if place not in self.spec.on]
        return [netns for place in said if (netns := self.netns(place))]

    def machines(self) -> list[str]:
        """All nodes and hosts."""
        hosts = (f"host/{host.name}" for host in self.cluster.hosts or ())
        return [self.netns(place) for place in (*self._everywhere(), *hosts)]

    def _everywhere(self) -> list[str]:
        return [f"node/{node.metadata.name}" for node in model.of(self.objects, model.Node)]

    def netns(self, place: str) -> str:
        """The namespace of node/N, host/H or pod/NS/P; empty for what has none."""
        kind, *rest = place.split("/")
        own = self.cluster.metadata.name
        if kind == "pod" and len(rest) == 2:
            return names.pod_netns(own, *rest)
        make = {"node": names.node_netns, "host": names.host_netns}.get(kind)
        return make(own, rest[0]) if make and len(rest) == 1 else ""

    def node(self, netns: str) -> model.Node | None:
        own = self.cluster.metadata.name
        nodes = model.of(self.objects, model.Node)
        return next((node for node in nodes if names.node_netns(own, node.metadata.name) == netns), None)

    def ranges(self, netns: str) -> list[str]:
        """What belongs to a node: its addresses and its pods'; of a host its address."""
        node = self.node(netns)
        if node is not None:
            named = [item.address for item in node.status.addresses if item.type != "Hostname"]
            return [*named, *model.pod_cidrs(node)]
        cluster = self.cluster
        own = [host for host in cluster.hosts or () if names.host_netns(cluster.metadata.name, host.name) == netns]
        return [address for host in own for address in dict.fromkeys((host.address, *host.addresses))]

    def services(self) -> list[model.Service]:
        """Those that `on` names."""
        keys = [model.Key("Service", *place.split("/")[1:]) for place in self.spec.on if place.count("/") == 2]
        return [item for key in keys if isinstance(item := self.objects.get(key), model.Service)]
