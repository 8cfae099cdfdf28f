"""nsnet --rootless as a real unprivileged user: everything works, and the machine is as it was.

The user is a number that nobody has (4711), with an empty home. What it must be able to read (this checkout, the
interpreter) may lie where only root may look; a mount namespace of the test's own shows it there, and nothing else.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from nsnet.kernel import rootless

ROOT = Path(__file__).parents[2]
UID = 4711
QUICKSTART = str(ROOT / "topologies" / "quickstart.yaml")
NSNET = (sys.executable, "-m", "nsnet")
POD = "apiVersion: v1\nkind: Pod\nmetadata: {name: extra}\nspec: {containers: [{name: c}]}\n"
SEEN = (sys.base_prefix, str(ROOT), sys.prefix)  # what lies in another one after it

AS_USER = str(Path(__file__).with_name("as_user"))


class User:
    """Somebody without any right, in a home of their own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.words = (AS_USER, str(UID), str(home), " ".join(SEEN))
        self.env = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(ROOT)}

    def run(self, *words: str, code: int | None = 0, env: dict[str, str] | None = None) -> str:
        """stdout and stderr of a command of theirs."""
        done = subprocess.run(
            (*self.words, *words), env=self.env | (env or {}), capture_output=True, text=True, check=False, timeout=180
        )
        assert code is None or done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def nsnet(self, *words: str, code: int | None = 0) -> str:
        return self.run(*NSNET, "--rootless", *words, code=code)


class Up(NamedTuple):
    """Their cluster, and what the machine was like before it."""

    user: User
    before: dict[str, str]

    def nsnet(self, *words: str, code: int | None = 0) -> str:
        return self.user.nsnet(*words, code=code)


@pytest.fixture(scope="module")
def user() -> Iterator[User]:
    found = rootless.user_namespaces()
    if not found.ok:
        pytest.skip(f"no user namespaces here: {found.mend}")
    before = os.umask(0o022)  # verbs that tests before these ran in this process have a stricter one
    home = Path(tempfile.mkdtemp(prefix="nsnet-user-"))
    os.chown(home, UID, UID)
    home.chmod(0o755)
    someone = User(home)
    try:
        yield someone
    finally:
        someone.nsnet("down", "--all", code=None)
        shutil.rmtree(home, ignore_errors=True)
        os.umask(before)


@pytest.fixture(scope="module")
def up(user: User) -> Up:
    """With Services, DNS (the real dnsmasq), an Ingress (the real HAProxy) and a load balancer, all of it verified."""
    before = machine()
    assert "checks passed" in user.nsnet("up", str(ROOT / "topologies" / "ingress.yaml"))
    return Up(user, before)


def machine() -> dict[str, str]:
    """What is the machine's own, and changes when somebody with root's rights makes a cluster."""
    asked = (("ip", "-d", "link"), ("ip", "route"), ("iptables-save",))
    said = {str(words): _lines(subprocess.run(words, capture_output=True, text=True, check=False)) for words in asked}
    folders = [Path(name) for name in ("/run", "/run/netns", "/etc/netns", "/var/lib/nsnet")]
    listed = {str(folder): str(sorted(folder.iterdir())) for folder in folders if folder.is_dir()}
    knobs = [*Path("/proc/sys/net/ipv4").glob("ip_*"), *Path("/proc/sys/net/bridge").glob("*")]
    sysctls = {str(knob): knob.read_text() for knob in knobs if os.access(knob, os.R_OK)}
    return {**said, **listed, **sysctls, "mounts": Path("/proc/self/mounts").read_text()}


def _lines(done: subprocess.CompletedProcess[str]) -> str:
    """What it printed, without comments: they have the time of day in them."""
    return "".join(line for line in done.stdout.splitlines(keepends=True) if not line.startswith("#"))


def homes() -> int:
    """How many process 1s of such a home there are."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            count += b"nsnet.kernel.holder" in path.read_bytes().split(b"\0")
        except OSError:
            continue
    return count


def _until_no_home() -> None:
    deadline = time.monotonic() + 20
    while homes() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert homes() == 0


def test_the_machine_is_as_it_was(up: Up) -> None:
    assert machine() == up.before
    assert homes() == 1


def test_later_verbs_join_it(up: Up) -> None:
    pod = up.nsnet("get", "po", "-o", "name").split()[0]
    assert up.nsnet("exec", pod, "--", "curl", "-s", "http://service-b/hostname").startswith("b-")
    assert up.nsnet("exec", pod, "--", "hostname").strip() == pod.removeprefix("pod/")
    assert up.nsnet("exec", "host/client", "--", "curl", "-s", "http://app.sample.com/hostname").startswith("a-")
    assert "TCP 80, rows from, columns to" in up.nsnet("policy", "show", "--wanted", "--port", "80")
    up.nsnet("exec", pod, "--", "sh", "-c", "exit 7", code=7)
    assert homes() == 1


def test_a_packet_is_predicted_sent_and_seen(up: Up) -> None:
    pod = up.nsnet("get", "po", "-o", "name").split()[0]
    assert "intended, predicted and observed agree" in up.nsnet("trace", pod, "svc/service-b", "--live")


@pytest.mark.parametrize(("words", "env"), [(("status", "--rootless"), {}), (("status",), {"NSNET_ROOTLESS": "1"})])
def test_the_flag_stands_behind_the_verb_and_in_the_environment(up: Up, words: tuple[str], env: dict[str, str]) -> None:
    assert "healthy" in up.user.run(*NSNET, *words, env=env)


def test_without_it_the_error_says_so(up: Up) -> None:
    assert "or without root: nsnet --rootless status" in up.user.run(*NSNET, "status", code=5)


def test_files_are_read_and_written_where_one_stands(up: Up) -> None:
    (up.user.home / "pod.yaml").write_text(POD)
    up.nsnet("apply", "-f", "pod.yaml")
    assert "extra" in up.nsnet("get", "po")
    up.nsnet("capture", "pod/extra", "--duration", "0.2s", "-w", "seen.pcapng")
    assert (up.user.home / "seen.pcapng").stat().st_uid == UID


def test_down_leaves_nothing(up: Up) -> None:
    assert "cluster ingress is gone" in up.nsnet("down")
    assert machine() == up.before
    _until_no_home()
    assert list((up.user.home / ".local/state/nsnet").iterdir()) == []


def test_it_lives_as_long_as_its_controller(user: User) -> None:
    """Whoever kills that, and what would start it again, ends all of it; only the store is left to go on from."""
    user.nsnet("up", "--no-verify", QUICKSTART)
    user.run("kill", "-9", *user.run("pgrep", "-u", str(UID), "-f", "nsnet.controller").split())
    _until_no_home()
    assert "quickstart" in user.nsnet("list")


def test_where_user_namespaces_are_off_the_switch_is_named(user: User) -> None:
    """The limit is one of a user namespace: here of one of the test's own, so that the machine keeps its."""
    off = ("unshare", "--user", "--map-root-user", "sh", "-c")
    script = 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"'
    said = user.run(*off, script, "sh", *NSNET, "--rootless", "up", QUICKSTART, code=5)
    assert "user namespaces are not to be had: a user namespace: unshare: No space left on device" in said
    assert "hint: sudo sysctl -w user.max_user_namespaces=" in said
