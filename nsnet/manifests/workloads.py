"""Pods, and what makes pods.

Source: Kubernetes `pkg/apis/{core,apps,batch}/validation`: what concerns names, ports and the scheduler.
"""

from nsnet.manifests.common import EFFECTS, annotations, requirement, selector, unique
from nsnet.manifests.forms import (
    address,
    count,
    dns_label,
    dns_subdomain,
    label_key,
    labels,
    one_of,
    pods,
    port,
    port_name,
    port_or_name,
    protocol,
)
from nsnet.manifests.problems import At
from nsnet.manifests.reading import shown


def pod(doc: At) -> None:
    pod_spec(doc["spec"], ("Always", "OnFailure", "Never"))


def pod_spec(at: At, restarts: tuple[str, ...]) -> None:
    if not at["containers"].value:
        at["containers"].wrong("is empty; a pod has at least one container", "add a container with a name and an image")
    unique(at["containers"], "name")
    one_of(at["restartPolicy"], restarts)
    one_of(at["dnsPolicy"], ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"))
    dns_subdomain(at["nodeName"])
    dns_label(at["hostname"])
    dns_label(at["subdomain"])
    count(at["terminationGracePeriodSeconds"])
    labels(at["nodeSelector"])
    for item in (*at["initContainers"].each(), *at["containers"].each()):
        container(item, host=at["hostNetwork"].value is True)
    for item in at["hostAliases"].each():
        address(item["ip"])
        for name in item["hostnames"].each():
            dns_subdomain(name)
    dns_config(at)
    placement(at)


def container(at: At, *, host: bool) -> None:
    dns_label(at["name"])
    unique(at["ports"], "name")
    for item in at["ports"].each():
        port(item["containerPort"])
        port(item["hostPort"], 0)
        port_name(item["name"])
        protocol(item["protocol"])
        address(item["hostIP"])
        if host and item["hostPort"].value not in (None, 0, item["containerPort"].value):
            item["hostPort"].wrong("differs from containerPort, though the pod has hostNetwork", "leave hostPort out")
    for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
        port_or_name(at[probe]["httpGet"]["port"])
        port_or_name(at[probe]["tcpSocket"]["port"])
        port(at[probe]["grpc"]["port"])


def dns_config(at: At) -> None:
    servers = at["dnsConfig"]["nameservers"]
    for item in servers.each():
        address(item)
    if len(servers.value or ()) > 3:
        servers.wrong(f"{len(servers.value)} name servers; the resolver takes three", "leave the others out")
    if at["dnsPolicy"].value == "None" and not servers.value:
        servers.wrong("is empty; dnsPolicy None needs at least one name server", "add dnsConfig.nameservers")


def placement(at: At) -> None:
    """What the scheduler reads."""
    affinity = at["affinity"]
    for kind in ("podAffinity", "podAntiAffinity"):
        for term in affinity[kind]["requiredDuringSchedulingIgnoredDuringExecution"].each():
            label_key(term["topologyKey"])
            selector(term["labelSelector"])
    required = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    for term in required["nodeSelectorTerms"].each():
        for item in term["matchExpressions"].each():
            requirement(item, ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"))
    for item in at["tolerations"].each():
        one_of(item["operator"], ("Equal", "Exists", "Gt", "Lt"))
        one_of(item["effect"], EFFECTS)
        if item["operator"].value == "Exists" and item["value"].value:
            item["value"].wrong("operator Exists takes no value", "leave the value out, or write Equal")


def workload(doc: At) -> None:
    """Deployment, ReplicaSet, StatefulSet, DaemonSet: the selector must find the template's pods."""
    spec = doc["spec"]
    pods(spec["replicas"])
    selector(spec["selector"])
    template(spec["template"], ("Always",))
    said = spec["selector"].value or {}
    wanted = said.get("matchLabels") or {}
    if not wanted and not said.get("matchExpressions"):
        spec["selector"].wrong("is empty; it would select every pod", "repeat the template's labels under matchLabels")
    _found_in_template(spec["selector"]["matchLabels"], spec)


def _found_in_template(wanted: At, spec: At) -> None:
    have = spec["template"]["metadata"]["labels"].value or {}
    for item in wanted.each():
        name = item.path[-1]
        if have.get(str(name)) != item.value:
            item.wrong(
                f"the template's pods have no label {shown(str(name))}: {shown(item.value)}",
                "selector and template.metadata.labels must agree",
            )
            return


def replication_controller(doc: At) -> None:
    spec = doc["spec"]
    pods(spec["replicas"])
    labels(spec["selector"])
    if not spec["template"].value:
        spec["template"].wrong("is missing; a mapping is wanted", "add `template:` with the pod to run")
        return
    template(spec["template"], ("Always",))
    _found_in_template(spec["selector"], spec)


def job(doc: At) -> None:
    spec = doc["spec"]
    pods(spec["parallelism"])
    pods(spec["completions"])
    count(spec["backoffLimit"])
    template(spec["template"], ("OnFailure", "Never"))
    if not spec["template"]["spec"]["restartPolicy"].value:
        spec["template"]["spec"]["restartPolicy"].wrong(
            "is missing; a Job's pods do not restart for ever", "write restartPolicy: Never, or OnFailure"
        )


def template(at: At, restarts: tuple[str, ...]) -> None:
    labels(at["metadata"]["labels"])
    annotations(at["metadata"]["annotations"])
    pod_spec(at["spec"], restarts)
