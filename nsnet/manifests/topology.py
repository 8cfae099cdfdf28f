"""What the Cluster document may say, beyond the types of its fields (those come from the structs in `model`).

Only the forms are checked here. That addresses lie in their networks, that ranges do not overlap and that everything
fits is for `control` to say, which knows all defaults. Impairments are written as tc-netem(8) reads them.
"""

import re
from base64 import b64decode
from typing import Any

from nsnet.manifests.common import EFFECTS, annotations, unique
from nsnet.manifests.forms import (
    address,
    address_of,
    address_v4,
    device,
    dns_label,
    dns_subdomain,
    exact_subnet,
    is_dns_subdomain,
    label_key,
    label_value,
    labels,
    one_of,
    one_of_each,
    pods,
    proposed,
    subnet_of,
    within,
)
from nsnet.manifests.problems import At
from nsnet.manifests.reading import shown
from nsnet.model import PROXY_MODES
from nsnet.names import CLUSTER

BACKENDS = ("vxlan", "host-gw", "ipip", "wireguard", "udp")
WIREGUARD_MODES = ("separate", "auto", "ipv4", "ipv6")
FLAVOURS = ("coredns", "kube-dns")
POD_RECORDS = ("disabled", "insecure", "verified")
EXPECTATIONS = ("ok", "refused", "timeout")

_DELAY = re.compile(r"[0-9]+(\.[0-9]+)?(s|secs?|ms|msecs?|us|usecs?)")
_LOSS = re.compile(r"[0-9]+(\.[0-9]+)?%")
_RATE = re.compile(r"[0-9]+(\.[0-9]+)?([kmgt]i?)?(bit|bps)", re.IGNORECASE)
_KEY = re.compile(r"[A-Za-z0-9+/]{43}=")
_RANGE = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")
_SYSCTL = re.compile(r"net(\.[A-Za-z0-9_/@:-]+){2,}")
_TARGET = re.compile(r"(tcp|udp|http|icmp)://\S+")


def check(doc: At) -> None:
    """All value checks of the Cluster document; what is wrong goes to `doc.found`."""
    cluster_name(doc["metadata"]["name"])
    labels(doc["metadata"]["labels"])
    annotations(doc["metadata"]["annotations"])
    networking(doc["networking"])
    flannel(doc["flannel"])
    device(doc["bridge"])
    for item in doc["loadBalancer"]["addresses"].each():
        address_range(item)
    one_of(doc["loadBalancer"]["mode"], ("nodeport", "vip"))
    dns(doc["dns"])
    pods(doc["ingress"]["replicas"])
    one_of(doc["ingress"]["externalTrafficPolicy"], ("Cluster", "Local"))
    underlay(doc["underlay"])
    nodes(doc["nodes"])
    for host in doc["hosts"].each():
        dns_label(host["name"])
        address(host["address"])
        for further in host["addresses"].each():
            address(further)
    unique(doc["hosts"], "name")
    for item in doc["checks"].each():
        expectation(item)


def with_pairs(doc: dict[str, Any]) -> dict[str, Any]:
    """Subnets that stand as a list (`[10.244.0.0/16, fd00:10:244::/56]`) as kubeadm's one text with a comma."""
    networking, underlay = doc.get("networking"), doc.get("underlay")
    if isinstance(networking, dict):
        doc = {**doc, "networking": _joined(networking, "podSubnet", "serviceSubnet")}
    if isinstance(underlay, dict) and isinstance(underlay.get("networks"), list):
        networks = [_joined(item, "subnet") if isinstance(item, dict) else item for item in underlay["networks"]]
        doc = {**doc, "underlay": {**underlay, "networks": networks}}
    return doc


def _joined(doc: dict[str, Any], *names: str) -> dict[str, Any]:
    pairs = {name: doc[name] for name in names if isinstance(doc.get(name), list)}
    return {**doc, **{name: ",".join(pair) for name, pair in pairs.items() if all(isinstance(x, str) for x in pair)}}


def cluster_name(at: At) -> None:
    """The rule of `names.CLUSTER`, with a name that would do."""
    if at.value and not is_cluster_name(at.value):
        at.wrong(f'"{shown(at.value)}" cannot be the name of a cluster', name_hint(at.value))


def is_cluster_name(text: str) -> bool:
    return CLUSTER.fullmatch(text) is not None


def name_hint(text: str) -> str:
    near = proposed(text, 20)
    return f"lower-case letters, digits and -, at most 20 characters{f': {near}' if near else ''}"


def form(at: At, pattern: re.Pattern[str], message: str, hint: str) -> None:
    if at.value and not pattern.fullmatch(at.value):
        at.wrong(f'"{shown(at.value)}" {message}', hint)


def networking(at: At) -> None:
    subnets(at["podSubnet"])
    subnets(at["serviceSubnet"])
    dns_subdomain(at["dnsDomain"])
    one_of(at["kubeProxyMode"], PROXY_MODES)
    address(at["clusterDNS"])
    _port_range(at["nodePortRange"])


def subnets(at: At) -> None:
    """One subnet, or a pair with a comma: dual stack."""
    one_of_each(at, [part.strip() for part in (at.value or "").split(",")], exact_subnet, subnet_of, "subnet")


def _port_range(at: At) -> None:
    if not at.value:
        return
    match = _RANGE.fullmatch(at.value)
    if not match or not 1 <= int(match[1]) <= int(match[2]) <= 65535:
        at.wrong(
            f'"{shown(at.value)}" is not a range of ports', "the first and the last with a dash between: 30000-32767"
        )


