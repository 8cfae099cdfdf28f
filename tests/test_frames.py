"""Captured bytes in words, compared with what scapy built; and bytes that nobody ever sent."""

from random import Random
from typing import Any

import pytest
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw

from nsnet.kernel import frames
from nsnet.kernel.frames import decode

A, B = "10.244.1.2", "10.244.2.2"
SYN = IP(src=A, dst=B) / TCP(sport=40000, dport=80, seq=7, flags="S")
OUTER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / IP(src="172.18.0.2", dst="172.18.0.3")

WORDS: list[tuple[str, Any, str]] = [
    ("tcp", Ether() / SYN, f"tcp {A}:40000 → {B}:80 SYN seq 7 length 0"),
    ("tcp with data", Ether() / IP(src=B, dst=A) / TCP(sport=80, dport=40000, seq=1, ack=8, flags="PA") / b"abc",
     f"tcp {B}:80 → {A}:40000 PSH ACK seq 1 ack 8 length 3"),
    ("vlan", Ether() / Dot1Q(vlan=5) / SYN, f"tcp {A}:40000 → {B}:80 SYN seq 7 length 0"),
    ("udp", Ether() / IP(src=A, dst=B) / UDP(sport=5, dport=53) / DNS(qd=DNSQR(qname="web")),
     f"udp {A}:5 → {B}:53 length 21"),
    ("ping", Ether() / IP(src=A, dst=B) / ICMP(), f"icmp {A} → {B} echo request"),
    ("refused", Ether() / IP(src=B, dst=A) / ICMP(type=3, code=3) / SYN,
     f"icmp {B} → {A} port unreachable for tcp {A}:40000 → {B}:80 SYN seq 7 length 0"),
    ("vxlan", OUTER / UDP(sport=9, dport=8472) / VXLAN(vni=1) / Ether() / SYN,
     f"vxlan 1 172.18.0.2 → 172.18.0.3 | tcp {A}:40000 → {B}:80 SYN seq 7 length 0"),
    ("flannel's udp", OUTER / UDP(sport=8285, dport=8472) / SYN,
     f"udp 172.18.0.2 → 172.18.0.3 | tcp {A}:40000 → {B}:80 SYN seq 7 length 0"),
    ("ipip", OUTER / SYN, f"ipip 172.18.0.2 → 172.18.0.3 | tcp {A}:40000 → {B}:80 SYN seq 7 length 0"),
    ("wireguard", OUTER / UDP(sport=9, dport=8472) / Raw(b"\4\0\0\0" + b"x" * 28),
     "udp 172.18.0.2:9 → 172.18.0.3:8472 length 32 [WireGuard data, encrypted]"),
    ("another port is not vxlan", OUTER / UDP(sport=9, dport=8473) / VXLAN(vni=1) / Ether() / SYN,
     "udp 172.18.0.2:9 → 172.18.0.3:8473 length 62"),
    ("arp asks", Ether() / ARP(psrc=A, pdst=B), f"arp who-has {B} tell {A}"),
    ("arp answers", Ether() / ARP(op=2, hwsrc="0a:58:0a:f4:02:02", psrc=B, pdst=A),
     f"arp {B} is-at 0a:58:0a:f4:02:02"),
    ("ipv6", Ether() / IPv6(src="fd00::1", dst="fd00::2") / TCP(sport=1, dport=2, flags="S"),
     "tcp [fd00::1]:1 → [fd00::2]:2 SYN seq 0 length 0"),
    ("ping6", Ether() / IPv6(src="fd00::1", dst="fd00::2") / ICMPv6EchoRequest(),
     "icmp6 fd00::1 → fd00::2 echo request"),
    ("a later fragment", Ether() / IP(src=A, dst=B, frag=4, proto=17) / Raw(b"x" * 8),
     f"udp {A} → {B} length 8 [fragment at 32]"),
    ("another protocol", Ether() / IP(src=A, dst=B, proto=89) / b"xx", f"ip {A} → {B} length 2 [protocol 89]"),
    ("no ip", Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02", type=0x88B5) / b"abcd",
     "ether 02:00:00:00:00:01 → 02:00:00:00:00:02 length 4 [type 0x88b5]"),
]  # fmt: skip


@pytest.mark.parametrize(("packet", "words"), [row[1:] for row in WORDS], ids=[row[0] for row in WORDS])
def test_words(packet: Any, words: str) -> None:
    assert frames.line(decode(bytes(packet))) == words


CUT = [
    (13, "ether  →  length 13 [truncated]"),
    (14, "ip ? → ? length 0 [truncated]"),
    (33, "ip ? → ? length 19 [truncated]"),
    (34, f"tcp {A} → {B} no flags seq 0 length 0 [truncated]"),
    (42, f"tcp {A}:40000 → {B}:80 no flags seq 7 length 0 [truncated]"),
]


@pytest.mark.parametrize(("size", "words"), CUT)
def test_what_is_cut_off_says_so(size: int, words: str) -> None:
    assert frames.line(decode(bytes(Ether() / SYN)[:size])) == words


def test_no_bytes_make_it_fail() -> None:
    """Every packet above, cut anywhere, with bytes changed anywhere; and plain noise."""
    chance = Random(6)
    whole = [bytes(packet) for _, packet, _ in WORDS]
    for turn in range(20_000):
        data = bytearray(chance.choice(whole)) if turn % 4 else bytearray(chance.randbytes(chance.randrange(90)))
        for _ in range(chance.randrange(1, 8)):
            if data:
                data[chance.randrange(len(data))] = chance.choice((0, 1, 0x45, 0x60, 0xFF, chance.randrange(256)))
        found = decode(bytes(data[: chance.randrange(len(data) + 1)]))
        assert frames.line(found)


def test_tunnels_in_tunnels_end() -> None:
    packet: Any = SYN
    for _ in range(20):
        packet = IP() / UDP(dport=8472) / VXLAN() / Ether() / packet
    assert frames.line(decode(bytes(Ether() / packet))).count("vxlan") == 3


def test_scapy_may_say_more() -> None:
    packet = Ether() / IP() / UDP() / DNS(qd=DNSQR(qname="web.default.svc.cluster.local"))
    assert "web.default.svc.cluster.local" in frames.dissected(bytes(packet))
    assert isinstance(frames.dissected(b"\0" * 20 + b"\xff" * 9), str)
