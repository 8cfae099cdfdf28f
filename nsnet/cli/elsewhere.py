"""Verbs whose packets or commands start on another of the cluster's machines: they are run there (kernel/remote.py)."""

from nsnet import model
from nsnet.cli.context import Running
from nsnet.cli.target import Target
from nsnet.errors import InputError
from nsnet.kernel import remote
from nsnet.model import Objects
from nsnet.store import location


def machine_of(now: Running, netns: str) -> str:
    """The machine that has this namespace; empty where that is this one."""
    here = location.here(now.cluster).machine
    if not here:
        return ""
    from nsnet.render import machines  # most clusters are on one

    there = machines.where(now.objects).get(netns, here)
    return "" if there == here else there


def run(now: Running, machine: str, *words: str) -> int:
    """`nsnet WORDS` on that machine; its exit code."""
    return remote.run(_address(now.objects, machine), ("--cluster", now.cluster, *words))


def _address(objects: Objects, machine: str) -> str:
    entries = model.cluster_of(objects).underlay.machines
    return next(entry.address for entry in entries if entry.name == machine)


def others(now: Running) -> list[str]:
    """The cluster's other machines."""
    here = location.here(now.cluster).machine
    return [entry.name for entry in model.cluster_of(now.objects).underlay.machines if here and entry.name != here]


def need_here(now: Running, found: Target, verb: str) -> None:
    """Raises InputError for a target on another machine, for a verb that reads this kernel only."""
    if there := machine_of(now, found.netns):
        hint = f"run it there: ssh {_address(now.objects, there)} nsnet {verb} …"
        raise InputError(f"{found.label} is on machine {there}", hint)
