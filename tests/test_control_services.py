"""Services: API defaults, clusterIPs, node ports, and what stays when a Service changes."""

# ruff: noqa: PT018, ISC004 - a row of a table is one line

import pytest

from nsnet.model import Service
from tests.controlled import apply, delete, events, one, refused, up

SERVICE = "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{{spec}}}}}\n---\n"


def svc(name: str, spec: str = "ports: [{port: 80}]") -> str:
    return SERVICE.format(name=name, spec=spec)


def cluster(words: str) -> str:
    return f"{{apiVersion: nsnet/v1, kind: Cluster, networking: {{{words}}}}}\n---\n"


def service(objects: object, name: str) -> Service:
    found = one(objects, f"Service/{name}")  # type: ignore[arg-type]
    assert isinstance(found, Service)
    return found


NODE_PORT = "type: NodePort, ports: [{port: 80}]"


@pytest.mark.parametrize(
    ("spec", "field", "value"),
    [
        ("ports: [{port: 80}]", "type", "ClusterIP"),
        ("ports: [{port: 80}]", "sessionAffinity", "None"),
        ("ports: [{port: 80}]", "internalTrafficPolicy", "Cluster"),
        ("ports: [{port: 80}]", "externalTrafficPolicy", ""),
        ("ports: [{port: 80}], externalIPs: [203.0.113.9]", "externalTrafficPolicy", "Cluster"),
        (NODE_PORT, "externalTrafficPolicy", "Cluster"),
        ("ports: [{port: 80}]", "ipFamilies", ("IPv4",)),
        ("ports: [{port: 80}]", "ipFamilyPolicy", "SingleStack"),
        ("ports: [{port: 80}], ipFamilyPolicy: PreferDualStack", "ipFamilyPolicy", "PreferDualStack"),
        ("type: ExternalName, externalName: example.com", "clusterIP", ""),
        ("type: ExternalName, externalName: example.com", "internalTrafficPolicy", ""),
        ("clusterIP: None, ports: [{port: 80}]", "clusterIPs", ("None",)),
        ("type: LoadBalancer, ports: [{port: 80}]", "allocateLoadBalancerNodePorts", True),
        ("ports: [{port: 80}]", "allocateLoadBalancerNodePorts", None),
    ],
)
def test_defaults_are_the_api_servers(spec: str, field: str, value: object) -> None:
    assert getattr(service(up(svc("a", spec)), "a").spec, field) == value


@pytest.mark.parametrize(
    ("port", "target"),
    [("{port: 80}", 80), ("{port: 80, targetPort: 0}", 80), ("{port: 80, targetPort: http}", "http")],
)
def test_target_port_defaults_to_the_port(port: str, target: object) -> None:
    ports = service(up(svc("a", f"ports: [{port}]")), "a").spec.ports
    assert ports and ports[0].targetPort == target


def test_client_ip_affinity_lasts_three_hours() -> None:
    spec = service(up(svc("a", "ports: [{port: 80}], sessionAffinity: ClientIP")), "a").spec
    assert spec.sessionAffinityConfig and spec.sessionAffinityConfig.clientIP
    assert spec.sessionAffinityConfig.clientIP.timeoutSeconds == 10800


def test_kubernetes_has_the_first_address_and_an_endpoint() -> None:
    objects = up(svc("a"))
    spec = service(objects, "kubernetes").spec
    assert (spec.clusterIP, spec.ports and (spec.ports[0].name, spec.ports[0].port, spec.ports[0].targetPort)) == (
        "10.96.0.1",
        ("https", 443, 6443),
    )
    assert one(objects, "Pod/kube-system/kube-apiserver-node1").status.podIP == "172.18.0.2"  # type: ignore[attr-defined]
    subset = one(objects, "Endpoints/kubernetes").subsets[0]  # type: ignore[attr-defined]
    assert (subset.addresses[0].ip, subset.ports[0].port) == ("172.18.0.2", 6443)
    piece = one(objects, "EndpointSlice/kubernetes")
    assert (piece.endpoints[0].addresses, piece.ports) == (("172.18.0.2",), subset.ports)  # type: ignore[attr-defined]


def test_allocations_are_functions_of_names() -> None:
    together = up(svc("a", NODE_PORT) + svc("b", NODE_PORT))
    alone = up(svc("b", NODE_PORT))
    assert service(together, "b").spec == service(alone, "b").spec
    assert service(together, "a").spec.clusterIP != service(together, "b").spec.clusterIP


