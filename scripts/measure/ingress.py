"""Ingress: nsnet's HAProxy against one configured by hand for the same route, and how soon a new endpoint is used.

Both proxies stand in the same namespace, log the same line, and ask the same server (a third HAProxy in a pod, which
answers by itself). Rates are requests per second *of the proxy's own processor time*: the machine is shared, and what a
wall clock says of two processes that wake each other differs fivefold from one second to the next.
"""

import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from nsnet import model
from nsnet.kernel import netns
from nsnet.store import Conflict, sqlite
from nsnet.store.objects import load_objects, save_objects

NAME = "bench-http"
HOST, PATH = "app.sample.com", "/path"
DEPTH, ROUNDS, TURNS = 50, 60, 15  # requests of one write, writes of one turn, turns
SERVED, BY_HAND = 9000, 8081

TOPOLOGY = """
apiVersion: nsnet/v1
kind: Cluster
metadata: {name: bench-http}
dns: {enabled: false}
---
apiVersion: v1
kind: Pod
metadata: {name: server}
spec: {nodeName: node1, containers: [{name: c, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {nodeName: node1, containers: [{name: c, ports: [{containerPort: 80}]}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: app}
spec:
  rules:
  - host: app.sample.com
    http:
      paths:
      - {path: /path, pathType: Prefix, backend: {service: {name: app, port: {number: 80}}}}
      - {path: /late, pathType: Prefix, backend: {service: {name: late, port: {number: 80}}}}
  - host: app.complex.com
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: app, port: {number: 80}}}}]}
---
apiVersion: v1
kind: Service
metadata: {name: app}
spec: {ports: [{port: 80, targetPort: 9000}]}
---
apiVersion: v1
kind: Service
metadata: {name: late}
spec: {ports: [{port: 80, targetPort: 9000}]}
"""
SERVER = """
global
    nbthread 1
    maxconn 1000
defaults
    mode http
    timeout client 60s
frontend all
    bind :9000
    http-request return status 200 content-type text/plain string "hello"
"""
MANUAL = """
global
    nbthread 1
    maxconn 4000
    log stdout format raw local0 info
defaults
    mode http
    log global
    option httplog
    timeout connect 2s
    timeout client 60s
    timeout server 60s
frontend all
    bind :8081
    http-request set-header X-Forwarded-For %[src]
    http-request set-header X-Forwarded-Proto http
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    http-request set-header X-Forwarded-Port 80
    acl below path /path
    acl below path_beg /path/
    use_backend app if { req.hdr(host),host_only,lower app.sample.com } below
    use_backend app if { req.hdr(host),host_only,lower app.complex.com }
backend app
    server one ADDRESS:9000
"""


def endpoint_slice(service: str, address: str) -> model.EndpointSlice:
    meta = model.ObjectMeta(name=f"{service}-1", namespace="default", labels={"kubernetes.io/service-name": service})
    endpoints = (model.Endpoint((address,)),) if address else ()
    return model.EndpointSlice(meta, endpoints=endpoints, ports=(model.EndpointPort(SERVED, "", "TCP"),))


def write(*slices: model.EndpointSlice) -> None:
    """Puts them in the store, which wakes the controller; again where that has just written them itself."""
    with sqlite.open_store(NAME) as store:
        while True:
            objects, revision = load_objects(store)
            try:
                save_objects(store, objects, {**objects, **{model.key_of(item): item for item in slices}}, revision)
            except Conflict:
                continue
            return


def addresses() -> dict[str, str]:
    """Pod → address; the proxy's is `ingress`."""
    with sqlite.open_store(NAME) as store:
        pods = model.of(load_objects(store)[0], model.Pod)
    return {"ingress" if model.runs_proxy(pod) else pod.metadata.name: pod.status.podIP for pod in pods}


def proxy_netns() -> str:
    with sqlite.open_store(NAME) as store:
        found = next(pod for pod in model.of(load_objects(store)[0], model.Pod) if model.runs_proxy(pod))
    return f"{NAME}.pod.ingress-nsnet.{found.metadata.name}"


class Asking:
    """A connection that stays, from the client's pod."""

    def __init__(self, address: str, port: int) -> None:
        with netns.inside(f"{NAME}.pod.default.client"):
            self.sock = socket.create_connection((address, port), timeout=10)

    def turn(self) -> None:
        """Some thousand requests."""
        batch = f"GET {PATH} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode() * DEPTH
        for _ in range(ROUNDS):
            self.sock.sendall(batch)
            self._await(DEPTH)

    def _await(self, count: int) -> None:
        seen, rest = 0, b""
        while seen < count:
            data = self.sock.recv(1 << 18)
            if not data:
                raise ConnectionError("the proxy hung up")
            rest += data
            seen += rest.count(b"hello")
            rest = rest[-4:]

    def status(self, path: str) -> int:
        self.sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        data = self.sock.recv(1 << 16)
        return int(data[9:12])


