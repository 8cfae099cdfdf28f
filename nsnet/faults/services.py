"""Faults of Services and masquerading: kube-proxy's rules, conntrack, endpoints."""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from msgspec.structs import replace

from nsnet import model
from nsnet.faults.draft import Draft, Site
from nsnet.faults.kinds import Kind, Option, between
from nsnet.model import Endpoints, EndpointSlice, Key, Object, Objects, Service
from nsnet.state import FILLERS, BridgePort, ConntrackTable, Family, File, Hold, NftChain, NftTable, Process
from nsnet.state import Key as ValueKey

SLICE_OF = "kubernetes.io/service-name"
PROXY_CHAINS = (
    "KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-NODEPORTS", "KUBE-FORWARD", "KUBE-POSTROUTING", "KUBE-MARK-*",
    "KUBE-SVC-*", "KUBE-SVL-*", "KUBE-EXT-*", "KUBE-FW-*", "KUBE-SEP-*", "KUBE-PROXY-*", "KUBE-PORTALS-*",
    "KUBE-NODEPORT-*",
)  # fmt: skip


# --- hairpin and masquerading -----------------------------------------------------------------------------------------


def _hairpin_off(draft: Draft, site: Site) -> None:
    for netns in site.on():
        for port in draft.of(netns, BridgePort):
            draft.put(netns, replace(port, hairpin=False))


def _hairpin_unmasked(draft: Draft, site: Site) -> None:
    for netns in site.on():
        _without(draft, netns, "KUBE-SEP-", lambda rule: rule.startswith("-s ") and rule.endswith("-j KUBE-MARK-MASQ"))
        _without_nft(draft, netns, "masquerading", "@hairpin-connections")


def _no_masquerade(draft: Draft, site: Site) -> None:
    for netns in site.on():
        _without(draft, netns, "KUBE-MARK-MASQ", lambda _: True)
        _without(draft, netns, "FLANNEL-POSTRTG", lambda rule: rule.startswith("! -s") and "MASQUERADE" in rule)
        _without_nft(draft, netns, "masquerading", "meta mark &")


def _no_egress(draft: Draft, site: Site) -> None:
    for netns in site.on():
        _without(draft, netns, "FLANNEL-POSTRTG", lambda rule: rule.startswith("-s") and "MASQUERADE" in rule)


def _double_nat(draft: Draft, site: Site) -> None:
    for netns in site.on():
        for cidr in model.subnets(site.cluster.networking.podSubnet):
            rule = f"-s {cidr} -d {cidr} -j MASQUERADE"
            draft.first(netns, "nat", "POSTROUTING", rule, model.family_of(cidr))


def _without(draft: Draft, netns: str, chain: str, goes: Callable[[str], bool]) -> None:
    """Takes rules out of every nat chain whose name begins like that."""
    for key in list(draft.values(netns)):
        if key[0] == "chain" and key[2] == "nat" and key[3].startswith(chain):
            draft.rules(netns, "nat", key[3], lambda rules: [rule for rule in rules if not goes(rule)], key[1])  # type: ignore[arg-type]


def _without_nft(draft: Draft, netns: str, chain: str, words: str) -> None:
    for one in draft.of(netns, NftChain):
        if one.table == "kube-proxy" and one.name == chain:
            draft.put(netns, replace(one, rules=tuple(rule for rule in one.rules if words not in rule)))


# --- conntrack --------------------------------------------------------------------------------------------------------


def _table_full(draft: Draft, site: Site) -> None:
    for netns in site.on():
        draft.put(netns, ConntrackTable())


def _invalid(draft: Draft, site: Site) -> None:
    """Of large segments from other nodes every third leaves its place by half of all sequence numbers.

    Nothing drops them: kube-proxy before 1.15 had no such rule.
    """
    for netns in site.on():
        draft.set(netns, "net.netfilter.nf_conntrack_tcp_be_liberal", "0")
        devices = [tunnel.name for tunnel in draft.tunnels(netns)] or ["eth0"]
        for family in site.families:
            draft.rules(netns, "filter", "KUBE-FORWARD", lambda rules: [r for r in rules if VALID not in r], family)
            rules = tuple(f'iifname "{dev}" {_LARGE[family]} {_MOVED}' for dev in devices)
            draft.put(netns, NftTable(STRAYS, "segments out of the window", family))
            draft.put(netns, NftChain(STRAYS, "prerouting", rules, _BEFORE_CONNTRACK, family=family))


