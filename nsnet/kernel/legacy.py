"""The older xtables beside nf_tables: chains that packets pass and `iptables` does not show, but for a warning.

Only where `iptables` is the build that writes nf_tables; where it is the older one itself, these are its own chains.
A table that was used once stays with its namespace, empty: the kernel takes none back.
"""

from collections.abc import Sequence

from msgspec.structs import replace

from nsnet.kernel import iptables
from nsnet.kernel.iptables import EVERY_FAMILY, LEGACY_TABLES, is_nft
from nsnet.kernel.netns import inside
from nsnet.state import Chain, Change, Family, LegacyChain, Refusal, Value


def read(netns: str) -> frozenset[LegacyChain]:
    """The chains that say something. Raises MachineError when the tool fails."""
    with inside(netns):
        return frozenset(
            LegacyChain(chain.table, chain.name, chain.rules, chain.policy, family)
            for family in EVERY_FAMILY
            if _has_tables(family) and is_nft(family)
            for chain in iptables.saved("iptables-legacy-save", family)
        )


def _has_tables(family: Family) -> bool:
    try:
        return bool(LEGACY_TABLES[family].read_bytes())
    except OSError:  # a kernel without them
        return False


def write(netns: str, changes: Sequence[Change]) -> list[Refusal]:
    """Makes these changes, those of a family in one transaction per table. Raises MachineError without the tool."""
    with inside(netns):
        return [refusal for family in EVERY_FAMILY for refusal in _write(changes, family)]


def _write(changes: Sequence[Change], family: Family) -> list[Refusal]:
    mine = [change for change in changes if isinstance(change.value, LegacyChain) and change.value.family == family]
    if not mine:
        return []
    if not is_nft(family):
        return [Refusal(change, "iptables is itself the older build here") for change in mine]
    argv = [iptables.tool("iptables-legacy-restore", family), "--noflush"]
    error = iptables.restore(argv, iptables.changed([_plain(change) for change in mine], edit=False))
    return [Refusal(change, iptables.sentence(error)) for change in mine] if error else []


def _plain(change: Change) -> Change:
    return replace(change, value=_chain(change.value), old=None)


def _chain(value: Value) -> Chain:
    assert isinstance(value, LegacyChain)
    return Chain(value.table, value.name, value.rules, value.policy, value.family)
