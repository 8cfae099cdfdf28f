"""kubedns as a process on loopback: asked by dnspython and dig over UDP and TCP, reloaded, attacked, behind dnsmasq."""

import json
import os
import random
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import dns.flags
import dns.message
import dns.query
import dns.rcode
import msgspec
import pytest
from scapy.layers.inet import IP, TCP

from nsnet.programs.kubedns.config import Config, Endpoint, Port, Service
from nsnet.programs.kubedns.server import CONNECTIONS
from tests.kubedns_world import COREDNS, KUBE_DNS, changed

CONFIG = Path("/run/kubedns-test/kubedns.json")
PORT, HTTP = 10053, 8081
WEB = "web.default.svc.cluster.local"
Message = dns.message.Message
Serve = Callable[..., subprocess.Popen[bytes]]
Handler = Callable[[bytes, bool], list[bytes]]


def write(config: Config) -> None:
    CONFIG.parent.mkdir(exist_ok=True)
    CONFIG.write_bytes(msgspec.json.encode(config))


def launch(words: list[str]) -> subprocess.Popen[bytes]:
    """Starts a program of ours and waits until it says that it is ready."""
    reader, writer = os.pipe()
    env = {**os.environ, "NSNET_READY_FD": str(writer)}
    process = subprocess.Popen([sys.executable, "-m", *words], env=env, pass_fds=[writer], stderr=subprocess.PIPE)
    os.close(writer)
    assert os.read(reader, 10) == b"\n"
    assert os.read(reader, 10) == b""
    os.close(reader)
    return process


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts kubedns on what is given (or on no file at all)."""
    started: list[subprocess.Popen[bytes]] = []

    def start(config: Config | None = None) -> subprocess.Popen[bytes]:
        CONFIG.parent.mkdir(exist_ok=True)
        CONFIG.unlink(missing_ok=True)
        if config:
            write(config)
        started.append(launch(["nsnet.programs.kubedns", str(CONFIG)]))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def reload() -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(f"{CONFIG}.sock")
        sock.send(b"reload\n")
        return sock.recv(1000)


def question(name: str, kind: str = "A", **how: int) -> Message:
    return dns.message.make_query(name, kind, **how)  # type: ignore[arg-type]


def udp(name: str, kind: str = "A", *, port: int = PORT, timeout: float = 8, **how: int) -> Message:
    return dns.query.udp(question(name, kind, **how), "127.0.0.1", port=port, timeout=timeout)


def tcp(name: str, kind: str = "A", *, port: int = PORT) -> Message:
    return dns.query.tcp(question(name, kind), "127.0.0.1", port=port, timeout=8)


def code(reply: Message) -> str:
    return dns.rcode.to_text(reply.rcode())


def said(reply: Message) -> list[str]:
    """Code, flags, answers, `!` authority, `+` additional; owners that are the question's as `@`."""
    asked = reply.question[0].name
    sections = [("", reply.answer), ("! ", reply.authority), ("+ ", reply.additional)]
    records = [
        f"{mark}{'@' if rrset.name == asked else rrset.name} {rrset.ttl} {rdata.rdtype.name} {rdata}"
        for mark, section in sections
        for rrset in section
        for rdata in rrset
    ]
    return [f"{code(reply)} {dns.flags.to_text(reply.flags)}", *records]


def page(path: str, port: int = HTTP) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def metric(name: str) -> int:
    found = re.search(rf"^{re.escape(name)} (\d+)$", page("/metrics")[1], re.MULTILINE)
    assert found
    return int(found[1])