STRAYS = "strays"
VALID = "--ctstate INVALID -j DROP"
_BEFORE_CONNTRACK = "type filter hook prerouting priority -300; policy accept;"
_LARGE: dict[Family, str] = {"ip": "ip length 500-65535", "ip6": "ip6 length 500-65535"}
_MOVED = "meta l4proto tcp numgen inc mod 3 0 tcp sequence set tcp sequence ^ 0x80000000"


# --- what is stopped --------------------------------------------------------------------------------------------------


def _proxy_held(_: Draft, site: Site) -> Iterator[Hold]:
    """Its chains and its table as they are, and conntrack, which it cleans up."""
    keys: list[ValueKey] = [("conntrack",), ("nft", "ip", "kube-proxy"), ("nft", "ip6", "kube-proxy")]
    for family in site.families:
        keys += [("chain", family, table, name) for table in ("nat", "filter", "mangle") for name in PROXY_CHAINS]
    for netns in site.on():
        yield from ((netns, key) for key in keys)


def _proxy_stopped(draft: Draft, site: Site) -> None:
    """In userspace mode it is a process, without which nothing is proxied."""
    for netns in site.on():
        for process in draft.of(netns, Process):
            if "nsnet.programs.userproxy" in process.argv:
                draft.drop(netns, process)


def _conntrack_held(_: Draft, site: Site) -> Iterator[Hold]:
    yield from ((netns, ("conntrack",)) for netns in site.on())


def _pod_stopped(draft: Draft, site: Site) -> None:
    """The one pod server listens no longer for these."""
    gone = set(site.on())
    router = f"{site.cluster.metadata.name}.fabric.router"
    for file in draft.of(router, File):
        if file.path.endswith("/podserver.json"):
            said = msgspec.json.decode(file.content)
            said["pods"] = [{**pod, "tcp": [], "udp": []} if pod["netns"] in gone else pod for pod in said["pods"]]
            draft.put(router, replace(file, content=msgspec.json.encode(said).decode()))


# --- objects ----------------------------------------------------------------------------------------------------------


def _local(objects: Objects, site: Site) -> Objects:
    """externalTrafficPolicy: Local, and endpoints on one node only: on the last, where the policy needs them on all."""
    found: dict[Key, Object] = dict(objects)
    for service in site.services():
        key = model.key_of(service)
        found[key] = replace(service, spec=replace(service.spec, externalTrafficPolicy="Local"))
        found |= {model.key_of(item): item for item in _slices(objects, service, _on_last_node)}
    return found


def _on_last_node(item: EndpointSlice) -> EndpointSlice:
    last = max((one.nodeName or "" for one in item.endpoints or ()), default="")
    return replace(item, endpoints=tuple(one for one in item.endpoints or () if one.nodeName == last))


def _no_endpoints(objects: Objects, site: Site) -> Objects:
    return _with_endpoints(objects, site, lambda one: replace(one, endpoints=()), lambda _: ())


def _wrong_port(objects: Objects, site: Site) -> Objects:
    """As if targetPort were a port that no container serves."""
    wrong = int(site.options["port"])

    def changed(item: Any) -> Any:
        return replace(item, ports=tuple(replace(port, port=wrong) for port in item.ports or ()))

    return _with_endpoints(objects, site, changed, lambda subsets: tuple(map(changed, subsets)))


def _with_endpoints(
    objects: Objects, site: Site, change: Callable[[EndpointSlice], EndpointSlice], subsets: Any
) -> Objects:
    """The Services' endpoints, changed in both of their forms."""
    found: dict[Key, Object] = dict(objects)
    for service in site.services():
        found |= {model.key_of(item): item for item in _slices(objects, service, change)}
        found |= _endpoints(objects, service, subsets)
    return found


def _slices(
    objects: Objects, service: Service, change: Callable[[EndpointSlice], EndpointSlice]
) -> Iterator[EndpointSlice]:
    for item in model.of(objects, EndpointSlice):
        meta = item.metadata
        if (meta.namespace, meta.labels.get(SLICE_OF)) == (service.metadata.namespace, service.metadata.name):
            yield change(item)


def _endpoints(objects: Objects, service: Service, change: Any) -> dict[Key, Object]:
    key = Key("Endpoints", service.metadata.namespace, service.metadata.name)
    item = objects.get(key)
    return {key: replace(item, subsets=change(item.subsets or ()))} if isinstance(item, Endpoints) else {}


