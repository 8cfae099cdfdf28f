"""A bundle of a cluster that does not do what it should: everything one looks for is in it, and no secret."""

import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsnet import names

ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}
KEY = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIOfnotarealkey\n-----END PRIVATE KEY-----\n"
TOPOLOGY = f"""
apiVersion: nsnet/v1
kind: Cluster
metadata: {{name: broken}}
nodes: 1
checks:
  - {{name: nobody is there, from: host/client, to: "tcp://172.18.0.2:9", expect: ok}}
---
apiVersion: v1
kind: Secret
metadata: {{name: sealed}}
stringData: {{password: correct-horse, tls.key: {json.dumps(KEY)}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: web, labels: {{app: web}}}}
spec:
  containers:
    - name: c
      image: nginx
      ports: [{{containerPort: 80}}]
      env: [{{name: API_TOKEN, value: t0ken-of-the-pod}}, {{name: LEVEL, value: verbose}}]
"""
SECRETS = ("correct-horse", "Y29ycmVjdC1ob3JzZ", "notarealkey", "t0ken-of-the-pod")


def nsnet(*words: str, code: int = 0, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "nsnet", *words)
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, env=ENV, check=False, timeout=120)
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The archive that a failed `up` left, and what was said of it."""
    directory = tmp_path_factory.mktemp("job") / "artifacts"
    said = nsnet("up", "--bundle-on-failure", str(directory), "-", code=1, stdin=TOPOLOGY).stderr
    (path,) = directory.iterdir()
    yield path, said
    nsnet("down", "--all")


def contents(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        found = {entry.name.partition("/")[2]: archive.extractfile(entry) for entry in archive.getmembers()}
        return {name: file.read().decode() for name, file in found.items() if file}


def test_a_failed_up_leaves_it_and_says_where(left: tuple[Path, str]) -> None:
    path, said = left
    assert f"bundle: {path}\n" in said
    found = contents(path)
    node = names.node_netns("broken", "node1")
    assert "ip link add cni0" in found[f"kernel/{node}.txt"]
    assert {f"kernel/{names.pod_netns('broken', 'default', 'web')}.txt", "logs/log/podserver.log"} <= found.keys()
    assert "KUBE-SERVICES" in found[f"tools/{node}.txt"]
    assert "flannel.1" in found[f"tools/{node}.txt"]
    assert "name: web" in found["objects.yaml"]
    assert "value: verbose" in found["objects.yaml"]
    assert found["drift.txt"] == "none\n"
    assert "nobody is there" in found["verify.xml"]
    assert {item["state"] for item in json.loads(found["doctor.json"]) if item["needed"]} == {"ok"}
    assert [name for name in found if name.endswith(".error.txt")] == []


def test_no_secret_is_in_any_file(left: tuple[Path, str]) -> None:
    """What a program logs counts as well, and a capture that holds one is left out."""
    run = names.run_dir("broken")
    (run / "log" / "own.log").write_text("called with t0ken-of-the-pod\n")
    (run / "one.pcapng").write_bytes(b"\x00GET /?p=correct-horse")
    (run / "other.pcapng").write_bytes(b"\x00GET /hostname")
    found = contents(Path(nsnet("bundle", str(left[0].parent)).stdout.strip()))
    assert [(name, secret) for name, text in found.items() for secret in SECRETS if secret in text] == []
    assert found["logs/log/own.log"] == "called with [redacted]\n"
    assert {name for name in found if name.startswith("captures/")} == {
        "captures/one.pcapng.error.txt", "captures/other.pcapng",
    }  # fmt: skip


def test_what_is_broken_itself_stands_in_it_as_the_reason(left: tuple[Path, str], tmp_path: Path) -> None:
    del left
    store = names.state_dir("broken")
    kept = store.rename(store.with_name("aside"))
    try:
        found = contents(Path(nsnet("bundle", str(tmp_path / "b.tar.gz"), "--cluster", "broken").stdout.strip()))
    finally:
        kept.rename(store)
    assert "Traceback" in found["objects.error.txt"]
    assert f"kernel/{names.node_netns('broken', 'node1')}.txt" in found


def test_ctrl_c_leaves_no_half_of_it(left: tuple[Path, str], tmp_path: Path) -> None:
    del left
    words = (sys.executable, "-m", "nsnet", "bundle", str(tmp_path))
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=ENV) as running:
        while not any(tmp_path.iterdir()):
            assert running.poll() is None
        running.send_signal(signal.SIGINT)
        said = running.communicate(timeout=60)[1]
    assert (running.returncode, said) == (130, "error: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_through_a_link_that_lay_in_wait(left: tuple[Path, str], tmp_path: Path) -> None:
    del left
    victim, file = tmp_path / "victim", tmp_path / "x.tar.gz"
    victim.write_text("as it was")
    for name in (".x.tar.gz.part", "x.tar.gz"):
        (tmp_path / name).symlink_to(victim)
    nsnet("bundle", str(file))
    assert victim.read_text() == "as it was"
    assert not file.is_symlink()
    assert f"error: {victim}/x: Not a directory" in nsnet("bundle", f"{victim}/x", code=2).stderr


def test_verify_leaves_one_too_and_where_it_cannot_the_failure_stays(left: tuple[Path, str], tmp_path: Path) -> None:
    del left
    nsnet("verify", "--only", "drift", "--bundle-on-failure", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    nsnet("verify", "--only", "nobody", "--bundle-on-failure", str(tmp_path / "some"), code=1)
    assert len(list((tmp_path / "some").iterdir())) == 1
    said = nsnet("verify", "--only", "nobody", "--bundle-on-failure", "/proc/none", code=1)
    assert "no bundle: " in said.stderr
