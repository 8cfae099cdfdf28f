"""What userspace mode never had, said of each Service that asks for it (Kubernetes 1.25 `pkg/proxy/userspace`).

All of it is newer than that mode, or was only ever built for the others. Such a Service works, without what is named.
"""

from collections.abc import Iterator

from nsnet.control.services import has_cluster_ip
from nsnet.control.table import Table, of
from nsnet.model import Cluster, KubeProxyConfiguration, Object, Service

REASON = "NotInUserspaceMode"


def warnings(table: Table, cluster: Cluster) -> Iterator[tuple[Object, str, str, str]]:
    """(object, reason, message, type) of each event; none in another mode."""
    if cluster.networking.kubeProxyMode != "userspace":
        return
    for service in of(table, Service).values():
        asked = list(_asked(service)) if has_cluster_ip(service.spec) else []
        if asked:
            yield service, REASON, f"kube-proxy's userspace mode knows no {', no '.join(asked)}", "Warning"
    for told in of(table, KubeProxyConfiguration).values():
        for message in _unheard(told):
            yield told, REASON, message, "Warning"


def _unheard(told: KubeProxyConfiguration) -> Iterator[str]:
    if told.nodePortAddresses:
        yield "userspace mode serves node ports on every address: nodePortAddresses have no effect"
    if told.portRange not in ("", "0-0"):
        yield "proxy ports follow from the names of Service ports, so that rules stay the same: portRange has no effect"


def _asked(service: Service) -> Iterator[str]:
    spec = service.spec
    if spec.externalTrafficPolicy == "Local":
        yield "externalTrafficPolicy Local (pods see the node's address, and pods of all nodes are asked)"
    if spec.internalTrafficPolicy == "Local":
        yield "internalTrafficPolicy Local (pods of all nodes are asked)"
    if spec.healthCheckNodePort:
        yield "healthCheckNodePort (nothing listens on it)"
    if spec.loadBalancerSourceRanges:
        yield "loadBalancerSourceRanges (everybody may come)"
    if spec.trafficDistribution:
        yield f"trafficDistribution {spec.trafficDistribution} (pods of all nodes are asked)"
    if any(port.protocol == "SCTP" for port in spec.ports or ()):
        yield "SCTP (such ports have no rules)"
    if "IPv6" in (spec.ipFamilies or ()):
        yield "IPv6 (its IPv6 address has no rules)"
