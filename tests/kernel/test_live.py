"""Live traces on real clusters: what is predicted is what is seen, for every kind of pair; and what is left behind.

A random choice predicts a set of ways; the one observed is in it. Where they differ it is a defect of the walk.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from nsnet import controller, kernel, model
from nsnet.cli import trace
from nsnet.kernel import nftables, ruletrace
from nsnet.model import Objects
from nsnet.state import NftTable
from nsnet.store.objects import load_objects
from nsnet.store.sqlite import open_store
from nsnet.verify import world as worlds
from tests import agreeing
from tests.kernel import needs

ROOT = Path(__file__).parents[2]
ENV = {name: value for name, value in os.environ.items() if not name.startswith("NSNET_")} | {"PYTHONPATH": str(ROOT)}
NSNET = (sys.executable, "-m", "nsnet")
SHOWN = 5  # disagreements
PIECEMEAL = 50  # packets for which all is read once more
LONGEST = 600  # s of one verb: in a virtual machine without KVM an `up` takes two minutes


def nsnet(*words: str, code: int = 0, stdin: str | None = None) -> str:
    done = subprocess.run(
        [*NSNET, *words], capture_output=True, text=True, env=ENV, check=False, timeout=LONGEST, input=stdin
    )
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(autouse=True)
def _down() -> Iterator[None]:
    yield
    nsnet("down", "--all")


def up(topology: str, mode: str, backend: str = "vxlan") -> Objects:
    """The topology in this mode, with this backend of flannel's; its objects as they are stored."""
    nsnet("up", "--no-verify", "-", stdin=agreeing.document(topology, "live", mode, backend))
    store = open_store("live")
    try:
        return load_objects(store, pytest.fail)[0]
    finally:
        store.close()


NAMES = sorted(path.stem for path in agreeing.TOPOLOGIES.glob("*.yaml"))
ROWS = [*((name, mode) for name in NAMES for mode in ("iptables", "nftables")), ("userspace", "userspace")]


@pytest.mark.parametrize(("topology", "mode"), ROWS, ids=map(" ".join, ROWS))
def test_predicted_is_observed_is_intended(topology: str, mode: str) -> None:
    """Every pair, Service and port on every topology. (With every fault as well: `scripts/bench agree`.)"""
    objects = up(topology, mode)
    all_agree(objects, agreeing.asked(objects, everybody=True))


