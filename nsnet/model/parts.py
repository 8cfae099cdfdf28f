"""Which objects stand for a part of the cluster: its DNS, load balancers, the HTTP proxy, WireGuard."""

import base64
from collections.abc import Mapping

from nsnet.model.asked import selects
from nsnet.model.cluster import Cluster, Other
from nsnet.model.kubeproxy import KubeProxyConfiguration
from nsnet.model.metadata import Condition, Key
from nsnet.model.services import Service
from nsnet.model.workloads import Node, Pod

DNS_PORTS = frozenset({("UDP", 53), ("TCP", 53), ("UDP", 10053), ("TCP", 10053), ("TCP", 8080), ("TCP", 8081)})
"""What dnsmasq, kubedns and exechealthz listen on in a pod that serves DNS."""


def dns_service(services: Mapping[Key, Service], cluster: Cluster) -> Service | None:
    """The Service that pods ask: the one at clusterDNS, else kube-system/kube-dns; None where there is no DNS."""
    if not cluster.dns.enabled:
        return None
    address = cluster.networking.clusterDNS
    at = (item for item in services.values() if item.spec.clusterIP == address and is_for_dns(item))
    return next(at, None) or services.get(Key("Service", "kube-system", "kube-dns"))


def is_for_dns(service: Service) -> bool:
    return any(port.port == 53 for port in service.spec.ports or ())


def serves_dns(pod: Pod, service: Service | None) -> bool:
    """Is it one of the pods behind that Service, in which the cluster's DNS runs?"""
    return (
        service is not None
        and pod.metadata.namespace == service.metadata.namespace
        and bool(service.spec.selector)
        and selects(service.spec.selector, pod.metadata.labels)
    )


ADDRESS = "nsnet/Address"  # condition of a Service: where its address is from, or why it has none
NODES = "nsnet/Nodes"  # condition of a Service: to which nodes the balancer sends, comma-separated
HEALTHZ_PORT = 10256
EXCLUDED = "node.kubernetes.io/exclude-from-external-load-balancers"
TO_BE_DELETED = "ToBeDeletedByClusterAutoscaler"


def is_balanced(service: Service) -> bool:
    """Is it for the balancer of this cluster? One of another class is for somebody else."""
    return service.spec.type == "LoadBalancer" and not service.spec.loadBalancerClass


def status_condition(service: Service, kind: str) -> Condition | None:
    return next((item for item in service.status.conditions or () if item.type == kind), None)


def balanced_addresses(service: Service) -> tuple[str, ...]:
    """The addresses that the balancer answers for; none where the Service waits for one."""
    found = status_condition(service, ADDRESS)
    ingress = service.status.loadBalancer.ingress or ()
    return tuple(item.ip for item in ingress if item.ip) if found is not None and found.status == "True" else ()


def balanced_nodes(service: Service) -> tuple[str, ...]:
    """The names of the nodes to which the balancer sends."""
    found = status_condition(service, NODES)
    return tuple(filter(None, found.message.split(","))) if found is not None and found.status == "True" else ()


def health_port(service: Service, cluster: Cluster, told: KubeProxyConfiguration | None) -> int:
    """The node's port that the balancer asks: the Service's own under externalTrafficPolicy Local, else kube-proxy's.

    Userspace mode knows neither Local nor the Service's own port.
    """
    own = has_health_port(service, cluster)
    return (own and service.spec.healthCheckNodePort) or healthz_of(told)[1]


def has_health_port(service: Service, cluster: Cluster) -> bool:
    """Do nodes serve a healthCheckNodePort of it?"""
    local = service.spec.type == "LoadBalancer" and service.spec.externalTrafficPolicy == "Local"
    return local and bool(service.spec.healthCheckNodePort) and cluster.networking.kubeProxyMode != "userspace"


def is_leaving(node: Node) -> bool:
    """Is the node being deleted? Then its kube-proxy says so on /healthz."""
    return node.metadata.deletionTimestamp is not None or any(t.key == TO_BE_DELETED for t in node.spec.taints)


def healthz_of(told: KubeProxyConfiguration | None) -> tuple[str, int]:
    """Address and port of kube-proxy's own health, `healthzBindAddress`; IPv4 only, so `[::]` is 0.0.0.0."""
    said = told.healthzBindAddress if told else ""
    address, _, port = said.rpartition(":") if said.count(":") == 1 or "]:" in said else (said, "", "")
    everywhere = not address or ":" in address
    return "0.0.0.0" if everywhere else address, int(port or HEALTHZ_PORT)  # noqa: S104 - a value


PROXY_NAMESPACE, PROXY = "ingress-nsnet", "ingress"
"""Namespace and name of the proxy's Deployment and Service."""
PROXY_LABELS = {"app.kubernetes.io/name": "ingress-nsnet"}
DEFAULT_CERTIFICATE = Key("Secret", PROXY_NAMESPACE, "default-certificate")


def runs_proxy(pod: Pod) -> bool:
    """Is it one of the proxy's pods, in which HAProxy listens and no stand-in does?"""
    meta = pod.metadata
    return meta.namespace == PROXY_NAMESPACE and bool(meta.ownerReferences) and selects(PROXY_LABELS, meta.labels)


def wireguard_secret(node: str) -> Key:
    """Where a node's private key is kept: flannel's own namespace, as its manifest calls it."""
    return Key("Secret", "kube-flannel", f"wgkey-{node}")


def wireguard_key(secret: Other) -> str:
    """The private key in it, as `wg genkey` prints it. Raises ValueError where nothing like that is there."""
    data = secret.raw.get("data")
    said = data.get("wgkey") if isinstance(data, dict) else None
    return base64.b64decode(said).decode("ascii") if isinstance(said, str) else ""
