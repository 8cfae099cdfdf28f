"""The way in from outside with real packets: client → balancer → node → pod, and what happens when a node goes.

The controller looks at everything only once an hour here, so that what follows a health check follows from its word.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from math import sqrt
from pathlib import Path

import pytest

from nsnet import names
from nsnet.kernel import netns, tracking
from nsnet.kernel.probe import Answer, Probe, probe
from nsnet.trace.rules import Facts, likelihood, number, parse
from nsnet.trace.values import Packet, Trip
from nsnet.verify import chance
from tests.outside import deaf, until

ROOT = Path(__file__).parents[2]
NSNET = (sys.executable, "-m", "nsnet")
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "NSNET_RESYNC": "3600"}
CLIENT, NEAR = names.host_netns("lb", "client"), names.host_netns("lb", "near")
ROUTER, NODE3 = names.fabric_netns("lb", "router"), names.node_netns("lb", "node3")
WHO = b"GET / HTTP/1.0\r\n\r\n"

CLUSTER = """
apiVersion: nsnet/v1
kind: Cluster
metadata: {name: lb}
nodes: 3
dns: {enabled: false}
hosts: [{name: client, network: outside}, {name: near, network: nodes}]
loadBalancer: {addresses: [198.51.100.10-198.51.100.19, 172.18.0.200/30], mode: %(mode)s, snat: %(snat)s}
"""
POD = """
---
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %s}}
spec: {nodeName: %s, containers: [{name: c, ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}]}]}
"""
SERVICE = """
---
apiVersion: v1
kind: Service
metadata: {name: %s}
spec: {type: LoadBalancer, loadBalancerIP: %s, selector: {app: %s}, ports: [{port: 80}], %s}
"""
PODS = "".join(POD % row for row in (("w1", "web", "node1"), ("w2", "web", "node2"), ("w3", "web", "node3")))
PODS += "".join(POD % row for row in (("t1", "two", "node1"), ("t2", "two", "node1"), ("t3", "two", "node2")))
LOCAL = "externalTrafficPolicy: Local"
SERVICES = "".join(
    SERVICE % row
    for row in (
        ("web", "198.51.100.10", "web", ""),
        ("two", "198.51.100.11", "two", LOCAL),
        ("sticky", "198.51.100.12", "web", "sessionAffinity: ClientIP"),
        ("office", "198.51.100.13", "web", "loadBalancerSourceRanges: [172.18.0.0/16]"),
        ("none", "198.51.100.14", "nobody", ""),
        ("shut", "198.51.100.19", "nobody", "loadBalancerSourceRanges: [203.0.113.0/24]"),
        ("away", "198.51.100.15", "nobody", LOCAL),
        ("inside", "172.18.0.201", "two", LOCAL),
        ("spread", "198.51.100.18", "web", LOCAL),
        ("waits", "192.0.2.1", "web", ""),
    )
)
UDP = """
---
apiVersion: v1
kind: Service
metadata: {name: dns}
spec:
  {type: LoadBalancer, loadBalancerIP: 198.51.100.16, externalTrafficPolicy: Local, selector: {app: web},
   ports: [{port: 53, protocol: UDP}]}
