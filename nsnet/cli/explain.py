"""`rules`, `leases`, `conntrack`: what kube-proxy, flannel and the kernel have written, and what it means."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping

import click

from nsnet import model, names
from nsnet.cli import elsewhere, options
from nsnet.cli.columns import NONE
from nsnet.cli.context import Running, running
from nsnet.cli.output import coloured, out, print_json, print_table
from nsnet.cli.policy_lines import policy_lines
from nsnet.cli.sentences import sentence
from nsnet.cli.target import BALANCER, Target, target
from nsnet.errors import InputError
from nsnet.model import Family, Node, Objects, Pod, Service, ServicePort, SubnetLease
from nsnet.state import Chain, Nft, NftChain, NftElement, NftSet, Value, socket_address
from nsnet.verify.world import of_family, proxied

PREFIXES = ("SVC", "SVL", "EXT", "FW")


@options.verb("rules")
@click.argument("where", metavar="node/NAME|lb")
@click.option("--service", metavar="NAME", help="Only this Service, with every chain of it.")
@options.namespace
@options.cluster
def rules(where: str, service: str | None, namespace: str, cluster: str | None) -> None:
    """Show the rules that kube-proxy (in any mode), policies, flannel and portmap wrote on a node, each with its use.

    Those of the load balancer outside the cluster are shown for `lb`.
    """
    now = running("rules", cluster)
    at = _place(now, where)
    found = _service(now.objects, namespace, service) if service else None
    values = _values(now, at.netns)
    if at.label == BALANCER:
        for line in balancer_lines(now.objects, found, values):
            out(line)
        return
    for line in rule_lines(now.objects, [found] if found else None, values):
        out(line)


def rule_lines(objects: Objects, only: list[Service] | None, values: Collection[Value]) -> Iterator[str]:
    """All lines; which mode it is, what the kernel has says. With `only` nothing but these Services.

    With two families each stands for itself, as in the kernel.
    """
    families = model.families_of(model.cluster_of(objects))
    services = only or model.of(objects, Service)
    for family in families:
        mine = [item for item in services if not model.cluster_ips(item.spec) or proxied(item, family)]
        if only is not None and not mine:
            continue
        if len(families) > 1:
            yield coloured(f"--- {model.API_FAMILIES[family]} ---", "cyan")
        yield from _of_family(objects, [of_family(item, family) for item in mine], values, family, all_=only is None)


def _of_family(
    objects: Objects, services: list[Service], values: Collection[Value], family: Family, *, all_: bool
) -> Iterator[str]:
    chains = {(item.table, item.name): item for item in values if isinstance(item, Chain) and item.family == family}
    nft = [item for item in values if isinstance(item, Nft) and item.key[1:3] == (family, TABLE)]
    pods = addresses(objects)
    for item in services:
        yield from nft_service_lines(item, nft, pods) if nft else service_lines(item, chains, pods)
    if all_:
        yield from nft_shared_lines(nft, pods) if nft else proxy_lines(chains, pods)
        yield from policy_lines(values, family, pods, _explained, _nft_rules)
        yield from flannel_lines(chains, pods)
        yield from host_port_lines(chains, pods)


def _place(now: Running, where: str) -> Target:
    """A node, or the balancer."""
    objects = now.objects
    found = target(objects, where if "/" in where or where == BALANCER else f"node/{where}")
    if found.label != BALANCER and not found.label.startswith("node/"):
        known = _listed([*(node.metadata.name for node in _nodes(objects)), BALANCER])
        raise InputError(f"{where} is neither a node nor {BALANCER}", f"nodes: {known}")
    return found


def _nodes(objects: Objects) -> list[Node]:
    return model.of(objects, Node)


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words) or "none"


def _service(objects: Objects, namespace: str, name: str) -> Service:
    said, _, name = name.rpartition("/")
    namespace = namespace if said in {"", "svc", "service", "services"} else said
    found = objects.get(model.Key("Service", namespace, name))
    if not isinstance(found, Service):
        known = [item.metadata.name for item in model.of(objects, Service) if item.metadata.namespace == namespace]
        raise InputError(f'there is no Service "{name}" in namespace {namespace}', f"Services there: {_listed(known)}")
    return found


def _values(now: Running, netns: str) -> frozenset[Value]:
    """The chains there, of iptables and nftables, as the kernel has them."""
    return elsewhere.seen(now, {netns: frozenset({("chain",), ("nft",)})}).get(netns, frozenset())


def addresses(objects: Objects) -> dict[str, str]:
    """Who has an address, of the pods with a network of their own."""
    pods = (pod for pod in model.of(objects, Pod) if not pod.spec.hostNetwork)
    return {ip: f"pod {pod.metadata.name}" for pod in pods for ip in model.pod_ips(pod) or ("",)}


Chains = Mapping[tuple[str, str], Chain]


def service_lines(service: Service, chains: Chains, pods: Mapping[str, str]) -> Iterator[str]:
    """A Service's part of the rules: the lines that lead to it, and its own chains."""
    for port in service.spec.ports or ():
        name = names.service_port(service.metadata.namespace, service.metadata.name, port.name)
        yield coloured(_title(service, port, name), "cyan")
        own = _own_chains(name, port.protocol, chains)
        for (_, chain), value in chains.items():
            if not chain.startswith(("KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-EXT-", "KUBE-FW-")):
                mine = [rule for rule in value.rules if f'"{name} ' in rule or f'"{name}"' in rule]
                yield from _explained(chain, mine, pods)
        for chain in own:
            yield from _explained(chain, chains["nat", chain].rules, pods)
        yield ""


