"""The packet tables (tests/packets/*.txt) with real packets, in each mode: the same rows that the walk answers.

One cluster per mode; kube-proxy's configurations follow one another on it, by one sync each. A row that more than one
endpoint answers is asked so often that missing one of them is less likely than one in a million.
"""

import json
import socket
import subprocess
from collections.abc import Iterator
from math import ceil, log
from pathlib import Path

import pytest

from nsnet import control, kernel, manifests, reconcile
from nsnet.kernel import iptables, netns, probe, teardown, tracking
from nsnet.kernel.probe import Answer, Probe
from nsnet.names import fabric_netns
from nsnet.state import Change
from nsnet.store import sqlite
from nsnet.store.objects import load_objects, save_objects
from tests import packets
from tests.packets import Row

IDENTITY = b"GET /nsnet HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n"
MEANT = {"refused": {"refused"}, "dropped": {"timeout"}, "unreachable": {"unreachable", "timeout"}}


@pytest.fixture(scope="module", params=packets.MODES)
def mode(request: pytest.FixtureRequest) -> Iterator[str]:
    yield str(request.param)
    down()


@pytest.fixture
def legacy(older_build: None) -> Iterator[None]:  # noqa: ARG001 - it is there while this is
    """The cluster is built anew by the older build."""
    down()
    yield
    down()


def down() -> None:
    with reconcile.lock(packets.NAME):
        reconcile.destroy(packets.NAME)
    assert teardown.left(packets.NAME) == []


def up(stem: str, mode: str) -> None:
    """The cluster as the file of rows wants it, and the network around that knows external addresses."""
    with sqlite.open_store(packets.NAME, create=True) as store, reconcile.lock(packets.NAME):
        stored, revision = load_objects(store)
        loaded = manifests.load([manifests.Source("cluster.yaml", packets.text(stem, mode).encode())])
        save_objects(store, stored, control.complete(control.admit(stored, loaded.objects, whole=True)), revision)
        reconcile.sync(store, packets.NAME)
    router = fabric_netns(packets.NAME, "router")
    assert kernel.apply([Change("add", router, route) for route in packets.routes()]) == []
    for name in packets.NODES:  # every refusal is to be heard: the kernel rations them to one a second
        with netns.inside(packets.NETNS[name]):
            Path("/proc/sys/net/ipv4/icmp_ratelimit").write_text("0")


def calls(row: Row) -> int:
    """So many that each of n equal answers comes with a probability of 1 - 1e-6."""
    if row.one:
        return 10
    count = len(row.who)
    return 1 if count == 1 else ceil(log(1e-6 / count) / log(1 - 1 / count))


def question(row: Row) -> Probe:
    silent = not row.who.isdisjoint({"dropped", "unreachable"})
    return Probe(
        packets.NETNS[row.sender],
        "UDP" if row.protocol == "udp" else "TCP",
        row.address,
        row.port,
        b"whoami\n" if row.protocol == "udp" else IDENTITY % row.address.encode(),
        tries=1 if silent else 20,  # on a busy machine: who is to be answered waits; ICMP errors are few per second
    )


def ask(rows: list[Row]) -> dict[Row, list[Answer]]:
    """All rows, all calls, at once: who waits for nothing waits together."""
    every = [row for row in rows for _ in range(calls(row))]
    found: dict[Row, list[Answer]] = {}
    for row, answer in zip(every, probe.probe([question(row) for row in every], concurrency=512), strict=True):
        found.setdefault(row, []).append(answer)
    return found


def wrong(row: Row, answers: list[Answer]) -> str:
    """What a row got that it should not, or did not that it should; empty when it is right."""
    outcomes = {answer.outcome for answer in answers}
    if row.who == {"closed"}:
        return "" if outcomes <= {"ok", "reset"} and not any(answer.body for answer in answers) else f"{outcomes}"
    expected = next((MEANT[who] for who in row.who if who in MEANT), None)
    if not expected and row.who <= {*packets.NODES, *packets.PODS} - SERVERS:
        expected = {"refused"}  # it came to processes none of which listens there
    if expected:
        return "" if outcomes <= expected else f"{outcomes}, not {expected}"
    if outcomes != {"ok"}:
        return f"{outcomes}: {[answer.error for answer in answers if answer.error][:1]}"
    said = [json.loads(answer.body.rpartition(b"\r\n")[2]) for answer in answers]
    who = {"api" if item["namespace"] == "kube-system" else item["pod"] for item in said}
    if not (who <= row.who and len(who) == 1 if row.one else who == row.who):
        return f"{sorted(who)} answered, not {sorted(row.who)}"
    seen = {item["client"].rpartition(":")[0] for item in said}
    if not (seen <= row.sources if row.one else seen == row.sources):
        return f"they saw {sorted(seen)}, not {sorted(row.sources)}"
    return ""


SERVERS = {"e1", "e2", "e3", "slow"}


def has_sctp() -> bool:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("stem", packets.FILES)
def test_rows(mode: str, stem: str) -> None:
    answered(stem, mode)


@pytest.mark.usefixtures("legacy")
def test_rows_with_the_older_build() -> None:
    """All of them, by one cluster that changes from file to file."""
    assert not iptables.is_nft()
    for stem in packets.FILES:
        answered(stem, "iptables")
    with netns.inside(packets.NETNS["node1"]):
        nft = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    assert nft == ""


@pytest.mark.skipif(not has_sctp(), reason="this kernel has no SCTP sockets: nobody can ask")
@pytest.mark.parametrize(
    "row", [row for row in packets.rows("endpoints", "iptables") if row.protocol == "sctp"], ids=str
)
def test_sctp(mode: str, row: Row) -> None:
    """Userspace mode never had it (an event says so): nobody answers."""
    up("endpoints", mode)
    with netns.inside(packets.NETNS["e1"]):
        server = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP)
    with netns.inside(packets.NETNS[row.sender]):
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP)
    with server, client:
        server.bind(("0.0.0.0", 7))
        server.listen()
        server.settimeout(5)
        client.settimeout(5)
        if mode == "userspace":
            with pytest.raises(OSError, match=r"timed out|refused"):
                client.connect((row.address, row.port))
            return
        client.connect((row.address, row.port))
        connection, (seen, _) = server.accept()
        connection.close()
    assert seen in row.sources


def answered(stem: str, mode: str) -> None:
    """All rows of a file, asked at once of a cluster as it wants it, which knows no connection of the file before."""
    up(stem, mode)
    for node in packets.NODES:
        tracking.forget(packets.NETNS[node])
    rows = [row for row in packets.rows(stem, mode) if row.protocol != "sctp"]
    found = {str(row): wrong(row, answers) for row, answers in ask(rows).items()}
    assert {row: sentence for row, sentence in found.items() if sentence} == {}
