"""Packet tables: who reaches what, by which way, as which source; read by people, asked of a walk and of real packets.

A row: sender, destination, protocol → who answers, which source is seen there. Columns stand two spaces apart.

    a1      10.96.0.11:80      tcp   e1 e2 e3    =
    a1      10.96.0.11:81      tcp   unreachable      ; nftables refused  (other port)

Who answers: every one of these in turns; `e1|e2`: always the same one of these; or `refused` (by a rule), `dropped`,
`closed` (taken, and closed without a word), `unreachable` (no route or no answer on the way), or a node's name (its own
processes get it; none of them listens).
Seen: `=` the sender's own address; else names from `SEEN`. Several rows of a table may be right about the source: which
one depends on the endpoint. After `;` a mode with what it does otherwise, by upstream's design (nsnet/verify/modes.py).
In userspace mode endpoints see the node whose process asks them: `_asks` says which, so the rows need not.

A file of rows may begin with `config:` and what a KubeProxyConfiguration says.
"""

import re
from collections.abc import Iterator
from functools import cache
from ipaddress import ip_address, ip_network
from pathlib import Path

import msgspec
import yaml

from nsnet import control, manifests, names
from nsnet.model import Key, Object
from nsnet.render import render
from nsnet.state import Route, State

HERE = Path(__file__).parent
NAME = "pk"
MODES = ("iptables", "nftables", "userspace")
FILES = tuple(sorted(path.stem for path in HERE.glob("*.txt")))

ENDS = ("refused", "dropped", "unreachable", "closed")
NODES = ("node1", "node2", "node3")
PODS = ("a1", "a2", "a3", "e1", "e2", "e3", "slow")
NETNS = {
    **{node: names.node_netns(NAME, node) for node in NODES},
    **{pod: names.pod_netns(NAME, "default", pod) for pod in PODS},
    "client": names.host_netns(NAME, "client"),
}
SEEN = {
    "lo": "127.0.0.1", "node1": "172.18.0.2", "node2": "172.18.0.3", "node3": "172.18.0.4", "client": "203.0.113.2",
    **{f"cni0@node{n}": f"10.244.{n}.1" for n in (1, 2, 3)},
    **{f"flannel@node{n}": f"10.244.{n}.0" for n in (1, 2, 3)},
    "a1": "10.244.1.9", "a2": "10.244.2.9", "a3": "10.244.3.9",
    "e1": "10.244.1.20", "e2": "10.244.1.30", "e3": "10.244.2.20", "slow": "10.244.2.40",
}  # fmt: skip
HOME = {
    "a1": "node1", "e1": "node1", "e2": "node1", "api": "node1",
    "a2": "node2", "e3": "node2", "slow": "node2", "host": "node2", "a3": "node3",
}  # fmt: skip
ROUTED = {
    **dict.fromkeys(("198.51.100.0/24", "192.0.2.0/25"), "172.18.0.2"),
    "192.0.2.128/26": "172.18.0.3",
}
"""What the network around the cluster knows of external addresses: to which node they go, as BGP would tell it."""
EXTERNAL = "198.51.100."  # externalIPs; the other networks have addresses of load balancers
NODE_OF = {address: name.rpartition("@")[2] for name, address in SEEN.items() if name.rpartition("@")[2] in NODES}


class Row(msgspec.Struct, frozen=True):
    """One row as one mode has it. `one`: always the same of `who`."""

    sender: str
    to: str
    protocol: str
    who: frozenset[str]
    seen: frozenset[str]
    one: bool = False
    situation: str = ""  # a row of nsnet/verify/modes.py, where the mode has an answer of its own

    @property
    def address(self) -> str:
        return self.to.rpartition(":")[0]

    @property
    def port(self) -> int:
        return int(self.to.rpartition(":")[2])

    @property
    def sources(self) -> frozenset[str]:
        return frozenset(SEEN[self.sender if name == "=" else name] for name in self.seen)

    def __str__(self) -> str:
        return f"{self.sender} {self.to} {self.protocol}"


def rows(stem: str, mode: str) -> list[Row]:
    """The rows of a file as `mode` answers them."""
    lines = (HERE / f"{stem}.txt").read_text().splitlines()
    return [_row(line, mode) for line in lines if line and not line.startswith(("#", "config:"))]


def _row(line: str, mode: str) -> Row:
    usual, *others = (part.strip() for part in line.split(";"))
    sender, to, protocol, *answer = re.split(r"\s{2,}", usual)
    situation = ""
    for other in others:
        found = re.fullmatch(r"(\w+) (.*?)\s+\((.*)\)", other)
        assert found, f"{other!r} is not `mode answer  (situation)`"
        if found[1] == mode:
            answer, situation = re.split(r"\s{2,}", found[2]), found[3]
    who, seen = answer[0], answer[1].split() if len(answer) > 1 else []
    row = Row(
        sender, to, protocol, frozenset(re.split(r"[ |]", who)), frozenset(seen), one="|" in who, situation=situation
    )
    return _proxied(row) if mode == "userspace" else row


def _proxied(row: Row) -> Row:
    """The row where a process asks the endpoints: they see its node, under the address that faces them."""
    direct = row.address in {SEEN[pod] for pod in PODS} or "lo" in row.seen
    if direct or not row.who <= HOME.keys():
        return row
    node = _asks(row)
    seen = frozenset(_facing(node, end) for end in row.who)
    return msgspec.structs.replace(row, seen=seen, situation=row.situation or "own connection")


def _asks(row: Row) -> str:
    """Whose process: the node's whose address it is, or to which the network brings it; else the sender's own node.

    External addresses are not for pods and the node itself (userspace mode's rule): the network gets them.
    """
    home = HOME.get(row.sender, row.sender)
    routed = next((via for net, via in ROUTED.items() if ip_address(row.address) in ip_network(net)), "")
    if routed and (row.sender == "client" or row.address.startswith(EXTERNAL)):
        return NODE_OF[routed]
    return NODE_OF.get(row.address, home)


def _facing(node: str, end: str) -> str:
    if end in ("api", "host"):  # in the network of their nodes
        return node
    return f"cni0@{node}" if HOME[end] == node else f"flannel@{node}"


def text(stem: str, mode: str) -> str:
    """The topology a file of rows is about: the cluster, its mode, and what kube-proxy is told."""
    found = (HERE / "cluster.yaml").read_text()
    found = found.replace("networking: {", f"networking: {{kubeProxyMode: {mode}, ", 1)
    said = re.search(r"^config: (.*)$", (HERE / f"{stem}.txt").read_text(), re.MULTILINE)
    if said is None:
        return found
    told = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration"}
    return f"{found}\n---\n{yaml.safe_dump(told | yaml.safe_load(said[1]))}"


@cache
def objects(stem: str, mode: str) -> dict[Key, Object]:
    """The completed objects, every pod's port taken to listen."""
    loaded = manifests.load([manifests.Source("cluster.yaml", text(stem, mode).encode())])
    return control.complete(control.admit({}, loaded.objects, whole=True))


@cache
def state(stem: str, mode: str) -> State:
    """The rendered state with the routes of the network around."""
    return with_routes(render(objects(stem, mode)))


def with_routes(want: State) -> State:
    router = names.fabric_netns(NAME, "router")
    return {**want, router: want[router] | set(routes())}


def routes() -> Iterator[Route]:
    for dst, via in ROUTED.items():
        yield Route(dst, via=via, dev="nodes")
