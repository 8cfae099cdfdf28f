"""What this machine can do, found by trying: each feature in a throw-away network namespace, made for that one try.

Asking (lsmod, /proc/config.gz) is not reliable: features are built in, or loaded the moment they are used, or switched
off in a container. A try costs a few milliseconds.
"""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from nsnet.errors import MachineError

GC_THRESH = Path("/proc/sys/net/ipv4/neigh/default/gc_thresh3")


class Feature(msgspec.Struct, frozen=True):
    """Something nsnet uses. `words` try it; `mend` is the command (or the kernel option) that gives it."""

    name: str
    words: tuple[str, ...]
    mend: str
    why: str = ""
    needed: bool = True


class Finding(msgspec.Struct, frozen=True):
    name: str
    ok: bool
    mend: str = ""
    why: str = ""
    needed: bool = True


def _module(module: str, option: str) -> str:
    return f"sudo modprobe {module} (kernel option {option})"


def _rule(table: str, chain: str, *rule: str) -> tuple[str, ...]:
    return ("iptables", "-w", "-t", table, "-A", chain, *rule)


def _rule6(chain: str, *rule: str) -> tuple[str, ...]:
    return ("ip6tables", *_rule("nat", chain, *rule)[1:])


TOOLS: tuple[tuple[str, str, bool], ...] = (  # command, Debian package, is it needed by `up`
    ("ip", "iproute2", True),
    ("iptables-restore", "iptables", True),
    ("iptables-save", "iptables", True),
    ("nft", "nftables", False),
    ("conntrack", "conntrack", False),
    ("tcpdump", "tcpdump", False),
    ("curl", "curl", False),
    ("dnsmasq", "dnsmasq-base", True),
    ("nslookup", "bind9-dnsutils", True),
    ("etcd", "etcd-server", False),
    ("etcdctl", "etcd-client", False),
)
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
    ),
    Feature(
        "ipset",
        (sys.executable, "-m", "nsnet.kernel.ipset"),
        "sudo modprobe ip_set_hash_net xt_set (kernel options CONFIG_IP_SET_HASH_IP, CONFIG_IP_SET_HASH_NET, "
        "CONFIG_IP_SET_HASH_IPPORT, CONFIG_NETFILTER_XT_SET)",
        "NetworkPolicy",
    ),
    Feature("nftables", ("nft", "add", "table", "ip", "t"), _module("nf_tables", "CONFIG_NF_TABLES"), needed=False),
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
)  # fmt: skip


def root() -> Finding:
    return Finding("root", os.geteuid() == 0, "run it with sudo")


def tools() -> list[Finding]:
    """The programs nsnet starts or tells people to start."""
    return [
        Finding(tool, shutil.which(tool) is not None, f"sudo apt-get install {package}", needed=needed)
        for tool, package, needed in TOOLS
    ]


def has_address(address: str) -> bool:
    """Has the machine this IPv4 address?"""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((address, 0))
        except OSError:
            return False
    return True


def need(tool: str, what: str) -> None:
    """Raises MachineError where a tool is missing that `what` asks for."""
    package = next(package for name, package, _ in TOOLS if name == tool)
    if shutil.which(tool) is None:
        raise MachineError(f"{what} needs {tool}, which is not installed", f"sudo apt-get install {package}")


def features(wanted: Sequence[Feature] = (*FEATURES, *IPV6)) -> list[Finding]:
    """Tries each; needs root."""
    return [Finding(item.name, _works(item.words), item.mend, item.why, item.needed) for item in wanted]


def _works(words: tuple[str, ...]) -> bool:
    try:
        done = subprocess.run(("unshare", "--net", "--", *words), capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def neighbour_limit() -> int:
    """Entries the machine's one IPv4 neighbour table holds, namespaces included; 0 where that is not known."""
    try:
        return int(GC_THRESH.read_text())
    except (OSError, ValueError):
        return 0


def missing(*, ipv6: bool = False) -> list[Finding]:
    """What `up` needs and this machine lacks, to explain a refusal; with `ipv6` also what only that needs."""
    found = [item for item in (root(), *tools(), *features(FEATURES)) if item.needed]
    return [item for item in (*found, *(features(IPV6) if ipv6 else ())) if not item.ok]
