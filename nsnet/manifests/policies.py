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
    """The API's own messages: people look for them in its documentation and in other tools."""
    spec = doc["spec"]
    selector(spec["podSelector"])
    for item in spec["policyTypes"].each():
        one_of(item, ("Ingress", "Egress"))
    if len(spec["policyTypes"].value or ()) > 2:
        spec["policyTypes"].wrong("may not specify more than two policyTypes", "Ingress and Egress, each once")
    for direction, ends in (("ingress", "from"), ("egress", "to")):
        for rule in spec[direction].each():
            for peer in rule[ends].each():
                policy_peer(peer)
            for item in rule["ports"].each():
                policy_port(item)


def policy_peer(at: At) -> None:
    block, chosen = at["ipBlock"], [name for name in ("podSelector", "namespaceSelector") if at[name].value is not None]
    if block.value is None and not chosen:
        at.wrong("must specify a peer", "write podSelector: {} for every pod of this namespace")
    if block.value is not None and chosen:
        at.wrong("may not specify both ipBlock and another peer", f"put a dash before {chosen[0]}: a peer of its own")
    selector(at["podSelector"])
    selector(at["namespaceSelector"])
    subnet(block["cidr"])
    whole = subnet_of(block["cidr"].value or "")
    for item in block["except"].each():
        subnet(item)
        part = subnet_of(item.value)
        if whole and part and not (part.version == whole.version and part.subnet_of(whole) and part != whole):  # type: ignore[arg-type]
            item.wrong("must be a strict subset of `cidr`", f"a part of {block['cidr'].value}, not all of it")


def policy_port(at: At) -> None:
    protocol(at["protocol"])
    port_or_name(at["port"])
    port(at["endPort"])
    last, first = at["endPort"].value, at["port"].value
    if last is not None and first is None:
        at["endPort"].wrong("may not be specified when `port` is not specified", "add `port:` with the first one")
    elif last is not None and not isinstance(first, int):
        at["endPort"].wrong("may not be specified when `port` is non-numeric", "a range is from one number to another")
    elif last is not None and last < first:
        at["endPort"].wrong("must be greater than or equal to `port`", f"{first} or more")
