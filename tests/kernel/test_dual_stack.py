"""IPv6 with real packets: dual stack in both modes, IPv6 alone, and a running cluster that changes its families."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from nsnet import control, kernel, manifests, model, names, verify
from nsnet.diff import diff
from nsnet.kernel import conntrack, features
from nsnet.kernel.probe import Answer, Probe, probe
from nsnet.manifests import Source
from nsnet.model import Objects
from nsnet.render import render
from nsnet.state import Change, Conntrack

LACKING = [found for found in features.features(features.IPV6) if not found.ok]
pytestmark = pytest.mark.skipif(bool(LACKING), reason=f"this machine lacks {[found.name for found in LACKING]}")

ROOT = Path(__file__).parents[2]
NSNET = (sys.executable, "-m", "nsnet")
NAME = "six"
FOUR, BOTH, SIX = "10.244.0.0/16", "10.244.0.0/16,fd00:10:244::/56", "fd00:10:244::/56"
TOPOLOGY = """
apiVersion: nsnet/v1
kind: Cluster
metadata: {name: six}
networking: {podSubnet: "%s", kubeProxyMode: %s}
---
apiVersion: v1
kind: Pod
metadata: {name: a, labels: {app: web, only: a}}
spec: {nodeName: node1, containers: [{name: c, ports: [{containerPort: 8080}, {containerPort: 53, protocol: UDP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: b, labels: {app: web}}
spec: {nodeName: node1, containers: [{name: c, ports: [{containerPort: 8080}, {containerPort: 53, protocol: UDP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: c, labels: {app: web}}
spec: {nodeName: node2, containers: [{name: c, ports: [{containerPort: 8080}, {containerPort: 53, protocol: UDP}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30080}, {name: echo, port: 53, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: itself}
spec: {ipFamilyPolicy: PreferDualStack, selector: {only: a}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: near}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  externalTrafficPolicy: Local
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, nodePort: 30081}]
---
apiVersion: v1
kind: Service
metadata: {name: sticky}
spec:
  ipFamilyPolicy: PreferDualStack
  sessionAffinity: ClientIP
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {ipFamilyPolicy: PreferDualStack, selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: each}
spec: {clusterIP: None, ipFamilyPolicy: PreferDualStack, selector: {app: web}, ports: [{port: 8080}]}
"""


class Case(NamedTuple):
    subnets: str
    mode: str

    @property
    def text(self) -> str:
        return TOPOLOGY % self


CASES = (Case(BOTH, "iptables"), Case(BOTH, "nftables"), Case(SIX, "iptables"))


@pytest.fixture(
    scope="module", params=CASES, ids=lambda case: f"{'both' if ',' in case.subnets else 'six'}-{case.mode}"
)
def objects(request: pytest.FixtureRequest) -> Iterator[Objects]:
    """A cluster that stands."""
    loaded = manifests.load([Source("six.yaml", request.param.text.encode())]).objects
    found = control.complete(control.admit({}, loaded, whole=True))
    assert kernel.apply(diff({}, render(found))) == []
    yield found
    kernel.destroy(NAME)


def six(objects: Objects, name: str) -> str:
    """The IPv6 address of a Service or pod."""
    service = objects.get(model.Key("Service", "default", name))
    if isinstance(service, model.Service):
        return model.cluster_ips(service.spec)[-1]
    pod = objects[model.Key("Pod", "default", name)]
    assert isinstance(pod, model.Pod)
    return model.pod_ips(pod)[-1]


class Said(msgspec.Struct):
    pod: str
    client: str


def ask(netns: str, address: str, port: int = 80, protocol: str = "TCP") -> Answer:
    payload = b"whoami\n" if protocol == "UDP" else b"GET /nsnet HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    (answer,) = probe([Probe(netns, protocol, address, port, payload)])  # type: ignore[arg-type]
    return answer


def said(answer: Answer) -> Said:
    assert answer.outcome == "ok", answer
    return msgspec.json.decode(answer.body.rpartition(b"\r\n\r\n")[2], type=Said)


def pod_netns(name: str) -> str:
    return names.pod_netns(NAME, "default", name)


CLIENT, NODE1 = names.host_netns(NAME, "client"), names.node_netns(NAME, "node1")


def test_what_stands_is_what_was_wanted(objects: Objects) -> None:
    assert diff(kernel.observe(NAME), render(objects)) == []


def test_every_expectation_in_each_family(objects: Objects) -> None:
    """dnsmasq does not say when it is ready: what it has not answered is asked again."""
    found = verify.expectations(objects)
    results = verify.run(found, retry=3)
    assert [f"{result.name}: {result.reason}" for result in results if not result.ok] == []
    of = {item.group for item in found if ":" in item.address}
    assert of >= {"pod-to-pod", "node-to-pod", "service", "spread", "affinity", "hairpin", "outside", "nodeport"}


def test_a_pod_that_reaches_itself_sees_its_node(objects: Objects) -> None:
    found = said(ask(pod_netns("a"), six(objects, "itself")))
    assert (found.pod, found.client.rpartition(":")[0]) == ("a", "[fd00:10:244:1::1]")


def test_node_ports_from_outside(objects: Objects) -> None:
    """Policy Cluster: the node's address is seen; Local: the client's own, and only pods of the node asked answer."""
    assert said(ask(CLIENT, "fd00:172:18::2", 30080)).client.startswith("[fd00:10:244:1::")
    for node, pods in (("2", {"a", "b"}), ("3", {"c"})):
        found = [said(ask(CLIENT, f"fd00:172:18::{node}", 30081)) for _ in range(8)]
        assert {item.pod for item in found} <= pods
        assert {item.client.rpartition(":")[0] for item in found} == {"[2001:db8:113::2]"}
    assert ask(CLIENT, six(objects, "a"), 8080).outcome == "unreachable"  # the fabric knows no pods


def test_a_service_without_endpoints_refuses(objects: Objects) -> None:
    assert ask(pod_netns("a"), six(objects, "nobody")).outcome == "refused"


def test_names(objects: Objects) -> None:
    """AAAA records by the cluster's DNS, asked by libc in a pod."""
    assert getent("a", "web.default.svc.cluster.local") == {six(objects, "web")}
    assert getent("a", "each.default.svc.cluster.local") == {six(objects, name) for name in "abc"}


def getent(pod: str, name: str) -> set[str]:
    words = ("ip", "netns", "exec", pod_netns(pod), "getent", "ahostsv6", name)
    found = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    return {line.split()[0] for line in found}


def test_conntrack_entries_are_read_and_deleted(objects: Objects) -> None:
    address = six(objects, "web")
    assert said(ask(pod_netns("b"), address, 53, "UDP")).pod in "abc"
    entries = [entry for entry in conntrack.read(NODE1) if entry.dst == address]
    ends = {f"[{six(objects, name)}]:53" for name in "abc"}
    assert entries
    assert {entry.answerer for entry in entries} <= ends
    assert all(entry.rewritten for entry in entries)
    assert conntrack.write(NODE1, [Change("delete", NODE1, entry) for entry in entries]) == []
    left: list[Conntrack] = [entry for entry in conntrack.read(NODE1) if entry.dst == address]
    assert left == []


DAMAGE = (
    ("route", "del", "fd00:10:244:2::/64"),
    ("neighbour", "del", "fd00:10:244:2::", "dev", "flannel-v6.1"),
    ("address", "del", "fd00:10:244:1::1/64", "dev", "cni0"),
    ("link", "del", "flannel-v6.1"),
)


@pytest.mark.parametrize("words", DAMAGE, ids=" ".join)
def test_damage_is_seen_and_mended(objects: Objects, words: tuple[str, ...]) -> None:
    want = render(objects)
    subprocess.run(["ip", "-6", "-n", NODE1, *words], check=True)
    assert diff(kernel.observe(NAME), want) != []
    assert kernel.apply(diff(kernel.observe(NAME), want)) == []
    assert diff(kernel.observe(NAME), want) == []
    assert said(ask(pod_netns("a"), six(objects, "c"), 8080)).pod == "c"


def test_a_rule_that_is_gone_is_seen(objects: Objects) -> None:
    """Of ip6tables or the ip6 table, whichever kube-proxy's mode has."""
    want = render(objects)
    if any(value.key[:2] == ("nft", "ip6") for value in want[NODE1]):
        words = ("nft", "flush", "map", "ip6", "kube-proxy", "service-ips")
    else:
        words = ("ip6tables", "-w", "-t", "nat", "-F", "KUBE-SERVICES")
    subprocess.run(["ip", "netns", "exec", NODE1, *words], check=True)
    changes = diff(kernel.observe(NAME), want)
    assert {change.netns for change in changes} == {NODE1}
    assert kernel.apply(changes) == []
    assert diff(kernel.observe(NAME), want) == []


# --- as a user --------------------------------------------------------------------------------------------------------


def nsnet(*words: str, stdin: str = "", code: int = 0) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*NSNET, *words], input=stdin, capture_output=True, text=True, env=env, check=False, timeout=120
    )
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def _no_cluster() -> Iterator[None]:
    yield
    nsnet("down", "--all")


@pytest.mark.usefixtures("_no_cluster")
def test_a_running_cluster_changes_its_families() -> None:
    """`up` verifies each time. Devices made without IPv6 get it, and nothing is left of it when it goes."""
    for subnets in (FOUR, BOTH, FOUR):
        nsnet("up", "-", stdin=Case(subnets, "iptables").text)
        assert "drift       none" in nsnet("status")
    listed = subprocess.run(
        ["ip", "-6", "-n", NODE1, "address", "show", "scope", "global"], capture_output=True, text=True, check=True
    )
    assert listed.stdout == ""
    save = shutil.which("ip6tables-save") or "ip6tables-save"
    rules = subprocess.run(["ip", "netns", "exec", NODE1, save], capture_output=True, text=True, check=True).stdout
    assert "KUBE" not in rules
    assert "FLANNEL" not in rules


@pytest.mark.usefixtures("_no_cluster")
def test_the_example_of_the_topologies() -> None:
    nsnet("up", str(ROOT / "topologies" / "dual-stack.yaml"))
    told = nsnet("trace", "host/client", "[fd00:172:18::2]:30080")
    assert told.count("\nreply: back to host/client from [fd00:172:18::2]:30080, by ") == 2
    assert "fd00:10:96::100" in nsnet("get", "svc/both", "-o", "json")


POLICIES = """
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: b-from-a}
spec:
  podSelector: {matchExpressions: [{key: only, operator: DoesNotExist}]}
  ingress: [{from: [{podSelector: {matchLabels: {only: a}}}], ports: [{port: 8080}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: a-to-web}
spec:
  podSelector: {matchLabels: {only: a}}
  policyTypes: [Egress]
  egress: [{to: [{podSelector: {matchLabels: {app: web}}}, {ipBlock: {cidr: "fd00:203::/64"}}]}]
"""


@pytest.mark.usefixtures("_no_cluster")
@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_policies_hold_in_both_families(mode: str) -> None:
    """Also between pods of one node, which find each other by neighbour discovery: no policy may stop that."""
    nsnet("up", "-", stdin=Case(BOTH, mode).text + POLICIES)
    told = nsnet("policy", "why", "c", "b:8080", code=1)
    assert "b-from-a" in told
