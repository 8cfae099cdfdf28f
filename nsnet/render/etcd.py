"""The etcd that `up --store etcd` starts for the cluster: one member, in a namespace of the fabric with nothing but lo.

    <cluster>.fabric.etcd      127.0.0.1:2379 for `ip netns exec … etcdctl`, a unix socket for nsnet

It is rendered from the cluster's name and not from objects: the objects stand in it, so it must stand before them
(`reconcile.furnish`). No node reaches it, and neither does anybody else without root: its port has no password.
"""

import sys

from nsnet import names
from nsnet.state import Loopback, Netns, Process, Value

PART = "etcd"


def values(cluster: str, directory: str) -> tuple[str, frozenset[Value]]:
    """Its namespace, and what stands there; `directory` is where its data and its socket are."""
    argv = (sys.executable, "-m", "nsnet.programs.etcd", directory)
    return names.fabric_netns(cluster, PART), frozenset({Netns(names.mark(cluster)), Loopback(), Process(argv)})
