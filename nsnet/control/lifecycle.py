"""What goes: objects whose owner is gone, pods whose node is gone, pods whose grace period is over.

A pod with an explicit terminationGracePeriodSeconds is served out: `deletionGracePeriodSeconds` says that it is to go,
`deletionTimestamp` (written when there is a clock) when, as in Kubernetes the time at which it will be gone. Without an
explicit one it goes at once.
"""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta

import msgspec

from nsnet.control.environment import STARTED_WITH
from nsnet.control.table import Table, key_to, of, with_meta
from nsnet.model import Object, ObjectMeta, Pod, PodStatus, is_terminating, is_unschedulable, key_of

LONGEST_GRACE = 2**32  # seconds, more than a hundred years: much more has no date


def collect(table: Table) -> None:
    """Removes what nobody owns any more, and what that owned, and so on."""
    owned = {key: obj for objects in table.values() for key, obj in objects.items() if obj.metadata.ownerReferences}
    while orphans := [key for key, obj in owned.items() if not _has_owner(table, obj.metadata)]:
        for key in orphans:
            end(table, owned.pop(key))


def _has_owner(table: Table, meta: ObjectMeta) -> bool:
    keys = (key_to(reference, meta.namespace) for reference in meta.ownerReferences)
    return any(key in table[key[0]] for key in keys)


def end(table: Table, obj: Object) -> None:
    """Deletes an object; a pod with a grace period begins to terminate."""
    key = key_of(obj)
    going = ended(obj) if isinstance(obj, Pod) else None
    if going is None:
        del table[key.kind][key]
    else:
        table[key.kind][key] = going


def ended(pod: Pod) -> Pod | None:
    """The pod as it is after a delete: terminating, or None where it goes at once."""
    grace = pod.spec.terminationGracePeriodSeconds
    if is_terminating(pod):
        return pod
    if not grace or not pod.spec.nodeName:
        return None
    return with_meta(pod, deletionGracePeriodSeconds=grace)


def terminate(table: Table, now: str) -> None:
    """Removes what is terminating and whose time has come."""
    pods = of(table, Pod)
    for key, pod in [(key, pod) for key, pod in pods.items() if is_terminating(pod)]:
        served = pod.spec.terminationGracePeriodSeconds and pod.spec.nodeName
        stamp = pod.metadata.deletionTimestamp
        if not served or (now and stamp and _time(stamp) <= _time(now)):
            del pods[key]


def set_time(table: Table, now: str) -> None:
    """Where there is a clock, the grace periods of pods that have just begun to terminate begin to run."""
    if not now:
        return
    pods = of(table, Pod)
    begun = [key for key, pod in pods.items() if is_terminating(pod) and not pod.metadata.deletionTimestamp]
    for key in begun:
        grace = timedelta(seconds=min(pods[key].metadata.deletionGracePeriodSeconds or 0, LONGEST_GRACE))
        stamp = (_time(now) + grace).strftime("%Y-%m-%dT%H:%M:%SZ")
        pods[key] = with_meta(pods[key], deletionTimestamp=stamp)


def _time(stamp: str) -> datetime:
    """RFC 3339; what is no time (a damaged dump) is long past."""
    try:
        found = datetime.fromisoformat(stamp)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def evict(table: Table, nodes: Collection[str]) -> None:
    """Pods whose node is gone: a workload's pod goes (and comes back elsewhere), any other is scheduled anew.

    One that never was on the node it names (its template names one that is gone) waits for it.
    """
    pods = of(table, Pod)
    lost = [(key, pod) for key, pod in pods.items() if pod.spec.nodeName and pod.spec.nodeName not in nodes]
    for key, pod in lost:
        if is_unschedulable(pod):
            continue
        if pod.metadata.ownerReferences or is_terminating(pod):
            del pods[key]
        else:
            pods[key] = unplaced(pod)


def unplaced(pod: Pod) -> Pod:
    """The pod as it was before it had a node."""
    spec = msgspec.structs.replace(pod.spec, nodeName="")
    notes = {name: value for name, value in pod.metadata.annotations.items() if name != STARTED_WITH}
    return msgspec.structs.replace(with_meta(pod, annotations=notes), spec=spec, status=PodStatus())
