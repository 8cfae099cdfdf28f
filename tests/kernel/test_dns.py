"""Names as a person uses them: getent, dig and curl in pods, through libc, dnsmasq, kubedns and the Service.

The tables of all that can be asked are test_dns_doors'.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import dns.exception
import dns.message
import dns.query
import pytest

from nsnet.kernel import netns
from tests.kernel.test_cli_real import interrupted

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
apiVersion: v1
kind: Pod
metadata: {name: node-s}
spec: {hostNetwork: true, nodeName: node2, containers: [{name: c}]}
---
{apiVersion: v1, kind: Pod, metadata: {name: site-s}, spec: {dnsPolicy: Default, containers: [{name: c}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: own}
spec:
  dnsPolicy: None
  dnsConfig: {nameservers: [10.96.0.10], searches: [default.svc.cluster.local], options: [{name: ndots, value: "1"}]}
  containers: [{name: c}]
---
apiVersion: v1
kind: Pod
metadata: {name: more, namespace: other}
spec: {dnsConfig: {searches: [default.svc.cluster.local, example.com]}, containers: [{name: c}]}
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


def nsnet(
    *words: str, stdin: str | None = None, code: int | None = 0, env: dict[str, str] = ENV
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(  # noqa: PLW1510 - the exit code is what is looked at
        [*NSNET, *words], input=stdin, capture_output=True, text=True, env=env, timeout=120
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


def inside(
    where: str, *command: str, namespace: str = "default", code: int | None = 0, env: dict[str, str] = ENV
) -> str:
    return nsnet("exec", "-n", namespace, where, "--", *command, code=code, env=env).stdout.strip()


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
        ("on-node", "default", "web", "10.96.50.1"),  # ClusterFirstWithHostNet
        ("node-s", "default", "web", ""),  # ClusterFirst, and on its node's network: as Default
        ("node-s", "default", "www.example.com", "203.0.113.2"),
        ("site-s", "default", "web.default.svc.cluster.local", ""),  # Default
        ("site-s", "default", "www.example.com", "203.0.113.2"),
        ("own", "default", "web", "10.96.50.1"),  # None, and what dnsConfig says
        ("own", "default", "web.default", ""),
        ("more", "other", "web", "10.96.50.1"),  # by the first of the further search domains
        ("more", "other", "www", "203.0.113.2"),  # by the second
        ("node/node1", "default", "web.default.svc.cluster.local", ""),  # a node asks outside
        ("node/node1", "default", "www.example.com", "203.0.113.2"),
        ("host/client", "default", "www.example.com", "203.0.113.2"),
    ],
)
def test_getent(where: str, namespace: str, name: str, address: str) -> None:
    assert getent(where, name, namespace) == address


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


LOOKUP = """
#include <netdb.h>
#include <stdio.h>
int main(int argc, char **argv) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    for (int i = 1; i < argc; i++) {
        char text[64];
        int error = getaddrinfo(argv[i], 0, &hints, &found);
        if (!error) getnameinfo(found->ai_addr, found->ai_addrlen, text, sizeof text, 0, 0, NI_NUMERICHOST);
        puts(error ? gai_strerror(error) : text);
    }
}
"""
NONE = "Name does not resolve"


@pytest.mark.skipif(not shutil.which("musl-gcc"), reason="there is no musl-gcc (Debian: musl-tools)")
def test_through_musl(tmp_path: Path) -> None:
    """The other libc: it asks for A and AAAA at once, and gives up where a name with an address is denied an AAAA."""
    program = tmp_path / "lookup"
    compiler = ["musl-gcc", "-static", "-x", "c", "-", "-o", str(program)]
    subprocess.run(compiler, input=LOOKUP, text=True, check=True)
    rows = {
        "web": "10.96.50.1",
        "web.default.svc": "10.96.50.1",
        "web.default.svc.cluster.local": "10.96.50.1",
        "web.default.svc.cluster.local.": "10.96.50.1",
        "www.example.com": "203.0.113.2",
        "out": "203.0.113.2",
        "nope": NONE,
    }
    assert dict(zip(rows, inside("a", str(program), *rows).splitlines(), strict=True)) == rows
    elsewhere = {"web": NONE, "web.default": "10.96.50.1", "alias.example": "1.2.3.4"}
    assert dict(zip(elsewhere, inside("b", str(program), *elsewhere, namespace="other").splitlines(), strict=True)) == (
        elsewhere
    )


def test_what_libc_reads() -> None:
    """The file itself, and that two pods on one node's network have files of their own."""
    first = "search default.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5"
    assert inside("a", "cat", "/etc/resolv.conf") == inside("on-node", "cat", "/etc/resolv.conf") == first
    assert inside("node-s", "cat", "/etc/resolv.conf") == "nameserver 172.18.0.1"
    assert inside("site-s", "cat", "/etc/resolv.conf") == "nameserver 172.18.0.1"
    assert inside("own", "cat", "/etc/resolv.conf").splitlines()[1:] == ["nameserver 10.96.0.10", "options ndots:1"]


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


