"""What lies over /etc in each namespace: resolv.conf, hosts, nsswitch.conf, as kubelet and the runtime write them.

    dnsPolicy                 name servers           search, options
    ClusterFirst              the cluster's DNS      NS.svc.ZONE svc.ZONE ZONE, ndots:5
    ClusterFirst, hostNetwork as Default
    ClusterFirstWithHostNet   the cluster's DNS      as ClusterFirst
    Default                   what its node asks     none
    None                      none
    and dnsConfig's after these, each once; of an option dnsConfig's value. Without a cluster DNS all is Default.

Nodes and hosts ask the underlay's authority (dns.py), at the address of their router. `ip netns exec` and `nsnet exec`
bind the files of /etc/netns/NETNS over /etc; a hostNetwork pod shares its node's namespace, so where its files are
others than the node's they stand in the run directory, and only `nsnet exec` binds them. nsswitch.conf is there because
many a machine's own asks other services first (mDNS for all of `.local`, the cluster's zone among them).

Sources: `pkg/kubelet/network/dns/dns.go`, `pkg/kubelet/kubelet_pods.go` (ensureHostsFile), containerd's CRI
(resolv.conf's form).
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import msgspec

from nsnet import model, names
from nsnet.model import HostAlias, Key, PodDNSConfig
from nsnet.render.view import MEMO, Node, Pod, View
from nsnet.state import File, Value

NSSWITCH = "hosts: files dns\n"
NOBODY = "# there is no DNS\n"
IPV6 = """\
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
fe00::0\tip6-mcastprefix
fe00::1\tip6-allnodes
fe00::2\tip6-allrouters
"""


class Zone(msgspec.Struct, frozen=True):
    """The cluster's DNS as pods are told it: `address` is empty where there is none."""

    domain: str
    address: str


def render(view: View) -> Iterator[tuple[str, Iterable[Value]]]:
    zone, authority = zone_of(view), has_authority(view.cluster)
    for machine in view.machines:
        site = machine.network.gateways if authority else ()
        yield (
            machine.netns,
            _files(names.etc_dir(machine.netns), resolv_conf(site), machine_hosts(machine.ips, machine.name)),
        )
    for node in view.nodes:
        site = node.machine.network.gateways if authority else ()
        for pod in view.pods.get(node.name, ()):
            yield pod.netns, _of_pod(view, node, pod, zone, site)


def has_authority(cluster: model.Cluster) -> bool:
    """Is there somebody in the underlay who answers for the names outside the cluster?"""
    return cluster.dns.enabled or bool(cluster.dns.records)


def zone_of(view: View) -> Zone:
    said, service = view.cluster.networking, view.dns
    if service is None:
        return Zone(said.dnsDomain, "")
    address = service.spec.clusterIP
    return Zone(said.dnsDomain, said.clusterDNS if address in ("", "None") else address)


# --- pods -------------------------------------------------------------------------------------------------------------


def _of_pod(view: View, node: Node, pod: Pod, zone: Zone, site: tuple[str, ...]) -> frozenset[Value]:
    spec = _spec(view.objects, pod)
    policy = spec.dnsPolicy
    if policy == "ClusterFirst" and spec.hostNetwork:
        policy = "Default"
    text = resolver(policy, spec.dnsConfig, pod.namespace, zone, site)
    aliases = spec.hostAliases or ()
    if pod.device:
        domain = f"{spec.subdomain}.{pod.namespace}.svc.{zone.domain}" if spec.subdomain else ""
        return _files(names.etc_dir(pod.netns), text, pod_hosts(pod.ips, pod.hostname, domain, aliases))
    hosts = machine_hosts(node.machine.ips, node.name)
    if text == resolv_conf(site) and not aliases:
        return frozenset()
    return _files(names.guest_etc_dir(pod.netns, pod.namespace, pod.name), text, hosts + _aliases(aliases))


def _spec(objects: model.Objects, pod: Pod) -> model.PodSpec:
    found = objects[Key("Pod", pod.namespace, pod.name)]
    assert isinstance(found, model.Pod)
    return found.spec


@lru_cache(maxsize=MEMO)
def _files(directory: Path, resolv: str, hosts: str) -> frozenset[Value]:
    contents = {"resolv.conf": resolv, "hosts": hosts, "nsswitch.conf": NSSWITCH}
    return frozenset(File(f"{directory}/{name}", content, 0o644) for name, content in contents.items())


# --- resolv.conf ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def resolver(policy: str, config: PodDNSConfig | None, namespace: str, zone: Zone, site: tuple[str, ...]) -> str:
    """The pod's resolv.conf; `site` are the name servers of its node."""
    servers, searches, options = site, tuple[str, ...](), dict[str, str | None]()
    if policy == "None":
        servers = ()
    elif policy != "Default" and zone.address:
        domain = zone.domain
        servers = (zone.address,)
        searches = (f"{namespace}.svc.{domain}", f"svc.{domain}", domain)
        options = {"ndots": "5"}
    if config is not None:
        servers += tuple(config.nameservers or ())
        searches += tuple(name.rstrip(".") or "." for name in config.searches or ())
        options |= {option.name: option.value for option in config.options or ()}
    words = (name if value is None else f"{name}:{value}" for name, value in options.items())
    return resolv_conf(servers, searches, tuple(words))


def resolv_conf(servers: Iterable[str], searches: Iterable[str] = (), options: Iterable[str] = ()) -> str:
    """The file's text; each server and search domain once, and no more of them than kubelet lets through."""
    lines = []
    listed = _searches(dict.fromkeys(searches))
    if listed:
        lines.append(f"search {' '.join(listed)}")
    lines += [f"nameserver {server}" for server in list(dict.fromkeys(servers))[: model.MOST_NAMESERVERS]]
    if words := " ".join(options):
        lines.append(f"options {words}")
    return "".join(f"{line}\n" for line in lines) or NOBODY


def _searches(domains: Iterable[str]) -> list[str]:
    kept: list[str] = []
    for domain in domains:
        if len(kept) == model.MOST_SEARCHES or len(" ".join((*kept, domain))) > model.MOST_SEARCH_LETTERS:
            break
        kept.append(domain)
    return kept


# --- hosts ------------------------------------------------------------------------------------------------------------


def pod_hosts(ips: tuple[str, ...], hostname: str, domain: str, aliases: tuple[HostAlias, ...]) -> str:
    own = f"{hostname}.{domain}\t{hostname}" if domain else hostname
    return f"# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n{IPV6}{_own(ips, own)}{_aliases(aliases)}"


def machine_hosts(ips: tuple[str, ...], name: str) -> str:
    return f"127.0.0.1\tlocalhost\n{IPV6}{_own(ips, name)}"


def _own(ips: tuple[str, ...], words: str) -> str:
    return "".join(f"{ip}\t{words}\n" for ip in ips)


def _aliases(aliases: tuple[HostAlias, ...]) -> str:
    if not aliases:
        return ""
    lines = (f"{alias.ip}\t{chr(9).join(alias.hostnames)}\n" for alias in aliases)
    return f"\n# Entries added by HostAliases.\n{''.join(lines)}"
