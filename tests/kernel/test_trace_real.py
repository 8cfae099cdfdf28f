"""`nsnet trace` on a real cluster: what it says, packets do; healthy, and with an FDB entry gone."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsnet import controller

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "topologies" / "quickstart.yaml")
ENV = {name: value for name, value in os.environ.items() if not name.startswith("NSNET_")} | {"PYTHONPATH": str(ROOT)}
NSNET = (sys.executable, "-m", "nsnet")


def nsnet(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*NSNET, *words], capture_output=True, text=True, env=ENV, check=False, timeout=120)
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(autouse=True)
def _quickstart() -> Iterator[None]:
    nsnet("up", "--no-verify", QUICKSTART)
    yield
    nsnet("down", "--all")


def _pods() -> dict[str, tuple[str, str]]:
    """Of each node one pod: its name and address."""
    items = json.loads(nsnet("get", "po", "-l", "app=web", "-o", "json").stdout)["items"]
    return {item["spec"]["nodeName"]: (item["metadata"]["name"], item["status"]["podIP"]) for item in items}


def test_a_healthy_cluster() -> None:
    """All ways to the Service arrive, as a real call does, from the address that was called."""
    (name, _), address = _pods()["node1"], _cluster_ip()
    said = nsnet("trace", name, "svc/web").stdout
    assert said.startswith(f"tcp from pod/{name} to svc/web, its clusterIP {address} port 80\n")
    assert said.count("\ndelivered to pod/") == said.count(f"\nreply: back to pod/{name} from {address}:80, by ") == 3
    nsnet("exec", name, "--", "curl", "-sS", "-m", "5", f"http://{address}/hostname")


def _cluster_ip() -> str:
    address = json.loads(nsnet("get", "svc/web", "-o", "json").stdout)["spec"]["clusterIP"]
    assert isinstance(address, str)
    return address


def test_a_deleted_fdb_entry_is_named() -> None:
    """The controller would put it back at once, so it is stopped first; then the packet is lost where trace says."""
    pods = _pods()
    (name, _), (other, address) = pods["node1"], pods["node2"]
    controller.stop("quickstart")
    fdb = ("bridge", "-n", "quickstart.node.node1", "fdb")
    (entry,) = [line.split() for line in _lines(*fdb, "show", "dev", "flannel.1") if " dst 172.18.0.3" in line]
    subprocess.run([*fdb, "del", entry[0], "dev", "flannel.1", "dst", "172.18.0.3"], check=True)
    said = nsnet("trace", name, f"pod/{other}", code=1).stdout
    why = f"unreachable at node/node1: flannel.1 has no FDB entry for {entry[0]}, the MAC of 10.244.2.0"
    *_, ends, verdict = said.splitlines()
    assert ends == why
    assert verdict.startswith(f"verdict: should reach pod/{other} via flannel.1; ")
    assert verdict.endswith(why)
    nsnet("exec", name, "--", "curl", "-sS", "-m", "1", f"http://{address}/hostname", code=28)


def _lines(*words: str) -> list[str]:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
