"""`default/kubernetes`, as the API server keeps it: its Service, its endpoints, and somebody who answers.

There is no API server behind it: a stand-in pod in the first node's own namespace holds port 6443, so that what a pod
finds in KUBERNETES_SERVICE_HOST connects (`pkg/controlplane/controller/kubernetesservice`). It has one address, of the
cluster's first family, however many the cluster has. All of it is owned by the Cluster.
"""

from nsnet.control.addresses import number, ranges
from nsnet.control.table import Table, drop, of, owned_by, owner, put
from nsnet.model import (
    API_FAMILIES,
    SERVICE_NAME,
    Cluster,
    Container,
    ContainerPort,
    Endpoint,
    EndpointAddress,
    EndpointConditions,
    EndpointPort,
    Endpoints,
    EndpointSlice,
    EndpointSubset,
    Key,
    NodeEntry,
    ObjectMeta,
    Pod,
    PodSpec,
    Service,
    ServicePort,
    ServiceSpec,
    Toleration,
    families_of,
    family_of,
)

PORT = 6443
NAME = "kubernetes"
PODS = "kube-system"
STAND_IN = "kube-apiserver"
_PORTS = (EndpointPort(PORT, "https"),)


def write(table: Table, cluster: Cluster) -> None:
    key = Key("Service", "default", NAME)
    there = of(table, Service).get(key)
    if there is None or (owned_by(there, "Cluster") and not _has_first_address(there, cluster)):
        put(table, _service(cluster))
    assert isinstance(cluster.nodes, tuple)
    first = cluster.nodes[0]
    address = _address(cluster, first)
    put(table, _endpoints(cluster, address))
    put(table, _slice(cluster, address))
    _stand_in(table, cluster, first.name)


def _address(cluster: Cluster, node: NodeEntry) -> str:
    """Where the API server listens: an address of the Service's one family, the cluster's first."""
    wanted = families_of(cluster)[0]
    return next((item for item in (node.address, *node.addresses) if family_of(item) == wanted), node.address)


def is_ours(key: Key) -> bool:
    """Is it the Endpoints or the slice that this file writes?"""
    return key.namespace == "default" and key.name == NAME


def _has_first_address(service: Service, cluster: Cluster) -> bool:
    """Not so when serviceSubnet has changed."""
    first = ranges(cluster.networking.serviceSubnet)[0].first + 1
    return number(service.spec.clusterIP) == first


def _meta(cluster: Cluster, labels: dict[str, str]) -> ObjectMeta:
    return ObjectMeta(name=NAME, namespace="default", labels=labels, ownerReferences=(owner(cluster),))


def _service(cluster: Cluster) -> Service:
    labels = {"component": "apiserver", "provider": "kubernetes"}
    return Service(_meta(cluster, labels), ServiceSpec(ports=(ServicePort(443, "https", targetPort=PORT),)))


def _endpoints(cluster: Cluster, address: str) -> Endpoints:
    labels = {"endpointslice.kubernetes.io/skip-mirror": "true"}
    return Endpoints(_meta(cluster, labels), (EndpointSubset((EndpointAddress(address),), (), _PORTS),))


def _slice(cluster: Cluster, address: str) -> EndpointSlice:
    endpoint = Endpoint((address,), EndpointConditions(ready=True))
    labels = {SERVICE_NAME: NAME}
    return EndpointSlice(_meta(cluster, labels), API_FAMILIES[family_of(address)], (endpoint,), _PORTS)


def _stand_in(table: Table, cluster: Cluster, node: str) -> None:
    """The pod on the first node; where a dump brought one of that name, that one stays."""
    key = Key("Pod", PODS, f"{STAND_IN}-{node}")
    pods = of(table, Pod)
    drop(table, [other for other, pod in pods.items() if other != key and _is_stand_in(other, pod)])
    if key not in pods:
        meta = ObjectMeta(
            name=key.name,
            namespace=PODS,
            labels={"component": STAND_IN, "tier": "control-plane"},
            ownerReferences=(owner(cluster),),
        )
        container = Container(STAND_IN, "registry.k8s.io/kube-apiserver", (ContainerPort(PORT, "https"),))
        pods[key] = Pod(
            meta, PodSpec((container,), node, hostNetwork=True, tolerations=(Toleration(operator="Exists"),))
        )


def _is_stand_in(key: Key, pod: Pod) -> bool:
    return key.namespace == PODS and key.name.startswith(STAND_IN) and owned_by(pod, "Cluster")


def of_the_cluster(pod: Pod) -> bool:
    """Is the pod one that nsnet itself put there?"""
    return owned_by(pod, "Cluster")
