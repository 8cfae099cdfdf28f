"""The cluster's DNS without a kernel: what pods are told (resolv.conf, hosts, environment), what serves, and where."""

import msgspec
import pytest

from nsnet import control, model
from nsnet.control.environment import changed_since, environment, service_variables
from nsnet.errors import InputError
from nsnet.model import HostAlias, Key, Object, Objects, Pod, PodDNSConfig, PodDNSConfigOption
from nsnet.programs.kubedns import config as kubedns
from nsnet.programs.kubedns.zone import Zone as Served
from nsnet.render import render
from nsnet.render.etc import Zone, pod_hosts, resolver
from nsnet.state import File, Process, State
from nsnet.store import keys
from tests.controlled import apply, delete, events, listening, load, one, refused, stored, up

ZONE, SITE = Zone("cluster.local", "10.96.0.10"), ("172.18.0.1",)
NONE = Zone("cluster.local", "")


def config(*servers: str, searches: tuple[str, ...] = (), **options: str | None) -> PodDNSConfig:
    said = tuple(PodDNSConfigOption(name, value) for name, value in options.items())
    return PodDNSConfig(servers, searches, said)


# --- resolv.conf ------------------------------------------------------------------------------------------------------

SEARCH = "search shop.svc.cluster.local svc.cluster.local cluster.local"
POLICIES: list[tuple[str, str, PodDNSConfig | None, Zone, list[str]]] = [
    ("ClusterFirst", "ClusterFirst", None, ZONE, [SEARCH, "nameserver 10.96.0.10", "options ndots:5"]),
    ("with host network", "ClusterFirstWithHostNet", None, ZONE, [SEARCH, "nameserver 10.96.0.10", "options ndots:5"]),
    ("Default", "Default", None, ZONE, ["nameserver 172.18.0.1"]),
    ("ClusterFirst, and there is no DNS", "ClusterFirst", None, NONE, ["nameserver 172.18.0.1"]),
    ("None", "None", config("1.2.3.4"), ZONE, ["nameserver 1.2.3.4"]),
    (
        "None with all there is", "None", config("1.2.3.4", searches=("a.b.", "c"), ndots="2", edns0=None), ZONE,
        ["search a.b c", "nameserver 1.2.3.4", "options ndots:2 edns0"],
    ),
    (
        "dnsConfig comes after, each once", "ClusterFirst",
        config("10.96.0.10", "9.9.9.9", searches=("svc.cluster.local", "corp")), ZONE,
        [f"{SEARCH} corp", "nameserver 10.96.0.10", "nameserver 9.9.9.9", "options ndots:5"],
    ),
    (
        "its options win", "ClusterFirst", config(ndots="1", timeout="2"), ZONE,
        [SEARCH, "nameserver 10.96.0.10", "options ndots:1 timeout:2"],
    ),
    (
        "three name servers at most", "Default", config("1.1.1.1", "2.2.2.2", "3.3.3.3"), ZONE,
        ["nameserver 172.18.0.1", "nameserver 1.1.1.1", "nameserver 2.2.2.2"],
    ),
    (
        "32 search domains at most", "None", config("1.1.1.1", searches=tuple(f"d{n}" for n in range(40))), ZONE,
        [f"search {' '.join(f'd{n}' for n in range(32))}", "nameserver 1.1.1.1"],
    ),
]  # fmt: skip


@pytest.mark.parametrize("row", POLICIES, ids=[row[0] for row in POLICIES])
def test_resolv_conf(row: tuple[str, str, PodDNSConfig | None, Zone, list[str]]) -> None:
    _, policy, said, zone, lines = row
    assert resolver(policy, said, "shop", zone, SITE).splitlines() == lines


def test_without_any_server_the_file_says_so() -> None:
    assert resolver("Default", None, "shop", NONE, ()) == "# there is no DNS\n"


# --- hosts ------------------------------------------------------------------------------------------------------------


