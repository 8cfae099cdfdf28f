"""What many Services cost: the first load, one changed EndpointSlice, a new connection to the last of them, memory.

Each mode on one node, Services of five endpoints each as in facts/FLOOR.md, where real kube-proxy's figures stand. Two
pods answer: the Services that are measured have one of them as their endpoint, all others have addresses of nobody.
"""

import json
import os
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

NAME = "many"
NODE = f"{NAME}.node.node1"
CLIENT = f"{NAME}.pod.default.client"
PODS = {"one": "10.244.1.11", "two": "10.244.1.12"}
TURNS = 20
BUDGET = {1000: 0.060, 5000: 0.200}

Line = tuple[str, str, str, bool]


class Tools(NamedTuple):
    """What every measurement of this folder uses."""

    nsnet: Callable[..., float]
    service: Callable[[int], dict[str, Any]]
    endpoint_slice: Callable[[int], dict[str, Any]]
    memory: Callable[[], int]  # of the controller, in KB
    quiet: Callable[[], None]


def measure(tools: Tools) -> Iterator[Line]:
    for mode in ("iptables", "nftables"):
        for services in (1000, 5000):
            tools.nsnet("up", "--no-verify", "-", stdin=topology(tools, mode, services))
            try:
                yield from _change(mode, services)
                if services == 5000:
                    yield from _burst(mode)
                    yield from _latency(mode, services)
                    size = tools.memory() / 1000
                    yield f"{mode}: the controller at 5,000 Services", f"{size:.0f} MB", "< 250 MB", size < 250
                    yield from _first(mode)
            finally:
                tools.nsnet("down", NAME)
                tools.quiet()


def topology(tools: Tools, mode: str, services: int) -> str:
    docs: list[dict[str, Any]] = [
        {
            "apiVersion": "nsnet/v1", "kind": "Cluster", "metadata": {"name": NAME}, "nodes": 1,
            "networking": {"kubeProxyMode": mode},
        },
        *(_pod(name, address) for name, address in {**PODS, "client": "10.244.1.10"}.items()),
    ]  # fmt: skip
    for number in range(services):
        docs += [tools.service(number), tools.endpoint_slice(number)]
        if number >= services - TURNS - 50:
            docs[-1] = slice_of(docs[-1], "one")
    return "\n---\n".join(json.dumps(doc) for doc in docs)


def _pod(name: str, address: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "annotations": {"nsnet/ip": address}},
        "spec": {"nodeName": "node1", "containers": [{"name": "c", "ports": [{"containerPort": 8080}]}]},
    }  # fmt: skip


def slice_of(doc: dict[str, Any], pod: str) -> dict[str, Any]:
    return doc | {"endpoints": [{"addresses": [PODS[pod]], "conditions": {"ready": True}}]}


# --- one change -------------------------------------------------------------------------------------------------------


class _Store:
    """The cluster's store, for one slice after the other."""

    def __init__(self) -> None:
        from nsnet.store import sqlite

        self.store = sqlite.open_store(NAME)

    def write(self, numbers: list[int], pod: str) -> int:
        """One transaction; its revision."""
        from nsnet.model import Key, from_doc
        from nsnet.store import keys

        seen, values = {}, {}
        for number in numbers:
            path = keys.path_of(Key("EndpointSlice", "default", f"svc-{number}-a"), "discovery.k8s.io/v1")
            entry = self.store.get(path)
            assert entry is not None
            seen[path] = entry.mod_revision
            values[path] = keys.encode(from_doc(slice_of(json.loads(entry.value), pod)))
        return self.store.txn(seen, values)


def address_of(number: int) -> str:
    from nsnet.model import Key
    from nsnet.store import keys, sqlite

    entry = sqlite.open_store(NAME).get(keys.path_of(Key("Service", "default", f"svc-{number}"), "v1"))
    assert entry is not None
    return str(json.loads(entry.value)["spec"]["clusterIP"])