def all_agree(objects: Objects, packets: Iterable[agreeing.Question]) -> None:
    """Intended, predicted (read at once, and piece by piece) and observed."""
    state, piecemeal, every = kernel.observe("live"), kernel.look("live"), list(packets)
    assert len(every) > 5
    for start, packet in every[:: max(1, len(every) // PIECEMEAL)]:
        found = trace.traced(state, start, packet)
        assert trace.traced(piecemeal, start, packet) == found, "read piece by piece it is the same"
    wrong = agreeing.differences(objects, state, every)
    assert not wrong, f"{len(wrong)} of {len(every)}:\n" + "\n".join(wrong[:SHOWN])


TUNNELS = [  # what trace says, and what capture shows on node1
    ("udp", "tun", r"^  process flannel_udp: to 172\.18\.0\.\d$", r" eth0 out udp 172\.\S+ → \S+ \| tcp 10\.244\."),
    ("ipip", "ipip", r"^  ipip to 172\.18\.0\.\d$", r" eth0 out ipip 172\.\S+ → \S+ \| tcp 10\.244\."),
    ("wireguard", "wireguard", r"^note: what leaves flannel-wg is encrypted: ", r" flannel-wg out tcp 10\.244\."),
]  # fmt: skip


@pytest.mark.parametrize(("backend", "feature", "live", "captured"), TUNNELS, ids=[row[0] for row in TUNNELS])
def test_through_flannels_other_tunnels(backend: str, feature: str, live: str, captured: str) -> None:
    """What can be unwrapped is: by `trace --live` and by `capture`; of WireGuard they say that nobody can."""
    needs.features(feature)
    objects = up("quickstart", "iptables", backend)
    between = {pod.address for pod in worlds.world(objects).pods}
    all_agree(objects, ((start, packet) for start, packet in agreeing.asked(objects) if packet.dst in between))
    pods = {pod.spec.nodeName: pod for pod in model.of(objects, model.Pod) if pod.metadata.namespace == "default"}
    near, far = pods["node1"].metadata.name, pods["node2"].metadata.name
    words = (*NSNET, "capture", "node/node1", "--duration", "600s", "tcp[tcpflags] & tcp-syn != 0 and port 80")
    capture = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV)
    assert capture.stderr is not None
    assert capture.stderr.readline().startswith("capturing on ")
    said = nsnet("trace", near, f"pod/{far}", "--live")
    assert said.endswith("verdict:   intended, predicted and observed agree\n")
    assert re.search(live, said, re.MULTILINE), said
    capture.send_signal(signal.SIGINT)
    out, words_of_end = capture.communicate(timeout=30)
    assert capture.returncode == 0, words_of_end
    assert re.search(captured, out), out + words_of_end


def test_where_an_fdb_entry_is_missing() -> None:
    """The sentence: what is promised, what the rules do, where it was last seen, and what is missing."""
    objects = up("quickstart", "iptables")
    controller.stop("live")
    pods = {pod.spec.nodeName: pod for pod in model.of(objects, model.Pod) if pod.metadata.namespace == "default"}
    fdb = ("bridge", "-n", "live.node.node1", "fdb")
    listed = subprocess.run((*fdb, "show", "dev", "flannel.1"), capture_output=True, text=True, check=True).stdout
    (entry,) = [line.split()[0] for line in listed.splitlines() if " dst 172.18.0.3" in line]
    before = kernel.observe("live")
    subprocess.run((*fdb, "del", entry, "dev", "flannel.1", "dst", "172.18.0.3"), check=True)
    every = [one for one in agreeing.asked(objects) if one[0].netns.endswith(f".{pods['node1'].metadata.name}")]
    assert agreeing.differences(objects, kernel.observe("live"), every, meant=False) == []
    wrong = agreeing.differences(objects, before, every, meant=False)
    assert wrong, "who goes by a state of before is told"
    assert {sentence.rpartition("; ")[2] for sentence in wrong} == {"it never came out eth0 of node/node1"}
    near, far = pods["node1"].metadata.name, pods["node2"].metadata.name
    said = nsnet("trace", near, f"pod/{far}", "--live", code=1).splitlines()
    assert said[-2] == "observed:  lost, last seen in node/node1"
    assert said[-1] == (
        f"verdict:   should reach pod/{far} via flannel.1; it comes to out flannel.1 of node/node1; unreachable at "
        f"node/node1: flannel.1 has no FDB entry for {entry}, the MAC of 10.244.2.0; observed as predicted"
    )


def test_a_rule_that_nobody_predicted_is_named() -> None:
    """A table that the look does not read: the walk passes it, the packet does not; the kernel says by which rule."""
    objects = up("quickstart", "iptables")
    controller.stop("live")
    pods = {pod.spec.nodeName: pod for pod in model.of(objects, model.Pod) if pod.metadata.namespace == "default"}
    words = "add table inet other; add chain inet other c { type filter hook forward priority 5; }; "
    words += "add rule inet other c tcp dport 80 drop"
    subprocess.run(("ip", "netns", "exec", "live.node.node2", "nft", words), check=True)
    near, far = pods["node1"].metadata.name, pods["node2"].metadata.name
    last = nsnet("trace", near, f"pod/{far}", "--live", code=1).splitlines()[-1]
    assert last.endswith("; last seen in flannel.1 of node/node2; dropped by other c: rule handle 2")


# --- what is left behind ----------------------------------------------------------------------------------------------


def _tables(netns: str) -> str:
    words = ("ip", "netns", "exec", netns, "nft", "list", "tables")
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def test_the_table_lives_as_long_as_its_maker_and_is_no_drift() -> None:
    up("quickstart", "iptables")
    code = (
        "import sys, time; from nsnet.kernel.ruletrace import RuleTrace, Match\n"
        "with RuleTrace(['live.node.node1'], 6, [Match(4, b'1234')]): print('there', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen((sys.executable, "-c", code), stdout=subprocess.PIPE, env=ENV)
    assert process.stdout is not None
    assert process.stdout.readline() == b"there\n"
    assert "table inet nsnet-trace" in _tables("live.node.node1")
    assert json.loads(nsnet("status", "-o", "json"))["drift"] == []
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert "nsnet-trace" not in _tables("live.node.node1")


def test_one_without_an_owner_is_drift() -> None:
    up("quickstart", "iptables")
    controller.stop("live")
    subprocess.run(("ip", "netns", "exec", "live.node.node1", "nft", "add table ip nsnet-trace"), check=True)
    assert NftTable("nsnet-trace") in nftables.read("live.node.node1")
    with ruletrace.RuleTrace(["live.node.node2"], 6, [ruletrace.Match(4, b"1234")]):
        assert nftables.read("live.node.node2") == frozenset()


# --- the other ways to look -------------------------------------------------------------------------------------------


def test_a_change_by_hand_is_found_and_explained() -> None:
    """A snapshot, a knob turned, and: what changed, what verify says, and the page, picture and JSON of it all."""
    up("quickstart", "iptables")
    controller.stop("live")
    assert nsnet("snapshot", "before").startswith("before: ")
    assert nsnet("snapshot") == "before\n"
    assert nsnet("diff", "before") == ""
    words = ("ip", "netns", "exec", "live.node.node1", "sysctl", "-qw", "net.ipv4.ip_forward=0")
    subprocess.run(words, check=True)
    assert nsnet("diff", "before", code=1).splitlines() == [
        "live.node.node1", "- sysctl -w net.ipv4.ip_forward=1", "+ sysctl -w net.ipv4.ip_forward=0",
    ]  # fmt: skip
    said = json.loads(nsnet("verify", "--only", "^pod-to-pod", "-o", "json", code=1))["results"]
    why = {one.get("why", "").rpartition("; ")[2] for one in said if one["status"] == "failed"}
    assert "dropped at node/node1: net.ipv4.ip_forward is 0" in why
    page = nsnet("explain", "node/node1")
    assert "    sysctl -w net.ipv4.ip_forward=0\n          the node routes between its pods and the network\n" in page
    assert "    no device has this address" not in page
    assert nsnet("explain", "svc/web").startswith("Service default/web\n  type ClusterIP, clusterIP 10.96.")
    assert json.loads(nsnet("graph", "-o", "json"))["cluster"] == "live"
    nsnet("diff", "befor", code=2)
    nsnet("snapshot", "../x", code=2)
