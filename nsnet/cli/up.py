"""`up`: from files to a cluster that is there and proven.

The order is the crash safety: the store is written before the kernel is touched, so whatever dies in between, the next
`up` (or the controller) goes on from the store, and `down` needs nothing but the names in /run/netns.
"""

import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any, TypeVar

import click
import msgspec

from nsnet import controller, model, names, reconcile
from nsnet.cli import options, spread
from nsnet.cli.change import facts
from nsnet.cli.context import Running, changing, opened, waiting_for
from nsnet.cli.durations import DURATION
from nsnet.cli.failing import guarded
from nsnet.cli.files import load
from nsnet.cli.impaired import equipped
from nsnet.cli.output import error, note, out, progress, warning
from nsnet.cli.plan import wanted
from nsnet.cli.target import pods_of
from nsnet.errors import INTERRUPTED, InputError, MachineError, NotReachedError
from nsnet.kernel import features, files, rootless
from nsnet.manifests import Loaded
from nsnet.model import Event, HTTPRoute, Ingress, Node, Objects, Pod, Service
from nsnet.reconcile import Memory, Report
from nsnet.store import Store, location, members, opening
from nsnet.store.keys import CLUSTERS, NET_CONF, net_conf
from nsnet.store.objects import refresh, update

T = TypeVar("T")
POLL_SECONDS = 1.0
PHASES = {
    "store": "reading the store",
    "observe": "looking at the kernel",
    "render": "working out what is wanted",
    "apply": "making {} changes",
}


class Built(msgspec.Struct, frozen=True):
    """A cluster that stands: its objects, and what it took."""

    running: Running
    changes: int
    seconds: float


@options.verb("up")
@options.files
@click.option("--no-verify", is_flag=True, help="Do not send packets to prove it.")
@click.option(
    "--timeout", type=DURATION, default="60s", metavar="TIME", help="How long to wait until pods are ready (60s)."
)
@click.option("--recreate", is_flag=True, help="Remove what is there under that name first.")
@options.bundle_on_failure
@click.option(
    "--store", metavar="STORE", help="Where objects stand: sqlite (default), etcd, etcd://HOST:2379[/PREFIX]."
)
@click.option("--machine", metavar="NAME", help="Which of the Cluster's underlay.machines this is (see `agent`).")
@options.cluster
def up(
    files: tuple[str, ...],
    no_verify: bool,
    timeout: float,
    recreate: bool,
    bundle_on_failure: Path | None,
    store: str | None,
    machine: str | None,
    cluster: str | None,
) -> int:
    """Build or converge a cluster: the files are the whole truth. Then start its controller, wait, verify.

    FILE is Kubernetes manifests, with at most one Cluster document; - is stdin, a directory stands for its manifests.

    --store etcd runs one etcd for the cluster in its fabric; a URL names one that is there (by TLS: etcds://HOST:2379
    ?cacert=FILE&cert=FILE&key=FILE; several endpoints with commas). Every other verb finds it again.
    """
    started = time.perf_counter()
    changing("up")
    store = location.checked(store) if store else None
    loaded = load(files, cluster)
    name = model.cluster_of(loaded.objects).metadata.name

    def work(further: dict[str, str]) -> int:
        with going_on(name):
            for line in loaded.notes:
                note(f"note: {line}")
            built = build(loaded, name, store, machine, recreate=recreate)
            built = until_ready(built, timeout)
            _print_built(built, time.perf_counter() - started)
            code = 0 if no_verify else _verified(built.running, further)
            _print_tries(built.running)
            return max(code, _not_ready(built.running.objects))

    return guarded(bundle_on_failure, lambda: name, work)


def _verified(running: Running, further: dict[str, str]) -> int:
    from nsnet.cli import check  # with all of `trace`

    return check.after_up(running, further)


@contextmanager
def going_on(name: str, on: str = "", back: str = "") -> Iterator[None]:
    """Whatever ends `up` early leaves a state from which `up` or `down` goes on; after Ctrl-C that is said.

    `on` and `back`: other verbs that do so.
    """
    try:
        yield
    except KeyboardInterrupt:
        progress("")
        forth, home = on or "nsnet up", back or f"nsnet down {name}"
        hint = f"the same `{forth}` goes on from here; `{home}` removes what is there"
        error(f"interrupted while cluster {name} was being built", hint)
        raise click.exceptions.Exit(INTERRUPTED) from None


