"""Packet filters of a node, put together: policies, kube-proxy's in its mode, flanneld's, and jumps for host ports.

In iptables mode a built-in chain is one value, whole, with policy ACCEPT, for several components share it. kube-proxy
inserts its jumps at the head and flanneld appends, so kube-proxy's come first whatever started first (portmap.py says
where its own stand); before all of them, for they accept, stand those of the network policies. In nftables mode
kube-proxy has a table of its own and the built-in chains hold the others' jumps alone. In userspace mode a process on
each node stands behind the rules. What is left of another mode is not wanted any more, and so it goes.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

from nsnet import model, names
from nsnet.model import Family
from nsnet.render import (
    flannel,
    kubeproxy,
    policy,
    policy_iptables,
    policy_nftables,
    portmap,
    proxy_iptables,
    proxy_nftables,
    proxy_userspace,
    services,
)
from nsnet.render.kubeproxy import Told
from nsnet.render.policy import Guard
from nsnet.render.view import View
from nsnet.state import Chain, Value

Jump = tuple[str, str, str]  # table, built-in chain, rule
PerNode = Iterator[Iterable[Value]]

JUMPS: dict[str, tuple[Jump, ...]] = {
    "iptables": proxy_iptables.JUMPS,
    "nftables": (),
    "userspace": proxy_userspace.JUMPS,
}


def render(view: View) -> Iterator[tuple[str, Iterable[Value]]]:
    mode = view.cluster.networking.kubeProxyMode
    said = kubeproxy.told(view.objects)
    sysctls = tuple(kubeproxy.sysctls(said, mode))
    for seen in view.nodes:
        yield seen.netns, sysctls
    for family in view.families:
        yield from _of_family(view, family, mode, said)


def _of_family(view: View, family: Family, mode: str, said: Told) -> Iterator[tuple[str, Iterable[Value]]]:
    """A node has one kube-proxy, which does the same for each family on its own."""
    proxies = PROXIES[mode](view.objects, said, family)
    flannels = flannel.jumps(masq=view.cluster.flannel.ipMasq)
    own = JUMPS[mode] if mode != "userspace" or family == "ip" else ()
    guards = policy.guards(view.objects, family)
    for seen, values in zip(view.nodes, proxies, strict=True):
        yield seen.netns, values
        before, after = portmap.jumps(view, seen) if family == "ip" else ((), ())
        has_subnet = any(leg.family == family for leg in seen.legs)
        guard = guards.get(seen.name)
        yield from ((seen.netns, found) for found in _policies(guard, view.cluster, said, family))
        first = policy_iptables.JUMPS if guard and mode != "nftables" else ()
        yield seen.netns, built_in((*first, *before, *own, *(flannels if has_subnet else ()), *after), family)


def _policies(guard: Guard | None, cluster: model.Cluster, said: Told, family: Family) -> Iterator[Iterable[Value]]:
    """NetworkPolicy, in the filter of kube-proxy's mode; nothing on a node without a pod that one selects."""
    if guard is None:
        return
    strict = cluster.policy.flushConntrack
    if cluster.networking.kubeProxyMode == "nftables":
        yield from policy_nftables.values(guard, strict=strict, family=family)
    else:
        bit = policy_iptables.mark(kubeproxy.masquerade_bit(said.config.iptables.masqueradeBit))
        yield from policy_iptables.values(guard, bit, strict=strict, family=family)


def _iptables(objects: model.Objects, said: Told, family: Family) -> PerNode:
    joined, known = services.join(objects), dict[proxy_iptables.Settings, proxy_iptables.Settings]()
    for node in model.of(objects, model.Node):
        settings = proxy_iptables.settings_on(node, said, family)
        told = known.setdefault(settings, settings)  # nodes that are told the same share what was spelled
        yield proxy_iptables.node_chains(joined, services.place(node, told.family), told)


def _nftables(objects: model.Objects, said: Told, family: Family) -> PerNode:
    joined, known = services.join(objects), dict[proxy_nftables.Settings, proxy_nftables.Settings]()
    for node in model.of(objects, model.Node):
        settings = proxy_nftables.settings_on(node, said, family)
        told = known.setdefault(settings, settings)
        yield proxy_nftables.node_values(joined, services.place(node, told.family), told)


def _userspace(objects: model.Objects, said: Told, family: Family) -> PerNode:
    """It never had a second family: IPv4 alone."""
    if family != "ip":
        yield from (() for _ in model.of(objects, model.Node))
        return
    found = proxy_userspace.proxied(services.join(objects), objects)
    content = proxy_userspace.configuration(found, said.config.udpIdleTimeout)
    for node in model.of(objects, model.Node):
        netns = names.node_netns(said.cluster.metadata.name, node.metadata.name)
        process = proxy_userspace.program(netns, content) if found else ()
        yield (*proxy_userspace.node_chains(found, services.place(node)), *process)


PROXIES: dict[str, Callable[[model.Objects, Told, Family], PerNode]] = {
    "iptables": _iptables,
    "nftables": _nftables,
    "userspace": _userspace,
}


@lru_cache(maxsize=64)
def built_in(jumps: tuple[Jump, ...], family: Family = "ip") -> tuple[Chain, ...]:
    """The built-in chains these jumps stand in, each with its jumps in the order given."""
    rules: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for table, name, rule in jumps:
        rules[table, name].append(rule)
    return tuple(Chain(table, name, tuple(found), "ACCEPT", family) for (table, name), found in rules.items())