def test_hosts() -> None:
    aliases = (HostAlias("127.0.0.1", ("foo.local", "bar.local")), HostAlias("10.1.2.3", ("foo.remote",)))
    text = pod_hosts(("10.244.1.2",), "web-0", "db.shop.svc.cluster.local", aliases)
    assert text.startswith("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ")
    assert text.endswith(
        "10.244.1.2\tweb-0.db.shop.svc.cluster.local\tweb-0\n"
        "\n# Entries added by HostAliases.\n127.0.0.1\tfoo.local\tbar.local\n10.1.2.3\tfoo.remote\n"
    )
    assert pod_hosts(("10.244.1.2",), "web", "", ()).endswith("\n10.244.1.2\tweb\n")
    both = pod_hosts(("10.244.1.2", "fd00:10:244:1::2"), "web", "", ())
    assert both.endswith("\n10.244.1.2\tweb\nfd00:10:244:1::2\tweb\n")


# --- in a cluster -----------------------------------------------------------------------------------------------------

ONE = "{apiVersion: nsnet/v1, kind: Cluster, nodes: 1}\n---\n"
TWO = "{apiVersion: nsnet/v1, kind: Cluster}\n---\n"


def cluster(words: str) -> str:
    return f"{{apiVersion: nsnet/v1, kind: Cluster, {words}}}\n---\n"


def pod(name: str, spec: str = "", meta: str = "") -> str:
    return (
        f"{{apiVersion: v1, kind: Pod, metadata: {{name: {name}{meta}}}, "
        f"spec: {{containers: [{{name: c, image: i, ports: [{{containerPort: 80}}]}}]{spec}}}}}\n---\n"
    )


def service(name: str, words: str = "ports: [{port: 80}]", namespace: str = "default") -> str:
    meta = f"{{name: {name}, namespace: {namespace}}}"
    return f"{{apiVersion: v1, kind: Service, metadata: {meta}, spec: {{{words}}}}}\n---\n"


def files(want: State, netns: str) -> dict[str, str]:
    """File name → content, of those in a namespace."""
    return {value.path.rpartition("/")[2]: value.content for value in want[netns] if isinstance(value, File)}


def programs(want: State) -> dict[str, list[str]]:
    """Namespace → its programs' names."""
    found = {netns: sorted(_program(value.argv) for value in values if isinstance(value, Process))
             for netns, values in want.items()}  # fmt: skip
    return {netns: names for netns, names in found.items() if names}


def _program(argv: tuple[str, ...]) -> str:
    return argv[2].rpartition(".")[2] if argv[1] == "-m" else argv[0]


def dns_pods(objects: Objects) -> list[Pod]:
    return [item for item in model.of(objects, Pod) if item.metadata.labels.get("k8s-app") == "kube-dns"]


def zone(objects: Objects) -> kubedns.Config:
    """What the first kubedns serves."""
    first = dns_pods(objects)[0]
    netns = f"demo.pod.kube-system.{first.metadata.name}"
    return kubedns.read(files(render(objects), netns)["kubedns.json"].encode())


def asked(objects: Objects, name: str, kind: str = "A") -> list[str]:
    found = Served(zone(objects)).find(tuple(name.split(".")), kind)
    assert not hasattr(found, "servers"), f"{name} would be asked of others"
    return [record.data for record in found.answers] or [found.rcode]


def test_two_replicas_on_two_nodes_behind_the_service_and_all_that_runs() -> None:
    objects = up(TWO)
    assert sorted(item.spec.nodeName for item in dns_pods(objects)) == ["node1", "node2"]
    assert objects[Key("Service", "kube-system", "kube-dns")].spec.clusterIP == "10.96.0.10"  # type: ignore[union-attr]
    want = programs(render(objects))
    inside = {netns: names for netns, names in want.items() if ".kube-dns-" in netns}
    assert list(inside.values()) == [["dnsmasq", "exechealthz", "kubedns"]] * 2
    assert want["demo.fabric.router"] == ["dnsmasq", "healthcheck", "podserver"]


def test_the_pod_server_leaves_dns_its_ports() -> None:
    told = msgspec.json.decode(files(render(up(TWO)), "demo.fabric.router")["podserver.json"])["pods"]
    assert [item["tcp"] + item["udp"] for item in told if "kube-dns" in item["pod"]] == [[], []]


def test_without_dns_there_is_none() -> None:
    objects = up(cluster("dns: {enabled: false}") + pod("a"))
    want = render(objects)
    assert dns_pods(objects) == []
    assert not [item for item in objects if "dns" in item.name]
    assert programs(want) == {"demo.fabric.router": ["healthcheck", "podserver"]}
    assert files(want, "demo.pod.default.a")["resolv.conf"] == "# there is no DNS\n"


