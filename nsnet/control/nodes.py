"""A Node object for every node of the Cluster document, as kubelet and flanneld write it.

A Node that only the document says is owned by the Cluster and goes when its entry goes. One that stands in the
manifests (a dump) stays what it is; it gets what is missing. Labels and taints come from the entry when the Node is
made (or the document read anew); after that the Node says what they are, so that those a person typed stay.
"""

import msgspec

from nsnet import names
from nsnet.control import flannel, wireguard
from nsnet.control.facts import Facts
from nsnet.control.table import Table, of, owned_by, owner
from nsnet.model import (
    Cluster,
    Condition,
    Key,
    Node,
    NodeAddress,
    NodeEntry,
    NodeStatus,
    ObjectMeta,
    SubnetLease,
    Taint,
)

NETWORK = "nsnet/network"
LAST_IP = "nsnet/last-reserved-ip"
CONDITIONS = (
    Condition("NetworkUnavailable", "False", "FlannelIsUp", "Flannel is running on this node"),
    Condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
)
SILENT = (
    CONDITIONS[0],
    Condition("Ready", "Unknown", "NodeStatusUnknown", "Kubelet stopped posting node status."),
)  # as the node controller says it of a node whose kubelet is silent


def declared(table: Table) -> dict[Key, Node]:
    """The Node objects that manifests brought."""
    return {key: node for key, node in of(table, Node).items() if not owned_by(node, "Cluster")}


def write(table: Table, cluster: Cluster, facts: Facts) -> None:
    """All Node objects, with their subnets, and the leases. Raises ObjectError where a subnet does not fit."""
    assert isinstance(cluster.nodes, tuple)
    nodes = of(table, Node)
    there = {node.metadata.name: node for node in nodes.values()}
    subnets = flannel.subnets(cluster, there, of(table, SubnetLease), facts.subnets)
    keys = wireguard.public_keys(table, cluster, facts.entropy)
    wanted: dict[Key, Node] = {}
    for entry in cluster.nodes:
        key = Key("Node", "", entry.name)
        old = there.get(entry.name)
        silent = _silent(cluster, entry, old, facts)
        new = _node(cluster, entry, old, subnets[entry.name], keys.get(entry.name, ""), silent)
        wanted[key] = old if old is not None and old == new else new
    nodes.clear()
    nodes.update(wanted)
    flannel.write_leases(table, cluster, keys)


def _silent(cluster: Cluster, entry: NodeEntry, old: Node | None, facts: Facts) -> bool:
    """Does nobody hear of the node's machine? What was last known of it, where nobody has listened."""
    if not entry.machine:
        return False
    if facts.listening is None:
        return old is not None and old.status.conditions == SILENT
    return names.node_netns(cluster.metadata.name, entry.name) not in facts.listening


def _node(
    cluster: Cluster, entry: NodeEntry, old: Node | None, subnets: tuple[str, ...], key: str, silent: bool
) -> Node:
    base = old or Node(ObjectMeta(name=entry.name, ownerReferences=(owner(cluster),)))
    notes = flannel.annotations(cluster, entry.name, (entry.address, *entry.addresses), key)
    made = old is not None and owned_by(old, "Cluster") and bool(old.metadata.labels)
    meta = msgspec.structs.replace(
        base.metadata,
        labels={**_labels(entry.name), **({} if made else entry.labels), **base.metadata.labels},
        annotations={**base.metadata.annotations, NETWORK: entry.network, **notes},
    )
    taints = base.spec.taints if made else _taints(entry.taints, base.spec.taints)
    spec = msgspec.structs.replace(base.spec, podCIDR=subnets[0], podCIDRs=subnets, taints=taints)
    return msgspec.structs.replace(base, metadata=meta, spec=spec, status=_status(entry, silent))


def _labels(name: str) -> dict[str, str]:
    return {
        "beta.kubernetes.io/arch": "amd64",
        "beta.kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
    }


def _taints(said: tuple[Taint, ...], there: tuple[Taint, ...]) -> tuple[Taint, ...]:
    """One per key and effect; the document wins."""
    found = {(taint.key, taint.effect): taint for taint in (*there, *said)}
    return tuple(found.values())


def _status(entry: NodeEntry, silent: bool) -> NodeStatus:
    addresses = (
        NodeAddress("InternalIP", entry.address),
        NodeAddress("Hostname", entry.name),
        *(NodeAddress("InternalIP", further) for further in entry.addresses),
    )
    return NodeStatus(addresses, SILENT if silent else CONDITIONS)
