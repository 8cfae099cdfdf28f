"""What is there, in the kernel's words: the state of a namespace is a set of small values.

One value = one kernel message = one line a network engineer would type. `key` is its identity in the kernel (two values
with one key cannot stand side by side); equality is comparison, so every value is spelled as the kernel prints it.
`render` makes these values from objects, `kernel.observe` from the kernel, and `diff` compares the two.

Kernel-made things are not values: `proto kernel` routes, link-local IPv6 addresses, learned neighbours and FDB entries,
fallback tunnel devices, empty built-in chains with policy ACCEPT.
"""

import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address, ip_interface
from shlex import quote, split
from typing import Literal

import msgspec
from msgspec.structs import replace

Key = tuple[str, ...]
Family = Literal["ip", "ip6"]
"""An address family, in netfilter's words; the API says IPv4 and IPv6 (`model.API_FAMILIES`)."""


class Netns(msgspec.Struct, frozen=True, tag=True):
    """The namespace itself: named in /run/netns, `mark` is the alias on its `lo`. Without the mark it is not ours."""

    mark: str

    @property
    def key(self) -> Key:
        return ("netns",)


class Loopback(msgspec.Struct, frozen=True, tag=True):
    """`lo`: the kernel makes it, down."""

    up: bool = True

    @property
    def key(self) -> Key:
        return ("link", "lo")


class Bridge(msgspec.Struct, frozen=True, tag=True):
    name: str
    mac: str
    mtu: int = 1500
    up: bool = True

    @property
    def key(self) -> Key:
        return ("link", self.name)


class Veth(msgspec.Struct, frozen=True, tag=True):
    """One end of a pair; `peer` is the other as `netns/device`. Both ends are values, each in its namespace.

    `/BRIDGE` as peer: the other end is in the network namespace that nsnet runs in, as a port of a bridge that is there
    already; nothing else of that namespace is touched, and the end goes with this one.
    """

    name: str
    peer: str
    mac: str
    mtu: int = 1500
    up: bool = True

    @property
    def key(self) -> Key:
        return ("link", self.name)


def is_uplink(value: object) -> bool:
    """Is it a cable to a bridge of the machine's own?"""
    return isinstance(value, Veth) and value.peer.startswith("/")


def far_end(uplink: Veth) -> str:
    """What the other end of an uplink is called: `veth` and the last four bytes of its MAC."""
    return "veth" + uplink.mac.replace(":", "")[4:]


class Vxlan(msgspec.Struct, frozen=True, tag=True):
    """A VTEP: `local` its outer source address, `dev` the device that carries it, `port` the UDP destination.

    Without `dev` the machine itself carries it: its packets leave by the network namespace nsnet runs in, which keeps
    nothing of it but a UDP port.
    """

    name: str
    mac: str
    mtu: int
    vni: int
    local: str
    dev: str
    port: int = 8472
    learning: bool = False
    up: bool = True

    @property
    def key(self) -> Key:
        return ("link", self.name)


class Ipip(msgspec.Struct, frozen=True, tag=True):
    """IPv4 in IPv4: `local` its outer source address; without `remote` a route's gateway is where a packet goes."""

    name: str
    mtu: int
    local: str
    remote: str = ""
    pmtudisc: bool = False
    up: bool = True

    @property
    def key(self) -> Key:
        return ("link", self.name)


class Tun(msgspec.Struct, frozen=True, tag=True):
    """What is sent here a process reads, as IP packets without a header of their own, and the other way round.

    The device stays when its process ends (`ip tuntap` makes them so); then it has no carrier and drops what comes.
    """

    name: str
    mtu: int
    up: bool = True

    @property
    def key(self) -> Key:
        return ("link", self.name)


class Wireguard(msgspec.Struct, frozen=True, tag=True):
    """The device alone; its key and its peers are values of their own, written by another netlink family."""

    name: str
    mtu: int
    up: bool = True

    @property
    def key(self) -> Key:
        return ("link", self.name)


class OtherLink(msgspec.Struct, frozen=True, tag=True):
    """A link nobody here asked for (or a veth whose peer is not where it says): always drift."""

    name: str
    kind: str

    @property
    def key(self) -> Key:
        return ("link", self.name)


class BridgePort(msgspec.Struct, frozen=True, tag=True):
    """A link enslaved to a bridge. Hairpin: frames may leave by the port they came in, a pod reaches itself."""

    name: str
    bridge: str
    hairpin: bool = False

    @property
    def key(self) -> Key:
        return ("port", self.name)