def build(loaded: Loaded, name: str, place: str | None = None, machine: str | None = None, *, recreate: bool) -> Built:
    """Writes the store, brings the kernel to it, starts the controller. Raises NsnetError.

    `place` and `machine`: `--store` and `--machine`.
    """
    started = time.perf_counter()
    with reconcile.lock(name, waiting=waiting_for(name, "up")):
        equipped(loaded.objects)
        if recreate:
            reconcile.possible(wanted(loaded, {}))  # what is wrong is found before anything is touched
            controller.stop(name)
            opening.forget(name)
            reconcile.destroy(name)
        _settle(model.cluster_of(loaded.objects), place, machine)
        loaded = msgspec.structs.replace(loaded, objects=spread.at_home(loaded.objects, location.here(name).machine))
        with opened(name, create=True) as store:
            progress("writing the store")
            known = msgspec.structs.replace(facts(), subnets=files.subnet_envs(name))
            refuse_other_flannel(store, lambda: wanted(loaded, {}, known))
            with reconcile.nothing_left(store, name):
                said = update(
                    store, lambda stored: reconcile.possible(equipped(wanted(loaded, stored, known))), warning
                )
            if not location.here(name).machine:
                report = explained(lambda: _sync_and_start(store, name, Memory(*said, {}, {})))
                progress("")
                running = Running(name, report.memory.objects, report.revision)
                return Built(running, report.changes, time.perf_counter() - started)
    progress("building what this machine carries")
    changes = explained(lambda: controller.build(name, said[1]))  # it alone speaks to the other machines
    return Built(Running(name, *said), changes, time.perf_counter() - started)


def _settle(cluster: model.Cluster, place: str | None, machine: str | None) -> None:
    """Where the store is to be: what was said now, else where it has been. It must be there before it is opened.

    Raises InputError where the cluster has another one.
    """
    name = cluster.metadata.name
    had = location.here(name)
    store = place or had.store
    machine = spread.machine_of(cluster, store, machine or had.machine)
    if store != had.store and opening.exists(name):
        hint = f"leave --store out, or begin anew: --recreate (or nsnet down {name})"
        raise InputError(f"cluster {name} has its store in {had.store}, not in {store}", hint)
    if store == location.INSIDE:
        features.need("etcd", "--store etcd")
    elif store != location.SQLITE:
        opening.open_at(name, store, create=True).close()  # what is wrong with it is found before it is written down
    location.settle(name, spread.replaced(had, store, machine))
    reconcile.furnish(name)
    for line in spread.others(cluster, store, machine):
        note(f"on another machine: {line}")


def refuse_other_flannel(store: Store, objects: Callable[[], Objects]) -> None:
    """Where a real flannel already has another network in that etcd, the two cannot share it. Raises InputError."""
    there = store.get(NET_CONF)
    if there is None or store.list(CLUSTERS)[0]:
        return
    cluster = model.cluster_of(objects())
    theirs, ours = json_or_nothing(there.value), json_or_nothing(net_conf(cluster))
    for name in ("Network", "IPv6Network"):
        if theirs.get(name) != ours.get(name):
            hint = (
                f"write podSubnet: {theirs.get(name)}, or give the cluster a prefix: --store …/{cluster.metadata.name}"
            )
            said = f"{name} {theirs.get(name)}, and networking.podSubnet is {cluster.networking.podSubnet}"
            raise InputError(f"flannel's configuration in that etcd ({NET_CONF}) says {said}", hint)


def json_or_nothing(value: bytes) -> dict[str, Any]:
    """A JSON object; empty for what is none."""
    try:
        return msgspec.json.decode(value, type=dict[str, Any])
    except msgspec.MsgspecError:
        return {}


def _sync_and_start(store: Store, name: str, known: Memory) -> Report:
    """The first sync, of objects that need not be read again; the controller starts, and waits for our lock."""
    with ThreadPoolExecutor(1) as beside:
        started = beside.submit(controller.start, name)
        try:
            report = reconcile.sync(store, name, memory=known, progress=show_phase)
        except NotReachedError:
            started.result()
            controller.stop(name)  # it would try for ever what the kernel has refused
            raise
        started.result()
    if report.unreachable is not None:
        raise report.unreachable
    return report


_OF_IPV6 = re.compile(r"ip6|ipv6|::", re.IGNORECASE)  # in a refused command, or in the kernel's sentence


