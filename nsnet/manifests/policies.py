"""Ingress and NetworkPolicy.

Source: Kubernetes `pkg/apis/networking/validation`.
"""

from nsnet.manifests.common import selector
from nsnet.manifests.forms import hostname, one_of, port, port_name, port_or_name, protocol, subnet, subnet_of
from nsnet.manifests.problems import At
from nsnet.manifests.reading import shown


def ingress(doc: At) -> None:
    spec = doc["spec"]
    if not spec["rules"].value and not spec["defaultBackend"].value:
        spec.wrong("has neither rules nor a defaultBackend", "add one of the two")
    backend(spec["defaultBackend"])
    for rule in spec["rules"].each():
        hostname(rule["host"])
        for item in rule["http"]["paths"].each():
            one_of(item["pathType"], ("Exact", "Prefix", "ImplementationSpecific"))
            path = item["path"].value
            if path and not path.startswith("/") and item["pathType"].value != "ImplementationSpecific":
                item["path"].wrong(f'"{shown(path)}" does not begin with /', f"write /{shown(path)}")
            backend(item["backend"])


def backend(at: At) -> None:
    if at.value is None:
        return
    if bool(at["service"].value) == bool(at["resource"].value):
        at.wrong("names a service or a resource, one of the two", "add `service:` with a name and a port")
    number, name = at["service"]["port"]["number"], at["service"]["port"]["name"]
    port(number)
    port_name(name)
    if at["service"].value and (number.value is None) == (not name.value):
        at["service"]["port"].wrong("has a number or a name, one of the two", "as port: {number: 80}")


def network_policy(doc: At) -> None:
    spec = doc["spec"]
    selector(spec["podSelector"])
    for item in spec["policyTypes"].each():
        one_of(item, ("Ingress", "Egress"))
    for rule in (*spec["ingress"].each(), *spec["egress"].each()):
        for peer in (*rule["from"].each(), *rule["to"].each()):
            policy_peer(peer)
        for item in rule["ports"].each():
            policy_port(item)


def policy_peer(at: At) -> None:
    block, chosen = at["ipBlock"], [name for name in ("podSelector", "namespaceSelector") if at[name].value is not None]
    if block.value is None and not chosen:
        at.wrong("is empty; a peer is pods, namespaces or an ipBlock", "write podSelector: {} for every pod")
    if block.value is not None and chosen:
        block.wrong(f"does not go with {chosen[0]} in one peer", "put a dash before it: a peer of its own")
    selector(at["podSelector"])
    selector(at["namespaceSelector"])
    subnet(block["cidr"])
    whole = subnet_of(block["cidr"].value or "")
    for item in block["except"].each():
        subnet(item)
        part = subnet_of(item.value)
        if whole and part and not (part.version == whole.version and part.subnet_of(whole) and part != whole):  # type: ignore[arg-type]
            item.wrong(f"{item.value} is not inside {block['cidr'].value}", "an exception is a part of the block")


def policy_port(at: At) -> None:
    protocol(at["protocol"])
    port_or_name(at["port"])
    port(at["endPort"])
    last, first = at["endPort"].value, at["port"].value
    if last is not None and not isinstance(first, int):
        at["endPort"].wrong("needs a port that is a number", "add `port:` with the first of the range")
    elif last is not None and last < first:
        at["endPort"].wrong(f"{last} is less than port {first}", "the range goes from port to endPort")
