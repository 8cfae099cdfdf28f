"""`scripts/bench`: what nsnet promises about speed, each as a ratio measured in one run on this machine.

Runs inside scripts/sandbox. Each line: what, value, the bound it is held to, and whether it holds. Nothing here fails
a test: the machine is shared and noisy, so a person reads the ratios. Words on the command line choose measurements.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import agree
import datapath
import faults
import floor
import ingress
import loadbalancer
import lookups
import msgspec
import policy_kernel
import see
import services
import stores

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
NSNET = (sys.executable, "-m", "nsnet")
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}

INSIDE = ("ip", "netns", "exec")

Line = tuple[str, str, str, bool]
Way = tuple[str, str, str]  # client's namespace, server's namespace, server's address


def nsnet(*words: str, stdin: str | None = None) -> float:
    """Seconds of one verb, whole process; an exit code other than 0 ends the benchmark with what it printed."""
    start = time.perf_counter()
    done = subprocess.run([*NSNET, *words], input=stdin, text=True, capture_output=True, env=ENV, check=False)
    spent = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"nsnet {' '.join(words)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return spent


def cluster(name: str, nodes: int, pods: int, services: int = 0) -> str:
    """A topology: one Deployment of `pods` pods over `nodes` nodes, and Services with hand-written slices."""
    docs: list[dict[str, object]] = [
        {"apiVersion": "nsnet/v1", "kind": "Cluster", "metadata": {"name": name}, "nodes": nodes},
        {
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
            "spec": {
                "replicas": pods, "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "web", "ports": [{"containerPort": 80}]}]},
                },
            },
        },
    ]  # fmt: skip
    for number in range(services):
        docs += [service(number), endpoint_slice(number)]
    return "\n---\n".join(json.dumps(doc) for doc in docs)


def service(number: int) -> dict[str, object]:
    ports = [{"name": "http", "port": 80, "targetPort": 8080}]
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": f"svc-{number}"}, "spec": {"ports": ports}}


def endpoint_slice(number: int, last: int = 5) -> dict[str, object]:
    addresses = [f"10.244.{128 + number // 200}.{number % 200 + 1}"]
    addresses += [f"10.244.{net}.{number % 250 + 1}" for net in (200, 201, 202, 210 + last)]
    endpoints = [{"addresses": [address], "conditions": {"ready": True}} for address in addresses]
    return {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": f"svc-{number}-a", "labels": {"kubernetes.io/service-name": f"svc-{number}"}},
        "endpoints": endpoints, "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }  # fmt: skip


def quiet() -> None:
    """Waits until the kernel has cleared up after the last run: building meanwhile is 3-8 times slower."""
    last, same, end = -1, 0, time.monotonic() + 60
    while same < 5 and time.monotonic() < end:
        now = _kernel_objects()
        same, last = (same + 1 if now == last else 0), now
        time.sleep(0.2)


def _kernel_objects() -> int:
    """Live network namespaces, as the slab allocator counts them."""
    for line in Path("/proc/slabinfo").read_text().splitlines():
        if line.startswith("net_namespace"):
            return int(line.split()[1])
    return 0


def measure_up() -> Iterator[Line]:
    floors, ups, downs = [], [], []
    for _ in range(3):
        quiet()
        out = subprocess.run([sys.executable, floor.__file__, "10", "100"], check=True, capture_output=True, text=True)
        floors.append(float(out.stdout.split()[-1]))
        quiet()
        ups.append(nsnet("up", "--no-verify", "-", stdin=cluster("thousand", 10, 1000)))
        downs.append(nsnet("down", "thousand"))
    base, up = statistics.median(floors), statistics.median(ups)
    yield "up 1,000 pods / bare kernel work", f"{up:.2f} s / {base:.2f} s = {up / base:.2f}", "<= 3", up / base <= 3
    yield "Mininet's 1,000 hosts (42.7 s, FLOOR.md) / up", f"{42.7 / up:.1f}", ">= 10", 42.7 / up >= 10
    down = statistics.median(downs)
    yield "down of 1,000 pods, every link gone", f"{down:.2f} s (worst {max(downs):.2f})", "< 3 s", down < 3
    quiet()
    hundred = statistics.median(_up_down("hundred", 10, 100) for _ in range(3))
    yield "Mininet's 100 hosts (3.5 s, FLOOR.md) / up", f"{hundred:.2f} s: {3.5 / hundred:.1f}", "-", True


def _up_down(name: str, nodes: int, pods: int) -> float:
    spent = nsnet("up", "--no-verify", "-", stdin=cluster(name, nodes, pods))
    nsnet("down", name)
    quiet()
    return spent


def listed_pods(namespace: str = "default") -> list[dict[str, Any]]:
    """The pods of the one cluster that is up, as documents."""
    words = [*NSNET, "get", "po", "-n", namespace, "-o", "json"]
    listed = subprocess.run(words, check=True, capture_output=True, text=True, env=ENV)
    return list(json.loads(listed.stdout)["items"])


def measure_pairs() -> Iterator[Line]:
    from nsnet.kernel import probe

    for nodes, pods in ((3, 30), (10, 100)):
        nsnet("up", "--no-verify", "-", stdin=cluster("pairs", nodes, pods))
        listed = subprocess.run(
            [*NSNET, "get", "po", "-o", "json"], check=True, capture_output=True, text=True, env=ENV
        )
        ends = [
            (f"pairs.pod.default.{item['metadata']['name']}", item["status"]["podIP"])
            for item in json.loads(listed.stdout)["items"]
        ]
        for protocol, port, bound in (("ICMP", 0, 25_000), ("TCP", 80, 5_000)):
            wanted = [
                probe.Probe(source, protocol, address, port)
                for source, own in ends for _, address in ends if address != own
            ]  # fmt: skip
            start = time.perf_counter()
            answers = probe.probe(wanted)
            rate = len(wanted) / (time.perf_counter() - start)
            good = sum(answer.outcome == "ok" for answer in answers)
            yield (
                f"{protocol} all pairs of {pods} pods ({good} of {len(wanted)} answered)",
                f"{rate:,.0f} /s", f">= {bound:,}", rate >= bound and good == len(wanted),
            )  # fmt: skip
        nsnet("down", "pairs")
        quiet()


def measure_change() -> Iterator[Line]:
    """From the store's write of one EndpointSlice to the rule in the node."""
    from nsnet import controller
    from nsnet.model import Key, from_doc
    from nsnet.store import keys, sqlite

    nsnet("up", "--no-verify", "-", stdin=cluster("change", 1, 1, services=1000))
    taken = []
    store = sqlite.open_store("change")
    for turn in range(10):
        number = 100 + turn
        path = keys.path_of(Key("EndpointSlice", "default", f"svc-{number}-a"), "discovery.k8s.io/v1")
        entry = store.get(path)
        assert entry is not None
        new = from_doc(endpoint_slice(number, last=6) | {"metadata": json.loads(entry.value)["metadata"]})
        start = time.perf_counter()
        revision = store.txn({path: entry.mod_revision}, {path: keys.encode(new)})
        controller.converge("change", revision, timeout=30)
        taken.append(time.perf_counter() - start)
        saved = subprocess.run(
            ["ip", "netns", "exec", "change.node.node1", "iptables-save", "-t", "nat"],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        assert f"10.244.216.{number % 250 + 1}:8080" in saved
    middle = statistics.median(taken)
    spread = f"{middle * 1000:.0f} ms (worst {max(taken) * 1000:.0f})"
    yield "one endpoint at 1,000 Services, in the rules", spread, "< 80-180 ms (kube-proxy)", middle < 0.08
    nsnet("down", "change")
    quiet()


def measure_datapath() -> Iterator[Line]:
    """The same links by hand, with the very rules of nsnet's nodes; and once without any, for their price."""
    nsnet("up", "--no-verify", "-", stdin=cluster("path", 2, 2))
    floor.build(2, 1)
    for node in ("floor.node0", "floor.node1"):
        subprocess.run([*INSIDE, node, "sysctl", "-qw", "net.ipv4.ip_forward=1"], check=True)
    pods = sorted(listed_pods(), key=lambda pod: str(pod["spec"]["nodeName"]))
    ours = [f"path.pod.default.{pod['metadata']['name']}" for pod in pods]
    by_hand = ("floor.pod0.0", "floor.pod1.0", "10.244.1.2")
    nsnets = (ours[0], ours[1], pods[1]["status"]["podIP"])
    bare, _ = _compared(nsnets, by_hand, rounds=5)
    for number in (0, 1):
        saved = subprocess.run(
            [*INSIDE, f"path.node.node{number + 1}", "iptables-save"], check=True, capture_output=True, text=True
        ).stdout
        subprocess.run([*INSIDE, f"floor.node{number}", "iptables-restore"], input=saved, text=True, check=True)
    rate, trip = _compared(nsnets, by_hand, rounds=9)
    yield "TCP over VXLAN / the same by hand", f"{rate:.3f}", ">= 0.97", rate >= 0.97
    yield "1-byte round trip / the same by hand", f"{trip:.3f}", "<= 1.03", trip <= 1.03
    yield "TCP over VXLAN / by hand without any rules", f"{bare:.3f}", "-", True
    nsnet("down", "path")
    floor.destroy()
    quiet()


def _compared(ours: Way, by_hand: Way, rounds: int) -> tuple[float, float]:
    """Throughput and round trip of ours as shares of the other's: medians of runs that take turns."""
    speed: dict[Way, list[float]] = {ours: [], by_hand: []}
    trips: dict[Way, list[float]] = {ours: [], by_hand: []}
    for number in range(rounds):
        for way in (ours, by_hand) if number % 2 else (by_hand, ours):
            speed[way].append(datapath.throughput(*way, seconds=1))
            trips[way].append(datapath.round_trip(*way, count=10_000))
    middle = statistics.median
    return middle(speed[ours]) / middle(speed[by_hand]), middle(trips[ours]) / middle(trips[by_hand])


def measure_loadbalancer() -> Iterator[Line]:
    """The way in from outside against the same way without the balancer."""
    nsnet("up", "--no-verify", "-", stdin=loadbalancer.TOPOLOGY)
    for what, value, bound, holds in loadbalancer.ratios():
        yield what, f"{value:.3f}", bound, holds
    nsnet("down", "balanced")
    quiet()


def measure_processes() -> Iterator[Line]:
    memory = {}
    for pods in (100, 1000):
        nsnet("up", "--no-verify", "-", stdin=cluster("size", 10, pods))
        memory[pods] = [size for pid in _ours() if (size := _proportional(pid))]
        nsnet("down", "size")
        quiet()
    few, many = memory[100], memory[1000]
    per_pod = (sum(many) - sum(few)) / 900
    yield "user memory per further pod", f"{per_pod:.0f} KB", "< 100 KB", per_pod < 100
    yield "Python processes at 100 pods, at 1,000", f"{len(few)}, {len(many)}", "the same", len(few) == len(many)


def _ours() -> Iterator[int]:
    """The processes of nsnet's own modules."""
    for entry in Path("/proc").glob("[0-9]*"):
        words = (entry / "cmdline").read_bytes().split(b"\0")
        if any(word.startswith(b"nsnet.") for word in words) and int(entry.name) != os.getpid():
            yield int(entry.name)


def _controllers_memory() -> int:
    """Proportional set size of the one controller that runs, in KB; its supervisor is not counted."""
    for pid in _ours():
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"nsnet.controller" in words and b"--supervise" not in words:
            return _proportional(pid)
    return 0


def _proportional(pid: int) -> int:
    """Proportional set size in KB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def measure_dns() -> Iterator[Line]:
    """A cluster of 10,000 Services: a change until its record is served, and how many questions a core answers."""
    from nsnet.kernel import netns

    many = "\n---\n".join(json.dumps(service(number)) for number in range(10_000))
    nsnet("up", "--no-verify", "-", stdin=cluster("names", 1, 1) + "\n---\n" + many)
    replica = next(pod for pod in listed_pods("kube-system") if pod["metadata"]["name"].startswith("kube-dns"))
    place, address = f"names.pod.kube-system.{replica['metadata']['name']}", replica["status"]["podIP"]
    with netns.inside(place):
        front, back = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    front.connect((address, 53))
    back.connect((address, 10053))
    server = _serving("nsnet.programs.kubedns", place)
    used = lookups.processor_time(server)
    taken = [_seen(front, number) for number in range(100, 107)]
    each = (lookups.processor_time(server) - used) / len(taken)
    middle = statistics.median(taken)
    spread = f"{middle * 1000:.0f} ms (worst {max(taken) * 1000:.0f})"
    yield "10,000 Services: from the store's write to the record", spread, "< 200 ms", middle < 0.2
    yield "of that kubedns, in its own processor time", f"{each * 1000:.0f} ms", "< 100 ms", each < 0.1
    names = [_name(number) for number in range(200, 700)]
    for what, sock in (("nsnet.programs.kubedns", back), ("dnsmasq", front)):
        pid = _serving(what, place)
        lookups.rate(sock, names, 0.5, pid)  # fills the cache
        clock, core = lookups.rate(sock, names, 3, pid)
        figures = f"{core:,.0f} /s ({clock:,.0f} to one client)"
        yield f"{what.rpartition('.')[2]}: cached answers per core", figures, ">= 15,000", core >= 15_000
    size = _resident(server)
    yield "resident memory of kubedns at 10,000 Services", f"{size:.0f} MB", "< 150 MB", size < 150
    nsnet("down", "names")
    quiet()


def _name(number: int) -> str:
    return f"svc-{number}.default.svc.cluster.local"


def _seen(sock: socket.socket, number: int) -> float:
    """Gives the Service a free address; seconds from the store's write to the answer that has it."""
    from nsnet import controller
    from nsnet.model import Key, Service
    from nsnet.store import keys, sqlite

    store, path = sqlite.open_store("names"), keys.path_of(Key("Service", "default", f"svc-{number}"))
    entry = store.get(path)
    assert entry is not None
    old, address = keys.decode(path, entry.value), f"10.96.0.{number - 80}"
    assert isinstance(old, Service)
    spec = msgspec.structs.replace(old.spec, clusterIP=address, clusterIPs=(address,))
    new = {path: keys.encode(msgspec.structs.replace(old, spec=spec))}
    spent = lookups.seen(sock, _name(number), address, lambda: store.txn({path: entry.mod_revision}, new))
    controller.converge("names", store.revision(), timeout=30)
    return spent


def _serving(word: str, netns: str) -> int:
    """The program with that word in its argv that was started for the namespace."""
    home = f"NSNET_NETNS={netns}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        words = (entry / "cmdline").read_bytes().split(b"\0")
        if word.encode() in words and home in (entry / "environ").read_bytes().split(b"\0"):
            return int(entry.name)
    raise LookupError(word)


def _resident(pid: int) -> float:
    """VmRSS in MB."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]) / 1024


def measure_ingress() -> Iterator[Line]:
    quiet()
    nsnet("up", "--no-verify", "-", stdin=ingress.TOPOLOGY)
    try:
        yield from ingress.figures()
    finally:
        nsnet("down", ingress.NAME)


def measure_help() -> Iterator[Line]:
    nsnet("--help")
    spent = statistics.median(nsnet("--help") for _ in range(10))
    yield "nsnet --help", f"{spent * 1000:.0f} ms", "< 150 ms", spent < 0.15


def measure_see() -> Iterator[Line]:
    """1,000 pods on 10 nodes, 1,000 Services with rules, and one Service of five of the pods."""
    few = {"app": "few"}
    docs = [
        {
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "few"},
            "spec": {
                "replicas": 5, "selector": {"matchLabels": few},
                "template": {"metadata": {"labels": few},
                             "spec": {"containers": [{"name": "web", "ports": [{"containerPort": 80}]}]}},
            },
        },
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
         "spec": {"selector": few, "ports": [{"port": 80}]}},
    ]  # fmt: skip
    topology = "\n---\n".join([cluster("see", 10, 995, services=1000), *map(json.dumps, docs)])
    yield from see.measure(nsnet, topology, "see", "web-")
    quiet()


def measure_labs() -> Iterator[Line]:
    """As a student has it: whole processes."""
    nsnet("lab", "start", "mtu-black-hole")
    reset = statistics.median(nsnet("lab", "reset") for _ in range(5))
    yield "nsnet lab reset", f"{reset:.2f} s", "< 1 s", reset < 1
    start = nsnet("lab", "start", "ip-forward")
    yield "nsnet lab start, in the place of another", f"{start:.2f} s", "< 3 s", start < 3
    nsnet("lab", "stop")


def measure_policy() -> Iterator[Line]:
    from policy_decide import measure

    yield from measure()
    yield from policy_kernel.measure(nsnet, quiet)


def measure_services() -> Iterator[Line]:
    yield from services.measure(services.Tools(nsnet, service, endpoint_slice, _controllers_memory, quiet))


MEASUREMENTS: dict[str, Callable[[], Iterator[Line]]] = {
    "help": measure_help,
    "up": measure_up,
    "pairs": measure_pairs,
    "change": measure_change,
    "services": measure_services,
    "datapath": measure_datapath,
    "loadbalancer": measure_loadbalancer,
    "processes": measure_processes,
    "policy": measure_policy,
    "dns": measure_dns,
    "ingress": measure_ingress,
    "see": measure_see,
    "labs": measure_labs,
    "faults": faults.measure,
    "agree": lambda: agree.measure(nsnet),
    "stores": stores.lines,
}


def main(words: list[str]) -> None:
    unknown = [word for word in words if word not in MEASUREMENTS]
    if unknown:
        sys.exit(f"error: no measurement {unknown[0]!r}\nhint: {', '.join(MEASUREMENTS)}")
    for name, measurement in MEASUREMENTS.items():
        if not words or name in words:
            for what, value, bound, holds in measurement():
                print(f"{'ok  ' if holds else 'MISS'}  {what:<58} {value:<32} {bound}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