KINDS = (
    Kind(
        name="hairpin-off",
        title="Hairpin is off at the bridge's ports",
        symptom="A share of a pod's calls to its own Service times out: those balanced to itself.",
        cause="A frame may not leave the bridge by the port it came in.",
        detect=("nsnet exec node/NODE -- bridge -d link show   # hairpin off",),
        mend=("nsnet exec node/NODE -- bridge link set dev VETH hairpin on",),
        damage=_hairpin_off,
        source="kubernetes#13375, #20475, #61593, k3s#582",
    ),
    Kind(
        name="hairpin-no-masquerade",
        title="A pod's calls to itself are not masqueraded",
        symptom="A share of a pod's calls to its own Service times out, as with hairpin off; hairpin is on.",
        cause="After DNAT source and destination are the same address, and the pod drops it as a martian: the rule "
        "'-s POD-IP -j KUBE-MARK-MASQ' of its KUBE-SEP chain is missing.",
        detect=("nsnet rules node/NODE --service NAME   # no '-s POD-IP … KUBE-MARK-MASQ'",),
        mend=("nsnet exec node/NODE -- iptables -t nat -I KUBE-SEP-… -s POD-IP -j KUBE-MARK-MASQ",),
        damage=_hairpin_unmasked,
        needs=("rules",),
        source="kube-router#189",
    ),
    Kind(
        name="no-masquerade",
        title="What comes in from outside is not masqueraded",
        symptom="A node port answers only on the node that hosts the pod; by any other node calls time out.",
        cause="KUBE-MARK-MASQ marks nothing, so the pod answers the client past the node that translated the address.",
        detect=(
            "nsnet exec node/NODE -- conntrack -L   # SYN_SENT [UNREPLIED], the reply's end is the client",
            "nsnet exec node/NODE -- iptables -t nat -S KUBE-MARK-MASQ",
        ),
        mend=("nsnet exec node/NODE -- iptables -t nat -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000",),
        damage=_no_masquerade,
        needs=("rules",),
        source="kubernetes#53393, #44916",
    ),
    Kind(
        name="no-egress-masquerade",
        title="What pods send out is not masqueraded",
        symptom="Pods of the node cannot reach anything outside the cluster; between pods all is fine.",
        cause="flanneld's MASQUERADE rule is missing (--ip-masq=false), and the outside has no route to pods.",
        detect=(
            "nsnet capture host/client   # requests from a pod's address",
            "nsnet exec node/NODE -- iptables -t nat -S FLANNEL-POSTRTG",
        ),
        mend=(
            "nsnet exec node/NODE -- iptables -t nat -A FLANNEL-POSTRTG -s POD-RANGE ! -d 224.0.0.0/4 -j MASQUERADE",
        ),
        damage=_no_egress,
        source="kubernetes#89632, flannel#799",
    ),
    Kind(
        name="double-nat",
        title="A second masquerade rule hides pods from each other",
        symptom="Everything answers, but pods see the node's address instead of the caller's; policies by pod fail.",
        cause="A rule in POSTROUTING masquerades pod to pod as well.",
        detect=("nsnet exec POD -- curl -s http://OTHER-POD/clientip", "nsnet exec node/NODE -- iptables -t nat -S"),
        mend=("nsnet exec node/NODE -- iptables -t nat -D POSTROUTING -s RANGE -d RANGE -j MASQUERADE",),
        damage=_double_nat,
        source="flannel#1702, #1703",
    ),
    Kind(
        name="stale-conntrack",
        title="UDP conntrack entries outlive their endpoint",
        symptom="After a pod of a UDP Service moves, clients that keep their port stay broken; new sockets work.",
        cause="Each packet refreshes the old entry, so the new rules are never asked; nobody deletes it.",
        detect=("nsnet conntrack node/NODE", "nsnet exec node/NODE -- conntrack -L -p udp --orig-dst SERVICE-IP"),
        mend=("nsnet exec node/NODE -- conntrack -D -p udp --orig-dst SERVICE-IP",),
        hold=_conntrack_held,
        source="kubernetes#48370, #125467, #126130, #139628",
    ),
    Kind(
        name="conntrack-full",
        title="conntrack's table of a node is full",
        symptom="No new connection through the node comes to be, whoever opens it. What was connected goes on, but not "
        "through the tunnel.",
        cause="The node counts as many connections as net.netfilter.nf_conntrack_max allows (here: entries from "
        f"{FILLERS}, established and idle), and conntrack drops each packet that would need one more. To make room it "
        "forgets what nobody has answered, as a tunnel's packets, which go one way each.",
        detect=(
            "nsnet exec node/NODE -- sysctl -a -r 'nf_conntrack_(count|max)'   # equal",
            "nsnet exec node/NODE -- conntrack -S   # drop= grows",
            "dmesg   # nf_conntrack: table full, dropping packet",
            "nsnet exec node/NODE -- conntrack -L | head   # who has them all?",
        ),
        mend=(
            f"nsnet exec node/NODE -- conntrack -D -s {FILLERS}",
            "on a machine of one's own: a larger nf_conntrack_max, shorter timeouts, or NOTRACK for what needs none",
        ),
        damage=_table_full,
        source="kubernetes#18604",
    ),
    Kind(
        name="conntrack-invalid",
        title="conntrack takes segments for INVALID, and the connection is reset",
        symptom="Large transfers by a Service break off ('connection reset by peer', or nothing more comes); small "
        "ones work, and so do large ones by the pod's own address.",
        cause="Some segments come from other nodes with sequence numbers out of the window (a rule of the table "
        "'strays' on the node moves them). conntrack calls them INVALID and does not translate them, nothing drops "
        "them, so the client hears from an address it never asked and answers with RST.",
        detect=(
            "nsnet capture POD 'tcp[tcpflags] & tcp-rst != 0'   # a RST to a pod, not to the Service",
            "nsnet exec node/NODE -- conntrack -S   # invalid= grows",
            "nsnet exec node/NODE -- iptables -S KUBE-FORWARD   # no --ctstate INVALID -j DROP",
            "nsnet exec node/NODE -- nft list ruleset",
        ),
        mend=(
            "nsnet exec node/NODE -- iptables -I FORWARD -m conntrack --ctstate INVALID -j DROP",
            "nsnet exec node/NODE -- sysctl -w net.netfilter.nf_conntrack_tcp_be_liberal=1",
        ),
        needs=("rules",),
        damage=_invalid,
        source="kubernetes#74839, #117924",
    ),
    Kind(
        name="local-policy",
        title="externalTrafficPolicy: Local without a local endpoint",
        symptom="From outside the Service answers by some nodes and times out by others.",
        cause="Nodes without an endpoint of their own drop what comes from outside; here all are on one node.",
        detect=("nsnet get svc NAME -o yaml", "nsnet rules node/NODE --service NAME   # has no local endpoints"),
        mend=("externalTrafficPolicy: Cluster, or an endpoint on every node that is asked",),
        places="service",
        asked=_local,
        source="kubernetes#99299, #50977, metallb#263",
    ),
    Kind(
        name="no-endpoints",
        title="The Service's selector selects nothing",
        symptom="Connection refused, at once.",
        cause="The Service has no ready endpoint; kube-proxy rejects (ICMP port unreachable).",
        detect=("nsnet get endpoints NAME   # <none>",),
        mend=("a selector that matches, pods that are ready",),
        places="service",
        derived=_no_endpoints,
        source="kubernetes#7341, #88012",
    ),
    Kind(
        name="wrong-target-port",
        title="The Service's targetPort is not served",
        symptom="Connection refused, at once.",
        cause="The endpoints' port has no listener: the pod itself resets (TCP RST).",
        detect=("nsnet get endpoints NAME   # which port?", "nsnet exec POD -- ss -lnt"),
        mend=("a targetPort that a container serves",),
        places="service",
        options=(Option("port", "9999", r"[0-9]{1,5}", "9999", "the port that nobody serves", between(1, 65535)),),
        derived=_wrong_port,
        source="kubernetes#7341, #112481",
    ),
    Kind(
        name="kube-proxy-stopped",
        title="kube-proxy does not run on a node",
        symptom="What was there works on; Services and endpoints that change later are not followed on this node.",
        cause="Nobody writes the node's rules, nor deletes conntrack entries (in userspace mode: nothing is proxied).",
        detect=("nsnet rules node/NODE --service NAME   # and compare with another node's",),
        mend=("start kube-proxy (nsnet fault clear NAME)",),
        hold=_proxy_held,
        damage=_proxy_stopped,
    ),
    Kind(
        name="pod-stopped",
        title="The pod's process is dead",
        symptom="By its address the pod refuses; it leaves its Services.",
        cause="Nothing listens in the pod.",
        detect=("nsnet get pods   # 0/1", "nsnet exec POD -- ss -lnt"),
        mend=("start it (nsnet fault clear NAME)",),
        places="pod",
        damage=_pod_stopped,
    ),
)
