"""IPv4 addresses as numbers: allocation, ranges and overlaps are arithmetic."""

from collections.abc import Collection
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network
from typing import NamedTuple


class Range(NamedTuple):
    """An IPv4 subnet: its first and last address, and the prefix length."""

    first: int
    last: int
    length: int

    def __str__(self) -> str:
        return f"{text(self.first)}/{self.length}"

    @property
    def size(self) -> int:
        return self.last - self.first + 1

    def has(self, address: int) -> bool:
        return self.first <= address <= self.last

    def covers(self, other: "Range") -> bool:
        return self.first <= other.first and other.last <= self.last

    def overlaps(self, other: "Range") -> bool:
        return self.first <= other.last and other.first <= self.last

    def hosts(self) -> range:
        """What a machine may have: without the network's own address and the broadcast address."""
        return range(self.first + 1, self.last)


NOWHERE = -1  # the number of what is no IPv4 address: in no range


@lru_cache(1 << 17)
def number(address: str) -> int:
    """`10.0.0.1` → 167772161; NOWHERE for anything else. Leading zeros are decimal, as Kubernetes reads them."""
    parts = address.split(".") if address.isascii() else []
    if len(parts) != 4 or len(address) > 20 or not all(part.isdecimal() and int(part) < 256 for part in parts):
        return NOWHERE
    high, upper, lower, low = map(int, parts)
    return (high << 24) | (upper << 16) | (lower << 8) | low


@lru_cache(1 << 17)
def text(address: int) -> str:
    return f"{address >> 24}.{address >> 16 & 255}.{address >> 8 & 255}.{address & 255}"


@lru_cache(1 << 14)
def subnet(cidr: str) -> Range:
    """`10.244.1.0/24` as a range, host bits masked. Raises ValueError where it is no IPv4 subnet."""
    address, slash, said = cidr.strip().partition("/")
    at, length = number(address), int(said) if slash else 32
    if at == NOWHERE or not 0 <= length <= 32:
        raise ValueError(f"{cidr} is not an IPv4 subnet")
    size = 1 << (32 - length)
    first = at & ~(size - 1)
    return Range(first, first + size - 1, length)


def subnet_or_none(cidr: str) -> Range | None:
    try:
        return subnet(cidr)
    except ValueError:
        return None


def is_ipv6(cidr: str) -> bool:
    """Is it an IPv6 address or subnet?"""
    try:
        return bool(IPv6Network(cidr.strip(), strict=False) if "/" in cidr else IPv6Address(cidr))
    except ValueError:
        return False


def supernet(addresses: Collection[int], longest: int, shortest: int) -> Range | None:
    """The smallest subnet that has them all, its prefix between `shortest` and `longest`; None where none does."""
    for length in range(longest, shortest - 1, -1):
        found = subnet(f"{text(min(addresses))}/{length}")
        if found.has(max(addresses)):
            return found
    return None


@lru_cache(1024)
def span(said: str) -> tuple[int, int]:
    """First and last of `a-b`, of a subnet, or of one address, as MetalLB writes pools. Raises ValueError."""
    low, dash, high = (part.strip() for part in said.partition("-"))
    if not dash:
        whole = subnet(low)
        return whole.first, whole.last
    return number(low), number(high)
