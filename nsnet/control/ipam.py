"""Pod addresses, as host-local gives them: round robin from the last one given out, the bridge's address skipped.

So an address that became free is not used again at once, and packets for the old pod do not reach a new one. The last
address is in the Node's annotation `nsnet/last-reserved-ip` (host-local keeps it in a file per node). A pod's address
is in its status and stays there. `nsnet/ip` fixes one: it is refused where it cannot be had, and does not move the
round. A pod with hostNetwork has its node's address.

Source: containernetworking/plugins `plugins/ipam/host-local/backend/allocator` (facts/FLANNEL.md §7).
"""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from nsnet.control.addresses import NOWHERE, Range, number, subnet, text
from nsnet.control.nodes import LAST_IP
from nsnet.control.scheduler import ENDED, natural, too_many
from nsnet.control.table import Table, of, with_meta
from nsnet.errors import ObjectError
from nsnet.model import Key, Node, Pod, PodIP, internal_ip, is_terminating

FIXED = "nsnet/ip"
FIELD = f"metadata.annotations.{FIXED}"


class _Pool(NamedTuple):
    """A node's addresses and who holds them."""

    node: Node
    address: str
    subnet: Range
    held: dict[int, Key]

    @property
    def gateway(self) -> int:
        return self.subnet.first + 1

    def may_have(self, address: int) -> bool:
        return self.gateway < address < self.subnet.last


def assign(table: Table) -> None:
    """Every placed pod has its address afterwards. Raises ObjectError where there is none for it."""
    pods = of(table, Pod)
    pools = {key.name: _pool(node) for key, node in of(table, Node).items()}
    missing: list[Key] = []
    for key, pod in pods.items():
        node, phase = pod.spec.nodeName, pod.status.phase
        pool = pools.get(node)
        if pool is None or phase in ENDED:
            continue
        if pod.spec.hostNetwork:
            if pod.status.podIP != pool.address or pod.status.hostIP != pool.address:
                pods[key] = _with_address(pod, pool.address, pool)
        elif not _keeps(key, pod, pool, missing):
            missing.append(key)
        elif pod.status.hostIP != pool.address:
            pods[key] = _with_address(pod, pod.status.podIP, pool)
    if missing:
        _give(table, sorted(missing, key=natural), pools)


def _pool(node: Node) -> _Pool:
    return _Pool(node, internal_ip(node), subnet(node.spec.podCIDR), {})


def _keeps(key: Key, pod: Pod, pool: _Pool, missing: list[Key]) -> bool:
    """Does the address it has still do? Where two claim one, the second by name takes another."""
    status = pod.status
    if not status.podIP or pod.metadata.annotations.get(FIXED, status.podIP) != status.podIP:
        return False
    address = number(status.podIP)
    if not pool.may_have(address):
        return False
    holder = pool.held.setdefault(address, key)
    if holder is key:
        return True
    if key < holder:
        pool.held[address] = key
        missing.append(holder)
        return True
    return False


def _with_address(pod: Pod, address: str, pool: _Pool) -> Pod:
    status = msgspec.structs.replace(pod.status, podIP=address, podIPs=(PodIP(address),), hostIP=pool.address)
    return msgspec.structs.replace(pod, status=status)


def _give(table: Table, missing: list[Key], pools: Mapping[str, _Pool]) -> None:
    pods = of(table, Pod)
    rest = []
    for key in missing:
        pool, fixed = pools[pods[key].spec.nodeName], pods[key].metadata.annotations.get(FIXED)
        if fixed:
            pods[key] = _with_address(pods[key], _fixed(key, fixed, pool), pool)
        else:
            rest.append(key)
    last: dict[str, int] = {}
    for key in rest:
        pod = pods[key]
        pool = pools[pod.spec.nodeName]
        address = _next(pool, last.get(pod.spec.nodeName, _last(pool)))
        if address == NOWHERE:
            if not any(is_terminating(pods[other]) for other in pool.held.values()):
                raise too_many(table, pod, [pool.node])
            continue
        last[pod.spec.nodeName] = address
        pool.held[address] = key
        pods[key] = _with_address(pod, text(address), pool)
    for name, address in last.items():
        node = pools[name].node
        notes = {**node.metadata.annotations, LAST_IP: text(address)}
        table["Node"][Key("Node", "", name)] = with_meta(node, annotations=notes)


def _last(pool: _Pool) -> int:
    said = number(pool.node.metadata.annotations.get(LAST_IP, ""))
    return said if pool.subnet.has(said) else pool.gateway


def _next(pool: _Pool, last: int) -> int:
    """The first free address after `last`, round the subnet once."""
    first, count = pool.gateway + 1, pool.subnet.last - pool.gateway - 1
    for step in range(count):
        address = first + (last + 1 - first + step) % count
        if address not in pool.held:
            return address
    return NOWHERE


def _fixed(key: Key, said: str, pool: _Pool) -> str:
    address = number(said)
    name = pool.node.metadata.name
    if not pool.may_have(address):
        hint = f"choose one from {text(pool.gateway + 1)} to {text(pool.subnet.last - 1)}"
        raise ObjectError(key, FIELD, f"{said} is no pod address in {name}'s subnet {pool.subnet}", hint)
    holder = pool.held.setdefault(address, key)
    if holder != key:
        raise ObjectError(key, FIELD, f"{said} is taken by {holder}", "choose another address, or leave it out")
    return text(address)


def check_fixed(table: Table) -> None:
    """An address that no node's subnet has can be had nowhere. Raises ObjectError."""
    subnets: list[Range] | None = None
    for key, pod in of(table, Pod).items():
        said = pod.metadata.annotations.get(FIXED)
        if said and not pod.spec.nodeName and not pod.spec.hostNetwork:
            subnets = subnets or [subnet(node.spec.podCIDR) for node in of(table, Node).values()]
            if not any(item.has(number(said)) for item in subnets):
                ranges = ", ".join(map(str, sorted(subnets)[:8]))
                raise ObjectError(key, FIELD, f"{said} is in no node's subnet", f"the nodes' subnets: {ranges}")
