"""Objects as `control.complete` leaves them, made by hand: rooms below it are tested without it."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from ipaddress import ip_network
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from nsnet import model, names
from nsnet.model import (
    Backend,
    Cluster,
    Container,
    ContainerPort,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Flannel,
    HostEntry,
    Network,
    Networking,
    NodeAddress,
    NodeEntry,
    NodeSpec,
    NodeStatus,
    ObjectMeta,
    Pod,
    PodIP,
    PodSpec,
    PodStatus,
    Service,
    ServicePort,
    ServiceSpec,
    SubnetLease,
    Underlay,
)

NODES = Network("nodes", "172.18.0.0/16")
OUTSIDE = Network("outside", "203.0.113.0/24")


class Place(NamedTuple):
    """A node: which network it is in, its address there (and further ones), and its pods by name."""

    network: str = "nodes"
    address: str = ""
    pods: Sequence[str] = ()
    more: Sequence[str] = ()


def built(
    nodes: Mapping[str, Place],
    *,
    name: str = "demo",
    networks: Sequence[Network] = (NODES, OUTSIDE),
    backend: Backend = Backend(),  # noqa: B008 - frozen
    bridge: str = "cni0",
    links: Sequence[model.LinkSpec] = (),
    services: Mapping[str, str] = {},
    mode: str = "iptables",
) -> dict[model.Key, model.Object]:
    """A completed cluster. Each pod serves TCP 80; `services` (name → clusterIP) select all pods."""
    free = {item.name: iter(list(ip_network(item.subnet).hosts())[1:250]) for item in networks}
    ips = {node: place.address or str(next(free[place.network])) for node, place in nodes.items()}
    cluster = Cluster(
        ObjectMeta(name=name),
        networking=Networking(kubeProxyMode=mode),
        flannel=Flannel(SubnetLen=24, Backend=backend),
        bridge=bridge,
        underlay=Underlay(tuple(networks), tuple(links)),
        nodes=tuple(NodeEntry(node, place.network, ips[node]) for node, place in nodes.items()),
        hosts=(HostEntry("client", networks[-1].name, str(next(free[networks[-1].name]))),),
    )
    objects: list[model.Object] = [cluster]
    for number, (node, place) in enumerate(nodes.items(), 1):
        objects += _node(name, node, place, ips[node], number, backend)
    pods = [item for item in objects if isinstance(item, Pod)]
    for service, address in services.items():
        objects += _service(service, address, pods)
    return model.by_key(objects)


def _node(cluster: str, node: str, place: Place, ip: str, number: int, backend: Backend) -> list[model.Object]:
    subnet = f"10.244.{number}.0/24"
    addresses = (NodeAddress("InternalIP", ip), NodeAddress("Hostname", node))
    further = tuple(NodeAddress("InternalIP", address) for address in place.more)
    private, public = wireguard_pair(node)
    data: dict[str, dict[str, object]] = {
        "vxlan": {"VNI": backend.VNI, "VtepMAC": names.vtep_mac(cluster, node, backend.VNI)},
        "wireguard": {"PublicKey": public},
    }
    secret = model.wireguard_secret(node)
    raw = {"data": {"wgkey": base64.b64encode(f"{private}\n".encode()).decode()}}
    return [
        model.Node(
            ObjectMeta(name=node, annotations={"nsnet/network": place.network}),
            NodeSpec(subnet, (subnet,)),
            NodeStatus((*addresses, *further)),
        ),
        SubnetLease(ObjectMeta(name=subnet.replace("/", "-")), ip, backend.Type, data.get(backend.Type)),
        *(
            [model.Other(ObjectMeta(name=secret.name, namespace=secret.namespace), "Secret", raw)]
            * (backend.Type == "wireguard")
        ),
        *(pod(item, node, f"10.244.{number}.{place_in}") for place_in, item in enumerate(place.pods, 2)),
    ]


def wireguard_pair(node: str) -> tuple[str, str]:
    """A node's private and public key: the same in every run."""
    private = X25519PrivateKey.from_private_bytes(hashlib.sha256(node.encode()).digest())
    both = private.private_bytes_raw(), private.public_key().public_bytes_raw()
    return base64.b64encode(both[0]).decode(), base64.b64encode(both[1]).decode()


def pod(name: str, node: str, ip: str, *, port: int = 80, host_network: bool = False) -> Pod:
    container = Container("main", ports=(ContainerPort(port),))
    return Pod(
        ObjectMeta(name=name, namespace="default", labels={"app": "web"}),
        PodSpec((container,), node, hostNetwork=host_network),
        PodStatus("Running", ip, (PodIP(ip),)),
    )


def _service(name: str, address: str, pods: Sequence[Pod]) -> list[model.Object]:
    endpoints = tuple(Endpoint((item.status.podIP,), nodeName=item.spec.nodeName) for item in pods)
    labels = {"kubernetes.io/service-name": name}
    return [
        Service(
            ObjectMeta(name=name, namespace="default"),
            ServiceSpec(selector={"app": "web"}, ports=(ServicePort(80),), clusterIP=address, clusterIPs=(address,)),
        ),
        EndpointSlice(
            ObjectMeta(name=f"{name}-x", namespace="default", labels=labels),
            endpoints=endpoints,
            ports=(EndpointPort(80),),
        ),
    ]


def large(nodes: int, pods: int, services: int = 0) -> dict[model.Key, model.Object]:
    """That many nodes with that many pods each, for figures."""
    places = {f"node{n}": Place(pods=[f"pod-{n}-{p}" for p in range(pods)]) for n in range(nodes)}
    return built(places, services={f"svc-{n}": f"10.96.{n // 250}.{n % 250 + 1}" for n in range(services)})
