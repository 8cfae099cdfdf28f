"""The cluster's DNS: what runs in the pods behind its Service, what it serves, and whom it asks about names outside.

    pod ── Service, kube-proxy's rules ── dnsmasq :53 ── kubedns :10053 ── the underlay's authority, in the router
                                          exechealthz :8080 asks both, every two seconds

These are the containers and flags of kube-dns v20: dnsmasq caches what it is told, kubedns alone knows the zone and the
servers outside. What kubedns serves is a file, written anew when a Service, its endpoints or a namespace changes. Then
dnsmasq has to forget, or it would say what was true for as long as the TTL lasts: that is a signal (SIGHUP), for which
it reads a file of its own again, whose only line is the other's hash.

A replica whose dnsmasq is dead must not refuse questions: libc would take that for an answer and ask a second time at
once, which kube-proxy's rules may lead to the same replica, and so it would use up both of its attempts within the
tenth of a second until dnsmasq is back. Where nobody answers it waits for five seconds, and then asks. So these pods
send no ICMP errors (to themselves they do: healthz hears at once). The kernel's limit of them per receiver does that:
by default it lets the first six pass.

The authority answers for the names the topology gives (`dns.records`), for nodes and hosts, and for the hosts that the
HTTP proxy serves, which are at its address; any other name does not
exist there, so that no question ever leaves for the machine's resolvers. With `dns.upstreams` it asks those.

The ConfigMap kube-system/kube-dns acts as in kube-dns: `stubDomains` are added, `upstreamNameservers` replace. A server
is an address, that of a stub domain also a Service's name; what is neither is left out.
"""

import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from ipaddress import ip_address
from typing import Any, NamedTuple

import msgspec

from nsnet import model, names
from nsnet.model import EndpointSlice, Key, Service
from nsnet.render import ingress, services, sysctls
from nsnet.render.etc import has_authority
from nsnet.render.services import Joined
from nsnet.render.view import Machine, Pod, View
from nsnet.state import File, Process, Sysctl, Value

DNSMASQ = (
    "dnsmasq", "-k", "--conf-file=/dev/null", "--no-hosts", "--no-resolv", "--pid-file=", "--user=root", "--group=",
)  # fmt: skip
"""No group: in a user namespace nobody may change groups."""
CACHE = ("--cache-size=1000", "--no-negcache", "--log-facility=-", "--server=127.0.0.1#10053")
CONFIG_MAP = Key("ConfigMap", "kube-system", "kube-dns")
SILENT = (
    "86400000"  # ms per ICMP error, six at most in store: a receiver that is new has 60 s in store, so none is sent
)
MUTE = (Sysctl("net.ipv4.icmp_ratelimit", SILENT),)
MUTE6 = (*MUTE, Sysctl("net.ipv6.icmp.ratelimit", SILENT))

_json = msgspec.json.Encoder()


def render(view: View) -> Iterator[tuple[str, Iterable[Value]]]:
    if has_authority(view.cluster):
        yield view.router, _authority(view)
    if view.dns is None:
        return
    served: _Served | None = None
    for node in view.nodes:
        for pod in view.pods.get(node.name, ()):
            if pod.dns:
                served = served or _served(view)
                yield pod.netns, _in_pod(pod.netns, served.by(node.machine.network.gateway), view)
                if pod.device:  # a network of its own
                    yield pod.netns, _mute(pod)


def _in_pod(netns: str, config: "Config", view: View) -> Iterator[Value]:
    """The three containers."""
    directory = names.netns_run_dir(netns)
    records, forget = f"{directory}/kubedns.json", f"{directory}/dnsmasq.hosts"
    yield File(records, config.content)
    yield File(forget, f"# {config.digest}\n")
    yield Process((sys.executable, "-m", "nsnet.programs.kubedns", records))
    yield Process((*DNSMASQ, *CACHE, "-H", forget))
    yield Process(_health(view.cluster.networking.dnsDomain))


def _mute(pod: Pod) -> Iterator[Value]:
    """Where nobody listens, nobody answers."""
    silent = MUTE6 if any(":" in ip for ip in pod.ips) else MUTE
    return sysctls.over((), pod.netns, {value.name: value for value in silent})


def _health(domain: str) -> tuple[str, ...]:
    """The last dot: the machine's own search list is not for this name."""
    question = f"kubernetes.default.svc.{domain}. 127.0.0.1"
    return (
        sys.executable, "-m", "nsnet.programs.exechealthz",
        f"--cmd=nslookup -timeout=1 {question}", "--url=/healthz-dnsmasq",
        f"--cmd=nslookup -timeout=1 -port=10053 {question}", "--url=/healthz-kubedns",
        "--port=8080", "--quiet",
    )  # fmt: skip


# --- names outside ----------------------------------------------------------------------------------------------------


def _authority(view: View) -> tuple[Value, ...]:
    path = str(names.run_dir(view.name) / "hosts.conf")
    said = view.cluster.dns
    known: dict[str, tuple[str, ...]] = {name: (ip,) for name, ip in ingress.addresses(view.objects).items()}
    known |= {machine.name: _in_network(machine) for machine in view.machines}
    known |= {name.rstrip(".").lower(): (address,) for name, address in said.records.items()}
    content = "".join(f"{address} {name}\n" for name, found in sorted(known.items()) for address in found)
    others = tuple(f"--server={_for_dnsmasq(server)}" for server in said.upstreams) or ("--local=/#/",)
    return File(path, content), Process((*DNSMASQ, "--cache-size=0", "--log-facility=-", *others, "-H", path))


