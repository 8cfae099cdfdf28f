"""Faults of a node's own settings: sysctls, rules, routes."""

from collections.abc import Callable
from ipaddress import ip_network

from msgspec.structs import replace

from nsnet.faults.draft import Draft, Site
from nsnet.faults.kinds import Kind, Option
from nsnet.model import family_of
from nsnet.state import Address, Bridge, Chain, FdbEntry, LegacyChain, Neighbour, Route

Damage = Callable[[Draft, Site], None]


def _off(*sysctls: str) -> Damage:
    """Sets these to 0."""

    def damage(draft: Draft, site: Site) -> None:
        for netns in site.on():
            for name in sysctls:
                draft.set(netns, name, "0")

    return damage


def _forward_drop(draft: Draft, site: Site) -> None:
    """As Docker leaves it where flanneld does not know of it (--iptables-forward-rules=false)."""
    for netns in site.on():
        for family in site.families:
            draft.rules(netns, "filter", "FORWARD", _without_flannel, family)
            chain = draft.values(netns).get(("chain", family, "filter", "FORWARD"))
            if isinstance(chain, Chain):
                draft.put(netns, replace(chain, policy="DROP"))


def _without_flannel(rules: tuple[str, ...]) -> list[str]:
    return [rule for rule in rules if not rule.endswith("-j FLANNEL-FWD")]


def _legacy_forward_drop(draft: Draft, site: Site) -> None:
    """A firewall of the older build beside the newer one that all else uses: both are asked."""
    for netns in site.on():
        for family in site.families:
            draft.put(netns, LegacyChain("filter", "FORWARD", (), "DROP", family))


def _rp_filter(draft: Draft, site: Site) -> None:
    """The way back to the others' pods leads past the tunnel that they come in by."""
    for netns in site.on():
        draft.set(netns, "net.ipv4.conf.all.rp_filter", "1")
        tunnels = {tunnel.name for tunnel in draft.tunnels(netns)}
        for route in draft.of(netns, Route):
            if route.dev in tunnels and family_of(route.dst) == "ip":
                public = _vtep(draft, netns, route)
                if public:
                    draft.put(netns, Route(route.dst, "eth0", via=public))


def _vtep(draft: Draft, netns: str, route: Route) -> str:
    """The node behind a route of the tunnel; empty where it is not on our own network."""
    mac = next((one.mac for one in draft.of(netns, Neighbour) if (one.dev, one.ip) == (route.dev, route.via)), "")
    public = next((one.dst for one in draft.of(netns, FdbEntry) if (one.dev, one.mac) == (route.dev, mac)), "")
    near = {one.ip for one in draft.of(netns, Neighbour) if one.dev == "eth0"}
    return public if public in near else ""


def _overlap(draft: Draft, site: Site) -> None:
    for netns in site.on():
        bridge = next((one.name for one in draft.of(netns, Bridge)), "")
        cidr = site.options["cidr"] or _outside(site)
        if bridge and cidr:
            draft.put(netns, Route(cidr, bridge))


def _outside(site: Site) -> str:
    """The network of the hosts outside; the last one, where several are."""
    networks = {host.network for host in site.cluster.hosts or ()}
    found = [item.subnet for item in site.cluster.underlay.networks if item.name in networks]
    return found[-1].partition(",")[0] if found else ""


def _without_routes(goes: Callable[[Route], bool]) -> Damage:
    def damage(draft: Draft, site: Site) -> None:
        for netns in site.on():
            for route in filter(goes, draft.of(netns, Route)):
                draft.drop(netns, route)

    return damage


def _node_down(draft: Draft, site: Site) -> None:
    """The machine is off: its cable is dead, and so is every pod's."""
    for netns in site.on():
        switch, port = draft.uplink(netns)
        draft.down(switch, port)
        for port, _ in list(draft.pods_of(netns)):
            draft.down(netns, port)


def _duplicate_ip(draft: Draft, site: Site) -> None:
    """The pod takes the address of the next pod on its node."""
    for netns in site.on():
        node, _ = draft.uplink(netns)
        others = [pod for _, pod in draft.pods_of(node) if pod != netns]
        if not others:
            continue
        theirs = [one for one in draft.of(others[0], Address) if one.dev == "eth0" and ":" not in one.cidr]
        for own in [one for one in draft.of(netns, Address) if one.dev == "eth0" and ":" not in one.cidr]:
            draft.drop(netns, own)
        for address in theirs:
            draft.put(netns, address)


