"""kube-proxy's userspace mode, as it was until 1.25: rules lead to a process on the node, which picks the endpoint.

    nat  PREROUTING ─ KUBE-PORTALS-CONTAINER: REDIRECT to the proxy port of the Service port
                    ─ KUBE-NODEPORT-CONTAINER (last): the same for node ports
         OUTPUT ───── KUBE-PORTALS-HOST, KUBE-NODEPORT-HOST (last): DNAT to the node's address, and the proxy port
    filter INPUT ──── KUBE-NODEPORT-NON-LOCAL: new connections to proxy ports are let in, whatever the host's policy

Source: Kubernetes 1.25 `pkg/proxy/userspace/proxier.go`. Why REDIRECT here and DNAT there is told in its comments: an
answer must come from the address that conntrack has written in, and for a packet of the node's own that is only so when
it goes to the node's address. External addresses are not for pods (`physdev ! --physdev-is-in`) unless they are the
node's own, so that no Service can take over what pods send to an address outside.

What it never had is left out, and `control.userspace` says so in events: traffic policies, source ranges, topology
hints, health check ports, SCTP, a second IP family. All it asks of an endpoint is that it is ready. A Service port
without endpoint still has its rules: the process accepts the connection and closes it.

Where it differs from upstream: a proxy port is not whatever the kernel gives (port 0) but a function of the Service
port's name, so that rules and configuration can be rendered; Services stand in the order of their names, not of a Go
map. The proxy ports lie above the kernel's ephemeral ports, lest somebody's connection has one already.
"""

import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from hashlib import sha256
from itertools import count

import msgspec

from nsnet import names
from nsnet.model import Objects, Pod, container_ports, of, seconds
from nsnet.render import services
from nsnet.render.services import Joined, Place, ServicePortInfo
from nsnet.render.view import MEMO
from nsnet.state import Chain, File, Process

PORTALS = '-m comment --comment "handle ClusterIPs; NOTE: this must be before the NodePort rules"'
NODE_PORTS = (
    "-m addrtype --dst-type LOCAL "
    '-m comment --comment "handle service NodePorts; NOTE: this must be the last rule in the chain"'
)
JUMPS: tuple[tuple[str, str, str], ...] = (
    (
        "filter",
        "INPUT",
        '-m comment --comment "Ensure that non-local NodePort traffic can flow" -j KUBE-NODEPORT-NON-LOCAL',
    ),
    ("nat", "PREROUTING", f"{PORTALS} -j KUBE-PORTALS-CONTAINER"),
    ("nat", "PREROUTING", f"{NODE_PORTS} -j KUBE-NODEPORT-CONTAINER"),
    ("nat", "OUTPUT", f"{PORTALS} -j KUBE-PORTALS-HOST"),
    ("nat", "OUTPUT", f"{NODE_PORTS} -j KUBE-NODEPORT-HOST"),
)
CHAINS = (
    ("filter", "KUBE-NODEPORT-NON-LOCAL"),
    ("nat", "KUBE-PORTALS-CONTAINER"),
    ("nat", "KUBE-NODEPORT-CONTAINER"),
    ("nat", "KUBE-PORTALS-HOST"),
    ("nat", "KUBE-NODEPORT-HOST"),
)
PROTOCOLS = ("tcp", "udp")
PROGRAM = "nsnet.programs.userproxy"
FIRST, LAST = range(61000, 65536), range(10000, 30000)  # proxy ports; the second range where the first is crowded
_TRIES = 8  # in the first range

Line = tuple[str, str, str]  # table, chain, rule
_json = msgspec.json.Encoder()


class Proxied(msgspec.Struct, frozen=True):
    """A Service port, where the process listens for it, and `ip:port` of its endpoints."""

    info: ServicePortInfo
    proxy_port: int
    endpoints: tuple[str, ...]


def proxied(every: Iterable[Joined], objects: Objects) -> tuple[Proxied, ...]:
    """All Service ports that the process serves, in the order of their names; the same on every node."""
    ports = [port for joined in every for port in _ready(joined)]
    numbers = proxy_ports(((info.name, info.protocol) for info, _ in ports), _taken(objects))
    return tuple(Proxied(info, numbers[info.name, info.protocol], endpoints) for info, endpoints in ports)


def _ready(joined: Joined) -> tuple[tuple[ServicePortInfo, tuple[str, ...]], ...]:
    """The Service's ports that can be proxied, with their ready endpoints; kept until the Service changes."""
    kept = joined.kept.get("userspace")
    if kept is None:
        ports = (port for port in services.ports(joined) if port.info.protocol in PROTOCOLS)
        kept = joined.kept["userspace"] = tuple(
            (port.info, tuple(str(item.target) for item in port.candidates if item.ready)) for port in ports
        )
    assert isinstance(kept, tuple)
    return kept


