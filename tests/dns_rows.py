"""What is answered to every sort of question about the small cluster of `kubedns_world`, by either implementation.

Rows: a name (below cluster.local. unless it ends in a dot), a type, and what the zone says: `@` is the name asked, `~`
is `cluster.local.`, `+` an additional record, `!` the authority section; see `kubedns_world.ask`. test_kubedns_zone
asks the zone itself, tests/kernel/test_dns_doors a running cluster, at every door.
"""

from nsnet.programs.kubedns.names import hashed

Row = tuple[str, str, list[str]]

SOA = "! ~ 5 SOA ns.dns.~ hostmaster.~ 1700000000 7200 1800 86400 5"
SKY_SOA = "! ~ 60 SOA ns.dns.~ hostmaster.~ 1699999200 28800 7200 604800 60"
NODATA, NXDOMAIN = [SOA], ["NXDOMAIN", SOA]
SKY_NODATA, SKY_NXDOMAIN = [SKY_SOA], ["NXDOMAIN", SKY_SOA]
REFUSED, SERVFAIL = ["REFUSED"], ["SERVFAIL"]

CLUSTER_IP: list[Row] = [
    ("web.default.svc", "A", ["@ 5 A 10.96.5.5"]),
    ("web.shop.svc", "A", ["@ 5 A 10.96.6.5"]),
    ("web.default.svc", "AAAA", NODATA),
    ("dual.default.svc", "A", ["@ 5 A 10.96.5.7"]),
    ("dual.default.svc", "AAAA", ["@ 5 AAAA fd00:96::7"]),
    ("unnamed.default.svc", "A", ["@ 5 A 10.96.5.6"]),  # zero endpoints, and still there
    *(
        (("web.default.svc", kind, NODATA))
        for kind in ("TXT", "SOA", "NS", "MX", "PTR", "CNAME", "ANY", "HTTPS", "TYPE65280")
    ),
    ("_http._tcp.web.default.svc", "SRV", ["@ 5 SRV 0 100 80 web.default.svc.~", "+ web.default.svc.~ 5 A 10.96.5.5"]),
    ("_http._tcp.web.default.svc", "A", ["@ 5 A 10.96.5.5"]),  # the port only selects
    ("_http._udp.web.default.svc", "SRV", NXDOMAIN),
    ("_https._tcp.web.default.svc", "SRV", NXDOMAIN),
    ("_http.web.default.svc", "SRV", NXDOMAIN),
    ("_tcp.web.default.svc", "SRV", NXDOMAIN),
    ("web.default.svc", "SRV", ["@ 5 SRV 0 100 80 web.default.svc.~", "+ web.default.svc.~ 5 A 10.96.5.5"]),
    (
        "kube-dns.kube-system.svc",
        "SRV",
        ["@ 5 SRV 0 50 53 kube-dns.kube-system.svc.~", "+ kube-dns.kube-system.svc.~ 5 A 10.96.0.10"],
    ),
    (
        "unnamed.default.svc",
        "SRV",
        ["@ 5 SRV 0 100 80 unnamed.default.svc.~", "+ unnamed.default.svc.~ 5 A 10.96.5.6"],
    ),
    (
        "dual.default.svc",
        "SRV",
        [
            "@ 5 SRV 0 50 80 dual.default.svc.~",
            "+ dual.default.svc.~ 5 A 10.96.5.7",
            "+ dual.default.svc.~ 5 AAAA fd00:96::7",
        ],
    ),
    ("10-244-1-5.web.default.svc", "A", ["@ 5 A 10.244.1.5"]),
    ("10-244-9-9.web.default.svc", "A", NXDOMAIN),
]

EXISTENCE: list[Row] = [
    ("nope.default.svc", "A", NXDOMAIN),
    ("nope.default.svc", "AAAA", NXDOMAIN),
    ("web.nowhere.svc", "A", NXDOMAIN),
    ("foo", "A", NXDOMAIN),
    ("web.default", "A", NXDOMAIN),
    ("a.b.c.web.default.svc", "A", NXDOMAIN),
    ("", "A", NODATA),
    ("svc", "A", NODATA),
    ("pod", "A", NODATA),
    ("default.svc", "A", NODATA),
    ("empty.svc", "NS", NODATA),
    ("nowhere.svc", "A", NXDOMAIN),
    ("empty.pod", "A", NODATA),
    ("nowhere.pod", "A", NXDOMAIN),
    ("*.default.svc", "A", NXDOMAIN),
    ("*.web.default.svc", "A", NXDOMAIN),
    ("web.*.svc", "A", NXDOMAIN),
]

