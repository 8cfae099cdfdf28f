"""Filters in tcpdump's words: what they let pass, on its own and inside VXLAN."""

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet

from nsnet.errors import InputError
from nsnet.kernel import bpf
from tests import bpf_machine

WEB = Ether() / IP(src="10.244.1.2", dst="10.244.2.2") / TCP(sport=40000, dport=80)
DNS = Ether() / IP(src="10.244.1.2", dst="10.96.0.10") / UDP(sport=40000, dport=53)
PING = Ether() / IP(src="10.244.1.2", dst="10.244.2.2") / ICMP()
PACKETS: dict[str, Any] = {"web": WEB, "dns": DNS, "ping": PING, "arp": Ether() / ARP()}
CARRYING = UDP(sport=5, dport=8472) / VXLAN(vni=1)
TUNNEL = Ether() / IP(src="172.18.0.2", dst="172.18.0.3") / CARRYING
TUNNEL6 = Ether() / IPv6(src="fd00::2", dst="fd00::3") / CARRYING

FILTERS = [
    ("", {"web", "dns", "ping", "arp"}),
    ("tcp port 80", {"web"}),
    ("host 10.244.2.2", {"web", "ping"}),
    ("icmp or udp port 53", {"ping", "dns"}),
    ("not tcp", {"dns", "ping", "arp"}),
    ("tcp[tcpflags] & tcp-syn != 0", {"web"}),
    ("net 10.96.0.0/16 and udp", {"dns"}),
    ("greater 5000", set()),
]


@pytest.mark.parametrize(("words", "passing"), FILTERS)
def test_a_filter_alone_and_inside_vxlan(words: str, passing: set[str]) -> None:
    program = bpf.inner_too(bpf.compiled(words), 8472)
    assert {name for name, packet in PACKETS.items() if bpf_machine.run(program, bytes(packet))} == passing
    if "not" not in words:  # the outer packet is "not tcp", too
        for outer in (TUNNEL, TUNNEL6):
            inside = {name for name, packet in PACKETS.items() if bpf_machine.run(program, bytes(outer / packet))}
            assert inside == passing


UNDER = Ether() / IP(src="172.18.0.2", dst="172.18.0.3")
NONE, TUNNEL_DEVICE = 65534, 768  # what TUN and IPIP devices are: no Ethernet header
CARRIED = [("udp", UNDER / UDP(sport=8285, dport=8285), NONE), ("ipip", UNDER, TUNNEL_DEVICE)]


@pytest.mark.parametrize(("words", "passing"), [row for row in FILTERS if "not" not in row[0] and row[0]])
@pytest.mark.parametrize(
    ("backend", "outer", "hardware"),
    [("udp", UNDER / UDP(sport=8285, dport=8285), NONE), ("ipip", UNDER, TUNNEL_DEVICE)],
)
def test_a_filter_inside_flannels_other_tunnels(
    backend: str, outer: Packet, hardware: int, words: str, passing: set[str]
) -> None:
    """On an ordinary device, inside of what the underlay carries, and on the tunnel's own device, where no frame is."""
    program = bpf.inner_too(bpf.compiled(words), 8285, backend)
    carried = {name: packet[IP] for name, packet in PACKETS.items() if IP in packet}
    assert {name for name, packet in PACKETS.items() if bpf_machine.run(program, bytes(packet))} == passing
    assert {name for name, packet in carried.items() if bpf_machine.run(program, bytes(outer / packet))} == passing
    assert {name for name, packet in carried.items() if bpf_machine.run(program, bytes(packet), hardware)} == passing


def test_only_vxlans_port_is_looked_into() -> None:
    program = bpf.inner_too(bpf.compiled("tcp port 80"), 4789)
    assert not any(bpf_machine.run(program, bytes(outer / WEB)) for outer in (TUNNEL, TUNNEL6))
    assert not bpf_machine.run(program, bytes(TUNNEL)[:30])


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("tcp prot 80", "filter 'tcp prot 80': can't parse filter expression: syntax error"),
        ("-w /tmp/stolen", "filter '-w /tmp/stolen': can't parse filter expression: syntax error"),
        ("port 99999", "filter 'port 99999': illegal port number 99999 > 65535"),
        ("tcp\0", "a filter holds no zero byte"),
    ],
)
def test_what_is_no_filter(words: str, error: str) -> None:
    with pytest.raises(InputError) as said:
        bpf.compiled(words)
    assert str(said.value) == error
