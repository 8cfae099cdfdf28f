"""Faults of the overlay: MTU, VTEPs, the tunnel's number and port, the UDP that carries it."""

import re
from collections.abc import Callable, Iterable

from msgspec.structs import replace

from nsnet.faults.draft import Draft, Site
from nsnet.faults.kinds import Kind, Option, between
from nsnet.state import OFFLOADS, Bridge, FdbEntry, Hold, Key, Neighbour, NftChain, Offload, Route, Veth

OLD_VTEP = "02:00:00:00:53:01"  # local, and nobody's
_CLEARED = re.compile(r" meta mark set meta mark \^ 0x[0-9a-f]+")
TOO_BIG = {"ip": "-p icmp -m icmp --icmp-type 3/4 -j DROP", "ip6": "-p ipv6-icmp -m icmp6 --icmpv6-type 2 -j DROP"}


def _mtu_black_hole(draft: Draft, site: Site) -> None:
    for node in site.on():
        uplink = draft.link(node, "eth0")
        if uplink is None:
            continue
        for bridge in draft.of(node, Bridge):
            draft.put(node, replace(bridge, mtu=uplink.mtu))
        for port, pod in list(draft.pods_of(node)):
            for netns, dev in ((node, port), (pod, "eth0")):
                link = draft.link(netns, dev)
                if isinstance(link, Veth):
                    draft.put(netns, replace(link, mtu=uplink.mtu))
        for family in site.families:
            draft.first(node, "filter", "OUTPUT", TOO_BIG[family], family)


def _stale_vtep(draft: Draft, site: Site) -> None:
    """The peer's VTEP was made anew with another MAC, and this node was never told."""
    for netns, neighbour, entry in list(_towards(draft, site)):
        draft.drop(netns, entry)
        draft.put(netns, replace(neighbour, mac=OLD_VTEP))
        draft.put(netns, replace(entry, mac=OLD_VTEP))


def _missing_fdb(draft: Draft, site: Site) -> None:
    for netns, _, entry in list(_towards(draft, site)):
        draft.drop(netns, entry)


def _towards(draft: Draft, site: Site) -> Iterable[tuple[str, Neighbour, FdbEntry]]:
    """What the nodes on this side know of the VTEPs on the other."""
    others = {address for netns in site.to() for address in site.ranges(netns)}
    for netns in site.on():
        macs = {(one.dev, one.mac): one for one in draft.of(netns, Neighbour)}
        for entry in draft.of(netns, FdbEntry):
            if entry.dst in others and (entry.dev, entry.mac) in macs:
                yield netns, macs[entry.dev, entry.mac], entry


def _tunnels_with(field: str) -> Callable[[Draft, Site], None]:
    """A damage that sets this field of the tunnels, from the option of its name."""

    def damage(draft: Draft, site: Site) -> None:
        for netns in site.on():
            for tunnel in draft.tunnels(netns):
                draft.put(netns, replace(tunnel, **{field: int(site.options[field])}))

    return damage


def _blocked(draft: Draft, site: Site) -> None:
    for netns in site.on():
        for tunnel in draft.tunnels(netns):
            family = "ip6" if ":" in tunnel.local else "ip"
            draft.first(netns, "filter", "INPUT", f"-p udp -m udp --dport {tunnel.port} -j DROP", family)  # type: ignore[arg-type]


def _checksum(draft: Draft, site: Site) -> None:
    """The mark to masquerade outlives encapsulation, as it did before kube-proxy cleared it, and the wire is real."""
    for netns in site.on():
        for family in site.families:
            draft.rules(
                netns, "nat", "KUBE-POSTROUTING", lambda rules: [r for r in rules if "MARK --set" not in r], family
            )
        for chain in draft.of(netns, NftChain):
            if (chain.table, chain.name) == ("kube-proxy", "masquerading"):
                kept = (_CLEARED.sub("", rule) for rule in chain.rules)
                draft.put(netns, replace(chain, rules=tuple(kept)))
        draft.put(netns, Offload("eth0", OFFLOADS))


def _flanneld(draft: Draft, site: Site) -> Iterable[Hold]:
    """All that flanneld writes, whatever it would say by now: its device with what hangs on it, routes and chains."""
    keys: list[Key] = []
    for family in site.families:
        keys += [("chain", family, "nat", "FLANNEL-*"), ("chain", family, "filter", "FLANNEL-*")]
    for netns in site.on():
        own = [("link", tunnel.name) for tunnel in draft.tunnels(netns)]
        routes = [route.key for route in draft.of(netns, Route) if route.via and "/" in route.dst]
        yield from ((netns, key) for key in (*keys, *own, *routes))