class Qdisc(msgspec.Struct, frozen=True, tag=True):
    """A root queueing discipline that a person set: what the link does to frames that leave by the device.

    `kind` is netem, or tbf (which knows `rate` alone). `delay` and `jitter` in microseconds; `loss`, `duplicate` and
    `reorder` in percent of the frames; `rate` in bit/s. 0: none.
    """

    dev: str
    kind: str
    delay: int = 0
    jitter: int = 0
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    rate: int = 0

    @property
    def key(self) -> Key:
        return ("qdisc", self.dev)

    @property
    def words(self) -> tuple[str, ...]:
        """What it does, in tc's words: `delay 5000us`, `loss 1%`."""
        delay = f"delay {self.delay}us" + (f" {self.jitter}us" if self.jitter else "") if self.delay else ""
        shares = (("loss", self.loss), ("duplicate", self.duplicate), ("reorder", self.reorder))
        said = (delay, *(f"{name} {share:g}%" if share else "" for name, share in shares))
        return tuple(word for word in (*said, f"rate {self.rate}bit" if self.rate else "") if word)


class Segments(msgspec.Struct, frozen=True, tag=True):
    """`ip link set DEV gso_max_segs N`: at 1 every frame has its true size when it leaves by the device.

    Otherwise segments of one stream travel as one large frame over veth pairs, and no MTU on the way stops them.
    """

    dev: str
    most: int = 1

    @property
    def key(self) -> Key:
        return ("segments", self.dev)


class Address(msgspec.Struct, frozen=True, tag=True):
    """`cidr` is address and prefix length, `10.244.1.1/24`.

    `routed`: the route to its subnet, which the kernel makes, is there (`connected`). Without it only the address is.
    """

    dev: str
    cidr: str
    routed: bool = True

    @property
    def key(self) -> Key:
        return ("address", self.dev, self.cidr)


class Route(msgspec.Struct, frozen=True, tag=True):
    """A route of the main table. `dst` is a CIDR (`default` for 0.0.0.0/0); empty strings are absent.

    `proto` is the name in /etc/iproute2/rt_protos the upstream component uses (`boot` for flannel and CNI).
    `nexthops`: ECMP, as (via, dev) pairs; then `via` and `dev` are empty.
    """

    dst: str
    dev: str = ""
    via: str = ""
    proto: str = "boot"
    onlink: bool = False
    src: str = ""
    metric: int = 0
    mtu: int = 0
    kind: str = "unicast"  # or blackhole, unreachable, prohibit
    scope: str = ""  # empty: what the kernel gives a route of this form
    nexthops: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> Key:
        return ("route", self.dst, str(self.metric))


def connected(address: Address) -> "Route | None":
    """The route that the kernel makes of an address on a device that is up; none of one that is alone in its subnet."""
    interface = ip_interface(address.cidr)
    if interface.network.prefixlen == interface.max_prefixlen:
        return None
    return Route(str(interface.network), address.dev, proto="kernel", src=str(interface.ip), scope="link")


class Neighbour(msgspec.Struct, frozen=True, tag=True):
    """A permanent neighbour entry (these do not count against the machine's one IPv4 neighbour table)."""

    dev: str
    ip: str
    mac: str

    @property
    def key(self) -> Key:
        return ("neighbour", self.dev, self.ip)


class FdbEntry(msgspec.Struct, frozen=True, tag=True):
    """A permanent `self` entry of a VXLAN device: frames for `mac` go to the VTEP at `dst`."""

    dev: str
    mac: str
    dst: str

    @property
    def key(self) -> Key:
        return ("fdb", self.dev, self.mac)


class WireguardKey(msgspec.Struct, frozen=True, tag=True):
    """Who a WireGuard device is: the private key in `key_file`, told here by its public half, and the UDP port."""

    dev: str
    public_key: str
    port: int
    key_file: str

    @property
    def key(self) -> Key:
        return ("wireguard", self.dev)


class WireguardPeer(msgspec.Struct, frozen=True, tag=True):
    """Packets for `allowed_ips` (CIDRs, sorted) go to the peer at `endpoint`, and only such are taken from it.

    `endpoint` is `ip:port` or `[ip]:port`, `keepalive` seconds (0: off), `psk_file` holds the preshared key, if any.
    """

    dev: str
    public_key: str
    endpoint: str
    allowed_ips: tuple[str, ...]
    keepalive: int = 0
    psk_file: str = ""

    @property
    def key(self) -> Key:
        return ("wireguard", self.dev, self.public_key)


class Offload(msgspec.Struct, frozen=True, tag=True):
    """What a device leaves to whoever comes after it, switched off: `off` are ethtool's words, in `OFFLOADS`' order.

    A device that has all of them on, as a veth and a VXLAN device are made, has no such value.
    """

    dev: str
    off: tuple[str, ...]

    @property
    def key(self) -> Key:
        return ("offload", self.dev)


class Sysctl(msgspec.Struct, frozen=True, tag=True):
    """`name` with dots (a dot inside an interface name is written /), `value` as /proc/sys prints it."""

    name: str
    value: str

    @property
    def key(self) -> Key:
        return ("sysctl", self.name)


