"""Names as a person uses them: getent, dig and curl in pods, through libc, dnsmasq, kubedns and the Service."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dns.message
import dns.query
import dns.rcode
import pytest

from nsnet.kernel import netns

ROOT = Path(__file__).parents[2]
NSNET = (sys.executable, "-m", "nsnet")
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "NSNET_RESYNC": "1"}

CLUSTER = """
apiVersion: nsnet/v1
kind: Cluster
metadata: {name: names}
nodes: 2
dns: {records: {www.example.com: 203.0.113.2}}
---
"""
PODS = """
apiVersion: v1
kind: Pod
metadata: {name: a, labels: {app: a}}
spec: {nodeName: node1, containers: [{name: c, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: b, namespace: other}
spec:
  nodeName: node2
  hostAliases: [{ip: 1.2.3.4, hostnames: [alias.example]}]
  containers: [{name: c, ports: [{containerPort: 80}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: on-node, labels: {app: host}}
spec: {nodeName: node1, hostNetwork: true, dnsPolicy: ClusterFirstWithHostNet, containers: [{name: c}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  replicas: 2
  serviceName: db
  selector: {matchLabels: {app: db}}
  template: {metadata: {labels: {app: db}}, spec: {containers: [{name: c, ports: [{containerPort: 5432, name: sql}]}]}}
---
"""
SERVICES = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: a}, clusterIP: 10.96.50.1, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {selector: {app: db}, clusterIP: None, ports: [{port: 5432, name: sql}]}
---
apiVersion: v1
kind: Service
metadata: {name: out}
spec: {type: ExternalName, externalName: www.example.com}
"""


def nsnet(*words: str, stdin: str | None = None, code: int | None = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(  # noqa: PLW1510 - the exit code is what is looked at
        [*NSNET, *words], input=stdin, capture_output=True, text=True, env=ENV, timeout=120
    )
    assert code is None or done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    nsnet("up", "-", stdin=CLUSTER + PODS + SERVICES)
    yield
    nsnet("down", "--all")
    assert not [path for path in Path("/etc/netns").rglob("*") if path.is_file()]
    assert not Path("/run/nsnet/names").exists()
    assert _pids("dnsmasq") == _pids("nsnet.programs.kubedns") == _pids("nsnet.programs.exechealthz") == []


def inside(where: str, *command: str, namespace: str = "default", code: int | None = 0) -> str:
    return nsnet("exec", "-n", namespace, where, "--", *command, code=code).stdout.strip()


def getent(where: str, name: str, namespace: str = "default") -> str:
    """The address libc finds; empty where there is none."""
    found = inside(where, "getent", "ahostsv4", name, namespace=namespace, code=None)
    return found.split()[0] if found else ""


def dig(where: str, *words: str) -> str:
    return inside(where, "dig", "+short", "+tries=1", "+time=2", *words)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "namespace", "name", "address"),
    [
        ("a", "default", "web", "10.96.50.1"),
        ("a", "default", "web.default", "10.96.50.1"),
        ("a", "default", "web.default.svc", "10.96.50.1"),
        ("a", "default", "web.default.svc.cluster.local", "10.96.50.1"),
        ("a", "default", "web.default.svc.cluster.local.", "10.96.50.1"),
        ("a", "default", "kubernetes", "10.96.0.1"),
        ("b", "other", "web", ""),
        ("b", "other", "web.default", "10.96.50.1"),
        ("b", "other", "alias.example", "1.2.3.4"),
        ("a", "default", "alias.example", ""),
        ("a", "default", "www.example.com", "203.0.113.2"),
        ("a", "default", "out", "203.0.113.2"),
        ("a", "default", "node2", "172.18.0.3"),
        ("a", "default", "no.such.name", ""),
        ("on-node", "default", "web", "10.96.50.1"),
        ("node/node1", "default", "web.default.svc.cluster.local", ""),  # a node asks outside
        ("node/node1", "default", "www.example.com", "203.0.113.2"),
        ("host/client", "default", "www.example.com", "203.0.113.2"),
    ],
)
def test_getent(where: str, namespace: str, name: str, address: str) -> None:
    assert getent(where, name, namespace) == address


ZONE = "cluster.local"
QUESTIONS = [
    # name, type → code, answers
    (f"web.default.svc.{ZONE}", "A", "NOERROR", ["10.96.50.1"]),
    (f"WEB.Default.svc.{ZONE}", "A", "NOERROR", ["10.96.50.1"]),
    (f"web.default.svc.{ZONE}", "AAAA", "NOERROR", []),
    (f"web.default.svc.{ZONE}", "TXT", "NOERROR", []),
    (f"kubernetes.default.svc.{ZONE}", "A", "NOERROR", ["10.96.0.1"]),
    (f"_https._tcp.kubernetes.default.svc.{ZONE}", "SRV", "NOERROR", [f"0 100 443 kubernetes.default.svc.{ZONE}."]),
    (f"_http._tcp.web.default.svc.{ZONE}", "SRV", "NXDOMAIN", []),  # its port has no name
    (f"_dns._udp.kube-dns.kube-system.svc.{ZONE}", "SRV", "NOERROR", [f"0 100 53 kube-dns.kube-system.svc.{ZONE}."]),
    (f"db.default.svc.{ZONE}", "A", "NOERROR", ["10.244.1.", "10.244.2."]),
    (f"db-0.db.default.svc.{ZONE}", "A", "NOERROR", ["10.244."]),
    (f"db-9.db.default.svc.{ZONE}", "A", "NXDOMAIN", []),
    (f"db-0.web.default.svc.{ZONE}", "A", "NXDOMAIN", []),
    (
        f"_sql._tcp.db.default.svc.{ZONE}",
        "SRV",
        "NOERROR",
        [f"0 50 5432 db-0.db.default.svc.{ZONE}.", f"0 50 5432 db-1.db.default.svc.{ZONE}."],
    ),
    (f"out.default.svc.{ZONE}", "A", "NOERROR", ["203.0.113.2", "www.example.com."]),
    (f"out.default.svc.{ZONE}", "CNAME", "NOERROR", ["www.example.com."]),
    (f"sub.out.default.svc.{ZONE}", "A", "NXDOMAIN", []),
    (f"1-2-3-4.default.pod.{ZONE}", "A", "NOERROR", ["1.2.3.4"]),
    (f"1-2-3-4.nowhere.pod.{ZONE}", "A", "NXDOMAIN", []),
    (f"no-address.default.pod.{ZONE}", "A", "NXDOMAIN", []),
    (f"web.nowhere.svc.{ZONE}", "A", "NXDOMAIN", []),
    (f"nope.default.svc.{ZONE}", "A", "NXDOMAIN", []),
    (f"default.svc.{ZONE}", "A", "NOERROR", []),
    (f"svc.{ZONE}", "A", "NOERROR", []),
    (f"foo.{ZONE}", "A", "NXDOMAIN", []),
    (f"dns-version.{ZONE}", "TXT", "NOERROR", ['"1.1.0"']),
    ("1.50.96.10.in-addr.arpa", "PTR", "NOERROR", [f"web.default.svc.{ZONE}."]),
    ("10.0.96.10.in-addr.arpa", "PTR", "NOERROR", [f"kube-dns.kube-system.svc.{ZONE}."]),
    ("99.99.96.10.in-addr.arpa", "PTR", "NXDOMAIN", []),
    ("www.example.com", "A", "NOERROR", ["203.0.113.2"]),
    ("node1", "A", "NOERROR", ["172.18.0.2"]),
    ("other.example.com", "A", "NXDOMAIN", []),
]


@pytest.mark.parametrize("ask", [dns.query.udp, dns.query.tcp], ids=["UDP", "TCP"])
@pytest.mark.parametrize("door", ["kubedns", "dnsmasq", "Service"])
def test_questions(door: str, ask: Callable[..., dns.message.Message]) -> None:
    """The whole table at each door: the server itself, the cache before it, and the Service's address."""
    replica = _replicas()[0]["status"]["podIP"]
    address, port = {"kubedns": (replica, 10053), "dnsmasq": (replica, 53), "Service": ("10.96.0.10", 53)}[door]
    found = []
    with netns.inside("names.pod.default.a"):
        for name, kind, *_ in QUESTIONS:
            answer = ask(dns.message.make_query(name, kind), address, port=port, timeout=5)
            records = sorted(str(record) for rrset in answer.answer for record in rrset)
            found.append((name, kind, dns.rcode.to_text(answer.rcode()), records))
            for rrset in answer.answer:
                assert rrset.ttl <= (28800 if name.startswith("dns-version") else 5), f"{name}: {rrset}"
    for (name, kind, code, records), wanted in zip(found, QUESTIONS, strict=True):
        assert (name, kind, code, len(records)) == (*wanted[:3], len(wanted[3])), f"{door}: {records}"
        for record, start in zip(records, sorted(wanted[3]), strict=True):
            assert record.startswith(start), f"{door}: {name}: {records}"


def test_curl_by_name() -> None:
    assert inside("b", "curl", "-sS", "-m", "3", "http://web.default/hostname", namespace="other") == "a"
    assert inside("db-0", "curl", "-sS", "-m", "3", "http://web/hostname") == "a"


def test_a_stateful_set_has_names_of_its_own() -> None:
    address = json.loads(nsnet("get", "po", "db-1", "-o", "json").stdout)["status"]["podIP"]
    assert getent("a", "db-1.db") == address
    assert inside("db-1", "hostname", "-f") == "db-1.db.default.svc.cluster.local"
    assert len(dig("a", "db.default.svc.cluster.local").splitlines()) == 2
    targets = dig("a", "_sql._tcp.db.default.svc.cluster.local", "SRV").splitlines()
    assert sorted(line.split()[2:] for line in targets) == [
        ["5432", f"db-{n}.db.default.svc.cluster.local."] for n in (0, 1)
    ]


def test_dig_over_udp_and_tcp_and_backwards() -> None:
    assert dig("a", "web.default.svc.cluster.local") == "10.96.50.1"
    assert dig("a", "+tcp", "web.default.svc.cluster.local") == "10.96.50.1"
    assert dig("a", "-x", "10.96.50.1") == "web.default.svc.cluster.local."
    assert dig("a", "out.default.svc.cluster.local").splitlines() == ["www.example.com.", "203.0.113.2"]
    assert dig("a", "web.default.svc.cluster.local", "AAAA") == ""


def test_plain_ip_netns_exec_sees_the_same() -> None:
    words = ("ip", "netns", "exec", "names.pod.default.a", "getent", "hosts", "web")
    assert subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[0] == "10.96.50.1"


def test_dnsmasq_caches_what_is_found() -> None:
    """By its counters: the first replica that is asked directly forwards the first question and no other."""
    replica = _replicas()[0]["status"]["podIP"]
    name = "kubernetes.default.svc.cluster.local"
    dig("a", f"@{replica}", name)
    before = int(dig("a", f"@{replica}", "hits.bind", "TXT", "CH").strip('"'))
    dig("a", f"@{replica}", name.upper())
    assert int(dig("a", f"@{replica}", "hits.bind", "TXT", "CH").strip('"')) > before


def test_verify_asks_for_every_service() -> None:
    listed = nsnet("verify", "--list").stdout
    for name in ("web.default", "db.default", "out.default", "kube-dns.kube-system", "kubernetes.default"):
        assert f"→ {name}.svc.cluster.local UDP 10.96.0.10:53" in listed
    assert "environment: pod/default/a WEB_SERVICE_HOST=10.96.50.1 TCP" in listed
    nsnet("verify", "--only", "dns:|environment:")


# --- environment ------------------------------------------------------------------------------------------------------


def test_the_environment_of_the_start() -> None:
    late = "{apiVersion: v1, kind: Service, metadata: {name: late}, spec: {ports: [{port: 80}]}}"
    nsnet("apply", "-f", "-", stdin=late)
    told = dict(line.split("=", 1) for line in inside("a", "env").splitlines() if "=" in line)
    assert told["WEB_SERVICE_HOST"] == "10.96.50.1"
    assert told["WEB_PORT_80_TCP"] == "tcp://10.96.50.1:80"
    assert told["KUBERNETES_SERVICE_PORT"] == "443"
    assert told["HOSTNAME"] == "a"
    assert "LATE_SERVICE_HOST" not in told
    assert "service late: created since, absent" in nsnet("describe", "pod", "a").stdout
    nsnet("delete", "svc", "late")


# --- changes ----------------------------------------------------------------------------------------------------------


def within(seconds: float, happens: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "it did not happen in time"


def test_a_service_is_seen_at_once_and_gone_at_once() -> None:
    assert getent("a", "fresh") == ""
    nsnet("apply", "-f", "-", stdin=_service("fresh", "clusterIP: 10.96.50.9, ports: [{port: 80}]"))
    within(1, lambda: getent("a", "fresh") == "10.96.50.9")
    nsnet("apply", "-f", "-", stdin=_service("fresh", "type: ExternalName, externalName: www.example.com"))
    within(1, lambda: getent("a", "fresh") == "203.0.113.2")
    nsnet("apply", "-f", "-", stdin=_service("fresh", "clusterIP: 10.96.50.8, ports: [{port: 80}]"))
    within(1, lambda: getent("a", "fresh") == "10.96.50.8")
    nsnet("delete", "svc", "fresh")
    within(1, lambda: getent("a", "fresh") == "")


def _service(name: str, words: str) -> str:
    return f"{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{{words}}}}}"


def test_an_endpoint_that_is_not_ready_is_no_address() -> None:
    assert len(dig("a", "db.default.svc.cluster.local").splitlines()) == 2
    nsnet("annotate", "pod", "db-0", "nsnet/ready=false")
    within(1, lambda: len(dig("a", "db.default.svc.cluster.local").splitlines()) == 1)
    nsnet("annotate", "pod", "db-0", "nsnet/ready-")
    within(1, lambda: len(dig("a", "db.default.svc.cluster.local").splitlines()) == 2)


# --- damage -----------------------------------------------------------------------------------------------------------


def _replicas() -> list[dict[str, dict[str, str]]]:
    found = json.loads(nsnet("get", "po", "-n", "kube-system", "-o", "json").stdout)["items"]
    return [item for item in found if item["metadata"]["labels"].get("k8s-app") == "kube-dns"]


def _endpoints() -> list[str]:
    found = json.loads(nsnet("get", "ep", "kube-dns", "-n", "kube-system", "-o", "json").stdout)
    return [item["ip"] for subset in found.get("subsets") or [] for item in subset.get("addresses") or []]


def _pids(program: str, netns: str = "") -> list[int]:
    """Living processes with that word in their argv, in the namespace they were started for."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                home = f"NSNET_NETNS={netns}".encode() in (entry / "environ").read_bytes() if netns else True
            except OSError:
                continue
            if program.encode() in words and home:
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize("program", ["dnsmasq", "nsnet.programs.kubedns", "nsnet.programs.exechealthz"])
def test_what_is_killed_comes_back(program: str) -> None:
    replica = f"names.pod.kube-system.{_replicas()[0]['metadata']['name']}"
    (old,) = _pids(program, replica)
    os.kill(old, signal.SIGKILL)
    within(10, lambda: bool(set(_pids(program, replica)) - {old}))
    within(10, lambda: len(_endpoints()) == 2)
    nsnet("verify", "--only", "dns:|drift")


def test_no_lookup_is_lost_while_a_replica_dies() -> None:
    """libc asks again after its timeout: nothing else is allowed to be felt."""
    replica = f"names.pod.kube-system.{_replicas()[0]['metadata']['name']}"
    script = "for n in $(seq 60); do getent ahostsv4 web >/dev/null || echo lost; done"
    with subprocess.Popen(
        [*NSNET, "exec", "a", "--", "sh", "-c", script], env=ENV, stdout=subprocess.PIPE, text=True
    ) as asking:
        for program in ("dnsmasq", "nsnet.programs.kubedns"):
            (old,) = _pids(program, replica)
            os.kill(old, signal.SIGKILL)
            within(10, lambda program=program, old=old: bool(set(_pids(program, replica)) - {old}))  # type: ignore[misc]
        said = asking.communicate(timeout=60)[0]
    assert said == ""


def test_a_replica_that_is_not_healthy_leaves_the_endpoints() -> None:
    sick = _replicas()[0]
    (pid,) = _pids("nsnet.programs.kubedns", f"names.pod.kube-system.{sick['metadata']['name']}")
    os.kill(pid, signal.SIGSTOP)
    try:
        within(30, lambda: sick["status"]["podIP"] not in _endpoints())
        assert getent("a", "web") == "10.96.50.1"
        assert "the health check on port 8080 fails" in nsnet("get", "po", "-n", "kube-system", "-o", "json").stdout
    finally:
        os.kill(pid, signal.SIGCONT)
    within(30, lambda: sick["status"]["podIP"] in _endpoints())


def test_files_that_somebody_changed_are_written_again() -> None:
    path = Path("/etc/netns/names.pod.default.a/resolv.conf")
    text = path.read_text()
    path.write_text("nameserver 8.8.8.8\n")
    within(10, lambda: path.read_text() == text)


# --- other clusters ---------------------------------------------------------------------------------------------------


def test_without_dns() -> None:
    text = CLUSTER.replace("names}", "mute}").replace("dns: {", "dns: {enabled: false} #")
    nsnet("up", "--cluster", "mute", "-", stdin=text + PODS + SERVICES)
    try:
        assert nsnet("exec", "--cluster", "mute", "a", "--", "getent", "hosts", "web", code=None).stdout == ""
        answer = nsnet("exec", "--cluster", "mute", "a", "--", "curl", "-sS", "-m", "3", "http://10.96.50.1/hostname")
        assert answer.stdout == "a"
        listed = nsnet("verify", "--list", "--cluster", "mute").stdout
        assert "dns:" not in listed
    finally:
        nsnet("down", "mute")


def test_kube_dns_flavour() -> None:
    text = CLUSTER.replace("names}", "sky}").replace("dns: {", "dns: {flavour: kube-dns, replicas: 1, ")
    nsnet("up", "--cluster", "sky", "-", stdin=text + PODS + SERVICES)
    try:
        words = ("dig", "+noall", "+answer", "web.default.svc.cluster.local")
        name, ttl, *record = nsnet("exec", "--cluster", "sky", "a", "--", *words).stdout.split()
        assert [name, *record] == ["web.default.svc.cluster.local.", "IN", "A", "10.96.50.1"]
        assert 20 < int(ttl) <= 30  # CoreDNS says 5
    finally:
        nsnet("down", "sky")
