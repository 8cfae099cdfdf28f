"""Network policies with packets: a change until it is enforced, a new connection through many, a truth table."""

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

Line = tuple[str, str, str, bool]
Doc = dict[str, Any]

SPACES, APPS, PODS, POLICIES = 10, 10, 1000, 200


def pods_of(spaces: int, apps: int, pods: int, nodes: int) -> Iterator[Doc]:
    """That many pods in namespaces and apps; each node has a share of every app."""
    for number in range(pods):
        space, app = number % spaces, number // spaces % apps
        yield {
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": f"p{number}", "namespace": f"s{space}", "labels": {"app": f"a{app}", "pod": f"p{number}"}},  # noqa: E501 - a document is a line
            "spec": {
                "nodeName": f"node{number % nodes + 1}",
                "containers": [{"name": "c", "ports": [{"containerPort": 80, "name": "http"}, {"containerPort": 81}]}],
            },
        }  # fmt: skip


def policy(space: str, name: str, app: str, peers: list[Doc], ports: list[Doc]) -> Doc:
    return {
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": space},
        "spec": {"podSelector": {"matchLabels": {"app": app}}, "ingress": [{"from": peers, "ports": ports}]},
    }  # fmt: skip


def policies_of(spaces: int, apps: int, count: int) -> Iterator[Doc]:
    """Each lets one other app of its namespace in, and one app of the next namespace, on a port by name."""
    for number in range(count):
        space, app = number % spaces, number // spaces % apps
        other = f"a{(app + 1 + number // (spaces * apps)) % apps}"
        peers = [
            {"podSelector": {"matchLabels": {"app": other}}},
            {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": f"s{(space + 1) % spaces}"}},
                "podSelector": {"matchLabels": {"app": other}},
            },
        ]
        yield policy(f"s{space}", f"np{number}", f"a{app}", peers, [{"port": "http"}])


def stream(name: str, nodes: int, mode: str, docs: Iterator[Doc]) -> str:
    head = {
        "apiVersion": "nsnet/v1", "kind": "Cluster", "metadata": {"name": name}, "nodes": nodes,
        "networking": {"kubeProxyMode": mode}, "dns": {"enabled": False},
    }  # fmt: skip
    return "\n---\n".join(json.dumps(doc) for doc in (head, *docs))


def change(nsnet: Callable[..., float], mode: str) -> Iterator[Line]:
    """From the store's write of a pod's labels until what follows from them is in the rules of every node."""
    from nsnet import controller
    from nsnet.kernel import probe
    from nsnet.model import Key, Pod, from_doc, of, to_doc
    from nsnet.store import keys, sqlite
    from nsnet.store.objects import load_objects

    docs = [*pods_of(SPACES, APPS, PODS, 10), *policies_of(SPACES, APPS, POLICIES)]
    spent = nsnet("up", "--no-verify", "-", stdin=stream("many", 10, mode, iter(docs)))
    store = sqlite.open_store("many")
    ips = {pod.metadata.name: pod.status.podIP for pod in of(load_objects(store)[0], Pod)}
    ask = probe.Probe("many.pod.s0.p500", "TCP", ips["p0"], 80, tries=1)  # app a0, which np0 lets a1 into
    taken = []
    for turn in range(10):
        path = keys.path_of(Key("Pod", "s0", "p500"), "v1")
        entry = store.get(path)
        assert entry is not None
        doc = to_doc(keys.decode(path, entry.value))
        doc["metadata"]["labels"]["app"] = "a1" if turn % 2 else "a9"
        start = time.perf_counter()
        revision = store.txn({path: entry.mod_revision}, {path: keys.encode(from_doc(doc))})
        controller.converge("many", revision, timeout=30)
        taken.append(time.perf_counter() - start)
        (answer,) = probe.probe([ask], timeout=0.3)
        assert (answer.outcome == "ok") == bool(turn % 2), (turn, answer)
    middle = statistics.median(taken)
    shown = f"{middle * 1000:.0f} ms (worst {max(taken) * 1000:.0f})"
    yield f"one label, {PODS:,} pods, {POLICIES} policies, {mode}", shown, "< 200 ms", middle < 0.2
    yield f"up with them, {mode}", f"{spent:.1f} s", "-", True
    nsnet("down", "many")