def of_interface(sysctl: str) -> bool:
    """Whether it belongs to a device, and so can only be written when that is there; `all` and `default` always are."""
    parts = sysctl.split(".")
    return len(parts) > 3 and parts[2] in {"conf", "neigh"} and parts[3] not in {"all", "default"}


class Chain(msgspec.Struct, frozen=True, tag=True, gc=False):
    """An iptables chain, whole: `rules` are its lines without `-A NAME`, spelled as iptables-save prints them.

    `policy` is ACCEPT or DROP for a built-in chain and empty for any other. Built-in chains belong to us whole.
    """

    table: str
    name: str
    rules: tuple[str, ...] = ()
    policy: str = ""
    family: Family = "ip"

    @property
    def key(self) -> Key:
        return ("chain", self.family, self.table, self.name)


class LegacyChain(msgspec.Struct, frozen=True, tag=True, gc=False):
    """A chain of the older xtables where `iptables` itself writes nf_tables: packets pass both, `iptables` shows one.

    As a Chain otherwise. Nothing here wants one, but a fault.
    """

    table: str
    name: str
    rules: tuple[str, ...] = ()
    policy: str = ""
    family: Family = "ip"

    @property
    def key(self) -> Key:
        return ("legacy", self.family, self.table, self.name)


class NftTable(msgspec.Struct, frozen=True, tag=True, gc=False):
    """An nftables table that is not one of iptables' own; what is in it are values of their own."""

    name: str
    comment: str = ""
    family: str = "ip"

    @property
    def key(self) -> Key:
        return ("nft", self.family, self.name)


class NftChain(msgspec.Struct, frozen=True, tag=True, gc=False):
    """A chain of an nftables table, whole; `rules` as `nft list` prints them, without handles.

    `hook` is empty, or says where a base chain stands: `type nat hook prerouting priority -100; policy accept;`.
    """

    table: str
    name: str
    rules: tuple[str, ...] = ()
    hook: str = ""
    comment: str = ""
    family: str = "ip"

    @property
    def key(self) -> Key:
        return ("nft", self.family, self.table, "chain", self.name)


class NftSet(msgspec.Struct, frozen=True, tag=True, gc=False):
    """A named set, or a map (`kind` is then `key : data`), without its elements. `timeout` in seconds; 0: none.

    What a `dynamic` set holds was put there by packets, and is no value.
    """

    table: str
    name: str
    kind: str
    flags: tuple[str, ...] = ()
    timeout: int = 0
    comment: str = ""
    family: str = "ip"

    @property
    def is_map(self) -> bool:
        return " : " in self.kind

    @property
    def key(self) -> Key:
        return ("nft", self.family, self.table, "set", self.name)


class NftElement(msgspec.Struct, frozen=True, tag=True, gc=False):
    """One element of a set or map: `element` is its key (`10.96.0.10 . udp . 53`), `data` what a map has for it."""

    table: str
    set: str
    element: str
    data: str = ""
    comment: str = ""
    family: str = "ip"

    @property
    def key(self) -> Key:
        return ("nft", self.family, self.table, "element", self.set, self.element)


Nft = NftTable | NftChain | NftSet | NftElement


class IpSet(msgspec.Struct, frozen=True, tag=True):
    """An ipset, whole: `entries` as `ipset list` prints them (`10.244.1.2`, `10.0.0.0/8`, `10.244.1.2,tcp:80`).

    It is one value with all it holds because it is swapped in one step: no packet meets one that is half written.
    """

    name: str
    kind: str  # the type: hash:ip, hash:net or hash:ip,port
    entries: frozenset[str] = frozenset()
    family: Literal["inet", "inet6"] = "inet"

    @property
    def key(self) -> Key:
        return ("ipset", self.name)


class Process(msgspec.Struct, frozen=True, tag=True):
    """A process in the namespace, known by its argv; `copies` is what is running (a crash may leave two), wanted is 1.

    A File of the same namespace whose path stands in argv is what the process reads: when it changes, the process is
    told to read it again (see `kernel/process.py`).
    """

    argv: tuple[str, ...]
    copies: int = 1

    @property
    def key(self) -> Key:
        return ("process", *self.argv)


class File(msgspec.Struct, frozen=True, tag=True):
    """A file that belongs to the namespace: under its run directory, or under /etc/netns/<netns>/."""

    path: str
    content: str
    mode: int = 0o600

    @property
    def key(self) -> Key:
        return ("file", self.path)


class Listener(msgspec.Struct, frozen=True, tag=True):
    """A socket that takes connections or datagrams; observed, never wanted: pods are ready when theirs are there."""

    protocol: str  # TCP or UDP; or what a program says of itself: HTTP, FAIL (health), "REFUSED why" (its file)
    port: int
    address: str = "0.0.0.0"  # noqa: S104 - a value, nothing is bound here

    @property
    def key(self) -> Key:
        return ("listener", self.protocol, self.address, str(self.port))


