"""`down`: back to nothing.

It needs nothing but the names in /run/netns and the marks inside: no store, no state directory, no other room's good
health. Nothing there is success, and half of it there is, too. What stands in an etcd that others use too is deleted
there if it answers; if not, that is said.
"""

import os
import time

import click

from nsnet import controller, reconcile
from nsnet.cli import options
from nsnet.cli.context import changing, chosen, clusters, waiting_for
from nsnet.cli.output import out, progress, warning
from nsnet.errors import InputError
from nsnet.store import opening


@options.verb("down")
@click.argument("name", required=False, metavar="[NAME]")
@click.option("--all", "everything", is_flag=True, help="Every cluster of this machine.")
@options.cluster
def down(name: str | None, everything: bool, cluster: str | None) -> None:
    """Remove a cluster: controller, processes, namespaces, files. Nothing there is success."""
    changing("down")
    for each in _leaving(name, everything, cluster):
        remove(each)


def _leaving(name: str | None, everything: bool, cluster: str | None) -> list[str]:
    """The clusters to remove."""
    if name and cluster and name != cluster and os.environ.get("NSNET_CLUSTER") != cluster:
        raise InputError(f"two clusters are named, {name} and {cluster}", "name one, or --all")
    if everything and name:
        raise InputError("--all and a name contradict each other", "leave one out")
    if everything:
        return clusters() or _nothing()
    said = name or cluster
    if said is None and not clusters():
        return _nothing()
    return [chosen(said)]


def _nothing() -> list[str]:
    out("no cluster is up: nothing to remove")
    return []


def remove(name: str) -> None:
    started = time.perf_counter()
    was_there = name in clusters()
    ended = controller.stop(name)  # it may be in the middle of a sync, and any moment is a good one to die
    with reconcile.lock(name, waiting=waiting_for(name, "down")):
        progress(f"removing cluster {name}")
        ended += controller.stop(name)
        lost = opening.forget(name)
        gone = reconcile.destroy(name)
    progress("")
    seconds = time.perf_counter() - started
    out(f"cluster {name} is gone  ({seconds:.2f} s)" if ended or was_there else f"cluster {name}: nothing was there")
    if lost:
        warning(f"its objects stay in the store: {lost}; the next `nsnet up` there takes them over")
    if not gone:
        warning("a process of somebody else still holds one of its namespaces; the kernel frees it when that ends")
