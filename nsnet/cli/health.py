"""`status`, `list`, `events`: how clusters are."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import click
import msgspec

from nsnet import controller, diff, kernel, model, reconcile
from nsnet.cli import options
from nsnet.cli.columns import Look, cells, header
from nsnet.cli.context import Running, clusters, need_root, opened, running
from nsnet.cli.output import as_list, coloured, note, out, print_json, print_table
from nsnet.errors import NotReachedError, NsnetError
from nsnet.model import Endpoints, Event, Node, Object, Objects, Pod, Service
from nsnet.state import Process, State
from nsnet.store.objects import load_objects

SHOWN = 10


class Health(msgspec.Struct, frozen=True):
    """What `status` finds. `programs`: each one's name, and how many run.

    `drift`: the lines that would repair it; `drifting`: how many of them in which network namespace.
    """

    cluster: str
    revision: int
    nodes: tuple[int, int]  # ready, all
    pods: tuple[int, int]
    services: int
    without_endpoints: tuple[str, ...]
    drift: tuple[str, ...]
    drifting: dict[str, int]
    controller: dict[str, Any] | None
    programs: tuple[tuple[str, int], ...]
    warnings: tuple[str, ...]
    faults: tuple[str, ...] = ()  # what is broken on purpose

    @property
    def healthy(self) -> bool:
        """Everything ready, no drift, and a controller that has no complaint."""
        ready = self.nodes[0] == self.nodes[1] and self.pods[0] == self.pods[1]
        return ready and not self.drift and self.controller is not None and not self.controller.get("error")


@options.verb("status")
@options.output("json")
@options.cluster
def status(output: str | None, cluster: str | None) -> int:
    """Show a cluster's health: what is ready, drift (kernel state that is not as wanted), components.

    Exit code 1 where something is not as it should be.
    """
    found = health(running("status", cluster))
    if output == "json":
        print_json({"healthy": found.healthy, **msgspec.to_builtins(found)})
    else:
        for line in lines(found):
            out(line)
    return 0 if found.healthy else NotReachedError.exit_code


def health(now: Running) -> Health:
    """Looks at the store, the kernel and the controller."""
    have = kernel.observe(now.cluster)
    want = reconcile.wanted(now.objects)
    changes = diff.diff(have, want.state, holds=want.holds)
    nodes, pods = model.of(now.objects, Node), model.of(now.objects, Pod)
    return Health(
        cluster=now.cluster,
        revision=now.revision,
        nodes=(len([node for node in nodes if model.condition(node.status.conditions, "Ready")]), len(nodes)),
        pods=(len([pod for pod in pods if model.is_ready(pod)]), len(pods)),
        services=len(model.of(now.objects, Service)),
        without_endpoints=tuple(_without_endpoints(now.objects)),
        drift=tuple(str(change).split("\n")[0] for change in changes),
        drifting=dict(Counter(change.netns for change in changes)),
        controller=controller.status(now.cluster),
        programs=tuple(sorted(_programs(have).items())),
        warnings=tuple(_warning(event) for event in model.of(now.objects, Event) if _is_warning(event)),
        faults=tuple(fault.metadata.name for fault in model.of(now.objects, model.Fault)),
    )


def _without_endpoints(objects: Objects) -> Iterator[str]:
    for service in model.of(objects, Service):
        meta = service.metadata
        endpoints = objects.get(model.Key("Endpoints", meta.namespace, meta.name))
        there = isinstance(endpoints, Endpoints) and any(item.addresses for item in endpoints.subsets or ())
        if not there and service.spec.type != "ExternalName":
            yield f"{meta.namespace}/{meta.name}"


def _programs(have: State) -> Counter[str]:
    found = Counter[str]()
    for values in have.values():
        for value in values:
            if isinstance(value, Process):
                found[_short(value.argv)] += value.copies
    return found


def _short(argv: tuple[str, ...]) -> str:
    """`podserver` for `python -m nsnet.programs.podserver FILE`, `dnsmasq` for `/usr/sbin/dnsmasq -k`."""
    module = argv[2] if argv[1:2] == ("-m",) and len(argv) > 2 else argv[0]
    return module.rpartition("." if argv[1:2] == ("-m",) else "/")[2]


def _is_warning(event: Event) -> bool:
    return event.type == "Warning" and event.involvedObject.kind != "Fault"


def _warning(event: Event) -> str:
    about = event.involvedObject
    return f"{about.kind.lower()}/{about.name}: {event.message}"


def lines(found: Health) -> Iterator[str]:
    """The health for a person."""
    word = coloured("healthy", "green") if found.healthy else coloured("not healthy", "red")
    yield f"cluster {found.cluster}: {word}"
    yield f"  nodes       {found.nodes[0]} of {found.nodes[1]} ready"
    yield f"  pods        {found.pods[0]} of {found.pods[1]} ready"
    empty = f", without endpoints: {', '.join(found.without_endpoints[:SHOWN])}" if found.without_endpoints else ""
    yield f"  services    {found.services}{empty}"
    yield f"  drift       {len(found.drift) or 'none'}"
    yield from (f"    {line}" for line in found.drift[:SHOWN])
    if len(found.drift) > SHOWN:
        yield f"    and {len(found.drift) - SHOWN} more"
    if found.faults:
        broken = coloured(", ".join(found.faults), "yellow")
        yield f"  faults      {len(found.faults)} on purpose: {broken}"
    yield f"  controller  {_controller(found)}"
    yield f"  programs    {', '.join(_counted(name, copies) for name, copies in found.programs) or 'none'}"
    yield from (f"  {coloured('warning', 'yellow')}     {line}" for line in found.warnings[:SHOWN])


def _counted(name: str, copies: int) -> str:
    return name if copies == 1 else f"{name} ({copies} times)"


def _controller(found: Health) -> str:
    said = found.controller
    if said is None:
        return "none runs (any changing verb, and `up`, starts it)"
    error = f", {said['error']}" if said.get("error") else ""
    return f"pid {said['pid']}, has reached revision {said['revision']} of {found.revision}{error}"


# --- list -------------------------------------------------------------------------------------------------------------


@options.verb("list")
@options.output("json", "name")
def list_(output: str | None) -> None:
    """List all clusters of this machine."""
    need_root("list")
    found = [_summary(name) for name in clusters()]
    if output == "json":
        print_json(found)
    elif output == "name":
        for item in found:
            out(item["name"])
    elif not found:
        note("No clusters found.")
    else:
        print_table([("NAME", "NODES", "PODS", "READY", "SERVICES", "CONTROLLER"), *map(_row, found)])


def _row(item: dict[str, Any]) -> list[str]:
    return [str(item[name]) for name in ("name", "nodes", "pods", "ready", "services", "controller")]


def _summary(name: str) -> dict[str, Any]:
    objects = _objects(name)
    pods = model.of(objects, Pod)
    said = controller.status(name)
    return {
        "name": name,
        "nodes": len(model.of(objects, Node)),
        "pods": len(pods),
        "ready": len([pod for pod in pods if model.is_ready(pod)]),
        "services": len(model.of(objects, Service)),
        "controller": "running" if said else "none",
    }


def _objects(name: str) -> Objects:
    """Nothing where the store is gone or damaged: the cluster is listed all the same, so that `down` can be told."""
    try:
        with opened(name) as store:
            return load_objects(store)[0]
    except NsnetError:
        return {}


# --- events -----------------------------------------------------------------------------------------------------------


@options.verb("events")
@click.option("-n", "--namespace", default="", metavar="NAMESPACE", help="Only this namespace (default: all).")
@options.output("json")
@options.cluster
def events(namespace: str, output: str | None, cluster: str | None) -> None:
    """Show what the controllers have to say; an event stands as long as its reason does."""
    now = running("events", cluster)
    found = [event for event in model.of(now.objects, Event) if not namespace or event.metadata.namespace == namespace]
    if output == "json":
        print_json(as_list(map(model.to_doc, found)))
    elif not found:
        note("No events found.")
    else:
        print_table([["NAMESPACE", *header("Event", wide=False)], *_event_rows(now, found)])


def _event_rows(now: Running, found: list[Event]) -> Iterator[list[str]]:
    look = Look(now.cluster, datetime.now(UTC))
    objects: list[Object] = list(found)
    for obj in objects:
        yield [obj.metadata.namespace, *cells(obj, look, wide=False)]
