"""A cluster's life as a person lives it: the verbs as processes, in a machine of its own (scripts/sandbox)."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT.parent / "shared" / "manifests"
NSNET = (sys.executable, "-m", "nsnet")
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}

SMALL = """
apiVersion: nsnet/v1
kind: Cluster
metadata: {name: small}
nodes: 2
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: nginx, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, nodePort: 30080}]}
"""


def nsnet(*words: str | Path, stdin: str | None = None, code: int | None = 0) -> subprocess.CompletedProcess[str]:
    """One verb, as typed; fails with all it printed where the exit code is another."""
    done = subprocess.run(  # noqa: PLW1510 - the exit code is what is looked at
        [*NSNET, *map(str, words)], input=stdin, capture_output=True, text=True, env=ENV, timeout=180
    )
    assert code is None or done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def namespaces() -> list[str]:
    return sorted(path.name for path in Path("/run/netns").iterdir()) if Path("/run/netns").exists() else []


def left_behind() -> dict[str, object]:
    """Everything that a cluster may leave on a machine; all empty when it is gone."""
    links = json.loads(subprocess.run(["ip", "-j", "link"], check=True, capture_output=True, text=True).stdout)
    processes = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if any(word.startswith(b"nsnet.") for word in words):
                processes.append(b" ".join(words).decode())
    return {
        "namespaces": namespaces(),
        "links": [link["ifname"] for link in links if link["ifname"] != "lo"],
        "mounts": [line for line in Path("/proc/self/mounts").read_text().splitlines() if "/run/netns/" in line],
        "processes": processes,
        "files": [
            str(path)
            for top in ("/run/nsnet", "/var/lib/nsnet", "/etc/netns")
            for path in Path(top).rglob("*")
            if path.is_file() and path.suffix != ".lock"
        ],
    }


NOTHING: dict[str, object] = {"namespaces": [], "links": [], "mounts": [], "processes": [], "files": []}


def machine() -> str:
    """The machine's own namespace, as its tools print it; without what moves by itself: counters, caches, the time."""
    commands = (
        ("ip", "-d", "link"), ("ip", "address"), ("ip", "route", "show", "table", "all"), ("ip", "rule"),
        ("ip", "neigh"), ("bridge", "fdb"), ("iptables-save",), ("nft", "list", "ruleset"),
    )  # fmt: skip
    told = [subprocess.run(words, check=True, capture_output=True, text=True).stdout for words in commands]
    said = [line for text in told for line in text.splitlines() if not line.startswith("#")]
    knobs = subprocess.run(["sysctl", "-a", "-r", r"^net\."], check=False, capture_output=True, text=True).stdout
    moving = ("nf_conntrack_count", "dev_weight", "flush", "netdev_rss_key")
    return "\n".join([*said, *(line for line in knobs.splitlines() if not any(word in line for word in moving))])


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """Each test starts and ends on an empty machine."""
    yield
    nsnet("down", "--all")
    assert left_behind() == NOTHING


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def test_up_verifies_and_down_leaves_nothing(small: Path) -> None:
    before = machine()
    nsnet("up", small)
    assert machine() == before
    pods = json.loads(nsnet("get", "po", "-o", "json").stdout)["items"]
    assert len(pods) == 3
    assert {pod["status"]["phase"] for pod in pods} == {"Running"}
    assert len({pod["status"]["podIP"] for pod in pods}) == 3
    nsnet("status")
    nsnet("down", "small")
    assert left_behind() == NOTHING
    assert machine() == before


def test_up_twice_changes_nothing(small: Path) -> None:
    nsnet("up", small)
    first = nsnet("get", "po,svc,ep", "-A", "-o", "json").stdout
    nsnet("up", small)
    assert nsnet("get", "po,svc,ep", "-A", "-o", "json").stdout == first


def test_down_of_nothing_is_success() -> None:
    nsnet("down", "nobody")
    nsnet("down", "--all")


def test_down_works_without_the_state_directory(small: Path) -> None:
    nsnet("up", small)
    subprocess.run(["rm", "-rf", "/var/lib/nsnet/small", "/run/nsnet/small"], check=True)
    nsnet("down", "small")
    assert left_behind() == NOTHING


