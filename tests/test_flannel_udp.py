"""flannel's process between nodes: what becomes of a packet's bytes, as scapy reads and makes them."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP

from nsnet.programs import flannel_udp
from nsnet.programs.flannel_udp import Carrier, Config, Lease, leases_of, net_unreachable, one_hop_on

TTLS = [(64, 63), (2, 1), (1, 0), (0, 0), (255, 254)]


def packet(**fields: object) -> bytearray:
    return bytearray(bytes(IP(src="10.244.1.2", dst="10.244.2.2", **fields) / UDP(sport=1, dport=2) / b"hello"))


@pytest.mark.parametrize(("before", "after"), TTLS)
def test_each_process_takes_one_off_the_ttl(before: int, after: int) -> None:
    """With none left the packet goes no further; else its checksum is right, whatever it was before."""
    for number in (0, 1, 0x1234, 0xFEFF, 0xFFFF):
        one = packet(ttl=before, id=number)
        assert one_hop_on(one) is (after > 0)
        assert one[8] == after
        if after:
            assert bytes(one) == bytes(packet(ttl=after, id=number))


def test_a_packet_for_nobodys_lease_is_answered() -> None:
    sent = packet()
    said = IP(net_unreachable(bytes(sent), "10.244.1.0"))
    assert (said.src, said.dst, said.ttl) == ("10.244.1.0", "10.244.1.2", 8)
    assert (said[ICMP].type, said[ICMP].code) == (3, 0)
    assert bytes(said[ICMP].payload) == bytes(sent[:28])
    assert bytes(said) == bytes(IP(bytes(said)).__class__(_unsummed(said))), "both checksums are right"


def _unsummed(said: IP) -> bytes:
    """The same with checksums that scapy has computed."""
    fresh = said.copy()
    del fresh.chksum, fresh[ICMP].chksum
    return bytes(fresh)


@pytest.mark.parametrize(
    "sent",
    [IP(src="10.244.1.2", dst="10.9.9.9") / ICMP(), IP(src="10.244.1.2", dst="10.9.9.9", frag=3) / TCP()],
    ids=["icmp", "a later fragment"],
)
def test_some_are_never_answered(sent: IP) -> None:
    assert net_unreachable(bytes(sent), "10.244.1.0") == b""


def test_leases() -> None:
    config = Config("flannel0", "10.244.1.0", ("172.18.0.2", 8285), {"10.244.2.0/24": "172.18.0.3"})
    assert leases_of(config) == (Lease(0x0AF40200, 0xFFFFFF00, "172.18.0.3"),)


def test_who_reloads_for_a_device_that_does_not_come_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flannel_udp, "PATIENCE", 0.02)
    path = tmp_path / "flannel_udp.json"

    async def reloaded() -> str:
        path.write_bytes(msgspec.json.encode(Config("none0", "10.244.1.0", ("127.0.0.1", 0))))
        carrier = Carrier(path)
        path.write_bytes(msgspec.json.encode(Config("none1", "10.244.1.0", ("127.0.0.1", 0))))
        said = await carrier.reload()
        assert carrier.attaching is not None
        assert not carrier.attaching.done()
        carrier.socket.close()
        return said

    assert asyncio.run(reloaded()) == "error: none1 is not there, or another program has it; it is waited for"
