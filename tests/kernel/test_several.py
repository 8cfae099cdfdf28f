"""A cluster over three machines: spread, proved on each, and what holds when an agent, a link or a member fails."""

import contextlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from nsnet import model
from nsnet.model import Objects
from nsnet.store import members as machines
from nsnet.store.etcd import EtcdStore
from nsnet.store.keys import CHARGE, FENCE, GONE, MACHINES
from nsnet.store.location import parsed
from nsnet.store.objects import load_objects
from tests.etcds import Member, need_etcd, until
from tests.several import ENV, Box, Ssh, boxes, members

ROUNDS = int(os.environ.get("NSNET_TEST_ROUNDS") or 2)  # 200 on request
LOG = logging.getLogger(__name__)  # --log-cli-level=INFO shows each round
CONVERGED = 60.0  # seconds, on a machine that does other things, too
CLUSTER = """
apiVersion: nsnet/v1
kind: Cluster
metadata: {name: multi}
underlay:
  machines: [{name: a, address: 192.0.2.1}, {name: b, interface: wire}, {name: c, address: 192.0.2.3}]
nodes: [{name: node1}, {name: node2}, {name: node3, machine: c}]
---
"""
QUICKSTART = Path(__file__).parents[2] / "topologies" / "quickstart.yaml"


class Spread(NamedTuple):
    """The quickstart over machines a, b and c."""

    boxes: dict[str, Box]
    etcd: list[Member]
    url: str
    file: Path

    def nsnet(self, name: str, *words: str, code: int | None = 0) -> str:
        return self.boxes[name].nsnet(*words, code=code)

    def get(self, *words: str, at: str = "a") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.nsnet(at, "get", *words, "-o", "json"))["items"]
        return found

    def ready(self, at: str = "a") -> dict[str, bool]:
        """Pod → is it ready, of the web Deployment."""
        return {pod["metadata"]["name"]: _ready(pod) for pod in self.get("pods", at=at)}

    def on(self, node: str, at: str = "a") -> list[str]:
        return [pod["metadata"]["name"] for pod in self.get("pods", at=at) if pod["spec"]["nodeName"] == node]

    def agents(self, name: str) -> list[int]:
        """Pids of the machine's supervisor and controller, as the machine sees them."""
        found = self.boxes[name].run("pgrep", "-f", "nsnet.controller --cluster multi", code=None).split()
        return [int(pid) for pid in found]

    def kill(self, name: str) -> None:
        for pid in sorted(self.agents(name)):  # the supervisor first
            self.boxes[name].run("kill", "-9", str(pid), code=None)

    def join(self, name: str) -> None:
        self.nsnet(name, "agent", "--store", self.url, "--machine", name)

    def curl(self, name: str, pod: str, url: str) -> str:
        """From a pod of that machine, without asking the store."""
        argv = ("ip", "netns", "exec", f"multi.pod.default.{pod}", "curl", "-s", "--max-time", "3", url)
        return self.boxes[name].run(*argv)


def _ready(obj: dict[str, Any]) -> bool:
    conditions = obj["status"].get("conditions", [])
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spread]:
    need_etcd()
    directory = tmp_path_factory.mktemp("several")
    docs = QUICKSTART.read_text().split("\n---\n")
    file = directory / "multi.yaml"
    file.write_text(CLUSTER + "\n---\n".join(doc for doc in docs if "kind: Cluster" not in doc))
    with boxes("abc") as made, members(directory, 3) as (url, etcd):
        up = made["a"].begin("up", str(file), "--store", url, "--machine", "a", "--timeout", "100s")
        others = [made[name].begin("agent", "--store", url, "--machine", name, "--timeout", "100s") for name in "bc"]
        for process in (*others, up):
            said, _ = process.communicate(timeout=170)
            assert process.returncode == 0, said
        yield Spread(made, etcd, url, file)


