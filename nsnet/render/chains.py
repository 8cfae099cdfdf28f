"""Packet filters of a node, put together: kube-proxy's in the mode that is asked for, and what flanneld adds.

In iptables mode a built-in chain is one value, whole, with policy ACCEPT, for several components share it. kube-proxy
inserts its jumps at the head and flanneld appends, so kube-proxy's come first whatever started first. In nftables mode
kube-proxy has a table of its own and the built-in chains hold flanneld's jumps alone. What is left of the other mode is
not wanted any more, and so it goes.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache

from nsnet import model
from nsnet.errors import ObjectError
from nsnet.render import flannel, proxy_iptables, proxy_nftables, services
from nsnet.render.view import View
from nsnet.state import Chain, Sysctl, Value

Jump = tuple[str, str, str]  # table, built-in chain, rule
PerNode = Iterator[Iterable[Value]]

JUMPS: dict[str, tuple[Jump, ...]] = {"iptables": proxy_iptables.JUMPS, "nftables": ()}


def render(view: View) -> Iterator[tuple[str, Iterable[Value]]]:
    mode = view.cluster.networking.kubeProxyMode
    if mode not in JUMPS:
        key, hint = model.key_of(view.cluster), f"use one of: {', '.join(JUMPS)}"
        raise ObjectError(key, "networking.kubeProxyMode", f"mode {mode} is not built yet", hint)
    proxies = _iptables(view.objects) if mode == "iptables" else _nftables(view.objects)
    flannels = flannel.jumps(masq=view.cluster.flannel.ipMasq)
    for seen, values in zip(view.nodes, proxies, strict=True):
        yield seen.netns, values
        yield seen.netns, (_route_localnet(mode),)
        yield seen.netns, built_in((*JUMPS[mode], *(flannels if seen.subnet else ())))


def _iptables(objects: model.Objects) -> PerNode:
    told, joined = proxy_iptables.settings(objects), services.join(objects)
    for node in model.of(objects, model.Node):
        yield proxy_iptables.node_chains(joined, services.place(node, told.family), told)


def _nftables(objects: model.Objects) -> PerNode:
    told, joined = proxy_nftables.settings(objects), services.join(objects)
    for node in model.of(objects, model.Node):
        yield proxy_nftables.node_values(joined, services.place(node, told.family), told)


def _route_localnet(mode: str) -> Sysctl:
    """kube-proxy opens it for node ports on loopback, which only iptables mode has (CVE-2020-8558 says why)."""
    return Sysctl("net.ipv4.conf.all.route_localnet", "1" if mode == "iptables" else "0")


@lru_cache(maxsize=64)
def built_in(jumps: tuple[Jump, ...]) -> tuple[Chain, ...]:
    """The built-in chains these jumps stand in, each with its jumps in the order given."""
    rules: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for table, name, rule in jumps:
        rules[table, name].append(rule)
    return tuple(Chain(table, name, tuple(found), policy="ACCEPT") for (table, name), found in rules.items())
