"""NetworkPolicy in iptables and ipset, for kube-proxy's iptables and userspace modes, as `iptables-save` prints it.

Chains and sets are spelled as kube-router spells them (`pkg/controllers/netpol`: KUBE-ROUTER-FORWARD and -INPUT,
KUBE-POD-FW-…, KUBE-NWPLCY-…, KUBE-SRC-… and KUBE-DST-…, each with 16 characters of a hash; `names.py`).

    FORWARD ─→ KUBE-ROUTER-FORWARD ─ replies ────→ RETURN
    INPUT ───→ KUBE-ROUTER-INPUT    ─ -s POD ─→ KUBE-POD-FW-… (egress) ─ -m set: peers ─→ KUBE-NWPLCY-… ─ ports ─→ MARK
                                     ─ -d POD ─→ KUBE-POD-FW-… (ingress)   marked? RETURN · after the last: DROP

Two differences, with their reasons. A pod has a chain for each direction, because a packet between two pods has to pass
both: what is let through returns, and meets the other pod's chain and whatever else stands in FORWARD; nothing here
accepts. And the peers of a policy's rule are asked in the pod's chain, before the jump: iptables-nft asks for ports and
comments before sets wherever they stand in a rule, which takes twice as long as a set alone. Where a pod has more than
16 such rules they stand in chains of 16, and a set of all peers of such a chain says who need not go there: a new
connection through 200 policies of one pod takes 1.08 times as long as through none (Linux 6.18; 2.0 with a jump each).

The mark says in a pod's chain that a rule matched; each pod's chain clears it first. It is bit 16, as kube-router's,
and the next one where kube-proxy was told to mark with that.

INPUT knows egress alone: a pod's way to its own node. OUTPUT has no chain, since all it could say is that a node
reaches its own pods, always (rule 16).
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

from nsnet import names
from nsnet.model import Family
from nsnet.render.policy import ALL_PORTS, Direction, Guard, Isolated, Pass, Ports, Side
from nsnet.render.ranges import networks
from nsnet.render.view import MEMO
from nsnet.state import Chain, IpSet, Value

FORWARD, INPUT = "KUBE-ROUTER-FORWARD", "KUBE-ROUTER-INPUT"
_COMMENT = '-m comment --comment "network policies"'
JUMPS: tuple[tuple[str, str, str], ...] = (
    ("filter", "INPUT", f"{_COMMENT} -j {INPUT}"),
    ("filter", "FORWARD", f"{_COMMENT} -j {FORWARD}"),
)
"""Before kube-proxy's and flanneld's, which accept."""

LONGEST = 255  # characters of a comment
AT_ONCE = 16  # rules of policies in one chain
_SIDES: dict[Direction, str] = {"ingress": "src", "egress": "dst"}  # where the peer stands
_END: dict[Direction, tuple[str, str]] = {"ingress": ("-d", "-s"), "egress": ("-s", "-d")}  # the pod's end, the other
_BITS: dict[Family, str] = {"ip": "32", "ip6": "128"}
_INET: dict[Family, Literal["inet", "inet6"]] = {"ip": "inet", "ip6": "inet6"}


def mark(masquerade_bit: int) -> str:
    """What a packet is marked with that a policy lets through; not what kube-proxy masquerades by."""
    return "0x20000" if masquerade_bit == 16 else "0x10000"


def values(guard: Guard, bit: str, *, strict: bool = False, family: Family = "ip") -> Iterator[Iterable[Value]]:
    """Sets and chains of a node; `bit` as `mark` says. `strict`: what no connection is known of is none of old."""
    named = {(side.policy, side.direction): side for side in guard.sides}
    yield _dispatch(guard.isolated, strict, family)
    for side in guard.sides:
        yield _side(side, bit, family)
    for pod in guard.isolated:
        yield _firewall(pod, tuple(named[policy, pod.direction] for policy in pod.policies), bit, family)


def _said(comment: str) -> str:
    return f'-m comment --comment "{comment}"'


# --- the way in -------------------------------------------------------------------------------------------------------

_REPLIES = '-m comment --comment "replies, and what belongs to a connection" -m conntrack --ctstate RELATED,ESTABLISHED'
_KNOWN: dict[Family, str] = {
    "ip": _REPLIES,
    "ip6": f"{_REPLIES},UNTRACKED",  # neighbour discovery is no connection: a pod without it has no neighbours
}
_STRAY = (
    '-p tcp -m comment --comment "of no connection: it was ended by a policy" -m conntrack --ctstate NEW '
    "-m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j DROP"
)


@lru_cache(maxsize=1024)
def _dispatch(isolated: tuple[Isolated, ...], strict: bool, family: Family) -> tuple[Chain, Chain]:
    """Egress before ingress; a packet that one pod's chain lets through goes on to the other's."""
    head = (f"{_KNOWN[family]} -j RETURN", *((_STRAY,) if strict else ()))
    out, into = ([_entered(pod, family) for pod in isolated if pod.direction == way] for way in ("egress", "ingress"))
    forward = Chain("filter", FORWARD, (*head, *out, *into), family=family)
    return forward, Chain("filter", INPUT, (*head, *out), family=family)


def _entered(pod: Isolated, family: Family) -> str:
    here, _ = _END[pod.direction]
    chain = names.pod_firewall(pod.pod, pod.direction)
    return f"{here} {pod.ip}/{_BITS[family]} {_said(f'{pod.direction} of {pod.pod}')} -j {chain}"


# --- a pod ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=MEMO)
def _firewall(pod: Isolated, sides: tuple[Side, ...], bit: str, family: Family) -> tuple[Value, ...]:
    _, other = _END[pod.direction]
    rules = [
        f"{other} {pod.ip}/{_BITS[family]} {_said(f'itself: {pod.pod}')} -j RETURN",
        f"-j MARK --set-xmark 0x0/{bit}",
    ]
    jumps = [(side, one) for side in sides for one in side.passes]
    few = [(side, one) for side, one in jumps if one.pods is None or len(jumps) <= AT_ONCE]
    many = [(side, one) for side, one in jumps if one.pods is not None and len(jumps) > AT_ONCE]
    rules += [_jump(side, one) for side, one in few]
    found: list[Value] = []
    for start in range(0, len(many), AT_ONCE):
        several = _Several(tuple(many[start : start + AT_ONCE]), pod.direction)
        rules.append(several.jump)
        found += several.values(_INET[family], family)
    rules += [f"-m mark --mark {bit}/{bit} -j RETURN", f"{_said(dropped(pod))} -j DROP"]
    return Chain("filter", names.pod_firewall(pod.pod, pod.direction), tuple(rules), family=family), *found


class _Several(NamedTuple):
    """Rules of policies that share a chain, and a set of all that is a peer of one of them."""

    rules: tuple[tuple[Side, Pass], ...]
    direction: Direction

    @property
    def text(self) -> str:
        return " ".join(_chain(side, one) for side, one in self.rules)

    @property
    def chain(self) -> str:
        return names.policy_chain("", self.direction, self.text, "several")

    @property
    def set(self) -> str:
        return names.policy_set("", self.direction, self.text, "several", self.rules[0][0].family)

    @property
    def jump(self) -> str:
        return f"-m set --match-set {self.set} {_SIDES[self.direction]} -j {self.chain}"

    def values(self, inet: Literal["inet", "inet6"], family: Family) -> tuple[Value, ...]:
        peers = frozenset[str]().union(*(one.pods or () for _, one in self.rules))
        rules = tuple(_jump(side, one) for side, one in self.rules)
        return IpSet(self.set, "hash:ip", peers, inet), Chain("filter", self.chain, rules, family=family)


def dropped(pod: Isolated, longest: int = LONGEST) -> str:
    """What the last rule says: which policies isolate the pod; as many as a comment holds."""
    text = f"{pod.direction} of {pod.pod} that no policy allows: {', '.join(pod.policies)}"
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


# --- a policy ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=MEMO)
def _jump(side: Side, one: Pass) -> str:
    """In the chain of a pod: who is a peer is asked whether the port is one."""
    return " ".join([*_peers(side, one), "-j", _chain(side, one)])


def _peers(side: Side, one: Pass) -> Iterator[str]:
    end = _SIDES[side.direction]
    if one.pods is not None:
        yield f"-m set --match-set {_set(side, one, 'pods')} {end}"
    if one.blocks is not None:
        yield f"-m set --match-set {_set(side, one, 'blocks')} {end}"
    if one.targets is not None:
        yield f"-m set --match-set {_set(side, one, 'ports')} dst,dst"


def _chain(side: Side, one: Pass) -> str:
    return names.policy_chain(side.policy, side.direction, one.text, _what(one))


def _what(one: Pass) -> str:
    """What its chain is called after, beside the rule's text."""
    kinds = (("pods", one.pods), ("blocks", one.blocks), ("ports", one.targets), ("numbers", one.ports))
    return "+".join(name for name, said in kinds if said is not None)