def flannel(at: At) -> None:
    address_v4(at["SubnetMin"])
    address_v4(at["SubnetMax"])
    address(at["IPv6SubnetMin"])
    address(at["IPv6SubnetMax"])
    for name, longest in (("SubnetLen", 30), ("IPv6SubnetLen", 126)):
        if at[name].value:
            within(at[name], 1, longest)
    one_of(at["allocation"], ("first", "random"))
    backend = at["Backend"]
    one_of(backend["Type"], BACKENDS)
    within(backend["VNI"], 1, 2**24 - 1)
    within(backend["Port"], 0, 65535)
    for name in ("ListenPort", "ListenPortV6"):
        within(backend[name], 1, 65535)
    within(backend["PersistentKeepaliveInterval"], 0, 65535)
    one_of(backend["Mode"], WIREGUARD_MODES)
    _wireguard_key(backend["PSK"])
    mtu(backend["MTU"])


def _wireguard_key(at: At) -> None:
    if at.value and (not _KEY.fullmatch(at.value) or len(b64decode(at.value)) != 32):
        at.wrong("is not a key of WireGuard's", "32 bytes in base64, as `wg genpsk` or `openssl rand -base64 32` print")


def mtu(at: At) -> None:
    """IPv4 needs 68; 0 stands for the default."""
    if at.value:
        within(at, 68, 65535)


def address_range(at: At) -> None:
    """One address, a subnet, or the first and the last with a dash between, as MetalLB writes pools."""
    first, dash, last = (part.strip() for part in at.value.partition("-"))
    low, high = address_of(first), address_of(last)
    whole = (
        bool(low and high and low.version == high.version and int(low) <= int(high))
        if dash
        else low or subnet_of(first)
    )
    if not whole:
        at.wrong(f'"{shown(at.value)}" is not a range of addresses', "as 172.18.0.200-172.18.0.250, or 172.18.0.192/26")


def dns(at: At) -> None:
    one_of(at["flavour"], FLAVOURS)
    one_of(at["pods"], POD_RECORDS)
    within(at["replicas"], 0, 100)
    for item in at["upstreams"].each():
        name_server(item)
    for domain in at["stubDomains"].each():
        _domain(domain)
        for item in domain.each():
            name_server(item)
    for record in at["records"].each():
        _domain(record)
        address(record)
    for name in ("upstreams", "records"):
        for item in at[name].each():
            if item.value == "":
                item.wrong("is empty", "write an address")


def name_server(at: At) -> None:
    """`10.0.0.1`, `10.0.0.1:5353`, `[fd00::1]:5353`."""
    host, colon, port = at.value.rpartition(":")
    if address_of(at.value) is not None or not at.value:
        return
    if not colon or not port.isdecimal() or not 0 < int(port) < 65536 or address_of(host.strip("[]")) is None:
        at.wrong(f'"{shown(at.value)}" is not the address of a name server', "as 10.0.0.1, or 10.0.0.1:5353")


def _domain(at: At) -> None:
    """The key of a mapping: a DNS name; a final dot may stand after it."""
    name = str(at.path[-1])
    if not is_dns_subdomain(name.lower().removesuffix(".")):
        at.wrong(f'"{shown(name)}" is not a DNS name', "labels with dots between, as db.example.com", key=True)


def underlay(at: At) -> None:
    unique(at["networks"], "name")
    for item in at["networks"].each():
        dns_label(item["name"])
        subnets(item["subnet"])
        mtu(item["mtu"])
    for item in at["links"].each():
        if len(item["between"].value) != 2:
            item["between"].wrong("names not two; a link has two ends", "as [node1, rack-a]")
        form(item["delay"], _DELAY, "is not a delay", "as 5ms")
        form(item["loss"], _LOSS, "is not a loss", "as 1%")
        form(item["rate"], _RATE, "is not a rate", "as 100mbit")
        mtu(item["mtu"])


def nodes(at: At) -> None:
    if isinstance(at.value, int):
        within(at, 0, 5000)  # as many as Kubernetes itself is built for; none: those that stand as Node objects
        return
    unique(at, "name")
    for item in at.each():
        dns_subdomain(item["name"])
        address(item["address"])
        subnets(item["podCIDR"])
        labels(item["labels"])
        for further in item["addresses"].each():
            address(further)
        for entry in item["sysctls"].each():
            _sysctl(entry)
        for taint in item["taints"].each():
            label_key(taint["key"])
            label_value(taint["value"])
            one_of(taint["effect"], EFFECTS)


def _sysctl(at: At) -> None:
    """The key of a mapping: a sysctl of the network, with dots (a dot in a device's name is written /)."""
    name = str(at.path[-1])
    if not _SYSCTL.fullmatch(name):
        at.wrong(f'"{shown(name)}" is not a sysctl of the network', "as net.ipv4.conf.all.rp_filter", key=True)
    elif "\n" in str(at.value):
        at.wrong("has a line break in it", "one line, as `sysctl` prints it")


def expectation(at: At) -> None:
    one_of(at["expect"], EXPECTATIONS)
    form(at["to"], _TARGET, "is not a URL", "as http://web/hostname, tcp://10.96.0.10:53, udp://… or icmp://…")
    for name in ("name", "from", "to"):
        if at[name].value == "":
            at[name].wrong("is empty", "write a value after it")
