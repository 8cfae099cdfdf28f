"""From what the files say to what the store shall hold: what was allocated before is carried over, if it still fits.

`up` (whole): the files are everything; what a person declared before and does not any more goes. `apply`: the files are
added. Derived objects stay as they are; `complete` decides what becomes of them. What a document says wins over what
was allocated; what it leaves out keeps its clusterIP, node ports, node, address, subnet and uid, as the API server's
update does (`pkg/registry/core/service/storage/alloc.go`, patchAllocatedValues).

Of dumps (`kubectl get -o yaml`): Nodes and the nodes that pods name become nodes; an owner that did not come along is
forgotten, so that its pods stand for themselves.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import msgspec

from nsnet.control import ipfamilies, lifecycle, services, underlay, workloads
from nsnet.control.addresses import around, number, ranges, subnet
from nsnet.control.environment import STARTED_WITH
from nsnet.control.machines import remembered
from nsnet.control.table import controller_of, key_to, owned_by, with_meta
from nsnet.control.underlay import Ranges
from nsnet.control.wrong import meant, some
from nsnet.errors import ObjectError
from nsnet.model import (
    ENDED,
    WORKLOADS,
    Cluster,
    DaemonSet,
    HostEntry,
    Key,
    Node,
    NodeEntry,
    Object,
    Objects,
    Pod,
    PodStatus,
    Service,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
    StatefulSet,
    WorkloadStatus,
    family_of,
    key_of,
    pod_cidrs,
)

DEFAULT_NODES = ("node1", "node2")


def admit(stored: Objects, incoming: Objects, *, whole: bool) -> dict[Key, Object]:
    """What the store shall hold after `up` (whole) or `apply` of these objects; `complete` does the rest.

    Raises ObjectError for a node or target that is named and is not there.
    """
    result = _kept(stored, incoming) if whole else dict(stored)
    cluster, read = _cluster(stored, incoming, whole=whole)
    result |= {key: _merged(stored.get(key), obj, cluster, whole) for key, obj in incoming.items()}
    result = {key: obj for key, obj in result.items() if key.kind != "Cluster"}
    result |= {key: _adopted(key, result[key], result) for key in incoming if key in result}
    if cluster is not None:
        result[Key("Cluster", "", cluster.metadata.name)] = cluster
        if read:
            result |= {key: _reread(obj) for key, obj in result.items() if _is_derived_node(obj)}
            _check_targets(cluster, result)
        _check_nodes(cluster, result, incoming)
    return result


def remove(objects: Objects, keys: Collection[Key]) -> dict[Key, Object]:
    """What the store shall hold after a delete of `keys`: pods with a grace period terminate, all else is gone.

    A namespace takes everything in it along; a Node its entry in the Cluster document. What deleted objects own goes
    with them in `complete`. Keys that are not there are passed over. Raises ObjectError for the Cluster itself.
    """
    gone = set(keys)
    for key in gone:
        if key.kind == "Cluster":
            raise ObjectError(key, "", "cannot be deleted", f"nsnet down {key.name}")
    spaces = {key.name for key in gone if key.kind == "Namespace"}
    nodes = {key.name for key in gone if key.kind == "Node"}
    result: dict[Key, Object] = {}
    for key, obj in objects.items():
        if key not in gone and key.namespace not in spaces:
            result[key] = _without_nodes(obj, nodes) if isinstance(obj, Cluster) else obj
        elif isinstance(obj, Pod) and (going := lifecycle.ended(obj)):
            result[key] = going
    return result


def _without_nodes(cluster: Cluster, nodes: Collection[str]) -> Cluster:
    if not nodes or isinstance(cluster.nodes, int):
        return cluster
    return msgspec.structs.replace(cluster, nodes=tuple(entry for entry in cluster.nodes if entry.name not in nodes))


def _kept(stored: Objects, incoming: Objects) -> dict[Key, Object]:
    """What stays although no file says it: derived objects, and pods whose grace period has to be served out."""
    result: dict[Key, Object] = {}
    for key, obj in stored.items():
        if obj.metadata.ownerReferences or key in incoming:
            result[key] = obj
        elif isinstance(obj, Pod) and (going := lifecycle.ended(obj)):
            result[key] = going
        elif key.kind == "SubnetLease":  # of a real flanneld on the same etcd
            result[key] = obj
    return result


# --- one object -------------------------------------------------------------------------------------------------------


def _merged(old: Object | None, new: Any, cluster: Cluster | None, whole: bool) -> Any:
    """The new object with what was allocated for the old one."""
    new = _without_status(new)
    if old is None or type(old) is not type(new) or old is new:
        return new
    meta = new.metadata
    if not meta.uid or not meta.creationTimestamp:
        new = with_meta(
            new,
            uid=old.metadata.uid or meta.uid,
            creationTimestamp=old.metadata.creationTimestamp or meta.creationTimestamp,
        )
    match new, old:
        case Service(), Service():
            if not whole:
                _keeps_its_class(new, old)
            return _service(new, old, cluster)
        case Pod(), Pod():
            return _pod(new, old)
        case Node(), Node():
            return _node(new, old, cluster)
    if isinstance(new, WORKLOADS) and isinstance(old, WORKLOADS):
        return _workload(new, old, whole=whole)
    return new


def _without_status(obj: Any) -> Any:
    """Of a dump's status only what was allocated counts; conditions and counts are the cluster's own it came from."""
    if not isinstance(obj, (Pod, Node, *WORKLOADS)) or "status" not in obj.raw:
        return obj
    raw = {name: value for name, value in obj.raw.items() if name != "status"}
    if isinstance(obj, Pod):
        ended = obj.status.phase in ENDED
        status = obj.status if ended else PodStatus(podIP=obj.status.podIP, podIPs=obj.status.podIPs)
        return msgspec.structs.replace(obj, raw=raw, status=status)
    if isinstance(obj, Node):
        return msgspec.structs.replace(obj, raw=raw)
    return msgspec.structs.replace(obj, raw=raw, status=WorkloadStatus())


def _workload(new: Any, old: Any, *, whole: bool) -> Any:
    """Counts are kept until they are taken again. `apply` of a manifest without replicas leaves a `scale` alone."""
    spec = new.spec
    if new.spec.replicas is None and not whole:
        spec = msgspec.structs.replace(new.spec, replicas=old.spec.replicas)
    if new.spec.selector is None and old.spec.selector is not None:
        spec = msgspec.structs.replace(spec, selector=old.spec.selector)
    return msgspec.structs.replace(new, spec=spec, status=old.status)


def _pod(new: Pod, old: Pod) -> Pod:
    """The pod stays where it is, unless the manifest wants it elsewhere: then it is another pod."""
    if new.spec.nodeName and new.spec.nodeName != old.spec.nodeName:
        return new
    if new.spec.hostNetwork != old.spec.hostNetwork:
        return new
    spec = msgspec.structs.replace(new.spec, nodeName=old.spec.nodeName)
    started = {name: value for name, value in old.metadata.annotations.items() if name == STARTED_WITH}
    new = with_meta(new, annotations={**new.metadata.annotations, **started})
    return msgspec.structs.replace(new, spec=spec, status=old.status)


def _node(new: Node, old: Node, cluster: Cluster | None) -> Node:
    """The subnet, where the manifest says none, and host-local's last address."""
    whole = ranges(cluster.networking.podSubnet) if cluster else ()
    had = [subnet(cidr) for cidr in pod_cidrs(old)]
    spec = new.spec
    if not spec.podCIDR and had and all(any(one.covers(each) for one in whole) for each in had):
        spec = msgspec.structs.replace(spec, podCIDR=old.spec.podCIDR, podCIDRs=old.spec.podCIDRs)
    ours = {name: value for name, value in old.metadata.annotations.items() if name.startswith("nsnet/")}
    new = with_meta(new, annotations={**ours, **new.metadata.annotations})
    return msgspec.structs.replace(new, spec=spec, status=new.status if new.status.addresses else old.status)


