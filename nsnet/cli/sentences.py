"""What a rule of kube-proxy (iptables or nftables mode), flannel or the load balancer is for, in a sentence.

A table of (chain, rule, sentence): the first row whose patterns are found speaks. `{0}`, `{1}` are the groups of the
rule's pattern; `{pod}` is who has the address in group 0, `{ways}` all endpoints that an nftables rule chooses from.
Elements of nftables' sets and maps have `set NAME` and `map NAME` for a chain. Sources: facts of kube-proxy's
`syncProxyRules` (all modes), the
portmap plugin and flannel's `pkg/trafficmngr/iptables`.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache

from nsnet.state import socket_address

Row = tuple[str, str, str]
TABLE: Sequence[Row] = (
    ("^(?:INPUT|OUTPUT)$", r"-j KUBE-FIREWALL$", "does it come from outside for 127.0.0.0/8?"),
    ("^[A-Z]+$", r"-j KUBE-PROXY-FIREWALL$", "was it for a load balancer's address, and in none of its source ranges?"),
    ("^INPUT$", r"-j KUBE-NODEPORTS$", "is it a health check of the load balancer?"),
    ("^[A-Z]+$", r"-j KUBE-EXTERNAL-SERVICES$", "is it for an external address or node port without endpoint?"),
    ("^[A-Z]+$", r"--ctstate NEW .*-j KUBE-SERVICES$", "is it for a Service without endpoint?"),
    ("^(?:PREROUTING|OUTPUT)$", r"-j KUBE-SERVICES$", "is it for a Service?"),
    ("^FORWARD$", r"-j KUBE-FORWARD$", "does kube-proxy let it pass?"),
    ("^POSTROUTING$", r"-j KUBE-POSTROUTING$", "shall it leave with this node's address?"),
    ("^(?:INPUT|FORWARD)$", r"-j KUBE-ROUTER-", "does a network policy close the way?"),
    ("^KUBE-ROUTER-", r"--tcp-flags", "of a connection that a policy has ended: dropped"),
    ("^KUBE-ROUTER-", r"--ctstate RELATED,ESTABLISHED", "of a connection that was let through: nobody asks again"),
    ("^KUBE-ROUTER-", r'"egress of (\S+)" -j', "from {0}, which policies select: may this leave it?"),
    ("^KUBE-ROUTER-", r'"ingress of (\S+)" -j', "to {0}, which policies select: may this reach it?"),
    ("^KUBE-POD-FW-", r'"itself: (\S+)"', "{0} always reaches itself"),
    ("^KUBE-POD-FW-", r"--set-xmark 0x0/", "so far nothing lets it pass"),
    ("^KUBE-POD-FW-", r"--match-set \S+ dst,dst -j", "to a pod's port that a rule names: that rule lets it pass"),
    ("^KUBE-(?:POD-FW|NWPLCY)-", r"--match-set (\S+) \w+ -j", "from or to one of {0}, a rule's peers: on its ports?"),
    ("^KUBE-POD-FW-", r"^-j KUBE-NWPLCY-", "a rule for everybody: on its ports?"),
    ("^KUBE-POD-FW-", r"--mark \S+ -j RETURN", "a rule lets it pass"),
    ("^KUBE-POD-FW-", r'that no policy allows: (.+)" -j DROP', "no rule of {0} lets it pass: dropped"),
    ("^KUBE-NWPLCY-", r'--dport (\S+) .*"policy (\S+) (\S+)"', "port {0}: NetworkPolicy {1}, {2}, lets it pass"),
    ("^KUBE-NWPLCY-", r'"policy (\S+) (\S+)"', "NetworkPolicy {0}, {1}, lets it pass"),
    ("^FORWARD$", r"-j FLANNEL-FWD$", "is it pod traffic?"),
    ("^POSTROUTING$", r"-j FLANNEL-POSTRTG$", "does it leave the pod network, or come into it?"),
    ("^KUBE-SERVICES", r"-d (\S+)/\d+ .*-j KUBE-NODEPORTS$", "to {0}, where node ports are served: is it one?"),
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
    ("^PREROUTING", r"-j KUBE-PORTALS-CONTAINER", "from pods and from outside: is it for a Service?"),
    ("^OUTPUT", r"-j KUBE-PORTALS-HOST", "from the node itself: is it for a Service?"),
    ("^(?:PREROUTING|OUTPUT)", r"-j KUBE-NODEPORT-", "to an address of this node: is it a node port?"),
    ("^KUBE-PORTALS-CONTAINER", r"physdev .*--to-ports (\d+)", "not from a pod, to that external address: as below"),
    ("^KUBE-PORTALS-CONTAINER", r"LOCAL .*--to-ports (\d+)", "an external address that is this node's own: port {0}"),
    (
        "^KUBE-PORTALS-CONTAINER",
        r"-d (\S+)/\d+ .*--dport (\d+) .*--to-ports (\d+)",
        "to the Service's address {0}:{1}: to the proxy process on port {2}, which picks the endpoint",
    ),
    (
        "^KUBE-PORTALS-HOST",
        r"-d (\S+)/\d+ .*--dport (\d+) .*--to-destination (\S+)",
        "the same from this node itself: to the proxy process at {2}",
    ),
    (
        "^KUBE-NODEPORT-CONTAINER",
        r"--dport (\d+) .*--to-ports (\d+)",
        "to node port {0}, on any address of this node: to the proxy process on port {1}",
    ),
    ("^KUBE-NODEPORT-HOST", r"--dport (\d+) .*--to-destination (\S+)", "from this node itself to node port {0}"),
    ("^INPUT$", r"-j KUBE-NODEPORT-NON-LOCAL", "is it for a proxy port? Then it may come in, whatever the policy"),
    ("^KUBE-NODEPORT-NON-LOCAL", r"--dport (\d+) .*-j ACCEPT", "new connections may come in to proxy port {0}"),
    ("^(?:PREROUTING|OUTPUT)", r"-j CNI-HOSTPORT-DNAT", "to an address of this node: is it a pod's hostPort?"),
    ("^POSTROUTING", r"-j CNI-HOSTPORT-MASQ", "shall what came by a hostPort leave with this node's address?"),
    ("^CNI-HOSTPORT-DNAT", r"--dports (\S+) ", "host port {0} of one pod"),
    ("^CNI-HOSTPORT-SETMARK", r"-j MARK", "mark it: CNI-HOSTPORT-MASQ gives it the node's address"),
    ("^CNI-HOSTPORT-MASQ", r"-j MASQUERADE", "the source becomes this node's address"),
    ("^CNI-DN-", r"-s 127.0.0.1/32 .*-j CNI-HOSTPORT-SETMARK", "from 127.0.0.1: the pod could not answer that"),
    ("^CNI-DN-", r"-s (\S+) .*-j CNI-HOSTPORT-SETMARK", "from a pod of this node ({0}): the answer must pass here"),
    ("^CNI-DN-", r"--dport (\d+) -j DNAT --to-destination (\S+)", "host port {0} is {1}"),
    ("^FLANNEL-POSTRTG", r"--mark (\w+)/\w+ .*-j RETURN", "kube-proxy marked it: it will masquerade it itself"),
    ("^FLANNEL-POSTRTG", r"! -s \S+ -d (\S+) .*-j RETURN", "from outside to the pods of this node ({0}): no NAT"),
    ("^FLANNEL-POSTRTG", r"! -s \S+ -d (\S+) .*-j MASQUERADE", "from outside to pods elsewhere: this node's address"),
    ("^FLANNEL-POSTRTG", r"-s (\S+) -d \S+ .*-j RETURN", "inside the pod network: no NAT"),
    ("^FLANNEL-POSTRTG", r"-s (\S+) ! -d (?:224|ff00).*-j MASQUERADE", "from a pod to the world: the node's address"),
    ("^FLANNEL-FWD", r"-(?:s|d) (\S+) .*-j ACCEPT", "pod traffic may be forwarded"),
    (
        "^LB-SERVICES",
        r"-s (\S+) -d (\S+)/32 .*--dport (\d+) ",
        "to {1}:{2}, from an allowed range ({0})",
    ),
    ("^LB-SERVICES", r"-d (\S+)/32 .*--dport (\d+) ", "to the balanced address {0}:{1}"),
    ("^LB-SVC-", r"--cluster-total-nodes .*--to-destination (\S+)", "if the client's hash says so, to {0}{pod}"),
    ("^LB-SVC-", r"--probability .*--to-destination (\S+)", "{chance} to {0}{pod}"),
    ("^LB-SVC-", r"--to-destination (\S+)", "what is left, to {0}{pod}"),
    ("^LB-POSTROUTING", r"-s (\S+) -d", "client and node are both in {0}: the node would answer past the balancer"),
    ("^LB-POSTROUTING", r"snat is on", "snat: the node sees the balancer as the client"),
    ("^LB-POSTROUTING", r"--src-type LOCAL", "the balancer's own connections come from its address in that network"),
    ("^LB-INPUT", r"no node to send to", "no node takes it: refused"),
    ("^LB-INPUT", r"no node port", "there is no node port to send to: refused"),
    ("^LB-INPUT", r"takes other sources only", "not from the Service's source ranges"),
    ("^LB-INPUT", r"no Service has this port", "no Service has this port: refused"),
    ("^(?:egress|ingress)-", r"^ct state established", "of a connection that was let through: nobody asks again"),
    ("^(?:egress|ingress)-", r"tcp flags", "of a connection that a policy has ended: dropped"),
    ("^egress-", r"vmap @egress-pods", "from a pod that policies select: may this leave it?"),
    ("^ingress-", r"vmap @ingress-pods", "to a pod that policies select: may this reach it?"),
    ("^pod-", r'comment "itself: (\S+)"', "{0} always reaches itself"),
    ("^pod-", r'that no policy allows: (.+)"', "no rule of {0} lets it pass: dropped"),
    (
        "^pod-",
        r'th dport (\d\S*) accept comment "policy (\S+) (\S+)"',
        "port {0}: NetworkPolicy {1}, {2}, lets it pass",
    ),
    ("^pod-", r'accept comment "policy (\S+) (\S+)"', "NetworkPolicy {0}, {1}, lets it pass"),
    ("^map service-ips", r"^(\S+) \. (\w+) \. (\d+) : goto (?:service|local)-", "to the Service's address {0}:{2}"),
    ("^map service-ips", r"^(\S+) \. (\w+) \. (\d+) : goto external-", "to the external address {0}:{2}"),
    ("^map service-nodeports", r"^\w+ \. (\d+) : goto", "to node port {0}, on an address that serves node ports"),
    ("^map no-endpoint-", r": goto reject-chain", "no endpoint: refused"),
    ("^map no-endpoint-", r": drop", "no endpoint on this node: dropped"),
    ("^map firewall-ips", r"^(\S+) \. .*: goto", "to {0}: the source ranges are asked first"),
    ("^set cluster-ips", r"^(\S+)", "a Service has {0}: on ports that are not its own it is refused"),
    ("^set hairpin-connections", r"^(\S+) \. ", "{0}{pod} calls itself: masquerade, or it would answer itself"),
    ("^set nodeport-ips", r"^(\S+)", "node ports are served on {0}"),
    ("^set affinity-", r"timeout (\d+)s", "who came to this endpoint, for {0} s after each new connection"),
    ("^(?:service|local)-", r"numgen random mod 1 ", "to the only endpoint {ways}"),
    ("^(?:service|local)-", r"numgen random mod (\d+) ", "by chance to one of {0}: {ways}"),
    ("^(?:service|local)-", r"@affinity-.*__(\S+)/(\d+) goto", "who came to {0}:{1}{pod} lately stays with it"),
    ("^endpoint-", r"^update @affinity-", "remember who came"),
    ("^endpoint-", r"dnat to (\S+)", "the destination becomes {0}{pod}"),
    ("^external-", r"saddr (\S+) goto service-", "from a pod ({0}): as if it had used the Service's address"),
    ("^external-", r"iifname (\S+) goto service-", "from a pod ({0}): as if it had used the Service's address"),
    ("^external-", r"^fib saddr type local meta mark set", "from this node itself: masquerade it when it leaves"),
    ("^external-", r"^fib saddr type local goto", "and let it choose from all endpoints"),
    ("^external-", r"meta mark set", "came from outside: masquerade it, so that the reply passes this node again"),
    ("^external-", r"^goto local-", "then choose an endpoint on this node"),
    ("^external-", r"^goto service-", "then choose an endpoint"),
    ("^firewall-", r"saddr != (.+) drop", "not from the Service's source ranges ({0}): dropped"),
    ("^(?:nat-prerouting|nat-output)$", r"jump services", "is it for a Service?"),
    ("^nat-postrouting$", r"jump masquerading", "shall it leave with this node's address?"),
    ("^filter-.*-pre-dnat$", r"jump firewall-check", "before the destination changes: may it come from where it does?"),
    ("^filter-", r"jump nodeport-endpoints-check", "is it for a node port without endpoint?"),
    ("^filter-", r"jump service-endpoints-check", "is it for a Service without endpoint?"),
    ("^filter-", r"jump cluster-ips-check", "is it for a port that no Service has?"),
    ("^firewall-check$", r"vmap @firewall-ips", "addresses that have source ranges"),
    ("^service-endpoints-check$", r"vmap @no-endpoint-services", "Services that have no endpoint"),
    ("^nodeport-endpoints-check$", r"vmap @no-endpoint-nodeports", "node ports that have no endpoint"),
    ("^cluster-ips-check$", r"@cluster-ips reject", "a Service's address, but none of its ports: refused"),
    ("^cluster-ips-check$", r"daddr (.+) drop", "an address for Services ({0}) that no Service has: dropped"),
    ("^services$", r"saddr != (\S+) meta mark set", "not from a pod ({0}): masquerade, or the reply goes astray"),
    ("^services$", r"@cluster-ips .*meta mark set", "masquerade it when it leaves"),
    ("^services$", r"vmap @service-ips", "to an address of a Service: on to its chain"),
    ("^services$", r"vmap @service-nodeports", "to an address of this node: is it a node port?"),
    ("^masquerading$", r"meta mark & \w+", "marked: take the mark away, the source becomes this node's address"),
    ("^masquerading$", r"@hairpin-connections", "a pod that reached itself: the source becomes this node's address"),
    ("^reject-chain$", r"^reject", "refused"),
)


def sentence(chain: str, rule: str, pods: Mapping[str, str]) -> str:
    """What the rule is for; empty where no row knows it. `pods`: address → name."""
    for pattern, text in _rows(chain):
        found = re.search(pattern, rule)
        if found:
            words = _bracketed(text, found)
            return text.format(*words, pod=_pod(found, pods), chance=_chance(rule), ways=_ways(rule, pods))
    return ""


@cache
def _rows(chain: str) -> list[tuple[str, str]]:
    """What may stand in a chain of that name."""
    return [(pattern, text) for where, pattern, text in TABLE if _is_there(where, chain)]


_BEGINNING = re.compile(r"\^([\w-]+)")


def _is_there(where: str, chain: str) -> bool:
    """As re.search has it; most rows say how the name begins, and to compile a pattern takes longer than to look."""
    begins = _BEGINNING.fullmatch(where)
    return chain.startswith(begins[1]) if begins else re.search(where, chain) is not None


def _bracketed(text: str, found: re.Match[str]) -> list[str]:
    """An IPv6 address that a port follows stands in brackets."""
    words = [word or "" for word in found.groups()]
    return [f"[{word}]" if ":" in word and f"{{{at}}}:" in text else word for at, word in enumerate(words)]


def _pod(found: re.Match[str], pods: Mapping[str, str]) -> str:
    address = found[1].rpartition(":")[0] or found[1] if found.groups() else ""
    name = pods.get(address.strip("[]")) or pods.get(found[1] if found.groups() else "")
    return f" ({name})" if name else ""


def _chance(rule: str) -> str:
    found = re.search(r"--probability ([\d.]+)", rule)
    share = round(1 / float(found[1])) if found and float(found[1]) else 0
    return f"1 in {share} of what is left" if share else "never"


_ENDPOINT = re.compile(r"\d+ : (?:goto endpoint-[^\s,]+__)?([0-9a-f.:]+)(?: \. |/)(\d+)")


def _ways(rule: str, pods: Mapping[str, str]) -> str:
    ends = ((ip, socket_address(ip, port)) for ip, port in _ENDPOINT.findall(rule))
    return ", ".join(f"{end} ({pods[ip]})" if ip in pods else end for ip, end in ends)
