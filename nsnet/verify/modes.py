"""What kube-proxy's modes do differently, upstream: one table, each difference with its reason. Data, and who reads it.

iptables mode is what the others are held against. A difference is a row here, meant by upstream, or it is a defect: the
packet tables and `tests/test_modes_agree.py` let only these through, and `nsnet verify --compare-modes` fails
on what no row explains. Sources: facts/KUBEPROXY.md §1, §5; Kubernetes 1.36 `pkg/proxy/nftables` (KEP-3866) and 1.25
`pkg/proxy/userspace`.
"""

import re
from collections.abc import Mapping

import msgspec

from nsnet.model import PROXY_MODES

USUAL = "iptables"
MODES = PROXY_MODES


class Situation(msgspec.Struct, frozen=True):
    """What a packet meets in iptables mode, what `instead` in another, and why that is meant."""

    usual: str
    instead: str
    reason: str


SITUATIONS: Mapping[str, Mapping[str, Situation]] = {
    "nftables": {
        "other port": Situation(
            "routed on",
            "refused",
            "the set cluster-ips knows every clusterIP: ports that no Service has are refused, not routed on",
        ),
        "unallocated": Situation(
            "routed on", "dropped", "an address of the Service range that no Service has is dropped, not routed on"
        ),
        "loopback": Situation(
            "served",
            "the node's own",
            "node ports on 127.0.0.1 need route_localnet, a known hole (CVE-2020-8558): left out on purpose",
        ),
        "other address": Situation(
            "served",
            "the node's own",
            "node ports are served on the node's primary address, or where nodePortAddresses say",
        ),
        "ranges first": Situation(
            "refused",
            "dropped",
            "source ranges are asked before all else, so they hold where there is no endpoint, too",
        ),
        "own output": Situation(
            "routed on",
            "refused",
            "what the node itself sends is asked for external addresses without endpoint, too; iptables mode asks "
            "INPUT and FORWARD alone",
        ),
    },
    "userspace": {
        "own connection": Situation(
            "the client is seen", "the node is seen", "the proxy process opens a connection of its own"
        ),
        "accepts first": Situation(
            "refused",
            "closed",
            "the proxy process takes a connection before it looks for an endpoint: closed, not refused",
        ),
        "silent process": Situation(
            "refused",
            "no answer",
            "no rule refuses a datagram: the proxy process reads it and has nobody to pass it on to",
        ),
        "no policies": Situation(
            "served as policies say",
            "served by any endpoint",
            "the proxy process knows no traffic policies, hints and source ranges: they are newer than it",
        ),
        "no fallback": Situation(
            "served by terminating endpoints",
            "closed",
            "endpoints that terminate are no endpoints: the proxy process knows ready ones alone",
        ),
        "not for pods": Situation(
            "served",
            "routed on",
            "external addresses are for who comes from outside: what pods and the node itself send to one goes where "
            "the network brings it, lest a Service take over an address of somebody else",
        ),
        "every address": Situation(
            "the node's own",
            "served",
            "the proxy process was never told nodePortAddresses and localhostNodePorts: node ports are on every "
            "address, loopback too",
        ),
        "no SCTP": Situation("served", "routed on", "the proxy process copies TCP and UDP: SCTP has no rules"),
    },
}
"""mode → situation; iptables mode has none."""


class Difference(msgspec.Struct, frozen=True):
    """Where `group` (a regular expression, as the next two) finds `usual` in iptables mode and `here` in `mode`."""

    mode: str
    group: str
    usual: str
    here: str
    situation: str
    title: str = ""  # a regular expression for the check's name


_SERVICES = "service|spread|affinity|hairpin|nodeport|outside|loadbalancer|environment|check|dns"
DIFFERENCES = (
    Difference("nftables", "modes", "out of reach|no answer", "refused", "other port", "a port that no Service has"),
    Difference("nftables", "modes", "out of reach", "no answer", "unallocated", "an address that no Service has"),
    Difference("nftables", "modes", "ok", "refused", "loopback", "a node port on loopback"),
    Difference("nftables", "modes", "ok", "refused", "other address", "a node port on the bridge's address"),
    Difference("userspace", _SERVICES, "ok, sender seen", "ok, another address seen", "own connection"),
    Difference("userspace", _SERVICES, "refused", "closed|ok", "accepts first"),
    Difference("userspace", _SERVICES, "refused", "no answer", "silent process", " UDP "),
    Difference("userspace", _SERVICES, "no answer", "ok.*|closed", "no policies"),
    Difference("userspace", _SERVICES, "ok.*", r"(ok.* \| )?ok, by others( \| ok.*)?", "no policies"),
    Difference("userspace", _SERVICES, "ok.*", "closed|no answer", "no fallback"),
)


def reason(mode: str, group: str, title: str, usual: str, here: str) -> str:
    """Why the mode differs there, as upstream meant it; empty where no row says it."""
    row = next((row for row in DIFFERENCES if _fits(row, mode, group, title, usual, here)), None)
    return SITUATIONS[mode][row.situation].reason if row else ""


def _fits(row: Difference, mode: str, group: str, title: str, usual: str, here: str) -> bool:
    same = ((row.group, group), (row.usual, usual), (row.here, here))
    matched = all(re.fullmatch(pattern, text) for pattern, text in same)
    return row.mode == mode and matched and re.search(row.title, title) is not None