def _is_derived_node(obj: Object) -> bool:
    return isinstance(obj, Node) and owned_by(obj, "Cluster")


def _reread(obj: Object) -> Object:
    """A derived Node keeps what was allocated; labels and taints come from the document that is read anew."""
    assert isinstance(obj, Node)
    spec = msgspec.structs.replace(obj.spec, taints=(), unschedulable=False)
    return msgspec.structs.replace(with_meta(obj, labels={}), spec=spec)


def _adopted(key: Key, obj: Object, objects: Objects) -> Object:
    """An owned object of a dump: owners that did not come along are forgotten; a revision is called as ours is."""
    meta = obj.metadata
    if not meta.ownerReferences:
        return obj
    kept = tuple(
        item for item in meta.ownerReferences if item.kind in ("Node", "Cluster") or _there(item, key, objects)
    )
    if kept != meta.ownerReferences:
        obj = with_meta(obj, ownerReferences=kept)
    owner = controller_of(obj.metadata)
    above = objects.get(Key(*owner)) if owner else None
    if isinstance(obj, Pod) and isinstance(above, StatefulSet | DaemonSet):
        label = {workloads.REVISION: workloads.revision(Key(*owner or key), above)}
        return with_meta(obj, labels={**obj.metadata.labels, **label})
    return obj


