"""A file as another program reads it: scapy's reader, and tcpdump's."""

import io
import subprocess

from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.utils import PcapNgReader

from nsnet.kernel.pcapng import Writer

FRAME = bytes(Ether() / IP(src="10.244.1.2", dst="10.244.2.2") / TCP(sport=40000, dport=80, flags="S"))
NOON = 1_700_000_000_123_456_789


def _file() -> bytes:
    writer = Writer(65535)
    return b"".join([
        writer.start(),
        writer.packet("pod/web-0", "eth0", NOON, FRAME, len(FRAME), outgoing=True),
        writer.packet("node/node1", "cni0", NOON + 2000, FRAME, len(FRAME), outgoing=False),
        writer.packet("pod/web-0", "eth0", NOON + 5000, FRAME[:40], len(FRAME), outgoing=False),
        writer.end({"pod/web-0": 3}),
    ])  # fmt: skip


def test_one_interface_for_each_hop() -> None:
    packets = list(PcapNgReader(io.BytesIO(_file())))
    assert [packet.sniffed_on for packet in packets] == ["pod/web-0 eth0", "node/node1 cni0", "pod/web-0 eth0"]
    assert [bytes(packet) for packet in packets] == [FRAME, FRAME, FRAME[:40]]
    assert packets[2].wirelen == len(FRAME)
    assert [round((float(packet.time) - NOON / 1e9) * 1e6) for packet in packets] == [0, 2, 5]


def test_tcpdump_reads_it() -> None:
    words = ("tcpdump", "-n", "-tt", "-r", "-")
    done = subprocess.run(words, input=_file(), capture_output=True, check=True)
    lines = done.stdout.decode().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("1700000000.123456 IP 10.244.1.2.40000 > 10.244.2.2.80: Flags [S]")


def test_cut_behind_any_block_it_is_whole() -> None:
    whole, ends, at = _file(), [], 0
    while at < len(whole):
        at += int.from_bytes(whole[at + 4 : at + 8], "little")
        ends.append(at)
    assert at == len(whole)
    assert [len(list(PcapNgReader(io.BytesIO(whole[:end])))) for end in ends] == [0, 0, 1, 1, 2, 3, 3, 3]
