"""The cluster's DNS as the kube-dns add-on leaves it: a Service at clusterDNS, a Deployment of three containers.

The pods are like any others (scheduled, addressed, scaled), but what serves in them is real: `render` runs
dnsmasq, kubedns and exechealthz there. Where the manifests bring a Service or pods of their own for it (a dump of a
cluster with CoreDNS, say), theirs are taken, and nothing is doubled. All that this file makes is owned by the Cluster.

Source: kubernetes/kubernetes `cluster/addons/dns` (kube-dns v20 to 1.14: names, ports, labels, tolerations).
"""

from collections.abc import Iterator

import msgspec

from nsnet.control.table import Table, drop_own, of, owned_by, owner, put, with_spec
from nsnet.errors import ObjectError
from nsnet.model import (
    WORKLOADS,
    Affinity,
    Cluster,
    Container,
    ContainerPort,
    Deployment,
    Key,
    Labels,
    LabelSelector,
    ObjectMeta,
    Pod,
    PodAffinityTerm,
    PodAntiAffinity,
    PodSpec,
    PodTemplateSpec,
    Requirement,
    Service,
    ServicePort,
    ServiceSpec,
    Toleration,
    WeightedPodAffinityTerm,
    WorkloadSpec,
    dns_service,
    is_for_dns,
    selects,
)

NAMESPACE, NAME = "kube-system", "kube-dns"
SERVICE = Key("Service", NAMESPACE, NAME)
DEPLOYMENT = Key("Deployment", NAMESPACE, NAME)
LABELS = {"k8s-app": NAME}
REPLICAS = "nsnet/replicas"  # what the Cluster document said when the Deployment was made; later a person may scale it
PORTS = (
    ServicePort(53, "dns", "UDP", targetPort=53),
    ServicePort(53, "dns-tcp", "TCP", targetPort=53),
)
CONTAINERS = (
    Container(
        "kubedns",
        "registry.k8s.io/kubedns-amd64",
        (
            ContainerPort(10053, "dns-local", "UDP"),
            ContainerPort(10053, "dns-tcp-local"),
            ContainerPort(8081, "readiness"),
        ),
    ),
    Container(
        "dnsmasq",
        "registry.k8s.io/kube-dnsmasq-amd64",
        (ContainerPort(53, "dns", "UDP"), ContainerPort(53, "dns-tcp")),
    ),
    Container("healthz", "registry.k8s.io/exechealthz-amd64", (ContainerPort(8080),)),
)
TOLERATIONS = (
    Toleration("CriticalAddonsOnly", "Exists"),
    Toleration("node-role.kubernetes.io/control-plane", effect="NoSchedule"),
)


def write(table: Table, cluster: Cluster) -> None:
    """The Service and the Deployment, where they are wanted and nobody else brought them.

    Raises ObjectError where a Service that is not for DNS has taken clusterDNS.
    """
    _service(table, cluster)
    service = dns_service(of(table, Service), cluster)
    if service is None or _brought(table, service):
        drop_own(table, DEPLOYMENT)
        return
    _deployment(table, cluster, service)


def is_ours(pod: Pod) -> bool:
    """Is it a pod of the Deployment that this file makes (or of one that took its place)?"""
    meta = pod.metadata
    return meta.namespace == NAMESPACE and meta.generateName.startswith(f"{NAME}-")


# --- the Service ------------------------------------------------------------------------------------------------------


def _service(table: Table, cluster: Cluster) -> None:
    """kube-system/kube-dns at clusterDNS, unless another Service for DNS is there."""
    services, address = of(table, Service), cluster.networking.clusterDNS
    mine = services.get(SERVICE)
    others = [key for key, item in services.items() if key != SERVICE and item.spec.clusterIP == address]
    if not cluster.dns.enabled or any(is_for_dns(services[key]) for key in others):
        drop_own(table, SERVICE)
    elif others:
        hint = "choose another address, or say another networking.clusterDNS, or dns: {enabled: false}"
        raise ObjectError(others[0], "spec.clusterIP", f"{address} is clusterDNS, where pods ask for names", hint)
    elif mine is None or (owned_by(mine, "Cluster") and mine.spec.clusterIP != address):
        meta = ObjectMeta(
            name=NAME,
            namespace=NAMESPACE,
            labels={**LABELS, "kubernetes.io/name": "KubeDNS"},
            ownerReferences=(owner(cluster),),
        )
        put(table, Service(meta, ServiceSpec(selector=LABELS, ports=PORTS, clusterIP=address, clusterIPs=(address,))))
    elif not mine.spec.clusterIP and mine.spec.type != "ExternalName":
        services[SERVICE] = with_spec(mine, clusterIP=address)


# --- the Deployment ---------------------------------------------------------------------------------------------------


def _brought(table: Table, service: Service) -> bool:
    """Does somebody else serve it: endpoints written by hand, or a pod or workload that its selector matches?"""
    selector = service.spec.selector
    if not selector or service.metadata.namespace != NAMESPACE:
        return True
    there = table[DEPLOYMENT.kind].get(DEPLOYMENT)
    if there is not None and not owned_by(there, "Cluster"):
        return True
    return any(selects(selector, labels) for labels in _labels(table))


def _labels(table: Table) -> Iterator[Labels]:
    """Of all pods, and of all that will be made, that the manifests themselves brought to kube-system."""
    for kind in (Pod, *WORKLOADS):
        for key, obj in table[kind.__name__].items():
            if key.namespace == NAMESPACE and not obj.metadata.ownerReferences:
                yield obj.metadata.labels if isinstance(obj, Pod) else obj.spec.template.metadata.labels


def _deployment(table: Table, cluster: Cluster, service: Service) -> None:
    """As large as the Cluster document says when it is made, or says otherwise than before; `scale` holds till then."""
    old = of(table, Deployment).get(DEPLOYMENT)
    said = str(cluster.dns.replicas)
    labels = {**LABELS, **(service.spec.selector or {})}
    template = PodTemplateSpec(ObjectMeta(labels=labels), _pod())
    if old is not None and old.metadata.annotations.get(REPLICAS) == said and old.spec.template == template:
        return
    scaled = old.spec.replicas if old is not None and old.metadata.annotations.get(REPLICAS) == said else None
    meta = ObjectMeta(
        name=NAME,
        namespace=NAMESPACE,
        labels=LABELS,
        annotations={REPLICAS: said},
        ownerReferences=(owner(cluster),),
    )
    spec = WorkloadSpec({"matchLabels": labels}, template, cluster.dns.replicas if scaled is None else scaled)
    new = Deployment(meta, spec)
    put(table, new if old is None else msgspec.structs.replace(new, status=old.status))


def _pod() -> PodSpec:
    """With dnsPolicy Default, or it would ask itself; one replica per node, where there are nodes enough."""
    apart = rather_apart(LabelSelector(matchExpressions=(Requirement("k8s-app", "In", (NAME,)),)))
    return PodSpec(CONTAINERS, affinity=apart, tolerations=TOLERATIONS, dnsPolicy="Default")


def rather_apart(pods: LabelSelector) -> Affinity:
    """On other nodes than these pods, as long as there is one: so that no node takes all of them with it."""
    term = WeightedPodAffinityTerm(PodAffinityTerm("kubernetes.io/hostname", pods), 100)
    return Affinity(podAntiAffinity=PodAntiAffinity(preferredDuringSchedulingIgnoredDuringExecution=(term,)))
