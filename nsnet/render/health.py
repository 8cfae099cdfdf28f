"""Who is healthy: the ports that kube-proxy tells it on in every node, and the balancer's checks of them.

Both are programs in the router's namespace, one each for the whole cluster: `healthcheck` opens its sockets in the
nodes, `lbhealth` asks them from where the balancer is. What `lbhealth` hears is observed (`kernel/health.py`) and
decides in `control/loadbalancer.py`; so a check that fails changes objects, and they the balancer's rules.

Source: Kubernetes `pkg/proxy/healthcheck` (what is served where), cloud-provider-kind (what is asked).
"""

import sys
from collections.abc import Iterable, Iterator

import msgspec

from nsnet import model, names
from nsnet.model import Node
from nsnet.render import kubeproxy, loadbalancer, services
from nsnet.render.kubeproxy import PRIMARY, Told
from nsnet.render.services import Joined
from nsnet.render.spread import local
from nsnet.render.view import View
from nsnet.state import File, Process, Value

EVERYWHERE = ("0.0.0.0",)  # noqa: S104 - of the node

_json = msgspec.json.Encoder()


def render(view: View) -> Iterator[tuple[str, Iterable[Value]]]:
    said = kubeproxy.told(view.objects)
    checked = services.chosen(view.objects, _wants_health_check)
    joined = [item for item in checked if model.has_health_port(item.service, view.cluster)]
    nodes = model.of(view.objects, Node)
    here = {node.name for node in local(view).nodes}
    served = [_node(view, said, node, joined) for node in nodes if node.metadata.name in here]
    yield view.router, _program(view, "healthcheck", {"nodes": served})
    asked = _checks(view, said, nodes)
    if asked:
        yield view.router, _program(view, "lbhealth", {"checks": asked})


def _wants_health_check(service: model.Service) -> bool:
    return bool(service.spec.healthCheckNodePort)


def _program(view: View, name: str, config: object) -> tuple[Value, ...]:
    path = str(names.run_dir(view.name) / f"{name}.json")
    argv = (sys.executable, "-m", f"nsnet.programs.{name}", path)
    return File(path, _json.encode(config).decode()), Process(argv)


# --- what nodes serve -------------------------------------------------------------------------------------------------


def _node(view: View, said: Told, node: Node, joined: Iterable[Joined]) -> dict[str, object]:
    name, addresses = node.metadata.name, _addresses(said, node)
    return {
        "netns": names.node_netns(view.name, name),
        "healthz": model.healthz_of(said.config),
        "eligible": not model.is_leaving(node),
        "checks": [
            {
                "addresses": addresses,
                "port": item.service.spec.healthCheckNodePort,
                "namespace": item.service.metadata.namespace,
                "name": item.service.metadata.name,
                "endpoints": _local(item).get(name, 0),
            }
            for item in joined
        ],
    }


def _addresses(said: Told, node: Node) -> tuple[str, ...]:
    """Where a node serves healthCheckNodePorts: where it serves node ports. nftables mode: the primary address."""
    primary = said.cluster.networking.kubeProxyMode == "nftables" and not said.config.nodePortAddresses
    if primary or said.config.nodePortAddresses == PRIMARY:
        return (model.internal_ip(node),)
    found = kubeproxy.node_port_addresses(said, node, "ip")
    return EVERYWHERE if found is None else found


def _local(joined: Joined) -> dict[str, int]:
    """Node → how many addresses of ready endpoints are on it, whatever their ports."""
    kept: dict[str, int] | None = joined.kept.get("ready by node")
    if kept is None:
        ready = {(c.node, c.target.ip) for port in services.ports(joined) for c in port.candidates if c.ready}
        kept = joined.kept["ready by node"] = {}
        for node, _ in ready:
            kept[node] = kept.get(node, 0) + 1
    return kept


# --- what the balancer asks -------------------------------------------------------------------------------------------


def _checks(view: View, said: Told, nodes: Iterable[Node]) -> list[dict[str, object]]:
    """Each port once for every node that may get connections."""
    balanced = services.chosen(view.objects, loadbalancer.is_balanced)
    ports = sorted({model.health_port(item.service, said.cluster, said.config) for item in balanced})
    return [
        {
            "netns": names.node_netns(view.name, node.metadata.name),
            "address": model.internal_ip(node),
            "port": port,
            "path": "/healthz",
        }
        for node in nodes
        if model.EXCLUDED not in node.metadata.labels
        for port in ports
    ]