def _there(reference: Any, key: Key, objects: Objects) -> bool:
    return Key(*key_to(reference, key.namespace)) in objects


# --- Services ---------------------------------------------------------------------------------------------------------


def _service(new: Service, old: Service, cluster: Cluster | None) -> Service:
    spec = new.spec
    if services.has_cluster_ip(spec) and services.has_cluster_ip(old.spec) and not spec.clusterIP:
        kept = ipfamilies.carried(spec, old.spec, ranges(cluster.networking.serviceSubnet)) if cluster else ()
        if kept and not spec.clusterIPs:
            spec = msgspec.structs.replace(spec, clusterIP=kept[0], clusterIPs=kept)
    if services.wants_node_ports(spec) and services.wants_node_ports(old.spec):
        ports = tuple(_with_old_ports(spec.ports or (), old.spec.ports or (), cluster))
        spec = msgspec.structs.replace(spec, ports=ports)
    if services.wants_health_check(spec) and services.wants_health_check(old.spec) and not spec.healthCheckNodePort:
        spec = msgspec.structs.replace(spec, healthCheckNodePort=old.spec.healthCheckNodePort)
    return msgspec.structs.replace(new, spec=spec, status=_balanced(spec, new.status, old.status))


def _keeps_its_class(new: Service, old: Service) -> None:
    """As the API server has it: a balancer that has been chosen is not left for another."""
    both = new.spec.type == old.spec.type == "LoadBalancer"
    if both and (new.spec.loadBalancerClass or "") != (old.spec.loadBalancerClass or ""):
        hint = "change the type first, or delete the Service"
        raise ObjectError(key_of(new), "spec.loadBalancerClass", "may not change while the type is LoadBalancer", hint)


def _balanced(spec: ServiceSpec, new: ServiceStatus, old: ServiceStatus) -> ServiceStatus:
    """A load balancer's address stays as long as there is a load balancer."""
    if spec.type != "LoadBalancer":
        return ServiceStatus()
    return new if new.loadBalancer.ingress else old