APEX: list[Row] = [
    ("", "SOA", ["~ 5 SOA ns.dns.~ hostmaster.~ 1700000000 7200 1800 86400 5"]),
    ("", "NS", ["@ 5 NS kube-dns.kube-system.svc.~", "+ kube-dns.kube-system.svc.~ 5 A 10.96.0.10"]),
    ("ns.dns", "A", ["@ 5 A 10.96.0.10"]),
    ("dns-version", "TXT", ['@ 28800 TXT "1.1.0"']),
    ("dns-version", "A", NODATA),
]

HEADLESS: list[Row] = [
    ("db.default.svc", "A", ["@ 5 A 10.244.1.7", "@ 5 A 10.244.2.7", "@ 5 A 10.244.1.8"]),
    ("db.default.svc", "AAAA", NODATA),
    ("db-0.db.default.svc", "A", ["@ 5 A 10.244.1.7"]),
    ("db-1.db.default.svc", "A", ["@ 5 A 10.244.2.7"]),  # its hostname is in capitals
    ("10-244-1-8.db.default.svc", "A", ["@ 5 A 10.244.1.8"]),
    ("10-244-1-7.db.default.svc", "A", NXDOMAIN),  # it has a hostname
    ("db-9.db.default.svc", "A", NXDOMAIN),
    (
        "_pg._tcp.db.default.svc",
        "SRV",
        [
            "@ 5 SRV 0 33 5432 db-0.db.default.svc.~",
            "@ 5 SRV 0 33 5432 DB-1.db.default.svc.~",
            "@ 5 SRV 0 33 5432 10-244-1-8.db.default.svc.~",
            "+ db-0.db.default.svc.~ 5 A 10.244.1.7",
            "+ DB-1.db.default.svc.~ 5 A 10.244.2.7",
            "+ 10-244-1-8.db.default.svc.~ 5 A 10.244.1.8",
        ],
    ),
    ("_http._tcp.db.default.svc", "SRV", NXDOMAIN),
    ("both.twins.default.svc", "A", ["@ 5 A 10.244.1.9", "@ 5 A 10.244.2.9"]),
    (
        "_pg._tcp.twins.default.svc",
        "SRV",
        [
            "@ 5 SRV 0 50 5432 both.twins.default.svc.~",
            "+ both.twins.default.svc.~ 5 A 10.244.1.9",
            "+ both.twins.default.svc.~ 5 A 10.244.2.9",
        ],
    ),
    ("bare.default.svc", "A", ["@ 5 A 10.244.1.20"]),
    ("bare.default.svc", "SRV", NODATA),
    ("10-244-1-20.bare.default.svc", "A", ["@ 5 A 10.244.1.20"]),
    ("none.default.svc", "A", NXDOMAIN),
    ("_pg._tcp.none.default.svc", "SRV", NXDOMAIN),
    ("six.default.svc", "A", NODATA),
    ("six.default.svc", "AAAA", ["@ 5 AAAA 5678:abcd::1", "@ 5 AAAA 5678:abcd::"]),
    ("5678-abcd--1.six.default.svc", "AAAA", ["@ 5 AAAA 5678:abcd::1"]),
    ("5678-abcd--0.six.default.svc", "AAAA", ["@ 5 AAAA 5678:abcd::"]),
]

EXTERNAL: list[Row] = [
    ("ext.default.svc", "CNAME", ["@ 5 CNAME www.example.com."]),
    ("ext.default.svc", "A", ["@ 5 CNAME www.example.com.", "chase www.example.com."]),
    ("ext.default.svc", "AAAA", ["@ 5 CNAME www.example.com.", "chase www.example.com."]),
    ("ext.default.svc", "SRV", NODATA),
    ("ext.default.svc", "TXT", NODATA),
    ("x.ext.default.svc", "A", NXDOMAIN),
    ("_http._tcp.ext.default.svc", "SRV", NXDOMAIN),
    ("ext-in.default.svc", "A", ["@ 5 CNAME web.shop.svc.~", "web.shop.svc.~ 5 A 10.96.6.5"]),
    ("ext-in.default.svc", "AAAA", NODATA),
    (
        "ext-ext.default.svc",
        "A",
        ["@ 5 CNAME ext.default.svc.~", "ext.default.svc.~ 5 CNAME www.example.com.", "chase www.example.com."],
    ),
    ("ext-gone.default.svc", "A", NODATA),
    ("ext-gone.default.svc", "CNAME", ["@ 5 CNAME gone.default.svc.~"]),
    ("ext-ip.default.svc", "A", NXDOMAIN),
    ("self.default.svc", "A", NODATA),
    ("loop-a.default.svc", "A", NODATA),
    (
        "chain-8.default.svc",
        "A",
        [
            "@ 5 CNAME chain-7.default.svc.~",
            *(f"chain-{n}.default.svc.~ 5 CNAME chain-{n - 1}.default.svc.~" for n in range(7, 1, -1)),
            "chain-1.default.svc.~ 5 CNAME web.default.svc.~",
            "web.default.svc.~ 5 A 10.96.5.5",
        ],
    ),
    ("chain-9.default.svc", "A", NODATA),
]