KINDS = (
    Kind(
        name="bridge-nf-off",
        title="Bridged packets are hidden from netfilter",
        symptom="Service calls time out when client and chosen endpoint share the node; DNS dies for pods beside it. "
        "Pod to pod by address is fine.",
        cause="net.bridge.bridge-nf-call-iptables is 0: the reply is bridged straight back, the DNAT is not undone, "
        "and the client hears from an address it never asked.",
        detect=(
            "nsnet exec node/NODE -- sysctl net.bridge.bridge-nf-call-iptables",
            "nsnet capture POD 'tcp'   # SYN to the Service, SYN-ACK from a pod, RST",
        ),
        mend=("nsnet exec node/NODE -- sysctl -w net.bridge.bridge-nf-call-iptables=1",),
        damage=_off("net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"),
        source="kubernetes#127031, #38802, #21613, kops#4323",
    ),
    Kind(
        name="forward-drop",
        title="FORWARD drops what nobody accepts",
        symptom="All pod traffic through the node stops, on the node itself too; node to pod works.",
        cause="The policy of iptables' FORWARD is DROP (Docker, a firewall), and no rule accepts the pods' range.",
        detect=("nsnet exec node/NODE -- iptables -L FORWARD -nv   # the policy's counter grows",),
        mend=(
            "nsnet exec node/NODE -- iptables -P FORWARD ACCEPT",
            "nsnet exec node/NODE -- iptables -A FORWARD -j FLANNEL-FWD",
        ),
        damage=_forward_drop,
        source="flannel#609, #799, kubernetes#40182, #58908",
    ),
    Kind(
        name="legacy-forward-drop",
        title="FORWARD drops in the other iptables",
        symptom="All pod traffic through the node stops, on the node itself too; iptables -L says ACCEPT.",
        cause="A tool of the older build (iptables-legacy) has set the policy of its own FORWARD to DROP; packets pass "
        "its rules as well as those of nf_tables, which all else uses.",
        detect=(
            "nsnet exec node/NODE -- iptables -L FORWARD   # Warning: iptables-legacy tables present",
            "nsnet exec node/NODE -- iptables-legacy -L FORWARD -nv   # the policy's counter grows",
        ),
        mend=("nsnet exec node/NODE -- iptables-legacy -P FORWARD ACCEPT",),
        needs=("legacy",),
        damage=_legacy_forward_drop,
        source="kathara#215, flannel#1317",
    ),
    Kind(
        name="ip-forward-off",
        title="The node does not forward",
        symptom="The node reaches its own pods, nobody else does.",
        cause="net.ipv4.ip_forward is 0, after a reboot or sysctl hardening.",
        detect=("nsnet exec node/NODE -- sysctl net.ipv4.ip_forward",),
        mend=("nsnet exec node/NODE -- sysctl -w net.ipv4.ip_forward=1",),
        damage=_off("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"),
    ),
    Kind(
        name="rp-filter",
        title="Strict reverse path filter on an asymmetric way",
        symptom="Packets of other nodes' pods visibly arrive by the tunnel, and nothing answers.",
        cause="rp_filter is 1 and the route back to the sender leads out of another device than the one it came in by.",
        detect=(
            "nsnet exec node/NODE -- nstat -az TcpExtIPReversePathFilter",
            "nsnet exec node/NODE -- ip route get POD-IP from OTHER-POD-IP iif flannel.1   # Invalid cross-device link",
        ),
        mend=("nsnet exec node/NODE -- sysctl -w net.ipv4.conf.all.rp_filter=2   # or route back by the tunnel",),
        needs=("vxlan",),
        damage=_rp_filter,
        source="cilium#13130, amazon-vpc-cni-k8s#75, kubernetes#124587",
    ),
    Kind(
        name="overlapping-cidr",
        title="A range that lives elsewhere is routed to the bridge",
        symptom="Some addresses are unreachable from the node and its pods, all others are fine.",
        cause="The pods' range overlaps a network that is used elsewhere: the more specific route leads to the bridge.",
        detect=(
            "nsnet exec node/NODE -- ip route get ADDRESS",
            "nsnet exec node/NODE -- ip neigh show dev cni0   # INCOMPLETE, or FAILED",
        ),
        mend=("nsnet exec node/NODE -- ip route delete CIDR dev cni0",),
        options=(
            Option(
                "cidr", "", r"(\d+\.){3}\d+/\d+", "10.244.2.0/24", "the range; default: the hosts' network", ip_network
            ),
        ),
        damage=_overlap,
        source="k3s#588, calico#2140, kops#16340",
    ),
    Kind(
        name="no-service-route",
        title="The node has no route for the Service range",
        symptom="From the node itself Services are unreachable at once; its pods reach them.",
        cause="No route covers the Service range: the lookup fails before OUTPUT's DNAT is reached.",
        detect=("nsnet exec node/NODE -- ip route get SERVICE-IP   # Network is unreachable",),
        mend=("nsnet exec node/NODE -- ip route add default via GATEWAY dev eth0",),
        damage=_without_routes(lambda route: route.dst in {"default", "::/0"}),
    ),
    Kind(
        name="no-default-route",
        title="The pod has no routes",
        symptom="The pod reaches its neighbours on the node's bridge, and nothing else.",
        cause="The CNI plugin's routes are missing in the pod's namespace.",
        detect=("nsnet exec POD -- ip route",),
        mend=("nsnet exec POD -- ip route add default via GATEWAY dev eth0",),
        places="pod",
        damage=_without_routes(lambda _: True),
    ),
    Kind(
        name="duplicate-ip",
        title="Two pods have one address",
        symptom="The pod's own connections are answered to somebody else and never come back.",
        cause="Two pods of the node have the same address (host-local's files were lost); answers go to the other one.",
        detect=("nsnet exec POD -- ip address show eth0", "nsnet get pods -o wide"),
        mend=("nsnet exec POD -- ip address replace ITS-ADDRESS dev eth0   # and delete the other's",),
        places="pod",
        damage=_duplicate_ip,
    ),
    Kind(
        name="node-down",
        title="A node is gone",
        symptom="Neither the node nor its pods answer; a share of every Service's calls hangs until it is noticed.",
        cause="The machine is off: its cable and its pods' are dead.",
        detect=("ping -c 1 -W 1 NODE-IP", "nsnet exec node/NODE -- ip -br link   # NO-CARRIER, LOWERLAYERDOWN"),
        mend=("ip -n CLUSTER.fabric.NETWORK link set node-NODE up   # and the pods' ports on the node",),
        damage=_node_down,
    ),
)  # fmt: skip
