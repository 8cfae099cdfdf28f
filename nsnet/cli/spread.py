"""A cluster that several machines carry: which of them this is, and whether that can be."""

import uuid

import msgspec

from nsnet import model
from nsnet.control import machines
from nsnet.errors import InputError
from nsnet.kernel import features
from nsnet.model import Cluster, Key, Object, Objects
from nsnet.store import location
from nsnet.store.location import Here


def belongs(cluster: Cluster, machine: str) -> str:
    """The machine's address. InputError where the document does not know it, or this is not the one it means."""
    known = {entry.name: entry for entry in cluster.underlay.machines}
    if machine not in known:
        hint = f"there are: {', '.join(known) or 'none; write underlay: {machines: [{name: …, address: …}]}'}"
        raise InputError(f'cluster {cluster.metadata.name} has no machine "{machine}"', hint)
    entry = known[machine]
    address = features.address_of(entry.interface) if entry.interface else entry.address
    if not features.has_address(address):
        hint = "ip address shows what this machine has; underlay.machines says who is who"
        raise InputError(f"machine {machine} has the address {address}, and this machine has not", hint)
    return address


def at_home(objects: Objects, machine: str) -> dict[Key, Object]:
    """The objects, with this machine's address where the document names only an interface of it."""
    cluster = model.cluster_of(objects)
    if not machine:
        return dict(objects)
    return {**objects, model.key_of(cluster): machines.at(cluster, machine, belongs(cluster, machine))}


def machine_of(cluster: Cluster, place: str, machine: str | None) -> str:
    """Which machine `up` runs on, for a document with machines; empty for one without. Raises InputError."""
    entries = cluster.underlay.machines
    if not entries and not machine:
        return ""
    if place in (location.SQLITE, location.INSIDE):
        raise InputError("a cluster on several machines needs a store they share", "--store etcd://HOST:2379")
    if not machine:
        names = ", ".join(entry.name for entry in entries)
        raise InputError(f"which of the machines {names} is this?", "--machine NAME")
    belongs(cluster, machine)
    return machine


def others(cluster: Cluster, place: str, machine: str) -> list[str]:
    """What to type on the other machines."""
    away = [entry.name for entry in cluster.underlay.machines if entry.name != machine]
    return [f"nsnet agent --store '{place}' --machine {name}" for name in away]


def replaced(had: Here, place: str, machine: str) -> Here:
    return msgspec.structs.replace(
        had, store=place, machine=machine, id=had.id or (uuid.uuid4().hex if machine else "")
    )
