"""A pod's hostPort, as the portmap plugin writes it: the node's port leads to the pod's.

    nat  PREROUTING, OUTPUT ─ to an address of the node ─→ CNI-HOSTPORT-DNAT ─→ CNI-DN-… (one per pod)
           CNI-DN-…: what comes from the node's own pods or from 127.0.0.1 gets a mark (CNI-HOSTPORT-SETMARK); DNAT
         POSTROUTING (first of all) ─→ CNI-HOSTPORT-MASQ: what has the mark gets the node's address

Everybody else's address the pod sees as it is. A `hostIP` limits it to that address; 127.0.0.1 works because cni0 takes
loopback addresses (route_localnet of that device alone, as the plugin sets it). Its jumps stand after kube-proxy's,
which has run when the first pod comes, so a Service's node port of that number wins.

These are iptables rules in every mode of kube-proxy: the plugin has had an nftables backend since 1.6, and iptables is
the default. No two pods of a node have one port: the scheduler sees to that (a `nodeName` in a manifest passes it by;
then the first by name has it).

Source: containernetworking/plugins `plugins/meta/portmap` (rules and their order), `pkg/utils/utils.go` (chain names).
The network's name is `cbr0`, as flannel's own CNI configuration says, and a container's id a hash of the pod's name.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from hashlib import sha256, sha512
from ipaddress import ip_interface

import msgspec

from nsnet import model
from nsnet.model import Key, family_of
from nsnet.render.view import MEMO, Node, Pod, View
from nsnet.state import Chain, Sysctl, Value

NETWORK = "cbr0"
MARK = "0x2000"  # bit 13; kube-proxy has 14
EVERY = ("", "0.0.0.0")  # noqa: S104 - a hostIP that means every address of the node
_PORTS_IN_A_RULE = 15  # what multiport takes
_LONGEST = 28  # letters of a chain's name

Jump = tuple[str, str, str]  # table, built-in chain, rule
_MASQ = '-m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ'
_DNAT = "-m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT"
JUMPS_BEFORE: tuple[Jump, ...] = (("nat", "POSTROUTING", _MASQ),)
JUMPS_AFTER: tuple[Jump, ...] = (("nat", "PREROUTING", _DNAT), ("nat", "OUTPUT", _DNAT))

_SHARED = (
    Chain(
        "nat",
        "CNI-HOSTPORT-SETMARK",
        (f'-m comment --comment "CNI portfwd masquerade mark" -j MARK --set-xmark {MARK}/{MARK}',),
    ),
    Chain("nat", "CNI-HOSTPORT-MASQ", (f"-m mark --mark {MARK}/{MARK} -j MASQUERADE",)),
)


class Mapped(msgspec.Struct, frozen=True):
    """A container port that its node's port leads to. `address`: of the node, empty for every one."""

    protocol: str  # tcp, udp or sctp
    host_port: int
    port: int
    address: str = ""


def render(view: View) -> Iterator[tuple[str, Iterable[Value]]]:
    for node in view.nodes:
        found = on_node(view, node)
        gateway = next((leg.gateway for leg in node.legs if leg.family == "ip"), "")
        if gateway:
            local = "1" if found else "0"
            yield node.netns, (Sysctl(f"net.ipv4.conf.{_as_sysctl(view.cluster.bridge)}.route_localnet", local),)
        if found:
            yield node.netns, chains(found, gateway)


def _as_sysctl(device: str) -> str:
    return device.replace(".", "/")


def jumps(view: View, node: Node) -> tuple[tuple[Jump, ...], tuple[Jump, ...]]:
    """What stands in the built-in chains before and after the jumps of others; nothing without a hostPort."""
    return (JUMPS_BEFORE, JUMPS_AFTER) if on_node(view, node) else ((), ())


