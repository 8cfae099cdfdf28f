"""What this machine can do, found by trying: each feature in a throw-away network namespace, made for that one try.

Asking (lsmod, /proc/config.gz) is not reliable: features are built in, or loaded the moment they are used, or switched
off in a container. A try costs a few milliseconds.
"""

import errno
import fcntl
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import msgspec

from nsnet.errors import InputError, MachineError
from nsnet.state import Family

_SIOCGIFADDR = 0x8915

State = Literal["ok", "missing", "degraded", "unknown"]
AT_ONCE = 4  # tries that run side by side
PATIENCE = 20.0  # s for one try
_VERSION = re.compile(r"\d+\.\d[^\s,]*(?: \((?:nf_tables|legacy)\))?")
_MODPROBE = re.compile(r"sudo modprobe (\w+)")


class Feature(msgspec.Struct, frozen=True):
    """Something nsnet uses. `words` try it; `mend` is the command (or the kernel option) that gives it."""

    name: str
    words: tuple[str, ...]
    mend: str
    why: str = ""
    needed: bool = True
    after: str = ""  # a file without which it is not tried: the try would change how the machine behaves

    @property
    def may_be_tried(self) -> bool:
        return not self.after or Path(self.after).exists()


class Finding(msgspec.Struct, frozen=True):
    """One line of `doctor`. `why`: what it is for, or what it costs; `found`: what is there (a version, a number)."""

    name: str
    ok: bool
    mend: str = ""
    why: str = ""
    needed: bool = True
    state: State | Literal[""] = ""  # empty: ok or missing
    found: str = ""
    about: str = "kernel"

    @property
    def verdict(self) -> State:
        return self.state or ("ok" if self.ok else "missing")


def _module(module: str, option: str) -> str:
    return f"sudo modprobe {module} (kernel option {option})"


def _rule(table: str, chain: str, *rule: str) -> tuple[str, ...]:
    return ("iptables", "-w", "-t", table, "-A", chain, *rule)


def _rule6(chain: str, *rule: str) -> tuple[str, ...]:
    return ("ip6tables", *_rule("nat", chain, *rule)[1:])


class Tool(msgspec.Struct, frozen=True):
    """A program of the machine. `version` are the words after its name that make it say one."""

    name: str
    package: str
    why: str
    needed: bool = False  # by every `up`
    version: str = "--version"


