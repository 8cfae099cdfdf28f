"""The words a person may use for a kind: its name, its plural and kubectl's short names, in any case.

Each may have its group behind it, as `-o name` prints it: `deployment.apps`.
"""

from collections.abc import Iterable, Mapping

from nsnet.cli.words import did_you_mean
from nsnet.errors import InputError
from nsnet.model import CLUSTER_SCOPED

# kind: plural, short names (kubectl api-resources)
WORDS: Mapping[str, tuple[str, ...]] = {
    "Pod": ("pods", "po"),
    "Service": ("services", "svc"),
    "Node": ("nodes", "no"),
    "Namespace": ("namespaces", "ns"),
    "Endpoints": ("endpoints", "ep"),
    "EndpointSlice": ("endpointslices", "eps"),
    "Deployment": ("deployments", "deploy"),
    "ReplicaSet": ("replicasets", "rs"),
    "ReplicationController": ("replicationcontrollers", "rc"),
    "StatefulSet": ("statefulsets", "sts"),
    "DaemonSet": ("daemonsets", "ds"),
    "Job": ("jobs",),
    "Ingress": ("ingresses", "ing"),
    "IngressClass": ("ingressclasses",),
    "NetworkPolicy": ("networkpolicies", "netpol"),
    "ConfigMap": ("configmaps", "cm"),
    "Secret": ("secrets",),
    "Event": ("events", "ev"),
    "GatewayClass": ("gatewayclasses", "gc"),
    "Gateway": ("gateways", "gtw"),
    "HTTPRoute": ("httproutes",),
    "ReferenceGrant": ("referencegrants", "refgrant"),
    "ServiceAccount": ("serviceaccounts", "sa"),
    "PersistentVolumeClaim": ("persistentvolumeclaims", "pvc"),
    "SubnetLease": ("subnetleases", "leases"),
    "Cluster": ("clusters",),
    "Fault": ("faults",),
}
ALL = (
    "Pod", "ReplicationController", "Service", "DaemonSet", "Deployment", "ReplicaSet", "StatefulSet", "Job",
)  # fmt: skip
GROUPS: Mapping[str, str] = {
    "Deployment": "apps", "ReplicaSet": "apps", "StatefulSet": "apps", "DaemonSet": "apps", "Job": "batch",
    "EndpointSlice": "discovery.k8s.io", "Ingress": "networking.k8s.io", "NetworkPolicy": "networking.k8s.io",
    "IngressClass": "networking.k8s.io", "GatewayClass": "gateway.networking.k8s.io",
    "Gateway": "gateway.networking.k8s.io", "HTTPRoute": "gateway.networking.k8s.io",
    "ReferenceGrant": "gateway.networking.k8s.io",
}  # fmt: skip


def kind_named(word: str, present: Iterable[str] = ()) -> str:
    """The kind a word stands for; `present` are kinds of the cluster that the table does not know (PVC, CRDs).

    Raises InputError, with the nearest word.
    """
    wanted = word.lower()
    table = {name.lower(): kind for kind, names in WORDS.items() for name in (kind, *names)}
    table |= {f"{name}.{GROUPS[kind]}": kind for name, kind in table.items() if kind in GROUPS}
    for kind in present:
        table.setdefault(kind.lower(), kind)
        table.setdefault(plural(kind), kind)
    if wanted not in table:
        raise InputError(f'there is no kind "{word}"{did_you_mean(wanted, table)}', "words are kubectl's")
    return table[wanted]


def kinds_named(words: str, present: Iterable[str] = ()) -> list[str]:
    """`po,svc`, or `all`, as kinds in that order."""
    if words == "all":
        return list(ALL)
    known = tuple(present)
    return list(dict.fromkeys(kind_named(word, known) for word in words.split(",")))


def plural(kind: str) -> str:
    """`networkpolicies`, `ingresses`: what kubectl calls the resource."""
    if kind in WORDS:
        return WORDS[kind][0]
    name = kind.lower()
    if name.endswith("y"):
        return f"{name[:-1]}ies"
    return f"{name}es" if name.endswith("s") else f"{name}s"


def resource(kind: str) -> str:
    """The first half of `deployment.apps/web`, as `-o name` prints it."""
    group = GROUPS.get(kind, "")
    return f"{kind.lower()}.{group}" if group else kind.lower()


def scoped(kind: str) -> bool:
    """Does the kind live in namespaces?"""
    return kind not in CLUSTER_SCOPED


def kind_and_name(text: str, name: str | None, present: Iterable[str] = ()) -> tuple[str, str]:
    """`deploy/web`, or `deploy` and `web`. Raises InputError where the name is missing."""
    word, slash, rest = text.partition("/")
    if slash and name:
        raise InputError(f"{text} {name}: a name is given twice", "write KIND/NAME or KIND NAME")
    said = rest if slash else (name or "")
    if not said:
        raise InputError(f"{text}: the name is missing", "write KIND/NAME or KIND NAME")
    return kind_named(word, present), said