def test_dns_that_is_switched_off_goes_and_comes_back() -> None:
    on = up(pod("a"))
    off = up(cluster("dns: {enabled: false}") + pod("a"), on)
    assert dns_pods(off) == []
    assert Key("Service", "kube-system", "kube-dns") not in off
    assert len(dns_pods(up(pod("a"), off))) == 2


def test_replicas_as_the_document_says_until_somebody_scales() -> None:
    objects = up(cluster("dns: {replicas: 1}"))
    assert len(dns_pods(objects)) == 1
    deployment = objects[Key("Deployment", "kube-system", "kube-dns")]
    spec = msgspec.structs.replace(deployment.spec, replicas=3)  # type: ignore[union-attr]
    scaled = control.complete({**objects, model.key_of(deployment): msgspec.structs.replace(deployment, spec=spec)})
    assert len(dns_pods(scaled)) == 3
    assert len(dns_pods(up(cluster("dns: {replicas: 1}"), scaled))) == 3
    assert len(dns_pods(up(cluster("dns: {replicas: 2}"), scaled))) == 2


def test_each_pod_by_its_policy() -> None:
    own = pod("own", ", dnsPolicy: None, dnsConfig: {nameservers: [1.2.3.4]}")
    host = pod("host", ", hostNetwork: true, nodeName: node1")
    want = render(up(pod("first") + pod("site", ", dnsPolicy: Default") + own + host))
    told = {name: files(want, f"demo.pod.default.{name}")["resolv.conf"] for name in ("first", "site", "own")}
    assert told["first"].splitlines()[1] == "nameserver 10.96.0.10"
    assert told["site"] == files(want, "demo.node.node1")["resolv.conf"] == "nameserver 172.18.0.1\n"
    assert told["own"] == "nameserver 1.2.3.4\n"
    assert files(want, "demo.host.client")["resolv.conf"] == "nameserver 203.0.113.1\n"
    assert not [value for value in want["demo.node.node1"] if isinstance(value, File) and "default.host" in value.path]


SERVERS_LEFT_OUT = "name servers beyond the first 3 are left out of its resolv.conf"
SEARCHES_LEFT_OUT = "search domains beyond the first 32, or 2048 letters, are left out of its resolv.conf"
MANY = ", ".join(f"d{n}.example" for n in range(30))
CUT = [
    ("dnsConfig: {nameservers: [1.1.1.1, 1.1.1.2]}", []),
    ("dnsConfig: {nameservers: [1.1.1.1, 1.1.1.2, 1.1.1.3]}", [SERVERS_LEFT_OUT]),
    ("dnsPolicy: None, dnsConfig: {nameservers: [1.1.1.1, 1.1.1.2, 1.1.1.3]}", []),
    (f"dnsPolicy: Default, dnsConfig: {{searches: [{MANY}]}}", []),
    (f"dnsConfig: {{searches: [{MANY}]}}", [SEARCHES_LEFT_OUT]),
    (f"dnsConfig: {{searches: [{'a' * 60}.{'b' * 60}]}}", []),
]


@pytest.mark.parametrize(("spec", "said"), CUT)
def test_what_resolv_conf_has_no_room_for_is_said(spec: str, said: list[str]) -> None:
    told = [f"Pod p: DNSConfigForming: {sentence}" for sentence in said]
    assert events(up(pod("p", f", {spec}"))) == told


def test_a_host_network_pod_with_files_of_its_own() -> None:
    text = pod("p", ", hostNetwork: true, nodeName: node1, dnsPolicy: ClusterFirstWithHostNet")
    (path,) = {value.path.rpartition("/")[0] for value in render(up(text))["demo.node.node1"]
               if isinstance(value, File) and "default.p" in value.path}  # fmt: skip
    assert path == "/run/nsnet/demo/node.node1/etc/default.p"


# --- what is served ---------------------------------------------------------------------------------------------------

WEB = pod("w", ", hostname: w, subdomain: web", ", labels: {app: web}")


