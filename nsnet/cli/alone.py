"""Run by `nsnet verify --compare-modes` inside private namespaces (kernel/sandbox.py): a cluster under each mode.

    python -m nsnet.cli.alone CLUSTER NAME

The objects are those of the running CLUSTER, read once before its store is covered. For each mode the same cluster is
built from nothing, asked the same questions and removed. It is called NAME there: process namespaces hide nothing from
those outside, and CLUSTER's controller would take programs that bear its name for its own.

One line of JSON on stdout per mode, `{"mode", "words"}`, after a first one with the questions, `{"questions"}`. There
is no controller: nothing changes here.
"""

import sys
from typing import Any

import msgspec

from nsnet import model, reconcile
from nsnet.cli.context import opened
from nsnet.kernel import sandbox
from nsnet.model import Cluster, KubeProxyConfiguration, Object, Objects, OwnerReference
from nsnet.store.objects import load_objects, update
from nsnet.verify import compare, modes
from nsnet.verify.asking import ask
from nsnet.verify.expect import Expectation


def under(objects: Objects, mode: str, name: str) -> dict[model.Key, Object]:
    """The objects with another mode of kube-proxy, whoever said the old one, and another name for the cluster."""
    return model.by_key([_owned(_under(obj, mode), name) for obj in objects.values()])


def _owned(obj: Object, name: str) -> Object:
    """What the Cluster document owns must find it under its new name."""
    meta = obj.metadata
    owners = tuple(_renamed(owner, name) for owner in meta.ownerReferences)
    if isinstance(obj, Cluster):
        meta = msgspec.structs.replace(meta, name=name)
    return msgspec.structs.replace(obj, metadata=msgspec.structs.replace(meta, ownerReferences=owners))


def _renamed(owner: OwnerReference, name: str) -> OwnerReference:
    return msgspec.structs.replace(owner, name=name) if owner.kind == "Cluster" else owner


def _under(obj: Object, mode: str) -> Object:
    if isinstance(obj, Cluster):
        networking = msgspec.structs.replace(obj.networking, kubeProxyMode=mode)
        return msgspec.structs.replace(obj, networking=networking)
    if isinstance(obj, KubeProxyConfiguration):
        return msgspec.structs.replace(obj, mode=mode)
    return obj


def built(name: str, objects: Objects, mode: str) -> Objects:
    """Brings it up; the objects as they stand then."""
    with opened(name, create=True) as store:
        update(store, lambda _: under(objects, mode, name))
        return reconcile.sync(store, name).memory.objects


def main() -> None:
    cluster, name = sys.argv[1:]
    with opened(cluster) as store:
        objects, _ = load_objects(store)
    sandbox.furnish()
    asked: list[Expectation] = []
    for mode in modes.MODES:
        with reconcile.lock(name):
            standing = built(name, objects, mode)
            if not asked:
                asked = compare.questions(standing)
                _say({"questions": [msgspec.to_builtins(item) for item in asked]})
            _say({"mode": mode, "words": compare.words(asked, ask(asked, retry=1))})
            reconcile.destroy(name)


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
