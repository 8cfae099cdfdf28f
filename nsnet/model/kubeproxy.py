"""What kube-proxy is told."""

from typing import Any

import msgspec

from nsnet.model.metadata import ObjectMeta


class DetectLocalConfiguration(msgspec.Struct, frozen=True):
    bridgeInterface: str = ""
    interfaceNamePrefix: str = ""


class KubeProxyNFTablesConfiguration(msgspec.Struct, frozen=True):
    """What upstream's sections `iptables` and `nftables` have in common; times as Go writes durations."""

    masqueradeBit: int | None = None
    masqueradeAll: bool = False
    syncPeriod: str | None = None
    minSyncPeriod: str | None = None


class KubeProxyIPTablesConfiguration(KubeProxyNFTablesConfiguration, frozen=True):
    localhostNodePorts: bool | None = None


class KubeProxyConntrackConfiguration(msgspec.Struct, frozen=True):
    """Times as Go writes durations; 0 leaves the node's value alone."""

    maxPerCore: int | None = None
    min: int | None = None
    tcpBeLiberal: bool = False
    tcpEstablishedTimeout: str | None = None
    tcpCloseWaitTimeout: str | None = None
    udpTimeout: str = ""
    udpStreamTimeout: str = ""


class KubeProxyConfiguration(msgspec.Struct, frozen=True):
    """The file a real kube-proxy is started with (kubeproxy.config.k8s.io/v1alpha1): the fields that act here.

    At most one counts for all nodes. The rest of the schema (`manifests.kubeproxy.TYPES`) is taken and kept in `raw`.
    """

    metadata: ObjectMeta
    mode: str = ""
    clusterCIDR: str = ""
    detectLocalMode: str = ""
    detectLocal: DetectLocalConfiguration = DetectLocalConfiguration()
    nodePortAddresses: tuple[str, ...] = ()
    healthzBindAddress: str = ""
    portRange: str = ""
    udpIdleTimeout: str = ""
    iptables: KubeProxyIPTablesConfiguration = KubeProxyIPTablesConfiguration()
    nftables: KubeProxyNFTablesConfiguration = KubeProxyNFTablesConfiguration()
    conntrack: KubeProxyConntrackConfiguration = KubeProxyConntrackConfiguration()
    raw: dict[str, Any] = {}
