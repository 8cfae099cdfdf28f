"""What every rule set of kube-proxy must satisfy, in either mode, as sentences: none when all is well."""

import re
from collections.abc import Iterable, Iterator

from nsnet.diff import targets
from nsnet.state import Chain, Nft, NftChain, NftElement, NftSet, Value
from tests.fake import nft_dangling

ALWAYS = {"reject-chain"}  # kube-proxy has it whether or not an element leads to it


def rule_faults(values: Iterable[Value]) -> Iterator[str]:
    every = list(values)
    chains = [value for value in every if isinstance(value, Chain)]
    nft = [value for value in every if isinstance(value, Nft)]
    for chain in chains:
        yield from _unfair(chain)
    yield from nft_dangling(nft)
    yield from _unasked(nft)
    for value in nft:
        if isinstance(value, NftChain):
            yield from _unfair_map(value)


def _unfair(chain: Chain) -> Iterator[str]:
    """Rule i takes its share of what the rules before it left over; all must come out equal, and nothing be left."""
    left, shares = 1.0, []
    for rule in chain.rules:
        if re.search(r"-j KUBE-SEP-\w+$", rule) and "-m recent" not in rule:
            found = re.search(r"--probability ([\d.]+)", rule)
            shares.append(left * (float(found[1]) if found else 1.0))
            left -= shares[-1]
    if shares and (left > 1e-9 or max(shares) - min(shares) > 1e-8):
        yield f"{chain.name} chooses unfairly: {shares}"


def _unfair_map(chain: NftChain) -> Iterator[str]:
    for rule in chain.rules:
        found = re.search(r"numgen random mod (\d+) (?:map|vmap) \{ (.*) \}", rule)
        if found:
            ways = dict(pair.split(" : ") for pair in found[2].split(", "))
            if [*ways] != [str(number) for number in range(int(found[1]))] or len({*ways.values()}) != len(ways):
                yield f"{chain.name} chooses unfairly: {rule}"


def _unasked(nft: list[Nft]) -> Iterator[str]:
    """Chains nobody leads to, and sets nobody looks into."""
    chains = [value for value in nft if isinstance(value, NftChain)]
    text = " ".join(rule for chain in chains for rule in chain.rules)
    reached = {target for chain in chains for target in targets(chain)} | ALWAYS
    reached |= {value.data.removeprefix("goto ") for value in nft if isinstance(value, NftElement)}
    yield from (f"nobody goes to {chain.name}" for chain in chains if not chain.hook and chain.name not in reached)
    asked = set(re.findall(r"@([^\s,}]+)", text))
    yield from (f"nobody asks {value.name}" for value in nft if isinstance(value, NftSet) and value.name not in asked)
