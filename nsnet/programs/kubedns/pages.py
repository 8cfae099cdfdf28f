"""What is said over HTTP: /readiness and /cache as kube-dns has them, /metrics in Prometheus' form."""

import msgspec

from nsnet.programs.kubedns.answers import Answers
from nsnet.programs.kubedns.server import Server
from nsnet.programs.web import JSON, Page

RCODES = ("NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED")


def page(path: str, server: Server) -> Page:
    """503 before the first configuration: nothing that is asked of the server could be answered."""
    answers = server.answers
    if path == "/metrics":
        return Page(200, metrics(server).encode(), "text/plain; version=0.0.4; charset=utf-8")
    zone = answers.known.zone
    if path not in {"/readiness", "/cache"}:
        return Page(404, b"404 page not found\n")
    if zone is None:
        return Page(503, b"no configuration was read yet\n")
    return Page(200, b"ok\n") if path == "/readiness" else Page(200, dump(answers), JSON)


def dump(answers: Answers) -> bytes:
    """All that records are made from, and how many replies are kept."""
    zone, datagrams, streams = answers.known
    assert zone is not None
    kept = {"udp": len(datagrams), "tcp": len(streams)}
    return msgspec.json.encode({"configuration": zone.config, "serial": zone.serial, "replies": kept}) + b"\n"


def metrics(server: Server) -> str:
    answers = server.answers
    zone, datagrams, streams = answers.known
    counters = {
        'kubedns_requests_total{proto="udp"}': server.datagrams,
        'kubedns_requests_total{proto="tcp"}': server.messages,
        **{f'kubedns_responses_total{{rcode="{name}"}}': server.rcodes[at] for at, name in enumerate(RCODES)},
        "kubedns_cache_hits_total": answers.hits,
        "kubedns_cache_misses_total": answers.misses,
        "kubedns_malformed_total": answers.dropped,
        "kubedns_forwarded_total": answers.upstream.asked,
        "kubedns_forward_failures_total": answers.upstream.failed,
        "kubedns_reloads_total": answers.reloads,
    }
    gauges = {
        "kubedns_cache_entries": len(datagrams) + len(streams),
        "kubedns_connections": len(server.connections),
        "kubedns_services": len(zone.config.services) if zone else 0,
    }
    return "".join([*_family(counters, "counter"), *_family(gauges, "gauge")])


def _family(values: dict[str, int], kind: str) -> list[str]:
    lines = []
    for name, value in values.items():
        family = name.partition("{")[0]
        head = f"# TYPE {family} {kind}\n"
        lines += [f"{name} {value}\n"] if head in lines else [head, f"{name} {value}\n"]
    return lines
