"""All controllers, in the order in which one needs the other's work."""

from nsnet.control import (
    dns,
    endpoints,
    environment,
    events,
    ingress,
    ipam,
    kubeproxy,
    kubernetes,
    lifecycle,
    loadbalancer,
    namespaces,
    nodes,
    scheduler,
    services,
    status,
    underlay,
    workloads,
)
from nsnet.control.facts import NOTHING_SEEN, Facts
from nsnet.control.table import Table, joined, of, settled, split
from nsnet.model import Cluster, Key, Object, Objects, Pod, cluster_of, key_of

ROUNDS = 100  # more than any rollout needs: each round ends at least one old pod


def complete(objects: Objects, facts: Facts | None = None) -> dict[Key, Object]:
    """All objects of the cluster, with everything derived; what needed no change is the same instance.

    Raises ObjectError(key, field, …) for what cannot be: an address or port taken twice or outside its range, ranges
    that overlap, a topology that is too small.
    """
    facts = facts or NOTHING_SEEN
    table = split(objects)
    cluster = kubeproxy.completed(underlay.completed(cluster_of(objects), nodes.declared(table)), table)
    cluster = loadbalancer.completed(cluster)
    table["Cluster"] = {key_of(cluster): cluster}
    nodes.write(table, cluster, facts)
    kubernetes.write(table, cluster)
    dns.write(table, cluster)
    ingress.write(table, cluster)
    lifecycle.collect(table)
    lifecycle.terminate(table, facts.now)
    lifecycle.evict(table, {key.name for key in table["Node"]})
    services.write(table, cluster)
    loadbalancer.assign(table, cluster)
    _run_pods(table, cluster, facts)
    lifecycle.set_time(table, facts.now)
    endpoints.write(table, facts.now)
    loadbalancer.balance(table, cluster, facts)
    status.count(table)
    namespaces.write(table, cluster)
    ingress.tell(table, facts.now)
    events.write(table, cluster, facts.now, ingress.said(table, cluster, facts))
    _stamp(table, facts.now)
    return joined(table)


def _run_pods(table: Table, cluster: Cluster, facts: Facts) -> None:
    """Pods made, placed, addressed and judged; again while a rollout goes on by what the last round made ready."""
    for _ in range(ROUNDS):
        before = dict(of(table, Pod))
        workloads.expand(table)
        ipam.check_fixed(table)
        scheduler.place(table)
        ipam.assign(table)
        environment.write(table, cluster)
        status.judge(table, cluster, facts)
        if not workloads.rolling(table) or _same(before, of(table, Pod)):
            return


def _same(one: dict[Key, Pod], other: dict[Key, Pod]) -> bool:
    return len(one) == len(other) and all(other.get(key) is pod for key, pod in one.items())


def _stamp(table: Table, now: str) -> None:
    """Gives uid and creationTimestamp everything that has none yet; a flannel lease has no place for them."""
    for kind, objects in table.items():
        if kind == "SubnetLease":
            continue
        for key, obj in objects.items():
            meta = obj.metadata
            if not meta.uid or (now and not meta.creationTimestamp):
                objects[key] = settled(obj, None, now)
