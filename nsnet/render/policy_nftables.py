"""NetworkPolicy in nftables, for kube-proxy's nftables mode: a table of its own, `ip nsnet-policy`.

No upstream component has a layout for this that others would recognise (kube-network-policies asks a program for each
new connection by nfqueue), so the table bears our name; its chains and sets are named as kube-proxy names its own.

    egress-forward, egress-input   hook forward and input, priority -2: ip saddr vmap @egress-pods  ─goto→ pod-egress-…
    ingress-forward                hook forward, priority -1:           ip daddr vmap @ingress-pods ─goto→ pod-ingress-…
    pod-…     to itself: accept · of each rule of each of its policies: ip saddr @pods-… meta l4proto tcp th dport 80
              accept · drop

`accept` ends the base chain it began in and nothing else: what its sender's policies let out still meets the receiver's
chain, one priority later. So no mark is needed. Both stand after DNAT (-100) and before kube-proxy's own filters (0),
as the chains of iptables mode do. A packet asks one map for its pod, however many pods are isolated.

One `nft -f` is one transaction, so elements change one by one and a packet still meets no set that is half written.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from nsnet import names
from nsnet.model import Family
from nsnet.render.policy import ALL_PORTS, Guard, Isolated, Pass, Ports, Side
from nsnet.render.policy_iptables import dropped
from nsnet.render.view import MEMO
from nsnet.state import Nft, NftChain, NftElement, NftSet, NftTable, nft_interval

TABLE = names.POLICY_TABLE
LONGEST = 120  # characters of a comment


class _Words(NamedTuple):
    ip: str
    addr: str


_WORDS: dict[Family, _Words] = {"ip": _Words("ip", "ipv4_addr"), "ip6": _Words("ip6", "ipv6_addr")}
_REPLIES = 'accept comment "replies, and what belongs to a connection"'
_KNOWN: dict[Family, str] = {
    "ip": f"ct state established,related {_REPLIES}",
    "ip6": f"ct state established,related,untracked {_REPLIES}",  # neighbour discovery is no connection
}
_STRAY = "meta l4proto tcp ct state new tcp flags & (fin | syn | rst | ack) != syn drop"


def values(guard: Guard, *, strict: bool = False, family: Family = "ip") -> Iterator[Iterable[Nft]]:
    """Everything of a node's table. `strict`: what no connection is known of is none of old."""
    named = {(side.policy, side.direction): side for side in guard.sides}
    yield _base(strict, family)
    for side in guard.sides:
        yield _sets(side, family)
    for pod in guard.isolated:
        yield _pod(pod, tuple(named[policy, pod.direction] for policy in pod.policies), family)


@lru_cache(maxsize=8)
def _base(strict: bool, family: Family) -> tuple[Nft, ...]:
    words = _WORDS[family]
    head = (_KNOWN[family], _STRAY) if strict else (_KNOWN[family],)
    out, into = f"{words.ip} saddr vmap @egress-pods", f"{words.ip} daddr vmap @ingress-pods"
    hook = "type filter hook {} priority {}; policy accept;"
    return (
        NftTable(TABLE, "network policies", family),
        NftSet(TABLE, "egress-pods", f"{words.addr} : verdict", comment="pods whose egress is isolated", family=family),
        NftSet(
            TABLE, "ingress-pods", f"{words.addr} : verdict", comment="pods whose ingress is isolated", family=family
        ),
        NftChain(TABLE, "egress-forward", (*head, out), hook.format("forward", -2), family=family),
        NftChain(TABLE, "egress-input", (*head, out), hook.format("input", -2), family=family),
        NftChain(TABLE, "ingress-forward", (*head, into), hook.format("forward", -1), family=family),
    )


# --- a pod ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=MEMO)
def _pod(pod: Isolated, sides: tuple[Side, ...], family: Family) -> tuple[Nft, ...]:
    other = "daddr" if pod.direction == "egress" else "saddr"
    chain = names.nft_policy(f"pod-{pod.direction}", pod.pod)
    rules = (
        f'{_WORDS[family].ip} {other} {pod.ip} accept comment "{_short(f"itself: {pod.pod}")}"',
        *(rule for side in sides for rule in _lines(side, family)),
        f'drop comment "{dropped(pod, LONGEST)}"',
    )
    element = NftElement(TABLE, f"{pod.direction}-pods", pod.ip, f"goto {chain}", family=family)
    return NftChain(TABLE, chain, rules, family=family), element


# --- a policy ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=MEMO)
def _lines(side: Side, family: Family) -> tuple[str, ...]:
    return tuple(line for one in side.passes for line in _pass(side, one, family))


def _pass(side: Side, one: Pass, family: Family) -> Iterator[str]:
    """A line for each range of ports; without any, one for all ports of all protocols."""
    ip, end = _WORDS[family].ip, "saddr" if side.direction == "ingress" else "daddr"
    matches = [
        f"{ip} {end} @{_set(side, one, what)}"
        for what, said in (("pods", one.pods), ("blocks", one.blocks))
        if said is not None
    ]
    if one.targets is not None:
        matches.append(f"{ip} daddr . meta l4proto . th dport @{_set(side, one, 'ports')}")
    comment = f'comment "{_comment(side, one)}"'
    for port in one.ports or (None,):
        yield " ".join([*matches, *_ports(port), "accept", comment])


def _comment(side: Side, one: Pass) -> str:
    return _short(f"policy {side.policy} {side.direction}[{one.rule}]")


def _short(text: str) -> str:
    """A long name loses its middle: what the rule is stands at the end."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 40]}...{text[-37:]}"


def _ports(port: Ports | None) -> Iterator[str]:
    if port is None:
        return
    yield f"meta l4proto {port.protocol}"
    if (port.first, port.last) != ALL_PORTS:
        yield f"th dport {port.first}" + (f"-{port.last}" if port.last != port.first else "")


def _set(side: Side, one: Pass, what: str) -> str:
    name = names.policy_set(side.policy, side.direction, one.text, what).rpartition("-")[2].lower()
    return names.nft_policy(what, side.policy, side.direction, name)


@lru_cache(maxsize=MEMO)
def _sets(side: Side, family: Family) -> frozenset[Nft]:
    return frozenset(found for one in side.passes for found in _sets_of(side, one, family))


def _sets_of(side: Side, one: Pass, family: Family) -> Iterator[Nft]:
    addr = _WORDS[family].addr
    comment = _comment(side, one)
    if one.pods is not None:
        name = _set(side, one, "pods")
        yield NftSet(TABLE, name, addr, comment=comment, family=family)
        yield from (NftElement(TABLE, name, ip, family=family) for ip in one.pods)
    if one.blocks is not None:
        name = _set(side, one, "blocks")
        yield NftSet(TABLE, name, addr, ("interval",), comment=comment, family=family)
        yield from (NftElement(TABLE, name, nft_interval(*ends), family=family) for ends in one.blocks)
    if one.targets is not None:
        name = _set(side, one, "ports")
        yield NftSet(TABLE, name, f"{addr} . inet_proto . inet_service", comment=comment, family=family)
        for target in one.targets:
            ip, _, port = target.rpartition(",")
            yield NftElement(TABLE, name, f"{ip} . {port.replace(':', ' . ')}", family=family)
