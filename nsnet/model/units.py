"""What durations, rates and shares say."""

import re
from collections.abc import Mapping

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(duration: str) -> float | None:
    """`1h30m` in seconds, as Go's time.ParseDuration reads it; None where it is none, or negative."""
    if duration.removeprefix("+") == "0":
        return 0.0
    parts = _DURATION.findall(duration)
    if not parts or "".join(number + unit for number, unit in parts) != duration.removeprefix("+"):
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


# tc's units (iproute2 `lib/utils.c`)
_UNITS = {"us": 1, "ms": 1_000, "s": 1_000_000}
_UNITS |= {f"{unit}ec{plural}": factor for unit, factor in _UNITS.items() for plural in ("", "s")}
_POWERS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_POWERS |= {f"{power}i": 1024 ** (index + 1) for index, power in enumerate("kmgt")}
_BITS = {f"{power}{unit}": by * size for power, by in _POWERS.items() for unit, size in (("bit", 1), ("bps", 8))}


def _measured(text: str, units: Mapping[str, int]) -> float:
    number = text.lower().rstrip("abcdefghijklmnopqrstuvwxyz")
    return float(number) * units[text.lower()[len(number) :]]


def micros(text: str) -> int:
    """`5ms` as microseconds; empty: 0."""
    return round(_measured(text, _UNITS)) if text else 0


def bits(text: str) -> int:
    """`100mbit` as bit/s; empty: 0."""
    return round(_measured(text, _BITS)) if text else 0


def percent(text: str) -> float:
    """`1%` as 1.0; empty: 0."""
    return float(text.rstrip("%")) if text else 0.0


def lost_by_chance(share: float) -> str:
    """The end of an iptables rule that drops so many percent of packets, as iptables-save prints it.

    xt_statistic keeps 31 bits of a probability (iptables `extensions/libxt_statistic.c`).
    """
    if share >= 100:
        return "-j DROP"
    kept = round(share / 100 * 0x80000000) / 0x80000000
    return f"-m statistic --mode random --probability {kept:.11f} -j DROP"
