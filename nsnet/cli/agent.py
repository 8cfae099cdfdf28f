"""`agent`: this machine takes its part of a cluster that several carry.

It finds the cluster in the etcd, remembers which machine it is, brings its own nodes and pods into being and leaves a
controller that looks after them. Nothing else of the machine is touched; the other machines reach it at the address
that the Cluster document says, by VXLAN, which has no authentication: that is for networks one trusts.
"""

import contextlib
import time
import uuid
from collections.abc import Iterator

import click

from nsnet import controller, model, reconcile
from nsnet.cli import options, spread
from nsnet.cli.context import changing, checked, waiting_for
from nsnet.cli.durations import DURATION
from nsnet.cli.output import out, progress
from nsnet.cli.up import show_phase
from nsnet.errors import InputError, NotReachedError
from nsnet.model import Node
from nsnet.render import machines
from nsnet.store import location, opening
from nsnet.store.etcd import EtcdStore
from nsnet.store.keys import CLUSTERS
from nsnet.store.location import Here
from nsnet.store.members import Member
from nsnet.store.objects import update


@options.verb("agent")
@click.option("--store", required=True, metavar="STORE", help="etcd://HOST:2379[/PREFIX], the same on every machine.")
@click.option("--machine", required=True, metavar="NAME", help="Which of the Cluster's underlay.machines this is.")
@click.option("--timeout", type=DURATION, default="60s", metavar="TIME", help="How long to wait for a cluster (60s).")
@options.cluster
def agent(store: str, machine: str, timeout: float, cluster: str | None) -> None:
    """Carry one machine's part of a cluster: its nodes, with their pods; then look after them.

    The cluster itself is made by `nsnet up --store STORE --machine NAME` on any one of its machines.
    """
    changing("agent")
    place = location.checked(store)
    if place in (location.SQLITE, location.INSIDE):
        raise InputError(f"{place} is one machine's own store", "--store etcd://HOST:2379, which every machine reaches")
    started = time.perf_counter()
    name = _found(place, cluster, time.monotonic() + timeout)
    with (
        reconcile.lock(name, waiting=waiting_for(name, "agent")),
        opening.open_at(name, place) as there,
        settled(name, place, machine),
    ):
        update(there, lambda stored: spread.at_home(stored, machine))
        with joining(there, name):
            report = reconcile.sync(there, name, progress=show_phase, member=reconcile.member(there, name))
    progress("")
    controller.start(name)
    mine = [node for node in model.of(report.memory.objects, Node) if _is_here(report.memory.objects, node, machine)]
    seconds = time.perf_counter() - started
    names = ", ".join(node.metadata.name for node in mine) or "no node yet"
    out(f"machine {machine} carries {names} of cluster {name}  ({report.changes} changes, {seconds:.2f} s)")


def _is_here(objects: model.Objects, node: Node, machine: str) -> bool:
    return machines.of_nodes(model.cluster_of(objects)).get(node.metadata.name) == machine


def _found(place: str, cluster: str | None, deadline: float) -> str:
    """The cluster in that etcd; waits until there is one."""
    with EtcdStore(location.parsed(place)) as store:
        while not (found := [entry.key.removeprefix(CLUSTERS) for entry in store.list(CLUSTERS)[0]]):
            progress("waiting until there is a cluster")
            if time.monotonic() > deadline:
                raise NotReachedError(
                    f"there is no cluster in {place}", "`nsnet up --store … --machine … FILE` makes it"
                )
            store.wait(1.0)
    progress("")
    name = checked(found[0])
    if cluster not in (None, name):
        raise InputError(f'{place} holds cluster "{name}"', "leave --cluster out, or say another prefix")
    return name


@contextlib.contextmanager
def settled(name: str, place: str, machine: str) -> Iterator[None]:
    """Remembers which machine this is, unless what comes is refused. Raises InputError where it has been another."""
    had = location.here(name)
    now = Here(place, machine, had.id or uuid.uuid4().hex)
    if had != now and opening.exists(name):
        was = f"machine {had.machine} with its store in {had.store}" if had.machine else f"its store in {had.store}"
        raise InputError(f"this machine has cluster {name} already, as {was}", f"nsnet down {name} first")
    location.settle(name, now)
    try:
        yield
    except InputError:
        location.settle(name, had)
        raise


@contextlib.contextmanager
def joining(store: object, name: str) -> Iterator[None]:
    """Holds our name while the first sync goes on, unless our controller does. InputError: another machine has it."""
    at = location.here(name)
    assert isinstance(store, EtcdStore)
    member = Member(store, at.machine, at.id)
    if not member.is_there():
        member.beat()
    try:
        yield
    finally:
        member.leave()