def on_node(view: View, node: Node) -> dict[Pod, tuple[Mapped, ...]]:
    """The pods of a node that have host ports, by name. With hostNetwork the port is the pod's anyhow.

    IPv4 alone: a pod whose first address is IPv6 has none (control says so in an Event).
    """
    there = (pod for pod in view.pods.get(node.name, ()) if pod.device and family_of(pod.ip) == "ip")
    found = {pod: _mapped(view.objects, pod) for pod in there}
    return {pod: ports for pod, ports in found.items() if ports}


def _mapped(objects: model.Objects, pod: Pod) -> tuple[Mapped, ...]:
    obj = objects[Key("Pod", pod.namespace, pod.name)]
    assert isinstance(obj, model.Pod)
    return tuple(_port(item) for item in model.container_ports(obj) if item.hostPort and ":" not in item.hostIP)


def _port(item: model.ContainerPort) -> Mapped:
    address = "" if item.hostIP in EVERY else item.hostIP
    return Mapped(item.protocol.lower(), item.hostPort or 0, item.containerPort, address)


def udp(objects: model.Objects) -> dict[str, dict[tuple[str, int], frozenset[str]]]:
    """Node → its UDP host ports, as ("", port), and the `ip:port` of the pods that may answer there."""
    found: dict[str, dict[tuple[str, int], frozenset[str]]] = {}
    for pod in model.of(objects, model.Pod):
        for item in model.container_ports(pod) if pod.status.podIP and not pod.spec.hostNetwork else ():
            if item.hostPort and item.protocol == "UDP" and pod.status.phase not in model.ENDED:
                ports = found.setdefault(pod.spec.nodeName, {})
                ends = frozenset({f"{pod.status.podIP}:{item.containerPort}"})
                ports["", item.hostPort] = ports.get(("", item.hostPort), frozenset()) | ends
    return found


# --- chains -----------------------------------------------------------------------------------------------------------


def chains(found: Mapping[Pod, tuple[Mapped, ...]], gateway: str) -> tuple[Chain, ...]:
    """Every chain of a node, without the built-in ones. `gateway`: the bridge's address, `10.244.1.1/24`."""
    subnet = str(ip_interface(gateway).network)
    entries = [rule for pod, ports in found.items() for rule in _entries(pod, ports)]
    own = (_dnat(pod, ports, subnet) for pod, ports in found.items())
    return (*_SHARED, Chain("nat", "CNI-HOSTPORT-DNAT", tuple(entries)), *own)


@lru_cache(maxsize=MEMO)
def chain(pod: Pod) -> str:
    """`CNI-DN-…`: the plugin hashes the network's name and the container's id."""
    return f"CNI-DN-{sha512((NETWORK + container(pod)).encode()).hexdigest()}"[:_LONGEST]


def container(pod: Pod) -> str:
    """64 hex digits, as a runtime's id of a sandbox has them."""
    return sha256(f"{pod.namespace}/{pod.name}".encode()).hexdigest()


def _entries(pod: Pod, ports: tuple[Mapped, ...]) -> Iterator[str]:
    """Into the pod's chain: a rule per protocol and 15 ports."""
    comment = rf'-m comment --comment "dnat name: \"{NETWORK}\" id: \"{container(pod)}\""'
    for protocol in sorted({item.protocol for item in ports}):
        numbers = [str(item.host_port) for item in ports if item.protocol == protocol]
        for first in range(0, len(numbers), _PORTS_IN_A_RULE):
            listed = ",".join(numbers[first : first + _PORTS_IN_A_RULE])
            yield f"-p {protocol} {comment} -m multiport --dports {listed} -j {chain(pod)}"


def _dnat(pod: Pod, ports: tuple[Mapped, ...], subnet: str) -> Chain:
    rules = []
    for item in ports:
        to = f"-d {item.address}/32 " if item.address else ""
        matches = f"{to}-p {item.protocol} -m {item.protocol} --dport {item.host_port}"
        rules += [f"-s {source} {matches} -j CNI-HOSTPORT-SETMARK" for source in (subnet, "127.0.0.1/32")]
        rules.append(f"{matches} -j DNAT --to-destination {pod.ip}:{item.port}")
    return Chain("nat", chain(pod), tuple(rules))
