"""iptables of a node, put together: kube-proxy's chains, and the built-in chains that several components share.

A built-in chain is one value, whole, with policy ACCEPT. kube-proxy inserts its jumps at the head and flanneld appends,
so kube-proxy's come first whatever started first.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache

from nsnet import model
from nsnet.errors import ObjectError
from nsnet.render import flannel, proxy_iptables, services
from nsnet.render.view import View
from nsnet.state import Chain, Value

Jump = tuple[str, str, str]  # table, built-in chain, rule


def render(view: View) -> Iterator[tuple[str, Iterable[Value]]]:
    mode = view.cluster.networking.kubeProxyMode
    if mode != "iptables":
        key = model.key_of(view.cluster)
        raise ObjectError(key, "networking.kubeProxyMode", f"mode {mode} is not built yet", "use iptables")
    told = proxy_iptables.settings(view.objects)
    joined = services.join(view.objects)
    flannels = flannel.jumps(masq=view.cluster.flannel.ipMasq)
    for node, seen in zip(model.of(view.objects, model.Node), view.nodes, strict=True):
        yield seen.netns, proxy_iptables.node_chains(joined, services.place(node, told.family), told)
        yield seen.netns, built_in((*proxy_iptables.JUMPS, *(flannels if seen.subnet else ())))


@lru_cache(maxsize=64)
def built_in(jumps: tuple[Jump, ...]) -> tuple[Chain, ...]:
    """The built-in chains these jumps stand in, each with its jumps in the order given."""
    rules: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for table, name, rule in jumps:
        rules[table, name].append(rule)
    return tuple(Chain(table, name, tuple(found), policy="ACCEPT") for (table, name), found in rules.items())