def _taken(objects: Objects) -> set[tuple[str, int]]:
    """(protocol, port) pairs of nodes that pods with hostNetwork have."""
    guests = (pod for pod in of(objects, Pod) if pod.spec.hostNetwork)
    return {(port.protocol.lower(), port.containerPort) for pod in guests for port in container_ports(pod)}


def proxy_ports(
    wanted: Iterable[tuple[str, str]], taken: Collection[tuple[str, int]] = ()
) -> dict[tuple[str, str], int]:
    """(name, protocol) of each Service port → its proxy port: a hash of the two, the next hash where that is taken."""
    found: dict[tuple[str, str], int] = {}
    used = set(taken)
    for name, protocol in sorted(wanted):
        free = (port for port in _attempts(f"{name}/{protocol}") if (protocol, port) not in used)
        found[name, protocol] = port = next(free)
        used.add((protocol, port))
    return found


def _attempts(text: str) -> Iterator[int]:
    return (_attempt(text, number) for number in count())


@lru_cache(maxsize=MEMO)
def _attempt(text: str, number: int) -> int:
    ports = FIRST if number < _TRIES else LAST
    return ports[int.from_bytes(sha256(f"{text}#{number}".encode()).digest()[:4], "big") % len(ports)]


# --- rules ------------------------------------------------------------------------------------------------------------


def node_chains(found: Iterable[Proxied], where: Place) -> frozenset[Chain]:
    """Every chain of a node whose own address is `where.ip`, without the built-in ones (see `JUMPS`)."""
    rules: Mapping[tuple[str, str], list[str]] = defaultdict(list)
    for item in found:
        for table, chain, rule in lines(item, where.ip):
            rules[table, chain].append(rule)
    return frozenset(Chain(table, name, tuple(rules[table, name])) for table, name in CHAINS)


def lines(item: Proxied, host: str) -> Iterator[Line]:
    """The rules of one Service port on the node with the address `host`."""
    info = item.info
    redirect, dnat = f"REDIRECT --to-ports {item.proxy_port}", f"DNAT --to-destination {host}:{item.proxy_port}"
    for address in (info.cluster_ip, *info.load_balancer_vips):
        yield "nat", "KUBE-PORTALS-CONTAINER", _rule(info, info.port, redirect, address)
        yield "nat", "KUBE-PORTALS-HOST", _rule(info, info.port, dnat, address)
    for address in info.external_ips:
        outside, own = "-m physdev ! --physdev-is-in", "-m addrtype --dst-type LOCAL"
        yield "nat", "KUBE-PORTALS-CONTAINER", _rule(info, info.port, redirect, address, outside)
        yield "nat", "KUBE-PORTALS-CONTAINER", _rule(info, info.port, redirect, address, own)
        yield "nat", "KUBE-PORTALS-HOST", _rule(info, info.port, dnat, address, own)
    if info.node_port:
        yield "nat", "KUBE-NODEPORT-CONTAINER", _rule(info, info.node_port, redirect)
        yield "nat", "KUBE-NODEPORT-HOST", _rule(info, info.node_port, dnat)
        new = "-m state --state NEW"
        yield "filter", "KUBE-NODEPORT-NON-LOCAL", _rule(info, item.proxy_port, "ACCEPT", match=new)


def _rule(info: ServicePortInfo, port: int, target: str, address: str = "", match: str = "") -> str:
    """As iptables-save has it: address, protocol, matches in the order upstream gives them, target."""
    words = [f"-d {address}/32"] if address else []
    words += [f"-p {info.protocol}", f'-m comment --comment "{info.name}"', f"-m {info.protocol} --dport {port}"]
    return " ".join([*words, *([match] if match else []), f"-j {target}"])


# --- the process ------------------------------------------------------------------------------------------------------


def program(netns: str, content: str) -> tuple[File, Process]:
    """The proxy process of a node, and what it reads (`configuration`)."""
    path = str(names.netns_run_dir(netns) / "userproxy.json")
    return File(path, content), Process((sys.executable, "-m", PROGRAM, path))


def configuration(found: Iterable[Proxied], udp_idle: str = "") -> str:
    """userproxy.json (`nsnet.programs.userproxy.Config`); the same on every node. `udp_idle`: udpIdleTimeout."""
    time = seconds(udp_idle or "0")
    said = {"udp_idle": time} if time else {}
    return _json.encode({**said, "services": [_entry(item) for item in found]}).decode()


def _entry(item: Proxied) -> dict[str, object]:
    info = item.info
    said: dict[str, object] = {"name": info.name, "protocol": info.protocol, "port": item.proxy_port}
    more = {"node_port": info.node_port, "affinity": info.affinity_seconds, "endpoints": item.endpoints}
    return said | {name: value for name, value in more.items() if value}
