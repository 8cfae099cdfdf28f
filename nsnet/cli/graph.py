"""`graph`: the picture of a cluster: networks, nodes, pods, Services and who serves them.

One value (`Picture`) is made of the objects and said four ways: mermaid and dot for other tools, json for scripts, and
svg drawn here, without any other program: columns of boxes are all that racks, nodes and pods need.
"""

from collections.abc import Iterator, Sequence
from itertools import filterfalse
from xml.sax.saxutils import escape, quoteattr

import click
import msgspec

from nsnet import model, names
from nsnet.cli import options
from nsnet.cli.columns import pod_netns
from nsnet.cli.context import running
from nsnet.cli.output import out, print_json
from nsnet.model import Objects
from nsnet.verify import world as worlds

FORMS = ("mermaid", "dot", "svg", "json")


class Node(msgspec.Struct, frozen=True):
    """A box. `kind` is router, network, node, host, pod or service; `inside` the box around it.

    A Service is ready when it has an endpoint. `netns` is the network namespace it stands for; a pod on its node's
    network has its node's. `faults`: what is broken there.
    """

    id: str
    kind: str
    name: str
    detail: str = ""
    inside: str = ""
    ready: bool = True
    netns: str = ""
    faults: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """What is said in the box besides its name."""
        trouble = "" if self.ready else "no endpoints" if self.kind == "service" else "not ready"
        broken = f"broken: {', '.join(self.faults)}" if self.faults else ""
        return tuple(word for word in (self.detail, trouble, broken) if word)


class Edge(msgspec.Struct, frozen=True):
    """`serves`: a Service's endpoint; `joined`: a network at the router."""

    source: str
    target: str
    kind: str


class Picture(msgspec.Struct, frozen=True):
    cluster: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]


@options.verb("graph")
@click.option("-n", "--namespace", default="", metavar="NAMESPACE", help="Only pods and Services of this namespace.")
@options.output(*FORMS)
@options.cluster
def graph(namespace: str, output: str | None, cluster: str | None) -> None:
    """Draw the cluster: networks with their nodes, nodes with their pods, Services with their endpoints.

    Mermaid (the default) shows in Markdown, dot in Graphviz, svg in a browser: nsnet graph -o svg > cluster.svg
    """
    found = picture(running("graph", cluster).objects, namespace)
    if output == "json":
        print_json(found)
        return
    form = {"dot": dot, "svg": svg}.get(output or "", mermaid)
    out("\n".join(form(found)))


# --- what there is ----------------------------------------------------------------------------------------------------


def picture(objects: Objects, namespace: str = "") -> Picture:
    """The boxes and lines of completed objects; `namespace` empty: of all namespaces."""
    world = worlds.world(objects)
    cluster = model.cluster_of(objects)
    boxes = [*_networks(cluster), *_machines(objects, cluster), *_pods(objects, namespace)]
    there = {box.id for box in boxes}
    marked = _faults(objects)
    services = list(_services(world, namespace))
    edges = [edge for _, edges in services for edge in edges if edge.target in there]
    joined = [Edge("router", f"network/{network.name}", "joined") for network in cluster.underlay.networks]
    every = (*boxes, *(box for box, _ in services))
    drawn = (msgspec.structs.replace(box, faults=marked[box.id]) if box.id in marked else box for box in every)
    return Picture(cluster.metadata.name, tuple(drawn), (*joined, *edges))


def _faults(objects: Objects) -> dict[str, tuple[str, ...]]:
    """Box → the faults on it; one that is everywhere is on every node. What a lab asks for is not given away."""
    everywhere = tuple(f"node/{node.metadata.name}" for node in model.of(objects, model.Node))
    found: dict[str, tuple[str, ...]] = {}
    for fault in filterfalse(model.in_lab, model.of(objects, model.Fault)):
        for place in (*(fault.spec.on or everywhere), *fault.spec.to):
            found[place] = (*found.get(place, ()), fault.spec.fault)
    return found


def _networks(cluster: model.Cluster) -> Iterator[Node]:
    own = cluster.metadata.name
    yield Node("router", "router", "router", netns=names.fabric_netns(own, "router"))
    for network in cluster.underlay.networks:
        netns = names.fabric_netns(own, network.name)
        yield Node(f"network/{network.name}", "network", network.name, str(network.subnet or ""), netns=netns)


