"""A cluster whose store is an etcd: found again by every verb, gone and back, shared with flannel and strangers."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nsnet import names
from nsnet.controller.client import living, log_path
from nsnet.kernel import process
from tests.etcds import Etcd, running, until

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "topologies" / "quickstart.yaml")
ENV = {name: value for name, value in os.environ.items() if not name.startswith("NSNET_")} | {"PYTHONPATH": str(ROOT)}
NAME = "quickstart"
NODE1, NODE2 = names.node_netns(NAME, "node1"), names.node_netns(NAME, "node2")
SUBNETS = "/coreos.com/network/subnets/"


def nsnet(*words: str, code: int = 0, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "nsnet", *words]
    done = subprocess.run(
        argv, capture_output=True, text=True, env={**ENV, **env}, check=False, timeout=120, input=stdin
    )
    assert done.returncode == code, f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def etcdctl(etcd: Etcd, *words: str) -> str:
    argv = ["etcdctl", "--endpoints", etcd.members[0].client, *words]
    return subprocess.run(
        argv, check=True, capture_output=True, text=True, env={**os.environ, "ETCDCTL_API": "3"}
    ).stdout


def keys(etcd: Etcd, prefix: str) -> list[str]:
    return etcdctl(etcd, "get", "--prefix", "--keys-only", prefix).split()


def record(etcd: Etcd, subnet: str) -> dict[str, Any]:
    """A subnet's key as etcd has it; empty where it is not there."""
    found = json.loads(etcdctl(etcd, "get", "-w", "json", SUBNETS + subnet)).get("kvs")
    return found[0] if found else {}


def route(netns: str, subnet: str) -> str:
    return subprocess.run(
        ["ip", "-n", netns, "route", "show", subnet], capture_output=True, text=True, check=True
    ).stdout


def the_program(name: str) -> int:
    return next((found.pid for found in process.running(NAME) if f"nsnet.programs.{name}" in found.argv), 0)


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    with running(tmp_path) as found:
        found.store().close()
        yield found
        nsnet("down", "--all")


def test_the_cluster_goes_on_without_its_etcd_and_with_it_again(etcd: Etcd) -> None:
    nsnet("up", QUICKSTART, NSNET_STORE=etcd.url)
    pods = nsnet("get", "pods", "-o", "name").stdout.split()
    assert [f"/registry/pods/default/{pod.removeprefix('pod/')}" for pod in pods] == keys(
        etcd, "/registry/pods/default"
    )
    etcd.members[0].kill()
    client = names.host_netns(NAME, "client")
    curl = ["ip", "netns", "exec", client, "curl", "-sf", "http://172.18.0.3:30080/hostname"]
    subprocess.run(curl, check=True, capture_output=True)
    dead = the_program("podserver")
    os.kill(dead, signal.SIGKILL)
    until(lambda: the_program("podserver") not in (0, dead), "what dies is started again, by what was last known")
    for words in (("get", "pods"), ("exec", "host/client", "--", *curl[4:]), ("verify", "--retry", "3"),
                  ("trace", "host/client", "172.18.0.3:30080"), ("status",)):  # fmt: skip
        looked = nsnet(*words, code=1 if words == ("status",) else 0)
        assert "cannot be reached" in looked.stderr
        assert "this goes by what was known last, revision" in looked.stderr
    failed = nsnet("scale", "deploy/web", "--replicas", "4", code=5)
    assert "cannot be reached" in failed.stderr
    assert "hint: " in failed.stderr
    etcd.members[0].start()
    nsnet("scale", "deploy/web", "--replicas", "4")
    assert len(nsnet("get", "pods", "-o", "name").stdout.split()) == len(pods) + 1
    assert "known last" not in nsnet("verify", "--retry", "3").stderr


