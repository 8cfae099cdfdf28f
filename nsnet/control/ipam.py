"""Pod addresses, as host-local gives them: round robin from the last one given out, the bridge's address skipped.

So an address that became free is not used again at once, and packets for the old pod do not reach a new one. The last
address is in the Node's annotation `nsnet/last-reserved-ip` (host-local keeps it in a file per node). A pod's address
is in its status and stays there. `nsnet/ip` fixes one: it is refused where it cannot be had, and does not move the
round. A pod with hostNetwork has its node's address.

With two families a pod has an address of each, from two ranges that go round each on its own; `nsnet/ip` may fix both,
with a comma between. Which address is podIP: the one of the cluster's first family, as kubelet sorts them.

Source: containernetworking/plugins `plugins/ipam/host-local/backend/allocator` (facts/FLANNEL.md §7).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from nsnet.control.addresses import NOWHERE, Range, around, number, subnet, text
from nsnet.control.nodes import LAST_IP
from nsnet.control.scheduler import natural, too_many
from nsnet.control.table import Table, of, with_meta
from nsnet.errors import ObjectError
from nsnet.model import (
    ENDED,
    Key,
    Node,
    Pod,
    PodIP,
    family_of,
    internal_ips,
    is_terminating,
    pod_cidrs,
    pod_ips,
    subnets,
)

FIXED = "nsnet/ip"
FIELD = f"metadata.annotations.{FIXED}"


class _Pool(NamedTuple):
    """A node's addresses and who holds them: `subnets` one per family, `addresses` the node's own."""

    node: Node
    addresses: tuple[str, ...]
    subnets: tuple[Range, ...]
    held: dict[int, Key]

    @property
    def host(self) -> str:
        return self.addresses[0]


def _gateway(subnet: Range) -> int:
    return subnet.first + 1


def _may_have(subnet: Range, address: int) -> bool:
    """Could a pod have it?"""
    return _gateway(subnet) < address < subnet.last


def assign(table: Table) -> None:
    """Every placed pod has its addresses afterwards. Raises ObjectError where there is none for it."""
    pods = of(table, Pod)
    pools = {key.name: _pool(node) for key, node in of(table, Node).items()}
    missing: list[Key] = []
    for key, pod in pods.items():
        node, phase = pod.spec.nodeName, pod.status.phase
        pool = pools.get(node)
        if pool is None or phase in ENDED:
            continue
        if pod.spec.hostNetwork:
            if pod_ips(pod) != pool.addresses or pod.status.hostIP != pool.host:
                pods[key] = _with_addresses(pod, pool.addresses, pool)
        elif not _keeps(key, pod, pool, missing):
            missing.append(key)
        elif pod.status.hostIP != pool.host:
            pods[key] = _with_addresses(pod, pod_ips(pod), pool)
    if missing:
        _give(table, sorted(missing, key=natural), pools)


def _pool(node: Node) -> _Pool:
    """Of several addresses of a family the node's first one counts."""
    subnets = tuple(map(subnet, pod_cidrs(node)))
    own: dict[str, str] = {}
    for address in internal_ips(node):
        own.setdefault(family_of(address), address)
    return _Pool(node, tuple(own[one.family] for one in subnets if one.family in own), subnets, {})


def _keeps(key: Key, pod: Pod, pool: _Pool, missing: list[Key]) -> bool:
    """Do the addresses it has still do? Where two claim one, the second by name takes another."""
    had = pod_ips(pod)
    if len(had) != len(pool.subnets) or any(fixed not in had for fixed in _fixed(pod)):
        return False
    numbers = [number(address) for address in had]
    if not all(map(_may_have, pool.subnets, numbers)):
        return False
    kept = True
    for address in numbers:
        holder = pool.held.setdefault(address, key)
        if holder is not key and key < holder:
            pool.held[address] = key
            missing.append(holder)
        elif holder is not key:
            kept = False
    return kept


def _with_addresses(pod: Pod, addresses: Sequence[str], pool: _Pool) -> Pod:
    ips = tuple(map(PodIP, addresses))
    status = msgspec.structs.replace(pod.status, podIP=addresses[0], podIPs=ips, hostIP=pool.host)
    return msgspec.structs.replace(pod, status=status)


def _fixed(pod: Pod) -> tuple[str, ...]:
    """The addresses that the annotation asks for."""
    said = pod.metadata.annotations.get(FIXED)
    return subnets(said) if said else ()