OF_VXLAN = ("vxlan",)
KINDS = (
    Kind(
        name="mtu-black-hole",
        title="MTU black hole",
        symptom="Ping, DNS and small HTTP work; large responses, TLS handshakes and image pulls hang. On one node all "
        "is fine.",
        cause="Pods believe in the underlay's MTU, of which VXLAN takes 50 bytes; the ICMP 'fragmentation needed' that "
        "would tell them is dropped on the nodes.",
        detect=(
            "nsnet exec POD -- ping -M do -s 1472 -c 2 OTHER-POD-IP   # hangs; -s 1400 answers",
            "nsnet exec node/NODE -- nstat -az IpFragFails IcmpOutDestUnreachs",
            "nsnet exec node/NODE -- iptables -L OUTPUT -nv",
        ),
        mend=(
            "nsnet exec POD -- ip link set eth0 mtu 1450   # and the bridge; in every pod",
            "nsnet exec node/NODE -- iptables -D OUTPUT -p icmp -m icmp --icmp-type 3/4 -j DROP",
            "nsnet exec node/NODE -- iptables -t mangle -A FORWARD -p tcp --syn -j TCPMSS --clamp-mss-to-pmtu",
            "nsnet exec POD -- sysctl -w net.ipv4.tcp_mtu_probing=1",
        ),
        everywhere=True,
        needs=OF_VXLAN,
        damage=_mtu_black_hole,
        source="flannel#463, PR#897, moby#24906",
    ),
    Kind(
        name="stale-vtep",
        title="A VTEP changed its MAC and one node was not told",
        symptom="One pair of nodes cannot talk, in one direction at least; each reaches all others.",
        cause="The neighbour and FDB entries for the peer's tunnel hold its old MAC: frames arrive and are for nobody.",
        detect=(
            "nsnet exec node/NODE -- ip neigh show dev flannel.1; bridge fdb show dev flannel.1",
            "nsnet exec node/OTHER -- ip -s -s link show flannel.1   # otherhost grows",
        ),
        mend=(
            "nsnet exec node/NODE -- ip neigh replace PEER-VTEP-IP lladdr ITS-MAC dev flannel.1 nud permanent",
            "nsnet exec node/NODE -- bridge fdb replace ITS-MAC dev flannel.1 dst OTHER-IP",
        ),
        pairs=True,
        needs=OF_VXLAN,
        damage=_stale_vtep,
        source="flannel#533, #654, #1788, calico#7281",
    ),
    Kind(
        name="missing-fdb",
        title="The FDB entry for a peer's VTEP is missing",
        symptom="One pair of nodes cannot talk; nothing leaves the node.",
        cause="The tunnel does not know behind which node the peer's MAC is.",
        detect=("nsnet exec node/NODE -- bridge fdb show dev flannel.1",),
        mend=("nsnet exec node/NODE -- bridge fdb append PEER-MAC dev flannel.1 dst OTHER-IP",),
        pairs=True,
        needs=OF_VXLAN,
        damage=_missing_fdb,
    ),
    Kind(
        name="vni-mismatch",
        title="A node's tunnel has another VNI",
        symptom="Pods of the node and those of all others cannot talk, from the first day; nodes can.",
        cause="The VXLAN devices have different ids: packets arrive and no error counter moves.",
        detect=("nsnet exec node/NODE -- ip -d link show flannel.1",),
        mend=("make the device anew with the others' id (flannel: delete it and restart flanneld)",),
        options=(Option("vni", "2", r"[0-9]{1,8}", "2", "the id it has instead", between(0, 2**24 - 1)),),
        needs=OF_VXLAN,
        damage=_tunnels_with("vni"),
        source="flannel#423, #2388",
    ),
    Kind(
        name="vxlan-port-mismatch",
        title="A node's tunnel uses another UDP port",
        symptom="Pods of the node and those of all others cannot talk; the underlay's ping is fine.",
        cause="One end uses 4789, the other 8472: UdpNoPorts grows, and ICMP port-unreachable comes back.",
        detect=(
            "nsnet exec node/NODE -- ip -d link show flannel.1",
            "nsnet exec node/NODE -- nstat -az UdpNoPorts",
        ),
        mend=("make the device anew with the others' port",),
        options=(Option("port", "4789", r"[0-9]{1,5}", "4789", "the port it has instead", between(1, 65535)),),
        needs=OF_VXLAN,
        damage=_tunnels_with("port"),
        source="flannel#2388, typhoon PR#1561",
    ),
    Kind(
        name="vxlan-blocked",
        title="A firewall drops the tunnel's UDP port",
        symptom="Pods of the node and those of all others cannot talk; the underlay's ping is fine.",
        cause="A rule of the node drops UDP to the VXLAN port.",
        detect=("nsnet exec node/NODE -- iptables -L INPUT -nv",),
        mend=("nsnet exec node/NODE -- iptables -D INPUT -p udp -m udp --dport 8472 -j DROP",),
        needs=OF_VXLAN,
        damage=_blocked,
    ),
    Kind(
        name="vxlan-checksum",
        title="Masqueraded calls leave the tunnel with a wrong checksum",
        symptom="Calls to a Service that are masqueraded (the node's own, a node port's) take 1 s, 3 s or longer when "
        "the endpoint is on another node; by the pods' addresses all is fine.",
        cause="The mark of KUBE-MARK-MASQ is not cleared, so the VXLAN packet is masqueraded as well (--random-fully "
        "gives it a new port), and with tx offload of flannel.1 its UDP checksum is not corrected. A SYN that is sent "
        "again has no mark, and may arrive.",
        detect=(
            "nsnet exec node/OTHER -- nstat -az UdpInCsumErrors   # grows",
            "nsnet exec node/NODE -- iptables -t nat -L KUBE-POSTROUTING -nv   # MASQUERADE counts twice",
            "nsnet exec node/NODE -- ethtool -k flannel.1   # tx-checksumming: on",
        ),
        mend=(
            "nsnet exec node/NODE -- ethtool -K flannel.1 tx-checksum-ip-generic off",
            "nsnet exec node/NODE -- iptables -t nat -I KUBE-POSTROUTING 2 -j MARK --set-xmark 0x4000/0x0",
        ),
        needs=("vxlan", "rules"),
        damage=_checksum,
        source="flannel#1279, #2152, PR#1282, calico#3145, kops PR#9074",
    ),
    Kind(
        name="flanneld-stopped",
        title="flanneld does not run on a node",
        symptom="Nothing at first. Pods of nodes that join (or change) later are out of the node's reach.",
        cause="Routes, neighbours and FDB entries are no longer written.",
        detect=("nsnet leases", "nsnet exec node/NODE -- ip route   # a lease has no route"),
        mend=("start flanneld (nsnet fault clear NAME)",),
        hold=_flanneld,
    ),
)  # fmt: skip
