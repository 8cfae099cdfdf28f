"""What an iptables rule of kube-proxy or flannel is for, in a sentence.

A table of (chain, rule, sentence): the first row whose patterns are found speaks. `{0}`, `{1}` are the groups of the
rule's pattern; `{pod}` is who has the address in group 0. Sources: facts of kube-proxy's `syncProxyRules` and
flannel's `pkg/trafficmngr/iptables`.
"""

import re
from collections.abc import Mapping, Sequence

Row = tuple[str, str, str]
TABLE: Sequence[Row] = (
    ("^KUBE-SERVICES", r"-d (\S+)/\d+ .*--dport (\d+) -j KUBE-SV[CL]-", "to the Service's address {0}:{1}"),
    ("^KUBE-SERVICES", r"-d (\S+)/\d+ .*--dport (\d+) -j KUBE-(?:EXT|FW)-", "to the external address {0}:{1}"),
    ("^KUBE-SERVICES", r"--dst-type LOCAL -j KUBE-NODEPORTS", "to an address of this node: is it a node port?"),
    ("^KUBE-(SERVICES|EXTERNAL-SERVICES)", r"has no (?:local )?endpoints.* -j (REJECT|DROP)", "no endpoint: {0}"),
    ("^KUBE-NODEPORTS", r"--dport (\d+) -j KUBE-EXT-", "to node port {0}, on any address of this node"),
    ("^KUBE-NODEPORTS", r"--dport (\d+) .*-j ACCEPT", "health checks of the load balancer come in on {0}"),
    ("^KUBE-EXT-", r"--src-type LOCAL -j KUBE-MARK-MASQ", "from this node itself: masquerade it when it leaves"),
    ("^KUBE-EXT-", r"-j KUBE-MARK-MASQ", "came from outside: masquerade it, so that the reply passes this node again"),
    ("^KUBE-EXT-", r"-s (\S+) .*-j KUBE-SVC-", "from a pod ({0}): as if it had used the Service's address"),
    ("^KUBE-EXT-", r"-j KUBE-SV([CL])-", "then choose an endpoint"),
    ("^KUBE-FW-", r"-s (\S+) .*-j KUBE-EXT-", "from an allowed source range ({0})"),
    ("^KUBE-FW-", r"-j KUBE-EXT-", "whoever it is from"),
    ("^KUBE-FW-", r"will be dropped by KUBE-PROXY-FIREWALL", "anybody else is dropped there"),
    ("^KUBE-SV[CL]-", r"! -s (\S+) .*-j KUBE-MARK-MASQ", "not from a pod ({0}): masquerade, or the reply goes astray"),
    ("^KUBE-SV[CL]-", r"-j KUBE-MARK-MASQ", "masquerade it when it leaves"),
    ("^KUBE-SV[CL]-", r"-> (\S+?)\".*--rcheck --seconds (\d+)", "a client of the last {1} s stays with {0}{pod}"),
    ("^KUBE-SV[CL]-", r"-> (\S+?)\".*--probability ([\d.]+)", "{chance} to endpoint {0}{pod}"),
    ("^KUBE-SV[CL]-", r"-> (\S+?)\".*-j KUBE-SEP-", "what is left, to endpoint {0}{pod}"),
    ("^KUBE-SV[CL]-", r"--probability ([\d.]+)", "{chance} to this endpoint"),
    ("^KUBE-SV[CL]-", r"-j KUBE-SEP-", "what is left, to this endpoint"),
    ("^KUBE-SEP-", r"-s (\S+)/\d+ .*-j KUBE-MARK-MASQ", "{0}{pod} calls itself: masquerade, or it would answer itself"),
    ("^KUBE-SEP-", r"--to-destination (\S+)", "the destination becomes {0}{pod}"),
    ("^KUBE-MARK-MASQ", r"-j MARK --\S+ (\w+)", "mark {0} means: masquerade when it leaves (KUBE-POSTROUTING does)"),
    ("^KUBE-POSTROUTING", r"! --mark (\w+)/\w+ -j RETURN", "without the mark: leave it alone"),
    ("^KUBE-POSTROUTING", r"-j MARK --xor-mark|-j MARK --set-xmark", "take the mark away, it has done its work"),
    ("^KUBE-POSTROUTING", r"-j MASQUERADE", "the source becomes this node's address"),
    ("^KUBE-FORWARD", r"--ctstate INVALID .*-j DROP", "packets conntrack cannot place would get a reset: drop them"),
    ("^KUBE-FORWARD", r"--mark .*-j ACCEPT", "what was marked may pass through this node"),
    ("^KUBE-FORWARD", r"--ctstate RELATED,ESTABLISHED -j ACCEPT", "and so may all that belongs to a known connection"),
    ("^KUBE-FIREWALL", r"-d 127", "node ports on 127.0.0.1 are for this node only"),
    ("^KUBE-PROXY-FIREWALL", r"-j DROP", "not from the Service's source ranges"),
    ("^FLANNEL-POSTRTG", r"--mark (\w+)/\w+ .*-j RETURN", "kube-proxy marked it: it will masquerade it itself"),
    ("^FLANNEL-POSTRTG", r"! -s \S+ -d (\S+) .*-j RETURN", "from outside to the pods of this node ({0}): no NAT"),
    ("^FLANNEL-POSTRTG", r"! -s \S+ -d (\S+) .*-j MASQUERADE", "from outside to pods elsewhere: this node's address"),
    ("^FLANNEL-POSTRTG", r"-s (\S+) -d \S+ .*-j RETURN", "inside the pod network: no NAT"),
    ("^FLANNEL-POSTRTG", r"-s (\S+) ! -d 224.*-j MASQUERADE", "from a pod to the world: the node's address"),
    ("^FLANNEL-FWD", r"-(?:s|d) (\S+) .*-j ACCEPT", "pod traffic may be forwarded"),
)


def sentence(chain: str, rule: str, pods: Mapping[str, str]) -> str:
    """What the rule is for; empty where no row knows it. `pods`: address → name."""
    for where, pattern, text in TABLE:
        found = re.search(pattern, rule) if re.search(where, chain) else None
        if found:
            return text.format(*found.groups(), pod=_pod(found, pods), chance=_chance(rule))
    return ""


def _pod(found: re.Match[str], pods: Mapping[str, str]) -> str:
    address = found[1].rpartition(":")[0] or found[1] if found.groups() else ""
    name = pods.get(address.strip("[]")) or pods.get(found[1] if found.groups() else "")
    return f" ({name})" if name else ""


def _chance(rule: str) -> str:
    found = re.search(r"--probability ([\d.]+)", rule)
    share = round(1 / float(found[1])) if found and float(found[1]) else 0
    return f"1 in {share} of what is left" if share else "never"
