"""What the verbs promise where only a real cluster shows it: one that is up for all tests here."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "topologies" / "quickstart.yaml")
ENV = {name: value for name, value in os.environ.items() if not name.startswith("NSNET_")} | {"PYTHONPATH": str(ROOT)}
NSNET = (sys.executable, "-m", "nsnet")


def nsnet(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*NSNET, *words], capture_output=True, text=True, env=ENV, check=False, timeout=120)
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def begin(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([*NSNET, *words], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def interrupted(process: subprocess.Popen[str]) -> str:
    """Ctrl-C, and again where it came in the instant before a system call that waits; what was said on stderr."""
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        try:
            return process.communicate(timeout=2)[1]
        except subprocess.TimeoutExpired:
            continue
    process.kill()
    raise AssertionError(process.communicate())


@pytest.fixture(scope="module", autouse=True)
def _quickstart() -> Iterator[None]:
    nsnet("up", "--no-verify", QUICKSTART)
    yield
    nsnet("down", "--all")


@pytest.fixture
def pod() -> str:
    return nsnet("get", "po", "-o", "name").stdout.split()[0]


def test_exec_has_the_pods_name_network_and_devices(pod: str) -> None:
    script = "hostname; ls /sys/class/net; ip -br -4 addr show eth0"
    said = nsnet("exec", pod, "--", "sh", "-c", script).stdout.split()
    address = json.loads(nsnet("get", pod, "-o", "json").stdout)["status"]["podIP"]
    assert said[:3] == [pod.removeprefix("pod/"), "eth0", "lo"]
    assert f"{address}/24" in said


def _seen_outside() -> tuple[str, ...]:
    spaces = (str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in ("net", "mnt", "uts"))
    return (*spaces, os.uname().nodename, Path("/proc/self/mounts").read_text())


def test_exec_changes_nothing_outside(pod: str) -> None:
    before = _seen_outside()
    nsnet("exec", pod, "--", "sh", "-c", "mount -t tmpfs none /mnt; touch /mnt/here")
    assert not Path("/mnt/here").exists()
    assert _seen_outside() == before


def test_exec_reads_the_files_of_etc_netns(pod: str) -> None:
    """As `ip netns exec`: /etc/netns/NAME/FILE lies over /etc/FILE."""
    folder = Path("/etc/netns") / f"quickstart.pod.default.{pod.removeprefix('pod/')}"
    for file in (folder / "hosts", folder / "resolv.conf"):
        assert nsnet("exec", pod, "--", "cat", f"/etc/{file.name}").stdout == file.read_text()
        assert Path("/etc", file.name).read_text() != file.read_text()


@pytest.mark.parametrize(("words", "code"), [("exit 7", 7), ("kill -TERM $$", -signal.SIGTERM), ("true", 0)])
def test_exec_passes_the_exit_code_on(pod: str, words: str, code: int) -> None:
    nsnet("exec", pod, "--", "sh", "-c", words, code=code)


def test_exec_of_no_command_is_said_as_a_shell_says_it(pod: str, tmp_path: Path) -> None:
    none = "error: nope: there is no such command on this machine\n"
    assert nsnet("exec", pod, "--", "nope", code=127).stderr == none
    text = tmp_path / "text"
    text.write_text("no command")
    assert nsnet("exec", pod, "--", str(text), code=126).stderr == f"error: {text}: is not executable\n"


def test_exec_leaves_sigpipe_as_a_shell_would(pod: str) -> None:
    """Python ignores SIGPIPE; a command that inherits that never ends in `yes | head -1`."""
    said = nsnet("exec", pod, "--", "sh", "-c", "trap - PIPE; grep SigIgn /proc/self/status").stdout
    assert int(said.split()[1], 16) & (1 << (signal.SIGPIPE - 1)) == 0


def test_the_script_that_plan_prints_builds_the_same_cluster() -> None:
    """`plan` = what `up` does: the lines, typed, leave nothing for `up` to change."""
    script = nsnet("plan", "-o", "sh", "--cluster", "typed", QUICKSTART).stdout
    try:
        subprocess.run(["sh"], input=script, text=True, check=True, stdout=subprocess.DEVNULL, timeout=60)
        left = nsnet("plan", "--cluster", "typed", QUICKSTART)
        assert (left.stdout, left.stderr) == ("", "nothing to change: typed is as the files say\n")
    finally:
        nsnet("down", "typed")


def test_status_says_drift_and_verify_fails_for_it() -> None:
    """A link of nobody's, in a cluster whose controller is stopped so that it stays."""
    from nsnet import controller

    controller.stop("quickstart")
    subprocess.run(["ip", "-n", "quickstart.node.node1", "link", "add", "stray", "type", "bridge"], check=True)
    said = nsnet("status", code=1).stdout
    assert "ip -n quickstart.node.node1 link delete stray" in said
    assert "none runs" in said
    assert "FAILED  drift: " in nsnet("verify", "--only", "drift", code=1).stdout
    nsnet("up", "--no-verify", QUICKSTART)
    assert json.loads(nsnet("status", "-o", "json").stdout)["healthy"] is True


