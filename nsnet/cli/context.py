"""Which cluster is meant, and may we: what every verb asks before it calls a room.

Reading a cluster needs root as well: its state directory is 0700, and entering a namespace is root's alone.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from nsnet import names
from nsnet.errors import InputError, MachineError
from nsnet.garbage import kept
from nsnet.model import Indexed, Objects
from nsnet.store import Store

BRIEF = 1.0  # s for an etcd that the controller has missed already


class Running(msgspec.Struct, frozen=True):
    """A cluster as its store has it: all objects, and the revision they stand for."""

    cluster: str
    objects: Objects
    revision: int = 0


def need_root(what: str) -> None:
    """Raises MachineError where we are not root; `what` is the verb."""
    if os.geteuid() != 0:
        hint = f"run it with sudo: sudo nsnet {what} …, or without root: nsnet --rootless {what} …"
        raise MachineError(f"`nsnet {what}` needs root", hint)


def changing(verb: str) -> None:
    """Before a verb that changes a cluster: we are root, and what we (and what we start) write is for us alone."""
    need_root(verb)
    os.umask(0o077)


def clusters() -> list[str]:
    """The clusters of this machine: those that have namespaces, a store, or anything that a killed `down` left."""
    return sorted({*_of_namespaces(), *_of_directories(names.STATE), *_of_directories(names.RUN)})


def _of_namespaces() -> Iterator[str]:
    """By the mark; names that lead nowhere count, too."""
    from nsnet.kernel import netns

    found = set(netns.clusters())
    yield from found
    for name in _entries(names.NETNS):
        cluster = name.partition(".")[0]
        if cluster not in found and names.kind_of(name) and netns.identity(name) is None:
            yield cluster


def _of_directories(parent: Path) -> Iterator[str]:
    return (name for name in _entries(parent) if names.CLUSTER.fullmatch(name) and (parent / name).is_dir())


def _entries(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208 - of a thousand, a Path each costs more than the look
    except (FileNotFoundError, NotADirectoryError):
        return []


def chosen(name: str | None) -> str:
    """The cluster that is meant; without a name the only one there is. Raises InputError where that is not one."""
    if name:
        return checked(name)
    found = clusters()
    if not found:
        raise InputError("no cluster is up", "sudo nsnet up topologies/quickstart.yaml")
    if len(found) > 1:
        listed = ", ".join(found)
        raise InputError(f"{len(found)} clusters are up: {listed}", "say which: --cluster NAME, or NSNET_CLUSTER=NAME")
    return found[0]


def checked(name: str) -> str:
    """The name, if it can be a cluster's; it becomes part of file names."""
    if names.CLUSTER.fullmatch(name) is None:
        raise InputError(
            f'"{name}" is not a cluster\'s name', "a DNS label of at most 20 characters: a-z, 0-9 and - inside"
        )
    return name


@contextmanager
def opened(cluster: str, *, create: bool = False, patience: float | None = None) -> Iterator[Store]:
    """The cluster's store. Raises InputError where there is no such cluster (and `create` is not set)."""
    from nsnet.store.location import PATIENCE
    from nsnet.store.opening import open_store

    store = open_store(cluster, create=create, patience=PATIENCE if patience is None else patience)
    try:
        yield store
    finally:
        store.close()


def running(verb: str, name: str | None, *, to_read: bool = False) -> Running:
    """The chosen cluster with its objects; what was known last of them, with a warning, where the store is away.

    Raises MachineError (not root), InputError (which one, or none).
    `to_read`: without what no struct declares of them, which is faster and must not be written or shown.
    """
    from nsnet.cli.output import warning
    from nsnet.store import Unreachable, known
    from nsnet.store.keys import decode, decode_to_read
    from nsnet.store.location import PATIENCE
    from nsnet.store.objects import load_objects

    need_root(verb)
    cluster = chosen(name)
    decoded = decode_to_read if to_read else decode
    try:
        patience = BRIEF if known.is_there(cluster) else PATIENCE
        with opened(cluster, patience=patience) as store, kept():
            objects, revision = load_objects(store, warning, decoded)
    except Unreachable as error:
        last = known.last(cluster, warning, decoded)
        if last is None:
            raise
        objects, revision = last
        warning(f"{error}: this goes by what was known last, revision {revision}")
    return Running(cluster, Indexed(objects), revision)


def waiting_for(cluster: str, verb: str) -> Callable[[int], None]:
    """What to say when another nsnet holds the cluster's lock."""
    from nsnet.cli.output import note
    from nsnet.controller.client import living

    def say(pid: int) -> None:
        if pid in {found.pid for found in living(cluster)}:
            return  # its own controller: that takes a moment, and nobody else is concerned
        who = f"another nsnet (pid {pid})" if pid else "another nsnet"
        note(f"{verb} waits: {who} is changing cluster {cluster}")

    return say