def _title(service: Service, port: ServicePort, name: str) -> str:
    node_port = f", node port {port.nodePort}" if port.nodePort else ""
    address = socket_address(service.spec.clusterIP or NONE, port.port)
    return f"{name}: {service.spec.type} {address}/{port.protocol}{node_port}"


def _own_chains(name: str, protocol: str, chains: Chains) -> list[str]:
    heads = [names.kube_chain(prefix, name, protocol) for prefix in PREFIXES]
    found = [chain for chain in heads if ("nat", chain) in chains]
    endpoints = [
        word for chain in found for rule in chains["nat", chain].rules for word in rule.split() if "KUBE-SEP-" in word
    ]
    return [*found, *(chain for chain in dict.fromkeys(endpoints) if ("nat", chain) in chains)]


def proxy_lines(chains: Chains, pods: Mapping[str, str]) -> Iterator[str]:
    """What all Services share."""
    yield coloured("for all Services", "cyan")
    yield from _ways_in("KUBE-", chains, pods)
    for (_, chain), value in sorted(chains.items()):
        if chain in {"KUBE-MARK-MASQ", "KUBE-POSTROUTING", "KUBE-FORWARD", "KUBE-FIREWALL"}:
            yield from _explained(chain, value.rules, pods)
        elif value.policy:
            yield from _explained(chain, [rule for rule in value.rules if "-j KUBE-PORTALS-" in rule], pods)
            yield from _explained(chain, [rule for rule in value.rules if "-j KUBE-NODEPORT-" in rule], pods)
    yield from _explained(
        "KUBE-SERVICES", [rule for rule in _rules(chains, "KUBE-SERVICES") if "-j KUBE-NODEPORTS" in rule], pods
    )
    yield ""


def balancer_lines(objects: Objects, only: Service | None, values: Collection[Value]) -> Iterator[str]:
    """The chains of the load balancer; with `only` the rules that name this Service."""
    nodes = {model.internal_ip(node): f"node {node.metadata.name}" for node in _nodes(objects)}
    chains = sorted((value for value in values if isinstance(value, Chain)), key=lambda chain: chain.name)
    named = re.compile(f'"{re.escape(f"{only.metadata.namespace}/{only.metadata.name}")}[ :]' if only else "")
    for head in ("LB-SERVICES", "LB-SVC-", "LB-POSTROUTING", "LB-INPUT"):
        for chain in chains:
            if chain.name.startswith(head):
                yield from _explained(chain.name, [rule for rule in chain.rules if named.search(rule)], nodes)


def flannel_lines(chains: Chains, pods: Mapping[str, str]) -> Iterator[str]:
    """The part of flannel."""
    yield coloured("flannel", "cyan")
    yield from _ways_in("FLANNEL-", chains, pods)
    for chain in ("FLANNEL-POSTRTG", "FLANNEL-FWD"):
        yield from _explained(chain, _rules(chains, chain), pods)


def _ways_in(prefix: str, chains: Chains, pods: Mapping[str, str]) -> Iterator[str]:
    """The rules of the kernel's own chains that lead to a component's."""
    for (_, chain), value in sorted(chains.items()):
        if value.policy:
            yield from _explained(chain, [rule for rule in value.rules if f"-j {prefix}" in rule], pods)


def host_port_lines(chains: Chains, pods: Mapping[str, str]) -> Iterator[str]:
    """The part of the portmap plugin, where a pod of the node has a hostPort."""
    found = sorted(chain for _, chain in chains if chain.startswith("CNI-"))
    if found:
        yield ""
        yield coloured("host ports", "cyan")
        for chain in found:
            yield from _explained(chain, chains["nat", chain].rules, pods)


