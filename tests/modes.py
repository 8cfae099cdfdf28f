"""What upstream's modes do differently with a packet: one table, each difference with its reason.

A packet table is written for iptables mode. A row that ends otherwise in another mode stands here with its other end;
every other row must read the same in every mode. The reasons are rows of nsnet/verify/modes.py.
"""

from typing import NamedTuple


class Difference(NamedTuple):
    """A row by sender, destination and protocol, and where it ends instead."""

    sender: str
    to: str
    protocol: str
    expected: str
    reason: str


NFTABLES = (
    Difference("a1", "10.96.0.11:81", "tcp", "refused", "other port"),
    Difference("a1", "10.96.0.11:80", "udp", "refused", "other port"),
    Difference("a1", "10.96.0.19:80", "tcp", "dropped", "unallocated"),
    Difference("node1", "10.96.0.19:80", "tcp", "dropped", "unallocated"),
    Difference("a1", "10.244.1.1:30011", "tcp", "node1 =", "other address"),
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