def test_the_quickstart_is_verified_in_full(spread: Spread) -> None:
    """Every expectation is somebody's to ask, and nobody's twice; nodes are spread, and each machine has its own."""
    every: set[str] = set()
    for name, box in spread.boxes.items():
        listed = json.loads(box.nsnet("verify", "--list", "-o", "json").partition("note:")[0])
        names = [json.dumps(item, sort_keys=True) for item in listed]
        assert not every & set(names)
        every |= set(names)
        assert "passed" in spread.nsnet(name, "verify", "--retry", "3").splitlines()[-2]
        spaces = box.run("ls", "/run/netns").split()
        assert [item for item in spaces if ".node." in item] == [f"multi.node.node{'abc'.index(name) + 1}"]
        assert ("multi.host.client" in spaces) is (name == "a")
    assert len(every) > 150
    nodes = {node["metadata"]["name"]: node for node in spread.get("nodes")}
    assert all(map(_ready, nodes.values()))


def test_an_agent_that_dies_leaves_its_pods_reachable_and_not_ready(spread: Spread) -> None:
    pod = spread.on("node3")[0]
    address = next(item["status"]["podIP"] for item in spread.get("pods") if item["metadata"]["name"] == pod)
    spread.kill("c")
    until(lambda: not spread.ready()[pod], "its pods are not ready after the lease", CONVERGED)
    until(lambda: not all(map(_ready, spread.get("nodes"))), "nor is its node", CONVERGED)
    asker = spread.on("node1")[0]
    assert spread.curl("a", asker, f"http://{address}/hostname").strip() == pod
    assert {spread.curl("a", asker, "http://web/hostname").strip() for _ in range(12)} <= set(spread.ready()) - {pod}
    spread.join("c")
    until(lambda: all(spread.ready().values()), "it comes back", CONVERGED)


def test_two_machines_cannot_go_by_one_name(spread: Spread) -> None:
    refused = spread.nsnet("b", "agent", "--store", spread.url, "--machine", "c", code=2)
    assert "this machine has cluster multi already, as machine b" in refused
    with boxes_of_a_fourth(spread) as fourth:
        refused = fourth.nsnet("agent", "--store", spread.url, "--machine", "c", code=2)
        assert "machine c has the address 192.0.2.3, and this machine has not" in refused
        fourth.run("ip", "address", "add", "192.0.2.3/32", "dev", "lo")
        refused = fourth.nsnet("agent", "--store", spread.url, "--machine", "c", code=2)
        assert "another machine goes by the name c" in refused
        assert fourth.run("ls", "/run/netns", code=None).strip().endswith("No such file or directory")
        refused = fourth.nsnet("agent", "--store", spread.url, "--machine", "x", code=2)
        assert 'cluster multi has no machine "x"' in refused
        assert "there are: a, b, c" in refused


class boxes_of_a_fourth:  # noqa: N801 - with boxes_of_a_fourth(spread) as fourth
    def __init__(self, spread: Spread) -> None:
        del spread

    def __enter__(self) -> Box:
        self.box = Box("d", "192.0.2.4")
        self.box.plug()
        return self.box

    def __exit__(self, *_: object) -> None:
        self.box.end()


def test_a_machine_that_is_cut_off_goes_on_and_follows_when_it_is_back(spread: Spread) -> None:
    spread.boxes["b"].unplug()
    spread.nsnet("a", "scale", "deploy/web", "--replicas", "5")
    spread.boxes["b"].replug()
    until(lambda: len(spread.ready()) == 5 and all(spread.ready().values()), "it follows", CONVERGED)
    until(lambda: "passed" in spread.nsnet("b", "verify", "--retry", "3", code=None), "it converges", CONVERGED)
    spread.nsnet("b", "scale", "deploy/web", "--replicas", "3")
    until(lambda: len(spread.ready()) == 3 and all(spread.ready().values()), "and back", CONVERGED)


class Remote(NamedTuple):
    """nsnet on a machine that reaches the others by ssh."""

    box: Box
    rsh: str

    def nsnet(self, *words: str, code: int | None = 0) -> str:
        return self.box.run(*self._argv(*words), code=code)

    def _argv(self, *words: str) -> tuple[str, ...]:
        return ("env", f"NSNET_RSH={self.rsh}", sys.executable, "-m", "nsnet", *words)

    @contextlib.contextmanager
    def watching(self, *words: str) -> Iterator["subprocess.Popen[str]"]:
        """A capture that has begun."""
        argv = self.box.inside(*self._argv(*words))
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV) as process:
            assert process.stderr is not None
            while not process.stderr.readline().startswith("capturing"):
                assert process.poll() is None
            yield process


