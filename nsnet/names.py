"""Names computed from names, so that anyone can recompute them and nothing has to be remembered.

Sources: kube-proxy `pkg/proxy/iptables/proxier.go` (chain names), kube-router `pkg/controllers/netpol` (the same),
CNI `pkg/utils/hwaddr` (0a:58 + IPv4; it knows no IPv6, for which the last four bytes of a hash stand),
flannel `pkg/backend/vxlan` (a random local VTEP MAC; here it is a hash, so that plan = up).
"""

import hashlib
import re
from base64 import b32encode
from ipaddress import ip_address
from pathlib import Path

CLUSTER = re.compile(r"[a-z0-9]([-a-z0-9]{0,18}[a-z0-9])?")  # a DNS label of at most 20 characters
DEVICE = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_.]{0,14}")  # plain in a shell and in rules, at most IFNAMSIZ - 1

RUN = Path("/run/nsnet")
STATE = Path("/var/lib/nsnet")
NETNS = Path("/run/netns")
ETC_NETNS = Path("/etc/netns")


def _short(name: str) -> str:
    """File names end at 255 bytes: a longer name keeps its beginning and ends in a hash of the whole."""
    if len(name) <= 255:
        return name
    return f"{name[:238]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def node_netns(cluster: str, node: str) -> str:
    return _short(f"{cluster}.node.{node}")


def pod_netns(cluster: str, namespace: str, pod: str) -> str:
    return _short(f"{cluster}.pod.{namespace}.{pod}")


def host_netns(cluster: str, host: str) -> str:
    return _short(f"{cluster}.host.{host}")


def fabric_netns(cluster: str, part: str) -> str:
    """Part of the underlay: `router`, or the name of a network, whose switch it is."""
    return _short(f"{cluster}.fabric.{part}")


def on_machine(netns: str, machine: str) -> str:
    """How a part of the fabric of another machine is told from the one of that name here."""
    return f"{netns}@{machine}"


def mark(cluster: str) -> str:
    """The alias on `lo` of every namespace of the cluster; `down` deletes nothing that does not bear it."""
    return f"nsnet/{cluster}"


def kind_of(netns: str) -> str:
    """`node`, `pod`, `host` or `fabric`; empty when the name is not of this form."""
    parts = netns.split(".", 2)
    return parts[1] if len(parts) == 3 and parts[1] in {"node", "pod", "host", "fabric"} else ""


def called(netns: str) -> str:
    """`node/node1`, `fabric/nodes`, `pod/default.web`: a namespace in a sentence."""
    _, _, rest = netns.partition(".")
    return rest.replace(".", "/", 1)


def run_dir(cluster: str) -> Path:
    return RUN / cluster


def state_dir(cluster: str) -> Path:
    return STATE / cluster


def netns_run_dir(netns: str) -> Path:
    """Run files of one namespace: `/run/nsnet/demo/node.node1` for `demo.node.node1`."""
    cluster, rest = netns.split(".", 1)
    return run_dir(cluster) / rest


def flannel_dir(netns: str) -> Path:
    """What stands in a real node's /run/flannel: subnet.env, wgkey."""
    return netns_run_dir(netns) / "flannel"


def wireguard_key_file(netns: str) -> Path:
    """A node's private WireGuard key."""
    return flannel_dir(netns) / "wgkey"


def wireguard_psk_file(netns: str) -> Path:
    """The key that all nodes of the cluster share, where it has one."""
    return flannel_dir(netns) / "wgpsk"


SYSCTL_FILE = "sysctl.conf"


def sysctl_file(netns: str) -> Path:
    """Which sysctls a topology sets in a node, as a real one has them in /etc/sysctl.d."""
    return netns_run_dir(netns) / SYSCTL_FILE


def etc_dir(netns: str) -> Path:
    """What lies over /etc inside the namespace: `ip netns exec` binds these files."""
    return ETC_NETNS / netns


def guest_etc_dir(netns: str, namespace: str, pod: str) -> Path:
    """The same for a hostNetwork pod, where it differs from its node's (`netns`)."""
    return netns_run_dir(netns) / "etc" / f"{namespace}.{pod}"


