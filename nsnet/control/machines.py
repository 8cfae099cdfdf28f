"""Which machine carries which node: what the document says, else the one that has the fewest, the first by the list.

The fabric's router, the load balancer and the hosts outside the cluster are on the first machine. Networks are carried
between machines in VXLAN, so their MTU leaves room for it.
"""

import re
from collections import Counter
from collections.abc import Sequence

import msgspec

from nsnet.control.addresses import number
from nsnet.control.wrong import cluster_error
from nsnet.model import Cluster, MachineEntry, Network, NodeEntry, Underlay
from nsnet.names import DEVICE

OVERHEAD = 50  # VXLAN over IPv4
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?")


def placed(cluster: Cluster, nodes: Sequence[NodeEntry]) -> tuple[NodeEntry, ...]:
    """The nodes with their machines; as they are where there is only one machine. Raises ObjectError."""
    known = [machine.name for machine in cluster.underlay.machines]
    _check(cluster)
    for index, node in enumerate(nodes):
        if node.machine and node.machine not in known:
            hint = f"underlay.machines has {', '.join(known) or 'none: write it there, with its address'}"
            raise cluster_error(cluster, f"nodes[{index}].machine", f'there is no machine "{node.machine}"', hint)
    if not known:
        return tuple(nodes)
    held = Counter(node.machine for node in nodes if node.machine)
    found = []
    for node in nodes:
        machine = node.machine or min(known, key=lambda name: (held[name], known.index(name)))
        held[machine] += not node.machine
        found.append(msgspec.structs.replace(node, machine=machine))
    return tuple(found)


def carried(cluster: Cluster, networks: Sequence[Network]) -> tuple[Network, ...]:
    """The networks with an MTU that fits through VXLAN between the machines. Raises ObjectError."""
    _check_bridges(cluster, networks)
    if not cluster.underlay.machines:
        return tuple(networks)
    most = min(machine.mtu for machine in cluster.underlay.machines) - OVERHEAD
    return tuple(
        network if network.bridge else msgspec.structs.replace(network, mtu=min(network.mtu, most))
        for network in networks
    )


def at(cluster: Cluster, machine: str, address: str) -> Cluster:
    """The document with the address that a machine has found itself to have."""
    entries = cluster.underlay.machines
    found = tuple(msgspec.structs.replace(one, address=address) if one.name == machine else one for one in entries)
    return msgspec.structs.replace(cluster, underlay=msgspec.structs.replace(cluster.underlay, machines=found))


def remembered(new: Cluster, old: Cluster) -> Underlay:
    """The new document's underlay, with what machines have said of interfaces that it names still."""
    said = {(one.name, one.interface): one.address for one in old.underlay.machines}
    entries = new.underlay.machines
    found = (msgspec.structs.replace(one, address=one.address or said.get(_both(one), "")) for one in entries)
    return msgspec.structs.replace(new.underlay, machines=tuple(found))


def _both(machine: MachineEntry) -> tuple[str, str]:
    return machine.name, machine.interface


def _check(cluster: Cluster) -> None:
    seen: set[str] = set()
    for index, machine in enumerate(cluster.underlay.machines):
        field = f"underlay.machines[{index}]"
        if not _NAME.fullmatch(machine.name):
            hint = "lower-case letters, digits, - and ."
            raise cluster_error(cluster, f"{field}.name", f'"{machine.name}" is no name', hint)
        said_later = machine.interface and not machine.address  # when it joins
        if not said_later and not _is_address(machine.address):
            hint = "an IPv4 address of that machine, by which the others reach it"
            raise cluster_error(cluster, f"{field}.address", f'"{machine.address}" is not an address', hint)
        for said in (machine.name, machine.address):
            if said in seen:
                raise cluster_error(cluster, field, f"{said} is given twice", "each machine has its own")
            seen |= {said} - {""}


def _check_bridges(cluster: Cluster, networks: Sequence[Network]) -> None:
    used: set[str] = set()
    for index, network in enumerate(networks):
        field = f"underlay.networks[{index}].bridge"
        if not network.bridge:
            continue
        if not cluster.underlay.machines:
            hint = "write underlay.machines, or leave it out: on one machine a network needs no bridge of its own"
            raise cluster_error(cluster, field, "a bridge joins the switches of several machines", hint)
        if not DEVICE.fullmatch(network.bridge):
            raise cluster_error(
                cluster, field, f'"{network.bridge}" is no name of a bridge', "ip link show type bridge"
            )
        if network.bridge in used:
            raise cluster_error(cluster, field, f"{network.bridge} is given twice", "each network has its own")
        used.add(network.bridge)


def _is_address(said: str) -> bool:
    try:
        return ":" not in said and number(said) > 0
    except ValueError:
        return False
