"""What is answered to every sort of question, as CoreDNS and as kube-dns answer it: the rows of dns_rows, and flags."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsnet.programs.kubedns.names import address_of, dashed, hashed, labels_of, pod_address
from nsnet.programs.kubedns.zone import Found, Zone
from tests.dns_rows import COREDNS_ROWS, KUBE_DNS_ROWS, NODATA, NXDOMAIN, REFUSED, SERVFAIL
from tests.kubedns_world import COREDNS, KUBE_DNS, NOON, ask, changed, lines, spelled


@pytest.mark.parametrize(("name", "kind", "said"), COREDNS_ROWS)
def test_coredns(name: str, kind: str, said: list[str]) -> None:
    assert ask(COREDNS, name, kind) == said


@pytest.mark.parametrize(("name", "kind", "said"), KUBE_DNS_ROWS)
def test_kube_dns(name: str, kind: str, said: list[str]) -> None:
    assert ask(KUBE_DNS, name, kind) == said


def test_the_question_s_spelling_comes_back() -> None:
    soa = Zone(COREDNS).find(spelled("Nope.default.SVC.Cluster.LOCAL"), "A")
    assert isinstance(soa, Found)
    assert soa.authority[0][0] == "Cluster.LOCAL."
    srv = Zone(COREDNS).find(spelled("_HTTP._tcp.WEB.default.svc.CLUSTER.local"), "SRV")
    assert isinstance(srv, Found)
    assert srv.answers[0].data == "0 100 80 web.default.svc.CLUSTER.local."
    assert srv.additional[0].name == "web.default.svc.CLUSTER.local."
    sky = Zone(KUBE_DNS).find(spelled("Nope.default.SVC.Cluster.LOCAL"), "A")
    assert isinstance(sky, Found)
    assert sky.authority[0][0] == "cluster.local."


@pytest.mark.parametrize(
    ("config", "name", "kind", "authoritative", "recursion"),
    [
        (COREDNS, "web.default.svc.cluster.local", "A", True, False),
        (COREDNS, "nope.default.svc.cluster.local", "A", True, False),
        (COREDNS, "5.5.96.10.in-addr.arpa", "PTR", True, False),
        (COREDNS, "example.com", "A", False, False),
        (KUBE_DNS, "web.default.svc.cluster.local", "A", True, True),
        (KUBE_DNS, "5.5.96.10.in-addr.arpa", "PTR", False, True),
        (KUBE_DNS, "example.com", "A", False, True),
        (KUBE_DNS, "web.default.svc.cluster.local", "ANY", False, False),
    ],
)
def test_flags(config: object, name: str, kind: str, authoritative: bool, recursion: bool) -> None:
    found = Zone(config).find(spelled(name), kind)  # type: ignore[arg-type]
    assert isinstance(found, Found)
    assert (found.authoritative, found.recursion) == (authoritative, recursion)


@pytest.mark.parametrize(
    ("mode", "name", "said"),
    [
        ("disabled", "1-2-3-4.shop.pod", NXDOMAIN),
        ("disabled", "shop.pod", NXDOMAIN),
        ("disabled", "pod", NODATA),
        ("verified", "10-244-1-30.shop.pod", ["@ 5 A 10.244.1.30"]),
        ("verified", "10-244-1-30.default.pod", NXDOMAIN),
        ("verified", "1-2-3-4.shop.pod", NXDOMAIN),
        ("verified", "shop.pod", NODATA),
    ],
)
def test_pod_modes(mode: str, name: str, said: list[str]) -> None:
    assert ask(changed(COREDNS, pods=mode), name, "A") == said


BACK = "96.10.in-addr.arpa."
BACK_SOA = f"{BACK} 5 SOA ns.dns.{BACK} hostmaster.{BACK} 1700000000 7200 1800 86400 5"


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("5.5.96.10.in-addr.arpa.", "PTR", ["@ 5 PTR web.default.svc.~"]),
        ("5.5.96.10.in-addr.arpa.", "TXT", [f"! {BACK_SOA}"]),
        ("9.9.96.10.in-addr.arpa.", "PTR", ["NXDOMAIN", f"! {BACK_SOA}"]),
        ("96.10.in-addr.arpa.", "SOA", [BACK_SOA]),
        ("96.10.in-addr.arpa.", "A", [f"! {BACK_SOA}"]),
        ("9.9.97.10.in-addr.arpa.", "PTR", ["ask 192.0.2.53"]),
        ("5.1.244.10.in-addr.arpa.", "PTR", ["@ 5 PTR 10-244-1-5.web.default.svc.~"]),
    ],
)
def test_reverse_zones(name: str, kind: str, said: list[str]) -> None:
    config = changed(COREDNS, reverse=("96.10.in-addr.arpa",), upstreams=("192.0.2.53",))
    assert ask(config, name, kind) == said


@pytest.mark.parametrize("config", [COREDNS, KUBE_DNS])
@pytest.mark.parametrize(
    ("name", "servers"),
    [
        ("example.com.", "192.0.2.1 192.0.2.2:5353"),
        ("acme.local.", "10.0.0.53"),
        ("x.ACME.local.", "10.0.0.53"),
        ("x.eu.acme.local.", "10.1.0.53:53 10.2.0.53:53"),  # the longest counts
        ("xacme.local.", "192.0.2.1 192.0.2.2:5353"),
        ("x.stub.cluster.local.", "10.0.0.54"),  # a stub inside the zone, too
        ("1.0.0.172.in-addr.arpa.", "10.0.0.55"),
        ("x.named.local.", "10.96.6.5"),  # by a Service's name
        ("x.gone.local.", "192.0.2.1 192.0.2.2:5353"),
    ],
)
def test_others_are_asked(config: object, name: str, servers: str) -> None:
    stubs = {
        "acme.local": ("10.0.0.53",),
        "eu.acme.local.": ("10.1.0.53:53", "10.2.0.53:53"),
        "stub.cluster.local": ("10.0.0.54",),
        "172.in-addr.arpa": ("10.0.0.55",),
        "unserved.local": (),
        "named.local": ("web.shop.svc.cluster.local",),
        "gone.local": ("gone.shop.svc.cluster.local",),
    }
    config = changed(config, stubs=stubs, upstreams=("192.0.2.1", "192.0.2.2:5353"))  # type: ignore[arg-type]
    assert ask(config, name, "PTR" if name.endswith("arpa.") else "A") == [f"ask {servers}"]


def test_kube_dns_asks_nobody_about_one_label() -> None:
    config = changed(KUBE_DNS, upstreams=("192.0.2.1",))
    assert ask(config, "web.", "A") == SERVFAIL
    assert ask(changed(COREDNS, upstreams=("192.0.2.1",)), "web.", "A") == ["ask 192.0.2.1"]


def test_other_classes() -> None:
    assert lines(Zone(COREDNS).find(("version", "bind"), "TXT", "CH")) == REFUSED
    assert lines(Zone(KUBE_DNS).find(("version", "bind"), "TXT", "CH")) == SERVFAIL


@pytest.mark.parametrize(
    ("ttl", "answer", "soa"),
    [(0, 0, "0 SOA"), (30, 30, "30 SOA"), (3600, 3600, "300 SOA")],
)
def test_ttl(ttl: int, answer: int, soa: str) -> None:
    config = changed(COREDNS, ttl=ttl)
    assert ask(config, "web.default.svc", "A") == [f"@ {answer} A 10.96.5.5"]
    assert f"! ~ {soa}" in ask(config, "nope.default.svc", "A")[1]
    assert ask(config, "nope.default.svc", "A")[1].endswith(f" {ttl}")


@pytest.mark.parametrize(("endpoints", "weight", "sky"), [(3, 33, 33), (6, 16, 16), (150, 1, 0)])
def test_weights(endpoints: int, weight: int, sky: int) -> None:
    from nsnet.programs.kubedns.config import Endpoint, Port, Service

    port = (Port("pg", "TCP", 5432),)
    many = Service("default", "many", (), port, "", tuple(Endpoint(f"10.0.0.{n}", "", port) for n in range(endpoints)))
    for config, expected in ((COREDNS, f"0 {weight} 5432"), (KUBE_DNS, f"10 {sky} 5432")):
        said = ask(changed(config, services=(many,)), "_pg._tcp.many.default.svc", "SRV")
        assert len(said) == 2 * endpoints
        assert expected in said[0]


def test_an_address_of_two_services_has_two_names() -> None:
    from nsnet.programs.kubedns.config import Endpoint, Service

    pod = (Endpoint("10.0.0.1", "a"),)
    services = (Service("default", "one", endpoints=pod), Service("default", "two", ("10.96.0.9",), endpoints=pod))
    said = ask(changed(COREDNS, services=services), "1.0.0.10.in-addr.arpa.", "PTR")
    assert said == ["@ 5 PTR a.one.default.svc.~", "@ 5 PTR a.two.default.svc.~"]


def test_an_endpoint_of_two_slices_has_one_name() -> None:
    from nsnet.programs.kubedns.config import Endpoint, Port, Service

    slices = tuple(Endpoint("10.0.0.1", "a", (Port(name, "TCP", port),)) for name, port in (("one", 1), ("two", 2)))
    config = changed(COREDNS, services=(Service("default", "db", endpoints=slices),))
    assert ask(config, "1.0.0.10.in-addr.arpa.", "PTR") == ["@ 5 PTR a.db.default.svc.~"]
    assert ask(config, "a.db.default.svc", "A") == ["@ 5 A 10.0.0.1"]


def test_another_domain() -> None:
    config = changed(COREDNS, domain="k8s.Example.org.")
    assert ask(config, "web.default.svc.k8s.example.org.", "A") == ["@ 5 A 10.96.5.5"]
    assert ask(config, "web.default.svc.cluster.local.", "A") == REFUSED


def test_kube_dns_hash() -> None:
    """From the log of a real kube-dns: `DNS Record:&{10.0.25.249 0 10 10  false 30 0  }, hash:d37656a`."""
    assert hashed("10.0.25.249") == b"d37656a".hex()


@pytest.mark.parametrize(
    ("address", "label"),
    [("172.0.0.2", "172-0-0-2"), ("5678:abcd::1", "5678-abcd--1"), ("5678:abcd::", "5678-abcd--0")],
)
def test_dashed_addresses(address: str, label: str) -> None:
    assert dashed(address) == label
    assert pod_address(label) == address


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("4.3.2.1.in-addr.arpa", "1.2.3.4"),
        ("3.2.1.in-addr.arpa", ""),
        ("5.4.3.2.1.in-addr.arpa", ""),
        ("04.3.2.1.in-addr.arpa", ""),
        ("256.3.2.1.in-addr.arpa", ""),
        ("x.3.2.1.in-addr.arpa", ""),
        ("1." + "0." * 23 + "8.b.d.0.1.0.0.2.ip6.arpa", "2001:db8::1"),
        ("g." + "0." * 23 + "8.b.d.0.1.0.0.2.ip6.arpa", ""),
        ("1." + "0." * 22 + "8.b.d.0.1.0.0.2.ip6.arpa", ""),
        ("in-addr.arpa", ""),
    ],
)
def test_reverse_names(name: str, address: str) -> None:
    assert address_of(labels_of(name)) == address


LABEL = st.one_of(
    st.sampled_from(
        ["web", "default", "svc", "pod", "cluster", "local", "*", "_http", "_tcp", "db", "db-0", "in-addr", "arpa"]
    ),
    st.text(st.characters(max_codepoint=255), min_size=1, max_size=63),
)


@given(
    st.sampled_from([COREDNS, KUBE_DNS]),
    st.lists(LABEL, max_size=9),
    st.sampled_from([(), ("cluster", "local"), ("svc", "cluster", "local"), ("in-addr", "arpa"), ("ip6", "arpa")]),
    st.sampled_from(["A", "AAAA", "SRV", "PTR", "CNAME", "TXT", "ANY", "NS", "SOA", "MX"]),
)
def test_any_name_is_answered_with_sense(config: object, labels: list[str], end: tuple[str, ...], kind: str) -> None:
    """Nothing found is a code or an SOA; whatever is found is of the type asked, or an alias."""
    found = Zone(config, NOON).find((*labels, *end), kind)  # type: ignore[arg-type]
    assert isinstance(found, Found)
    if found.answers:
        assert found.rcode == "NOERROR"
        assert {record.kind for record in found.answers} <= {kind, "CNAME"}
    elif found.rcode in {"NOERROR", "NXDOMAIN"}:
        assert [record.kind for record in found.authority] == ["SOA"]
    else:
        assert found == Found(found.rcode, authoritative=False, recursion=found.recursion)