@pytest.fixture(scope="module")
def ssh(spread: Spread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ssh]:
    with Ssh(spread.boxes, tmp_path_factory.mktemp("ssh")) as found:
        yield found


def test_verbs_reach_what_another_machine_carries(spread: Spread, ssh: Ssh) -> None:
    """By ssh, whose words and exit codes are theirs."""
    pod = spread.on("node2")[0]
    c = Remote(spread.boxes["c"], ssh.rsh)
    script = "hostname; echo $1; exit 7"
    said = c.nsnet("exec", pod, "--", "sh", "-c", script, "sh", "a b'c", code=7)
    assert said.split("\n")[:2] == [pod, "a b'c"]
    assert c.nsnet("verify", "--everywhere", "--only", "service", "--retry", "3").count("checks passed") == 3
    assert "KUBE-SVC" in c.nsnet("rules", "node/node1")
    nowhere = c._replace(rsh="/nowhere").nsnet("exec", pod, "--", "true", code=5)
    assert "NSNET_RSH says how other machines are reached" in nowhere

    lost = c._replace(rsh="/nowhere").nsnet("trace", pod, "svc/web", code=1)
    assert "what machine b carries is left out; NSNET_RSH says how" in lost
    assert "is on machine b, which cannot be reached" in lost


def _there(found: str) -> Any:
    """The JSON of what a verb said on stdout; notes and warnings come behind it."""
    return json.JSONDecoder().raw_decode(found)[0]


def test_a_trace_goes_over_machines(spread: Spread, ssh: Ssh) -> None:
    """Asked for on either end or on a third: predicted from all kernels, and seen on all; here they have one clock."""
    source, to = spread.on("node1")[0], spread.on("node2")[0]
    ways = (
        (source, f"pod/{to}", ("a node-node1 → trunk", "b trunk → node-node2")),
        (to, "host/client", ("b node-node2 → trunk", "a trunk → router", "a router → host-client")),
        ("host/client", "node/node3:30080", ("a host-client → router", "a router → trunk", "c trunk → node-node3")),
    )
    for asker, (start, end, crossed) in zip("cab", ways, strict=True):
        there = Remote(spread.boxes[asker], ssh.rsh)
        icmp = ("--icmp",) if ":" not in end else ()
        found = _there(there.nsnet("trace", start, end, *icmp, "-o", "json"))
        live = _there(there.nsnet("trace", start, end, *icmp, "--live", "-o", "json"))
        for hops in (found["ways"][0]["hops"], live["observed"]["hops"]):
            assert [bridged_hop(hop, asker) for hop in hops if hop["what"].startswith("bridge")][: len(crossed)] == [
                *crossed
            ]
        assert {way["result"] for way in found["ways"]} == {"delivered"}
        assert (live["observed"]["end"], live["agree"]) == ("answered", True)
    here = Remote(spread.boxes["a"], "/nowhere")
    lost = here.nsnet("trace", source, f"pod/{to}", code=1)
    assert "trunk leads to 192.0.2.2, a machine of which nothing is known here" in lost


def bridged_hop(hop: dict[str, Any], asker: str) -> str:
    """`a node-node1 → trunk`: on which machine, and by which ports."""
    machine = hop["where"].partition(" on machine ")[2] or asker
    return f"{machine} {hop['what'].partition(', ')[2]}"


def test_a_capture_merges_what_machines_see(spread: Spread, ssh: Ssh) -> None:
    """On a third machine, in true order; whoever watches may be killed, and nothing is left on the others."""
    source, to = spread.on("node1")[0], spread.on("node2")[0]
    address = next(item["status"]["podIP"] for item in spread.get("pods") if item["metadata"]["name"] == to)
    c = Remote(spread.boxes["c"], ssh.rsh)
    words = ("capture", f"pod/{to}", "--all-hops", "-o", "json", "tcp[tcpflags] & tcp-syn != 0 and host", f"pod/{to}")
    with c.watching(*words, "-c", "13") as watching:
        spread.curl("a", source, f"http://{address}/hostname")
        said, _ = watching.communicate(timeout=60)
    passed = [f"{one['where']} {one['device']}" for one in map(json.loads, said.splitlines()) if "device" in one]
    assert [where for where in passed if "flannel" in where or "switch" in where or "pod/" in where] == [
        "node/node1 flannel.1",
        "switch nodes on machine a node-node1",
        "switch nodes on machine a trunk",
        "switch nodes on machine b trunk",
        "switch nodes on machine b node-node2",
        "node/node2 flannel.1",
        f"pod/{to} eth0",
    ]
    with c.watching(*words) as watching:
        spread.boxes["b"].run("pgrep", "-f", "nsnet --cluster multi beside")
        c.box.kill("nsnet capture")
    asked = ("pgrep", "-f", "nsnet --cluster multi beside")
    until(lambda: not spread.boxes["b"].run(*asked, code=None), "nobody is left there", CONVERGED)