SCTP = "sctp match"
TOOLS: tuple[Tool, ...] = (
    Tool("ip", "iproute2", "network namespaces for people, `nsnet plan -o sh`", needed=True, version="-V"),
    Tool("tc", "iproute2", "impaired links", version="-V"),
    Tool("iptables-restore", "iptables", "kube-proxy's and flannel's rules", needed=True),
    Tool("iptables-save", "iptables", "kube-proxy's and flannel's rules", needed=True),
    Tool("ip6tables-restore", "iptables", "the rules of clusters with IPv6"),
    Tool("nft", "nftables", "kubeProxyMode: nftables, live rule traces"),
    Tool("conntrack", "conntrack", "looking at connections by hand"),
    Tool("ethtool", "ethtool", "looking at offloads by hand"),
    Tool("tcpdump", "tcpdump", "capture filters"),
    Tool("curl", "curl", "the commands that `up` proposes"),
    Tool("dnsmasq", "dnsmasq-base", "the cluster's DNS", needed=True),
    Tool("nslookup", "bind9-dnsutils", "exechealthz's probe of the cluster's DNS", needed=True, version="-version"),
    Tool("haproxy", "haproxy", "Ingress and the Gateway API", version="-v"),
    Tool("bwrap", "bubblewrap", "pods that run a command of their own (nsnet/run)"),
    Tool("etcd", "etcd-server", "nsnet up --store etcd"),
    Tool("etcdctl", "etcd-client", "looking into an etcd by hand", version="version"),
)
LEGACY: Mapping[Family, str] = {"ip": "legacy iptables", "ip6": "legacy ip6tables"}
FEATURES: tuple[Feature, ...] = (
    Feature("network namespaces", ("true",), "kernel option CONFIG_NET_NS", "every pod and node is one"),
    Feature(
        "veth",
        ("ip", "link", "add", "veth1", "type", "veth", "peer", "name", "veth2"),
        _module("veth", "CONFIG_VETH"),
        "every pod's eth0",
    ),
    Feature("bridge", ("ip", "link", "add", "cni0", "type", "bridge"), _module("bridge", "CONFIG_BRIDGE"), "cni0"),
    Feature(
        "vxlan",
        ("ip", "link", "add", "vxlan1", "type", "vxlan", "id", "1", "dstport", "8472", "local", "127.0.0.1"),
        _module("vxlan", "CONFIG_VXLAN"),
        "flannel's default backend",
    ),
    Feature(
        "ipip",
        ("ip", "link", "add", "ipip1", "type", "ipip", "local", "127.0.0.1"),
        _module("ipip", "CONFIG_NET_IPIP"),
        "flannel's backend ipip",
        needed=False,
    ),
    Feature(
        "wireguard",
        ("ip", "link", "add", "wg1", "type", "wireguard"),
        _module("wireguard", "CONFIG_WIREGUARD"),
        "flannel's backend wireguard",
        needed=False,
    ),
    Feature(
        "tun",
        ("ip", "tuntap", "add", "dev", "tun1", "mode", "tun"),
        _module("tun", "CONFIG_TUN"),
        "flannel's backend udp",
        needed=False,
    ),
    Feature(
        "bridge-nf-call-iptables",
        ("test", "-e", "/proc/sys/net/bridge/bridge-nf-call-iptables"),
        "sudo scripts/setup (kernel option CONFIG_BRIDGE_NETFILTER)",
        "Services between pods of one node",
    ),
    Feature(
        "conntrack",
        _rule("filter", "FORWARD", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP"),
        _module("nf_conntrack", "CONFIG_NF_CONNTRACK"),
    ),
    Feature(
        "nat",
        _rule("nat", "PREROUTING", "-p", "tcp", "-j", "DNAT", "--to-destination", "192.0.2.1:80"),
        _module("nft_nat", "CONFIG_NFT_NAT"),
    ),
    Feature(
        "masquerade --random-fully",
        _rule("nat", "POSTROUTING", "-j", "MASQUERADE", "--random-fully"),
        _module("nft_masq", "CONFIG_NFT_MASQ"),
    ),
    Feature(
        "statistic match",
        _rule("nat", "OUTPUT", "-m", "statistic", "--mode", "random", "--probability", "0.5", "-j", "ACCEPT"),
        _module("xt_statistic", "CONFIG_NETFILTER_XT_MATCH_STATISTIC"),
        "the choice among endpoints",
    ),
    Feature(
        "mark target",
        _rule("nat", "OUTPUT", "-j", "MARK", "--or-mark", "0x4000"),
        _module("xt_MARK", "CONFIG_NETFILTER_XT_MARK"),
    ),
    Feature(
        "recent match",
        _rule("nat", "OUTPUT", "-m", "recent", "--name", "nsnet", "--set", "-j", "ACCEPT"),
        _module("xt_recent", "CONFIG_NETFILTER_XT_MATCH_RECENT"),
        "sessionAffinity: ClientIP",
    ),
    Feature(
        "cluster match",
        _rule(
            "nat", "OUTPUT", "-m", "cluster", "--cluster-total-nodes", "2", "--cluster-local-node", "1",
            "--cluster-hash-seed", "1", "-j", "ACCEPT",
        ),
        _module("xt_cluster", "CONFIG_NETFILTER_XT_MATCH_CLUSTER"),
        "sessionAffinity: ClientIP at the load balancer",
        needed=False,
    ),
    Feature(
        "addrtype match",
        _rule("nat", "OUTPUT", "-m", "addrtype", "--dst-type", "LOCAL", "-j", "ACCEPT"),
        _module("xt_addrtype", "CONFIG_NETFILTER_XT_MATCH_ADDRTYPE"),
        "NodePort",
    ),
    Feature(
        "multiport match",
        _rule("nat", "OUTPUT", "-p", "tcp", "-m", "multiport", "--dports", "1,2", "-j", "ACCEPT"),
        _module("xt_multiport", "CONFIG_NETFILTER_XT_MATCH_MULTIPORT"),
        "a pod's hostPort",
        needed=False,
    ),
    Feature(
        SCTP,
        _rule("nat", "OUTPUT", "-p", "sctp", "-m", "sctp", "--dport", "1", "-j", "ACCEPT"),
        _module("xt_sctp", "CONFIG_NETFILTER_XT_MATCH_SCTP"),
        "rules for SCTP ports, which are left out without it",
        needed=False,
    ),
    Feature(
        "REDIRECT target",
        _rule("nat", "PREROUTING", "-p", "tcp", "-j", "REDIRECT", "--to-ports", "1"),
        _module("xt_REDIRECT", "CONFIG_NETFILTER_XT_TARGET_REDIRECT"),
        "kubeProxyMode: userspace",
        needed=False,
    ),
    Feature(
        "physdev match",
        _rule("nat", "PREROUTING", "-m", "physdev", "!", "--physdev-is-in", "-j", "ACCEPT"),
        _module("xt_physdev", "CONFIG_NETFILTER_XT_MATCH_PHYSDEV"),
        "externalIPs under kubeProxyMode: userspace",
        needed=False,
        after="/proc/sys/net/bridge",  # it loads br_netfilter, which makes the machine's own bridges filter
    ),
    Feature(
        "string match",
        _rule("mangle", "OUTPUT", "-m", "string", "--string", "x", "--algo", "bm", "-j", "ACCEPT"),
        _module("xt_string", "CONFIG_NETFILTER_XT_MATCH_STRING"),
        "the fault dns-slow",
        needed=False,
    ),
    Feature(
        LEGACY["ip"],
        ("iptables-legacy", "-w", "-A", "FORWARD", "-j", "ACCEPT"),
        _module("iptable_filter", "CONFIG_IP_NF_FILTER"),
        "the fault legacy-forward-drop",
        needed=False,
    ),
    Feature(
        "ipset",
        (sys.executable, "-m", "nsnet.kernel.ipset"),
        "sudo modprobe ip_set_hash_net xt_set (kernel options CONFIG_IP_SET_HASH_IP, CONFIG_IP_SET_HASH_NET, "
        "CONFIG_IP_SET_HASH_IPPORT, CONFIG_NETFILTER_XT_SET)",
        "NetworkPolicy",
    ),
    Feature(
        "nftables",
        ("nft", "add", "table", "ip", "t"),
        _module("nf_tables", "CONFIG_NF_TABLES"),
        "kubeProxyMode: nftables",
        needed=False,
    ),
    Feature(
        "netem",
        ("tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"),
        _module("sch_netem", "CONFIG_NET_SCH_NETEM"),
        "delay, jitter, loss and reordering on links (loss and rate have a substitute)",
        needed=False,
    ),
    Feature(
        "tbf",
        ("tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", "1mbit", "burst", "32kbit", "latency", "400ms"),
        _module("sch_tbf", "CONFIG_NET_SCH_TBF"),
        "a link's rate where there is no netem",
        needed=False,
    ),
)  # fmt: skip

IPV6: tuple[Feature, ...] = (  # needed where podSubnet or a network has IPv6
    Feature(
        "IPv6",
        ("ip", "address", "add", "fd00::1/128", "dev", "lo"),
        "kernel option CONFIG_IPV6, without ipv6.disable=1; sudo sysctl -w net.ipv6.conf.default.disable_ipv6=0",
        "clusters with IPv6",
        needed=False,
    ),
    Feature(
        "bridge-nf-call-ip6tables",
        ("test", "-e", "/proc/sys/net/bridge/bridge-nf-call-ip6tables"),
        "sudo scripts/setup (kernel option CONFIG_BRIDGE_NETFILTER)",
        "IPv6 Services between pods of one node",
        needed=False,
    ),
    Feature(
        "vxlan over IPv6",
        ("ip", "link", "add", "vxlan1", "type", "vxlan", "id", "1", "dstport", "8472", "local", "::1"),
        _module("vxlan", "CONFIG_VXLAN"),
        "flannel's tunnel between IPv6 addresses",
        needed=False,
    ),
    Feature(
        "IPv6 nat",
        _rule6("PREROUTING", "-p", "tcp", "-j", "DNAT", "--to-destination", "[fd00::1]:80"),
        _module("nft_nat", "CONFIG_NFT_NAT"),
        "IPv6 Services",
        needed=False,
    ),
    Feature(
        "IPv6 masquerade --random-fully",
        _rule6("POSTROUTING", "-j", "MASQUERADE", "--random-fully"),
        _module("nft_masq", "CONFIG_NFT_MASQ"),
        "IPv6 Services from outside",
        needed=False,
    ),
    Feature(
        LEGACY["ip6"],
        ("ip6tables-legacy", "-w", "-A", "FORWARD", "-j", "ACCEPT"),
        _module("ip6table_filter", "CONFIG_IP6_NF_FILTER"),
        "the fault legacy-forward-drop",
        needed=False,
    ),
)  # fmt: skip


def root() -> Finding:
    return Finding("root", os.geteuid() == 0, "run it with sudo")


def tools() -> list[Finding]:
    """The programs nsnet starts or tells people to start, with their versions."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(_tool, TOOLS))


def _tool(tool: Tool) -> Finding:
    mend = f"sudo apt-get install {tool.package}"
    if shutil.which(tool.name) is None:
        return Finding(tool.name, ok=False, mend=mend, why=tool.why, needed=tool.needed, about="tools")
    try:
        words = (tool.name, tool.version)
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        why = f"{tool.why}; it does not even say its version: {error}"
        return Finding(tool.name, ok=False, mend=f"{mend} --reinstall", why=why, needed=tool.needed, about="tools")
    return Finding(tool.name, ok=True, why=tool.why, needed=tool.needed, found=_version(done), about="tools")


def _version(done: subprocess.CompletedProcess[str]) -> str:
    """`1.8.9 (nf_tables)` of whatever sentence; some say it on stderr."""
    found = _VERSION.search(done.stdout or done.stderr)
    return found.group() if found else "?"


def has_address(address: str) -> bool:
    """Has the machine this IPv4 address?"""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((address, 0))
        except OSError:
            return False
    return True


def address_of(interface: str) -> str:
    """The (first) IPv4 address of one of the machine's interfaces. Raises InputError where there is none."""
    request = struct.pack("16s24x", interface.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            return socket.inet_ntoa(fcntl.ioctl(sock, _SIOCGIFADDR, request)[20:24])
        except OSError as error:
            what = "no IPv4 address" if error.errno == errno.EADDRNOTAVAIL else "no such interface"
            raise InputError(f"{interface}: this machine has {what}", "ip -4 -br address shows what it has") from error


def need(tool: str, what: str) -> None:
    """Raises MachineError where a tool is missing that `what` asks for."""
    package = next(item.package for item in TOOLS if item.name == tool)
    if shutil.which(tool) is None:
        raise MachineError(f"{what} needs {tool}, which is not installed", f"sudo apt-get install {package}")


def features(wanted: Sequence[Feature] = (*FEATURES, *IPV6)) -> list[Finding]:
    """Tries each; needs root."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(_feature, wanted))


def _feature(item: Feature) -> Finding:
    works = item.may_be_tried and _works(item.words)
    if works:
        return Finding(item.name, works, item.mend, item.why, item.needed, found=_where(item.mend))
    return Finding(item.name, works, _mend(item.mend), item.why, item.needed)


def _where(mend: str) -> str:
    """Where a feature that works comes from: the module that `mend` would load, or the kernel itself."""
    named = _MODPROBE.match(mend)
    if named is None:
        return ""
    try:
        loaded = {line.split(" ", 1)[0] for line in Path("/proc/modules").read_text().splitlines()}
    except OSError:  # a kernel without modules
        loaded = set()
    return f"module {named.group(1)}" if named.group(1) in loaded else "built in"


def _mend(mend: str) -> str:
    """Where the kernel's package has no such module, loading it is no advice; Ubuntu has a package of further ones."""
    named = _MODPROBE.match(mend)
    release = os.uname().release
    try:
        there = Path("/lib/modules", release, "modules.dep").read_text()
    except OSError:
        there = ""
    if named is None or f"/{named.group(1)}.ko" in there:
        return mend
    option = mend.partition(" (kernel option")[2].strip(" s)")
    extra = f"sudo apt-get install linux-modules-extra-{release}, or " if "Ubuntu" in os.uname().version else ""
    return f"{extra}a kernel with {option} (there is no module {named.group(1)} for {release})"


def works(name: str) -> bool:
    """Tries the feature of that name."""
    return any(item.may_be_tried and _works(item.words) for item in (*FEATURES, *IPV6) if item.name == name)


def _works(words: tuple[str, ...]) -> bool:
    try:
        done = subprocess.run(("unshare", "--net", "--", *words), capture_output=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def missing(*, ipv6: bool = False) -> list[Finding]:
    """What `up` needs and this machine lacks, to explain a refusal; with `ipv6` also what only that needs."""
    found = [item for item in (root(), *tools(), *features(FEATURES)) if item.needed]
    return [item for item in (*found, *(features(IPV6) if ipv6 else ())) if not item.ok]
