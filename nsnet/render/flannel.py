"""What flanneld writes on a node: what its backend takes (`backends.py`), its iptables rules and subnet.env.

Nothing before the node has its lease; leases of another backend are skipped, as flanneld does (with a warning). With
IPv6 the same rules stand in ip6tables. There is no all-zero FDB entry: an unknown destination is dropped.

Sources: flannel `pkg/trafficmngr/iptables`, `pkg/subnet` (facts/FLANNEL.md §4-6). Upstream's leftovers (a changed
VtepMAC leaves the old FDB row) are not copied: what is not wanted is removed.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache

from nsnet import names
from nsnet.model import Backend, Family
from nsnet.render import backends
from nsnet.render.backends import Overlay, network
from nsnet.render.view import Lease, Leg, Node, View
from nsnet.state import Chain, File, Value

MULTICAST: dict[Family, str] = {"ip": "224.0.0.0/4", "ip6": "ff00::/8"}
MASQ = '-m comment --comment "flanneld masq"'
FORWARD = '-m comment --comment "flanneld forward"'

# flanneld appends: its jumps come after kube-proxy's.
MASQ_JUMP = ("nat", "POSTROUTING", f"{MASQ} -j FLANNEL-POSTRTG")
FORWARD_JUMP = ("filter", "FORWARD", f"{FORWARD} -j FLANNEL-FWD")


def render(view: View) -> Iterator[tuple[str, Iterable[Value]]]:
    masq, backend = view.cluster.flannel.ipMasq, view.cluster.flannel.Backend
    for node in view.nodes:
        if not node.legs:
            continue
        yield node.netns, _overlay(node, view.leases, view.pod_cidrs, backend)
        for leg in node.legs:
            yield node.netns, _rules(leg, network(view.pod_cidrs, leg.family), masq)
        yield node.netns, (subnet_env(node, view.pod_cidrs, masq),)


@lru_cache(maxsize=1024)
def _overlay(node: Node, leases: tuple[Lease, ...], pod_cidrs: tuple[str, ...], backend: Backend) -> frozenset[Value]:
    subnets = {leg.subnet for leg in node.legs}
    own = tuple(lease for lease in leases if lease.subnet in subnets)
    remote = tuple(lease for lease in leases if lease.subnet not in subnets and _is_for(lease, backend))
    legs = tuple(leg for leg in node.legs if any(lease.subnet == leg.subnet for lease in own))
    return backends.values(Overlay(node, legs, own, remote, pod_cidrs, backend)) if legs else frozenset()


def _is_for(lease: Lease, backend: Backend) -> bool:
    """Whether it is a peer's of this backend; udp takes every lease for one, since its own do not say."""
    return backend.kind in {"udp", lease.backend}


def jumps(*, masq: bool) -> tuple[tuple[str, str, str], ...]:
    """What flanneld appends to built-in chains, as (table, chain, rule); `masq`: --ip-masq."""
    return (MASQ_JUMP, FORWARD_JUMP) if masq else (FORWARD_JUMP,)


# --- rules and subnet.env ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _rules(leg: Leg, cluster: str, masq: bool) -> tuple[Chain, ...]:
    """Its own chains, in the order and spelling of iptables-save. Marked packets are kube-proxy's business."""
    subnet, family = leg.subnet, leg.family
    accept = (f"-s {cluster} {FORWARD} -j ACCEPT", f"-d {cluster} {FORWARD} -j ACCEPT")
    forward = Chain("filter", "FLANNEL-FWD", accept, family=family)
    if not masq:
        return (forward,)
    rules = (
        f"-m mark --mark 0x4000/0x4000 {MASQ} -j RETURN",
        f"-s {subnet} -d {cluster} {MASQ} -j RETURN",
        f"-s {cluster} -d {subnet} {MASQ} -j RETURN",
        f"! -s {cluster} -d {subnet} {MASQ} -j RETURN",
        f"-s {cluster} ! -d {MULTICAST[family]} {MASQ} -j MASQUERADE --random-fully",
        f"! -s {cluster} -d {cluster} {MASQ} -j MASQUERADE --random-fully",
    )
    return forward, Chain("nat", "FLANNEL-POSTRTG", rules, family=family)


def subnet_env(node: Node, pod_cidrs: tuple[str, ...], masq: bool) -> File:
    """The file the CNI plugin reads; FLANNEL_SUBNET and FLANNEL_IPV6_SUBNET are the bridge's addresses."""
    legs = sorted(node.legs, key=lambda leg: leg.family)
    lines = (
        *(line for leg in legs for line in _env(leg, network(pod_cidrs, leg.family))),
        f"FLANNEL_MTU={node.mtu}",
        f"FLANNEL_IPMASQ={str(masq).lower()}",
    )
    path = names.flannel_dir(node.netns) / "subnet.env"
    return File(str(path), "\n".join(lines) + "\n", mode=0o644)


def _env(leg: Leg, network: str) -> tuple[str, str]:
    word = "FLANNEL_IPV6_" if leg.family == "ip6" else "FLANNEL_"
    return f"{word}NETWORK={network}", f"{word}SUBNET={leg.gateway}"
