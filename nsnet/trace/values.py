"""A packet, the steps it takes and where it ends."""

from typing import Literal

import msgspec

Result = Literal["delivered", "refused", "dropped", "unreachable"]


class Packet(msgspec.Struct, frozen=True):
    """The first packet of a connection. `src` empty: the kernel chooses it. A port 0: any (or none, for icmp)."""

    protocol: str  # tcp, udp, sctp or icmp
    dst: str
    dport: int = 0
    src: str = ""
    sport: int = 0

    def __str__(self) -> str:
        return f"{self.protocol} {_end(self.src, self.sport)} → {_end(self.dst, self.dport)}"


def _end(address: str, port: int) -> str:
    if not port:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class Hop(msgspec.Struct, frozen=True):
    """One step: in which namespace, what happened (`out eth0`, `nat KUBE-SERVICES`), by which rule or route."""

    netns: str
    what: str
    rule: str = ""

    def __str__(self) -> str:
        return f"{self.netns}: {self.what}" + (f": {self.rule}" if self.rule else "")


class Flow(msgspec.Struct, frozen=True):
    """A conntrack entry: how a connection came into a namespace and how it left it."""

    netns: str
    came: Packet
    left: Packet


class Trip(msgspec.Struct, frozen=True):
    """A packet under way, in a namespace. `chance` is how likely the choices so far were."""

    netns: str
    packet: Packet
    mark: int = 0
    ports: tuple[int, int] | None = None  # the range that a rule of this namespace gave its source port from
    dev_in: str = ""
    dev_out: str = ""
    port_in: str = ""  # the bridge port it came in by
    reply: Flow | None = None  # this namespace's conntrack entry, when the packet is an answer
    came: Packet | None = None  # as it was when this namespace first saw it
    looped: bool = False  # back through lo: conntrack knows it, nat is not asked again
    translated: bool = False  # its destination was changed by a rule of this namespace
    hops: tuple[Hop, ...] = ()
    flows: tuple[Flow, ...] = ()
    chance: float = 1.0
    ttl: int = 64
    carriers: tuple[tuple[str, str], ...] = ()  # (namespace, tunnel's device) that it carries a packet for
    size: int = 0  # bytes of the whole IP packet; 0: so few that every device takes it
    whole: bool = True  # it may not be fragmented (DF)
    error: bool = False  # not the packet, but the ICMP error "fragmentation needed" about one
    entry: bool = False  # an entry of conntrack from before decides, and no rule of nat
    asks: bool = False  # not the packet, but the neighbour solicitation before it (IPv6), which no conntrack keeps
    stray: bool = False  # a TCP segment whose sequence number is far from those that its receiver waits for
    liberal: bool = False  # conntrack here takes any segment (nf_conntrack_tcp_be_liberal)

    @property
    def invalid(self) -> bool:
        """Does conntrack take it for none of its connection's? It is then translated neither there nor back."""
        return self.stray and not self.liberal

    @property
    def state(self) -> str:
        """What `-m conntrack --ctstate` sees."""
        if self.invalid or self.asks:
            return "INVALID" if self.invalid else "UNTRACKED"
        if self.error:
            return "RELATED"
        return "ESTABLISHED" if self.reply or self.entry else "NEW"


class Way(msgspec.Struct, frozen=True):
    """One way a packet can go. `packet` as it is where it ended: the source seen there, the destination reached.

    `through`: the client's own connection, where it ended at a process that opened another one (userspace mode).
    """

    result: Result
    netns: str
    packet: Packet
    reason: str = ""
    hops: tuple[Hop, ...] = ()
    flows: tuple[Flow, ...] = ()
    chance: float = 1.0
    through: "Way | None" = None

    def __str__(self) -> str:
        return f"{self.result} in {self.netns}: {self.packet}" + (f" ({self.reason})" if self.reason else "")