class Conntrack(msgspec.Struct, frozen=True, tag=True):
    """An entry of conntrack; observed when asked for by kind, never wanted, and it may be deleted.

    `answerer` is who answers, as `ip:port` or `[ip]:port`: the reply's source. Where that is not the destination, DNAT
    rewrote it.
    """

    src: str
    sport: int
    dst: str
    dport: int
    answerer: str
    protocol: str = "udp"  # or tcp, sctp

    @property
    def key(self) -> Key:
        return ("conntrack", self.protocol, self.src, str(self.sport), self.dst, str(self.dport))

    @property
    def rewritten(self) -> bool:
        return self.answerer != socket_address(self.dst, self.dport)


FILLERS = "198.18.0.0/16"
"""Sources of the entries that fill a conntrack table: addresses for benchmarks, which nobody has (RFC 2544)."""


class ConntrackTable(msgspec.Struct, frozen=True, tag=True):
    """Conntrack's table of a node, where that is `full` (nothing new has room), or was `filled` on purpose.

    How many entries have room is the machine's to say (`net.netfilter.nf_conntrack_max`), and each namespace counts its
    own. One that is full of real connections is only ever observed.
    """

    full: bool = True
    filled: bool = True

    @property
    def key(self) -> Key:
        return ("tracking",)


Value = (
    Netns
    | Loopback
    | Bridge
    | Veth
    | Vxlan
    | Ipip
    | Tun
    | Wireguard
    | OtherLink
    | BridgePort
    | Qdisc
    | Segments
    | Address
    | Route
    | Neighbour
    | FdbEntry
    | WireguardKey
    | WireguardPeer
    | Offload
    | Sysctl
    | Chain
    | LegacyChain
    | NftTable
    | NftChain
    | NftSet
    | NftElement
    | IpSet
    | Process
    | File
    | Listener
    | Conntrack
    | ConntrackTable
)
Link = Bridge | Veth | Vxlan | Ipip | Tun | Wireguard | OtherLink

State = Mapping[str, frozenset[Value]]
"""A cluster's state: namespace name → its values. A namespace that is not a key does not exist."""


class Looking(Mapping[str, frozenset[Value]]):
    """A State that is read while somebody goes through it; chains are not among the values, but asked for one by one.

    `there`: all names, before anybody knows whether these namespaces bear the cluster's mark.
    """

    there: frozenset[str]

    @abstractmethod
    def chains(self, netns: str, family: Family) -> Mapping[tuple[str, str], Chain]:
        """By table and name."""

    @abstractmethod
    def mac(self, netns: str, dev: str) -> str:
        """Of a device; the rest of its namespace need not be read for that."""

    @abstractmethod
    def likely(self, mac: str) -> str:
        """The device that should have it, as `netns/device`: where to look first. Empty: nobody knows."""

    @abstractmethod
    def has_tables(self, netns: str) -> bool:
        """Has it any of iptables' or ip6tables' tables?"""

    @abstractmethod
    def ahead(self, nodes: Iterable[str], family: Family) -> None:
        """Their chains will be asked for, in this order: they may be read meanwhile."""


Scope = Mapping[str, frozenset[Key]]
"""What a look is limited to: namespace → keys. An empty set of keys means the whole namespace."""
FILTER_KINDS = frozenset({"chain", "legacy", "nft", "ipset"})
KINDS = FILTER_KINDS | {
    "netns", "link", "port", "segments", "qdisc", "address", "neighbour", "route", "fdb", "sysctl", "process", "file",
    "listener", "wireguard", "offload", "tracking",
}  # fmt: skip
"""The first words of keys: what a look at everything reads."""

Hold = tuple[str, Key]
"""(namespace, beginning of a key): what is not touched. `()` holds the whole namespace, `("link", "cni0")` a link,
`("chain", "ip", "nat", "KUBE-SVC-*")` the chains of such a name."""

Verb = Literal["add", "replace", "delete"]


class Change(msgspec.Struct, frozen=True):
    """One step towards what is wanted. `value` is the wanted one; for `delete` it is the one that is there.

    `old` is what stands under the same key (for `replace`).
    """

    verb: Verb
    netns: str
    value: Value
    old: Value | None = None

    def __str__(self) -> str:
        return "\n".join(lines(self))


class Refusal(msgspec.Struct, frozen=True):
    """A change that the kernel (or a tool) refused, with its own sentence."""

    change: Change
    reason: str

    def __str__(self) -> str:
        return f"{lines(self.change)[0]}: {self.reason}"


OFFLOADS = ("rx", "tx", "sg", "tso", "gso")
"""What a veth has on when it is made, in the words of `ethtool -K`. Off, checksums and packet sizes are real."""

