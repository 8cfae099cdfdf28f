"""Faults of links: cut, partitioned, with loss, delay, a rate, copies, a smaller MTU."""

from nsnet.faults.draft import Draft, Site
from nsnet.faults.kinds import Kind


def _cut(draft: Draft, site: Site) -> None:
    """The far end goes down: the near one stays up and has no carrier, as with a cable that was pulled."""
    for netns in site.on():
        other, port = draft.uplink(netns)
        draft.down(other, port)


def _partition(draft: Draft, site: Site) -> None:
    here, there = site.on(), site.to()
    for own, others in ((here, there), (there, here)):
        ranges = [item for netns in others for item in site.ranges(netns)]
        for netns in own:
            for item in reversed(ranges):
                family = "ip6" if ":" in item else "ip"
                length = "" if "/" in item else "/128" if family == "ip6" else "/32"
                draft.first(netns, "mangle", "PREROUTING", f"-s {item}{length} -j DROP", family)  # type: ignore[arg-type]


KINDS = (
    Kind(
        name="link-down",
        title="A cable is pulled",
        symptom="The machine (or pod) reaches nobody, and nobody reaches it.",
        cause="The other end of its link is down: no carrier.",
        detect=("nsnet exec node/NODE -- ip -br link show eth0   # LOWERLAYERDOWN",),
        mend=("ip -n CLUSTER.fabric.NETWORK link set node-NODE up",),
        places="any",
        damage=_cut,
    ),
    Kind(
        name="partition",
        title="Two sets of nodes do not hear each other",
        symptom="Within each set all is fine; between them nothing passes, pods included.",
        cause="Packets from the other side are dropped on arrival.",
        detect=("nsnet exec node/NODE -- ping -c 1 -W 1 OTHER", "nsnet exec node/NODE -- iptables -t mangle -nvL"),
        mend=("nsnet exec node/NODE -- iptables -t mangle -F PREROUTING   # on both sides",),
        places="machine",
        pairs=True,
        damage=_partition,
    ),
)
