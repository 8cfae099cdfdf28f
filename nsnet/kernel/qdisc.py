"""Queueing disciplines of a namespace: impairments of links, written and read with tc(8), in its own words.

They are rare, so a process for each costs nothing that anybody feels, and what stands in `nsnet plan` is what is done.

Source: iproute2 `tc/q_netem.c`, `tc/q_tbf.c` (what `tc -j qdisc show` prints: seconds, shares of 1, bytes per second).
"""

import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import msgspec

from nsnet.errors import MachineError
from nsnet.kernel.netns import inside
from nsnet.state import Change, Qdisc, Refusal, qdisc_options

OURS = frozenset({"netem", "tbf"})
_MISSING = "there is no tc on this machine", "sudo apt-get install iproute2"


@cache
def has_netem() -> bool:
    """Does the kernel have it? It is tried once."""
    from nsnet.kernel import features

    return features.works("netem")


def read(netns: str, devices: Collection[str]) -> Iterator[Qdisc]:
    """The root disciplines of these devices. Raises MachineError where tc is missing or fails."""
    for dev in sorted(devices):
        for found in msgspec.json.decode(
            _tc(netns, "-j", "qdisc", "show", "dev", dev, "root"), type=list[dict[str, Any]]
        ):
            if found.get("kind") in OURS:
                yield _decode(dev, str(found["kind"]), found.get("options", {}))


def _decode(dev: str, kind: str, said: Mapping[str, Any]) -> Qdisc:
    if kind == "tbf":
        return Qdisc(dev, kind, rate=int(said.get("rate", 0)) * 8)
    delay = said.get("delay") or {}
    return Qdisc(
        dev,
        kind,
        delay=round(float(delay.get("delay", 0)) * 1_000_000),
        jitter=round(float(delay.get("jitter", 0)) * 1_000_000),
        loss=_percent(said.get("loss-random"), "loss"),
        duplicate=_percent(said.get("duplicate"), "duplicate"),
        reorder=_percent(said.get("reorder"), "reorder"),
        rate=int((said.get("rate") or {}).get("rate", 0)) * 8,
    )


def _percent(said: Mapping[str, Any] | None, name: str) -> float:
    """The kernel keeps 32 bits of a share: four digits of a percentage come back as they were."""
    return round(float((said or {}).get(name, 0)) * 100, 4)


def write(netns: str, changes: Sequence[Change]) -> list[Refusal]:
    """Sets or removes them; what tc refused, with its sentence. Removing what is not there is success."""
    answers = ((change, _write(netns, change)) for change in changes)
    return [Refusal(change, why) for change, why in answers if why]


def _write(netns: str, change: Change) -> str:
    value = change.value
    assert isinstance(value, Qdisc)
    try:
        _tc(netns, "qdisc", "delete", "dev", value.dev, "root")  # also before another kind: there is no replacing it
    except MachineError as error:
        if str(error) == _MISSING[0]:
            return str(error)
    if change.verb == "delete":
        return ""
    try:
        _tc(netns, "qdisc", "add", "dev", value.dev, "root", value.kind, *qdisc_options(value))
    except MachineError as error:
        return str(error)
    return ""


def _tc(netns: str, *words: str) -> bytes:
    try:
        with inside(netns):
            done = subprocess.run(("tc", *words), capture_output=True, check=False)
    except FileNotFoundError as error:
        if error.filename == "tc":
            raise MachineError(*_MISSING) from error
        raise
    if done.returncode:
        raise MachineError(f"tc: {' '.join(done.stderr.decode(errors='replace').split())}", "nsnet doctor")
    return done.stdout