# Where it has IPv6 at all: `kernel.netns` makes a namespace without, because of what that costs.
IPV6 = ("net.ipv6.conf.default.disable_ipv6", "net.ipv6.conf.default.addr_gen_mode")

# What `observe` reads in a namespace of each kind; `render` may want no other (a test holds them together).
# A `*` stands for one interface name.
SYSCTLS: Mapping[str, tuple[str, ...]] = {
    "node": (
        "net.ipv4.ip_forward",
        "net.bridge.bridge-nf-call-iptables",
        "net.ipv4.conf.all.rp_filter",
        "net.ipv4.conf.default.rp_filter",
        "net.ipv4.conf.all.route_localnet",
        "net.ipv4.conf.*.route_localnet",
        "net.netfilter.nf_conntrack_tcp_timeout_established",
        "net.netfilter.nf_conntrack_tcp_timeout_close_wait",
        "net.netfilter.nf_conntrack_tcp_be_liberal",
        "net.netfilter.nf_conntrack_udp_timeout",
        "net.netfilter.nf_conntrack_udp_timeout_stream",
        *IPV6,
        "net.ipv6.conf.all.forwarding",
        "net.ipv6.conf.default.accept_ra",
        "net.bridge.bridge-nf-call-ip6tables",
    ),
    "fabric": (
        "net.ipv4.ip_forward",
        "net.bridge.bridge-nf-call-iptables",
        "net.ipv4.fib_multipath_hash_policy",
        *IPV6,
        "net.ipv6.conf.all.forwarding",
        "net.bridge.bridge-nf-call-ip6tables",
        "net.ipv6.fib_multipath_hash_policy",
        "net.ipv4.conf.all.send_redirects",
        "net.ipv4.conf.default.send_redirects",
    ),
    "host": IPV6,
    "pod": (),
}


def is_held(holds: Iterable[Hold], netns: str, key: Key) -> bool:
    """Is the key in this namespace under one of the holds?"""
    return any(place == netns and begins(key, prefix) for place, prefix in holds)


def begins(key: Key, prefix: Key) -> bool:
    """Does the key begin like that? A last word that ends in `*` stands for all that begin with it."""
    if prefix and prefix[-1].endswith("*") and len(key) >= len(prefix):
        last = len(prefix) - 1
        return key[:last] == prefix[:last] and key[last].startswith(prefix[last][:-1])
    return key[: len(prefix)] == prefix


SEGMENTS = 65535  # what the kernel makes a device with (GSO_MAX_SEGS)
_QUEUE = 10_000  # packets that netem holds: 100 ms at 1 Gbit/s
_BURST = 3_200  # bytes, two frames: the least that tbf lets pass at once