def test_names() -> None:
    objects = up(
        ONE + WEB + service("web", "selector: {app: web}, clusterIP: None, ports: [{name: http, port: 80}]")
        + service("vip", "selector: {app: web}, clusterIP: 10.96.9.9, ports: [{name: http, port: 80}]")
        + service("out", "type: ExternalName, externalName: www.example.com")
    )  # fmt: skip
    assert asked(objects, "vip.default.svc.cluster.local") == ["10.96.9.9"]
    assert asked(objects, "web.default.svc.cluster.local") == ["10.244.1.2"]
    assert asked(objects, "w.web.default.svc.cluster.local") == ["10.244.1.2"]
    assert asked(objects, "_http._tcp.web.default.svc.cluster.local", "SRV")[0].endswith(
        "80 w.web.default.svc.cluster.local."
    )
    assert asked(objects, "out.default.svc.cluster.local", "CNAME") == ["www.example.com."]
    assert asked(objects, "1-2-3-4.default.pod.cluster.local") == ["1.2.3.4"]
    assert asked(objects, "nobody.default.svc.cluster.local") == ["NXDOMAIN"]


def test_only_ready_endpoints_count() -> None:
    text = ONE + WEB + service("web", "selector: {app: web}, clusterIP: None, ports: [{port: 80}]")
    objects = up(text)
    silent = control.complete(objects, listening(objects, silent=["w"]))
    assert asked(silent, "web.default.svc.cluster.local") == ["NXDOMAIN"]


def test_the_file_changes_with_what_it_serves_and_then_only() -> None:
    objects = up(ONE)
    before, after = (render(each) for each in (objects, apply(objects, service("new"))))
    netns = f"demo.pod.kube-system.{dns_pods(objects)[0].metadata.name}"
    one_, two = files(before, netns), files(after, netns)
    assert {name for name in one_ if one_[name] != two[name]} == {"kubedns.json", "dnsmasq.hosts"}
    assert files(render(apply(objects, pod("p"))), netns) == one_
    assert files(render(stored(objects)), netns) == one_


def test_verified_pods_have_their_addresses_served() -> None:
    objects = up(cluster("nodes: 1, dns: {pods: verified}") + pod("a"))
    assert asked(objects, "10-244-1-2.default.pod.cluster.local") == ["10.244.1.2"]
    assert asked(objects, "10-244-1-9.default.pod.cluster.local") == ["NXDOMAIN"]


# --- names outside ----------------------------------------------------------------------------------------------------


def authority(objects: Objects) -> tuple[str, tuple[str, ...]]:
    """The hosts file of the underlay's authority, and its flags."""
    want = render(objects)
    (argv,) = (value.argv for value in want["demo.fabric.router"]
               if isinstance(value, Process) and value.argv[0] == "dnsmasq")  # fmt: skip
    return files(want, "demo.fabric.router")["hosts.conf"], argv


def test_the_authority_serves_records_nodes_and_hosts() -> None:
    content, argv = authority(up(cluster("nodes: 1, dns: {records: {WWW.example.com.: 198.51.100.7, node1: 1.2.3.4}}")))
    assert content == "203.0.113.2 client\n1.2.3.4 node1\n198.51.100.7 www.example.com\n"
    assert "--local=/#/" in argv
    assert argv[-1].endswith("/demo/hosts.conf")


def test_whom_kubedns_asks() -> None:
    assert zone(up(ONE)).upstreams == ("172.18.0.1",)
    outside = "upstreams: ['203.0.113.9:5353'], stubDomains: {corp: [203.0.113.8]}"
    objects = up(cluster(f"nodes: 1, dns: {{{outside}, records: {{a.b: 1.1.1.1}}}}"))
    assert zone(objects).upstreams == ("203.0.113.9:5353",)
    assert zone(objects).stubs == {"a.b": ("172.18.0.1",), "corp": ("203.0.113.8",)}
    assert "--server=203.0.113.9#5353" in authority(objects)[1]


