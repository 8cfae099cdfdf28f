"""Every row of the tables of questions, asked of a running cluster: at every door, over UDP and TCP, by two clients.

The doors are kubedns itself, dnsmasq before it, and the addresses of the Service (IPv4 and IPv6), which lead to either
replica by the rules of every mode of kube-proxy. The clients are dnspython and dig. kubedns says all that the table
says; through dnsmasq come the code and the answers, with what is left of their time.
"""

import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import NamedTuple

import dns.message
import dns.query
import dns.rcode
import msgspec
import pytest

from nsnet import control, manifests, model, names, reconcile
from nsnet.kernel import features, netns
from nsnet.model import Pod
from nsnet.store import Store, sqlite
from nsnet.store.objects import update
from tests.dns_rows import COREDNS_ROWS, KUBE_DNS_ROWS, Row
from tests.kubedns_world import documents

LACKING = [found for found in features.features(features.IPV6) if not found.ok]
pytestmark = pytest.mark.skipif(bool(LACKING), reason=f"this machine lacks {[found.name for found in LACKING]}")

NAME = "doors"
ASKER = names.pod_netns(NAME, "shop", "asker")
OUTSIDE = "198.51.100.7"
TOPOLOGY = """
apiVersion: nsnet/v1
kind: Cluster
metadata: {name: doors}
networking:
  podSubnet: 10.244.0.0/16,fd00:10:244::/56
  serviceSubnet: 10.96.0.0/16,fd00:96::/108
  kubeProxyMode: %s
dns: {flavour: %s, records: {www.example.com: %s}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: empty}}
---
{apiVersion: v1, kind: Pod, metadata: {name: asker, namespace: shop}, spec: {containers: [{name: c}]}}
---
apiVersion: v1
kind: Service
metadata: {name: six, namespace: kube-system}
spec:
  clusterIP: "fd00:96::a"
  ipFamilies: [IPv6]
  selector: {k8s-app: kube-dns}
  ports: [{name: six, port: 53, protocol: UDP}, {name: six-tcp, port: 53}]
---
"""


class Case(NamedTuple):
    flavour: str
    mode: str
    doors: tuple[str, ...]


FOUR, SIX = "10.96.0.10", "fd00:96::a"
CASES = (
    Case("coredns", "iptables", ("kubedns", "dnsmasq", FOUR, SIX)),
    Case("kube-dns", "iptables", ("kubedns", "dnsmasq", FOUR, SIX)),
    Case("coredns", "nftables", (FOUR, SIX)),
    Case("coredns", "userspace", (FOUR,)),  # it never knew IPv6
)


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with closing(sqlite.open_store(NAME, create=True)) as opened:
        yield opened
    reconcile.destroy(NAME)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case.flavour}-{case.mode}")
def built(request: pytest.FixtureRequest, store: Store) -> tuple[Case, str]:
    """The cluster as the case wants it: made by the first, changed by the others. And the address of one replica."""
    found: Case = request.param
    world = "\n---\n".join(msgspec.json.encode(document).decode() for document in documents())
    text = TOPOLOGY % (found.mode, found.flavour, OUTSIDE) + world
    loaded = manifests.load([manifests.Source("doors.yaml", text.encode())], NAME).objects
    update(store, lambda stored: control.complete(control.admit(stored, loaded, whole=not stored)))
    pods = model.of(reconcile.sync(store, NAME).memory.objects, Pod)
    return found, next(pod for pod in pods if pod.metadata.labels.get("k8s-app") == "kube-dns").status.podIP


# --- what is said, as lines -------------------------------------------------------------------------------------------

SERIAL = re.compile(r"(SOA \S+ \S+) \d+")


def line(mark: str, asked: str, owner: str, ttl: int | str, kind: str, data: str) -> str:
    owner, data = owner.lower(), SERIAL.sub(r"\1 N", f"{kind} {data}".lower().replace("soa", "SOA"))
    asked_itself = owner == asked and not mark and owner != "cluster.local."
    told = f"{mark}{'@' if asked_itself else owner} {ttl} {data}"
    return told.replace("cluster.local.", "~").lower()


def wanted(row: Row, flavour: str) -> list[str]:
    """A row in the cluster: what is outside is the authority's, who knows one name and denies all others.

    It says that nothing it says may be kept; kube-dns gives all of an answer the time of the alias before it.
    """
    name, kind, said = row
    outside = f"{30 if flavour == 'kube-dns' else 0} a {OUTSIDE}"
    if name.endswith(".") and said in (["REFUSED"], ["SERVFAIL"]):
        return [f"@ 0 a {OUTSIDE}"] if name == "www.example.com." else ["nxdomain"]
    found = []
    for told in said:
        if told.startswith("chase"):
            found += [f"www.example.com. {outside}"] if kind == "A" else []
        else:
            found.append(SERIAL.sub(r"\1 N", told if name else told.replace("@", "~")).lower())
    return found