def _with_old_ports(
    new: tuple[ServicePort, ...], old: tuple[ServicePort, ...], cluster: Cluster | None
) -> Iterator[ServicePort]:
    """Each port that asks for no node port gets the one that the port of its name had, unless another has it now."""
    by_name = {port.name: port for port in old}
    used = {(port.nodePort, port.protocol) for port in new if port.nodePort}
    low, _, high = (cluster.networking.nodePortRange if cluster else "30000-32767").partition("-")
    for port in new:
        before = by_name.get(port.name)
        had = (before.nodePort if before else None) or 0
        fits = int(low) <= had <= int(high) and (had, port.protocol) not in used
        if port.nodePort or not fits:
            yield port
        else:
            used.add((had, port.protocol))
            yield msgspec.structs.replace(port, nodePort=had)


# --- the Cluster document ---------------------------------------------------------------------------------------------


def _cluster(stored: Objects, incoming: Objects, *, whole: bool) -> tuple[Cluster | None, bool]:
    """The Cluster document as it shall be, and whether the incoming one was read for it.

    `apply` of files that say no Cluster document (a default one stands for it) leaves the stored one.
    """
    old, new = _one(stored), _one(incoming)
    if new is None or (old is not None and not whole and not new.raw and new == Cluster(new.metadata)):
        return old, False
    if old is not None and not whole and old.metadata.name != new.metadata.name:
        hint = f"write metadata: {{name: {old.metadata.name}}}"
        message = f"the running cluster is called {old.metadata.name}"
        raise ObjectError(Key("Cluster", "", new.metadata.name), "metadata.name", message, hint)
    new = underlay.with_subnets(_with_nodes_of_dumps(new, incoming))
    return (new if old is None else _with_allocated(new, old, incoming)), True


def _one(objects: Objects) -> Cluster | None:
    return next((obj for obj in objects.values() if isinstance(obj, Cluster)), None)


def _with_nodes_of_dumps(cluster: Cluster, incoming: Objects) -> Cluster:
    """Where the document does not say who the nodes are, those that pods name are, and the Node objects."""
    if "nodes" in cluster.raw or cluster.nodes != len(DEFAULT_NODES):
        return cluster
    named = {name for obj in incoming.values() if (name := _node_name(obj))}
    declared = {key.name for key in incoming if key.kind == "Node"}
    if not declared and named <= set(DEFAULT_NODES):
        return cluster
    return msgspec.structs.replace(cluster, nodes=tuple(NodeEntry(name) for name in sorted(named - declared)))


def _node_name(obj: Object) -> str:
    if isinstance(obj, Pod):
        return obj.spec.nodeName
    return obj.spec.template.spec.nodeName if isinstance(obj, WORKLOADS) else ""


def _with_allocated(new: Cluster, old: Cluster, incoming: Objects) -> Cluster:
    """The new document with the addresses that its nodes and hosts had, where they still fit."""
    meta = msgspec.structs.replace(
        new.metadata,
        uid=new.metadata.uid or old.metadata.uid,
        creationTimestamp=new.metadata.creationTimestamp or old.metadata.creationTimestamp,
    )
    at = {network.name: ranges(network.subnet) for network in underlay.networks_of(new)}
    declared = {key: obj for key, obj in incoming.items() if isinstance(obj, Node)}
    nodes, hosts = underlay.entries(new, declared), underlay.hosts_of(new)
    before = {entry.name: entry for entry in old.nodes} if isinstance(old.nodes, tuple) else {}
    hosts_before = {entry.name: entry for entry in old.hosts or ()}
    machines: list[NodeEntry | HostEntry] = [*nodes, *hosts]
    known = {machine.name for machine in new.underlay.machines}
    said = {address for entry in machines for address in (entry.address, *entry.addresses)}
    return msgspec.structs.replace(
        new,
        metadata=meta,
        underlay=remembered(new, old),
        nodes=tuple(_placed(entry, before.get(entry.name), at, said, known) for entry in nodes),
        hosts=tuple(_placed(entry, hosts_before.get(entry.name), at, said) for entry in hosts),
    )