PODS: list[Row] = [
    ("10-244-1-30.shop.pod", "A", ["@ 5 A 10.244.1.30"]),
    ("1-2-3-4.shop.pod", "A", ["@ 5 A 1.2.3.4"]),
    ("1-2-3-4.shop.pod", "AAAA", NODATA),
    ("1-2-3-4.shop.pod", "TXT", NODATA),
    ("fd00--30.shop.pod", "AAAA", ["@ 5 AAAA fd00::30"]),
    ("fd00--30.shop.pod", "A", NODATA),
    ("1-2-3-4.nowhere.pod", "A", NXDOMAIN),
    ("1-2-3-444.shop.pod", "A", NXDOMAIN),
    ("garbage.shop.pod", "A", NXDOMAIN),
    ("x.1-2-3-4.shop.pod", "A", NXDOMAIN),
]

REVERSE: list[Row] = [
    ("5.5.96.10.in-addr.arpa.", "PTR", ["@ 5 PTR web.default.svc.~"]),
    ("5.1.244.10.in-addr.arpa.", "PTR", ["@ 5 PTR 10-244-1-5.web.default.svc.~"]),
    ("7.1.244.10.in-addr.arpa.", "PTR", ["@ 5 PTR db-0.db.default.svc.~"]),
    ("7.0.0.0." + "0.0.0.0." * 5 + "6.9.0.0.0.0.d.f.ip6.arpa.", "PTR", ["@ 5 PTR dual.default.svc.~"]),
    ("1.0.0.0." + "0.0.0.0." * 5 + "d.c.b.a.8.7.6.5.ip6.arpa.", "PTR", ["@ 5 PTR 5678-abcd--1.six.default.svc.~"]),
    ("1.1.1.1.in-addr.arpa.", "PTR", REFUSED),  # outside, and nobody to ask
    ("5.5.96.10.in-addr.arpa.", "A", REFUSED),
]

OUTSIDE: list[Row] = [
    ("www.example.com.", "A", REFUSED),
    (".", "NS", REFUSED),
    ("notcluster.local.", "A", REFUSED),
]

COREDNS_ROWS: list[Row] = CLUSTER_IP + EXISTENCE + APEX + HEADLESS + EXTERNAL + PODS + REVERSE + OUTSIDE

WEB_HASH = hashed("10.96.5.5")
DB_HASH = hashed("10.244.1.8")