def haproxy(where: str, directory: Path, name: str, text: str) -> subprocess.Popen[bytes]:
    """In the foreground inside a namespace; its log goes to a file, as that of nsnet's does."""
    config = directory / f"{name}.cfg"
    config.write_text(text)
    with netns.inside(where), (directory / f"{name}.log").open("ab") as log:
        return subprocess.Popen(["haproxy", "-db", "-f", str(config)], stdout=log, stderr=log)


def listens(where: str, address: str, port: int) -> None:
    """Waits until it does."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            with netns.inside(where):
                socket.create_connection((address, port), timeout=1).close()
        except OSError:
            time.sleep(0.01)
        else:
            return
    raise TimeoutError(f"nobody listens at {address}:{port}")


def cost(config: str) -> float:
    """Seconds of processor time that HAProxy with this configuration has had (schedstat counts nanoseconds)."""
    total = 0
    for entry in Path("/proc").glob("[0-9]*"):
        if config.encode() in (entry / "cmdline").read_bytes() and (entry / "comm").read_text() == "haproxy\n":
            total += sum(int((task / "schedstat").read_text().split()[0]) for task in entry.glob("task/*"))
    return total / 1e9


def throughput(known: dict[str, str], by_hand: str, ours: str) -> tuple[float, float, float]:
    """Requests per second of processor time, by hand and through the Ingress, and the ratio of two turns: medians.

    What else the machine does hits both turns of a pair alike.
    """
    ways = [(Asking(known["ingress"], BY_HAND), by_hand), (Asking(known["ingress"], 80), ours)]
    rates: list[list[float]] = [[], []]
    for _ in range(TURNS):
        for number, (asking, config) in enumerate(ways):
            before = cost(config)
            asking.turn()
            rates[number].append(DEPTH * ROUNDS / (cost(config) - before))
    ratio = statistics.median(one / other for other, one in zip(*rates, strict=True))
    return statistics.median(rates[0]), statistics.median(rates[1]), ratio


def serves(known: dict[str, str]) -> None:
    """Waits until the Ingress leads somewhere."""
    asking = Asking(known["ingress"], 80)
    while asking.status(PATH) != 200:
        time.sleep(0.01)


def first_request(known: dict[str, str]) -> list[float]:
    """Seconds from an endpoint in the store to the first request that it answers."""
    asking = Asking(known["ingress"], 80)
    taken = []
    for _ in range(5):
        write(endpoint_slice("late", ""))
        while _settled(asking) != 503:
            time.sleep(0.005)
        start = time.perf_counter()
        write(endpoint_slice("late", known["server"]))
        while _settled(asking) != 200:
            time.sleep(0.002)
        taken.append(time.perf_counter() - start)
    return taken


def _settled(asking: Asking) -> int:
    try:
        return asking.status("/late")
    except (OSError, ValueError):
        again = Asking(asking.sock.getpeername()[0], 80)
        asking.sock.close()
        asking.sock = again.sock
        return 0


def figures() -> Iterator[tuple[str, str, str, bool]]:
    """The lines of the benchmark; the cluster is up."""
    known = addresses()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        running = [
            haproxy(f"{NAME}.pod.default.server", directory, "server", SERVER),
            haproxy(proxy_netns(), directory, "by-hand", MANUAL.replace("ADDRESS", known["server"])),
        ]
        try:
            listens(f"{NAME}.pod.default.client", known["server"], SERVED)
            listens(f"{NAME}.pod.default.client", known["ingress"], BY_HAND)
            write(endpoint_slice("app", known["server"]), endpoint_slice("late", ""))
            serves(known)
            own = f"/run/nsnet/{NAME}/{proxy_netns().partition('.')[2]}/haproxy.cfg"
            by_hand, ours, ratio = throughput(known, str(directory / "by-hand.cfg"), own)
            late = first_request(known)
        finally:
            for process in running:
                process.kill()
                process.wait()
    yield (
        "Ingress / HAProxy configured by hand",
        f"{ours:,.0f} / {by_hand:,.0f} per cpu-s = {ratio:.2f}",
        ">= 0.95",
        ratio >= 0.95,
    )
    middle = statistics.median(late)
    yield (
        "a changed endpoint serves its first request",
        f"{middle:.3f} s (worst {max(late):.3f})",
        "< 0.3 s",
        middle < 0.3,
    )
