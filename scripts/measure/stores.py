"""What the two stores cost: writes a second, listing 10,000 objects, and from a write to another machine's kernel.

etcd is Debian's, one member, started here; the second machine is a sandbox on a wire (tests/several.py).
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from nsnet.model import ObjectMeta, Pod, by_key
from nsnet.store import Store, sqlite
from nsnet.store.objects import load_objects, save_objects
from tests.etcds import running
from tests.several import boxes, members

Line = tuple[str, str, str, bool]
VALUE = b"x" * 600
NODES = """
apiVersion: nsnet/v1
kind: Cluster
metadata: {name: two}
dns: {enabled: false}
underlay: {machines: [{name: a, address: 192.0.2.1}, {name: b, address: 192.0.2.2}]}
nodes: [{name: node1, machine: a}, {name: node2, machine: b}]
hosts: []
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.7.7, ports: [{port: 80}]}
---
"""


def writes(store: Store, seconds: float = 2.0) -> float:
    """Transactions a second, one key of 600 bytes each, one after the other."""
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        store.txn({}, {f"/registry/pods/default/{done % 1000}": VALUE})
        done += 1
    return done / (time.perf_counter() - start)


def relist(store: Store, count: int = 10_000) -> float:
    """Seconds until that many objects, which another has written, are read and decoded."""
    pods = by_key(Pod(ObjectMeta(name=f"pod-{number}", namespace="default")) for number in range(count))
    save_objects(store, {}, pods, store.revision())
    start = time.perf_counter()
    assert len(load_objects(store)[0]) == count
    return time.perf_counter() - start


def lines() -> Iterator[Line]:
    """The stores alone, then a change on its way to another machine."""
    directory = Path(tempfile.mkdtemp())
    with sqlite.open_file(directory / "store.db") as store:
        rate = writes(store)
        yield "SQLite: writes", f"{rate:,.0f} /s", ">= 10,000", rate >= 10_000
    with running(directory) as etcd:
        with etcd.store("/writes") as store:
            rate = writes(store)
            yield "etcd over its gateway: writes", f"{rate:,.0f} /s", ">= 800", rate >= 800
        with etcd.store("/list") as store:
            spent = relist(store)
            yield "etcd: 10,000 objects listed anew", f"{spent:.2f} s", "< 2 s", spent < 2
    yield from _to_another_machine(directory)


def _to_another_machine(directory: Path) -> Iterator[Line]:
    """An endpoint is added on one machine; when is the rule in the other machine's node?"""
    file = directory / "two.yaml"
    file.write_text(NODES)
    with boxes("ab") as made, members(directory, 1) as (url, _):
        up = made["a"].begin("up", str(file), "--store", url, "--machine", "a", "--no-verify")
        made["b"].nsnet("agent", "--store", url, "--machine", "b")
        up.communicate()
        shared = [_seen(made["b"], made["a"], number) for number in range(10)]
        made["a"].nsnet("down")
    alone = (
        file.read_text().replace("underlay", "bridge: cni0\n#").replace(", machine: a", "").replace(", machine: b", "")
    )
    with boxes("c") as made:
        (directory / "one.yaml").write_text(alone)
        made["c"].nsnet("up", str(directory / "one.yaml"), "--no-verify")
        own = [_seen(made["c"], made["c"], number) for number in range(10)]
        made["c"].nsnet("down")
    more = 1000 * (statistics.median(shared) - statistics.median(own))
    told = f"{1000 * statistics.median(shared):.0f} - {1000 * statistics.median(own):.0f} = {more:.0f} ms"
    yield "store to another machine's kernel, above SQLite to its own", told, "< 50 ms", more < 50


WRITE = """
import sys, time
from nsnet.model import from_doc, key_of
from nsnet.store import opening
from nsnet.store.objects import load_objects, save_objects
with opening.open_store("two") as store:
    before, revision = load_objects(store)
    slice_ = from_doc({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "web-x", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
        "endpoints": [{"addresses": [sys.argv[1]], "conditions": {"ready": True}}],
        "ports": [{"name": "", "port": 80, "protocol": "TCP"}]})
    save_objects(store, before, {**before, key_of(slice_): slice_}, revision)
    print(time.monotonic())
"""


def _seen(reader: Any, writer: Any, number: int) -> float:
    """Seconds from the end of the write until iptables on node2 of `reader` names the address (CLOCK_MONOTONIC)."""
    address = f"10.244.200.{number + 1}"
    look = f"until iptables -t nat -S | grep -q 'to-destination {address}:80'; do :; done; cut -d' ' -f1 /proc/uptime"
    argv = reader.inside("ip", "netns", "exec", "two.node.node2", "sh", "-c", look)
    waiting = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env={**os.environ, "LC_ALL": "C"})
    wrote = float(writer.run(sys.executable, "-c", WRITE, address).split()[-1])
    waiting.communicate(timeout=60)
    return time.monotonic() - wrote