def resident(pid: int) -> int:
    """VmRSS in MB."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]) // 1024


# --- questions --------------------------------------------------------------------------------------------------------

SOA = "! cluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. 1700000000 7200 1800 86400 5"
ROWS = [
    (WEB, "A", ["NOERROR QR AA RD", "@ 5 A 10.96.5.5"]),
    (WEB, "AAAA", ["NOERROR QR AA RD", SOA]),
    (f"nope.{WEB}", "A", ["NXDOMAIN QR AA RD", SOA]),
    (
        f"_http._tcp.{WEB}",
        "SRV",
        ["NOERROR QR AA RD", f"@ 5 SRV 0 100 80 {WEB}.", f"+ {WEB}. 5 A 10.96.5.5"],
    ),
    ("db-0.db.default.svc.cluster.local", "A", ["NOERROR QR AA RD", "@ 5 A 10.244.1.7"]),
    ("1-2-3-4.shop.pod.cluster.local", "A", ["NOERROR QR AA RD", "@ 5 A 1.2.3.4"]),
    ("fd00--30.shop.pod.cluster.local", "AAAA", ["NOERROR QR AA RD", "@ 5 AAAA fd00::30"]),
    ("5.5.96.10.in-addr.arpa", "PTR", ["NOERROR QR AA RD", f"@ 5 PTR {WEB}."]),
    ("dns-version.cluster.local", "TXT", ["NOERROR QR AA RD", '@ 28800 TXT "1.1.0"']),
    (
        "ext-in.default.svc.cluster.local",
        "A",
        ["NOERROR QR AA RD", "@ 5 CNAME web.shop.svc.cluster.local.", "web.shop.svc.cluster.local. 5 A 10.96.6.5"],
    ),
    ("ext.default.svc.cluster.local", "A", ["NOERROR QR AA RD", "@ 5 CNAME www.example.com."]),
    ("www.example.com", "A", ["REFUSED QR RD"]),
]


def test_questions_over_udp_and_tcp(serve: Serve) -> None:
    serve(COREDNS)
    for name, kind, expected in ROWS:
        assert said(udp(name, kind)) == expected
        assert said(tcp(name, kind)) == expected
        assert said(udp(name, kind)) == expected  # now it is kept


SKY_SOA = re.compile(
    r"! cluster.local. 60 SOA ns.dns.cluster.local. hostmaster.cluster.local. \d+ 28800 7200 604800 60"
)


def test_questions_to_kube_dns(serve: Serve) -> None:
    serve(KUBE_DNS)
    assert said(udp(WEB)) == ["NOERROR QR AA RD RA", "@ 30 A 10.96.5.5"]
    assert said(udp("5.5.96.10.in-addr.arpa", "PTR")) == ["NOERROR QR RD RA", f"@ 30 PTR {WEB}."]
    assert said(udp("www.example.com")) == ["SERVFAIL QR RD RA"]
    head, soa = said(udp(WEB, "AAAA"))
    assert head == "NOERROR QR AA RD RA"
    assert SKY_SOA.fullmatch(soa)
    assert abs(int(soa.split()[6]) - time.time()) < 3700


def dig(*words: str) -> str:
    done = subprocess.run(["dig", "@127.0.0.1", "-p", str(PORT), *words], capture_output=True, text=True, check=True)
    return done.stdout


def test_dig(serve: Serve) -> None:
    serve(COREDNS)
    assert dig("+short", WEB) == "10.96.5.5\n"
    assert dig("+short", "+tcp", "-x", "10.96.5.5") == f"{WEB}.\n"
    assert dig("+short", "+noedns", WEB) == "10.96.5.5\n"
    assert dig("+short", "SRV", f"_http._tcp.{WEB}") == f"0 100 80 {WEB}.\n"
    assert "status: BADVERS" in dig("+edns=1", "+noednsnegotiation", WEB)
    assert dig("+short", "+subnet=10.0.0.0/8", "+cookie", "+dnssec", WEB) == "10.96.5.5\n"
    assert "status: NOTIMP" in dig("+opcode=STATUS", WEB)
    assert "status: REFUSED" in dig("CH", "TXT", "version.bind")


def test_a_long_answer_is_cut_and_comes_whole_over_tcp(serve: Serve) -> None:
    port = (Port("pg", "TCP", 5432),)
    pods = tuple(Endpoint(f"10.244.{n // 200}.{n % 200 + 1}", "", port) for n in range(900))
    serve(changed(COREDNS, services=(Service("default", "many", (), port, "", pods),)))
    assert udp("many.default.svc.cluster.local").flags & dns.flags.TC
    assert len(tcp("many.default.svc.cluster.local").answer[0]) == 900
    assert len(dig("+short", "many.default.svc.cluster.local").split()) == 900
    assert len(dig("+short", "SRV", "_pg._tcp.many.default.svc.cluster.local").splitlines()) == 900


# --- the process ------------------------------------------------------------------------------------------------------


def test_before_the_first_configuration(serve: Serve) -> None:
    serve()
    assert said(udp(WEB)) == ["SERVFAIL QR RD"]
    assert said(tcp("nope.cluster.local")) == ["SERVFAIL QR RD"]
    with pytest.raises(urllib.error.URLError, match="Connection refused"):
        page("/readiness")
    assert reload().startswith(b"error: [Errno 2] No such file or directory")
    write(COREDNS)
    assert reload() == b"ok\n"
    assert code(udp(WEB)) == "NOERROR"
    assert page("/readiness") == (200, "ok\n")


def test_a_reload_is_seen_at_once(serve: Serve) -> None:
    serve(COREDNS)
    assert code(udp("new.default.svc.cluster.local")) == "NXDOMAIN"
    for address in ("10.96.9.1", "10.96.9.2"):
        write(changed(COREDNS, services=(Service("default", "new", (address,)),)))
        assert reload() == b"ok\n"
        assert said(udp("new.default.svc.cluster.local"))[1:] == [f"@ 5 A {address}"]
        assert said(tcp("new.default.svc.cluster.local"))[1:] == [f"@ 5 A {address}"]
    write(changed(COREDNS, services=(Service("default", "new", external_name="foo.example.com"),)))
    assert reload() == b"ok\n"
    assert said(udp("new.default.svc.cluster.local", "CNAME"))[1:] == ["@ 5 CNAME foo.example.com."]


@pytest.mark.parametrize("content", [b"{", b'{"flavour": "bind"}', b'{"services": [["default"]]}', b"\xff"])
def test_a_file_that_cannot_be_read_changes_nothing(serve: Serve, content: bytes) -> None:
    serve(COREDNS)
    CONFIG.write_bytes(content)
    assert reload().startswith(b"error: ")
    assert said(udp(WEB))[1:] == ["@ 5 A 10.96.5.5"]


def test_signals(serve: Serve) -> None:
    process = serve(COREDNS)
    CONFIG.write_text("{")
    process.send_signal(signal.SIGHUP)
    assert process.stderr is not None
    served = f"kubedns: {len(COREDNS.services)} services of cluster.local, as coredns"
    assert process.stderr.readline().decode() == f"{served}; names outside are asked of nobody\n"
    assert b"kubedns: /run/kubedns-test/kubedns.json: " in process.stderr.readline()  # it has read the file again
    with socket.create_connection(("127.0.0.1", PORT)), socket.socket(socket.AF_UNIX) as control:
        control.connect(f"{CONFIG}.sock")
        assert code(udp(WEB)) == "NOERROR"
        process.terminate()
        assert process.communicate(timeout=5)[1] == b""
    assert process.returncode == 0


def test_after_a_kill_the_next_one_takes_over(serve: Serve) -> None:
    first = serve(COREDNS)
    with socket.create_connection(("127.0.0.1", PORT)):
        first.kill()
        first.wait()
    serve(COREDNS)
    assert reload() == b"ok\n"
    assert code(tcp(WEB)) == "NOERROR"


def test_pages(serve: Serve) -> None:
    serve(COREDNS)
    assert page("/nothing")[0] == 404
    for _ in range(3):
        udp(WEB)
    tcp("nope.cluster.local")
    assert metric('kubedns_requests_total{proto="udp"}') == 3
    assert metric('kubedns_requests_total{proto="tcp"}') == 1
    assert metric('kubedns_responses_total{rcode="NXDOMAIN"}') == 1
    assert (metric("kubedns_cache_hits_total"), metric("kubedns_cache_misses_total")) == (2, 2)
    assert metric("kubedns_services") == len(COREDNS.services)
    status, dump = page("/cache")
    assert status == 200
    assert msgspec.json.decode(json.dumps(json.loads(dump)["configuration"]), type=Config) == COREDNS
    assert json.loads(dump)["replies"] == {"udp": 1, "tcp": 1}


# --- other servers ----------------------------------------------------------------------------------------------------


class Other:
    """A server of another zone: `handler` says what to send for a question (over UDP any number of datagrams)."""

    def __init__(self, stack: ExitStack, port: int, handler: Handler) -> None:
        self.handler = handler
        self.asked: list[tuple[bytes, tuple[str, int]]] = []
        self.udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.udp.bind(("127.0.0.1", port))
        self.tcp = stack.enter_context(socket.create_server(("127.0.0.1", port)))
        self.end, end = socket.socketpair()
        thread = threading.Thread(target=self.work)
        thread.start()
        stack.callback(self.end.close)
        stack.callback(thread.join)
        stack.callback(end.close)

    def work(self) -> None:
        while True:
            ready, _, _ = select.select([self.udp, self.tcp, self.end], [], [])
            if self.end in ready:
                return
            if self.udp in ready:
                self.datagram()
            if self.tcp in ready:
                self.stream()

    def datagram(self) -> None:
        data, client = self.udp.recvfrom(4096)
        self.asked.append((data, client))
        for reply in self.handler(data, False):
            self.udp.sendto(reply, client)

    def stream(self) -> None:
        with self.tcp.accept()[0] as sock:
            data = sock.recv(4096)[2:]
            for reply in self.handler(data, True):
                sock.sendall(struct.pack("!H", len(reply)) + reply)


def answer(data: bytes, *addresses: str, flags: int = 0, name: str = "") -> bytes:
    asked = dns.message.from_wire(data)
    reply = dns.message.make_response(asked, recursion_available=True)
    reply.flags |= flags
    if addresses:
        reply.answer.append(dns.rrset.from_text(name or asked.question[0].name, 300, "IN", "A", *addresses))
    return reply.to_wire()


@pytest.fixture
def other() -> Iterator[Callable[[int, Handler], Other]]:
    with ExitStack() as stack:
        yield lambda port, handler: Other(stack, port, handler)


Others = Callable[[int, Handler], Other]
UPSTREAMS = ("127.0.0.1:5301", "127.0.0.1:5302")


def test_names_outside_are_asked_of_others(serve: Serve, other: Others) -> None:
    one = other(5301, lambda data, _: [answer(data, "192.0.2.1", flags=dns.flags.AA)])
    serve(changed(COREDNS, upstreams=UPSTREAMS, stubs={"acme.local": ("127.0.0.1:5303",)}))
    other(5303, lambda data, _: [answer(data, "192.0.2.3")])
    for _ in range(20):
        assert said(udp("www.EXAMPLE.com")) == ["NOERROR QR RD RA", "@ 300 A 192.0.2.1"]
    assert said(tcp("www.example.com")) == ["NOERROR QR RD RA", "@ 300 A 192.0.2.1"]
    assert said(udp("x.acme.local"))[1:] == ["@ 300 A 192.0.2.3"]
    idents, ports = {data[:2] for data, _ in one.asked}, {client[1] for _, client in one.asked}
    assert len(one.asked) == 21  # nothing of theirs is kept
    assert min(len(idents), len(ports)) > 15  # a new id, a new port
    assert metric("kubedns_forwarded_total") == 22


def test_what_others_are_asked_is_the_question_alone(serve: Serve, other: Others) -> None:
    one = other(5301, lambda data, _: [answer(data, "192.0.2.1")])
    serve(changed(COREDNS, upstreams=UPSTREAMS))
    plain, edns = udp("www.example.com"), udp("www.example.com", use_edns=0, payload=4000)
    assert (plain.edns, edns.edns) == (-1, 0)
    seen = [dns.message.from_wire(data) for data, _ in one.asked]
    assert [(message.edns, message.payload) for message in seen] == [(-1, 0), (0, 4000)]


def silent(_: bytes, __: bool) -> list[bytes]:
    return []


def liar(data: bytes, _: bool) -> list[bytes]:
    """Wrong id, wrong question, a question, scraps: none of them is an answer."""
    truth = answer(data, "192.0.2.66")
    other = dns.message.make_query("www.example.net", "A", id=struct.unpack("!H", data[:2])[0])
    wrong = bytes([truth[0] ^ 1]) + truth[1:]
    return [wrong, answer(other.to_wire(), "192.0.2.66"), data, b"", truth[:11]]


@pytest.mark.parametrize("first", [None, silent, liar])
def test_the_next_one_is_asked(serve: Serve, other: Others, first: Handler | None) -> None:
    """Nobody listens (at once), nobody answers, somebody lies (after a while)."""
    if first:
        other(5301, first)
    other(5302, lambda data, _: [answer(data, "192.0.2.2")])
    serve(changed(COREDNS, upstreams=UPSTREAMS))
    assert said(udp("www.example.com"))[1:] == ["@ 300 A 192.0.2.2"]


def test_nobody_answers(serve: Serve, other: Others) -> None:
    serve(changed(COREDNS, upstreams=UPSTREAMS))
    assert said(udp("www.example.com")) == ["SERVFAIL QR RD"]
    assert metric("kubedns_forward_failures_total") == 1
    other(5301, silent)
    before = time.monotonic()
    assert said(udp("www.example.com", timeout=8)) == ["SERVFAIL QR RD"]
    assert 1 < time.monotonic() - before < 6  # the silent one had its time, and again
    assert code(udp(WEB)) == "NOERROR"


def test_codes_of_others_are_passed_on(serve: Serve, other: Others) -> None:
    one = other(5301, lambda data, _: [answer(data, flags=dns.rcode.NXDOMAIN)])
    serve(changed(COREDNS, upstreams=UPSTREAMS))
    assert said(udp("www.example.com")) == ["NXDOMAIN QR RD RA"]
    assert len(one.asked) == 1


def long_answer(data: bytes, stream: bool) -> list[bytes]:
    return [answer(data, *(f"192.0.2.{n}" for n in range(100))) if stream else answer(data, flags=dns.flags.TC)]


def test_a_cut_answer_is_asked_for_again_over_tcp(serve: Serve, other: Others) -> None:
    other(5301, long_answer)
    serve(changed(COREDNS, upstreams=UPSTREAMS))
    assert len(udp("www.example.com", use_edns=0, payload=4096).answer[0]) == 100
    cut = udp("www.example.com")
    assert cut.flags & dns.flags.TC
    assert not cut.answer
    assert len(tcp("www.example.com").answer[0]) == 100


def test_aliases_are_followed_outside(serve: Serve, other: Others) -> None:
    one = other(5301, lambda data, _: [answer(data, "192.0.2.1")])
    config = changed(COREDNS, upstreams=UPSTREAMS)
    serve(config)
    ext = "ext.default.svc.cluster.local"
    alias = "@ {} CNAME www.example.com."
    assert said(udp(ext)) == ["NOERROR QR AA RD", alias.format(5), "www.example.com. 300 A 192.0.2.1"]
    assert said(udp(f"ext-{ext}"))[1:] == [
        f"@ 5 CNAME {ext}.",
        f"{ext}. 5 CNAME www.example.com.",
        "www.example.com. 300 A 192.0.2.1",
    ]
    one.handler = lambda data, _: [answer(data, flags=dns.rcode.NXDOMAIN)]
    assert said(udp(ext)) == ["NOERROR QR AA RD", alias.format(5)]
    write(changed(config, flavour="kube-dns"))
    assert reload() == b"ok\n"
    head, soa = said(udp(ext))
    assert (head, bool(SKY_SOA.fullmatch(soa))) == ("NOERROR QR AA RD RA", True)
    one.handler = lambda data, _: [answer(data, "192.0.2.1")]
    assert said(udp(ext))[1:] == [alias.format(30), "www.example.com. 30 A 192.0.2.1"]


def test_many_that_wait_do_not_stop_the_others(serve: Serve, other: Others) -> None:
    other(5301, silent)
    process = serve(changed(COREDNS, upstreams=UPSTREAMS[:1]))
    waiting = question("www.example.com").to_wire()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for n in range(3000):
            sock.sendto(struct.pack("!H", n) + waiting[2:], ("127.0.0.1", PORT))
        assert code(udp(WEB)) == "NOERROR"
        assert code(tcp(WEB)) == "NOERROR"
    assert resident(process.pid) < 100
    assert len(list(Path(f"/proc/{process.pid}/fd").iterdir())) < 600


# --- clients that mean no good ----------------------------------------------------------------------------------------


def test_thousands_of_connections_that_say_nothing(serve: Serve) -> None:
    process = serve(COREDNS)
    with ExitStack() as stack:
        for n in range(3000):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", PORT), timeout=5))
            if n % 3:
                sock.send(b"\xff\xff" + b"x" * (n % 2 * 1000))  # half a message, too
        assert code(udp(WEB)) == "NOERROR"
        assert code(tcp(WEB)) == "NOERROR"
        assert metric("kubedns_connections") <= CONNECTIONS
        assert resident(process.pid) < 100
        assert page("/readiness") == (200, "ok\n")


@pytest.mark.usefixtures("address")
def test_thousands_of_connections_that_are_never_completed(serve: Serve) -> None:
    """SYNs whose sender never answers: the kernel holds some half open and says cookies to the rest."""
    serve(COREDNS)
    subprocess.run(["ip", "route", "add", "198.51.100.0/24", "dev", "lo"], check=True)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            for n in range(2000):
                syn = IP(src=f"198.51.100.{n % 250 + 1}", dst="192.0.2.9") / TCP(sport=1024 + n, dport=PORT, seq=n)
                raw.sendto(bytes(syn), ("192.0.2.9", 0))
        opened = subprocess.run(["ss", "-Htn", "state", "syn-recv"], capture_output=True, text=True, check=True).stdout
        assert len(opened.splitlines()) > 50
        assert said(dns.query.tcp(question(WEB), "192.0.2.9", port=PORT, timeout=5))[1:] == ["@ 5 A 10.96.5.5"]
        assert code(udp(WEB)) == "NOERROR"
    finally:
        subprocess.run(["ip", "route", "delete", "198.51.100.0/24", "dev", "lo"], check=True)


LOOPS = (
    b"\xc0\x0c",  # a name that points at itself
    b"\1a\xc0\x0c",
    b"\xc0\x0e\xc0\x0c",  # two that point at each other
    b"".join(struct.pack("!H", 0xC000 | 14 + 2 * n) for n in range(60)) + b"\xc0\x0c",
    b"\x3f" + b"a" * 63 + b"\xc0\x0c",
)


def hostile(count: int) -> Iterator[bytes]:
    """Questions with bytes changed, cut, doubled and put together with names that never end; always the same ones."""
    dice = random.Random(4)
    whole = [question(name, kind, use_edns=edns).to_wire() for name, kind, _ in ROWS for edns in (-1, 0)]
    for _ in range(count):
        data = bytearray(dice.choice(whole))
        for _ in range(dice.randrange(4)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        if dice.random() < 0.3:
            data[12:12] = dice.choice(LOOPS)
        if dice.random() < 0.3:
            data = data[: dice.randrange(len(data))]
        yield bytes(data + data[: dice.randrange(40)] if dice.random() < 0.2 else data)


def test_hostile_packets(serve: Serve, dnsmasq: Callable[[str], subprocess.Popen[bytes]]) -> None:
    """Thousands over UDP and hundreds over TCP, at kubedns and at dnsmasq: both live on and are right."""
    server, front = serve(COREDNS), dnsmasq(CLASSIC)
    for port in (PORT, 53):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for data in hostile(3000):
                sock.sendto(data, ("127.0.0.1", port))
        for data in hostile(300):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as sock, suppress(OSError):
                sock.sendall(struct.pack("!H", len(data)) + data)
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(65536):
                    pass
        for ask in (udp, tcp):
            assert [item.to_text() for item in ask(WEB, port=port).answer[0]] == ["10.96.5.5"]
    assert server.poll() is front.poll() is None
    assert resident(server.pid) < 100


def test_messages_of_64_kb(serve: Serve) -> None:
    process = serve(COREDNS)
    bare = question(WEB).to_wire()
    with socket.create_connection(("127.0.0.1", PORT), timeout=5) as sock:
        for filling in (bare, bare[:2] + b"\1\0\0\1\0\0\0\0\0\2" + bare[12:], b"\0" * 12, b"\xc0" * 100):
            sock.sendall(b"\xff\xff" + filling.ljust(65535, b"\xc0"))
            if filling[2:3] != b"\xc0":  # an answer gets none, and the end
                length = int.from_bytes(sock.recv(2, socket.MSG_WAITALL), "big")
                assert sock.recv(length, socket.MSG_WAITALL)[2] & 0x80
        assert sock.recv(1) == b""
    with socket.create_connection(("127.0.0.1", PORT), timeout=5) as sock:
        sock.sendall(b"\0\0")
        assert sock.recv(1) == b""
    assert code(tcp(WEB)) == "NOERROR"
    assert resident(process.pid) < 100


def test_messages_of_one_connection_are_answered_in_order(serve: Serve) -> None:
    serve(COREDNS)
    names = [WEB, "nope.cluster.local", f"_http._tcp.{WEB}"] * 50
    messages = [dns.message.make_query(name, "A", id=n).to_wire() for n, name in enumerate(names)]
    stream = b"".join(struct.pack("!H", len(message)) + message for message in messages)
    with socket.create_connection(("127.0.0.1", PORT), timeout=5) as sock:
        sock.sendall(stream[:1000])
        sock.sendall(stream[1000:])
        for n in range(len(names)):
            length = int.from_bytes(sock.recv(2, socket.MSG_WAITALL), "big")
            assert struct.unpack("!H", sock.recv(length, socket.MSG_WAITALL)[:2]) == (n,)


def test_a_client_that_does_not_read_is_dropped_or_waits(serve: Serve) -> None:
    process = serve(COREDNS)
    message = question(WEB).to_wire()
    framed = struct.pack("!H", len(message)) + message
    with socket.create_connection(("127.0.0.1", PORT), timeout=0.5) as sock:
        with pytest.raises(TimeoutError):
            sock.sendall(framed * 1_000_000)  # until the buffers of both are full
        assert code(tcp(WEB)) == "NOERROR"
        assert resident(process.pid) < 100


def test_answers_and_scraps_get_no_word(serve: Serve) -> None:
    serve(COREDNS)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect(("127.0.0.1", PORT))
        reply = udp(WEB).to_wire()
        for scrap in (b"", b"\0", reply, b"\xff" * 60000):
            sock.send(scrap)
        sock.send(question(WEB).to_wire())
        assert dns.message.from_wire(sock.recv(65535)).answer[0][0].to_text() == "10.96.5.5"
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(65535)
    assert metric("kubedns_malformed_total") == 4


# --- ten thousand Services --------------------------------------------------------------------------------------------


def ten_thousand() -> Config:
    ports, target = (Port("http", "TCP", 80), Port("https", "TCP", 443)), (Port("http", "TCP", 8080),)
    services = tuple(
        Service(
            f"ns{n % 20}",
            f"svc-{n}",
            (f"10.96.{n // 250}.{n % 250 + 1}",),
            ports,
            "",
            tuple(Endpoint(f"10.{244 + j}.{n // 250}.{n % 250 + 1}", "", target) for j in range(3)),
        )
        for n in range(10_000)
    )
    return Config(services=services)


def test_ten_thousand_services(serve: Serve) -> None:
    """How long it takes is for `scripts/bench dns`."""
    config = ten_thousand()
    process = serve(config)
    assert said(udp("svc-9999.ns19.svc.cluster.local"))[1:] == ["@ 5 A 10.96.39.250"]
    for n in range(5):
        added = Service("ns0", f"new-{n}", (f"10.97.0.{n}",))
        write(changed(config, services=(*config.services, added)))
        assert reload() == b"ok\n"
        assert said(udp(f"new-{n}.ns0.svc.cluster.local"))[1:] == [f"@ 5 A 10.97.0.{n}"]
    assert said(udp("250.39.96.10.in-addr.arpa", "PTR"))[1:] == ["@ 5 PTR svc-9999.ns19.svc.cluster.local."]
    assert resident(process.pid) < 150


# --- the pod: dnsmasq in front, exechealthz beside --------------------------------------------------------------------

DNSMASQ = "dnsmasq -k --conf-file=/dev/null --no-hosts --pid-file= --user=root --cache-size=1000 --log-facility=-"
CLASSIC = f"{DNSMASQ} --no-resolv --server=127.0.0.1#10053"
LATER = (
    f"{DNSMASQ} --no-negcache --dns-loop-detect --no-resolv --server=/cluster.local/127.0.0.1#10053 "
    "--server=/in-addr.arpa/127.0.0.1#10053 --server=/ip6.arpa/127.0.0.1#10053"
)


@pytest.fixture
def address() -> Iterator[None]:
    """One beside 127.0.0.1: the libc asks for no IPv4 where loopback is all that there is (AI_ADDRCONFIG)."""
    subprocess.run(["ip", "address", "add", "192.0.2.9/32", "dev", "lo"], check=True)
    yield
    subprocess.run(["ip", "address", "delete", "192.0.2.9/32", "dev", "lo"], check=True)


@pytest.fixture
def dnsmasq() -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(words: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(words.split(), stderr=subprocess.PIPE)
        started.append(process)
        assert process.stderr is not None
        line = process.stderr.readline()
        while b"cachesize" not in line:  # it has opened its sockets by then
            assert line
            line = process.stderr.readline()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def counter(name: str) -> int:
    """dnsmasq's, by CHAOS TXT, as kube-dns' sidecar asks for them."""
    asked = dns.message.make_query(f"{name}.bind", "TXT", "CH")
    reply = dns.query.udp(asked, "127.0.0.1", timeout=5)
    return int(reply.answer[0][0].strings[0])


def counted(name: str, kind: str = "A") -> tuple[str, int]:
    """What is said through dnsmasq, and how many questions came through to kubedns."""
    before = metric('kubedns_requests_total{proto="udp"}')
    reply = udp(name, kind, port=53)
    return said(reply)[-1], metric('kubedns_requests_total{proto="udp"}') - before


@pytest.mark.parametrize("config", [COREDNS, KUBE_DNS])
def test_behind_dnsmasq(serve: Serve, dnsmasq: Callable[[str], object], config: Config) -> None:
    serve(config)
    dnsmasq(CLASSIC)
    ttl = 5 if config is COREDNS else 30
    assert counted(WEB) == (f"@ {ttl} A 10.96.5.5", 1)
    hits, misses = counter("hits"), counter("misses")
    record, asked = counted(WEB.upper())
    assert (record.rpartition(" ")[2], asked) == ("10.96.5.5", 0)
    assert (counter("hits"), counter("misses")) == (hits + 3, misses)  # questions about the counters count, too
    assert counter("cachesize") == 1000
    assert counted("nope.default.svc.cluster.local")[1] == 1
    assert counted("nope.default.svc.cluster.local")[1] == 0
    assert counted("5.5.96.10.in-addr.arpa", "PTR")[0].endswith(f" PTR {WEB}.")
    assert tcp(WEB, port=53).answer[0][0].to_text() == "10.96.5.5"
    name = "ext-in.default.svc.cluster.local"
    assert said(udp(name, port=53))[1:] == said(udp(name))[1:]


def test_behind_a_later_dnsmasq(serve: Serve, dnsmasq: Callable[[str], object]) -> None:
    """It keeps no denial, and asks kubedns about the cluster's names only."""
    serve(KUBE_DNS)
    dnsmasq(LATER)
    assert counted(WEB)[1] == 1
    assert counted(WEB)[1] == 0
    for _ in range(2):
        assert counted("nope.default.svc.cluster.local")[1] == 1
        assert counted(WEB, "AAAA")[1] == 1
    before = metric('kubedns_requests_total{proto="udp"}')
    assert code(udp("www.example.com", port=53)) == "REFUSED"
    assert metric('kubedns_requests_total{proto="udp"}') == before


