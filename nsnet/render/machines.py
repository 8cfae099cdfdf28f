"""Where things stand when a cluster is spread over several machines.

A node is where the Cluster document says, its pods with it; the router and the hosts outside the cluster are on the
first machine. Switches are everywhere.
"""

from collections.abc import Mapping

from nsnet import model, names


def first(cluster: model.Cluster) -> str:
    """The machine of the router and of the hosts; empty where there is only one."""
    return next((machine.name for machine in cluster.underlay.machines), "")


def of_nodes(cluster: model.Cluster) -> Mapping[str, str]:
    """Node → its machine; empty where there is only one."""
    entries = cluster.nodes if isinstance(cluster.nodes, tuple) else ()
    return {entry.name: entry.machine for entry in entries if entry.machine}


def where(objects: model.Objects) -> Mapping[str, str]:
    """Namespace of a node, pod or host → its machine; empty where there is only one."""
    cluster = model.cluster_of(objects)
    name, nodes, home = cluster.metadata.name, of_nodes(cluster), first(cluster)
    if not home:
        return {}
    found = {names.node_netns(name, node): machine for node, machine in nodes.items()}
    found |= {names.host_netns(name, host.name): home for host in cluster.hosts or ()}
    found[names.fabric_netns(name, "router")] = home
    for pod in model.of(objects, model.Pod):
        if pod.spec.nodeName in nodes and not pod.spec.hostNetwork:
            meta = pod.metadata
            found[names.pod_netns(name, meta.namespace, meta.name)] = nodes[pod.spec.nodeName]
    return found
