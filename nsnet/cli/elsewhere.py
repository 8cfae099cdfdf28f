"""The other machines of a cluster that several carry.

What starts a process there (`exec`, `shell`, `verify`) runs the same verb by ssh (`kernel.remote`). What looks
(`trace`, `capture`, `rules` …) asks from here, all kernels as one (`kernels.py`).
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from nsnet import kernel, model, names
from nsnet.cli.context import Running
from nsnet.errors import NotReachedError
from nsnet.kernel import remote
from nsnet.model import Objects
from nsnet.state import Scope, State
from nsnet.store import location

if TYPE_CHECKING:  # most clusters are on one machine
    from nsnet.cli.kernels import Kernels


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
    return remote.run(address_of(now.objects, machine), ("--cluster", now.cluster, *words))


def address_of(objects: Objects, machine: str) -> str:
    """By which the others reach it. Raises NotReachedError where it has not said that yet."""
    entries = model.cluster_of(objects).underlay.machines
    address = next(entry.address for entry in entries if entry.name == machine)
    if not address:
        raise NotReachedError(f"machine {machine} has not joined yet", f"on it: nsnet agent --machine {machine} …")
    return address


def others(now: Running) -> list[str]:
    """The cluster's other machines."""
    here = location.here(now.cluster).machine
    return [entry.name for entry in model.cluster_of(now.objects).underlay.machines if here and entry.name != here]


def kernels(now: Running) -> "AbstractContextManager[Kernels | None]":
    """The kernels of all machines; None where the cluster has but one."""
    if not location.here(now.cluster).machine:
        return nullcontext()
    from nsnet.cli.kernels import Kernels

    return Kernels(now)


def seen(now: Running, only: Scope) -> State:
    """`kernel.observe`, wherever these namespaces are. Raises NotReachedError where a machine cannot be reached."""
    with kernels(now) as every:
        return every.observe(only) if every else kernel.observe(now.cluster, only=only)


def places(objects: Objects, labels: Mapping[str, str]) -> dict[str, str]:
    """The labels, with those of what stands on several machines at once."""
    cluster = model.cluster_of(objects)
    switches = [names.fabric_netns(cluster.metadata.name, network.name) for network in cluster.underlay.networks]
    return {**labels} | {
        names.on_machine(switch, entry.name): f"{labels[switch]} on machine {entry.name}"
        for entry in cluster.underlay.machines
        for switch in switches
    }
