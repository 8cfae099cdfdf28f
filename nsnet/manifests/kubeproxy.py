"""kube-proxy's own configuration file: which fields it has, and what they may say.

The fields are those of `k8s.io/kube-proxy/config/v1alpha1/types.go` (Kubernetes 1.36) with the component-base types it
embeds, written down here since the API's OpenAPI models, of which `schema.json` is made, do not have them; and
`udpIdleTimeout`, which files of userspace mode's time have (until 1.25). The rules are
`pkg/proxy/apis/config/validation`'s. What acts is in `model.KubeProxyConfiguration`; everything else (addresses of the
metrics server, ipvs, Windows …) is taken, checked for its type and kept.
"""

from collections.abc import Mapping

from nsnet import model
from nsnet.manifests.forms import address_of, device, one_of, one_of_each, subnet, subnet_of, within
from nsnet.manifests.problems import At
from nsnet.manifests.reading import shown

_TIMES = {"syncPeriod": "string", "minSyncPeriod": "string"}
_MASQUERADE = {"masqueradeBit": "integer", "masqueradeAll": "boolean"}
_OUTPUT = {"splitStream": "boolean", "infoBufferSize": "quantity"}

TYPES: Mapping[str, dict[str, str]] = {
    "KubeProxyConfiguration": {
        "apiVersion": "string", "kind": "string", "metadata": "ObjectMeta",
        "featureGates": "{boolean}", "clientConnection": "ClientConnectionConfiguration",
        "logging": "LoggingConfiguration", "hostnameOverride": "string", "bindAddress": "string",
        "healthzBindAddress": "string", "metricsBindAddress": "string", "bindAddressHardFail": "boolean",
        "enableProfiling": "boolean", "showHiddenMetricsForVersion": "string", "mode": "string",
        "iptables": "KubeProxyIPTablesConfiguration", "ipvs": "KubeProxyIPVSConfiguration",
        "nftables": "KubeProxyNFTablesConfiguration", "winkernel": "KubeProxyWinkernelConfiguration",
        "detectLocalMode": "string", "detectLocal": "DetectLocalConfiguration", "clusterCIDR": "string",
        "nodePortAddresses": "[string]", "oomScoreAdj": "integer", "conntrack": "KubeProxyConntrackConfiguration",
        "udpIdleTimeout": "string",
        "configSyncPeriod": "string", "portRange": "string", "windowsRunAsService": "boolean",
    },
    "KubeProxyIPTablesConfiguration": {**_MASQUERADE, "localhostNodePorts": "boolean", **_TIMES},
    "KubeProxyNFTablesConfiguration": {**_MASQUERADE, **_TIMES},
    "KubeProxyIPVSConfiguration": {
        **_TIMES, "scheduler": "string", "excludeCIDRs": "[string]", "strictARP": "boolean", "tcpTimeout": "string",
        "tcpFinTimeout": "string", "udpTimeout": "string",
    },
    "KubeProxyWinkernelConfiguration": {
        "networkName": "string", "sourceVip": "string", "enableDSR": "boolean", "rootHnsEndpointName": "string",
        "forwardHealthCheckVip": "boolean",
    },
    "KubeProxyConntrackConfiguration": {
        "maxPerCore": "integer", "min": "integer", "tcpEstablishedTimeout": "string", "tcpCloseWaitTimeout": "string",
        "tcpBeLiberal": "boolean", "udpTimeout": "string", "udpStreamTimeout": "string",
    },
    "DetectLocalConfiguration": {"bridgeInterface": "string", "interfaceNamePrefix": "string"},
    "ClientConnectionConfiguration": {
        "kubeconfig": "string", "acceptContentTypes": "string", "contentType": "string", "qps": "number",
        "burst": "integer",
    },
    "LoggingConfiguration": {
        "format": "string", "flushFrequency": "integer|string", "verbosity": "integer", "vmodule": "[VModuleItem]",
        "options": "FormatOptions",
    },
    "VModuleItem": {"filePattern": "string", "verbosity": "integer"},
    "FormatOptions": {"text": "TextOptions", "json": "JSONOptions"},
    "TextOptions": _OUTPUT,
    "JSONOptions": _OUTPUT,
}  # fmt: skip

LOCAL_MODES = ("ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix")
PRIMARY = "primary"

_DURATIONS = (
    ("configSyncPeriod",),
    ("udpIdleTimeout",),
    *((section, name) for section in ("iptables", "nftables", "ipvs") for name in _TIMES),
    *(("ipvs", name) for name in ("tcpTimeout", "tcpFinTimeout", "udpTimeout")),
    *(("conntrack", name) for name in TYPES["KubeProxyConntrackConfiguration"] if name.endswith("Timeout")),
)


def configuration(doc: At) -> None:
    """All value checks; that it agrees with the Cluster document is for `control` to say."""
    _mode(doc["mode"])
    _local_detection(doc)
    _cluster_cidr(doc["clusterCIDR"])
    _node_port_addresses(doc["nodePortAddresses"])
    _bind_address(doc["healthzBindAddress"])
    for section in ("iptables", "nftables"):
        within(doc[section]["masqueradeBit"], 0, 31)
        _periods(doc[section])
    for name in ("maxPerCore", "min"):
        within(doc["conntrack"][name], 0, 2**31 - 1)
    for path in _DURATIONS:
        at = doc
        for step in path:
            at = at[step]
        _duration(at)


def _mode(at: At) -> None:
    if at.value in {"ipvs", "kernelspace"}:
        at.wrong(f"{at.value} is not emulated", f"one of {', '.join(model.PROXY_MODES)}")
    else:
        one_of(at, model.PROXY_MODES)


def _local_detection(doc: At) -> None:
    one_of(doc["detectLocalMode"], LOCAL_MODES)
    for mode, name in (("BridgeInterface", "bridgeInterface"), ("InterfaceNamePrefix", "interfaceNamePrefix")):
        at = doc["detectLocal"][name]
        if doc["detectLocalMode"].value == mode and not at.value:
            doc["detectLocalMode"].wrong(f"{mode} needs detectLocal.{name}", f"add `detectLocal: {{{name}: …}}`")
        else:
            device(at)


def _cluster_cidr(at: At) -> None:
    one_of_each(at, (at.value or "").split(","), subnet, subnet_of, "subnet")


def _node_port_addresses(at: At) -> None:
    """CIDRs, or the word `primary` alone."""
    for item in at.each():
        if item.value != PRIMARY:
            subnet(item)
        elif len(at.value) > 1:
            item.wrong("primary stands alone", "leave out the subnets, or write the primary address with its length")


def _bind_address(at: At) -> None:
    """`ip:port`, `[ip]:port`, or the address alone."""
    if not at.value or address_of(at.value):
        return
    address, _, port = at.value.rpartition(":")
    if not address_of(address.strip("[]")) or not port.isdigit() or not 0 < int(port) < 65536:
        at.wrong(f'"{shown(at.value)}" is not an address with a port', "as 0.0.0.0:10256")


def _periods(section: At) -> None:
    longest, shortest = (model.seconds(section[name].value or "0") or 0 for name in ("syncPeriod", "minSyncPeriod"))
    if 0 < longest < shortest:
        section["syncPeriod"].wrong("is shorter than minSyncPeriod", "make it as long, or leave one of the two out")


def _duration(at: At) -> None:
    if at.value is not None and model.seconds(at.value) is None:
        at.wrong(f'"{shown(at.value)}" is not a duration', "numbers with their units: 30s, 1h30m, 500ms")