def test_down_spares_a_namespace_without_the_mark(small: Path) -> None:
    nsnet("up", small)
    subprocess.run(["ip", "netns", "add", "small.pod.default.mine"], check=True)
    try:
        nsnet("down", "small")
        assert namespaces() == ["small.pod.default.mine"]
    finally:
        subprocess.run(["ip", "netns", "delete", "small.pod.default.mine"], check=True)


def test_three_ways_to_service_a() -> None:
    """The classic picture: by ClusterIP inside, by NodePort of either host from outside and inside."""
    nsnet("up", ROOT / "topologies" / "nodeport.yaml")
    pod = json.loads(nsnet("get", "po", "-o", "json").stdout)["items"][0]["metadata"]["name"]
    names = {item["metadata"]["name"] for item in json.loads(nsnet("get", "po", "-o", "json").stdout)["items"]}
    for source, address in (
        (f"pod/{pod}", "192.168.1.22"),
        ("node/host1", "192.168.1.22"),
        ("node/host2", "10.10.1.2:31600"),
        ("host/client", "10.10.1.2:31600"),
        ("host/client", "10.10.1.3:31600"),
    ):
        port = "" if ":" in address else _service_port("service-a")
        url = f"http://{address}{port}/hostname"
        assert nsnet("exec", source, "--", "curl", "-sS", "-m", "3", url).stdout.strip() in names, (source, url)
    refused = nsnet("exec", "host/client", "--", "curl", "-sS", "-m", "3", "http://192.168.1.22/", code=None)
    assert refused.returncode != 0


def _service_port(name: str) -> str:
    service = json.loads(nsnet("get", "svc", name, "-o", "json").stdout)
    return f":{service['spec']['ports'][0]['port']}"


@pytest.mark.parametrize("folder", ["guestbook", "online-boutique"])
def test_published_manifests_come_up_verified(folder: str) -> None:
    files = sorted(MANIFESTS.glob(f"{folder}/*.yaml")) + sorted(MANIFESTS.glob(f"{folder}/*.yml"))
    if not files:
        pytest.skip(f"{MANIFESTS / folder} is not on this machine")
    nsnet("up", "--cluster", "demo", *files)