def _hex(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def veth(text: str) -> str:
    """A host-side veth name as CNI gives it (`veth` + 8 hex digits), here a hash of what is at the other end."""
    return "veth" + _hex(text, 8)


def device(text: str) -> str:
    """An interface name that says what is at the other end (`rack-a`, `node-node1`): at most 15 characters.

    A longer text, or one that means something else as an interface name, keeps its beginning and ends in a hash.
    """
    if len(text) <= 15 and text not in {"lo", "all", "default", "eth0", "br0"}:
        return text
    return f"{text[:6]}-{_hex(text, 8)}"


def hashed_mac(text: str) -> str:
    """A local (bit 0x02 set) unicast MAC for an interface without an address of its own, a hash of its name."""
    return f"02:{':'.join(_hex(text, 10)[i : i + 2] for i in range(0, 10, 2))}"


def mac(address: str, prefix: str = "0a:58") -> str:
    """The MAC of an interface by its address, as the CNI bridge plugin made it: 0a:58 + the four bytes.

    Of an IPv6 address the four bytes are a hash's: its own last four may be another's, too.
    """
    if ":" in address:
        four = hashlib.sha256(ip_address(address).packed).digest()[:4]
    else:
        four = bytes(map(int, address.split(".")))
    return f"{prefix}:{four.hex(':')}"


def vtep_mac(cluster: str, node: str, vni: int) -> str:
    """A VTEP's MAC: local (bit 0x02 set), unicast (bit 0x01 clear), a hash of cluster, node and VNI."""
    octets = bytearray(hashlib.sha256(f"{cluster}/{node}/{vni}".encode()).digest()[:6])
    octets[0] = (octets[0] | 0x02) & 0xFE
    return ":".join(f"{byte:02x}" for byte in octets)


def uid(kind: str, namespace: str, name: str) -> str:
    """A stable metadata.uid."""
    digest = _hex(f"{kind}/{namespace}/{name}", 32)
    return "-".join((digest[:8], digest[8:12], digest[12:16], digest[16:20], digest[20:]))


_SAFE = "bcdfghjklmnpqrstvwxz2456789"  # Kubernetes' alphabet for generated names: no vowels, no 0 1 3


def suffix(text: str, length: int = 5) -> str:
    """A generated name's tail (`web-6d4cf56db6-x7k2p`), in Kubernetes' alphabet, a function of `text`."""
    digest = hashlib.sha256(text.encode()).digest()
    return "".join(_SAFE[byte % len(_SAFE)] for byte in digest[:length])


def service_port(namespace: str, service: str, port: str) -> str:
    """A service port as kube-proxy names it: `ns/name:port`, or `ns/name` where the port has no name."""
    return f"{namespace}/{service}:{port}" if port else f"{namespace}/{service}"


def _kube_hash(text: str) -> str:
    return b32encode(hashlib.sha256(text.encode()).digest()[:10]).decode()  # 10 bytes are 16 characters


def kube_chain(prefix: str, port_name: str, protocol: str) -> str:
    """`KUBE-SVC-…`, `KUBE-SVL-…`, `KUBE-EXT-…`, `KUBE-FW-…`: prefix is `SVC`, `SVL`, `EXT` or `FW`."""
    return f"KUBE-{prefix}-{_kube_hash(port_name + protocol.lower())}"


def kube_sep(port_name: str, protocol: str, endpoint: str) -> str:
    """`KUBE-SEP-…` of one endpoint; `endpoint` is `ip:port` (IPv6 `[ip]:port`)."""
    return f"KUBE-SEP-{_kube_hash(port_name + protocol.lower() + endpoint)}"


def nft_service(port_name: str, protocol: str) -> str:
    """In nftables mode: what a Service port's chains are called after `service-`, `local-`, `external-`, `firewall-`.

    `ULMVA6XW-ns1/svc1/tcp/p80` of `ns1/svc1:p80` (kube-proxy `pkg/proxy/nftables/proxier.go`).
    """
    service, _, port = port_name.partition(":")
    return _nft_hashed(f"{service}/{protocol.lower()}/{port}")


def nft_endpoint(port_name: str, protocol: str, ip: str, port: int) -> str:
    """The same of an endpoint, after `endpoint-` and `affinity-`: `5OJB2KTY-ns1/svc1/tcp/p80__10.180.0.1/80`."""
    service, _, name = port_name.partition(":")
    return _nft_hashed(f"{service}/{protocol.lower()}/{name}__{ip.replace(':', '.')}/{port}")


def _nft_hashed(name: str) -> str:
    hashed = f"{b32encode(hashlib.sha256(name.encode()).digest()[:5]).decode()}-{name}"  # 5 bytes are 8 characters
    return hashed if len(hashed) <= 240 else f"{hashed[:237]}..."


# --- NetworkPolicy ----------------------------------------------------------------------------------------------------

POLICY_CHAINS = ("KUBE-ROUTER-", "KUBE-POD-FW-", "KUBE-NWPLCY-")
POLICY_TABLE = "nsnet-policy"


def policy_chain(policy: str, direction: str, rule: str, what: str) -> str:
    """`KUBE-NWPLCY-…`: the ports of a rule (its text) of a policy (`ns/name`), for peers of one kind."""
    return f"KUBE-NWPLCY-{_kube_hash(f'{policy}/{direction}/{rule}/{what}')}"


def pod_firewall(pod: str, direction: str) -> str:
    """`KUBE-POD-FW-…` of a pod (`ns/name`) in one direction."""
    return f"KUBE-POD-FW-{_kube_hash(f'{pod}/{direction}')}"


def policy_set(policy: str, direction: str, rule: str, what: str, family: str = "ip") -> str:
    """`KUBE-SRC-…` and `KUBE-DST-…`: what a rule's peers are; `what` is pods, blocks or ports.

    A set is of one family: those of IPv6 are `inet6:KUBE-…`. `rule` is its text: a rule that says something else has
    another set, and both are there until the rules change.
    """
    prefix = "SRC" if direction == "ingress" and what != "ports" else "DST"
    name = f"KUBE-{prefix}-{_kube_hash(f'{policy}/{direction}/{rule}/{what}')}"
    return f"inet6:{name}" if family == "ip6" else name


def nft_policy(kind: str, *parts: str) -> str:
    """A chain, set or map of the policy table: `pod-ingress-ULMVA6XW-shop/web`, as kube-proxy names its own."""
    return f"{kind}-{_nft_hashed('/'.join(parts))}"