def test_dynamic_values_leave_the_lower_part_to_people() -> None:
    objects = up("".join(svc(f"s{n}", NODE_PORT) for n in range(300)))
    specs = [service(objects, f"s{n}").spec for n in range(300)]
    assert all(not spec.clusterIP.startswith("10.96.0.") for spec in specs)
    ports = [port.nodePort or 0 for spec in specs for port in spec.ports or ()]
    assert min(ports) >= 30086
    assert len(set(ports)) == len({spec.clusterIP for spec in specs}) == 300


def test_a_small_range_is_used_to_the_last_address() -> None:
    # A /28 has 14; kubernetes and clusterDNS have one each.
    objects = up(cluster("serviceSubnet: 10.96.0.0/28") + "".join(svc(f"s{n}") for n in range(12)))
    used = {service(objects, f"s{n}").spec.clusterIP for n in range(12)}
    assert used == {f"10.96.0.{n}" for n in (2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14)}
    assert "no address is left in serviceSubnet 10.96.0.0/28" in refused(
        cluster("serviceSubnet: 10.96.0.0/28") + "".join(svc(f"s{n}") for n in range(13))
    )


def test_the_dns_address_is_given_to_nobody_but_may_be_asked_for() -> None:
    objects = up(svc("kube-dns", "clusterIP: 10.96.0.10, ports: [{port: 53}]"))
    assert service(objects, "kube-dns").spec.clusterIP == "10.96.0.10"


def test_tcp_and_udp_of_one_number_share_their_node_port() -> None:
    spec = "type: NodePort, ports: [{name: t, port: 53}, {name: u, port: 53, protocol: UDP}, {name: w, port: 80}]"
    tcp, udp, web = (port.nodePort for port in service(up(svc("dns", spec)), "dns").spec.ports or ())
    assert tcp == udp != web


# --- what stays -------------------------------------------------------------------------------------------------------


def test_up_again_keeps_what_was_given() -> None:
    first = up(svc("a", NODE_PORT))
    again = up(
        svc("a", NODE_PORT)
        + svc("b", f"clusterIP: {service(first, 'kubernetes').spec.clusterIP[:-1]}7, ports: [{{port: 80}}]"),
        first,
    )
    assert service(again, "a").spec == service(first, "a").spec


@pytest.mark.parametrize(
    ("spec", "keeps_address", "keeps_port"),
    [
        ("type: LoadBalancer, ports: [{port: 80}]", True, True),
        ("type: NodePort, ports: [{port: 81}]", True, True),
        ("type: ClusterIP, ports: [{port: 80}]", True, False),
        ("type: ExternalName, externalName: example.com, ports: [{port: 80}]", False, False),
        ("clusterIP: None, ports: [{port: 80}]", False, False),
        ("type: NodePort, ports: [{port: 80, nodePort: 30001}]", True, False),
        ("type: NodePort, ports: [{name: other, port: 80}]", True, None),  # a port goes by its name
    ],
)
def test_what_a_changed_service_keeps(spec: str, keeps_address: bool, keeps_port: bool | None) -> None:
    stored = up(svc("a", NODE_PORT) + svc("b", "type: NodePort, ports: [{port: 80, nodePort: 31999}]"))
    before, after = service(stored, "a").spec, service(apply(stored, svc("a", spec)), "a").spec
    assert (after.clusterIP == before.clusterIP) == keeps_address
    assert before.ports and after.ports
    if keeps_port is not None:
        assert (after.ports[0].nodePort == before.ports[0].nodePort) == keeps_port


def test_a_range_that_moved_gives_new_addresses() -> None:
    stored = up(svc("a", NODE_PORT))
    after = up(cluster("serviceSubnet: 10.99.0.0/16, nodePortRange: 20000-20100") + svc("a", NODE_PORT), stored)
    spec = service(after, "a").spec
    assert spec.clusterIP.startswith("10.99.")
    assert spec.ports and 20000 <= (spec.ports[0].nodePort or 0) <= 20100
    assert service(after, "kubernetes").spec.clusterIP == "10.99.0.1"


