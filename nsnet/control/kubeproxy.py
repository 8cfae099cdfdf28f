"""Whose word counts where the Cluster document and a KubeProxyConfiguration speak of the same thing.

In a real cluster kubeadm writes kube-proxy's file from its own, so they agree. Here either may be missing: the mode is
the Cluster's, else the configuration's, else iptables. Where both speak and differ, no choice would be right, and the
topology is refused with both named.

The Cluster document that `complete` leaves behind always says the mode. One that nobody said stands in an annotation
too, so that a configuration that comes or goes later can still change it.
"""

from collections.abc import Iterator
from ipaddress import ip_network

import msgspec

from nsnet.control.table import Table, of, with_meta
from nsnet.errors import ObjectError
from nsnet.model import Cluster, KubeProxyConfiguration, key_of

DERIVED = "nsnet/kube-proxy-mode"  # on the Cluster: the mode that it says is not its own word
DEFAULT = "iptables"


def completed(cluster: Cluster, table: Table) -> Cluster:
    """The document with kube-proxy's mode; the same object where nothing changed.

    Raises ObjectError where a KubeProxyConfiguration disagrees with it, or is not the only one.
    """
    told = _only(table)
    own = _own_mode(cluster)
    if told is not None:
        _agree(cluster, own, told)
    return _with_mode(cluster, own, own or (told.mode if told else "") or DEFAULT)


def warnings(table: Table) -> Iterator[tuple[KubeProxyConfiguration, str, str, str]]:
    """(object, reason, message, type) of what concerns the network and has no effect here."""
    for told in of(table, KubeProxyConfiguration).values():
        if told.conntrack.maxPerCore or told.conntrack.min:
            message = (
                "conntrack.maxPerCore and conntrack.min have no effect: nf_conntrack_max is one for the whole machine, "
                "and nsnet leaves the machine's own network alone"
            )
            yield told, "NotInANamespace", message, "Warning"


def _only(table: Table) -> KubeProxyConfiguration | None:
    found = sorted(of(table, KubeProxyConfiguration))
    if len(found) > 1:
        message = f"there is another one, {found[0].name}"
        raise ObjectError(found[1], "metadata.name", message, "keep one KubeProxyConfiguration; delete the other")
    return of(table, KubeProxyConfiguration)[found[0]] if found else None


def _own_mode(cluster: Cluster) -> str:
    said = cluster.networking.kubeProxyMode
    return "" if said == cluster.metadata.annotations.get(DERIVED) else said


def _with_mode(cluster: Cluster, own: str, mode: str) -> Cluster:
    annotations = {name: text for name, text in cluster.metadata.annotations.items() if name != DERIVED}
    if not own:
        annotations[DERIVED] = mode
    networking = msgspec.structs.replace(cluster.networking, kubeProxyMode=mode)
    whole = msgspec.structs.replace(with_meta(cluster, annotations=annotations), networking=networking)
    return cluster if whole == cluster else whole


def _agree(cluster: Cluster, own: str, told: KubeProxyConfiguration) -> None:
    where = f'Cluster "{cluster.metadata.name}" says networking.'
    if own and told.mode and own != told.mode:
        hint = "write the mode in one of the two, or the same in both"
        raise ObjectError(key_of(told), "mode", f"is {told.mode}, and {where}kubeProxyMode {own}", hint)
    pods = cluster.networking.podSubnet
    if told.clusterCIDR and _subnets(told.clusterCIDR) != _subnets(pods):
        hint = f"leave clusterCIDR out, or write networking.podSubnet: {told.clusterCIDR} in the Cluster document"
        raise ObjectError(key_of(told), "clusterCIDR", f"is {told.clusterCIDR}, and {where}podSubnet {pods}", hint)


def _subnets(said: str) -> set[str]:
    return {str(ip_network(part.strip(), strict=False)) for part in said.split(",")}