def test_an_agent_started_twice_changes_nothing(spread: Spread) -> None:
    """Its controller lives: the others go on hearing of it, and it stays in charge if it was."""
    with EtcdStore(parsed(spread.url)) as store:

        def leases() -> list[int]:
            return [entry.lease for entry in map(store.get, (CHARGE, MACHINES + "c")) if entry]

        before = leases()
        assert len(before) == 2
        spread.join("c")
        assert leases() == before
        store.txn({}, {MACHINES + "c": None})
        until(lambda: leases() == before, "what somebody took away comes back", CONVERGED)
        until(lambda: _converged(spread, store), "and everything is as it was", CONVERGED)


def test_what_holds_whoever_fails(spread: Spread) -> None:
    """Members, agents and links fail at random while Services come and go.

    After each round: everything written is there, no address or port is given twice, whatever control wrote was written
    by the machine that had the charge at that very revision, and the cluster is as its objects say.
    """
    chance = random.Random(2379)
    promised: set[str] = set()
    with EtcdStore(parsed(spread.url)) as store:
        history = History(store)
        for number in range(ROUNDS):
            what, mend = _break_something(spread, chance, store)
            name, at = f"svc-{number}", chance.choice("abc")
            if chance.random() < 0.7 or not promised:
                if _written(spread, at, name):
                    promised.add(name)
            else:
                gone = min(promised)
                promised.discard(gone)  # it is deleted, or we do not know
                spread.nsnet(at, "delete", "service", gone, code=None)
            mend()
            mended = time.monotonic()
            try:
                until(lambda: _converged(spread, store), f"round {number} ({what}) converges", CONVERGED)
            except AssertionError:
                LOG.info("%s", _as_it_stands(spread, store))
                raise
            LOG.info("round %d: %s; converged %.1f s after it was mended", number, what, time.monotonic() - mended)
            _assert_model(load_objects(store)[0], promised)
            history.follow()
    LOG.info("%d rounds, the charge taken %d times, %d writes of control", ROUNDS, history.taken, history.writes)
    assert history.writes
    for name in "abc":
        spread.nsnet(name, "verify", "--retry", "3")


def _break_something(spread: Spread, chance: random.Random, store: EtcdStore) -> tuple[str, Callable[[], object]]:
    """Lets a member, an agent or a link fail, or puts who is in charge to sleep; what it was, and what mends it."""
    victim = chance.choice("abc")
    match chance.choice(["member", "agent", "link", "controller"] * 3 + ["asleep"]):
        case "member":
            member = chance.choice(spread.etcd)
            member.kill()
            return f"member {member.name} dies", member.start
        case "agent":
            spread.kill(victim)
            return f"agent {victim} dies", lambda: spread.join(victim)
        case "link":
            spread.boxes[victim].unplug()
            return f"machine {victim} is cut off", spread.boxes[victim].replug
        case "asleep":
            return _asleep(spread, store)
    _signalled(spread, victim, signal.SIGKILL)
    return f"controller {victim} dies", lambda: None


def _asleep(spread: Spread, store: EtcdStore) -> tuple[str, Callable[[], object]]:
    """Who is in charge stops, until another one is, and goes on believing that it still were."""
    until(lambda: store.get(CHARGE) is not None, "somebody is in charge")
    charge = store.get(CHARGE)
    holder = charge.value.decode() if charge else ""
    _signalled(spread, holder, signal.SIGSTOP)
    until(lambda: (now := store.get(CHARGE)) is not None and now.value.decode() != holder, "another one has it")
    _signalled(spread, holder, signal.SIGCONT)
    return f"{holder}, in charge, slept until it was not", lambda: None