@pytest.mark.parametrize(
    ("data", "upstreams", "stubs"),
    [
        ('{upstreamNameservers: "[\\"8.8.8.8\\", \\"8.8.4.4:53\\"]"}', ("8.8.8.8", "8.8.4.4:53"), {}),
        ('{stubDomains: "{\\"acme.local\\": [\\"1.2.3.4\\"]}"}', ("172.18.0.1",), {"acme.local": ("1.2.3.4",)}),
        (
            '{stubDomains: "{\\"acme.local\\": [\\"dns.acme.svc.cluster.local\\", \\"ns.example.com\\"]}"}',
            ("172.18.0.1",),
            {"acme.local": ("dns.acme.svc.cluster.local",)},
        ),
        ('{stubDomains: "no json", upstreamNameservers: "[1]"}', ("172.18.0.1",), {}),
    ],
)
def test_the_config_map_acts_as_in_kube_dns(data: str, upstreams: object, stubs: object) -> None:
    text = f"{{apiVersion: v1, kind: ConfigMap, metadata: {{name: kube-dns, namespace: kube-system}}, data: {data}}}"
    found = zone(up(ONE + text))
    assert (found.upstreams, found.stubs) == (upstreams, stubs)


# --- what others bring ------------------------------------------------------------------------------------------------

COREDNS = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: coredns, namespace: kube-system}
spec:
  selector: {matchLabels: {k8s-app: kube-dns}}
  template:
    metadata: {labels: {k8s-app: kube-dns}}
    spec:
      dnsPolicy: Default
      containers:
      - name: coredns
        image: coredns
        ports:
        - {containerPort: 53, name: dns, protocol: UDP}
        - {containerPort: 53, name: dns-tcp}
        - {containerPort: 9153, name: metrics}
