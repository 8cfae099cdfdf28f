"""TARGET: where a command runs, or a packet starts: `web-0`, `pod/web-0`, `node/node1`, `host/client`, `deploy/web`.

`lb` is the load balancer outside the cluster. A workload or a Service stands for one ready pod of it, the first by
name, so that the same words mean the same pod. What lies in a namespace may be named with it: `pod/shop/web`.
"""

import msgspec

from nsnet import model, names
from nsnet.cli.columns import pod_netns
from nsnet.cli.kinds import kind_named, scoped
from nsnet.cli.words import did_you_mean
from nsnet.errors import InputError, NotReachedError
from nsnet.model import Cluster, Key, Object, Objects, Pod, Service

BALANCER = "lb"  # the underlay's router, which is also the load balancer; a pod of that name comes first
HOSTS = frozenset({"host", "hosts"})


class Target(msgspec.Struct, frozen=True):
    """A network namespace with the hostname that is seen in it; `pod` where it is one."""

    netns: str
    hostname: str
    label: str  # pod/web-0, node/node1, host/client
    pod: Pod | None = None


def target(objects: Objects, text: str, namespace: str = "default", container: str = "") -> Target:
    """Raises InputError where there is no such thing, NotReachedError where it has no ready pod."""
    namespace, text = spaced(text, namespace)
    word, slash, name = text.rpartition("/")
    if slash and word in HOSTS:
        return _no_container(_host(objects, name), container)
    if text == BALANCER and Key("Pod", namespace, text) not in objects:
        netns = names.fabric_netns(_cluster_name(objects), "router")
        return _no_container(Target(netns, BALANCER, BALANCER), container)
    kind = kind_named(word) if slash else "Pod"
    if kind == "Node":
        return _no_container(_node(objects, name), container)
    return _in_pod(objects, _pod(objects, kind, namespace, name), container)


def spaced(text: str, namespace: str) -> tuple[str, str]:
    """`pod/shop/web` as its namespace and `pod/web`; anything else as it is, in `namespace`."""
    word, *rest = text.split("/")
    named = len(rest) == 2 and word not in HOSTS and scoped(kind_named(word))
    return (rest[0], f"{word}/{rest[1]}") if named else (namespace, text)


def _no_container(found: Target, container: str) -> Target:
    if container:
        raise InputError(f"{found.label} has no containers", "leave out -c")
    return found


def _host(objects: Objects, name: str) -> Target:
    cluster = model.cluster_of(objects)
    known = [host.name for host in cluster.hosts or ()]
    if name not in known:
        raise InputError(f'there is no host "{name}"', f"hosts outside the cluster: {', '.join(known) or 'none'}")
    return Target(names.host_netns(cluster.metadata.name, name), name, f"host/{name}")


def _node(objects: Objects, name: str) -> Target:
    known = [node.metadata.name for node in model.of(objects, model.Node)]
    if name not in known:
        raise InputError(f'there is no node "{name}"', f"nodes: {_some(known)}")
    return Target(names.node_netns(_cluster_name(objects), name), name, f"node/{name}")


def _cluster_name(objects: Objects) -> str:
    cluster: Cluster = model.cluster_of(objects)
    return cluster.metadata.name


def _some(known: list[str], limit: int = 8) -> str:
    return ", ".join([*known[:limit], *(["…"] if len(known) > limit else [])]) or "none"


def _pod(objects: Objects, kind: str, namespace: str, name: str) -> Pod:
    obj = objects.get(Key(kind, namespace, name))
    if obj is None:
        raise _missing(objects, kind, namespace, name)
    if isinstance(obj, Pod):
        return obj
    ready = [pod for pod in pods_of(objects, obj) if model.is_ready(pod)]
    if not ready:
        raise NotReachedError(f"{kind.lower()}/{name} has no ready pod", f"nsnet describe {kind.lower()} {name}")
    return ready[0]


def _missing(objects: Objects, kind: str, namespace: str, name: str) -> InputError:
    elsewhere = sorted(key.namespace for key in objects if key.kind == kind and key.name == name)
    if elsewhere:
        return InputError(f'there is no {kind} "{name}" in namespace {namespace}', f"there is one: -n {elsewhere[0]}")
    near = did_you_mean(name, [key.name for key in objects if key.kind == kind and key.namespace == namespace])
    return InputError(f'there is no {kind} "{name}" in namespace {namespace}{near}', f"nsnet get {kind.lower()} -A")


def pods_of(objects: Objects, obj: Object) -> list[Pod]:
    """The pods that a Service or a workload selects, by name."""
    if isinstance(obj, Service):
        selector: model.LabelSelector | model.Labels = obj.spec.selector or {}
    elif isinstance(obj, model.WORKLOADS):
        selector = model.selector(obj)
    else:
        raise InputError(f"{model.key_of(obj)} has no pods", "a TARGET is a pod, node/N, host/H, deploy/D or svc/S")
    same = [pod for pod in model.of(objects, Pod) if pod.metadata.namespace == obj.metadata.namespace]
    return [pod for pod in same if selector and model.selects(selector, pod.metadata.labels)]


def _in_pod(objects: Objects, pod: Pod, container: str) -> Target:
    name = pod.metadata.name
    known = [item.name for item in pod.spec.containers]
    if container and container not in known:
        raise InputError(f'pod {name} has no container "{container}"', f"containers: {', '.join(known)}")
    if not pod.spec.nodeName:
        raise NotReachedError(f"pod {name} is not scheduled: {pod.status.message or pod.status.reason}")
    hostname = pod.spec.nodeName if pod.spec.hostNetwork else (pod.spec.hostname or name)[:63]
    return Target(pod_netns(pod, _cluster_name(objects)), hostname, f"pod/{name}", pod)
