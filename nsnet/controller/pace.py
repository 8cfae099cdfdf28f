"""How soon and how late a sync comes, as kube-proxy is told it: minSyncPeriod and syncPeriod of its mode's section.

minSyncPeriod: so long after the end of one sync the next begins that a change of the objects asks for; what changes
meanwhile goes into that one. kube-proxy takes 1 s where nothing is said; here a change is written at once. It is the
whole controller that waits, not only what kube-proxy would write.
syncPeriod: so long after a look at everything the next comes at the latest, whatever nobody told of.

Absent or 0, as kubeadm writes them, mean the default. Source: Kubernetes 1.36 `pkg/util/runner`, `pkg/proxy`.
"""

from typing import NamedTuple

from nsnet.controller.client import resync
from nsnet.model import Objects, cluster_of, kube_proxy_of, seconds

RESYNC = resync()


class Pace(NamedTuple):
    """In seconds: between two syncs, and between two looks at everything."""

    soonest: float = 0.0
    latest: float = RESYNC


def pace(objects: Objects) -> Pace:
    """Userspace mode reads the section of iptables mode."""
    told = kube_proxy_of(objects)
    if told is None:
        return Pace()
    section = told.nftables if cluster_of(objects).networking.kubeProxyMode == "nftables" else told.iptables
    return Pace(_said(section.minSyncPeriod), _said(section.syncPeriod) or RESYNC)


def _said(duration: str | None) -> float:
    return seconds(duration or "0") or 0.0