def test_garbage_is_skipped_and_said_once(etcd: Etcd) -> None:
    """By the controller in its log, by verbs at each reading; what comes later is done all the same."""
    nsnet("up", QUICKSTART, "--store", etcd.url, "--no-verify")
    etcdctl(etcd, "put", "/registry/pods/default/garbage", "no pod")
    for number in ("2", "4", "3"):
        nsnet("scale", "deploy/web", "--replicas", number)
        assert "/registry/pods/default/garbage" in nsnet("get", "pods").stderr
    log = (names.run_dir(NAME) / "log" / "controller.log").read_text().splitlines()
    assert len([line for line in log if "warning: skipped" in line and "garbage" in line]) == 1
    nsnet("verify", "--retry", "3")


def test_down_leaves_what_others_have_and_does_not_need_the_store(etcd: Etcd) -> None:
    etcdctl(
        etcd, "put", f"{SUBNETS}10.244.200.0-24", '{"PublicIP":"198.18.0.1","PublicIPv6":null,"BackendType":"vxlan"}'
    )
    etcdctl(etcd, "put", "/registry/pods/default/garbage", "no pod")
    etcdctl(etcd, "put", "/other", "1")
    before = keys(etcd, "/")
    nsnet("up", QUICKSTART, "--store", etcd.url, "--no-verify")
    assert "10.244.200.0/24" in nsnet("leases").stdout
    nsnet("down")
    assert keys(etcd, "/") == before
    nsnet("up", QUICKSTART, "--store", etcd.url, "--no-verify")
    etcd.members[0].kill()
    assert "its objects stay in the store" in nsnet("down").stderr
    assert not names.state_dir(NAME).exists()
    etcd.members[0].start()
    etcd.store().close()
    nsnet("up", QUICKSTART, "--store", etcd.url)


def test_two_clusters_in_one_etcd(etcd: Etcd) -> None:
    nsnet("up", QUICKSTART, "--store", etcd.url, "--no-verify")
    refused = nsnet("up", QUICKSTART, "--cluster", "two", "--store", etcd.url, code=2).stderr
    assert f'holds cluster "{NAME}"' in refused
    assert f"--store {etcd.url}/two" in refused
    nsnet("up", QUICKSTART, "--cluster", "two", "--store", f"{etcd.url}/two")
    assert len(keys(etcd, "/two/registry/pods/default/")) == len(keys(etcd, "/registry/pods/default/")) == 3
    assert keys(etcd, f"/two{SUBNETS}") != []
    nsnet("down", "two")
    assert [key for key in keys(etcd, "/two") if not key.startswith("/two/nsnet")] == []
    nsnet("verify")
    other = nsnet("up", QUICKSTART, "--store", "sqlite", code=2).stderr
    assert f"has its store in {etcd.url}, not in sqlite" in other


def test_a_store_that_cannot_be_reached_leaves_nothing_behind() -> None:
    assert "cannot be reached" in nsnet("up", QUICKSTART, "--store", "etcd://127.0.0.1:1", code=5).stderr
    assert nsnet("list", "-o", "name").stdout == ""
    assert list(names.STATE.iterdir()) == []


def test_no_etcd_is_installed(tmp_path: Path) -> None:
    for tool in ("ip", "iptables-restore", "python3"):
        (tmp_path / tool).symlink_to("/bin/true")
    failed = nsnet("up", QUICKSTART, "--store", "etcd", code=5, PATH=str(tmp_path)).stderr
    assert "--store etcd needs etcd, which is not installed" in failed
    assert "apt-get install etcd-server" in failed


