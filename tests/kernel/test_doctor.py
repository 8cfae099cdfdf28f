"""doctor's answers, compared with what then works: tools, limits, mounts and modules are taken away one at a time."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nsnet import names
from nsnet.kernel import apply, features, netns
from nsnet.state import Chain, Change, Value, Vxlan
from tests.byhand import adds, namespace

ROOT = Path(__file__).parents[2]
NSNET = (sys.executable, "-m", "nsnet")
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}
NODE = names.node_netns("doc", "node1")


def examined(*before: str, **env: str) -> dict[str, dict[str, Any]]:
    """What doctor says, by name; `before`: the words to run it with."""
    words = (*before, *NSNET, "doctor", "-o", "json")
    done = subprocess.run(words, capture_output=True, text=True, env=ENV | env, check=False, timeout=120)
    assert done.stderr == ""
    found: list[dict[str, Any]] = json.loads(done.stdout)
    assert done.returncode == (5 if any(item["needed"] and not item["ok"] for item in found) else 0)
    return {item["name"]: item for item in found}


# --- tools ------------------------------------------------------------------------------------------------------------


def test_a_tool_that_is_not_in_path_is_missing_and_up_says_so(tmp_path: Path) -> None:
    for tool in features.TOOLS:
        if tool.name != "dnsmasq" and (where := shutil.which(tool.name)):
            (tmp_path / tool.name).symlink_to(where)
    for helper in ("unshare", "true", "test"):
        (tmp_path / helper).symlink_to(shutil.which(helper) or "")
    found = examined(PATH=str(tmp_path))
    tools = {name: item["state"] for name, item in found.items() if item["about"] == "tools"}
    assert [name for name, state in tools.items() if state != "ok"] == ["dnsmasq"]
    assert found["dnsmasq"]["mend"] == "sudo apt-get install dnsmasq-base"

    up = subprocess.run(
        (*NSNET, "up", "--no-verify", str(ROOT / "topologies" / "quickstart.yaml")),
        capture_output=True, text=True, env=ENV | {"PATH": str(tmp_path)}, check=False, timeout=120,
    )  # fmt: skip
    subprocess.run((*NSNET, "down", "--all"), env=ENV, check=True, capture_output=True, timeout=120)
    assert up.returncode == 5
    assert "dnsmasq" in up.stderr
    assert "hint: sudo apt-get install dnsmasq-base" in up.stderr


def test_every_tool_that_is_there_says_its_version() -> None:
    assert [item.name for item in features.tools() if item.ok and not item.found[:1].isdigit()] == []


# --- limits and mounts ------------------------------------------------------------------------------------------------

OWN_NUMBERS = ("unshare", "--user", "--map-root-user", "--mount", "--net", "sh", "-c")


def test_a_user_that_may_have_no_network_namespace_is_told() -> None:
    """The numbers under /proc/sys/user belong to the user namespace: here to one of our own."""
    few = 'echo 5 >/proc/sys/user/max_net_namespaces && exec "$@"'
    found = examined(*OWN_NUMBERS, few, "sh")
    limit = found["user.max_net_namespaces"]
    assert (limit["state"], limit["found"]) == ("degraded", "5")
    assert limit["mend"] == "sudo sysctl -w user.max_net_namespaces=2000"
    assert found["veth"]["state"] == "ok"  # the try needs just one

    none = 'echo 0 >/proc/sys/user/max_net_namespaces && exec "$@"'
    found = examined(*OWN_NUMBERS, none, "sh")
    assert found["network namespaces"]["state"] == "missing"
    assert found["network namespaces"]["needed"]


def test_few_open_files_are_told() -> None:
    found = examined("prlimit", "--nofile=1024:1024")["open files (ulimit -Hn)"]
    assert (found["state"], found["found"]) == ("degraded", "1024")


@pytest.mark.parametrize(("how", "state"), [("private", "degraded"), ("shared", "ok")])
def test_where_names_of_namespaces_are_seen(how: str, state: str) -> None:
    """In a PID namespace of its own the command is init, so that its mounts are init's."""
    words = ("unshare", "--mount", "--propagation", how, "--pid", "--fork", "--mount-proc")
    mounts = [item for item in examined(*words).values() if item["about"] == "mounts"]
    assert [item["state"] for item in mounts] == [state]
    assert ("--make-shared" in mounts[0]["mend"]) == (how == "private")


def test_a_cluster_that_nobody_looks_after_is_a_leftover() -> None:
    assert apply(adds(namespace(NODE))) == []
    try:
        left = examined()["cluster doc"]
    finally:
        netns.delete(NODE)
    assert (left["state"], left["found"]) == ("degraded", "1 namespace, no controller")
    assert "down doc" in left["mend"]
    assert examined()["leftovers of clusters"]["state"] == "ok"


# --- modules ----------------------------------------------------------------------------------------------------------

LOADER = Path("/proc/sys/kernel/modprobe")  # what the kernel runs for a module it wants
MODULES: dict[str, tuple[str, Value | None]] = {  # feature → its module, and what cannot be written without it
    "vxlan": ("vxlan", Vxlan("flannel.9", "02:00:00:00:00:09", 1450, 9, "127.0.0.1", "lo")),
    "statistic match": (
        "xt_statistic",
        Chain("nat", "STAT", ("-m statistic --mode nth --every 2 --packet 0 -j ACCEPT",)),
    ),
    "recent match": (
        "xt_recent",
        Chain("nat", "RECENT", ("-m recent --set --name doc --mask 255.255.255.255 --rsource -j ACCEPT",)),
    ),
    "ipip": ("ipip", None),
    "wireguard": ("wireguard", None),
    "netem": ("sch_netem", None),
    "tbf": ("sch_tbf", None),
}


@pytest.fixture
def _no_loading() -> Iterator[None]:
    """Only in the virtual machine of scripts/test-in-vm: on any other, modules are somebody's."""
    if not Path("/vm/command").exists():
        pytest.skip("takes modules from the kernel: in scripts/test-in-vm only")
    before = LOADER.read_text()
    LOADER.write_text("/bin/false")
    yield
    LOADER.write_text(before)


def _without(module: str) -> None:
    """Unloads it; a namespace that went a moment ago may still hold it."""
    deadline = time.monotonic() + 30
    while Path("/sys/module", module).exists():
        done = subprocess.run(("rmmod", module), capture_output=True, text=True, check=False)
        assert done.returncode == 0 or time.monotonic() < deadline, done.stderr


@pytest.mark.usefixtures("_no_loading")
@pytest.mark.parametrize("name", MODULES)
def test_without_its_module_a_feature_is_missing_and_the_kernel_refuses(name: str) -> None:
    module, value = MODULES[name]
    feature = next(item for item in features.FEATURES if item.name == name)
    assert apply(adds(namespace(NODE))) == []
    try:
        _without(module)
        (found,) = features.features([feature])
        assert found.verdict == "missing"
        assert f"sudo modprobe {module} (kernel option CONFIG_" in found.mend
        refusals = apply([Change("add", NODE, value)]) if value else [None]
        assert len(refusals) == 1

        subprocess.run(("modprobe", module), check=True)  # what `mend` says
        (found,) = features.features([feature])
        assert (found.verdict, found.found) == ("ok", f"module {module}")
        assert value is None or apply([Change("add", NODE, value)]) == []
    finally:
        netns.delete(NODE)