def test_thousands_of_connections_to_dnsmasq(serve: Serve, dnsmasq: Callable[[str], subprocess.Popen[bytes]]) -> None:
    """It talks to twenty over TCP at a time, as in a real cluster; over UDP to all, over TCP when they have gone."""
    serve(COREDNS)
    front = dnsmasq(CLASSIC)
    with ExitStack() as stack:
        for _ in range(3000):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", 53))
        assert code(udp(WEB, port=53)) == "NOERROR"
        assert code(udp("nope.default.svc.cluster.local", port=53)) == "NXDOMAIN"
    assert [item.to_text() for item in tcp(WEB, port=53).answer[0]] == ["10.96.5.5"]
    assert front.poll() is None


@pytest.mark.usefixtures("address")
def test_through_the_libc(serve: Serve, dnsmasq: Callable[[str], object], tmp_path: Path) -> None:
    """`getent` with a pod's resolv.conf: the search list, ndots and all."""
    serve(COREDNS)
    dnsmasq(CLASSIC)
    resolv = tmp_path / "resolv.conf"
    resolv.write_text(
        "nameserver 127.0.0.1\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
    )
    nsswitch = tmp_path / "nsswitch.conf"
    nsswitch.write_text("hosts: files dns\n")
    rows = {
        "web": "10.96.6.5",
        "web.default": "10.96.5.5",
        "web.default.svc": "10.96.5.5",
        "db-0.db.default.svc": "10.244.1.7",
    }
    for name, address in rows.items():
        bind = f"mount --bind {resolv} /etc/resolv.conf; mount --bind {nsswitch} /etc/nsswitch.conf"
        words = ["unshare", "--mount", "sh", "-ec", f"{bind}; exec getent ahostsv4 {name}"]
        out = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        assert out.split()[0] == address


