"""Namespaces: those that manifests name without declaring them are made, and owned by the Cluster.

Every namespace bears the label that the API server gives it (`kubernetes.io/metadata.name`): NetworkPolicies select by
it. One that was made goes when nothing is in it any more.
"""

from nsnet.control.table import Table, of, owned_by, owner, with_meta
from nsnet.model import Cluster, Key, Namespace, ObjectMeta

LABEL = "kubernetes.io/metadata.name"
BUILT_IN = frozenset({"default", "kube-system", "kube-public", "kube-node-lease"})


def write(table: Table, cluster: Cluster) -> None:
    namespaces = of(table, Namespace)
    used = {key[1] for kind, objects in table.items() if kind != "Event" for key in objects} - {""} | BUILT_IN
    for key, namespace in list(namespaces.items()):
        if owned_by(namespace, "Cluster") and key.name not in used:
            del namespaces[key]
        elif LABEL not in namespace.metadata.labels:
            namespaces[key] = with_meta(namespace, labels={**namespace.metadata.labels, LABEL: key.name})
    for name in sorted(used - {key.name for key in namespaces}):
        meta = ObjectMeta(name=name, labels={LABEL: name}, ownerReferences=(owner(cluster),))
        namespaces[Key("Namespace", "", name)] = Namespace(meta)
