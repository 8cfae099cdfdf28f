"""Links with a rate, a loss, a delay: written, read back the same, and felt; netem where the kernel has it."""

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress

import pytest

from nsnet import kernel, model
from nsnet.errors import MachineError
from nsnet.kernel import bpf, frames, netns, probe, qdisc
from nsnet.kernel.capture import Capture
from nsnet.names import mark, node_netns
from nsnet.state import KINDS, Change, Qdisc, Segments, Value, Veth
from tests import faulted
from tests.faulted import Cluster, Question

NAME = "impaired"
A, B = node_netns(NAME, "a"), node_netns(NAME, "b")
NETEM = pytest.mark.skipif(not qdisc.has_netem(), reason="this kernel has no netem (CONFIG_NET_SCH_NETEM)")
VALUES = [
    Segments("eth0", 1),
    Qdisc("eth0", "tbf", rate=1_000_000),
    Qdisc("eth0", "tbf", rate=10_000_000_000),
    *(
        pytest.param(value, marks=NETEM)
        for value in (
            Qdisc("eth0", "netem", delay=5_000),
            Qdisc("eth0", "netem", delay=100_000, jitter=10_000, loss=1.5, rate=100_000_000),
            Qdisc("eth0", "netem", loss=0.1, duplicate=33.3333),
            Qdisc("eth0", "netem", delay=10_000, reorder=25.0),
        )
    ),
]


@pytest.fixture(scope="module", autouse=True)
def _pair() -> Iterator[None]:
    netns.create([(A, mark(NAME)), (B, mark(NAME))])
    ends = (Change("add", A, Veth("eth0", f"{B}/eth0", "02:00:00:00:00:01")),
            Change("add", B, Veth("eth0", f"{A}/eth0", "02:00:00:00:00:02")))  # fmt: skip
    assert kernel.apply(ends) == []
    yield
    kernel.destroy(NAME)


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_what_is_written_is_read_and_goes(value: Value) -> None:
    before = kernel.observe(NAME)[A]
    for _ in range(2):  # writing what is there succeeds
        assert kernel.apply([Change("add", A, value)]) == []
        assert kernel.observe(NAME)[A] == before | {value}
        assert kernel.observe(NAME, {A: frozenset((kind,) for kind in KINDS)})[A] == before | {value}
    assert kernel.observe(NAME, {A: frozenset({value.key})})[A] == {value}
    for _ in range(2):
        assert kernel.apply([Change("delete", A, value)]) == []
        assert kernel.observe(NAME)[A] == before


def test_one_discipline_follows_another() -> None:
    first, then = Qdisc("eth0", "tbf", rate=1_000_000), Qdisc("eth0", "tbf", rate=2_000_000)
    kernel.apply([Change("add", A, first)])
    assert kernel.apply([Change("replace", A, then, first)]) == []
    assert then in kernel.observe(NAME)[A]
    kernel.apply([Change("delete", A, then)])


@pytest.mark.skipif(qdisc.has_netem(), reason="this kernel has netem")
def test_what_the_kernel_does_not_have_is_refused_with_its_name() -> None:
    (refusal,) = kernel.apply([Change("add", A, Qdisc("eth0", "netem", delay=1_000))])
    assert "netem" in str(refusal)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    yield made
    made.down()


def test_a_rate_holds_large_answers_back(cluster: Cluster) -> None:
    """tbf counts what waits in its queue as over the limit; netem does not, but delays each packet by its length."""
    cluster.add(["rate", "1mbit", "--on", "node/node1"])
    large = Question("a", "c", 80, "large")
    assert faulted.outcomes(cluster.objects, [large] * 4, tries=5) == ["ok"] * 4
    said = subprocess.run(
        ["tc", "-n", faulted.netns_of("node1"), "-s", "-j", "qdisc", "show", "dev", "eth0"],
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    (found,) = json.loads(said)
    assert found["kind"] == ("netem" if qdisc.has_netem() else "tbf")
    if qdisc.has_netem():
        (answer,) = probe.probe([faulted.probe_of(cluster.objects, large)], timeout=3.0)
        assert answer.seconds >= faulted.LARGE * 8 / 1_000_000
    else:
        assert found["overlimits"] > 0
    cluster.clear()


@NETEM
def test_a_delay_is_felt_each_way(cluster: Cluster) -> None:
    cluster.add(["delay", "50ms", "--on", "node/node1"])
    (answer,) = probe.probe([faulted.probe_of(cluster.objects, Question("a", "c", 80))], timeout=3.0)
    cluster.clear()
    assert answer.seconds >= 0.1  # by the delay's own nature: there and back


COUNT = 60  # datagrams; that none of them overtakes another has a chance of 2^-59


def _heard(cluster: Cluster, count: int) -> tuple[list[bytes], int]:
    """Numbered datagrams sent from a to c: what comes to c, in order; and how many answers come back to a."""
    c = faulted.netns_of("c")
    with (
        Capture([(c, "eth0")], bpf.compiled("udp dst port 5300")) as hearing,
        netns.inside(faulted.netns_of("a")),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        client.connect((faulted.address(cluster.objects, "c"), 5300))
        for number in range(count):
            client.send(b"echo %02d" % number)
        client.settimeout(1)
        answers = 0
        with suppress(TimeoutError):
            while client.recv(64):
                answers += 1
        heard = [frames.decode(one.data, frozenset()).innermost.payload for one in hearing.rest()]
    return [payload.removeprefix(b"echo ") for payload in heard], answers


@NETEM
def test_a_link_that_doubles_frames_doubles_each_way(cluster: Cluster) -> None:
    assert _heard(cluster, 1) == ([b"00"], 1)
    cluster.add(["duplicate", "100%", "--on", "node/node1"])
    heard, answers = _heard(cluster, 1)
    large = faulted.outcomes(cluster.objects, [Question("a", "c", 80, "large")], tries=3)
    cluster.clear()
    assert (heard, answers) == ([b"00", b"00"], 4)  # two questions, and each answer twice
    assert large == ["ok"]  # TCP does not mind
    assert _heard(cluster, 1) == ([b"00"], 1)


@NETEM
def test_a_link_that_overtakes_itself_loses_the_order_and_nothing_else(cluster: Cluster) -> None:
    cluster.add(["reorder", "50%", "delay=20ms", "--on", "node/node1"])
    heard, answers = _heard(cluster, COUNT)
    large = faulted.outcomes(cluster.objects, [Question("a", "c", 80, "large")], tries=3)
    cluster.clear()
    assert sorted(heard) == [b"%02d" % number for number in range(COUNT)]
    assert heard != sorted(heard)
    assert answers == COUNT
    assert large == ["ok"]


@pytest.mark.skipif(qdisc.has_netem(), reason="this kernel has netem")
@pytest.mark.parametrize("kind", ["delay", "duplicate", "reorder"])
def test_what_only_netem_can_is_refused_before_anything_is_stored(cluster: Cluster, kind: str) -> None:
    with pytest.raises(MachineError, match=f"{kind} needs netem, which this kernel does not have") as refused:
        cluster.add([kind, "--on", "node/node1"])
    assert "CONFIG_NET_SCH_NETEM" in (refused.value.hint or "")
    assert model.of(cluster.objects, model.Fault) == []