def until(url: str, status: int) -> str:
    """The page, once it has that status."""
    deadline = time.monotonic() + 20
    while True:
        got, text = page(url, 8080)
        if got == status:
            return text
        assert time.monotonic() < deadline, (got, text)
        time.sleep(0.05)


def test_health_of_the_pod(serve: Serve, dnsmasq: Callable[[str], subprocess.Popen[bytes]]) -> None:
    """The two lookups of the kube-dns pod, with Debian's nslookup. A dead kubedns, then a dead dnsmasq, is seen."""
    server = serve(COREDNS)
    front = dnsmasq(CLASSIC + " --max-ttl=1")
    lookup = "nslookup -timeout=1 -retry=0 kubernetes.default.svc.cluster.local 127.0.0.1"
    words = ["nsnet.programs.exechealthz", "--port=8080", "-period", "200ms", "-quiet"]
    words += [f"--cmd={lookup}", "--url=/healthz-dnsmasq", "--cmd", lookup.replace("-timeout", "-port=10053 -timeout")]
    health = launch([*words, "--url", "/healthz-kubedns"])
    try:
        assert until("/healthz-kubedns", 200) == "ok"
        assert until("/healthz-dnsmasq", 200) == "ok"
        server.kill()
        said_of_kubedns = until("/healthz-kubedns", 503)
        assert said_of_kubedns.startswith("Healthz probe on /healthz-kubedns error: Result of last exec: ")
        assert "no servers could be reached" in said_of_kubedns
        assert re.search(r", at \d{4}-\d\d-\d\d [\d:.]+ \+0000 UTC, error exit status 1\n$", said_of_kubedns)
        server.wait()
        serve(COREDNS)
        assert until("/healthz-kubedns", 200) == "ok"
        front.kill()
        until("/healthz-dnsmasq", 503)
        assert page("/healthz-kubedns", 8080) == (200, "ok")
        assert page("/anything", 8080)[1].startswith("<b> Kubernetes healthz sidecar container </b><br/><br/><a href=")
        with pytest.raises((urllib.error.URLError, ConnectionError, OSError)):
            page("/quit", 8080)
        assert health.wait(timeout=5) == 0
    finally:
        health.kill()
        health.communicate()