def by_dnspython(rows: Iterable[Row], address: str, port: int, *, stream: bool) -> Iterator[list[str]]:
    ask: Callable[..., dns.message.Message] = dns.query.tcp if stream else dns.query.udp
    for name, kind, _ in rows:
        full = absolute(name)
        reply = ask(dns.message.make_query(full, kind, use_edns=0), address, port=port, timeout=5)
        code = dns.rcode.to_text(reply.rcode()).lower()
        found = [code] if code != "noerror" else []
        for mark, section in (("", reply.answer), ("! ", reply.authority), ("+ ", reply.additional)):
            for rrset in section:
                found += [line(mark, full, str(rrset.name), rrset.ttl, item.rdtype.name, str(item)) for item in rrset]
        yield found


SECTIONS = {";; ANSWER SECTION:": "", ";; AUTHORITY SECTION:": "! ", ";; ADDITIONAL SECTION:": "+ "}


def by_dig(rows: Iterable[Row], address: str, port: int, *, stream: bool) -> Iterator[list[str]]:
    """One dig for all of them: each line of its batch is a question."""
    rows = list(rows)
    flags = f"-p {port} {'+tcp' if stream else '+notcp'} +noall +comments +answer +authority +additional"
    batch = "".join(f"@{address} {flags} {absolute(name)} {kind}\n" for name, kind, _ in rows)
    done = subprocess.run(["dig", "-f", "-"], input=batch, capture_output=True, text=True, check=True, timeout=120)
    answers = done.stdout.split(";; Got answer:")[1:]
    assert len(answers) == len(rows), done.stdout
    return (read_dig(text, absolute(name)) for text, (name, _, _) in zip(answers, rows, strict=True))


def read_dig(text: str, asked: str) -> list[str]:
    status = re.search(r"status: (\w+)", text)
    assert status, text
    found = [] if status[1] == "NOERROR" else [status[1].lower()]
    mark = ""
    for told in text.splitlines():
        if told in SECTIONS:
            mark = SECTIONS[told]
        elif told and not told.startswith(";"):
            owner, ttl, _, kind, data = told.split(None, 4)
            found.append(line(mark, asked, owner, ttl, kind, data))
    return found


def absolute(name: str) -> str:
    return name if name.endswith(".") else f"{name}.cluster.local.".removeprefix(".")


def through_a_cache(said: list[str]) -> list[str]:
    """The code and the answers without their time to live; of aliases only what they lead to.

    For dnsmasq keeps of several that it heard of over TCP only the first and the end (`cache_recv_insert`).
    """
    found = [re.sub(r"^(\S+) \d+", r"\1", told) for told in answers(said)]
    ends = [told for told in found if " cname " not in told]
    return found if ends == found or not ends else [told.partition(" ")[2] for told in ends]


def longest(said: list[str]) -> int:
    """The longest time to live among the answers."""
    return max((int(told.split()[1]) for told in answers(said) if " " in told), default=0)


def answers(said: list[str]) -> list[str]:
    """And the code."""
    return [told for told in said if not told.startswith(("! ", "+ "))]


# --- asked ------------------------------------------------------------------------------------------------------------

CLIENTS = {"dnspython": by_dnspython, "dig": by_dig}
SPOILS = {"_http._tcp.web.default.svc A"}  # kube-dns says an alias: a cache before it says it to SRV questions, too


@pytest.mark.parametrize("stream", [False, True], ids=["UDP", "TCP"])
@pytest.mark.parametrize("client", CLIENTS)
def test_every_row_at_every_door(built: tuple[Case, str], client: str, stream: bool) -> None:
    case, pod = built
    rows = COREDNS_ROWS if case.flavour == "coredns" else KUBE_DNS_ROWS
    for door in case.doors:
        address, port = {"kubedns": (pod, 10053), "dnsmasq": (pod, 53)}.get(door, (door, 53))
        asked = [row for row in rows if door == "kubedns" or f"{row[0]} {row[1]}" not in SPOILS]
        with netns.inside(ASKER):
            said = list(CLIENTS[client](asked, address, port, stream=stream))
        wrong = [wrongly(row, found, case.flavour, door) for row, found in zip(asked, said, strict=True)]
        assert "\n".join(filter(None, wrong)) == "", door


def wrongly(row: Row, said: list[str], flavour: str, door: str) -> str:
    """What is wrong with an answer; empty where nothing is. kubedns' own is the row, whole; a cache keeps no longer."""
    expected = wanted(row, flavour)
    if door == "kubedns":
        right = sorted(said) == sorted(expected)
    else:
        most = max(longest(expected), 30 if flavour == "kube-dns" else 5)
        right = sorted(through_a_cache(said)) == sorted(through_a_cache(expected)) and longest(said) <= most
    return "" if right else f"{row[0]} {row[1]}: {said}, wanted {expected}"