def _machines(objects: Objects, cluster: model.Cluster) -> Iterator[Node]:
    own = cluster.metadata.name
    for node in model.of(objects, model.Node):
        name, inside = node.metadata.name, f"network/{model.annotation(node, 'nsnet/network')}"
        detail = f"{model.internal_ip(node)}, pods {node.spec.podCIDR}"
        ready = all(item.status == "True" for item in node.status.conditions if item.type == "Ready")
        yield Node(f"node/{name}", "node", name, detail, inside, ready, names.node_netns(own, name))
    for host in cluster.hosts or ():
        inside, netns = f"network/{host.network}", names.host_netns(own, host.name)
        yield Node(f"host/{host.name}", "host", host.name, host.address, inside, netns=netns)


def _pods(objects: Objects, namespace: str) -> Iterator[Node]:
    own = model.cluster_of(objects).metadata.name
    for pod in model.of(objects, model.Pod):
        meta = pod.metadata
        if pod.spec.nodeName and namespace in ("", meta.namespace):
            name = meta.name if meta.namespace == "default" else f"{meta.namespace}/{meta.name}"
            inside, found = f"node/{pod.spec.nodeName}", f"pod/{meta.namespace}/{meta.name}"
            yield Node(found, "pod", name, pod.status.podIP, inside, model.is_ready(pod), pod_netns(pod, own))


def _services(world: worlds.World, namespace: str) -> Iterator[tuple[Node, list[Edge]]]:
    owners = {place.address: place for place in (*world.guests, *world.pods)}
    for service in world.services:
        meta, spec = service.metadata, service.spec
        if namespace not in ("", meta.namespace):
            continue
        name = meta.name if meta.namespace == "default" else f"{meta.namespace}/{meta.name}"
        ports = " ".join(f"{port.port}{f':{port.nodePort}' if port.nodePort else ''}" for port in spec.ports or ())
        found = {
            backend.address: backend
            for port in spec.ports or ()
            for backend in worlds.usable(worlds.backends(world, service, port))
        }
        detail = f"{spec.clusterIP} {ports}".strip()
        box = Node(f"svc/{meta.namespace}/{meta.name}", "service", name, detail, ready=bool(found))
        served = (f"pod/{owners[address].name}" for address in found if address in owners)
        yield box, [Edge(box.id, target, "serves") for target in served]


# --- mermaid and dot --------------------------------------------------------------------------------------------------


def _inside(found: Picture) -> dict[str, list[Node]]:
    boxes: dict[str, list[Node]] = {}
    for node in found.nodes:
        boxes.setdefault(node.inside, []).append(node)
    return boxes


def _numbers(found: Picture) -> dict[str, str]:
    """Short names that any tool takes."""
    return {node.id: f"n{number}" for number, node in enumerate(found.nodes)}


def mermaid(found: Picture) -> Iterator[str]:
    """A flowchart with a subgraph for each network and node."""
    boxes, numbers = _inside(found), _numbers(found)
    yield "flowchart LR"
    yield from _mermaid(boxes, numbers, "", "  ")
    for edge in found.edges:
        yield f"  {numbers[edge.source]} {'---' if edge.kind == 'joined' else '-->'} {numbers[edge.target]}"


def _mermaid(boxes: dict[str, list[Node]], numbers: dict[str, str], parent: str, indent: str) -> Iterator[str]:
    for node in boxes.get(parent, ()):
        text = "<br/>".join((node.name, *node.words)).replace('"', "#quot;")
        if node.id in boxes or node.kind == "network":
            yield f'{indent}subgraph {numbers[node.id]}["{text}"]'
            yield from _mermaid(boxes, numbers, node.id, indent + "  ")
            yield f"{indent}end"
        else:
            left, right = ("([", "])") if node.kind == "service" else ("[", "]")
            yield f'{indent}{numbers[node.id]}{left}"{text}"{right}'


def dot(found: Picture) -> Iterator[str]:
    """Graphviz: clusters for networks and nodes."""
    boxes, numbers = _inside(found), _numbers(found)
    yield f"digraph {_quoted(found.cluster)} {{"
    yield "  rankdir=LR; compound=true; node [shape=box, fontname=sans];"
    yield from _dot(boxes, numbers, "", "  ")
    for edge in found.edges:
        style = " [dir=none]" if edge.kind == "joined" else ""
        yield f"  {numbers[edge.source]} -> {numbers[edge.target]}{style};"
    yield "}"


def _dot(boxes: dict[str, list[Node]], numbers: dict[str, str], parent: str, indent: str) -> Iterator[str]:
    for node in boxes.get(parent, ()):
        label = _quoted("\\n".join((node.name, *node.words)))
        shape = {"service": "ellipse", "network": "plaintext"}.get(node.kind, "box")
        if node.id in boxes:
            yield f"{indent}subgraph cluster_{numbers[node.id]} {{ label={label};"
            yield f"{indent}  {numbers[node.id]} [shape=point, style=invis];"
            yield from _dot(boxes, numbers, node.id, indent + "  ")
            yield f"{indent}}}"
        else:
            yield f"{indent}{numbers[node.id]} [label={label}, shape={shape}];"


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '\\"') + '"'