def test_a_health_check_port_is_there_exactly_for_local_load_balancers() -> None:
    local = "type: LoadBalancer, externalTrafficPolicy: Local, ports: [{port: 80}]"
    stored = up(svc("a", local))
    given = service(stored, "a").spec.healthCheckNodePort
    assert given and 30000 <= given <= 32767
    assert service(apply(stored, svc("a", local)), "a").spec.healthCheckNodePort == given
    cluster_wide = apply(stored, svc("a", "type: LoadBalancer, ports: [{port: 80}]"))
    assert service(cluster_wide, "a").spec.healthCheckNodePort is None


def test_a_load_balancers_address_goes_with_its_type() -> None:
    stored = up(
        svc("a", "type: LoadBalancer, ports: [{port: 80}]").replace(
            "}\n---", ", status: {loadBalancer: {ingress: [{ip: 203.0.113.7}]}}}\n---"
        )
    )
    assert service(stored, "a").status.loadBalancer.ingress
    assert not service(apply(stored, svc("a", NODE_PORT)), "a").status.loadBalancer.ingress


def test_a_freed_node_port_can_be_taken() -> None:
    asked = "type: NodePort, ports: [{port: 80, nodePort: 30500}]"
    stored = up(svc("a", asked))
    assert "30500 is taken by Service default/a" in refused(svc("b", asked), stored, whole=False)
    assert service(apply(delete(stored, "Service/a"), svc("b", asked)), "b").spec.ports[0].nodePort == 30500  # type: ignore[index]


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            svc("a", "type: NodePort, ports: [{port: 80, nodePort: 30080}]")
            + svc("b", "type: NodePort, ports: [{name: one, port: 1}, {name: two, port: 2, nodePort: 30080}]"),
            "Service default/b: spec.ports[1].nodePort: 30080 is taken by Service default/a",
        ),
        (
            svc("a", "type: NodePort, ports: [{port: 80, nodePort: 29999}]"),
            "Service default/a: spec.ports[0].nodePort: 29999 is outside nodePortRange 30000-32767",
        ),
        (
            svc("a", "clusterIP: 192.168.1.22, ports: [{port: 80}]")
            + svc("b", "clusterIP: 192.168.2.1, ports: [{port: 80}]"),
            "spec.clusterIP: 192.168.1.22 is outside serviceSubnet 10.96.0.0/16 "
            "(write networking: {serviceSubnet: 192.168.0.0/16}",
        ),
        (
            svc("a", "clusterIP: 10.96.3.3, ports: [{port: 80}]")
            + svc("b", "clusterIP: 10.96.3.3, ports: [{port: 80}]"),
            "Service default/b: spec.clusterIP: 10.96.3.3 is taken by Service default/a",
        ),
        (
            svc("a", "clusterIP: 10.96.0.1, ports: [{port: 80}]"),
            "Service default/a: spec.clusterIP: 10.96.0.1 belongs to Service default/kubernetes",
        ),
        (svc("a", "clusterIP: 10.96.255.255, ports: [{port: 80}]"), "10.96.255.255 is outside serviceSubnet"),
        (
            svc("a", "clusterIP: 'fd00::1', ports: [{port: 80}]"),
            "spec.clusterIP: IPv6 is not configured on this cluster",
        ),
        (
            svc("a", "ipFamilies: [IPv6], ports: [{port: 80}]"),
            "spec.ipFamilies[0]: IPv6 is not configured on this cluster",
        ),
        (svc("a", "ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]"), "not configured for dual-stack services"),
        (
            cluster("nodePortRange: 30000-30001")
            + svc("a", "type: NodePort, ports: [{name: a, port: 1}, {name: b, port: 2}, {name: c, port: 3}]"),
            "Service default/a: spec.ports[2].nodePort: no port is left in nodePortRange 30000-30001",
        ),
    ],
)
def test_refused(text: str, said: str) -> None:
    assert said in refused(text)


def test_a_selector_that_matches_nothing_is_an_event() -> None:
    text = svc("a", "selector: {app: x}, ports: [{port: 80}]") + svc("b", "ports: [{port: 80}]")
    assert events(up(text)) == [
        "Service a: NoEndpoints: its selector app=x matches no running pod in namespace default"
    ]
    pod = (
        "{apiVersion: v1, kind: Pod, metadata: {name: p, labels: {app: x}}, spec: {containers: [{name: c, image: i}]}}"
    )
    assert events(up(text + pod)) == []
    named = text.replace("ports: [{port: 80}]", "ports: [{port: 80, targetPort: http}]", 1)
    assert "has a port of the name it targets" in events(up(named + pod))[0]
