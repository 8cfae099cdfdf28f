"""Faults of links: cut, partitioned, with loss, delay, a rate, copies, a smaller MTU."""

from collections.abc import Callable

from msgspec.structs import replace

from nsnet.faults.draft import Draft, Site
from nsnet.faults.kinds import Kind, Option, between
from nsnet.model import bits, lost_by_chance, micros, percent
from nsnet.state import Qdisc, Segments


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


# --- impairments ------------------------------------------------------------------------------------------------------


def _impaired(**fields: Callable[[str], float]) -> Callable[[Draft, Site], None]:
    """A damage that sets these fields of the disciplines at both ends of the links, from the options of their names."""

    def damage(draft: Draft, site: Site) -> None:
        kind = site.spec.means or "netem"
        said = {name: read(site.options[name]) for name, read in fields.items()}
        for netns in site.on():
            for place, dev in ((netns, "eth0"), draft.uplink(netns)):
                there = draft.values(place).get(("qdisc", dev)) if place in draft else None
                draft.put(place, replace(there if isinstance(there, Qdisc) else Qdisc(dev, kind), **said))

    return damage


def _loss(draft: Draft, site: Site) -> None:
    if site.spec.means != "statistic":
        _impaired(loss=percent)(draft, site)
        return
    rule = lost_by_chance(percent(site.options["loss"]))
    for netns in site.on():
        for family in site.families:
            draft.first(netns, "mangle", "PREROUTING", f"-i eth0 {rule}", family)
            draft.first(netns, "mangle", "POSTROUTING", f"-o eth0 {rule}", family)


def _mtu(draft: Draft, site: Site) -> None:
    """The switch's ports take less than both ends believe; frames have their true size, or they would pass."""
    for netns in site.on():
        switch, port = draft.uplink(netns)
        link = draft.link(switch, port)
        if link is not None:
            draft.put(switch, replace(link, mtu=int(site.options["mtu"])))
    for netns in site.machines():
        if draft.link(netns, "eth0") is not None:
            draft.put(netns, Segments("eth0"))


_PERCENT = r"(100|\d{1,2}(\.\d{1,4})?)%"
_TIME = r"\d{1,6}(us|ms|s)"
_NO_QDISC = ("nsnet exec node/NODE -- tc qdisc delete dev eth0 root   # and at the switch's port",)

KINDS = (
    Kind(
        name="delay",
        title="A slow link",
        symptom="Everything works, later: each answer takes twice the delay longer.",
        cause="The link delays frames, each way.",
        detect=("nsnet exec node/NODE -- ping -c 3 OTHER", "nsnet exec node/NODE -- tc qdisc show dev eth0"),
        mend=_NO_QDISC,
        places="any",
        options=(
            Option("delay", "100ms", _TIME, "100ms", "each way"),
            Option("jitter", "0ms", _TIME, "10ms", "how much it varies"),
        ),
        needs=("netem",),
        damage=_impaired(delay=micros, jitter=micros),
    ),
    Kind(
        name="loss",
        title="A link that loses frames",
        symptom="Connections stall and go on; of pings some are lost.",
        cause="The link drops a share of the frames, each way.",
        detect=(
            "nsnet exec node/NODE -- ping -c 100 -i 0.01 OTHER",
            "nsnet exec node/NODE -- tc -s qdisc show dev eth0",
        ),
        mend=_NO_QDISC,
        places="machine",
        options=(Option("loss", "10%", _PERCENT, "10%", "of the frames, each way"),),
        needs=("netem or statistic",),
        damage=_loss,
    ),
    Kind(
        name="rate",
        title="A narrow link",
        symptom="Small things work, large transfers take long.",
        cause="The link carries so many bits a second, each way.",
        detect=("nsnet exec node/NODE -- tc -s qdisc show dev eth0   # overlimits, backlog",),
        mend=_NO_QDISC,
        places="any",
        options=(Option("rate", "1mbit", r"\d{1,6}(k|m|g)?bit", "1mbit", "each way"),),
        needs=("netem or tbf",),
        damage=_impaired(rate=bits),
    ),
    Kind(
        name="duplicate",
        title="A link that doubles frames",
        symptom="Pings are answered twice (DUP!); TCP does not mind.",
        cause="The link sends a share of the frames twice.",
        detect=("nsnet exec node/NODE -- ping -c 10 OTHER   # DUP!",),
        mend=_NO_QDISC,
        places="any",
        options=(Option("duplicate", "10%", _PERCENT, "10%", "of the frames"),),
        needs=("netem",),
        damage=_impaired(duplicate=percent),
    ),
    Kind(
        name="reorder",
        title="A link that overtakes itself",
        symptom="Transfers get slower: TCP takes what comes too early for a loss.",
        cause="A share of the frames is sent at once, all others after a delay.",
        detect=("nsnet exec node/NODE -- nstat -az TcpExtTCPSACKReorder",),
        mend=_NO_QDISC,
        places="any",
        options=(
            Option("reorder", "25%", _PERCENT, "25%", "of the frames are sent at once"),
            Option("delay", "10ms", _TIME, "10ms", "of all others"),
        ),
        needs=("netem",),
        damage=_impaired(reorder=percent, delay=micros),
    ),
    Kind(
        name="mtu",
        title="The path takes less than its ends believe",
        symptom="Ping and small answers work, large ones hang; nobody is told.",
        cause="The switch's port has a smaller MTU, and a switch sends no ICMP.",
        detect=("nsnet exec node/NODE -- ping -M do -s 1472 -c 2 -W 1 OTHER   # and -s 1300",),
        mend=("ip -n CLUSTER.fabric.NETWORK link set node-NODE mtu 1500",),
        places="machine",
        options=(Option("mtu", "1400", r"\d{3,5}", "1400", "bytes that the port takes", between(68, 65535)),),
        damage=_mtu,
        source="flannel#463",
    ),
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
