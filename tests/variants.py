"""Clusters that differ in everything a topology can say, rendered: states to go from and to."""

from nsnet import model
from nsnet.render import render
from nsnet.state import State
from tests.built import Place, built
from tests.policies import documents

_TWO = {"node1": Place(pods=["a", "b"]), "node2": Place(pods=["c"])}
_RACKS = {"node1": Place(pods=["a"]), "node2": Place("rack-b", pods=["b", "c"]), "node3": Place(pods=["d"])}
_MOVED = {"node1": Place(address="172.18.0.9", pods=["b"]), "node2": Place(pods=["c", "a"])}
_ALONE = {"node1": Place(pods=["a"], more=["192.168.1.2", "172.18.0.77"])}
_NETWORKS = (
    model.Network("nodes", "172.18.0.0/16"),
    model.Network("rack-b", "172.19.0.0/16", mtu=1400),
    model.Network("outside", "203.0.113.0/24"),
)
_DIRECT = model.Backend(DirectRouting=True)
_SHARED = "c2l4dGVlbiBieXRlcyBhbmQgc2l4dGVlbiBtb3JlISE="
_WEB = {"web": "10.96.0.20"}
_CLOSED = documents("default/deny: {podSelector: {}}")
_ASKED = documents(
    "default/web: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}, "
    "{from: [{ipBlock: {cidr: 203.0.113.0/24}}], ports: [{port: 8000, endPort: 8080}]}, {ports: [{port: http}]}], "
    "egress: [{to: [{podSelector: {}}]}, {ports: [{port: 53, protocol: UDP}]}]}"
)

_OBJECTS = {
    "two nodes": built(_TWO, services=_WEB),
    "host-gw": built(_TWO, backend=model.Backend("host-gw")),
    "racks": built(_RACKS, networks=_NETWORKS, backend=_DIRECT, services=_WEB),
    "moved": built(_MOVED, services=_WEB),
    "docker0": built(_TWO, bridge="docker0", backend=model.Backend(VNI=7), services=_WEB),
    "other port": built(_TWO, backend=model.Backend(Port=4789)),
    "ipip": built(_TWO, backend=model.Backend("ipip"), services=_WEB),
    "ipip, racks": built(_RACKS, networks=_NETWORKS, backend=model.Backend("ipip", DirectRouting=True)),
    "udp": built(_TWO, backend=model.Backend("udp")),
    "wireguard": built(_TWO, backend=model.Backend("wireguard", PSK=_SHARED, PersistentKeepaliveInterval=25)),
    "one node": built(_ALONE),
    "nftables": built(_TWO, mode="nftables", services=_WEB),
    "userspace": built(_TWO, mode="userspace", services=_WEB),
    "policies": {**built(_TWO, services=_WEB), **_ASKED, **_CLOSED},
    "policies, moved": {**built(_MOVED, services=_WEB), **_ASKED},
    "nftables, policies": {**built(_TWO, mode="nftables", services=_WEB), **_ASKED},
    "nftables, moved": built(_MOVED, mode="nftables", services={**_WEB, "db": "10.96.0.30"}),
}

VARIANTS: dict[str, State] = {"nothing": {}} | {name: render(objects) for name, objects in _OBJECTS.items()}
NAMES = sorted(VARIANTS)