def test_an_etcd_of_its_own_is_started_again(etcd: Etcd) -> None:
    """It stands in the fabric; whoever kills it, or the controller with it, finds both again."""
    del etcd  # for its skip where there is none, and its `down`
    said = nsnet("up", QUICKSTART, "--store", "etcd", "--no-verify").stdout
    assert f"ip netns exec {NAME}.fabric.etcd etcdctl" in said
    first = the_program("etcd")
    os.kill(first, signal.SIGKILL)
    until(lambda: the_program("etcd") not in (0, first), "the controller starts it again")
    until(lambda: nsnet("scale", "deploy/web", "--replicas", "2"), "it answers again")
    second = the_program("etcd")
    for pid in [found.pid for found in sorted(living(NAME), key=lambda item: not item.supervises)] + [second]:
        os.kill(pid, signal.SIGKILL)
    nsnet("up", QUICKSTART)
    assert the_program("etcd") not in (0, second)
    nsnet("down")
    assert process.running(NAME) == []


# --- flannel ----------------------------------------------------------------------------------------------------------


def test_leases_live_as_flannels_do(etcd: Etcd) -> None:
    """A day, by a grant of their own; one that is deleted is missed by the others, and then taken again."""
    nsnet("up", QUICKSTART, "--store", etcd.url, "--no-verify")
    assert json.loads(etcdctl(etcd, "get", "--print-value-only", "/coreos.com/network/config")) == {
        "Network": "10.244.0.0/16", "SubnetLen": 24, "SubnetMin": "10.244.1.0", "SubnetMax": "10.244.255.0",
        "Backend": {"Type": "vxlan", "VNI": 1},
    }  # fmt: skip
    value = etcdctl(etcd, "get", "--print-value-only", f"{SUBNETS}10.244.2.0-24").strip()
    vtep = json.loads(value)["BackendData"]["VtepMAC"]
    data = f'{{"VNI":1,"VtepMAC":"{vtep}"}}'
    assert value == f'{{"PublicIP":"172.18.0.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{data}}}'
    until(lambda: "lease" in record(etcd, "10.244.2.0-24"), "the lease is granted")
    told = json.loads(etcdctl(etcd, "lease", "timetolive", "-w", "json", f"{record(etcd, '10.244.2.0-24')['lease']:x}"))
    assert 86_000 < told["ttl"] <= 86_400
    assert "10.244.2.0 dev flannel.1" in route(NODE1, "10.244.2.0/24")
    with _events(NODE1) as seen:
        etcdctl(etcd, "del", f"{SUBNETS}10.244.2.0-24")
        until(lambda: record(etcd, "10.244.2.0-24"), "the node takes its subnet again")
        until(lambda: _back(seen), "its route went and came back")
    assert "10.244.2.0 dev flannel.1" in route(NODE1, "10.244.2.0/24")
    nsnet("verify", "--retry", "3")


class _events:  # noqa: N801 - reads as what it is: with _events(NODE1) as seen
    """What `ip monitor route` says of a namespace while the block runs."""

    def __init__(self, netns: str) -> None:
        self.lines: list[str] = []
        self._monitor = subprocess.Popen(["ip", "-n", netns, "monitor", "route"], stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read)

    def _read(self) -> None:
        assert self._monitor.stdout is not None
        for line in self._monitor.stdout:
            self.lines.append(line)

    def __enter__(self) -> list[str]:
        self._reader.start()
        until(self._listens, "ip monitor listens")
        return self.lines

    def _listens(self) -> bool:
        """It has its netlink socket when a route of no importance is seen to come."""
        netns = NODE1
        for verb in ("add", "del"):
            subprocess.run(
                ["ip", "-n", netns, "route", verb, "unreachable", "192.0.2.77"], check=False, capture_output=True
            )
        return any("192.0.2.77" in line for line in self.lines)

    def __exit__(self, *_: object) -> None:
        self._monitor.kill()
        self._monitor.wait()
        self._reader.join()
        assert self._monitor.stdout is not None
        self._monitor.stdout.close()


def _back(lines: list[str]) -> bool:
    ours = [line for line in lines if "10.244.2.0/24" in line]
    gone = next((index for index, line in enumerate(ours) if line.startswith("Deleted")), None)
    return gone is not None and any(not line.startswith("Deleted") for line in ours[gone:])


