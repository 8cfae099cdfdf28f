"""`apply`, `delete`, `scale`, `label`, `annotate`: a verb writes the store and waits until the kernel has followed.

The controller brings the kernel to the store's new revision; where none lives, the verb takes the lock, syncs itself
and starts one. What `control` refuses changes nothing.
"""

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime

import click
import msgspec

from nsnet import control, controller, faults, manifests, model, reconcile
from nsnet.cli import options
from nsnet.cli.context import changing, chosen, clusters, opened
from nsnet.cli.files import parsed, placed, says_cluster, sources
from nsnet.cli.impaired import equipped
from nsnet.cli.kinds import kind_and_name, kind_named, plural, resource, scoped
from nsnet.cli.output import note, out, warning
from nsnet.errors import InputError, NotReachedError
from nsnet.manifests import Loaded, Source
from nsnet.manifests.forms import MOST_PODS
from nsnet.model import Key, Object, Objects
from nsnet.store import location, members
from nsnet.store.objects import differences, update

WAIT_SECONDS = 60.0
SCALED = (model.Deployment, model.ReplicaSet, model.ReplicationController, model.StatefulSet)
Change = Callable[[Objects], dict[Key, Object]]


def facts() -> control.Facts:
    """What control may assume while a verb writes: every port listens, until the controller has looked."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return control.Facts(listening=None, now=now, entropy=os.urandom(32))


def write(cluster: str, change: Change, *, judged: bool = False) -> tuple[Objects, Objects]:
    """Changes the stored objects, all or nothing, and waits until the kernel has followed; before and after.

    `judged`: what this machine cannot do is refused (MachineError), and nothing is written.
    """
    before: Objects = {}

    def compute(stored: Objects) -> Objects:
        nonlocal before
        before = stored
        asked = equipped(change(stored))
        _check_faults(stored, asked)
        completed = reconcile.completed(asked, None, facts().now)
        return reconcile.possible(completed) if judged else completed

    with opened(cluster) as store:
        after, revision = update(store, compute, warning)
    settled(cluster, revision)
    return before, after


def _check_faults(stored: Objects, asked: Objects) -> None:
    """Those that are new or changed can be in this cluster."""
    for key, obj in asked.items():
        if isinstance(obj, model.Fault) and (key not in stored or stored[key] != obj):
            faults.check(obj, asked)


def settled(cluster: str, revision: int) -> None:
    """Waits until the kernel is as the store says at `revision`. Raises NotReachedError after a minute."""
    if controller.converge(cluster, revision, WAIT_SECONDS) is not None:
        _await_others(cluster)
        return
    with reconcile.lock(cluster, timeout=WAIT_SECONDS), opened(cluster) as store:
        reconcile.sync(store, cluster, member=reconcile.member(store, cluster))
    controller.start(cluster)


def _await_others(cluster: str) -> None:
    """The same of the other machines that are there. Raises NotReachedError."""
    if not location.here(cluster).machine:
        return
    with opened(cluster) as store:
        late = members.await_all(store, WAIT_SECONDS)
    if late:
        raise NotReachedError(f"machine {', '.join(late)} has not followed within {WAIT_SECONDS:.0f} s", "nsnet status")


# --- apply and delete -------------------------------------------------------------------------------------------------


@options.verb("apply")
@options.filenames
@options.namespace_of_files
@options.cluster
def apply(filenames: tuple[str, ...], namespace: str, cluster: str | None) -> None:
    """Create or change objects of a running cluster; a Cluster document may change nodes and their addresses."""
    changing("apply")
    name, loaded, incoming = for_running(filenames, namespace, cluster)
    for line in loaded.notes:
        note(f"note: {line}")
    before, after = placed(
        loaded, lambda: write(name, lambda stored: control.admit(stored, incoming, whole=False), judged=True)
    )
    for key in incoming:
        out(f"{_named(key)} {_what_happened(key, before, after)}")


def for_running(
    filenames: tuple[str, ...], namespace: str, cluster: str | None
) -> tuple[str, Loaded, dict[Key, Object]]:
    """The cluster that `apply` is for, what the files say, and which objects of it would be applied."""
    name, loaded = _for_running(filenames, namespace, cluster)
    return (
        name,
        loaded,
        {key: obj for key, obj in loaded.objects.items() if key.kind != "Cluster" or says_cluster(loaded)},
    )


def _for_running(filenames: tuple[str, ...], namespace: str, cluster: str | None) -> tuple[str, Loaded]:
    """What the files say, and the running cluster it is for: --cluster, the one the document names, the only one."""
    if not filenames:
        raise click.UsageError("-f FILE is missing", click.get_current_context())
    up = clusters()
    read = sources(filenames)
    loaded = parsed(read, cluster, namespace) if cluster else manifests.load(read, _only(up), namespace)
    said = model.cluster_of(loaded.objects).metadata.name
    return chosen(said if says_cluster(loaded) else cluster), loaded


def _only(up: list[str]) -> str:
    return up[0] if len(up) == 1 else "unnamed"


def _named(key: Key) -> str:
    return f"{resource(key.kind)}/{key.name}"


def _what_happened(key: Key, before: Objects, after: Objects) -> str:
    if key not in before:
        return "created"
    same = key in after and not differences({key: before[key]}, {key: after[key]})
    return "unchanged" if same else "configured"


@options.verb("delete")
@options.filenames
@click.argument("what", nargs=-1, metavar="[KIND NAME…]")
@options.namespace_of_files
@click.option("--ignore-not-found", is_flag=True, help="What is not there is success.")
@options.cluster
def delete(
    filenames: tuple[str, ...], what: tuple[str, ...], namespace: str, ignore_not_found: bool, cluster: str | None
) -> None:
    """Delete objects, by -f FILE or by KIND NAME (also KIND/NAME); what they own goes with them."""
    changing("delete")
    if bool(filenames) == bool(what):
        raise click.UsageError("either -f FILE or KIND NAME", click.get_current_context())
    if filenames:
        name, loaded = _for_running(filenames, namespace, cluster)
        keys = [key for key in loaded.objects if key.kind != "Cluster"]
    else:
        keys = _keys(what, namespace or "default")
        name = chosen(cluster)
    gone: list[Key] = []

    def change(stored: Objects) -> dict[Key, Object]:
        gone[:] = [key for key in keys if key in stored]
        missing = [key for key in keys if key not in stored]
        if missing and not ignore_not_found:
            raise _absent(missing[0])
        return control.remove(stored, gone)

    write(name, change)
    for key in gone:
        out(f'{resource(key.kind)} "{key.name}" deleted')


def _keys(what: tuple[str, ...], namespace: str) -> list[Key]:
    """`pod/a svc/b`, or `pod a b`."""
    if all("/" in word for word in what):
        pairs = [kind_and_name(word, None) for word in what]
    elif len(what) > 1:
        pairs = [(kind_named(what[0]), name) for name in what[1:]]
    else:
        raise InputError(f"{what[0]}: the name is missing", "write KIND NAME or KIND/NAME")
    return [Key(kind, namespace if scoped(kind) else "", name) for kind, name in pairs]


# --- scale, label, annotate -------------------------------------------------------------------------------------------


@options.verb("scale")
@click.argument("what", metavar="KIND/NAME")
@click.argument("name", required=False, metavar="[NAME]")
@click.option("--replicas", type=click.IntRange(0, MOST_PODS), required=True, metavar="N", help="How many.")
@options.namespace
@options.cluster
def scale(what: str, name: str | None, replicas: int, namespace: str, cluster: str | None) -> None:
    """Set the number of replicas of a deployment, replicaset, replicationcontroller or statefulset."""
    changing("scale")
    kind, said = kind_and_name(what, name)
    key = Key(kind, namespace, said)

    def change(stored: Objects) -> dict[Key, Object]:
        obj = _there(stored, key)
        if not isinstance(obj, SCALED):
            raise InputError(f"{key} has no replicas", "a deployment, replicaset, rc or statefulset has")
        spec = msgspec.structs.replace(obj.spec, replicas=replicas)
        return {**stored, key: msgspec.structs.replace(obj, spec=spec)}

    write(chosen(cluster), change)
    out(f"{_named(key)} scaled")


def _there(stored: Objects, key: Key) -> Object:
    obj = stored.get(key)
    if obj is None:
        raise _absent(key)
    return obj


def _absent(key: Key) -> InputError:
    return InputError(f"{key} is not there", f"nsnet get {plural(key.kind)}{' -A' if scoped(key.kind) else ''}")


@options.verb("label")
@click.argument("what", metavar="KIND[/NAME]")
@click.argument("words", nargs=-1, required=True, metavar="[NAME] KEY=VALUE… KEY-…")
@click.option("--overwrite", is_flag=True, help="Change a label that is there.")
@options.namespace
@options.cluster
def label(what: str, words: tuple[str, ...], overwrite: bool, namespace: str, cluster: str | None) -> None:
    """Set labels (KEY=VALUE) or remove them (KEY-)."""
    changing("label")
    _set_metadata("labels", what, words, overwrite, namespace, cluster)


@options.verb("annotate")
@click.argument("what", metavar="KIND[/NAME]")
@click.argument("words", nargs=-1, required=True, metavar="[NAME] KEY=VALUE… KEY-…")
@click.option("--overwrite", is_flag=True, help="Change an annotation that is there.")
@options.namespace
@options.cluster
def annotate(what: str, words: tuple[str, ...], overwrite: bool, namespace: str, cluster: str | None) -> None:
    """Set annotations (KEY=VALUE) or remove them (KEY-), such as nsnet/ready=false on a pod."""
    changing("annotate")
    _set_metadata("annotations", what, words, overwrite, namespace, cluster)


DONE = {"labels": "labeled", "annotations": "annotated"}


def _set_metadata(
    field: str, what: str, words: tuple[str, ...], overwrite: bool, namespace: str, cluster: str | None
) -> None:
    name = None if "/" in what else words[0]
    kind, said = kind_and_name(what, name)
    sets, drops = _assignments(words if name is None else words[1:], field)
    key = Key(kind, namespace if scoped(kind) else "", said)

    def change(stored: Objects) -> dict[Key, Object]:
        obj = _there(stored, key)
        there: dict[str, str] = getattr(obj.metadata, field)
        taken = [word for word in sets if there.get(word, sets[word]) != sets[word]]
        if taken and not overwrite:
            raise InputError(f"{key}: {taken[0]} is {there[taken[0]]} already", "--overwrite changes it")
        values = {word: value for word, value in {**there, **sets}.items() if word not in drops}
        meta = msgspec.structs.replace(obj.metadata, **{field: values})
        return {**stored, key: _valid(msgspec.structs.replace(obj, metadata=meta))}

    before, after = write(chosen(cluster), change)
    changed = getattr(before[key].metadata, field) != getattr(after[key].metadata, field)
    out(f"{_named(key)} {'' if changed else 'not '}{DONE[field]}")


def _assignments(words: tuple[str, ...], field: str) -> tuple[dict[str, str], set[str]]:
    sets, drops = {}, set()
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key:
            sets[key] = value
        elif word.endswith("-") and len(word) > 1:
            drops.add(word[:-1])
        else:
            raise InputError(
                f'"{word}" is neither KEY=VALUE nor KEY-', f"for example: {field[:-1]} pod/web app=web old-"
            )
    if not sets and not drops:
        raise InputError(f"no {field} are given", "KEY=VALUE sets one, KEY- removes it")
    return sets, drops


def _valid(obj: Object) -> Object:
    """The object, if a file could say it: what is typed is held to what files are held to."""
    loaded = manifests.load([Source("command line", json.dumps(model.to_doc(obj)).encode())], "unnamed")
    assert model.key_of(obj) in loaded.objects
    return obj
