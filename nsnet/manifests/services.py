"""Services and their endpoints.

Source: Kubernetes `pkg/apis/{core,discovery}/validation`.
"""

from nsnet.manifests.common import unique
from nsnet.manifests.forms import (
    PROTOCOLS,
    address,
    address_of,
    dns_label,
    dns_subdomain,
    labels,
    one_of,
    port,
    port_or_name,
    protocol,
    subnet,
    within,
)
from nsnet.manifests.problems import At

TYPES = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")


def service(doc: At) -> None:
    spec = doc["spec"]
    one_of(spec["type"], TYPES)
    one_of(spec["sessionAffinity"], ("None", "ClientIP"))
    one_of(spec["externalTrafficPolicy"], ("Cluster", "Local"))
    one_of(spec["internalTrafficPolicy"], ("Cluster", "Local"))
    one_of(spec["trafficDistribution"], ("PreferClose", "PreferSameZone", "PreferSameNode"))
    one_of(spec["ipFamilyPolicy"], ("SingleStack", "PreferDualStack", "RequireDualStack"))
    for family in spec["ipFamilies"].each():
        one_of(family, ("IPv4", "IPv6"))
    within(spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], 1, 86400)
    labels(spec["selector"])
    service_addresses(spec)
    service_ports(spec)
    service_type(spec)
    for item in doc["status"]["loadBalancer"]["ingress"].each():
        address(item["ip"])
        one_of(item["ipMode"], ("VIP", "Proxy"))


def service_addresses(spec: At) -> None:
    for at in (spec["clusterIP"], *spec["clusterIPs"].each()):
        if at.value != "None":
            address(at)
    first = next(iter(spec["clusterIPs"].value or ()), None)
    if first is not None and spec["clusterIP"].value not in (None, "", first):
        spec["clusterIPs"].wrong(f"does not begin with clusterIP {spec['clusterIP'].value}", "leave one of the two out")
    for at in (spec["loadBalancerIP"], *spec["externalIPs"].each()):
        address(at)
    for at in spec["externalIPs"].each():
        found = address_of(at.value)
        if found is not None and (
            found.is_unspecified or found.is_loopback or found.is_link_local or found.is_multicast
        ):
            at.wrong(f"{at.value} cannot be an external address", "not loopback, link-local, multicast or 0.0.0.0")
    for at in spec["loadBalancerSourceRanges"].each():
        subnet(At(at.value.strip(), at.path, at.found))


def service_ports(spec: At) -> None:
    ports = list(spec["ports"].each())
    unique(spec["ports"], "name")
    seen: set[tuple[str, str, int]] = set()
    for item in ports:
        port(item["port"])
        port(item["nodePort"], 0)
        if item["targetPort"].value != "":
            port_or_name(item["targetPort"], 0)
        protocol(item["protocol"])
        if item["name"].value:
            dns_label(item["name"])
        elif len(ports) > 1:
            item["name"].wrong("is missing; a Service with several ports names them all", "add `name:`")
        for field in ("port", "nodePort"):
            _one_port_once(item, field, seen)


def _one_port_once(item: At, field: str, seen: set[tuple[str, str, int]]) -> None:
    number = item[field].value
    if not number:
        return
    spoken = item["protocol"].value or PROTOCOLS[0]
    if (field, spoken, number) in seen:
        item[field].wrong(f"{number}/{spoken} is given twice", "each port of a Service has its own number and protocol")
    seen.add((field, spoken, number))


def service_type(spec: At) -> None:
    """What goes with which type."""
    kind, cluster_ip = spec["type"].value or "ClusterIP", spec["clusterIP"].value
    _only_of_a_balancer(spec, kind)
    if kind == "ExternalName":
        _external_name(spec)
        return
    if not spec["ports"].value and cluster_ip != "None":
        spec["ports"].wrong("is missing; a Service has at least one port", "add `ports:`, or clusterIP: None")
    if cluster_ip == "None" and kind != "ClusterIP":
        spec["clusterIP"].wrong(f"None does not go with type {kind}", "a headless Service has type ClusterIP")
    if kind == "ClusterIP":
        for item in spec["ports"].each():
            if item["nodePort"].value:
                item["nodePort"].wrong("does not go with type ClusterIP", "write type: NodePort, or leave nodePort out")
    if spec["externalTrafficPolicy"].value and kind == "ClusterIP" and not spec["externalIPs"].value:
        spec["externalTrafficPolicy"].wrong("does not go with type ClusterIP", "leave it out, or write type: NodePort")


def _only_of_a_balancer(spec: At, kind: str) -> None:
    if kind != "LoadBalancer":
        for field in ("loadBalancerSourceRanges", "allocateLoadBalancerNodePorts", "loadBalancerClass"):
            if spec[field].value not in (None, (), []):
                spec[field].wrong(f"does not go with type {kind}", "write type: LoadBalancer, or leave it out")
    local = kind == "LoadBalancer" and spec["externalTrafficPolicy"].value == "Local"
    if spec["healthCheckNodePort"].value and not local:
        hint = "write type: LoadBalancer and externalTrafficPolicy: Local, or leave it out"
        spec["healthCheckNodePort"].wrong("goes with type LoadBalancer and externalTrafficPolicy Local alone", hint)


def _external_name(spec: At) -> None:
    name = spec["externalName"]
    if not name.value:
        name.wrong("is missing; type ExternalName needs it", "add `externalName:` with a DNS name")
    else:
        dns_subdomain(At(name.value.removesuffix("."), name.path, name.found))
    if spec["clusterIP"].value:
        spec["clusterIP"].wrong("does not go with type ExternalName", "leave it out")


def endpoints(doc: At) -> None:
    for subset in doc["subsets"].each():
        for item in (*subset["addresses"].each(), *subset["notReadyAddresses"].each()):
            address(item["ip"])
            dns_label(item["hostname"])
        endpoint_ports(subset["ports"])


def endpoint_ports(at: At) -> None:
    unique(at, "name")
    for item in at.each():
        port(item["port"])
        protocol(item["protocol"])
        if item["name"].value:
            dns_label(item["name"])


def endpoint_slice(doc: At) -> None:
    one_of(doc["addressType"], ("IPv4", "IPv6", "FQDN"))
    family = {"IPv4": 4, "IPv6": 6}.get(doc["addressType"].value)
    endpoint_ports(doc["ports"])
    for item in doc["endpoints"].each():
        dns_label(item["hostname"])
        if not item["addresses"].value:
            item["addresses"].wrong("is empty; an endpoint has an address", "add one")
        for at in item["addresses"].each():
            _address_of_family(at, family)


def _address_of_family(at: At, family: int | None) -> None:
    if family is None:
        dns_subdomain(at)
        return
    address(at)
    found = address_of(at.value)
    if found is not None and found.version != family:
        at.wrong(f"{at.value} is not an IPv{family} address", f"addressType is IPv{family}")
