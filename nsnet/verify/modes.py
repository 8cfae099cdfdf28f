"""What kube-proxy's modes do differently, upstream: one table, each difference with its reason. Data, and who reads it.

iptables mode is what the others are held against. A difference is a row here, meant by upstream, or it is a defect:
`nsnet verify --compare-modes` fails on what no row explains. Reasons: facts of Kubernetes 1.36 `pkg/proxy/nftables`
(KEP-3866) and of 1.25 `pkg/proxy/userspace`.
"""

import re

import msgspec

USUAL = "iptables"
MODES = ("iptables", "nftables", "userspace")
REASONS = {
    "other ports": "the set cluster-ips knows every clusterIP: ports that no Service has are refused, not routed on",
    "unallocated": "an address of the Service range that no Service has is dropped, not routed on",
    "loopback": "node ports on 127.0.0.1 need route_localnet, a known hole (CVE-2020-8558): left out on purpose",
    "primary address": "node ports are served on the node's primary address alone",
    "ranges first": "source ranges are asked before all else, so they hold where there is no endpoint, too",
    "own connection": "the proxy process opens a connection of its own: a pod sees the node's address",
    "accepts first": "the proxy process takes a connection before it looks for an endpoint: closed, not refused",
    "silent process": "no rule refuses a datagram: the proxy process reads it and has nobody to pass it on to",
    "no policies": "the proxy process knows no traffic policies, hints and source ranges: they are newer than it",
    "no fallback": "endpoints that terminate are no endpoints: the proxy process knows ready ones alone",
}


class Difference(msgspec.Struct, frozen=True):
    """Where `group` (a regular expression, as the next two) finds `usual` in iptables mode and `here` in `mode`."""

    mode: str
    group: str
    usual: str
    here: str
    reason: str
    title: str = ""  # a regular expression for the check's name


_SERVICES = "service|spread|affinity|hairpin|nodeport|outside|environment|check|dns"
DIFFERENCES = (
    Difference("nftables", "modes", "out of reach|no answer", "refused", "other ports", "a port that no Service has"),
    Difference("nftables", "modes", "out of reach", "no answer", "unallocated", "an address that no Service has"),
    Difference("nftables", "modes", "ok", "refused", "loopback", "a node port on loopback"),
    Difference("nftables", "modes", "ok", "refused", "primary address", "a node port on the bridge's address"),
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
    return REASONS[row.reason] if row else ""


def _fits(row: Difference, mode: str, group: str, title: str, usual: str, here: str) -> bool:
    same = ((row.group, group), (row.usual, usual), (row.here, here))
    matched = all(re.fullmatch(pattern, text) for pattern, text in same)
    return row.mode == mode and matched and re.search(row.title, title) is not None
