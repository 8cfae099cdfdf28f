"""Addresses as numbers: allocation, ranges and overlaps are arithmetic.

Both families lie on one line of numbers, IPv4 first and IPv6 behind it (from 2^128 on). So no address of one family is
in a range of the other, and whoever compares, sorts or counts need not ask which it is.
"""

from collections.abc import Collection, Iterable
from functools import lru_cache
from ipaddress import IPv6Address
from typing import NamedTuple

from nsnet.model import Family, family_of, subnets

_IPV6 = 1 << 128  # where IPv6 begins
BITS: dict[Family, int] = {"ip": 32, "ip6": 128}
NOWHERE = -1  # the number of what is no address: in no range


class Range(NamedTuple):
    """A subnet: its first and last address, and the prefix length."""

    first: int
    last: int
    length: int

    def __str__(self) -> str:
        return f"{text(self.first)}/{self.length}"

    @property
    def family(self) -> Family:
        return "ip6" if self.first >= _IPV6 else "ip"

    @property
    def bits(self) -> int:
        """Of an address of the family: 32 or 128."""
        return BITS[self.family]

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


@lru_cache(1 << 17)
def number(address: str) -> int:
    """`10.0.0.1` → 167772161; NOWHERE for what is no address. Leading zeros are decimal, as Kubernetes reads them."""
    if ":" in address:
        return _number6(address)
    parts = address.split(".") if address.isascii() else []
    if len(parts) != 4 or len(address) > 20 or not all(part.isdecimal() and int(part) < 256 for part in parts):
        return NOWHERE
    high, upper, lower, low = map(int, parts)
    return (high << 24) | (upper << 16) | (lower << 8) | low


def _number6(address: str) -> int:
    try:
        return _IPV6 + int(IPv6Address(address)) if "%" not in address else NOWHERE
    except ValueError:
        return NOWHERE


@lru_cache(1 << 17)
def text(address: int) -> str:
    """The address as the kernel prints it."""
    if address >= _IPV6:
        return str(IPv6Address(address - _IPV6))
    return f"{address >> 24}.{address >> 16 & 255}.{address >> 8 & 255}.{address & 255}"


@lru_cache(1 << 14)
def subnet(cidr: str) -> Range:
    """`10.244.1.0/24` as a range, host bits masked. Raises ValueError where it is no subnet."""
    address, slash, said = cidr.strip().partition("/")
    at, bits = number(address), BITS[family_of(address)]
    length = int(said) if slash else bits
    if at == NOWHERE or not 0 <= length <= bits:
        raise ValueError(f"{cidr} is not a subnet")
    size = 1 << (bits - length)
    first = at & ~(size - 1)
    return Range(first, first + size - 1, length)


def subnet_or_none(cidr: str) -> Range | None:
    try:
        return subnet(cidr)
    except ValueError:
        return None


def ranges(said: str) -> tuple[Range, ...]:
    """A subnet or a pair of them with a comma. Raises ValueError where one is none."""
    return tuple(map(subnet, subnets(said)))


def around(address: int, every: Iterable[Range]) -> Range | None:
    """The one of these that the address lies in."""
    return next((one for one in every if one.has(address)), None)


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
