"""`doctor`: what this machine has and lacks, what that costs, and the command that mends it. It runs none of them."""

import os
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_network
from typing import Any

import msgspec

from nsnet import controller, names
from nsnet.cli import options
from nsnet.cli.context import clusters
from nsnet.cli.output import Colour, coloured, out, print_json
from nsnet.cli.up import command, counted
from nsnet.control.underlay import INSIDE, OUTER
from nsnet.errors import MachineError
from nsnet.kernel import limits, netns, rootless
from nsnet.kernel.features import Finding, State, features, root, tools
from nsnet.model import Networking

COLOURS: dict[State, Colour] = {"ok": "green", "missing": "red", "degraded": "yellow", "unknown": "cyan"}


@options.verb("doctor")
@options.output("json")
def doctor(output: str | None) -> int:
    """Show what this machine has and lacks, what that costs, and the command that mends it; runs none of them.

    Each line is ok, missing, degraded, or unknown (what takes root to see). Every kernel feature is tried in a network
    namespace made for the try, which may make the kernel load a module, as using it would. Exit code 5: something that
    `up` needs is missing.
    """
    found = list(examine())
    if output == "json":
        print_json(documents(found))
    else:
        _print(found)
    return MachineError.exit_code if any(item.needed and not item.ok for item in found) else 0


def documents(found: Iterable[Finding]) -> list[dict[str, Any]]:
    """As `-o json` shows them."""
    return [{**msgspec.to_builtins(item), "state": item.verdict} for item in found]


def examine() -> Iterator[Finding]:
    """Everything there is to say about the machine. Never raises for what it finds."""
    yield root()
    yield rootless.user_namespaces()  # it forks: before there are threads
    yield from tools()
    yield from features() if os.geteuid() == 0 else _unseen("kernel features", "trying them takes root", "kernel")
    yield from limits.limits()
    yield limits.propagation()
    yield from _clashes()
    yield from leftovers() if os.geteuid() == 0 else _unseen("leftovers of clusters", "looking takes root", "leftovers")


def _unseen(name: str, why: str, about: str) -> Iterator[Finding]:
    yield Finding(name, ok=False, mend=f"{command()} doctor", why=why, needed=False, state="unknown", about=about)


# --- addresses --------------------------------------------------------------------------------------------------------


def _clashes() -> Iterator[Finding]:
    """Routes of the machine that overlap what clusters use by default. They do no harm; a person may be confused."""
    usual = {"pods": Networking().podSubnet, "Services": Networking().serviceSubnet, "nodes": INSIDE["ip"][0],
             "clients outside": OUTER["ip"][0]}  # fmt: skip
    routes = limits.routes()
    for name, subnet in usual.items():
        over = [route for route in routes if ip_network(route).overlaps(ip_network(subnet))]
        why = f"the machine itself routes {', '.join(over)}; no harm, clusters live in namespaces of their own"
        yield Finding(f"addresses of {name}", ok=True, why=why if over else "", needed=False, found=subnet,
                      about="addresses")  # fmt: skip


# --- leftovers --------------------------------------------------------------------------------------------------------


def leftovers() -> Iterator[Finding]:
    """Clusters that nobody looks after: a controller that is gone, or what a killed `down` left."""
    found = clusters()
    for name in found:
        if controller.status(name) is None:
            yield _left(name)
    if not found:
        yield Finding("leftovers of clusters", ok=True, needed=False, about="leftovers")


def _left(name: str) -> Finding:
    there = len(netns.candidates(name))
    what = f"{counted(there, 'namespace')}, no controller" if there else "no namespaces, only files"
    mend = f"{command()} up FILE (goes on from what is there), or {command()} down {name}"
    costs = "nothing is mended in it" if there else f"files in {names.state_dir(name)} and {names.run_dir(name)}"
    return Finding(f"cluster {name}", ok=False, mend=mend, why=costs, needed=False, state="degraded", found=what,
                   about="leftovers")  # fmt: skip


# --- what is printed --------------------------------------------------------------------------------------------------


def _print(found: Sequence[Finding]) -> None:
    width = max(len(item.name) for item in found) + 2
    for item in found:
        out(f"{coloured(f'{item.verdict:<9}', COLOURS[item.verdict])} {item.name:<{width}} {item.found}".rstrip())
        for word, text in _more(item):
            out(f"          {word} {text}")
    out(_closing(found))


def _more(item: Finding) -> Iterator[tuple[str, str]]:
    if item.verdict == "ok":
        if item.about == "addresses" and item.why:
            yield "note:", item.why
        return
    if item.why:
        yield {"missing": "for:  ", "degraded": "costs:"}.get(item.verdict, "why:  "), item.why
    if item.mend:
        yield "mend: ", item.mend


def _closing(found: Sequence[Finding]) -> str:
    states = [item.verdict for item in found]
    counts = ", ".join(f"{states.count(state)} {state}" for state in COLOURS if state in states)
    lacking = [item.name for item in found if item.needed and not item.ok]
    return f"{counts}; " + (f"up needs: {', '.join(lacking)}" if lacking else "nothing that up needs is missing")
