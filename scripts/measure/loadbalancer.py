"""What the balancer costs: client → balancer → node → pod against the same way without it.

The direct way takes the same hops: the router gets a route to the pod's subnet by its node, which no router outside a
real cluster has. The controller would take it away, so it is halted meanwhile. externalTrafficPolicy Local keeps the
balanced way on that node, and the client's address as it is on the direct one.
"""

import contextlib
import os
import signal
import statistics
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import datapath

ADDRESS, POD = "198.51.100.10", "10.244.1.2"
CLIENT, SERVER, ROUTER = "balanced.host.client", "balanced.pod.default.web", "balanced.fabric.router"
PORTS = (80, 5298, 5299)  # of the pod server, of round trips, of iperf3
TOPOLOGY = f"""
apiVersion: nsnet/v1
kind: Cluster
metadata: {{name: balanced}}
nodes: 3
dns: {{enabled: false}}
loadBalancer: {{addresses: [{ADDRESS}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: web, labels: {{app: web}}}}
spec: {{nodeName: node1, containers: [{{name: c, ports: [{{containerPort: 80}}]}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  selector: {{app: web}}
  ports: [{", ".join(f"{{name: p{port}, port: {port}, targetPort: {port}}}" for port in PORTS)}]
"""

Ratio = tuple[str, float, str, bool]  # what, balanced / direct, bound, does it hold


def ratios(rounds: int = 9) -> Iterator[Ratio]:
    """Of a cluster that is up with TOPOLOGY."""
    route = ("ip", "-n", ROUTER, "route", "add", "10.244.1.0/24", "via", "172.18.0.2")
    with _halted("nsnet.controller"):
        subprocess.run(route, check=True)
        speed = _in_turns(lambda address: datapath.throughput(CLIENT, SERVER, address, seconds=1), rounds)
        trip = _in_turns(lambda address: datapath.round_trip(CLIENT, SERVER, address, count=10_000), rounds)
        first = _in_turns(_connection, rounds)
    yield "TCP client → LB → pod / client → pod", speed, ">= 0.95", speed >= 0.95
    yield "1-byte round trip, the same", trip, "<= 1.05", trip <= 1.05
    yield "new connection with its answer, the same", first, "-", True


def _in_turns(measure: Callable[[str], float], rounds: int) -> float:
    """The median of the ratios of pairs: what runs side by side on a shared machine hits both of a pair alike."""
    ratios = []
    for number in range(rounds):
        pair = {address: measure(address) for address in ((ADDRESS, POD) if number % 2 else (POD, ADDRESS))}
        ratios.append(pair[ADDRESS] / pair[POD])
    return statistics.median(ratios)


def _connection(address: str) -> float:
    """Median seconds from connect to the answer of a hundred, one after the other."""
    from nsnet.kernel.probe import Probe, probe

    asked = Probe(CLIENT, "TCP", address, 80, b"GET /hostname HTTP/1.0\r\n\r\n")
    return statistics.median(answer.seconds for answer in probe([asked] * 100, concurrency=1))


@contextlib.contextmanager
def _halted(module: str) -> Iterator[None]:
    """While this lasts, the processes of the module do nothing."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _runs(entry, module)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def _runs(entry: Path, module: str) -> bool:
    try:
        return module.encode() in (entry / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
