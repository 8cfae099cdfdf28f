"""Where things stand when a cluster is spread over several machines: each renders what is its own.

A node is where the Cluster document says, its pods with it; the router and the hosts outside the cluster are on the
first machine. Switches are everywhere. The router's namespace is everywhere, too, since the programs that serve every
pod of a machine stand in it; on the others nothing is plugged into it.
"""

from collections.abc import Mapping

import msgspec

from nsnet import model, names
from nsnet.render.view import View
from nsnet.state import File, Loopback, Netns, Process, State, Sysctl, Value

EVERYWHERE = ("podserver", "healthcheck")  # what serves the pods and nodes of its own machine


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


def local(view: View) -> View:
    """The view of this machine's own nodes and pods, for what serves only these."""
    if not view.here:
        return view
    nodes = tuple(node for node in view.nodes if node.machine.on == view.here)
    names_ = {node.name for node in nodes}
    pods = {name: pods for name, pods in view.pods.items() if name in names_}
    return msgspec.structs.replace(view, nodes=nodes, pods=pods)


def own(view: View, state: State) -> State:
    """What of a whole cluster's state stands here."""
    if not view.here:
        return state
    places = where(view.objects)
    kept = {netns: values for netns, values in state.items() if places.get(netns, view.here) == view.here}
    if first(view.cluster) != view.here:
        kept[view.router] = frozenset(value for value in state[view.router] if _everywhere(value))
    return kept


def _everywhere(value: Value) -> bool:
    match value:
        case Netns() | Loopback() | Sysctl():
            return True
        case Process(argv):
            return any(f"nsnet.programs.{name}" in argv for name in EVERYWHERE)
        case File(path):
            return any(path.endswith(f"/{name}.json") for name in EVERYWHERE)
    return False
