"""`agent`: this machine takes its part of a cluster that several carry.

It finds the cluster in the etcd, remembers which machine it is and starts the controller that brings its nodes and
pods into being and looks after them. Nothing else of the machine is touched; the other machines reach it at the address
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
from nsnet.cli.output import out, progress, warning
from nsnet.cli.up import going_on
from nsnet.errors import InputError, NotReachedError
from nsnet.render import machines
from nsnet.store import Store, location, opening
from nsnet.store.etcd import EtcdStore
from nsnet.store.keys import CLUSTERS
from nsnet.store.location import Here
from nsnet.store.members import Member
from nsnet.store.objects import entries_decoded, update


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
    with going_on(name, on="nsnet agent"), settled(name, place, machine):
        with reconcile.lock(name, waiting=waiting_for(name, "agent")), opening.open_at(name, place) as there:
            cluster_ = _joined(there, name, machine)
            revision = there.revision()
        progress(f"building what machine {machine} carries")
        changes = controller.build(name, revision)
    progress("")
    nodes = ", ".join(_carried(cluster_, machine)) or "no node yet"
    seconds = time.perf_counter() - started
    out(f"machine {machine} carries {nodes} of cluster {name}  ({changes} changes, {seconds:.2f} s)")


def _joined(store: Store, name: str, machine: str) -> model.Cluster:
    """The cluster, with our address. InputError where this cannot be that machine, or another one goes by its name."""
    stored = entries_decoded(store.list(CLUSTERS)[0], warning)
    found = spread.at_home(stored, machine)
    Member(store, machine, location.here(name).id).check()
    if found != stored:
        found, _ = update(store, lambda stored: spread.at_home(stored, machine))
    return model.cluster_of(found)


def _carried(cluster: model.Cluster, machine: str) -> list[str]:
    return sorted(node for node, place in machines.of_nodes(cluster).items() if place == machine)


def _found(place: str, cluster: str | None, deadline: float) -> str:
    """The cluster in that etcd; waits until there is one."""
    with EtcdStore(location.parsed(place)) as store:
        while not (there := store.list(CLUSTERS))[0]:
            progress("waiting until there is a cluster")
            if time.monotonic() > deadline:
                raise NotReachedError(
                    f"there is no cluster in {place}", "`nsnet up --store … --machine … FILE` makes it"
                )
            store.await_key(CLUSTERS, there[1], max(0.0, deadline - time.monotonic()))
    progress("")
    name = checked(there[0][0].key.removeprefix(CLUSTERS))
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