KUBE_DNS_ROWS: list[Row] = [
    ("web.default.svc", "A", ["@ 30 A 10.96.5.5"]),
    ("web.default.svc", "AAAA", SKY_NODATA),
    ("unnamed.default.svc", "A", ["@ 30 A 10.96.5.6"]),
    ("web.default.svc", "TXT", SKY_NODATA),
    ("web.default.svc", "SOA", SKY_NODATA),
    ("web.default.svc", "CNAME", SKY_NODATA),
    ("web.default.svc", "ANY", REFUSED),
    (
        "_http._tcp.web.default.svc",
        "SRV",
        ["@ 30 SRV 10 100 80 web.default.svc.~", "+ web.default.svc.~ 30 A 10.96.5.5"],
    ),
    ("_http._tcp.web.default.svc", "A", ["@ 30 CNAME web.default.svc.~", "web.default.svc.~ 30 A 10.96.5.5"]),
    ("_tcp.web.default.svc", "SRV", SKY_NXDOMAIN),
    (
        "web.default.svc",
        "SRV",
        [f"@ 30 SRV 10 100 0 {WEB_HASH}.web.default.svc.~", f"+ {WEB_HASH}.web.default.svc.~ 30 A 10.96.5.5"],
    ),
    (f"{WEB_HASH}.web.default.svc", "A", ["@ 30 A 10.96.5.5"]),
    (
        f"{WEB_HASH}._http._tcp.web.default.svc",
        "SRV",
        ["@ 30 SRV 10 100 80 web.default.svc.~", "+ web.default.svc.~ 30 A 10.96.5.5"],
    ),
    ("10-244-1-5.web.default.svc", "A", SKY_NXDOMAIN),
    (
        "dual.default.svc",
        "SRV",
        [
            *(f"@ 30 SRV 10 50 0 {hashed(a)}.dual.default.svc.~" for a in ("10.96.5.7", "fd00:96::7")),
            f"+ {hashed('10.96.5.7')}.dual.default.svc.~ 30 A 10.96.5.7",
            f"+ {hashed('fd00:96::7')}.dual.default.svc.~ 30 AAAA fd00:96::7",
        ],
    ),
    (
        "_http._tcp.dual.default.svc",
        "SRV",
        [
            "@ 30 SRV 10 50 80 dual.default.svc.~",
            "+ dual.default.svc.~ 30 A 10.96.5.7",
            "+ dual.default.svc.~ 30 AAAA fd00:96::7",
        ],
    ),
    # empty names do not exist, nor does a version
    *(
        (name, "A", SKY_NXDOMAIN)
        for name in ("", "svc", "pod", "default.svc", "empty.svc", "empty.pod", "foo", "ns.dns")
    ),
    ("", "SOA", ["~ 3600 SOA ns.dns.~ hostmaster.~ 1699999200 28800 7200 604800 60"]),
    ("", "NS", SKY_NXDOMAIN),
    ("dns-version", "TXT", SKY_NXDOMAIN),
    # wildcards
    ("web.*.svc", "A", ["@ 30 A 10.96.5.5", "@ 30 A 10.96.6.5"]),
    ("web.default.*", "A", ["@ 30 A 10.96.5.5"]),
    ("*.web.default.svc", "A", ["@ 30 A 10.96.5.5"]),
    ("*.db.default.svc", "A", ["@ 30 A 10.244.1.7", "@ 30 A 10.244.2.7", "@ 30 A 10.244.1.8"]),
    (
        "_dns._udp.*.kube-system.svc",
        "SRV",
        ["@ 30 SRV 10 100 53 kube-dns.kube-system.svc.~", "+ kube-dns.kube-system.svc.~ 30 A 10.96.0.10"],
    ),
    ("*._tcp.web.default.svc", "SRV", SKY_NXDOMAIN),
    ("*.shop.svc", "A", SKY_NXDOMAIN),  # nodes are not entries
    ("*.nowhere.svc", "A", SKY_NXDOMAIN),
    # headless
    ("db.default.svc", "A", ["@ 30 A 10.244.1.7", "@ 30 A 10.244.2.7", "@ 30 A 10.244.1.8"]),
    ("db-1.db.default.svc", "A", ["@ 30 A 10.244.2.7"]),
    (f"{DB_HASH}.db.default.svc", "A", ["@ 30 A 10.244.1.8"]),
    ("10-244-1-8.db.default.svc", "A", SKY_NXDOMAIN),
    (
        "_pg._tcp.db.default.svc",
        "SRV",
        [
            "@ 30 SRV 10 33 5432 db-0.db.default.svc.~",
            "@ 30 SRV 10 33 5432 DB-1.db.default.svc.~",
            f"@ 30 SRV 10 33 5432 {DB_HASH}.db.default.svc.~",
            "+ db-0.db.default.svc.~ 30 A 10.244.1.7",
            "+ DB-1.db.default.svc.~ 30 A 10.244.2.7",
            f"+ {DB_HASH}.db.default.svc.~ 30 A 10.244.1.8",
        ],
    ),
    ("both.twins.default.svc", "A", ["@ 30 A 10.244.1.9", "@ 30 A 10.244.2.9"]),
    ("bare.default.svc", "A", ["@ 30 A 10.244.1.20"]),
    ("none.default.svc", "A", SKY_NXDOMAIN),
    # external names
    ("ext.default.svc", "CNAME", ["@ 30 CNAME www.example.com."]),
    ("ext.default.svc", "A", ["@ 30 CNAME www.example.com.", "chase www.example.com."]),
    ("ext.default.svc", "SRV", ["@ 30 SRV 10 100 0 www.example.com."]),
    ("ext-in.default.svc", "A", ["@ 30 CNAME web.shop.svc.~", "web.shop.svc.~ 30 A 10.96.6.5"]),
    ("ext-gone.default.svc", "A", SKY_NODATA),
    ("ext-ip.default.svc", "A", ["@ 30 A 192.0.2.1"]),
    ("x.ext.default.svc", "A", SKY_NXDOMAIN),
    ("loop-a.default.svc", "A", SKY_NODATA),
    # pods: any address in any namespace
    ("1-2-3-4.nowhere.pod", "A", ["@ 30 A 1.2.3.4"]),
    ("garbage.shop.pod", "A", SKY_NODATA),
    ("1-2-3-4.shop.pod", "SRV", SKY_NODATA),
    # reverse
    ("5.5.96.10.in-addr.arpa.", "PTR", ["@ 30 PTR web.default.svc.~"]),
    ("7.1.244.10.in-addr.arpa.", "PTR", ["@ 30 PTR db-0.db.default.svc.~"]),
    ("8.1.244.10.in-addr.arpa.", "PTR", SERVFAIL),  # no hostname: outside, and nobody to ask
    ("5.1.244.10.in-addr.arpa.", "PTR", SERVFAIL),
    ("www.example.com.", "A", SERVFAIL),
]