def explained(sync: Callable[[], T]) -> T:
    """A refusal of the kernel on a machine that lacks something is the machine's fault, and named."""
    try:
        return sync()
    except NotReachedError as refused:
        lacking = features.missing(ipv6=_OF_IPV6.search(str(refused)) is not None)
        if not lacking:
            raise
        first = lacking[0]
        raise MachineError(f"this machine lacks {first.name}: {refused}", first.mend) from refused


def show_phase(phase: str, count: int) -> None:
    """Progress on a terminal."""
    progress(PHASES.get(phase, phase).format(count))


# --- ready ------------------------------------------------------------------------------------------------------------


def until_ready(built: Built, seconds: float) -> Built:
    """Waits until every pod that can be ready is; the controller (of every machine) sees them become so."""
    deadline = time.monotonic() + seconds
    name, objects, revision = built.running.cluster, built.running.objects, built.running.revision
    with opened(name) as store:
        while True:
            if location.here(name).machine:
                objects, revision = _followed_everywhere(store, objects, revision, deadline)
            left = _waited_for(objects)
            if not left or time.monotonic() >= deadline:
                break
            progress(f"waiting for {len(left)} pods, {left[0].metadata.name} first")
            store.wait(min(POLL_SECONDS, max(0.0, deadline - time.monotonic())))
            objects, revision = refresh(store, objects, revision)
    progress("")
    return msgspec.structs.replace(built, running=Running(name, objects, revision))


def _followed_everywhere(store: Store, objects: Objects, revision: int, deadline: float) -> tuple[Objects, int]:
    """Waits for every machine of the cluster: until then nobody has seen whether its pods are ready."""
    expected = [machine.name for machine in model.cluster_of(objects).underlay.machines]
    progress(f"waiting for machines {', '.join(expected)}")
    late = members.await_all(store, max(0.0, deadline - time.monotonic()), expected)
    if late:
        warning(f"machine {', '.join(late)} is not there, or has not followed yet")
    return refresh(store, objects, revision)


def _unready(objects: Objects) -> list[Pod]:
    """Pods that are not ready and do not say themselves that they shall not be."""
    unready = (pod for pod in model.of(objects, Pod) if not model.is_ready(pod))
    return [pod for pod in unready if model.annotation(pod, "nsnet/ready") != "false"]


def _waited_for(objects: Objects) -> list[Pod]:
    """Those that may still become ready: a pod without a node will not."""
    return [pod for pod in _unready(objects) if pod.spec.nodeName and not pod.metadata.deletionTimestamp]


def _not_ready(objects: Objects) -> int:
    """Says which pods are not ready, if any are; then the wanted state was not reached."""
    left = _unready(objects)
    if not left:
        return 0
    first = left[0]
    why = first.status.message or first.status.reason or first.status.phase
    name = f"{first.metadata.namespace}/{first.metadata.name}"
    count = len(model.of(objects, Pod))
    error(f"{len(left)} of {count} pods are not ready; {name}: {why}", f"nsnet describe pod {first.metadata.name}")
    return NotReachedError.exit_code


# --- what is printed --------------------------------------------------------------------------------------------------


def _print_built(built: Built, seconds: float) -> None:
    objects = built.running.objects
    pods, nodes = model.of(objects, Pod), model.of(objects, Node)
    what = ", ".join(
        (
            counted(len(nodes), "node"),
            f"{len([pod for pod in pods if model.is_ready(pod)])} of {counted(len(pods), 'pod')} ready",
            counted(len(model.of(objects, Service)), "service"),
        )
    )
    made = counted(built.changes, "change") if built.changes else "nothing to change"
    out(f"cluster {built.running.cluster} is up: {what}  ({made}, {seconds:.2f} s)")
    store = location.here(built.running.cluster).store
    if store != location.SQLITE:
        out(f"its objects stand in {'an etcd of its own' if store == location.INSIDE else store.partition('?')[0]}")
    for event in model.of(objects, Event):
        if event.type == "Warning":
            about = event.involvedObject
            warning(f"{about.kind.lower()}/{about.name}: {event.message}")


def counted(number: int, noun: str) -> str:
    """`1 node`, `2 nodes`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def command() -> str:
    """What to type to run this very nsnet with root's rights, or without them as now."""
    name = quote(os.environ.get("NSNET_INVOKED_AS") or "nsnet")
    return f"{name} --rootless" if rootless.INSIDE in os.environ else f"sudo {name}"