def qdisc_options(value: Qdisc) -> list[str]:
    """The options that tc takes: tbf's bucket holds 10 ms of its rate, its queue 50 ms."""
    words = [part for word in value.words for part in word.split()]
    if value.kind == "tbf":
        return [*words, "burst", str(max(_BURST, value.rate // 800)), "latency", "50ms"]
    return ["limit", str(_QUEUE), *words]


def socket_address(ip: str, port: int | str) -> str:
    """`10.0.0.1:80`, `[fd00::1]:80`."""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def in_place(old: Value, new: Value) -> bool:
    """Can the link become the new one without being deleted: is it the same but for mac, mtu and up?"""
    match old:
        case Bridge() | Loopback():
            return type(old) is type(new)
        case Veth():
            return isinstance(new, Veth) and old.peer == new.peer
        case Vxlan():
            return isinstance(new, Vxlan) and replace(old, mac=new.mac, mtu=new.mtu, up=new.up) == new
        case Ipip() | Tun() | Wireguard():
            return isinstance(new, Ipip | Tun | Wireguard) and replace(old, mtu=new.mtu, up=new.up) == new
    return False


def text(value: Value) -> str:
    """The value as the line a person would type inside the namespace to make it."""
    return "; ".join(_words(value))


def words(value: Value) -> list[str]:
    """The same as separate lines (a rule's comment may have a `;` in it)."""
    return list(_words(value))


def _words(value: Value) -> Iterator[str]:
    match value:
        case Netns(mark):
            yield f"ip link set lo alias {mark}"
        case Loopback(up):
            yield f"ip link set lo {_updown(up)}"
        case Bridge(name, mac, mtu, up):
            yield f"ip link add {quote(name)} address {mac} mtu {mtu} type bridge"
            yield f"ip link set {quote(name)} {_updown(up)}"
        case Veth(name, peer, mac, mtu, up) if is_uplink(value):
            far = far_end(value)
            yield f"ip link add {quote(name)} address {mac} mtu {mtu} type veth peer name {quote(far)} netns 1"
            yield f"nsenter -t 1 -n ip link set {quote(far)} master {quote(peer[1:])} up"
            yield f"ip link set {quote(name)} {_updown(up)}"
        case Veth(name, peer, mac, mtu, up):
            other, _, dev = peer.rpartition("/")
            cable = f"ip link add {quote(name)} address {mac} mtu {mtu} type veth"
            yield f"{cable} peer name {quote(dev)} netns {quote(other)}"
            yield f"ip link set {quote(name)} {_updown(up)}"
        case Vxlan(name, mac, mtu, vni, local, dev, port, learning, up):
            learn = "learning" if learning else "nolearning"
            yield (
                f"ip link add {quote(name)} address {mac} mtu {mtu} "
                f"type vxlan id {vni} local {local} {f'dev {quote(dev)} ' if dev else ''}dstport {port} {learn}"
            )
            yield f"ip link set {quote(name)} {_updown(up)}"
        case Ipip(name, mtu, local, remote, pmtudisc, up):
            ends = f"local {local}" + (f" remote {remote}" if remote else "")
            yield f"ip link add {quote(name)} mtu {mtu} type ipip {ends} {'' if pmtudisc else 'no'}pmtudisc"
            yield f"ip link set {quote(name)} {_updown(up)}"
        case Tun(name, mtu, up):
            yield f"ip tuntap add dev {quote(name)} mode tun"
            yield f"ip link set {quote(name)} mtu {mtu} {_updown(up)}"
        case Wireguard(name, mtu, up):
            yield f"ip link add {quote(name)} mtu {mtu} type wireguard"
            yield f"ip link set {quote(name)} {_updown(up)}"
        case OtherLink(name, kind):
            yield f"ip link add {quote(name)} type {kind}"
        case BridgePort(name, bridge, hairpin):
            yield f"ip link set {quote(name)} master {quote(bridge)}"
            yield f"bridge link set dev {quote(name)} hairpin {'on' if hairpin else 'off'}"
        case Qdisc(dev, kind):
            yield f"tc qdisc replace dev {quote(dev)} root {kind} {' '.join(qdisc_options(value))}"
        case Segments(dev, most):
            yield f"ip link set dev {quote(dev)} gso_max_segs {most}"
        case Address(dev, cidr):
            yield f"ip address add {cidr} dev {quote(dev)}{' nodad' if ':' in cidr else ''}"
        case Route():
            yield f"ip route replace {_route(value)}"
        case Neighbour(dev, ip, mac):
            yield f"ip neighbour replace {ip} lladdr {mac} dev {quote(dev)} nud permanent"
        case FdbEntry(dev, mac, dst):
            yield f"bridge fdb replace {mac} dev {quote(dev)} dst {dst} self permanent"
        case WireguardKey(dev, public, port, file):
            yield f"wg set {quote(dev)} listen-port {port} private-key {quote(file)}  # {public}"
        case WireguardPeer():
            yield _peer(value)
        case Offload(dev, off):
            yield f"ethtool -K {quote(dev)} {' '.join(f'{word} off' for word in off)}"
        case Sysctl(name, content):
            yield f"sysctl -w {quote(name)}={quote(content)}"
        case Chain(table, name, rules, policy) | LegacyChain(table, name, rules, policy):
            tool = _iptables(value)
            yield f"{tool} -t {table} " + (f"-P {quote(name)} {policy}" if policy else f"-N {quote(name)}")
            for rule in rules:
                yield f"{tool} -t {table} -A {quote(name)} {_rule(rule)}"
        case NftTable() | NftChain() | NftSet() | NftElement():
            yield from (f"nft {quote(line)}" for line in nft_lines(value))
        case IpSet(name, kind, entries, family):
            yield f"ipset create {quote(name)} {kind}" + (f" family {family}" if family != "inet" else "")
            yield from (f"ipset add {quote(name)} {entry}" for entry in sorted(entries))
        case Process(argv):
            yield f"setsid {' '.join(map(quote, argv))} &"
        case File(path, content, mode):
            yield f"install -D -m {mode:o} /dev/stdin {quote(path)}  # {len(content.encode())} bytes"
        case Listener(protocol, port, address):
            yield f"# {protocol} {socket_address(address, port)} listens"
        case Conntrack():
            yield f"# {_entry(value)} is answered by {value.answerer}"
        case ConntrackTable(filled=filled):
            yield f"# conntrack's table is full{f' of entries from {FILLERS}' if filled else ''}"


def _iptables(chain: Chain | LegacyChain) -> str:
    """The tool that writes it."""
    tool = "iptables" if chain.family == "ip" else "ip6tables"
    return f"{tool}-legacy" if isinstance(chain, LegacyChain) else tool


_PLAIN = re.compile(r'(?:(?:[-\w.,:/!+=%@[\]]+|"(?:[^"\\$`]|\\["\\])*")(?: |$))*', re.ASCII)


def _rule(rule: str) -> str:
    """A rule as iptables-save spells it, which is how a shell reads it, but for what a shell would act on."""
    if _PLAIN.fullmatch(rule):
        return rule
    try:
        return " ".join(map(quote, split(rule)))
    except ValueError:  # no closing quotation
        return quote(rule)


def _peer(peer: WireguardPeer) -> str:
    words = [f"wg set {quote(peer.dev)} peer {quote(peer.public_key)}"]
    words += [f"preshared-key {quote(peer.psk_file)}"] if peer.psk_file else []
    words += [f"endpoint {peer.endpoint}"]
    words += [f"persistent-keepalive {peer.keepalive}"] if peer.keepalive else []
    return " ".join([*words, f"allowed-ips {','.join(peer.allowed_ips)}"])


def _updown(up: bool) -> str:
    return "up" if up else "down"


def _route(route: Route) -> str:
    words = [] if route.kind == "unicast" else [route.kind]
    words.append(route.dst)
    if route.nexthops:
        words += [f"nexthop via {via} dev {quote(dev)}" for via, dev in route.nexthops]
    words += [f"{name} {quote(str(value))}" for name, value in (("via", route.via), ("dev", route.dev)) if value]
    if route.proto != "boot":
        words.append(f"proto {route.proto}")
    words += [f"{name} {quote(str(value))}" for name, value in (("scope", route.scope), ("src", route.src)) if value]
    words += [f"{name} {quote(str(value))}" for name, value in (("metric", route.metric), ("mtu", route.mtu)) if value]
    if route.onlink:
        words.append("onlink")
    return " ".join(words)


def lines(change: Change) -> list[str]:
    """The change as full command lines, the namespace named in each."""
    if isinstance(change.value, Netns) and change.verb != "replace":
        if change.verb == "delete":
            return [f"ip netns delete {quote(change.netns)}"]
        return [f"ip netns add {quote(change.netns)}", *(_inside(change.netns, word) for word in _words(change.value))]
    words = list(_delete(change.value)) if change.verb == "delete" else list(_replace(change))
    return [_inside(change.netns, word) for word in words]


def _inside(netns: str, line: str) -> str:
    tool, _, rest = line.partition(" ")
    where = quote(netns)
    return f"{tool} -n {where} {rest}" if tool in {"ip", "bridge", "tc"} else f"ip netns exec {where} {line}"


def _replace(change: Change) -> Iterator[str]:
    value = change.value
    if change.verb == "replace" and change.old is not None:
        match value:
            case Bridge() | Veth() | Vxlan() | Ipip() | Tun() | Wireguard() | OtherLink():
                yield f"ip link delete {quote(value.name)}"
            case Offload():
                yield from _delete(change.old)
            case Address() if (route := connected(value)) is not None:
                yield f"ip route add {_route(route)}"
                return
            case Chain() | LegacyChain():
                yield f"{_iptables(value)} -t {value.table} -F {quote(value.name)}"
                yield from list(_words(value))[0 if value.policy else 1 :]
                return
            case Process(argv):
                yield f"pkill -f {quote(' '.join(argv))}"
            case NftTable() | NftChain() | NftSet() | NftElement():
                assert isinstance(change.old, Nft)
                yield from (f"nft {quote(line)}" for line in nft_replace_lines(change.old, value))
                return
            case IpSet():
                assert isinstance(change.old, IpSet)
                yield from ipset_replace_lines(change.old, value)
                return
            case _:
                pass
    yield from _words(value)


def _delete(value: Value) -> Iterator[str]:
    match value:
        case Netns():
            yield "ip link set lo alias ''"
        case Loopback():
            yield "ip link set lo down"
        case Bridge() | Veth() | Vxlan() | Ipip() | Tun() | Wireguard() | OtherLink():
            yield f"ip link delete {quote(value.name)}"
        case WireguardKey(dev):
            yield f"# {dev} keeps its key until it goes"
        case WireguardPeer(dev, public):
            yield f"wg set {quote(dev)} peer {public} remove"
        case Offload(dev, off):
            yield f"ethtool -K {quote(dev)} {' '.join(f'{word} on' for word in off)}"
        case BridgePort(name):
            yield f"ip link set {quote(name)} nomaster"
        case Qdisc(dev):
            yield f"tc qdisc delete dev {quote(dev)} root"
        case Segments(dev):
            yield f"ip link set dev {quote(dev)} gso_max_segs {SEGMENTS}"
        case Address(dev, cidr):
            yield f"ip address delete {cidr} dev {quote(dev)}"
        case Route():
            yield f"ip route delete {_route(value)}"
        case Neighbour(dev, ip):
            yield f"ip neighbour delete {ip} dev {quote(dev)}"
        case FdbEntry(dev, mac, dst):
            yield f"bridge fdb delete {mac} dev {quote(dev)} dst {dst} self"
        case Sysctl(name):
            yield f"# {name} goes back to the kernel's default"
        case Chain(table, name, _, policy) | LegacyChain(table, name, _, policy):
            tool = _iptables(value)
            yield f"{tool} -t {table} -F {quote(name)}"
            yield f"{tool} -t {table} " + (f"-P {quote(name)} ACCEPT" if policy else f"-X {quote(name)}")
        case NftTable() | NftChain() | NftSet() | NftElement():
            yield from (f"nft {quote(line)}" for line in nft_delete_lines(value))
        case IpSet(name):
            yield f"ipset destroy {quote(name)}"
        case Process(argv):
            yield f"pkill -f {quote(' '.join(argv))}"
        case File(path):
            yield f"rm {quote(path)}"
        case Listener(protocol, port, address):
            yield f"# {protocol} {socket_address(address, port)} closes"
        case Conntrack():
            yield f"conntrack -D {_entry(value)}"
        case ConntrackTable():
            yield f"conntrack -D -s {FILLERS}"


def _entry(value: Conntrack) -> str:
    return f"-p {value.protocol} -s {value.src} --sport {value.sport} -d {value.dst} --dport {value.dport}"


def ipset_replace_lines(old: IpSet, new: IpSet) -> Iterator[str]:
    """What makes `new` of `old` by the entries that differ (what is applied is a swap: all of them in one step)."""
    yield from (f"ipset add {quote(new.name)} {entry}" for entry in sorted(new.entries - old.entries))
    yield from (f"ipset del {quote(new.name)} {entry}" for entry in sorted(old.entries - new.entries))


# --- nftables: lines of `nft -f` --------------------------------------------------------------------------------------


def nft_lines(value: Nft) -> Iterator[str]:
    """What makes the value, as lines that `nft -f` takes; a chain that is there keeps its rules in front."""
    where = f"{value.family} {value.name if isinstance(value, NftTable) else value.table}"
    match value:
        case NftTable():
            yield f"add table {where}{_braces(_comment(value.comment))}"
        case NftChain(_, name, rules):
            yield f"add chain {where} {name}{_braces(value.hook, _comment(value.comment))}"
            yield from (f"add rule {where} {name} {rule}" for rule in rules)
        case NftSet(_, name):
            yield f"add {'map' if value.is_map else 'set'} {where} {name}{_braces(*_set(value))}"
        case NftElement(_, name, element, data, comment):
            said = f' comment "{comment}"' if comment else ""
            yield f"add element {where} {name} {{ {element}{said}{f' : {data}' if data else ''} }}"


def nft_delete_lines(value: Nft) -> Iterator[str]:
    """What removes the value. With a table goes all that is in it; a chain that is jumped to cannot go."""
    match value:
        case NftTable(name):
            yield f"delete table {value.family} {name}"
        case NftChain(table, name):
            yield f"flush chain {value.family} {table} {name}"
            yield f"delete chain {value.family} {table} {name}"
        case NftSet(table, name):
            yield f"delete {'map' if value.is_map else 'set'} {value.family} {table} {name}"
        case NftElement(table, name, element):
            yield f"delete element {value.family} {table} {name} {{ {element} }}"


def nft_replace_lines(old: Nft, new: Nft) -> Iterator[str]:
    """What makes `new` of `old`, which has the same key. A set of another type, and a table, are made anew."""
    match old, new:
        case NftChain(), NftChain() if (old.hook, old.comment) == (new.hook, new.comment):
            yield f"flush chain {new.family} {new.table} {new.name}"
            yield from (f"add rule {new.family} {new.table} {new.name} {rule}" for rule in new.rules)
        case NftSet(), NftSet() if (old.kind, old.flags, old.comment) == (new.kind, new.flags, new.comment):
            yield from nft_lines(new)  # another timeout: the kernel changes it in place (6.3)
        case _:
            yield from nft_delete_lines(old)
            yield from nft_lines(new)


def nft_interval(first: str, last: str) -> str:
    """A range of addresses as nft prints it: one address, a prefix, or `first-last`."""
    if first == last:
        return first
    start, end = ip_address(first), ip_address(last)
    host = int(start) ^ int(end)
    aligned = host & (host + 1) == 0 and not int(start) & host
    return f"{first}/{start.max_prefixlen - host.bit_length()}" if aligned else f"{first}-{last}"


def _set(value: NftSet) -> Iterator[str]:
    yield f"type {value.kind} ;"
    if value.flags:
        yield f"flags {','.join(value.flags)} ;"
    if value.timeout:
        yield f"timeout {value.timeout}s ;"
    yield _comment(value.comment)


def _comment(words: str) -> str:
    return f'comment "{words}" ;' if words else ""


def _braces(*words: str) -> str:
    inside = " ".join(word for word in words if word)
    return f" {{ {inside} }}" if inside else ""