def _placed(
    entry: Any,
    old: NodeEntry | HostEntry | None,
    at: Mapping[str, Ranges],
    said: Collection[str],
    machines: Collection[str] = (),
) -> Any:
    """The entry with the network and addresses it had, where it says none of that family and they still fit."""
    if old is None:
        return entry
    if isinstance(entry, NodeEntry) and isinstance(old, NodeEntry) and not entry.machine:
        entry = msgspec.structs.replace(entry, machine=old.machine if old.machine in machines else "")
    if entry.network and entry.network != old.network:
        return entry
    there = at.get(old.network, ())
    own = {family_of(address) for address in (entry.address, *entry.addresses) if address}
    had = [one for one in (old.address, *old.addresses) if _fits(one, there, said) and family_of(one) not in own]
    if not had or (entry.address and not entry.network and around(number(entry.address), there) is None):
        return entry
    first, more = (entry.address, had) if entry.address else (had[0], had[1:])
    return msgspec.structs.replace(entry, network=old.network, address=first, addresses=(*more, *entry.addresses))


def _fits(address: str, there: Ranges, said: Collection[str]) -> bool:
    return around(number(address), there) is not None and address not in said


# --- names that must be there -----------------------------------------------------------------------------------------


def _check_nodes(cluster: Cluster, objects: Objects, incoming: Objects) -> None:
    """A manifest that names a node names one there is. A pod that loses its node later is `complete`'s affair."""
    known = [f"node{number}" for number in range(1, cluster.nodes + 1)] if isinstance(cluster.nodes, int) else []
    known += [entry.name for entry in cluster.nodes] if isinstance(cluster.nodes, tuple) else []
    known += [key.name for key in objects if key.kind == "Node"]
    for key, obj in incoming.items():
        name = _node_name(obj)
        if name and name not in known:
            field = "spec.nodeName" if isinstance(obj, Pod) else "spec.template.spec.nodeName"
            raise ObjectError(key, field, f'there is no node "{name}"{meant(name, known)}', f"nodes: {some(known)}")


def _check_targets(cluster: Cluster, objects: Objects) -> None:
    """Every check starts somewhere that is there, or that a workload will make."""
    for index, check in enumerate(cluster.checks):
        kind, slash, name = check.source.rpartition("/")
        known = list(_targets(kind if slash else "pod", cluster, objects))
        if name not in known and not (kind in ("", "pod", "pods", "po") and _will_be(name, objects)):
            message = f"there is no {check.source if slash else f'pod {name}'}{meant(name, known)}"
            raise ObjectError(
                Key("Cluster", "", cluster.metadata.name), f"checks[{index}].from", message, f"{some(known)}"
            )


_KINDS = {
    "pod": "Pod", "po": "Pod", "deploy": "Deployment", "deployment": "Deployment", "svc": "Service",
    "service": "Service", "sts": "StatefulSet", "statefulset": "StatefulSet", "ds": "DaemonSet",
    "daemonset": "DaemonSet", "rs": "ReplicaSet", "replicaset": "ReplicaSet", "rc": "ReplicationController",
    "replicationcontroller": "ReplicationController", "job": "Job",
}  # fmt: skip


def _targets(word: str, cluster: Cluster, objects: Objects) -> Iterator[str]:
    word = word.lower()
    if word in ("host", "hosts"):
        yield from (host.name for host in (HostEntry("client"),) if cluster.hosts is None)
        yield from (host.name for host in cluster.hosts or ())
    elif word in ("node", "nodes", "no"):
        count = cluster.nodes
        yield from (f"node{n}" for n in range(1, count + 1)) if isinstance(count, int) else (e.name for e in count)
        yield from (key.name for key in objects if key.kind == "Node")
    else:
        kind = _KINDS.get(word) or _KINDS.get(word.removesuffix("s"))
        yield from (key.name for key in objects if key.kind == kind)


def _will_be(name: str, objects: Objects) -> bool:
    """Is it the name of a pod that a workload makes?"""
    return any(name.startswith(f"{key.name}-") for key, obj in objects.items() if isinstance(obj, WORKLOADS))