"""


def nsnet(*words: str, stdin: str | None = None, code: int | None = 0) -> str:
    done = subprocess.run(  # noqa: PLW1510 - the exit code is what is looked at
        [*NSNET, *words], input=stdin, capture_output=True, text=True, env=ENV, timeout=120
    )
    assert code is None or done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout


def up(mode: str = "nodeport", snat: str = "false", more: str = "") -> None:
    nsnet("up", "-", "--no-verify", stdin=CLUSTER % {"mode": mode, "snat": snat} + PODS + SERVICES + UDP + more)


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    up()
    yield
    nsnet("down", "--all")


PATIENCE, SILENCE = 6.0, 1.5  # s: for an answer that has to come, on a busy machine too; for one that has not to


def ask(address: str, count: int = 1, where: str = CLIENT, port: int = 80, timeout: float = PATIENCE) -> list[Answer]:
    """Each once: what a second try would find is no matter."""
    return probe([Probe(where, "TCP", address, port, WHO, tries=1)] * count, timeout=timeout)


def said(answer: Answer) -> dict[str, str]:
    found: dict[str, str] = json.loads(answer.body.partition(b"\r\n\r\n")[2])
    return found


def pods(answers: list[Answer]) -> Counter[str]:
    assert {answer.outcome for answer in answers} == {"ok"}
    return Counter(said(answer)["pod"] for answer in answers)


def seen(address: str, where: str = CLIENT) -> set[str]:
    return {said(answer)["client"].rpartition(":")[0] for answer in ask(address, 8, where)}


def outcome(address: str, where: str = CLIENT, port: int = 80, timeout: float = PATIENCE) -> str:
    return ask(address, 1, where, port, timeout)[0].outcome


def service(name: str) -> dict[str, list[str]]:
    """Addresses and nodes as the status has them."""
    status = json.loads(nsnet("get", "svc", name, "-o", "json")).get("status", {})
    conditions = {item["type"]: item for item in status.get("conditions", ())}
    nodes = conditions.get("nsnet/Nodes", {})
    return {
        "addresses": [item["ip"] for item in status.get("loadBalancer", {}).get("ingress", ())],
        "nodes": nodes.get("message", "").split(",") if nodes.get("status") == "True" else [],
    }


# --- shares -----------------------------------------------------------------------------------------------------------


def test_every_pod_gets_its_share() -> None:
    counts = pods(ask("198.51.100.10", 600))
    assert counts.keys() == {"w1", "w2", "w3"}
    assert chance.likelihood(counts.values()) > chance.ERROR_RATE


def test_local_gives_each_node_its_share_and_then_each_pod_of_it() -> None:
    """Half to node2's one pod, a quarter to each of node1's two; within 5 standard deviations."""
    counts = pods(ask("198.51.100.11", 800))
    for pod, share in {"t1": 0.25, "t2": 0.25, "t3": 0.5}.items():
        assert abs(counts[pod] - 800 * share) < 5 * sqrt(800 * share * (1 - share)), counts


def test_a_client_stays_with_its_pod() -> None:
    assert len(pods(ask("198.51.100.12", 30))) == 1


# --- whose address arrives --------------------------------------------------------------------------------------------


def test_under_local_the_client_is_seen_unless_it_is_on_a_segment_with_the_nodes() -> None:
    assert seen("198.51.100.11") == {"203.0.113.2"}
    assert seen("198.51.100.11", NEAR) == seen("172.18.0.201", NEAR) == {"172.18.0.1"}
    assert seen("172.18.0.201") == {"203.0.113.2"}


def test_explain_and_trace_say_whose_address_arrives() -> None:
    """Also of a client on a segment with the nodes, whose source changes whatever `snat` says."""
    page = nsnet("explain", "svc/two")
    for line in (
        "  to node1, node2\n",
        "  not to node3\n        it does not answer its health check\n",
        "  no source NAT\n        nodes see the client; their default route leads the answer back this way\n",
        "  but for clients in 172.18.0.0/16: they get its address\n",
    ):
        assert line in page
    why = "client and node are both in 172.18.0.0/16: the node would answer past the balancer"
    assert why in nsnet("trace", "host/near", "198.51.100.11:80")
    assert why not in nsnet("trace", "host/client", "198.51.100.11:80")
    assert "no address: pending" in nsnet("explain", "svc/waits")


def test_a_pod_and_a_node_are_served_by_their_own_node_from_all_endpoints() -> None:
    assert pods(ask("198.51.100.11", 60, names.pod_netns("lb", "default", "w3"))).keys() == {"t1", "t2", "t3"}
    assert pods(ask("198.51.100.11", 60, NODE3)).keys() == {"t1", "t2", "t3"}


def test_the_balancer_itself_may_ask() -> None:
    assert pods(ask("198.51.100.10", 40, ROUTER)).keys() == {"w1", "w2", "w3"}


# --- who is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "address", "port", "expected"),
    [
        (NEAR, "198.51.100.13", 80, "ok"),
        (CLIENT, "198.51.100.13", 80, "timeout"),
        (CLIENT, "198.51.100.14", 80, "refused"),
        (CLIENT, "198.51.100.15", 80, "refused"),
        (NEAR, "198.51.100.15", 80, "refused"),
        (CLIENT, "198.51.100.10", 81, "refused"),
        (CLIENT, "198.51.100.19", 80, "refused"),
        (NEAR, "198.51.100.19", 80, "timeout"),
        (CLIENT, "198.51.100.20", 80, "unreachable"),
    ],
    ids=[
        "in range",
        "out of range",
        "no endpoint",
        "no node",
        "no node, near",
        "no such port",
        "no endpoint, in range",
        "no endpoint, out of range",
        "nobody has it",
    ],
)
def test_outcomes(where: str, address: str, port: int, expected: str) -> None:
    assert outcome(address, where, port, SILENCE if expected == "timeout" else PATIENCE) == expected


# --- the objects' life ------------------------------------------------------------------------------------------------


def test_an_address_that_is_taken_is_waited_for() -> None:
    late = SERVICE % ("late", "198.51.100.17", "web", "")
    nsnet("apply", "-f", "-", stdin=SERVICE % ("first", "198.51.100.17", "two", "") + late)
    assert pods(ask("198.51.100.17", 30)).keys() == {"t1", "t2", "t3"}
    assert service("late")["addresses"] == []
    assert "taken by Service default/first" in nsnet("events")
    assert "<pending>" in nsnet("get", "svc", "late")
    nsnet("delete", "svc", "first")
    assert service("late")["addresses"] == ["198.51.100.17"]
    assert pods(ask("198.51.100.17", 30)).keys() == {"w1", "w2", "w3"}
    nsnet("apply", "-f", "-", stdin=late.replace("LoadBalancer, loadBalancerIP: 198.51.100.17", "ClusterIP"))
    assert service("late")["addresses"] == []
    assert outcome("198.51.100.17") == "unreachable"
    nsnet("delete", "svc", "late")


# --- health -----------------------------------------------------------------------------------------------------------


class Sender:
    """Asks over UDP from one port, so that conntrack takes it all for one connection."""

    def __init__(self) -> None:
        with netns.inside(CLIENT):
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.settimeout(0.3)
        self.socket.connect(("198.51.100.16", 53))

    def who(self) -> str:
        """Who answers; empty: nobody."""
        self.socket.send(b"hostname\n")
        with contextlib.suppress(OSError):
            return self.socket.recv(99).decode().strip()
        return ""

    def close(self) -> None:
        self.socket.close()


@contextlib.contextmanager
def sender_to(pod: str) -> Iterator[Sender]:
    """One of whom that pod has taken."""
    with contextlib.ExitStack() as stack:
        senders = (stack.enter_context(contextlib.closing(Sender())) for _ in range(200))
        yield next(sender for sender in senders if sender.who() == pod)


def test_a_node_that_dies_is_left_out_and_comes_back() -> None:
    """Connections are lost until two checks have failed, and none from then on. A UDP client moves on with its port."""
    with sender_to("w3") as stuck, deaf(NODE3):
        assert {answer.outcome for answer in ask("198.51.100.18", 60, timeout=SILENCE)} == {"ok", "timeout"}
        assert not stuck.who()
        until(lambda: service("spread")["nodes"] == ["node1", "node2"], "node3 does not answer and is still used")
        until(lambda: stuck.who() in {"w1", "w2"}, "the UDP client is still led to node3")
        assert pods(ask("198.51.100.18", 200)).keys() == {"w1", "w2"}
        assert service("web")["nodes"] == ["node1", "node2"]  # 10256 is deaf, too
    until(lambda: service("spread")["nodes"] == ["node1", "node2", "node3"], "node3 answers and is not used")
    assert pods(ask("198.51.100.18", 200)).keys() == {"w1", "w2", "w3"}


def test_udp_to_a_service_that_went_is_refused() -> None:
    with contextlib.closing(Sender()) as client:
        assert client.who()
        nsnet("delete", "svc", "dns")
        until(lambda: not client.who(), "what conntrack remembers still leads to the pod")
        nsnet("apply", "-f", "-", stdin=UDP)
        until(lambda: client.who() != "", "the address is back and does not answer")


def test_a_pod_that_goes_takes_its_node_along() -> None:
    nsnet("delete", "pod", "t3")
    until(lambda: service("two")["nodes"] == ["node1"], "node2 has no pod and is still used")
    assert pods(ask("198.51.100.11", 60)).keys() == {"t1", "t2"}
    nsnet("apply", "-f", "-", stdin=POD % ("t3", "two", "node2"))
    until(lambda: service("two")["nodes"] == ["node1", "node2"], "node2 has a pod and is not used")
    until(lambda: pods(ask("198.51.100.11", 60)).keys() == {"t1", "t2", "t3"}, "the rules do not know node2's pod")


def test_checks_that_die_are_started_again_and_nothing_is_refused_meanwhile() -> None:
    from nsnet.kernel import process

    def checker() -> int:
        return next((one.pid for one in process.running("lb") if "nsnet.programs.lbhealth" in one.argv), 0)

    first = checker()
    os.kill(first, signal.SIGKILL)
    until(lambda: checker() not in {0, first}, "lbhealth is not started again")
    assert {answer.outcome for answer in ask("198.51.100.18", 60)} == {"ok"}
    assert service("spread")["nodes"] == ["node1", "node2", "node3"]


def test_an_excluded_node_gets_nothing() -> None:
    nsnet("label", "node", "node1", "node.kubernetes.io/exclude-from-external-load-balancers=")
    assert pods(ask("198.51.100.18", 60)).keys() == {"w2", "w3"}
    nsnet("label", "node", "node1", "node.kubernetes.io/exclude-from-external-load-balancers-")
    assert service("spread")["nodes"] == ["node1", "node2", "node3"]


def test_health_ports_answer_on_every_node() -> None:
    port = json.loads(nsnet("get", "svc", "two", "-o", "json"))["spec"]["healthCheckNodePort"]
    for address, count in (("172.18.0.2", 2), ("172.18.0.3", 1), ("172.18.0.4", 0)):
        (answer,) = ask(address, port=port)
        head, _, body = answer.body.partition(b"\r\n\r\n")
        assert head.split(b"\r\n")[0].split()[1] == (b"200" if count else b"503")
        assert b"\r\nX-Load-Balancing-Endpoint-Weight: %d\r\n" % count in head
        assert json.loads(body)["localEndpoints"] == count
        (healthz,) = ask(address, port=10256)  # of no path it knows
        assert healthz.body.startswith(b"HTTP/1.1 404 ")


# --- other ways -------------------------------------------------------------------------------------------------------


def test_snat_shows_the_balancer() -> None:
    up(snat="true")
    assert seen("198.51.100.11") == {"172.18.0.1"}
    up()
    assert seen("198.51.100.11") == {"203.0.113.2"}


def test_mode_vip_routes_to_the_nodes_and_needs_no_node_ports() -> None:
    bare = SERVICE % ("bare", "198.51.100.17", "web", "allocateLoadBalancerNodePorts: false")
    up("nodeport", more=bare)
    assert outcome("198.51.100.17") == "refused"
    up("vip", more=bare)
    _forget()
    assert pods(ask("198.51.100.17", 200)).keys() == {"w1", "w2", "w3"}
    counts = pods(ask("198.51.100.18", 600))
    assert counts.keys() == {"w1", "w2", "w3"}
    assert chance.likelihood(counts.values()) > chance.ERROR_RATE
    assert seen("198.51.100.11") == {"203.0.113.2"}
    assert seen("172.18.0.201", NEAR) == {"172.18.0.5"} == {_address(NEAR)}
    assert outcome("198.51.100.13", timeout=SILENCE) == "timeout"
    assert outcome("198.51.100.14") == "refused"
    assert outcome("198.51.100.15") == "refused"
    rules = subprocess.run(
        ["ip", "netns", "exec", ROUTER, "iptables-save", "-t", "nat"], check=True, capture_output=True, text=True
    )
    assert "DNAT" not in rules.stdout
    nsnet(
        "verify", "--only", "^loadbalancer", "--retry", "2"
    )  # nodes and pods, too, are refused where there is no endpoint
    with deaf(NODE3):
        until(lambda: service("spread")["nodes"] == ["node1", "node2"], "node3 does not answer and is still used")
        until(lambda: "172.18.0.4" not in _route("198.51.100.18"), "the route does not know that node3 does not answer")
        assert pods(ask("198.51.100.18", 100)).keys() == {"w1", "w2"}
    until(lambda: service("spread")["nodes"] == ["node1", "node2", "node3"], "node3 answers and is not used")
    up()
    assert pods(ask("198.51.100.10", 60)).keys() == {"w1", "w2", "w3"}


def _forget() -> None:
    """What never had an answer (of a node that was deaf, say) leads whoever gets its port there, for two minutes."""
    for where in (ROUTER, *(names.node_netns("lb", node) for node in ("node1", "node2", "node3"))):
        tracking.forget(where)


def _route(address: str) -> str:
    """What the status says first is in the kernel a moment later."""
    words = ["ip", "-n", ROUTER, "route", "show", address]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def _address(where: str) -> str:
    with netns.inside(where), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.connect(("172.18.0.1", 9))
        name: str = asking.getsockname()[0]
    return name


def test_verify_agrees() -> None:
    nsnet("verify", "--only", "^loadbalancer", "--retry", "2")  # a busy machine's silence is none of ours


# --- the hash ---------------------------------------------------------------------------------------------------------


def test_the_hash_of_trace_is_the_kernels() -> None:
    """40 clients and 5 parts: the kernel's counters are what `trace` says."""
    rest = "--cluster-total-nodes 5 --cluster-hash-seed 0xdeadbeef"
    parts = [f"-m cluster --cluster-local-nodemask {1 << n:#x} {rest}" for n in range(5)]
    clients = [f"127.0.1.{number}" for number in range(1, 41)]
    wanted = Counter(n for client in clients for n in range(5) if likely(parts[n], client))
    script = "".join(f"-A INPUT -p udp --dport 9 {part} -j ACCEPT\n" for part in parts)
    subprocess.run(["iptables-restore"], input=f"*filter\n{script}COMMIT\n", text=True, check=True)
    for client in clients:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind((client, 0))
            sender.sendto(b"x", ("127.0.0.1", 9))
    listed = subprocess.run(["iptables", "-nvxL", "INPUT"], capture_output=True, text=True, check=True).stdout
    subprocess.run(["iptables", "-F", "INPUT"], check=True)
    found = [int(line.split()[0]) for line in listed.splitlines()[2:]]
    assert found == [wanted[n] for n in range(5)]
    assert sum(found) == 40
    assert len(wanted) == 5


def likely(part: str, client: str) -> bool:
    rule, packet = parse(f"{part} -j ACCEPT"), Packet("udp", "127.0.0.1", 9, client, 1)
    return bool(likelihood(rule, Trip("x", packet), Facts(lambda _: True), number(client), number("127.0.0.1")))