def _in_network(machine: Machine) -> tuple[str, ...]:
    """The machine's own address, and that of the other family."""
    other = machine.of("ip" if ":" in machine.ip else "ip6")
    return (machine.ip, other) if other else (machine.ip,)


def _for_dnsmasq(server: str) -> str:
    host, colon, port = server.rpartition(":")
    return f"{host.strip('[]')}#{port}" if colon and not _is_address(server) else server


class _Outside(NamedTuple):
    """Whom kubedns asks: `stubs` per domain, `upstreams` about all else; none: the authority."""

    upstreams: tuple[str, ...]
    stubs: dict[str, tuple[str, ...]]


def _outside(view: View) -> _Outside:
    said = view.cluster.dns
    there = view.objects.get(CONFIG_MAP)
    data = (there.raw.get("data") or {}) if isinstance(there, model.Other) else {}
    stubs = dict(said.stubDomains) | _read(data.get("stubDomains"), dict[str, tuple[str, ...]], {})
    upstreams = _read(data.get("upstreamNameservers"), tuple[str, ...], ())[:3] or said.upstreams
    zone = f".{view.cluster.networking.dnsDomain.strip('.')}"
    kept = {
        name: tuple(one for one in to if _is_server(one) or one.rstrip(".").endswith(zone))
        for name, to in stubs.items()
    }
    return _Outside(tuple(filter(_is_server, upstreams)), kept)


def _read(text: object, kind: Any, default: Any) -> Any:
    """What kube-dns could not read it leaves out, too."""
    try:
        return msgspec.json.decode(text, type=kind) if isinstance(text, str) and text.strip() else default
    except msgspec.MsgspecError:
        return default


def _is_server(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return _is_address(text) or (port.isdecimal() and _is_address(host.strip("[]")))


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


# --- what is served ---------------------------------------------------------------------------------------------------


class Config(NamedTuple):
    """kubedns.json (`nsnet.programs.kubedns.config`), and its hash."""

    content: str
    digest: str


class _Served:
    """The file, once for each network: there the authority has another address."""

    def __init__(self, parts: bytes, outside: _Outside, records: Mapping[str, str]) -> None:
        self.parts = parts
        self.outside = outside
        self.records = records
        self.known: dict[str, Config] = {}

    def by(self, authority: str) -> Config:
        found = self.known.get(authority)
        if found is None:
            outside = {"upstreams": self.outside.upstreams or (authority,), "stubs": self._stubs(authority)}
            content = _json.encode(outside)[:-1] + b"," + self.parts
            digest = hashlib.sha256(content).hexdigest()[:16]
            found = self.known[authority] = Config(content.decode(), digest)
        return found

    def _stubs(self, authority: str) -> dict[str, tuple[str, ...]]:
        """Where others are asked about names outside, the topology's own are the authority's all the same."""
        own = self.records if self.outside.upstreams else ()
        return {name.rstrip("."): (authority,) for name in own} | self.outside.stubs


def _served(view: View) -> _Served:
    said, cluster = view.cluster.dns, view.cluster
    head = {
        "domain": cluster.networking.dnsDomain,
        "flavour": said.flavour,
        "pods": said.pods,
        "serial": _serial(view.services.values()),
        "namespaces": [item.metadata.name for item in model.of(view.objects, model.Namespace)],
        "pod_addresses": _pod_addresses(view) if said.pods == "verified" else (),
    }
    lines = b",".join(map(_line, services.every(view.objects)))
    parts = _json.encode(head)[1:-1] + b',"services":[' + lines + b"]}"
    return _Served(parts, _outside(view), said.records)


def _serial(services: Iterable[Service]) -> int:
    """When the youngest Service was made, in unix time: no clock is needed, and the same objects give the same file."""
    youngest = max((item.metadata.creationTimestamp or "" for item in services), default="")
    try:
        return max(1, int(datetime.fromisoformat(youngest).timestamp()))
    except ValueError:
        return 1


def _pod_addresses(view: View) -> list[tuple[str, str]]:
    return sorted((pod.namespace, ip) for pods in view.pods.values() for pod in pods for ip in pod.ips)


def _line(joined: Joined) -> bytes:
    """A Service as one line of the file, in the order of `nsnet.programs.kubedns.config.Service`."""
    kept: bytes | None = joined.kept.get("dns")
    if kept is None:
        kept = joined.kept["dns"] = _json.encode(_service(joined.service, joined.slices))
    return kept


def _service(service: Service, slices: tuple[EndpointSlice, ...]) -> tuple[object, ...]:
    meta, spec = service.metadata, service.spec
    external = spec.externalName if spec.type == "ExternalName" else ""
    addresses = () if external or spec.clusterIP in ("", "None") else (spec.clusterIPs or (spec.clusterIP,))
    ports = [(port.name, port.protocol, port.port) for port in spec.ports or ()]
    endpoints = () if external else _endpoints(slices)
    return meta.namespace, meta.name, addresses, ports, external, endpoints


def _endpoints(slices: Iterable[EndpointSlice]) -> list[tuple[str, str, list[tuple[str, str, int]]]]:
    """Those that count as ready; one that several slices have has the ports of all of them."""
    found: dict[tuple[str, str], list[tuple[str, str, int]]] = {}
    for item in slices:
        ports = [(port.name or "", port.protocol or "TCP", port.port) for port in item.ports or () if port.port]
        for endpoint in item.endpoints or ():
            ready = endpoint.conditions is None or endpoint.conditions.ready is not False
            if ready and item.addressType != "FQDN" and endpoint.addresses:
                there = found.setdefault((endpoint.addresses[0], endpoint.hostname or ""), [])
                there += [port for port in ports if port not in there]
    return [(address, hostname, ports) for (address, hostname), ports in found.items()]