def test_subnets_are_reused_as_flannel_reuses_them(etcd: Etcd) -> None:
    """By the public address of a lease or reservation; then by subnet.env; what others hold is not given out."""
    etcdctl(etcd, "put", f"{SUBNETS}10.244.77.0-24", '{"PublicIP":"172.18.0.2"}')  # node1's, reserved by hand
    etcdctl(etcd, "put", f"{SUBNETS}10.244.1.0-24", '{"PublicIP":"198.18.0.1","BackendType":"vxlan"}')
    env = names.netns_run_dir(NODE2) / "flannel" / "subnet.env"
    env.parent.mkdir(parents=True)
    env.write_text("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.9.1/24\nFLANNEL_MTU=1450\n")
    nsnet("up", QUICKSTART, "--store", etcd.url)
    held = {name.removeprefix(SUBNETS) for name in keys(etcd, SUBNETS)}
    assert held == {"10.244.77.0-24", "10.244.1.0-24", "10.244.9.0-24"}
    until(lambda: "lease" in record(etcd, "10.244.77.0-24"), "a reservation in use becomes a lease, as in flannel")
    assert "lease" not in record(etcd, "10.244.1.0-24")


def test_a_race_for_a_subnet_that_is_lost_is_run_again(etcd: Etcd) -> None:
    """flanneld and we choose the same one; whoever comes second takes another, and no start fails."""
    code = f"""
import subprocess
from nsnet.cli import up
from nsnet.store import objects
real = objects.save_objects
def save(store, *rest):
    subprocess.run(["etcdctl", "--endpoints", "{etcd.members[0].client}", "put", "{SUBNETS}10.244.1.0-24",
                    '{{"PublicIP":"198.18.0.1","BackendType":"vxlan"}}'], check=True)
    objects.save_objects = real
    return real(store, *rest)
objects.save_objects = save
from nsnet.cli.main import main
main(["up", "{QUICKSTART}", "--store", "{etcd.url}", "--no-verify"])
"""
    subprocess.run([sys.executable, "-c", code], env=ENV, check=True, capture_output=True)
    assert {name.removeprefix(SUBNETS) for name in keys(etcd, SUBNETS)} == {
        "10.244.1.0-24", "10.244.2.0-24", "10.244.3.0-24",
    }  # fmt: skip


def test_a_flannel_with_another_network_is_not_touched(etcd: Etcd) -> None:
    etcdctl(etcd, "put", "/coreos.com/network/config", '{"Network": "10.5.0.0/16"}')
    refused = nsnet("up", QUICKSTART, "--store", etcd.url, code=2).stderr
    assert "says Network 10.5.0.0/16" in refused
    assert "podSubnet: 10.5.0.0/16" in refused
    assert (
        etcdctl(etcd, "get", "--print-value-only", "/coreos.com/network/config").strip() == '{"Network": "10.5.0.0/16"}'
    )


def test_a_watch_goes_on_over_a_compaction(etcd: Etcd) -> None:
    """The controller was stopped while etcd forgot what it had missed: it lists everything, and is up to date."""
    nsnet("up", QUICKSTART, "--store", etcd.url, "--no-verify")
    controller = next(found.pid for found in living(NAME) if not found.supervises)
    os.kill(controller, signal.SIGSTOP)
    try:
        key = f"{SUBNETS}10.244.99.0-24"
        said = '{"PublicIP":"172.18.0.99","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"}}'
        etcdctl(etcd, "put", key, said)
        etcdctl(etcd, "put", "/x", "1")
        revision = json.loads(etcdctl(etcd, "put", "/x", "2", "-w", "json"))["header"]["revision"]
        etcdctl(etcd, "compact", str(revision))
    finally:
        os.kill(controller, signal.SIGCONT)
    until(lambda: "10.244.99.0 dev flannel.1" in route(NODE1, "10.244.99.0/24"), log_path(NAME).read_text())