def _print_tries(running: Running) -> None:
    lines = list(tries(running.objects))
    if lines:
        out("try")
        for line in lines:
            out(f"  {command()} {line}")
        if location.here(running.cluster).store == location.INSIDE:
            place = names.fabric_netns(running.cluster, "etcd")
            out(f"  sudo ip netns exec {place} etcdctl get --prefix --keys-only /registry")


def tries(objects: Objects) -> Iterator[str]:
    """A few commands to go on with: by the Service's name from a pod, by a node port or an Ingress from outside."""
    yield "get pods -o wide"
    services = [item for item in _not_the_clusters(objects, Service) if item.spec.selector and item.spec.ports]
    inside = next((item for item in services if item.spec.clusterIP not in {"", "None"}), None)
    callers = (pod for pod in _not_the_clusters(objects, Pod) if not pod.spec.hostNetwork)
    caller = next(filter(model.is_ready, callers), None)
    if inside and caller:
        flag = "" if caller.metadata.namespace == "default" else f" -n {caller.metadata.namespace}"
        yield f"exec{flag} {caller.metadata.name} -- {_call(inside, _by_name(objects, inside, caller), None)}"
    outside = next((item for item in services if any(port.nodePort for port in item.spec.ports or ())), None)
    hosts = model.cluster_of(objects).hosts
    if outside and hosts and (door := _door(objects, outside)):
        yield f"exec host/{hosts[0].name} -- {_call(outside, *door)}"
    if hosts and (url := next(_urls(objects), "")):
        yield f"exec host/{hosts[0].name} -- curl -s {quote(url)}"


def _door(objects: Objects, service: Service) -> tuple[str, str | None] | None:
    """Where a host comes in: the balancer's address, else a node that has a pod of it, where only those serve."""
    if model.balanced_nodes(service):
        return model.balanced_addresses(service)[0], None
    if service.spec.externalTrafficPolicy == "Local":
        return next(((pod.status.hostIP, "node") for pod in pods_of(objects, service) if model.is_ready(pod)), None)
    nodes = model.of(objects, Node)
    return (model.internal_ip(nodes[-1]), "node") if nodes else None


def _urls(objects: Objects) -> Iterator[str]:
    """What the HTTP proxy serves by name, the first path of each Ingress, and HTTPRoutes."""
    for served in model.of(objects, Ingress):
        for rule in (served.spec.rules or ()) if served.status.loadBalancer.ingress else ():
            if rule.host:
                yield f"http://{rule.host}{(rule.http.paths[0].path or '') if rule.http and rule.http.paths else ''}"
    for route in model.of(objects, HTTPRoute):
        sends = route.status.parents and any(rule.backendRefs for rule in route.spec.rules or ())
        for host in (route.spec.hostnames or ()) if sends else ():
            if not host.startswith("*"):
                yield f"http://{host}/"


def _by_name(objects: Objects, service: Service, caller: Pod) -> str:
    """What the pod calls the Service; its address where there is no DNS, or the pod asks another."""
    services = {model.key_of(item): item for item in model.of(objects, Service)}
    if caller.spec.dnsPolicy != "ClusterFirst" or model.dns_service(services, model.cluster_of(objects)) is None:
        return service.spec.clusterIP
    meta = service.metadata
    return meta.name if meta.namespace == caller.metadata.namespace else f"{meta.name}.{meta.namespace}"


def _not_the_clusters(objects: Objects, kind: type[T]) -> list[T]:
    """Not DNS, the HTTP proxy and the like: nobody wants to look at these first."""
    own = {"kube-system", model.PROXY_NAMESPACE}
    return [obj for obj in model.of(objects, kind) if obj.metadata.namespace not in own]  # type: ignore[attr-defined]


def _call(service: Service, address: str, way: str | None) -> str:
    ports = [port for port in service.spec.ports or () if way is None or port.nodePort]
    tcp = next((port for port in ports if port.protocol == "TCP"), None)
    if tcp is None:
        return f"ip route get {address}"
    number = tcp.nodePort if way else tcp.port
    host = f"[{address}]" if ":" in address else address
    url = f"http://{host}{'' if number == 80 else f':{number}'}/hostname"
    return f"curl -sg '{url}'" if ":" in address else f"curl -s {url}"  # a shell takes brackets for a pattern