def connection(nsnet: Callable[..., float], mode: str) -> Iterator[Line]:
    """A new connection to a pod that 200 policies select, of which the last one asked lets it in."""
    docs = [*pods_of(1, 2, 2, 2)]
    ports: list[Doc] = [{"port": 80}]
    nobody = [
        policy("s0", f"np{n:03}", "a1", [{"podSelector": {"matchLabels": {"app": "q"}}}], ports) for n in range(199)
    ]
    last = policy("s0", "np999", "a1", [{"podSelector": {"matchLabels": {"app": "a0"}}}], ports)
    nsnet("up", "--no-verify", "-", stdin=stream("path", 2, mode, iter(docs)))
    listed = subprocess.run(
        ["ip", "-n", "path.pod.s0.p1", "-j", "address", "show", "dev", "eth0"],
        check=True,
        capture_output=True,
        text=True,
    )
    address = next(item["local"] for item in json.loads(listed.stdout)[0]["addr_info"] if item["family"] == "inet")
    without, through = [], []
    for _ in range(3):
        without.append(_connect("path.pod.s0.p0", address))
        nsnet("apply", "-f", "-", stdin="\n---\n".join(json.dumps(doc) for doc in (*nobody, last)))
        through.append(_connect("path.pod.s0.p0", address))
        nsnet("delete", "-f", "-", stdin="\n---\n".join(json.dumps(doc) for doc in (*nobody, last)))
    ratio = statistics.median(through) / statistics.median(without)
    shown = f"{statistics.median(through):.0f} / {statistics.median(without):.0f} us = {ratio:.2f}"
    yield f"new connection, through 200 policies / none, {mode}", shown, "<= 1.5", ratio <= 1.5
    nsnet("down", "path")


def _connect(client: str, address: str, count: int = 2000) -> float:
    """Median microseconds of connect()."""
    import socket
    import struct

    from nsnet.kernel import netns

    taken = []
    with netns.inside(client):
        for _ in range(count):
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                start = time.perf_counter()
                sock.connect((address, 80))
                taken.append(time.perf_counter() - start)
    return statistics.median(taken) * 1e6


def table(nsnet: Callable[..., float], mode: str) -> Iterator[Line]:
    """Every ordered pair of 100 pods on two ports; what is blocked is asked once."""
    from nsnet.kernel import probe
    from nsnet.model import Pod, of
    from nsnet.store import sqlite
    from nsnet.store.objects import load_objects

    docs = [*pods_of(5, 4, 100, 10), *policies_of(5, 4, 20)]
    nsnet("up", "--no-verify", "-", stdin=stream("table", 10, mode, iter(docs)))
    pods = of(load_objects(sqlite.open_store("table"))[0], Pod)
    ends = [
        (f"table.pod.{p.metadata.namespace}.{p.metadata.name}", p.status.podIP)
        for p in pods
        if p.metadata.namespace != "kube-system"
    ]
    asked = [
        probe.Probe(start, "TCP", ip, port, tries=1)
        for start, own in ends for _, ip in ends for port in (80, 81) if ip != own
    ]  # fmt: skip
    start = time.perf_counter()
    answers = probe.probe(asked, timeout=0.25, concurrency=8192)
    spent = time.perf_counter() - start
    passed = sum(answer.outcome == "ok" for answer in answers)
    shown = f"{spent:.2f} s ({passed:,} of {len(asked):,} pass)"
    yield f"truth table of 100 pods on 2 ports, {mode}", shown, "< 3 s", spent < 3
    nsnet("down", "table")


def measure(nsnet: Callable[..., float], quiet: Callable[[], None]) -> Iterator[Line]:
    for mode in ("iptables", "nftables"):
        for part in (change, connection, table):
            quiet()
            yield from part(nsnet, mode)
    quiet()
