"""What upstream's modes do differently with a packet: one table, each difference with its reason.

A packet table is written for iptables mode. A row that ends otherwise in another mode stands here with its other end;
every other row must read the same in every mode. The reasons are upstream's own (facts/KUBEPROXY.md §5, KEP-3866).
"""

from typing import NamedTuple

REASONS = {
    "other ports": "the set cluster-ips knows every clusterIP: ports that no Service has are refused, not routed on",
    "unallocated": "an address of the Service range that no Service has is dropped, not routed on",
    "loopback": "node ports on 127.0.0.1 need route_localnet, a known hole (CVE-2020-8558): left out on purpose",
    "primary address": "node ports are served on the node's primary address alone",
    "ranges first": "source ranges are asked before all else, so they hold where there is no endpoint, too",
}


class Difference(NamedTuple):
    """A row by sender, destination and protocol, and where it ends instead."""

    sender: str
    to: str
    protocol: str
    expected: str
    reason: str


NFTABLES = (
    Difference("a1", "10.96.0.11:81", "tcp", "refused", "other ports"),
    Difference("a1", "10.96.0.11:80", "udp", "refused", "other ports"),
    Difference("a1", "10.96.0.19:80", "tcp", "dropped", "unallocated"),
    Difference("node1", "10.96.0.19:80", "tcp", "dropped", "unallocated"),
    Difference("a1", "10.244.1.1:30011", "tcp", "node1 =", "primary address"),
    Difference("node1", "127.0.0.1:30011", "tcp", "node1 lo", "loopback"),
    Difference("node1", "127.0.0.1:30012", "tcp", "node1 lo", "loopback"),
    Difference("node1", "127.0.0.1:30013", "tcp", "node1 lo", "loopback"),
    Difference("e2", "192.0.2.20:80", "tcp", "dropped", "ranges first"),
)
"""`node1 =`: the packet is left alone and comes to the node's own processes, with its own source."""


def in_nftables(row: list[str]) -> list[str]:
    """A row (sender, destination, protocol, expected, source seen) as it reads in nftables mode."""
    other = next((one for one in NFTABLES if [one.sender, one.to, one.protocol] == row[:3]), None)
    return row if other is None else [*row[:3], *other.expected.split()]