@lru_cache(maxsize=MEMO)
def _side(side: Side, bit: str, family: Family) -> frozenset[Value]:
    found: set[Value] = set()
    for one in side.passes:
        comment = _said(f"policy {side.policy} {side.direction}[{one.rule}]")
        rules = tuple(_marked(port, comment, bit) for port in one.ports or (None,))
        found.add(Chain("filter", _chain(side, one), rules, family=family))
        found.update(_sets(side, one, _INET[family]))
    return frozenset(found)


def _marked(port: Ports | None, comment: str, bit: str) -> str:
    """A range of ports; None: all ports of all protocols."""
    target = f"-j MARK --set-xmark {bit}/{bit}"
    if port is None:
        return f"{comment} {target}"
    if (port.first, port.last) == ALL_PORTS:
        return f"-p {port.protocol} {comment} {target}"
    span = f"{port.first}:{port.last}" if port.last != port.first else f"{port.first}"
    return f"-p {port.protocol} -m {port.protocol} --dport {span} {comment} {target}"


def _set(side: Side, one: Pass, what: str) -> str:
    return names.policy_set(side.policy, side.direction, one.text, what, side.family)


def _sets(side: Side, one: Pass, inet: Literal["inet", "inet6"]) -> Iterator[IpSet]:
    if one.pods is not None:
        yield IpSet(_set(side, one, "pods"), "hash:ip", one.pods, inet)
    if one.blocks is not None:
        yield IpSet(_set(side, one, "blocks"), "hash:net", frozenset(networks(one.blocks)), inet)
    if one.targets is not None:
        yield IpSet(_set(side, one, "ports"), "hash:ip,port", one.targets, inet)