def test_two_clusters_with_the_same_addresses(small: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(SMALL.replace("name: small", "name: other"))
    nsnet("up", small)
    nsnet("up", other)
    both = [json.loads(nsnet("get", "po", "-o", "json", "--cluster", name).stdout) for name in ("small", "other")]
    addresses = [sorted(pod["status"]["podIP"] for pod in pods["items"]) for pods in both]
    assert addresses[0] == addresses[1]
    nsnet("down", "other")
    nsnet("verify", "--cluster", "small")


def test_two_ups_at_once(small: Path) -> None:
    ups = [
        subprocess.Popen([*NSNET, "up", str(small)], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=180) for process in ups]
    assert [process.returncode for process in ups] == [0, 0], said
    nsnet("verify")


def test_scale_apply_and_delete_reach_the_rules(small: Path) -> None:
    nsnet("up", small)
    nsnet("scale", "deploy/web", "--replicas", "5")
    nsnet("verify")
    assert len(_endpoints("web")) == 5
    nsnet("scale", "deploy/web", "--replicas", "0")
    assert _endpoints("web") == []
    refused = nsnet("exec", "host/client", "--", "curl", "-sS", "-m", "3", "http://172.18.0.2:30080/", code=None)
    assert refused.returncode == 7, refused.stderr
    nsnet("apply", "-f", "-", stdin=SMALL)
    nsnet("verify")
    nsnet("delete", "svc", "web")
    nsnet("verify")
    rules = nsnet("exec", "node/node1", "--", "iptables-save").stdout
    assert "30080" not in rules


def _endpoints(service: str) -> list[str]:
    found = json.loads(nsnet("get", "ep", service, "-o", "json").stdout)
    return [address["ip"] for subset in found.get("subsets") or [] for address in subset.get("addresses") or []]


def test_a_pod_that_stops_answering_leaves_its_service(small: Path) -> None:
    nsnet("up", small)
    pod = json.loads(nsnet("get", "po", "-o", "json").stdout)["items"][0]["metadata"]["name"]
    nsnet("annotate", "pod", pod, "nsnet/ready=false")
    assert len(_endpoints("web")) == 2
    nsnet("verify")
    nsnet("annotate", "pod", pod, "nsnet/ready-")
    assert len(_endpoints("web")) == 3


def test_a_node_changes_its_address(small: Path) -> None:
    nsnet("up", small)
    text = SMALL.replace("nodes: 2", "nodes: [{name: node1}, {name: node2, address: 172.18.0.77}]")
    pods = json.loads(nsnet("get", "po", "-o", "json").stdout)["items"]
    nsnet("apply", "-f", "-", stdin=text)
    nsnet("verify")
    after = json.loads(nsnet("get", "po", "-o", "json").stdout)["items"]
    assert [pod["status"]["podIP"] for pod in after] == [pod["status"]["podIP"] for pod in pods]
    assert "172.18.0.77" in nsnet("leases").stdout
    fdb = nsnet("exec", "node/node1", "--", "bridge", "fdb", "show", "dev", "flannel.1").stdout
    assert "172.18.0.77" in fdb


def test_wrong_input_leaves_the_running_cluster_alone(small: Path) -> None:
    nsnet("up", small)
    before = nsnet("get", "all", "-A", "-o", "json", code=None).stdout
    bad = nsnet("apply", "-f", "-", stdin=SMALL.replace("nodePort: 30080", "nodePort: 99"), code=2)
    assert "nodePort" in bad.stderr
    assert nsnet("get", "all", "-A", "-o", "json", code=None).stdout == before
    nsnet("verify")


def _killed_after(words: list[str], seconds: float) -> None:
    with subprocess.Popen(
        [*NSNET, *words], env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("seed", range(6))
def test_up_killed_anywhere_then_up_converges(small: Path, seed: int) -> None:
    moment = random.Random(seed)
    for _ in range(3):
        _killed_after(["up", str(small)], moment.uniform(0.05, 0.7))
    nsnet("up", small)


@pytest.mark.parametrize("seed", range(6))
def test_up_killed_anywhere_then_down_leaves_nothing(small: Path, seed: int) -> None:
    moment = random.Random(100 + seed)
    _killed_after(["up", str(small)], moment.uniform(0.05, 0.7))
    _killed_after(["down", "small"], moment.uniform(0.02, 0.3))
    nsnet("down", "small")
    assert left_behind() == NOTHING


def _pids(*words: str) -> list[int]:
    """The processes whose arguments have all these words."""
    wanted = {word.encode() for word in words}
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                said = set((entry / "cmdline").read_bytes().split(b"\0"))
            except OSError:
                continue
            if wanted <= said:
                found.append(int(entry.name))
    return found


def test_controller_and_pod_server_killed_come_back(small: Path) -> None:
    nsnet("up", small)
    moment = random.Random(7)
    for _ in range(3):
        for pid in _pids("nsnet.controller", "small"):
            if moment.random() < 0.5:
                os.kill(pid, signal.SIGKILL)
        for pid in _pids("nsnet.programs.podserver"):
            os.kill(pid, signal.SIGKILL)
    nsnet("up", small)
    assert len(_endpoints("web")) == 3


def test_interrupted_up_can_go_on(small: Path) -> None:
    process = subprocess.Popen([*NSNET, "up", str(small)], env=ENV, stderr=subprocess.PIPE, text=True)
    _wait_for(lambda: any(name.startswith("small.") for name in namespaces()))
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert "Traceback" not in said
    nsnet("up", small)


def _wait_for(happens: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def test_drift_is_seen_and_mended(small: Path) -> None:
    nsnet("up", small)
    subprocess.run(["ip", "-n", "small.node.node1", "link", "delete", "flannel.1"], check=True)
    _wait_for(
        lambda: (
            b"flannel.1"
            in subprocess.run(["ip", "-n", "small.node.node1", "route"], check=True, capture_output=True).stdout
        )
    )
    nsnet("verify")


def test_run_files_are_private(small: Path) -> None:
    nsnet("up", small)
    for top in (Path("/run/nsnet/small"), Path("/var/lib/nsnet/small")):
        assert top.stat().st_mode & 0o777 == 0o700
        for path in top.rglob("*"):
            wanted = 0o644 if path.name == "subnet.env" else 0o600 if path.is_file() else 0o700  # as flannel writes it
            assert path.stat().st_mode & 0o777 & ~wanted == 0, path


def test_subnet_env_is_what_flannel_writes(small: Path) -> None:
    nsnet("up", small)
    assert Path("/run/nsnet/small/node.node1/flannel/subnet.env").read_text() == (
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    )