def _rules(chains: Chains, name: str) -> list[str]:
    return [rule for (_, chain), value in chains.items() if chain == name for rule in value.rules]


def _explained(chain: str, found: Iterable[str], pods: Mapping[str, str]) -> Iterator[str]:
    for rule in found:
        yield f"  -A {chain} {rule}"
        words = sentence(chain, rule, pods)
        if words:
            yield f"        {coloured(words, 'green')}"


# --- nftables mode ----------------------------------------------------------------------------------------------------

TABLE = "kube-proxy"
_OF_A_SERVICE = re.compile(r"(?:service|local|external|firewall|endpoint|affinity)-[A-Z2-7]{8}-")


def nft_service_lines(service: Service, values: Collection[Nft], pods: Mapping[str, str]) -> Iterator[str]:
    """A Service's part of the table: its elements of the maps that all share, and its own chains and sets."""
    for port in service.spec.ports or ():
        name = names.service_port(service.metadata.namespace, service.metadata.name, port.name)
        yield coloured(_title(service, port, name), "cyan")
        base = names.nft_service(name, port.protocol)
        plain = base.partition("-")[2]  # without the hash, as its endpoints have it before `__`
        chains = [value for value in values if isinstance(value, NftChain) and _is_own(value.name, base, plain)]
        ends = _reached(chains)
        for value in sorted((value for value in values if isinstance(value, NftElement)), key=_order):
            if _leads_to(value, service, port, base, ends):
                yield from _nft_element(value, values, pods)
        for own in sorted(chains, key=lambda chain: (chain.name.startswith("endpoint-"), chain.name)):
            yield from _nft_chain(own, pods)
        for kept in sorted((value for value in values if isinstance(value, NftSet)), key=lambda item: item.name):
            if _is_own(kept.name, base, plain):
                yield from _nft_line(f"set {kept.name}", f"timeout {kept.timeout}s", pods)
        yield ""


def _is_own(name: str, base: str, plain: str) -> bool:
    rest = name.partition("-")[2]
    return _OF_A_SERVICE.match(name) is not None and (rest == base or rest.partition("-")[2].startswith(f"{plain}__"))


def _reached(chains: Iterable[NftChain]) -> set[str]:
    """`ip . port` of every endpoint that these chains choose from."""
    rules = " ".join(rule for chain in chains for rule in chain.rules)
    found = re.findall(r"\[?([0-9a-f.:]*[0-9a-f:])\]?(?: \. |:)(\d+)", rules)
    return {f"{ip} . {port}" for ip, port in found}


def _leads_to(value: NftElement, service: Service, port: ServicePort, base: str, ends: Collection[str]) -> bool:
    words = value.element.split(" . ")
    match value.set:
        case "cluster-ips":
            return value.element == service.spec.clusterIP
        case "hairpin-connections":
            return words[2] == port.protocol.lower() and f"{words[0]} . {words[3]}" in ends
        case "no-endpoint-services" | "no-endpoint-nodeports":
            name = names.service_port(service.metadata.namespace, service.metadata.name, port.name)
            return value.comment == name and port.protocol.lower() in words
    return value.data.rpartition(" ")[2].partition("-")[2] == base


def _order(value: NftElement) -> tuple[bool, str, str]:
    return value.set == "hairpin-connections", value.set, value.element


def _nft_element(value: NftElement, values: Collection[Nft], pods: Mapping[str, str]) -> Iterator[str]:
    kinds = {item.name: item.kind for item in values if isinstance(item, NftSet)}
    kind = "map" if " : " in kinds.get(value.set, "") else "set"
    yield from _nft_line(f"{kind} {value.set}", value.element + (f" : {value.data}" if value.data else ""), pods)


def _nft_chain(chain: NftChain, pods: Mapping[str, str]) -> Iterator[str]:
    yield from _nft_rules(chain.name, chain.rules, pods)


def _nft_rules(chain: str, rules: Collection[str], pods: Mapping[str, str]) -> Iterator[str]:
    for rule in rules:
        yield from _nft_line(chain, rule, pods)


def _nft_line(where: str, text: str, pods: Mapping[str, str]) -> Iterator[str]:
    yield f"  {where} {{ {text} }}" if where.startswith(("map ", "set ")) else f"  chain {where}: {text}"
    words = sentence(where, text, pods)
    if words:
        yield f"        {coloured(words, 'green')}"


def nft_shared_lines(values: Collection[Nft], pods: Mapping[str, str]) -> Iterator[str]:
    """The chains that all Services share, base chains first, and whose node ports are served."""
    yield coloured("for all Services", "cyan")
    chains = [value for value in values if isinstance(value, NftChain) and not _OF_A_SERVICE.match(value.name)]
    for chain in sorted(chains, key=lambda item: (not item.hook, item.name)):
        yield from _nft_chain(chain, pods)
    for value in values:
        if isinstance(value, NftElement) and value.set == "nodeport-ips":
            yield from _nft_element(value, values, pods)
    yield ""