def test_logs_of_a_replica_and_of_all() -> None:
    pod = _replicas()[0]["metadata"]["name"]
    first = nsnet("logs", pod, "-n", "kube-system")
    assert first.stderr == 'Defaulted container "kubedns" out of: kubedns, dnsmasq, healthz\n'
    assert " services of cluster.local, as coredns; names outside are asked of 172.18.0.1\n" in first.stdout
    assert "cachesize 1000" in nsnet("logs", f"pod/{pod}", "-n", "kube-system", "-c", "dnsmasq").stdout
    every = nsnet("logs", "dnsmasq").stdout
    assert f"[pod.kube-system.{pod}] dnsmasq" in every
    assert "[cluster] dnsmasq" in every  # the underlay's authority
    assert "nsnet logs podserver" in nsnet("logs", "a", code=2).stderr
    assert 'pod a has no container "x"' in nsnet("logs", "a", "-c", "x", code=2).stderr
    words = [*NSNET, "logs", "-f", "--tail", "0"]
    with subprocess.Popen(words, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as followed:
        nsnet("annotate", "pod", "a", "nsnet/ready=false")
        nsnet("annotate", "pod", "a", "nsnet/ready-")
        assert followed.stdout is not None
        assert "changes" in followed.stdout.readline()
        interrupted(followed)  # what it says before it hears that is read: a closed pipe would end it
    assert followed.returncode == 130


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
    caller = {"FOREIGN_SERVICE_HOST": "1.2.3.4", "FOREIGN_PORT": "tcp://1.2.3.4:80", "FOREIGN": "kept"}
    caller |= {"http_proxy": "http://127.0.0.1:1", "LOCALDOMAIN": "example.com"}
    told = dict(line.split("=", 1) for line in inside("a", "env", env=ENV | caller).splitlines() if "=" in line)
    assert told["WEB_SERVICE_HOST"] == "10.96.50.1"
    assert told["WEB_PORT_80_TCP"] == "tcp://10.96.50.1:80"
    assert told["KUBERNETES_SERVICE_PORT"] == "443"
    assert told["HOSTNAME"] == "a"
    assert "LATE_SERVICE_HOST" not in told
    assert not {"FOREIGN_SERVICE_HOST", "FOREIGN_PORT", "http_proxy", "LOCALDOMAIN"} & told.keys()  # the caller's
    assert told["FOREIGN"] == "kept"
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


CONFIG_MAP = """
apiVersion: v1
kind: ConfigMap
metadata: {name: kube-dns, namespace: kube-system}
data:
  stubDomains: '{"acme.local": ["203.0.113.2:5353"]}'
  upstreamNameservers: '["203.0.113.2:5354"]'
"""


@pytest.fixture
def others() -> Iterator[None]:
    """Two name servers on the host outside, each of which gives one name another address."""
    flags = ("-k", "--conf-file=/dev/null", "--no-hosts", "--no-resolv", "--pid-file=", "--user=root")
    with ExitStack() as stack:
        for port, name, address in (("5353", "x.acme.local", "192.0.2.53"), ("5354", "far.example", "192.0.2.54")):
            words = ["ip", "netns", "exec", "names.host.client", "dnsmasq", *flags]
            words += [f"--port={port}", f"--host-record={name},{address}", "--log-facility=-"]
            server = stack.enter_context(subprocess.Popen(words, stderr=subprocess.DEVNULL))
            stack.callback(server.kill)
        yield


@pytest.mark.usefixtures("others")
def test_stub_domains_and_upstreams_of_a_running_cluster() -> None:
    """The ConfigMap comes and goes; what the topology gives (`dns.records`) is the authority's all the same."""
    assert getent("a", "x.acme.local") == getent("a", "far.example") == ""
    nsnet("apply", "-f", "-", stdin=CONFIG_MAP)
    within(5, lambda: getent("a", "x.acme.local") == "192.0.2.53")
    assert getent("a", "far.example") == "192.0.2.54"
    assert getent("a", "www.example.com") == "203.0.113.2"
    assert getent("a", "web") == "10.96.50.1"
    nsnet("delete", "configmap", "kube-dns", "-n", "kube-system")
    within(5, lambda: getent("a", "x.acme.local") == getent("a", "far.example") == "")


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


def _pids(program: str, home: str = "") -> list[int]:
    """Living processes with that word in their argv, in the namespace they were started for."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                there = f"NSNET_NETNS={home}".encode() in (entry / "environ").read_bytes() if home else True
            except OSError:
                continue
            if program.encode() in words and there:
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


ASKING = """
import select, socket, sys, time
while not select.select([sys.stdin], [], [], 0.005)[0]:
    began = time.time()
    try:
        said = socket.getaddrinfo("web.default", 80, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
    except OSError as error:
        said = str(error)
    print(began, said, flush=True)
"""


TIMEOUT = 5  # s, resolv.conf(5)


class Client:
    """A process in a pod that looks a name up over and over, through libc: two attempts, 5 s each."""

    def __init__(self, where: str, namespace: str, into: Path) -> None:
        self.into = into
        words = [*NSNET, "exec", "-n", namespace, where, "--", sys.executable, "-c", ASKING]
        with into.open("w") as output:
            self.process = subprocess.Popen(words, env=ENV, stdin=subprocess.PIPE, stdout=output)

    def lookups(self) -> list[tuple[float, str]]:
        """When each began, and what came of it."""
        *whole, _ = self.into.read_text().split("\n")
        return [(float(began), said) for began, _, said in (line.partition(" ") for line in whole)]

    def is_past(self, moment: float) -> bool:
        """Has a lookup that began after that ended?"""
        return any(began > moment for began, _ in self.lookups()[-1:])


@pytest.fixture
def asking(tmp_path: Path) -> Iterator[list[Client]]:
    """Clients that ask without a pause, on both nodes."""
    places = [("a", "default"), ("a", "default"), ("b", "other"), ("b", "other")]
    clients = [Client(*where, tmp_path / str(number)) for number, where in enumerate(places)]
    try:
        within(20, lambda: all(client.is_past(0) for client in clients))
        yield clients
    finally:
        for client in clients:
            client.process.communicate(b"", timeout=30)


def _answers(address: str) -> bool:
    """Does the replica at that address answer, dnsmasq and kubedns?"""
    with netns.inside("names.pod.default.a"):
        for port in (53, 10053):
            try:
                dns.query.udp(dns.message.make_query("new.default.svc.cluster.local", "A"), address, 0.1, port)
            except (OSError, dns.exception.Timeout):
                return False
    return True


def _kill(replica: str, *programs: str) -> None:
    """All of them at once; they are away when this returns."""
    pids = {pid for program in programs for pid in _pids(program, replica)}
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    within(5, lambda: not pids & {pid for program in programs for pid in _pids(program)})


def _destroy(replica: str) -> None:
    """All its programs, and its network."""
    _kill(replica, "dnsmasq", "nsnet.programs.kubedns", "nsnet.programs.exechealthz")
    subprocess.run(["ip", "netns", "delete", replica], check=True)


def _delete(replica: str) -> None:
    nsnet("delete", "pod", replica.rpartition(".")[2], "-n", "kube-system")


DEATHS: dict[str, Callable[[str], None]] = {
    "dnsmasq": lambda replica: _kill(replica, "dnsmasq"),
    "kubedns": lambda replica: _kill(replica, "nsnet.programs.kubedns"),
    "the replica": _destroy,
    "the pod, deleted": _delete,
}


@pytest.mark.parametrize("death", DEATHS)
def test_no_lookup_is_lost_while_a_replica_dies(asking: list[Client], death: str) -> None:
    """What is asked while nobody is there to answer is asked again, by libc; every answer is right.

    Its port does not refuse meanwhile (render/dns.py): nobody is told that nobody listens, and asks again at once.
    """
    pod, address = _replicas()[0]["metadata"]["name"], _replicas()[0]["status"]["podIP"]
    before, began = sum(len(client.lookups()) for client in asking), time.monotonic()
    DEATHS[death](f"names.pod.kube-system.{pod}")
    if death != "the pod, deleted":
        within(30, lambda: _answers(address))
    away = time.monotonic() - began
    within(30, lambda: len(_endpoints()) == 2 and all(map(_answers, _endpoints())))
    assert (address in _endpoints()) is (death != "the pod, deleted")
    back = time.time()
    within(30, lambda: all(client.is_past(back) for client in asking))
    said = [lookup for client in asking for lookup in client.lookups()]
    lost = [lookup for lookup in said if lookup[1] != "10.96.50.1"]
    beyond = away > TIMEOUT and death != "the pod, deleted"  # on a busy machine: the second attempt finds nobody, too
    assert lost == [] or beyond, f"lost while the replica was away for {away:.1f} s"
    assert len(said) > before + len(asking)


def _is_answered(port: int) -> bool:
    """Asked once from that port, for what no cache has."""
    words = ("-b", f"0.0.0.0#{port}", "+tries=1", "+time=1", "nobody.default.svc.cluster.local")
    return "status: NXDOMAIN" in inside("a", "dig", *words, code=None)


def test_a_replica_that_is_not_healthy_leaves_the_endpoints() -> None:
    """Clients that keep their source port move on, too: nobody waits for a program that is stopped."""
    ports, sick = range(40001, 40009), _replicas()[0]
    assert all(map(_is_answered, ports))
    (pid,) = _pids("nsnet.programs.kubedns", f"names.pod.kube-system.{sick['metadata']['name']}")
    os.kill(pid, signal.SIGSTOP)
    try:
        within(30, lambda: sick["status"]["podIP"] not in _endpoints())
        within(10, lambda: all(map(_is_answered, ports)))
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
