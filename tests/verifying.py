"""A completed cluster with a Service of every kind that kube-proxy's basics have, for the tests of verify."""

from collections.abc import Mapping

import msgspec

from nsnet import model
from nsnet.model import (
    Check,
    ContainerPort,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Object,
    ObjectMeta,
    Pod,
    Service,
    ServicePort,
    ServiceSpec,
)
from tests.built import Place, built, pod

Objects = dict[model.Key, Object]
CHECKS = (
    Check("web by name", "http://web/hostname", "pod/a"),
    Check("web from outside", "tcp://node1:30080", "host/client"),
    Check("closed port", "tcp://node1:9", "host/client", "refused"),
    Check("no way to pods", "icmp://10.244.1.2", "host/client", "timeout"),
    Check("dns", "udp://dns.default.svc.cluster.local:53", "node/node2"),
)


def cluster() -> Objects:
    """Two nodes of three pods, a hostNetwork pod, and a Service of every kind that kube-proxy's basics have."""
    objects = built({"node1": Place(pods="abc"), "node2": Place(pods="def")})
    objects |= model.by_key([with_ports(item) for item in model.of(objects, Pod)])
    objects |= model.by_key([pod("host", "node1", "172.18.0.2", port=6443, host_network=True)])
    found = model.cluster_of(objects)
    objects[model.key_of(found)] = msgspec.structs.replace(found, checks=CHECKS)
    for item in (
        service(objects, "web", "10.96.0.10", node_port=30080),
        service(objects, "dns", "10.96.0.11", node_port=30053, protocol="UDP", port=53),
        service(objects, "sticky", "10.96.0.12", spec=ServiceSpec(sessionAffinity="ClientIP")),
        service(objects, "none", "10.96.0.13", node_port=30013, pods=""),
        service(objects, "local", "10.96.0.14", pods="ab", spec=ServiceSpec(internalTrafficPolicy="Local")),
        service(
            objects, "near", "10.96.0.15", pods="ab", node_port=30015, spec=ServiceSpec(externalTrafficPolicy="Local")
        ),
        service(objects, "closed", "10.96.0.16", target=81),
    ):
        objects |= item
    return objects


def with_ports(item: Pod) -> Pod:
    (container,) = item.spec.containers
    ports = (ContainerPort(80), ContainerPort(8080), ContainerPort(53, protocol="UDP"))
    spec = msgspec.structs.replace(item.spec, containers=(msgspec.structs.replace(container, ports=ports),))
    return msgspec.structs.replace(item, spec=spec)


def service(
    objects: Mapping[model.Key, Object],
    name: str,
    address: str,
    *,
    pods: str = "abcdef",
    protocol: str = "TCP",
    port: int = 80,
    target: int = 0,
    node_port: int | None = None,
    spec: ServiceSpec = ServiceSpec(),  # noqa: B008 - frozen
) -> Objects:
    chosen = [item for item in model.of(objects, Pod) if item.metadata.name in set(pods)]
    whole = msgspec.structs.replace(
        spec,
        type="NodePort" if node_port else "ClusterIP",
        clusterIP=address,
        clusterIPs=(address,),
        ports=(ServicePort(port, protocol=protocol, targetPort=target or port, nodePort=node_port),),
    )
    slices = EndpointSlice(
        ObjectMeta(name=f"{name}-x", namespace="default", labels={"kubernetes.io/service-name": name}),
        endpoints=tuple(Endpoint((item.status.podIP,), nodeName=item.spec.nodeName) for item in chosen),
        ports=(EndpointPort(target or port, protocol=protocol),),
    )
    return model.by_key([Service(ObjectMeta(name=name, namespace="default"), whole), slices])