---
"""


def test_a_coredns_of_a_dump_is_adopted_not_doubled() -> None:
    objects = up(ONE + COREDNS)
    assert [item.metadata.name.split("-")[0] for item in dns_pods(objects)] == ["coredns"]
    assert Key("Deployment", "kube-system", "kube-dns") not in objects
    want = render(objects)
    assert [names for netns, names in programs(want).items() if "coredns" in netns] == [
        ["dnsmasq", "exechealthz", "kubedns"]
    ]
    (told,) = (
        item
        for item in msgspec.json.decode(files(want, "demo.fabric.router")["podserver.json"])["pods"]
        if "coredns" in item["pod"]
    )
    assert (told["tcp"], told["udp"]) == ([9153], [])


def test_a_service_at_cluster_dns_is_the_one_that_pods_ask() -> None:
    words = "clusterIP: 10.96.0.10, selector: {app: mine}, ports: [{port: 53, protocol: UDP}]"
    objects = up(ONE + service("mine", words, "infra") + pod("d", "", ", namespace: infra, labels: {app: mine}"))
    assert Key("Service", "kube-system", "kube-dns") not in objects
    assert dns_pods(objects) == []
    assert "kubedns" in programs(render(objects))["demo.pod.infra.d"]


def test_a_service_of_the_name_without_an_address_gets_it() -> None:
    objects = up(ONE + service("kube-dns", "selector: {k8s-app: kube-dns}, ports: [{port: 53}]", "kube-system"))
    found = objects[Key("Service", "kube-system", "kube-dns")]
    assert (found.spec.clusterIP, len(found.spec.ports)) == ("10.96.0.10", 1)  # type: ignore[union-attr, arg-type]
    assert len(dns_pods(objects)) == 2


def test_a_service_of_its_own_name_and_address() -> None:
    words = "clusterIP: 10.96.77.7, selector: {k8s-app: kube-dns}, ports: [{port: 53}]"
    want = render(up(ONE + pod("a") + service("kube-dns", words, "kube-system")))
    assert "nameserver 10.96.77.7\n" in files(want, "demo.pod.default.a")["resolv.conf"]


def test_an_address_that_is_not_free() -> None:
    sentence = refused(service("web", "clusterIP: 10.96.0.10, ports: [{port: 80}]"))
    assert sentence.startswith("Service default/web: spec.clusterIP: 10.96.0.10 is clusterDNS")
    assert up(cluster("dns: {enabled: false}") + service("web", "clusterIP: 10.96.0.10, ports: [{port: 80}]"))


def test_no_room_for_dns() -> None:
    sentence = refused(cluster("networking: {podSubnet: 10.0.0.0/28}, nodes: 1"))
    assert sentence.startswith("Cluster demo: dns.replicas: too many pods")


# --- readiness --------------------------------------------------------------------------------------------------------


def unhealthy(facts: control.Facts, *pods: Pod) -> control.Facts:
    """The same, but for these the health checks fail."""
    assert facts.listening is not None
    bad = {f"demo.pod.kube-system.{item.metadata.name}" for item in pods}
    heard = {netns: ports - {("HTTP", 8080)} if netns in bad else ports for netns, ports in facts.listening.items()}
    return control.Facts(heard, facts.now)


def test_a_replica_whose_health_check_fails_leaves_the_endpoints() -> None:
    objects = up(TWO)
    bad, good = dns_pods(objects)
    after = control.complete(objects, unhealthy(listening(objects), bad))
    found = after[Key("Endpoints", "kube-system", "kube-dns")]
    assert isinstance(found, model.Endpoints)
    assert [[item.ip for item in subset.addresses or ()] for subset in found.subsets or ()] == [[good.status.podIP]]
    now = after[model.key_of(bad)]
    assert isinstance(now, Pod)
    assert "the health check on port 8080 fails" in [item.message for item in now.status.conditions]
    again = control.complete(after, listening(after))
    assert events(again) == []
    assert model.is_ready(again[model.key_of(bad)])  # type: ignore[arg-type]


def test_the_port_8080_of_any_other_pod_is_only_a_port() -> None:
    objects = up(pod("a").replace("containerPort: 80", "containerPort: 8080"))
    facts = listening(objects)
    assert facts.listening is not None
    heard = {netns: ports - {("HTTP", 8080)} for netns, ports in facts.listening.items()}
    after = control.complete(objects, control.Facts(heard, facts.now))
    assert model.is_ready(one(after, "Pod/a"))  # type: ignore[arg-type]


# --- environment ------------------------------------------------------------------------------------------------------

PORTS = "clusterIP: 10.96.3.4, ports: [{name: http-alt, port: 80}, {name: dns, port: 53, protocol: UDP}]"
KUBERNETES = {
    "KUBERNETES_SERVICE_HOST": "10.96.0.1",
    "KUBERNETES_SERVICE_PORT": "443",
    "KUBERNETES_SERVICE_PORT_HTTPS": "443",
    "KUBERNETES_PORT": "tcp://10.96.0.1:443",
    "KUBERNETES_PORT_443_TCP": "tcp://10.96.0.1:443",
    "KUBERNETES_PORT_443_TCP_PROTO": "tcp",
    "KUBERNETES_PORT_443_TCP_PORT": "443",
    "KUBERNETES_PORT_443_TCP_ADDR": "10.96.0.1",
}
TWO_PORTS = {
    "WEB_1_SERVICE_HOST": "10.96.3.4",
    "WEB_1_SERVICE_PORT": "80",
    "WEB_1_SERVICE_PORT_HTTP_ALT": "80",
    "WEB_1_SERVICE_PORT_DNS": "53",
    "WEB_1_PORT": "tcp://10.96.3.4:80",
    "WEB_1_PORT_80_TCP": "tcp://10.96.3.4:80",
    "WEB_1_PORT_80_TCP_PROTO": "tcp",
    "WEB_1_PORT_80_TCP_PORT": "80",
    "WEB_1_PORT_80_TCP_ADDR": "10.96.3.4",
    "WEB_1_PORT_53_UDP": "udp://10.96.3.4:53",
    "WEB_1_PORT_53_UDP_PROTO": "udp",
    "WEB_1_PORT_53_UDP_PORT": "53",
    "WEB_1_PORT_53_UDP_ADDR": "10.96.3.4",
}


def variables(objects: Objects, word: str) -> dict[str, str]:
    found = one(objects, word)
    assert isinstance(found, Pod)
    return service_variables(objects, found)


ENVIRONMENTS = [
    ("nothing else", "", "", KUBERNETES),
    ("a Service, both styles", "", service("web-1", PORTS), KUBERNETES | TWO_PORTS),
    ("links switched off", ", enableServiceLinks: false", service("web-1", PORTS), KUBERNETES),
    ("of another namespace", "", service("web-1", PORTS, "other"), KUBERNETES),
    ("headless", "", service("h", "clusterIP: None, ports: [{port: 80}]"), KUBERNETES),
    ("ExternalName", "", service("e", "type: ExternalName, externalName: a.b"), KUBERNETES),
]


@pytest.mark.parametrize("row", ENVIRONMENTS, ids=[row[0] for row in ENVIRONMENTS])
def test_environment(row: tuple[str, str, str, dict[str, str]]) -> None:
    _, spec, more, expected = row
    assert variables(up(more + pod("p", spec)), "Pod/p") == expected


def test_the_environment_is_that_of_the_start() -> None:
    objects = up(service("web-1", PORTS) + pod("old"))
    objects = apply(objects, service("web-2", "clusterIP: 10.96.3.5, ports: [{port: 80}]") + pod("new"))
    objects = delete(objects, "Service/web-1")
    assert variables(objects, "Pod/old") == KUBERNETES | TWO_PORTS
    assert variables(objects, "Pod/new")["WEB_2_SERVICE_HOST"] == "10.96.3.5"
    old = one(objects, "Pod/old")
    assert isinstance(old, Pod)
    assert changed_since(objects, old) == {"web-1": "deleted since, still named", "web-2": "created since, absent"}


def test_a_pod_that_stays_keeps_its_environment_and_one_that_moves_starts_anew() -> None:
    text = cluster("nodes: 2") + pod("p", ", nodeSelector: {}")
    objects = up(text)
    node = one(objects, "Pod/p").spec.nodeName  # type: ignore[attr-defined]
    more = service("later", "clusterIP: 10.96.3.6, ports: [{port: 80}]")
    again = up(text + more, objects)
    assert "LATER_SERVICE_HOST" not in variables(again, "Pod/p")
    moved = delete(again, f"Node/{node}")
    assert variables(moved, "Pod/p")["LATER_SERVICE_HOST"] == "10.96.3.6"


def test_a_thousand_pods_that_start_together_share_what_they_found() -> None:
    objects = up("".join(pod(f"p{n}") for n in range(20)))
    snapshots = [item for item in objects if item.kind == "ServiceSnapshot"]
    assert len(snapshots) == 2  # of default, and of kube-system, which has kube-dns
    assert control.complete(stored(objects)) == stored(objects)
    assert not [item for item in up(cluster("dns: {enabled: false}"), objects) if item.kind == "ServiceSnapshot"][1:]


def test_what_the_manifest_says_wins() -> None:
    first = "{name: A, value: $(WEB_SERVICE_HOST)/$(NOBODY)/$$(A)}"
    env = f"[{first}, {{name: B, value: $(A)}}, {{name: WEB_PORT, value: mine}}]"
    web = service("web", "clusterIP: 10.96.3.4, ports: [{port: 80}]")
    objects = up(pod("p").replace("image: i", f"image: i, env: {env}") + web)
    found = one(objects, "Pod/p")
    assert isinstance(found, Pod)
    told = environment(objects, found)
    assert (told["A"], told["B"]) == ("10.96.3.4/$(NOBODY)/$(A)", "10.96.3.4/$(NOBODY)/$(A)")
    assert service_variables(objects, found)["WEB_PORT"] == "mine"
    assert "A" not in service_variables(objects, found)  # exec takes nothing else from a manifest


# --- everything, again ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [TWO, COREDNS, cluster("dns: {enabled: false}"), WEB + service("web", PORTS)])
def test_complete_is_idempotent(text: str) -> None:
    objects = up(text)
    again = control.complete(objects)
    assert all(again[item] is objects[item] for item in objects)
    assert again.keys() == objects.keys()
    back = stored(objects)
    assert control.complete(back) == back


def test_what_is_stored_comes_back() -> None:
    for item in up(WEB).values():
        found: Object = keys.decode(keys.path(item), keys.encode(item))
        assert keys.encode(found) == keys.encode(item)


WRONG = [
    ("flavour: bind", 'dns.flavour: "bind" is not allowed'),
    ("upstreams: [one.one.one.one]", 'dns.upstreams[0]: "one.one.one.one" is not the address of a name server'),
    ("stubDomains: {a_b: [1.1.1.1]}", 'dns.stubDomains.a_b: "a_b" is not a DNS name'),
    ("records: {a.b: c.d}", 'dns.records[a.b]: "c.d" is not an IP address'),
    ("replicas: -1", "dns.replicas: -1 is out of range"),
    ("upstream: [1.1.1.1]", "dns.upstream: unknown field (did you mean upstreams?)"),
]


@pytest.mark.parametrize(("words", "sentence"), WRONG)
def test_what_the_document_may_not_say(words: str, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        load(cluster(f"dns: {{{words}}}"))
    assert sentence in str(caught.value)