# --- leases -----------------------------------------------------------------------------------------------------------


@options.verb("leases")
@options.output("json")
@options.cluster
def leases(output: str | None, cluster: str | None) -> None:
    """Show flannel's subnet leases: who has which part of the pod network, and how it is reached."""
    now = running("leases", cluster)
    found = model.of(now.objects, SubnetLease)
    if output == "json":
        print_json([model.to_doc(lease) for lease in found])
        return
    print_table([("SUBNET", "NODE", "PUBLIC-IP", "BACKEND", "BACKEND-DATA"), *_lease_rows(now, found)])


def _lease_rows(now: Running, found: list[SubnetLease]) -> Iterator[list[str]]:
    """One row per family, as each has its own subnet and tunnel."""
    nodes = {cidr: node.metadata.name for node in _nodes(now.objects) for cidr in model.pod_cidrs(node)}
    for lease in found:
        for subnet in lease.subnets:
            six = model.family_of(subnet) == "ip6"
            data = (lease.BackendV6Data if six else lease.BackendData) or {}
            said = " ".join(f"{name}={value}" for name, value in data.items()) or NONE
            public = (lease.PublicIPv6 or NONE) if six else lease.PublicIP
            yield [subnet, nodes.get(subnet, NONE), public, lease.BackendType or NONE, said]


# --- conntrack --------------------------------------------------------------------------------------------------------


@options.verb("conntrack")
@click.argument("where", metavar="node/NAME|lb")
@click.option("--overlay", is_flag=True, help="The packets between nodes that carry others as well.")
@options.cluster
def conntrack(where: str, overlay: bool, cluster: str | None) -> None:
    """Show the connections a node (or `lb`) tracks: who called, what for, and who answers in truth."""
    from nsnet.kernel import everywhere

    now = running("conntrack", cluster)
    place = _place(now, where)
    families = model.families_of(model.cluster_of(now.objects))
    with elsewhere.kernels(now) as kernels:
        argvs = [("conntrack", "-L", *_CONNTRACK[family]) for family in families]
        text = "".join(
            everywhere.output(kernels.home if kernels else everywhere.all_here, place.netns, argv) for argv in argvs
        )
    outer = tuple(f":{port}" for port in model.cluster_of(now.objects).flannel.Backend.udp_ports)
    rows = [
        row
        for row in flows(text, service_addresses(now.objects))
        if overlay or row[0] != "udp" or not any(port in row[3] for port in outer)
    ]
    print_table([("PROTO", "STATE", "FROM", "TO", "ANSWERS", "ANSWER GOES TO"), *sorted(rows)])


_CONNTRACK: Mapping[Family, tuple[str, ...]] = {"ip": (), "ip6": ("-f", "ipv6")}


def service_addresses(objects: Objects) -> dict[str, str]:
    """`ip:port` of every Service port → its name; node ports as `:port`."""
    found = {}
    for service in model.of(objects, Service):
        for port in service.spec.ports or ():
            name = names.service_port(service.metadata.namespace, service.metadata.name, port.name)
            addresses = model.cluster_ips(service.spec) or (service.spec.clusterIP,)
            for address in (*addresses, *model.balanced_addresses(service)):
                found[socket_address(address, port.port)] = name
            if port.nodePort:
                found[f":{port.nodePort}"] = name
    return found


def flows(text: str, services: Mapping[str, str]) -> Iterator[list[str]]:
    """`conntrack -L` as rows; the destination with the Service it belongs to."""
    for line in text.splitlines():
        words = line.split()
        pairs = [word.partition("=")[::2] for word in words if "=" in word]
        ways = [[value for key, value in pairs if key == name] for name in ("src", "dst", "sport", "dport")]
        if len(ways[0]) < 2:
            continue
        (source, dest), (answers, goes) = (_ends(ways, index) for index in (0, 1))
        state = next((word for word in words[2:5] if word.isupper()), "-")
        service = services.get(dest) or services.get(f":{dest.rpartition(':')[2]}")
        yield [words[0], state, source, f"{dest} ({service})" if service else dest, answers, goes]


def _ends(ways: list[list[str]], index: int) -> tuple[str, str]:
    sources, dests, sports, dports = ways
    if len(sports) <= index:
        return sources[index], dests[index]
    ends = ((sources[index], sports[index]), (dests[index], dports[index]))
    source, dest = (socket_address(address, port) for address, port in ends)
    return source, dest