# --- svg --------------------------------------------------------------------------------------------------------------

_WIDTH, _LINE, _GAP = 250, 34, 10
_ROWS = 40  # pods of a node in one column
_COLOURS = {
    "network": "#f4f6f8", "node": "#e3edf7", "host": "#fdf3d8", "pod": "#ffffff", "service": "#e2f3e5",
    "router": "#eeeeee", "broken": "#fbdcdc",
}  # fmt: skip


class _Box(msgspec.Struct, frozen=True):
    node: Node
    x: int
    y: int
    width: int
    height: int


def svg(found: Picture) -> Iterator[str]:
    """Services on the left, networks with what is in them to the right; a line from a Service to each endpoint."""
    boxes = list(_placed(found))
    where = {box.node.id: box for box in boxes}
    width = max((box.x + box.width for box in boxes), default=0) + _GAP
    height = max((box.y + box.height for box in boxes), default=0) + _GAP
    yield f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">'
    yield f"<title>{escape(found.cluster)}</title>"
    for box in boxes:
        yield from _drawn(box)
    for edge in found.edges:
        if edge.kind == "serves":
            yield _line(where[edge.source], where[edge.target], edge)
    yield "</svg>"


def _placed(found: Picture) -> Iterator[_Box]:
    boxes = _inside(found)
    services = [node for node in boxes.get("", ()) if node.kind == "service"]
    yield from _column(services, _GAP, _GAP)
    x = _WIDTH + 12 * _GAP
    for node in boxes.get("", ()):
        if node.kind == "router":
            yield _Box(node, x, _GAP, _WIDTH, _LINE)
        elif node.kind == "network":
            inner = list(_network(boxes, node, x, 2 * _GAP + _LINE))
            yield from inner
            x = inner[0].x + inner[0].width + 2 * _GAP


def _network(boxes: dict[str, list[Node]], network: Node, x: int, y: int) -> Iterator[_Box]:
    """The network's own box first, then what is in it, side by side."""
    inner: list[_Box] = []
    right = x + _GAP
    for node in boxes.get(network.id, ()):
        machine = list(_machine(boxes.get(node.id, ()), node, right, y + _LINE + _GAP))
        inner += machine
        right = machine[0].x + machine[0].width + _GAP
    bottom = max((box.y + box.height for box in inner), default=y + _LINE)
    yield _Box(network, x, y, max(right, x + _WIDTH) - x, bottom - y + _GAP)
    yield from inner


def _machine(pods: Sequence[Node], node: Node, x: int, y: int) -> Iterator[_Box]:
    columns = [pods[start : start + _ROWS] for start in range(0, len(pods), _ROWS)] or [()]
    rows = max(map(len, columns))
    height = _LINE + _GAP + rows * (_LINE + _GAP)
    yield _Box(node, x, y, len(columns) * (_WIDTH + _GAP) + _GAP, height)
    for number, column in enumerate(columns):
        yield from _column(column, x + _GAP + number * (_WIDTH + _GAP), y + _LINE + _GAP)


def _column(nodes: Sequence[Node], x: int, y: int) -> Iterator[_Box]:
    for number, node in enumerate(nodes):
        yield _Box(node, x, y + number * (_LINE + _GAP), _WIDTH, _LINE)


def _drawn(box: _Box) -> Iterator[str]:
    node = box.node
    fill = _COLOURS["broken" if node.faults or not node.ready else node.kind]
    yield f"<g id={quoteattr(node.id)}><title>{escape(f'{node.id} {node.detail}'.strip())}</title>"
    frame = f'x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" rx="5"'
    yield f'<rect {frame} fill="{fill}" stroke="#8796a5"/>'
    yield f'<text x="{box.x + 8}" y="{box.y + 15}" font-size="12">{escape(node.name)}</text>'
    words = escape(" ".join(node.words))
    yield f'<text x="{box.x + 8}" y="{box.y + 28}" font-size="10" fill="#55606b">{words}</text></g>'


def _line(source: _Box, target: _Box, edge: Edge) -> str:
    x1, y1, x2, y2 = source.x + source.width, source.y + _LINE // 2, target.x, target.y + _LINE // 2
    middle = (x1 + min(x2, x1 + 80)) // 2
    ends = f"data-from={quoteattr(edge.source)} data-to={quoteattr(edge.target)}"
    path = f"M{x1},{y1} C{middle},{y1} {middle},{y2} {x2},{y2}"
    return f'<path {ends} d="{path}" fill="none" stroke="#3f8f4f" stroke-opacity="0.5"/>'