def _give(table: Table, missing: list[Key], pools: Mapping[str, _Pool]) -> None:
    """An address of each family for each of these pods: what is fixed, what they still have, the next free ones."""
    pods = of(table, Pod)
    chosen: dict[Key, list[int]] = {}
    for key in missing:
        pool = pools[pods[key].spec.nodeName]
        fixed = {_around(key, said, pool).family: said for said in _fixed(pods[key])}
        chosen[key] = [_claimed(key, fixed.get(one.family, ""), pool) for one in pool.subnets]
    for key, numbers in chosen.items():
        pool = pools[pods[key].spec.nodeName]
        for index, one in enumerate(pool.subnets):
            if numbers[index] == NOWHERE:
                numbers[index] = _still(key, pods[key], one, pool)
    last: dict[tuple[str, int], int] = {}
    for key, numbers in chosen.items():
        pod = pods[key]
        pool = pools[pod.spec.nodeName]
        for index, one in enumerate(pool.subnets):
            if numbers[index] == NOWHERE:
                place = pod.spec.nodeName, index
                numbers[index] = _next(pool, one, last.get(place, _last(pool, index)))
                if numbers[index] != NOWHERE:
                    last[place] = numbers[index]
                    pool.held[numbers[index]] = key
        if NOWHERE not in numbers:
            pods[key] = _with_addresses(pod, tuple(map(text, numbers)), pool)
        elif not any(is_terminating(pods[other]) for other in pool.held.values()):
            raise too_many(table, pod, [pool.node])
    _remember(table, pools, last)


def _remember(table: Table, pools: Mapping[str, _Pool], last: Mapping[tuple[str, int], int]) -> None:
    notes: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for (name, index), address in last.items():
        notes[name][_last_name(index)] = text(address)
    for name, said in notes.items():
        node = pools[name].node
        table["Node"][Key("Node", "", name)] = with_meta(node, annotations={**node.metadata.annotations, **said})


def _still(key: Key, pod: Pod, one: Range, pool: _Pool) -> int:
    """The address of this range that the pod has and may keep, while it gets another of the other range."""
    fixed = _fixed(pod)
    for address in pod_ips(pod):
        at = number(address)
        if _may_have(one, at) and pool.held.get(at, key) == key and not any(one.has(number(item)) for item in fixed):
            pool.held[at] = key
            return at
    return NOWHERE


def _last_name(index: int) -> str:
    """host-local keeps one file per range: last_reserved_ip.0, last_reserved_ip.1."""
    return f"{LAST_IP}.{index}" if index else LAST_IP


def _last(pool: _Pool, index: int) -> int:
    one = pool.subnets[index]
    said = number(pool.node.metadata.annotations.get(_last_name(index), ""))
    return said if one.has(said) else _gateway(one)


def _next(pool: _Pool, one: Range, last: int) -> int:
    """The first free address after `last`, round the subnet once."""
    first, count = _gateway(one) + 1, one.last - _gateway(one) - 1
    for step in range(count):
        address = first + (last + 1 - first + step) % count
        if address not in pool.held:
            return address
    return NOWHERE


def _around(key: Key, said: str, pool: _Pool) -> Range:
    """The node's subnet that a fixed address is in. Raises ObjectError."""
    found = around(number(said), pool.subnets)
    if found is None or not _may_have(found, number(said)):
        same = [one for one in pool.subnets if one.family == family_of(said)] or pool.subnets
        one, name = found or same[0], pool.node.metadata.name
        hint = f"choose one from {text(_gateway(one) + 1)} to {text(one.last - 1)}"
        raise ObjectError(key, FIELD, f"{said} is no pod address in {name}'s subnet {one}", hint)
    return found


def _claimed(key: Key, said: str, pool: _Pool) -> int:
    """The number of a fixed address, taken; NOWHERE where none is fixed. Raises ObjectError."""
    if not said:
        return NOWHERE
    holder = pool.held.setdefault(number(said), key)
    if holder != key:
        raise ObjectError(key, FIELD, f"{said} is taken by {holder}", "choose another address, or leave it out")
    return number(said)


def check_fixed(table: Table) -> None:
    """An address that no node's subnet has can be had nowhere. Raises ObjectError."""
    every: list[Range] | None = None
    for key, pod in of(table, Pod).items():
        if FIXED not in pod.metadata.annotations or pod.spec.nodeName or pod.spec.hostNetwork:
            continue
        for said in _fixed(pod):
            every = every or [subnet(cidr) for node in of(table, Node).values() for cidr in pod_cidrs(node)]
            if around(number(said), every) is None:
                listed = ", ".join(map(str, sorted(every)[:8]))
                raise ObjectError(key, FIELD, f"{said} is in no node's subnet", f"the nodes' subnets: {listed}")