def asked(address: str) -> str:
    """Who answers a new connection from the client's namespace (this thread must be in it)."""
    with socket.socket() as client:
        client.settimeout(2)
        client.connect((address, 80))
        client.sendall(b"GET /hostname HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        said = b""
        while data := client.recv(4096):
            said += data
    return said.rpartition(b"\r\n")[2].decode()


def _change(mode: str, services: int) -> Iterator[Line]:
    """From the store's write to the first new connection that the new endpoint answers, and no earlier."""
    from nsnet import controller
    from nsnet.kernel import netns

    store, taken, tool = _Store(), [], []
    busy = _processor()
    for turn in range(TURNS):
        number = services - TURNS + turn
        address = address_of(number)
        with netns.inside(CLIENT):
            assert asked(address) == "one"
        start = time.perf_counter()
        revision = store.write([number], "two")
        with netns.inside(CLIENT):
            while asked(address) != "two":
                assert time.perf_counter() - start < 30
        taken.append(time.perf_counter() - start)
        controller.converge(NAME, revision, timeout=30)  # it looks once more whether all is as it should be
        if mode == "iptables":
            _timed(tool, ["iptables-restore", "--noflush"], _chain_of(number))
    busy = (_processor() - busy) / TURNS
    middle, bound = statistics.median(taken), BUDGET[services]
    beside = f"iptables-restore of its chain alone {statistics.median(tool) * 1000:.0f}; " if tool else ""
    beside += f"the controller computes {busy * 1000:.0f}"
    yield (
        f"{mode}: one slice of {services:,} Services changed → answered by the new pod",
        f"{middle * 1000:.0f} ms (best {min(taken) * 1000:.0f}, worst {max(taken) * 1000:.0f}; {beside})",
        f"< {bound * 1000:.0f} ms",
        middle < bound,
    )


def _processor() -> float:
    """Seconds of processor time of the controller and the tools it has run, also after the answer and for looks."""
    from nsnet import controller

    told = controller.status(NAME, timeout=30)
    assert told is not None
    fields = Path(f"/proc/{told['pid']}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _chain_of(number: int) -> str:
    """The Service's chain as it stands, for iptables-restore: what writing it once more takes without us."""
    from nsnet import names

    chain = names.kube_chain("SVC", f"default/svc-{number}:http", "tcp")
    words = ["ip", "netns", "exec", NODE, "iptables", "-t", "nat", "-S", chain]
    rules = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[1:]
    return "\n".join(["*nat", f":{chain} - [0:0]", *rules, "COMMIT", ""])


def _burst(mode: str) -> Iterator[Line]:
    """50 changes at once: one sync. A look at everything whose time has come meanwhile is none of it."""
    from nsnet import controller

    before = controller.status(NAME, timeout=30)
    assert before is not None
    numbers = [*range(5000 - TURNS - 50, 5000 - TURNS)]
    start = time.perf_counter()
    controller.converge(NAME, _Store().write(numbers, "two"), timeout=60)
    spent = time.perf_counter() - start
    after = controller.status(NAME, timeout=30)
    assert after is not None
    count, looks = (int(after[name]) - int(before[name]) for name in ("syncs", "looks"))
    also = f" and {looks} look(s) at everything" if looks else ""
    said = f"{count - looks} sync(s){also}, {spent * 1000:.0f} ms"
    yield f"{mode}: 50 slices changed at once", said, "1 sync", count - looks <= 1


def _latency(mode: str, services: int) -> Iterator[Line]:
    """connect() to the last Service of all, and to its pod, in turns."""
    from nsnet.kernel import netns

    last = max(range(services), key=lambda number: f"svc-{number}")
    ways = {"last": (address_of(last), 80), "pod": (PODS["one"], 8080)}
    _write_and_wait(last)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    home = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {0})
    with netns.inside(CLIENT):
        for _ in range(2000):
            for name, (address, port) in ways.items():
                with socket.socket() as client:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    start = time.perf_counter()
                    client.connect((address, port))
                    taken[name].append(time.perf_counter() - start)
    os.sched_setaffinity(0, home)
    through, direct = (statistics.median(taken[name]) * 1e6 for name in ("last", "pod"))
    bound = "(161 µs: FLOOR.md)" if mode == "iptables" else "< 60 µs more"
    yield (
        f"{mode}: a new connection to the last of {services:,} Services",
        f"{through:.0f} µs; straight to its pod {direct:.0f} µs",
        bound,
        mode == "iptables" or through - direct < 60,
    )


def _write_and_wait(number: int) -> None:
    from nsnet import controller

    controller.converge(NAME, _Store().write([number], "one"), timeout=60)


# --- the first load ---------------------------------------------------------------------------------------------------

_TOOLS = {
    "iptables": (["iptables-save"], ["iptables-restore"]),
    "nftables": (["nft", "list", "table", "ip", "kube-proxy"], ["nft", "-f", "-"]),
}


def _first(mode: str) -> Iterator[Line]:
    """A kube-proxy that starts: its node has no rule. The whole sync, against the tool with the same file."""
    from nsnet import controller, reconcile
    from nsnet.store import sqlite

    save, load = _TOOLS[mode]
    inside = ("ip", "netns", "exec")
    saved = subprocess.run([*inside, NODE, *save], check=True, capture_output=True, text=True).stdout
    controller.stop(NAME)
    with sqlite.open_store(NAME) as store, reconcile.lock(NAME):
        memory = reconcile.sync(store, NAME).memory
        floors, syncs = [], []
        for _ in range(3):
            _empty(NODE, mode)
            _timed(floors, load, saved)
            _empty(NODE, mode)
            start = time.perf_counter()
            report = reconcile.sync(store, NAME, only={NODE: frozenset()}, memory=memory)
            syncs.append(time.perf_counter() - start)
        assert report.changes > 5000
    base, spent = min(floors), min(syncs)  # the machine's noise only ever adds
    phases = " ".join(f"{name} {seconds:.2f}" for name, seconds in report.seconds.items())
    yield (
        f"{mode}: first full sync of 5,000 Services / {load[0]} of the same file",
        f"{spent:.2f} s / {base:.2f} s = {spent / base:.2f} ({phases})",
        "<= 1.3",
        spent / base <= 1.3,
    )


def _timed(taken: list[float], load: list[str], text: str) -> None:
    start = time.perf_counter()
    subprocess.run(["ip", "netns", "exec", NODE, *load], input=text, text=True, check=True)
    taken.append(time.perf_counter() - start)


def _empty(netns: str, mode: str) -> None:
    tables = "*filter\nCOMMIT\n*nat\nCOMMIT\n*mangle\nCOMMIT\n"
    words, text = (["iptables-restore"], tables) if mode == "iptables" else (["nft", "flush", "ruleset"], "")
    subprocess.run(["ip", "netns", "exec", netns, *words], input=text, text=True, check=True)