def _signalled(spread: Spread, name: str, number: int) -> None:
    """The controller, not its supervisor."""
    for pid in spread.agents(name)[1:]:
        spread.boxes[name].run("kill", f"-{number}", str(pid), code=None)


class History:
    """The charge and the fence as etcd has kept them, in the order of its revisions."""

    def __init__(self, store: EtcdStore) -> None:
        self._store = store
        self._since = store.revision()
        there = store.get(CHARGE)
        self._holder = (there.mod_revision, there.value.decode()) if there else (0, "")
        self.writes = self.taken = 0

    def follow(self) -> None:
        """Every write of control since the last time was made by who had the charge at that revision."""
        events, self._since = self._store.changes("/registry/nsnet/", self._since)
        for event in events:
            if event.key == CHARGE:
                self._holder = (event.revision, event.value.decode()) if event.value else (0, "")
                self.taken += event.value is not None
            elif event.key == FENCE and event.value and (claim := json.loads(event.value)):
                assert (claim["charge"], claim["machine"]) == self._holder, f"revision {event.revision}"
                self.writes += 1


def _written(spread: Spread, at: str, name: str) -> bool:
    """Whether the verb said that it is done; after a failure it may or may not be, as with any store."""
    doc = {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"type": "NodePort", "selector": {"app": "web"}, "ports": [{"port": 80}]},
    }  # fmt: skip
    argv = spread.boxes[at].inside("sh", "-c", 'exec "$0" -m nsnet apply -f -', sys.executable)
    done = subprocess.run(argv, input=json.dumps(doc), text=True, capture_output=True, check=False, timeout=120)
    return done.returncode == 0


def _converged(spread: Spread, store: EtcdStore) -> bool:
    """Every machine says that its kernel has followed, all pods are ready, and each machine finds itself healthy."""
    if machines.behind(store, "abc") or not all(map(model.is_ready, model.of(load_objects(store)[0], model.Pod))):
        return False
    asked = [spread.boxes[name].begin("status") for name in "abc"]
    said = [process.communicate()[0] for process in asked]
    return all(text.startswith("cluster multi: healthy") for text in said)


def _as_it_stands(spread: Spread, store: EtcdStore) -> str:
    """For whoever has to find out why it does not converge."""
    said = [f"behind: {machines.behind(store, 'abc')}"]
    said += [f"{entry.key} {entry.value.decode()[:200]}" for entry in store.list("/registry/nsnet/")[0]]
    for name, box in spread.boxes.items():
        said += [f"--- {name}", box.nsnet("status", code=None), f"agents {spread.agents(name)}"]
        said.append(box.run("tail", "-n", "25", "/run/nsnet/multi/log/controller.log", code=None))
    return "\n".join(said)


def _assert_model(objects: Objects, promised: set[str]) -> None:
    services = list(model.of(objects, model.Service))
    assert promised <= {item.metadata.name for item in services}
    addresses = Counter(item.spec.clusterIP for item in services)
    ports = Counter(port.nodePort for item in services for port in item.spec.ports or () if port.nodePort)
    pods = [item for item in model.of(objects, model.Pod) if not item.spec.hostNetwork]
    for given in (addresses, ports, Counter(item.status.podIP for item in pods)):
        assert not given or max(given.values()) == 1, given


def test_down_on_one_machine_is_down_on_all(spread: Spread) -> None:
    with EtcdStore(parsed(spread.url)) as store:
        since = store.revision()
        said = spread.nsnet("b", "down")
        _assert_all_gone(spread)
        left = [entry.key for entry in store.list("/registry/")[0]]
        if not set(left) <= {GONE}:
            LOG.info("%s", said + "\n".join(map(str, store.changes("/", since)[0])))
        assert set(left) <= {GONE}


def _assert_all_gone(spread: Spread) -> None:
    for box in spread.boxes.values():
        until(lambda box=box: not box.run("ls", "/run/netns", code=None).split(), "namespaces go", CONVERGED)
        until(lambda box=box: not box.run("ls", "/var/lib/nsnet").split(), "and the state", CONVERGED)
