"""Address ranges as other programs spell them: ranges here are disjoint, in order, as (first, last)."""

from collections.abc import Iterable, Iterator
from ipaddress import ip_address, ip_network, summarize_address_range

Ranges = Iterable[tuple[str, str]]


def networks(ranges: Ranges) -> Iterator[str]:
    """As networks, as `ipset list` prints them: an address without its length, and never /0, which no set takes."""
    for first, last in ranges:
        for network in summarize_address_range(ip_address(first), ip_address(last)):
            parts = network.subnets() if network.prefixlen == 0 else (network,)
            for part in parts:
                yield str(part.network_address) if part.prefixlen == part.max_prefixlen else str(part)


def united(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """In order, with those merged that overlap or touch."""
    going: tuple[int, int] | None = None
    for first, last in sorted(ranges):
        if going and first <= going[1] + 1:
            going = (going[0], max(last, going[1]))
        else:
            if going:
                yield going
            going = (first, last)
    if going:
        yield going


def without(cidr: str, exceptions: Iterable[str]) -> Iterator[tuple[int, int]]:
    """A network with holes, as numbers."""
    network = ip_network(cidr, strict=False)
    start, end = int(network.network_address), int(network.broadcast_address)
    for hole in sorted((ip_network(item, strict=False) for item in exceptions), key=lambda item: int(item[0])):
        if start < int(hole.network_address):
            yield start, int(hole.network_address) - 1
        start = max(start, int(hole.broadcast_address) + 1)
    if start <= end:
        yield start, end


def within(ip: str, ranges: Ranges) -> bool:
    number = int(ip_address(ip))
    return any(int(ip_address(first)) <= number <= int(ip_address(last)) for first, last in ranges)
