"""What one Kubernetes object may say, beyond the types of its fields: the API server's validation, kind by kind.

Source: Kubernetes `pkg/apis/*/validation`, of which what concerns the network, the scheduler of `control` and names is
here. Whatever needs a second object (a nodePort taken twice, an address outside its range) is `control`'s. Checks run
only on objects whose fields have the right types.
"""

import base64
import binascii
from collections.abc import Callable, Iterable

from nsnet.manifests import kubeproxy, policies, services, workloads
from nsnet.manifests.common import EFFECTS, annotations
from nsnet.manifests.forms import (
    address,
    dns_label,
    dns_subdomain,
    label_key,
    label_value,
    labels,
    one_of,
    path_segment,
    subnet,
)
from nsnet.manifests.problems import At, nearest
from nsnet.manifests.reading import shown

ANNOTATIONS = (
    "nsnet/ip", "nsnet/ready", "nsnet/run", "nsnet/bind", "nsnet/network", "nsnet/last-reserved-ip",
    "nsnet/last-reserved-ip.1",
    "nsnet/started-with", "nsnet/kube-proxy-mode",
)  # fmt: skip


def check(kind: str, doc: At) -> None:
    """All value checks of an object of this kind; what is wrong goes to `doc.found`."""
    metadata(kind, doc["metadata"])
    if kind in CHECKS:
        CHECKS[kind](doc)


def stray_annotations(names: Iterable[str]) -> list[str]:
    """Annotations that look like nsnet's own and are not: worth a note, no error (others may choose any name)."""
    strays = [name for name in names if name.startswith("nsnet/") and name not in ANNOTATIONS]
    near = [(name, nearest(name, ANNOTATIONS, 0.8)) for name in strays]
    return [f"annotation {shown(name)} has no effect (did you mean {meant}?)" for name, meant in near if meant]


_LABEL_NAMES = {"Namespace", "Service"}


def metadata(kind: str, at: At) -> None:
    if kind in _LABEL_NAMES:
        dns_label(at["name"])
    elif kind in CHECKS:
        dns_subdomain(at["name"])
    else:
        path_segment(at["name"])
    dns_label(at["namespace"])
    labels(at["labels"])
    annotations(at["annotations"])


def node(doc: At) -> None:
    spec = doc["spec"]
    for at in (spec["podCIDR"], *spec["podCIDRs"].each()):
        subnet(at)
    for taint in spec["taints"].each():
        label_key(taint["key"])
        label_value(taint["value"])
        one_of(taint["effect"], EFFECTS)
    for item in doc["status"]["addresses"].each():
        if (item["type"].value or "").endswith("IP"):
            address(item["address"])


def secret(doc: At) -> None:
    data, text = doc["data"], doc["stringData"].value or {}
    for item in data.each():
        if not _is_base64(item.value):
            item.wrong("is not base64", "write plain text under stringData, or encode it with `base64`")
    if doc["type"].value == "kubernetes.io/tls":
        for name in ("tls.crt", "tls.key"):
            if name not in text and data[name].value is None:
                data[name].wrong("is missing; a TLS Secret needs it", "`kubectl create secret tls` writes both")


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return False
    return True


def nothing(_doc: At) -> None:
    """Names and types say it all."""


CHECKS: dict[str, Callable[[At], None]] = {
    "Namespace": nothing,
    "Node": node,
    "Pod": workloads.pod,
    **dict.fromkeys(("Deployment", "ReplicaSet", "StatefulSet", "DaemonSet"), workloads.workload),
    "ReplicationController": workloads.replication_controller,
    "Job": workloads.job,
    "Service": services.service,
    "Endpoints": services.endpoints,
    "EndpointSlice": services.endpoint_slice,
    "Event": nothing,
    "Ingress": policies.ingress,
    "IngressClass": nothing,
    "NetworkPolicy": policies.network_policy,
    "Secret": secret,
    "ConfigMap": nothing,
    "KubeProxyConfiguration": kubeproxy.configuration,
}