def test_verify_writes_junit_and_json(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    said = json.loads(nsnet("verify", "--only", "client", "-o", "json", "--junit-file", str(report)).stdout)
    assert said["passed"] is True
    assert len(said["results"]) == report.read_text().count("<testcase ")
    nsnet("verify", "--only", "nothing has this name", code=2)
    nsnet("verify", "--only", "client", "--junit-file", str(tmp_path / "no" / "where.xml"), code=2)


def test_verify_list_sends_nothing() -> None:
    listed = nsnet("verify", "--list").stdout.splitlines()
    assert any("host/client" in line and "out of reach" in line for line in listed)


def test_watch_prints_what_changes_until_it_is_interrupted() -> None:
    with begin("get", "deploy", "-w", "--no-headers") as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline().split()[:2] == ["web", "3/3"]
        nsnet("scale", "deploy/web", "--replicas", "1")
        lines = [watching.stdout.readline()]
        while lines[-1].split()[:2] != ["web", "1/1"]:
            lines.append(watching.stdout.readline())
        assert interrupted(watching) == "error: interrupted\n"
    assert watching.returncode == 130
    nsnet("scale", "deploy/web", "--replicas", "3")


def test_a_second_up_waits_and_says_for_whom() -> None:
    from nsnet import reconcile

    with reconcile.lock("quickstart"):
        waiting = begin("up", "--no-verify", QUICKSTART)
        assert waiting.stderr is not None
        line = waiting.stderr.readline()
        assert line == f"up waits: another nsnet (pid {os.getpid()}) is changing cluster quickstart\n"
    waiting.communicate(timeout=60)
    assert waiting.returncode == 0


def test_an_interrupted_up_says_how_to_go_on() -> None:
    from nsnet import reconcile

    with reconcile.lock("other"):
        waiting = begin("up", "--cluster", "other", QUICKSTART)
        assert waiting.stderr is not None
        waiting.stderr.readline()
        said = interrupted(waiting)
    assert waiting.returncode == 130
    assert said == (
        "error: interrupted while cluster other was being built\n"
        "hint: the same `nsnet up` goes on from here; `nsnet down other` removes what is there\n"
    )


def test_a_pod_that_nobody_can_place_is_exit_1(tmp_path: Path) -> None:
    path = tmp_path / "far.yaml"
    path.write_text("""\
apiVersion: v1
kind: Pod
metadata: {name: far}
spec: {nodeSelector: {disk: ssd}, containers: [{name: a}]}
""")
    started = time.monotonic()
    said = nsnet("up", "--no-verify", str(path), code=1)
    assert time.monotonic() - started < 30  # what cannot become ready is not waited for
    assert re.search(r"error: 1 of 4 pods are not ready; default/far: 0/2 nodes are available", said.stderr)
    nsnet("down", "far")


def test_labels_and_annotations(pod: str) -> None:
    assert nsnet("label", pod, "tier=front").stdout == f"{pod} labeled\n"
    assert nsnet("label", pod, "tier=front").stdout == f"{pod} not labeled\n"
    assert "--overwrite changes it" in nsnet("label", pod, "tier=back", code=2).stderr
    assert nsnet("label", pod, "tier=back", "--overwrite").stdout == f"{pod} labeled\n"
    assert nsnet("get", "po", "-l", "tier=back", "-o", "name").stdout == f"{pod}\n"
    assert nsnet("label", pod, "tier-").stdout == f"{pod} labeled\n"
    bad = nsnet("label", pod, "tier=no spaces please", code=2).stderr
    assert "Traceback" not in bad
    assert "tier" in bad


def test_apply_says_what_it_did() -> None:
    assert nsnet("apply", "-f", QUICKSTART).stdout == (
        "deployment.apps/web unchanged\nservice/web unchanged\nservice/web-public unchanged\n"
    )


def test_a_namespace_for_files_that_say_none(tmp_path: Path) -> None:
    file = tmp_path / "other.yaml"
    file.write_text("{apiVersion: v1, kind: ConfigMap, metadata: {name: other}}")
    assert nsnet("apply", "-n", "shop", "-f", str(file)).stdout == "configmap/other created\n"
    assert "ConfigMap default/other is not there" in nsnet("delete", "-f", str(file), code=2).stderr
    assert nsnet("delete", "-n", "shop", "-f", str(file)).stdout == 'configmap "other" deleted\n'


def test_every_object_can_be_described() -> None:
    for kind in ("po", "svc", "no", "deploy", "rs", "ep", "eps", "ns", "leases", "clusters"):
        assert nsnet("describe", kind).stdout.startswith("Name: ")


def test_rules_leases_and_conntrack(pod: str) -> None:
    nsnet("exec", "host/client", "--", "curl", "-sS", "-m", "5", "http://172.18.0.2:30080/hostname")
    assert "default/web-public" in nsnet("conntrack", "node/node1").stdout
    rules = nsnet("rules", "node/node1", "--service", "web-public").stdout
    assert f"({pod.replace('/', ' ')})" in rules
    assert "to node port 30080, on any address of this node" in rules
    assert [line.split()[:3] for line in nsnet("leases").stdout.splitlines()[1:]] == [
        ["10.244.1.0/24", "node1", "172.18.0.2"],
        ["10.244.2.0/24", "node2", "172.18.0.3"],
    ]


def test_logs_and_list_and_doctor() -> None:
    assert " runs" in nsnet("logs").stdout
    assert 'has no log of "nobody"' in nsnet("logs", "nobody", code=2).stderr
    assert nsnet("list", "-o", "name").stdout == "quickstart\n"
    assert {item["ok"] for item in json.loads(nsnet("doctor", "-o", "json").stdout) if item["needed"]} == {True}
