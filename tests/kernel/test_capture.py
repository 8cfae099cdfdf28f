"""Capture with real packets: true order over namespaces, what is lost is counted, what disappears is told."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from scapy.utils import PcapNgReader

from nsnet.errors import NotReachedError
from nsnet.kernel import beacon, bpf, frames, netns
from nsnet.kernel.capture import Capture, Seen

ROOT = Path(__file__).parents[2]
ENV = {name: value for name, value in os.environ.items() if not name.startswith("NSNET_")} | {"PYTHONPATH": str(ROOT)}
NSNET = (sys.executable, "-m", "nsnet")
LEFT, MIDDLE, RIGHT = "wire.host.left", "wire.fabric.middle", "wire.host.right"


def ip(*words: str) -> None:
    subprocess.run(("ip", *words), check=True)


@pytest.fixture
def wire() -> Iterator[None]:
    """left eth0 — a bridge in a namespace of its own — eth0 right."""
    netns.create([(name, "nsnet wire") for name in (LEFT, MIDDLE, RIGHT)])
    ip("-n", MIDDLE, "link", "add", "br0", "type", "bridge")
    ip("-n", MIDDLE, "link", "set", "br0", "up")
    for number, end in enumerate((LEFT, RIGHT), 1):
        port = f"port{number}"
        ip("link", "add", port, "netns", MIDDLE, "type", "veth", "peer", "name", "eth0", "netns", end)
        ip("-n", MIDDLE, "link", "set", port, "master", "br0", "up")
        ip("-n", end, "link", "set", "eth0", "up")
        ip("-n", end, "address", "add", f"192.0.2.{number}/24", "dev", "eth0")
    yield
    for name in (LEFT, MIDDLE, RIGHT):
        netns.delete(name)


def send(count: int = 1, size: int = 8, port: int = 9) -> None:
    with netns.inside(LEFT):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        for _ in range(count):
            sock.sendto(bytes(size), ("192.0.2.2", port))


def until(hearing: Capture, count: int) -> list[Seen]:
    """So many packets."""
    found: list[Seen] = []
    end = time.monotonic() + 20
    while len(found) < count:
        assert time.monotonic() < end, f"only {len(found)} of {count} packets"
        found += hearing.read(1.0)
    return found


UDP = bpf.compiled("udp port 9")


def test_each_hop_in_true_order(wire: None) -> None:
    del wire
    send()  # neighbours know each other now
    with Capture([(name, "") for name in (RIGHT, MIDDLE, LEFT)], UDP) as hearing:
        send()
        found = until(hearing, 4)
        assert hearing.drops() == {LEFT: 0, MIDDLE: 0, RIGHT: 0}
    assert [(one.netns, one.dev, one.outgoing) for one in found] == [
        (LEFT, "eth0", True), (MIDDLE, "port1", False), (MIDDLE, "port2", True), (RIGHT, "eth0", False),
    ]  # fmt: skip
    assert {frames.line(frames.decode(one.data)).partition(" → ")[2] for one in found} == {"192.0.2.2:9 length 8"}


def test_only_one_device_and_only_what_the_filter_wants(wire: None) -> None:
    del wire
    with Capture([(MIDDLE, "port2")], UDP) as hearing:
        send(port=10)
        send(2)
        found = until(hearing, 2)
    assert [(one.dev, one.outgoing) for one in found] == [("port2", True)] * 2


def test_long_packets_are_cut_and_say_how_long_they_were(wire: None) -> None:
    del wire
    with Capture([(LEFT, "eth0")], UDP, snapshot=64) as hearing:
        send(size=1000)
        (one,) = until(hearing, 1)
    assert (len(one.data), one.length) == (64, 1042)
    assert "truncated" in frames.line(frames.decode(one.data))


def test_what_is_too_much_is_counted(wire: None) -> None:
    """Nobody reads while 20,000 packets of 1,400 bytes come: the queue holds some, the kernel counts the others."""
    del wire
    send()
    with Capture([(RIGHT, "")], UDP) as hearing:
        send(20_000, 1400)
        found: list[Seen] = []
        while more := hearing.read(0.2):
            found += more
        dropped = hearing.drops()[RIGHT]
    assert dropped > 0
    assert len(found) + dropped == 20_000


def test_a_flood_costs_no_more_memory_than_was_said(wire: None) -> None:
    """100,000 packets in a second or two, for who reads all the time and who never does: no growth, none uncounted."""
    del wire
    send()
    with Capture([(RIGHT, "")], UDP) as idle, Capture([(RIGHT, "")], UDP) as hearing:
        before, read = _resident(), 0
        for _ in range(100):
            send(1000)
            read += len(hearing.read(0.0))
        read += len(hearing.rest())
        kept = len(idle.rest())
        grown = _resident() - before
        lost, missed = hearing.drops()[RIGHT], idle.drops()[RIGHT]
    assert read + lost == 100_000
    assert kept + missed == 100_000
    assert missed > 0
    assert grown < 32 << 20


def _resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_device_that_disappears(wire: None) -> None:
    del wire
    with Capture([(MIDDLE, "port2"), (LEFT, "")], bpf.compiled("arp or udp port 9")) as hearing:
        ip("-n", MIDDLE, "link", "set", "port2", "down")
        ip("-n", MIDDLE, "link", "set", "port2", "up")
        hearing.read(0.0)
        assert hearing.gone == []  # down is not gone
        ip("-n", MIDDLE, "link", "delete", "port2")
        while not hearing.gone:
            hearing.read(0.1)
        assert hearing.gone == [f"{MIDDLE}: port2 is gone"]
        send()  # nobody answers ARP any more, but it is asked
        assert until(hearing, 1)[0].netns == LEFT


@pytest.mark.parametrize("at_once", [True, False])
def test_the_last_packets_of_what_disappears_are_told(wire: None, at_once: bool) -> None:
    del wire
    with Capture([(MIDDLE, "port2")], UDP) as hearing:
        with Capture([(RIGHT, "")], UDP) as arrived:
            send(3)
            until(arrived, 3)
        ip("-n", MIDDLE, "link", "delete", "port2")
        found = hearing.rest() if at_once else []
        while hearing.alive:
            found += hearing.read(0.1)
        assert [seen.dev for seen in found] == ["port2"] * 3


def test_a_packet_that_cannot_leave_any_more_is_said(wire: None) -> None:
    """Its port was free when it was asked for, its namespace there."""
    del wire
    aimed = beacon.beacon(LEFT, "udp", "192.0.2.2", 9)
    with netns.inside(LEFT), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("", aimed.sport))
        with pytest.raises(NotReachedError, match=r"cannot send to 192\.0\.2\.2: Address already in use"):
            beacon.send(aimed)
    with pytest.raises(NotReachedError, match="No such file"):
        beacon.send(aimed._replace(netns="wire.host.none"))


def test_a_namespace_that_disappears_is_let_go(wire: None) -> None:
    del wire
    witness = netns.Witness()
    witness.watch(RIGHT)
    with Capture([(RIGHT, "")], UDP) as hearing:
        netns.delete(RIGHT)
        while hearing.alive:
            hearing.read(0.1)
        assert hearing.gone == [f"{RIGHT} is gone"]
        assert witness.wait(10)


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ((LEFT, "eth7"), f"{LEFT} has no device eth7"),
        (("wire.host.nobody", ""), "the namespace wire.host.nobody is not there"),
    ],
)
def test_what_is_not_there(wire: None, place: tuple[str, str], error: str) -> None:
    del wire
    with pytest.raises(NotReachedError) as said:
        Capture([place])
    assert str(said.value) == error


# --- the verb ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pod() -> Iterator[str]:
    """quickstart is up; a pod of its Deployment."""
    run("up", "--no-verify", str(ROOT / "topologies" / "quickstart.yaml"))
    items = json.loads(run("get", "po", "-l", "app=web", "-o", "json"))["items"]
    yield items[0]["metadata"]["name"]
    run("down", "--all")


def run(*words: str, code: int = 0) -> str:
    done = subprocess.run([*NSNET, *words], capture_output=True, text=True, env=ENV, check=False, timeout=120)
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def started(*words: str) -> subprocess.Popen[str]:
    """`nsnet capture …`, hearing already."""
    argv = (*NSNET, "capture", *words)
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("capturing on ")
    return process


def call(pod: str, service: str = "web") -> None:
    run("exec", pod, "--", "curl", "-sS", "-m", "5", f"http://{service}/hostname")


def ended(process: subprocess.Popen[str]) -> Sequence[str]:
    out, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    return [*out.splitlines(), *said.splitlines()]


def test_lines_of_a_pod(pod: str) -> None:
    process = started(pod, "-c", "1", "tcp[tcpflags] & tcp-syn != 0", "and", "host", "svc/web")
    call(pod)
    first, *last = ended(process)
    assert f" pod/{pod} eth0 out tcp 10.244." in first
    assert first.split(" SYN")[0].endswith(":80")
    assert last == ["1 packet captured, 0 dropped by the kernel"]


def test_a_whole_file_of_all_hops_after_ctrl_c(pod: str, tmp_path: Path) -> None:
    file = tmp_path / "way.pcapng"
    process = started(pod, "--all-hops", "-w", str(file), "icmp or udp port 30080")
    with netns.inside("quickstart.host.client"):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.sendto(b"x", ("172.18.0.2", 30080))  # UDP: nobody serves it, and the node says so
    while not file.exists() or file.stat().st_size < 1500:
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    (said,) = ended(process)
    found = [packet.sniffed_on for packet in PcapNgReader(io.BytesIO(file.read_bytes()))]
    assert said == f"{len(found)} packets captured, 0 dropped by the kernel"
    assert found[:4] == ["host/client eth0", "switch outside host-client", "switch outside router", "router outside"]
    assert "node/node1 eth0" in found


def test_documents_and_a_time_limit(pod: str) -> None:
    """The packet is sent from here: on a loaded machine a command of its own starts when the second is over."""
    process = started(f"{pod}:eth0", "-o", "json", "--duration", "1s", "udp port 9")
    with netns.inside(f"quickstart.pod.default.{pod}"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", ("172.18.0.2", 9))
    lines = [json.loads(line) for line in ended(process) if line.startswith("{")]
    assert lines[0]["device"] == "eth0"
    assert lines[0]["packet"]["protocol"] == "udp"
    assert lines[-1] == {"dropped": {f"pod/{pod}": 0}}


def test_a_file_ends_before_it_is_too_large(pod: str, tmp_path: Path) -> None:
    file = tmp_path / "small.pcapng"
    process = started(pod, "-w", str(file), "--size", "1k", "tcp port 80")
    call(pod)
    call(pod)
    ended(process)
    assert file.stat().st_size < 1100  # the statistics come after the last packet
    assert list(PcapNgReader(io.BytesIO(file.read_bytes())))


@pytest.mark.parametrize("to", ["-", "FIFO"])
def test_a_reader_that_goes_away_is_no_error(pod: str, tmp_path: Path, to: str) -> None:
    """`nsnet capture … -w - | head -c 100`: quiet, and the exit code of a process that SIGPIPE ended."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    process = started(pod, "-w", to.replace("FIFO", str(fifo)), "--duration", "20s", "udp port 9")
    assert process.stdout is not None
    os.close(reader)
    if to == "-":
        process.stdout.close()
        process.stdout = None
    with netns.inside(f"quickstart.pod.default.{pod}"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", ("172.18.0.2", 9))
    said = process.communicate(timeout=30)[1]
    assert (process.returncode, said) == (141, "")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("POD", "tcp prot 80"), 2),
        (("POD:eth7",), 1),
        (("POD", "-w", "/nowhere/x"), 2),
        (("POD", "--duration", "soon"), 2),
        (("POD:eth0", "--all-hops"), 2),
        (("nobody",), 2),
    ],
)
def test_wrong_words(pod: str, words: tuple[str, ...], code: int) -> None:
    run("capture", *(word.replace("POD", pod) for word in words), code=code)
