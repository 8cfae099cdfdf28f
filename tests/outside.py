"""For tests of the way in from outside: a load of requests that counts what is lost, and a node that hears nothing."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

TOOL = Path(__file__).parents[1] / "scripts" / "measure" / "load.py"
DEAF = """
add table ip nsnet-trace { flags owner; }
add chain ip nsnet-trace c { type filter hook prerouting priority -400; }
add rule ip nsnet-trace c iifname "eth0" drop
"""
PATIENCE = 60.0  # s for what takes some 10 on an idle machine


def until(what: Callable[[], bool], why: str) -> None:
    """Waits for something that has been asked for; it happens, or the test fails."""
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, why
        time.sleep(0.02)


class Load:
    """Requests of a namespace to an address, `rate` a second, inside the block; afterwards what came of them."""

    def __init__(self, netns: str, address: str, host: str, rate: int, *, kept: bool = True) -> None:
        self.command = ("ip", "netns", "exec", netns, sys.executable, TOOL, address, "80", host, str(rate), str(+kept))
        self.rate = rate
        self.done = 0
        self.seconds = 0.0
        self.lost: list[tuple[float, str]] = []

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self

    def __exit__(self, *_: object) -> None:
        said = self.process.communicate(timeout=60)[0]
        found: dict[str, Any] = json.loads(said)
        self.done, self.seconds, self.lost = found["done"], found["seconds"], found["lost"]


@contextlib.contextmanager
def deaf(netns: str) -> Iterator[None]:
    """Nothing from outside reaches the node: a table drops it that belongs to a process of ours.

    The controller leaves a table of that name alone as long as somebody owns it (`kernel/ruletrace.py`).
    """
    inside = ("ip", "netns", "exec", netns, "nft")
    with subprocess.Popen((*inside, "-i"), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as owner:
        assert owner.stdin is not None
        owner.stdin.write(DEAF)
        owner.stdin.flush()
        until(lambda: "drop" in _listed(inside), "nft does not write its table")
        yield


def _listed(nft: tuple[str, ...]) -> str:
    said = subprocess.run((*nft, "list", "table", "ip", "nsnet-trace"), capture_output=True, text=True, check=False)
    return said.stdout
