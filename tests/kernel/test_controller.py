"""The controller and its parent with real namespaces: killed, starved, and given work."""

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nsnet import control, controller, kernel, names, reconcile
from nsnet.control import Facts
from nsnet.controller.client import MODULE, environment, living, log_path, socket_path
from nsnet.errors import InputError, MachineError, NotReachedError
from nsnet.kernel import netns, process
from nsnet.model import Deployment, EndpointSlice, Key, Object, Objects, Pod, by_key, from_doc, is_ready, of
from nsnet.state import Chain, Sysctl, Value
from nsnet.store import location, objects, sqlite
from nsnet.store.objects import load_objects, save_objects, update
from tests import etcds

NAME = "ctl"
NODE = names.node_netns(NAME, "node1")
DOCS: list[dict[str, Any]] = [
    {"apiVersion": "nsnet/v1", "kind": "Cluster", "metadata": {"name": NAME}, "nodes": 2},
    {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "replicas": 3,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "web", "ports": [{"containerPort": 80}]}]},
            },
        },
    },
    {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]},
    },
]


def until(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s\n{log_path(NAME).read_text()}"
        time.sleep(0.01)


def ended(pid: int, seconds: float = 10.0) -> bool:
    """Waits for the end of any process, ours or not."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], seconds)[0])
    finally:
        os.close(handle)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[sqlite.SqliteStore]:
    """A stored cluster that stands, without controller. Whole looks come once an hour: what heals, a hint healed."""
    monkeypatch.setenv("NSNET_RESYNC", "3600")
    incoming = by_key([from_doc(doc) for doc in DOCS])
    with sqlite.open_store(NAME, create=True) as opened:
        objects = control.complete(control.admit({}, incoming, whole=True), Facts(now="2026-01-31T12:00:00Z"))
        save_objects(opened, {}, objects, 0)
        with reconcile.lock(NAME):
            reconcile.sync(opened, NAME)
        yield opened
        controller.stop(NAME)
    with reconcile.lock(NAME):
        reconcile.destroy(NAME)
    assert netns.candidates(NAME) == []
    assert process.running(NAME) == []


@pytest.fixture
def running(store: sqlite.SqliteStore) -> sqlite.SqliteStore:
    """The same with its controller, which has looked at everything once."""
    controller.start(NAME)
    assert controller.converge(NAME, store.revision()) == store.revision()
    return store


def the_controller() -> int:
    return next(found.pid for found in living(NAME) if not found.supervises)


def the_supervisor() -> int:
    return next(found.pid for found in living(NAME) if found.supervises)


def pod_server() -> int:
    return next((found.pid for found in process.running(NAME) if "nsnet.programs.podserver" in found.argv), 0)


def seen(netns_name: str) -> frozenset[Value]:
    return kernel.observe(NAME, {netns_name: frozenset()}).get(netns_name, frozenset())


def service_chains() -> set[Chain]:
    return {value for value in seen(NODE) if isinstance(value, Chain) and value.name.startswith("KUBE-SVC-")}


def scaled(store: sqlite.SqliteStore, replicas: int) -> int:
    """What the verb `scale` does: change the object, complete, store. Returns the revision."""

    def change(objects: Objects) -> dict[Key, Object]:
        web = objects[Key("Deployment", "default", "web")]
        assert isinstance(web, Deployment)
        web = msgspec.structs.replace(web, spec=msgspec.structs.replace(web.spec, replicas=replicas))
        return control.complete({**objects, **by_key([web])}, None)

    return update(store, change)[1]


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


# --- living and dying -------------------------------------------------------------------------------------------------


def test_start_and_stop(store: sqlite.SqliteStore) -> None:
    assert controller.converge(NAME, store.revision()) is None
    assert controller.status(NAME) is None
    controller.start(NAME)
    controller.start(NAME)
    assert sorted(found.supervises for found in living(NAME)) == [False, True]
    assert controller.converge(NAME, store.revision()) == store.revision()
    told = controller.status(NAME)
    assert told is not None
    assert (told["pid"], told["error"], told["drift"]) == (the_controller(), "", 0)
    assert controller.stop(NAME) == 2
    assert living(NAME) == []
    assert controller.stop(NAME) == 0


def test_it_finds_nothing_to_do_in_what_a_verb_built(running: sqlite.SqliteStore) -> None:
    told = controller.status(NAME)
    assert told is not None
    assert told["drift"] == 0
    assert " changes, " not in log_path(NAME).read_text()
    assert running.revision() == 1


def test_everything_it_makes_is_private(running: sqlite.SqliteStore) -> None:
    assert running.revision()
    made = [log_path(NAME), log_path(NAME).parent, socket_path(NAME), names.run_dir(NAME), names.state_dir(NAME)]
    assert {oct(path.stat().st_mode & 0o077) for path in made} == {"0o0"}


def test_stop_works_with_every_directory_deleted(running: sqlite.SqliteStore) -> None:
    assert running.revision()
    pids = [found.pid for found in living(NAME)]
    os.kill(the_controller(), signal.SIGSTOP)  # so that it does not see that and end by itself
    shutil.rmtree(names.run_dir(NAME))
    shutil.rmtree(names.state_dir(NAME))
    assert controller.stop(NAME) == 2
    assert all(ended(pid) for pid in pids)


def test_other_clusters_and_lookalikes_are_not_found(running: sqlite.SqliteStore) -> None:
    assert running.revision()
    assert living("ct") == []
    with subprocess.Popen(["sleep", "60"], env={"NSNET_CLUSTER": NAME, "PATH": os.environ["PATH"]}) as other:
        assert other.pid not in [found.pid for found in living(NAME)]
        other.kill()


def test_a_killed_controller_comes_back(running: sqlite.SqliteStore) -> None:
    for _ in range(2):
        first = the_controller()
        os.kill(first, signal.SIGKILL)
        assert ended(first)
        until(lambda: controller.converge(NAME, running.revision()), "a new controller")
        assert the_controller() != first
    assert "the controller ended with code -9; it starts again" in log_path(NAME).read_text()


def test_with_its_supervisor_killed_it_works_on_and_is_adopted(running: sqlite.SqliteStore) -> None:
    first, parent = the_controller(), the_supervisor()
    os.kill(parent, signal.SIGKILL)
    assert ended(parent)
    assert controller.converge(NAME, running.revision()) == running.revision()
    controller.start(NAME)
    assert the_controller() == first
    os.kill(first, signal.SIGKILL)
    until(lambda: controller.converge(NAME, running.revision()), "a new controller")
    assert len(living(NAME)) == 2


def test_it_is_adopted_whether_or_not_somebody_waits_for_that(running: sqlite.SqliteStore) -> None:
    first, parent = the_controller(), the_supervisor()
    os.kill(parent, signal.SIGKILL)
    assert ended(parent)
    reading, writing = os.pipe()
    os.close(reading)
    argv = [sys.executable, "-m", "nsnet.controller", "--cluster", NAME, "--supervise"]
    env = environment(NAME) | {"NSNET_READY_FD": str(writing)}
    subprocess.run(argv, env=env, pass_fds=[writing], check=True, start_new_session=True)
    os.close(writing)
    os.kill(first, signal.SIGKILL)
    until(lambda: controller.converge(NAME, running.revision()), "a new controller")
    assert len(living(NAME)) == 2


def test_one_that_cannot_be_ended_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    argv = [sys.executable, "-c", "import time; time.sleep(60)", MODULE, "--cluster", NAME]
    with subprocess.Popen(argv, env=environment(NAME)) as hung:
        until(lambda: living(NAME), "it is one")
        with monkeypatch.context() as kernel:
            kernel.setattr(signal, "pidfd_send_signal", lambda *_: None)
            with pytest.raises(NotReachedError, match=f"process {hung.pid}, .* does not end"):
                controller.stop(NAME, timeout=0.1)
        assert controller.stop(NAME) == 1


def test_a_resync_that_is_no_number_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for said in ("abc", "-1", "nan", "inf"):
        monkeypatch.setenv("NSNET_RESYNC", said)
        with pytest.raises(InputError, match=f'NSNET_RESYNC: "{said}" is no number of seconds'):
            controller.start("none")
        assert controlled("none").stderr == f'error: NSNET_RESYNC: "{said}" is no number of seconds\n'


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("run directory", "cluster's run directory is gone"),
        ("store", "cluster's store is gone"),
        ("cluster", "store holds no cluster any more"),
    ],
)
def test_both_end_when_the_cluster_is_gone(running: sqlite.SqliteStore, what: str, why: str) -> None:
    pids = [found.pid for found in living(NAME)]
    with log_path(NAME).open() as log:
        match what:
            case "run directory":
                shutil.rmtree(names.run_dir(NAME))
            case "store":
                sqlite.path_of_store(NAME).unlink()
            case _:
                objects, revision = load_objects(running)
                save_objects(running, objects, {}, revision)
        assert all(ended(pid) for pid in pids)
        assert f"ends: the {why}" in log.read()


def controlled(cluster: str) -> subprocess.CompletedProcess[str]:
    """One controller, until it ends; what it says goes to its log otherwise."""
    argv = [sys.executable, "-m", "nsnet.controller", "--cluster", cluster]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)


def test_without_a_store_it_says_so_in_a_line_and_leaves_it_to_its_supervisor() -> None:
    done = controlled("none")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "ends: there is no cluster" in done.stderr


@pytest.mark.parametrize("spread", [True, False])
def test_what_was_taken_down_elsewhere_while_it_was_dead_goes(tmp_path: Path, spread: bool) -> None:
    """Only where that was meant: an etcd that lost the cluster is waited for."""
    with etcds.running(tmp_path) as etcd, etcd.store() as store:
        location.settle(NAME, location.Here(etcd.url, "b", "7f"))
        objects.clear(store, spread=spread)
        names.run_dir(NAME).mkdir(parents=True)
        try:
            assert controlled(NAME).returncode == (0 if spread else 1)
            assert names.run_dir(NAME).exists() is names.state_dir(NAME).exists() is not spread
        finally:
            reconcile.destroy(NAME)


# --- work -------------------------------------------------------------------------------------------------------------


def test_a_change_in_the_store_reaches_the_kernel(running: sqlite.SqliteStore) -> None:
    revision = scaled(running, 5)
    reached = controller.converge(NAME, revision)
    assert reached is not None
    assert reached >= revision
    objects = load_objects(running)[0]
    pods = [pod for pod in of(objects, Pod) if pod.metadata.labels.get("app") == "web"]
    assert [is_ready(pod) for pod in pods] == [True] * 5
    assert {names.pod_netns(NAME, "default", pod.metadata.name) for pod in pods} <= set(netns.listing(NAME))
    assert [len(chain.rules) for chain in service_chains() if "default/web" in str(chain.rules)] == [6]
    revision = scaled(running, 1)
    assert controller.converge(NAME, revision)
    assert len([name for name in netns.listing(NAME) if ".pod.default.web" in name]) == 1


def test_changes_within_min_sync_period_are_one_sync(running: sqlite.SqliteStore) -> None:
    told = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "metadata": {"name": "kube-proxy"}, "iptables": {"minSyncPeriod": "1s"},
    }  # fmt: skip
    _, revision = update(running, lambda objects: control.complete({**objects, **by_key([from_doc(told)])}))
    assert controller.converge(NAME, revision)
    before, start = controller.status(NAME), time.monotonic()
    for replicas in (1, 2, 1):
        revision = scaled(running, replicas)
    assert controller.converge(NAME, revision)
    after = controller.status(NAME)
    assert before
    assert after
    assert after["syncs"] == before["syncs"] + 1
    assert time.monotonic() - start > 0.5  # most of a second: the status was asked for after the sync had ended


def test_a_change_needs_nobody_to_ask(running: sqlite.SqliteStore) -> None:
    scaled(running, 4)
    until(lambda: len([name for name in netns.listing(NAME) if ".pod.default.web" in name]) == 4, "the fourth pod")


def test_a_killed_pod_server_comes_back_and_no_endpoint_flaps(running: sqlite.SqliteStore) -> None:
    revision, chains, first = running.revision(), service_chains(), pod_server()
    os.kill(first, signal.SIGKILL)
    assert ended(first)
    until(lambda: pod_server() not in {0, first} and controller.status(NAME), "a new pod server")
    assert controller.converge(NAME, revision) == revision
    assert [event for event in running.changes("/", revision)[0] if event.key != ""] == []
    assert service_chains() == chains
    assert all(is_ready(pod) for pod in of(load_objects(running)[0], Pod))


@pytest.mark.parametrize(
    "damage",
    [
        ("ip", "-n", NODE, "link", "delete", "cni0"),
        ("ip", "-n", NODE, "link", "delete", "flannel.1"),
        ("ip", "-n", NODE, "link", "delete", "eth0"),
        ("ip", "-n", NODE, "link", "set", "cni0", "mtu", "1300"),
        ("ip", "-n", NODE, "address", "flush", "dev", "cni0"),
        ("ip", "-n", NODE, "route", "delete", "default"),
        ("ip", "-n", NODE, "neighbour", "flush", "dev", "flannel.1", "nud", "permanent"),
        ("ip", "-n", NODE, "route", "add", "198.51.100.0/24", "dev", "cni0"),
        ("ip", "netns", "delete", NODE),
    ],
    ids=lambda argv: " ".join(argv[1:]),
)
def test_what_a_hand_broke_is_repaired_at_once(running: sqlite.SqliteStore, damage: tuple[str, ...]) -> None:
    """A hint did it: whole looks are an hour apart."""
    before, revision = seen(NODE), running.revision()
    run(*damage)
    until(lambda: seen(NODE) == before, "as before")
    told = controller.status(NAME)
    assert told is not None
    assert told["drift"] > 0
    assert running.revision() == revision


def test_what_gives_no_hint_is_found_by_the_next_whole_look(
    store: sqlite.SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NSNET_RESYNC", "0.3")
    controller.start(NAME)
    assert controller.converge(NAME, store.revision())
    before = seen(NODE)
    run("ip", "netns", "exec", NODE, "iptables", "-t", "nat", "-F", "KUBE-SERVICES")
    with netns.inside(NODE):
        Path("/proc/sys/net/ipv4/ip_forward").write_text("0")
    assert Sysctl("net.ipv4.ip_forward", "0") in seen(NODE)
    until(lambda: seen(NODE) == before, "as before")


# --- what cannot be done ----------------------------------------------------------------------------------------------


@pytest.fixture
def in_the_way() -> Iterator[str]:
    """Somebody else's namespace with the name that a fourth node needs."""
    name = names.host_netns(NAME, "intruder")
    run("ip", "netns", "add", name)
    yield name
    with contextlib.suppress(subprocess.CalledProcessError):
        run("ip", "netns", "delete", name)


def test_a_sync_that_fails_is_an_answer_and_is_tried_again(running: sqlite.SqliteStore, in_the_way: str) -> None:
    def with_intruder(objects: Objects) -> dict[Key, Object]:
        cluster = objects[Key("Cluster", "", NAME)]
        bare = from_doc({**DOCS[0], "hosts": [{"name": "client"}, {"name": "intruder"}]})
        assert type(cluster) is type(bare)
        return control.complete({**objects, **by_key([bare])}, None)

    revision = update(running, with_intruder)[1]
    with pytest.raises(NotReachedError, match="intruder"):
        controller.converge(NAME, revision)
    told = controller.status(NAME)
    assert told is not None
    assert "intruder" in told["error"]
    run("ip", "netns", "delete", in_the_way)
    until(lambda: (controller.status(NAME) or {}).get("error") == "", "no error any more", 40)
    assert in_the_way in netns.listing(NAME)
    assert "the sync succeeds again" in log_path(NAME).read_text()


def test_a_store_that_cannot_be_read_any_more_is_an_answer(running: sqlite.SqliteStore) -> None:
    later, path = running.revision() + 1, sqlite.path_of_store(NAME)
    for part in (path, *path.parent.glob(f"{path.name}-*")):
        with part.open("r+b") as file:
            file.write(b"no database any more" * 5000)
    for _ in range(3):
        with pytest.raises(MachineError, match="damaged"):
            controller.converge(NAME, later, timeout=10)


@pytest.mark.parametrize("said", [b"garbage\n", b"{}\n", b"[1]\n", b'{"converge": "x"}\n', b"\xff" * 5000, b""])
def test_garbage_from_a_client_hurts_nobody(running: sqlite.SqliteStore, said: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(socket_path(NAME)))
        client.sendall(said)
        client.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            answer = client.recv(4096)
            assert not answer or "error" in json.loads(answer)
    assert controller.converge(NAME, running.revision()) == running.revision()


def test_while_a_verb_holds_the_lock_it_waits_and_still_answers(running: sqlite.SqliteStore) -> None:
    with reconcile.lock(NAME):
        revision = scaled(running, 4)
        with pytest.raises(NotReachedError, match="not reached revision"):
            controller.converge(NAME, revision, timeout=0.5)
        assert controller.status(NAME) is not None
    assert controller.converge(NAME, revision)


def test_a_pod_that_stops_listening_leaves_its_service(store: sqlite.SqliteStore) -> None:
    """Without pod server nobody listens; the sync that is told so empties the Service, and fills it again."""
    objects, revision = load_objects(store)
    deaf = control.complete(objects, Facts(listening={}))
    save_objects(store, objects, deaf, revision)
    assert not any(is_ready(pod) for pod in of(deaf, Pod) if pod.metadata.labels.get("app") == "web")
    controller.start(NAME)
    assert controller.converge(NAME, store.revision())
    slices = [item for item in of(load_objects(store)[0], EndpointSlice) if item.metadata.name.startswith("web")]
    assert [
        endpoint.conditions.ready for item in slices for endpoint in item.endpoints or () if endpoint.conditions
    ] == [True] * 3
