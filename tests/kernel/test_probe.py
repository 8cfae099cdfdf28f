"""Every way a packet can end is told apart, on real namespaces; and the machine's neighbour table is left as it was."""

import json
import subprocess
from collections import Counter
from collections.abc import Iterator

import pytest

from nsnet import kernel, model
from nsnet.diff import diff
from nsnet.kernel.probe import ENTRIES, Answer, Learned, Probe, forget, probe
from nsnet.render import render
from tests.built import Place, built

PODS = [f"p{number}" for number in range(26)]
OBJECTS = built({"node1": Place(pods=["a", "b", *PODS]), "node2": Place(pods=["d"])})
A, B, D, CLIENT = "demo.pod.default.a", "demo.pod.default.b", "demo.pod.default.d", "demo.host.client"
ADDRESS = {"a": "10.244.1.2", "b": "10.244.1.3", "d": "10.244.2.2"}
GET = b"GET /hostname HTTP/1.0\r\n\r\n"
PATIENCE = 0.6  # s; less than the second a SYN waits before it is sent again


@pytest.fixture(scope="module", autouse=True)
def network() -> Iterator[None]:
    assert kernel.apply(diff({}, render(OBJECTS))) == []
    yield
    kernel.destroy("demo")


@pytest.fixture
def rules() -> Iterator["Rules"]:
    made = Rules()
    yield made
    for netns, rule in made.there:
        iptables(netns, "-D", *rule)


class Rules:
    """Rules of a test, taken away after it."""

    def __init__(self) -> None:
        self.there: list[tuple[str, tuple[str, ...]]] = []

    def add(self, netns: str, *rule: str) -> None:
        iptables(netns, "-I", *rule)
        self.there.append((netns, rule))


def iptables(netns: str, *words: str) -> None:
    subprocess.run(["ip", "netns", "exec", netns, "iptables", *words], check=True, capture_output=True)


def ask(netns: str, protocol: str, address: str, port: int = 80, payload: bytes = GET, **more: object) -> Answer:
    data = {"TCP": payload, "UDP": b"hostname\n", "ICMP": b""}[protocol]
    (answer,) = probe([Probe(netns, protocol, address, port, data)], **{"timeout": PATIENCE, "tries": 1, **more})  # type: ignore[arg-type]
    return answer


def test_an_answer() -> None:
    answer = ask(A, "TCP", ADDRESS["d"])
    assert (answer.outcome, answer.body.rpartition(b"\n")[2], answer.local[0]) == ("ok", b"d", ADDRESS["a"])
    assert answer.local[1] > 0
    assert ask(A, "ICMP", ADDRESS["b"]).local == (ADDRESS["a"], 0)


def test_a_connection_alone_is_an_answer_to_an_empty_question() -> None:
    assert ask(A, "TCP", ADDRESS["d"], payload=b"").outcome == "ok"


def test_the_address_to_ask_from() -> None:
    (answer,) = probe([Probe("demo.node.node1", "TCP", ADDRESS["b"], 80, GET, source="172.18.0.2")])
    assert (answer.outcome, answer.local[0]) == ("ok", "172.18.0.2")
    (answer,) = probe([Probe("demo.node.node1", "ICMP", ADDRESS["b"], source="172.18.0.2")])
    assert (answer.outcome, answer.local[0]) == ("ok", "172.18.0.2")


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_nobody_listens(protocol: str) -> None:
    assert (ask(A, protocol, ADDRESS["d"], 81).outcome, ask(A, protocol, "127.0.0.1", 81).outcome) == ("refused",) * 2


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_a_reject_rule_refuses_at_once(rules: Rules, protocol: str) -> None:
    """kube-proxy's answer where there is no endpoint: icmp-port-unreachable, which connect() alone would miss."""
    rules.add("demo.node.node1", "FORWARD", "-p", protocol.lower(), "--dport", "82", "-j", "REJECT")
    rules.add("demo.node.node1", "OUTPUT", "-p", protocol.lower(), "--dport", "82", "-j", "REJECT")
    assert ask(A, protocol, ADDRESS["d"], 82).outcome == "refused"
    assert ask("demo.node.node1", protocol, ADDRESS["d"], 82).outcome == "refused"


@pytest.mark.parametrize("protocol", ["TCP", "UDP", "ICMP"])
@pytest.mark.parametrize("where", ["on the way", "at home"])
def test_a_dropped_packet_is_silence(rules: Rules, protocol: str, where: str) -> None:
    netns, chain = ("demo.node.node1", "FORWARD") if where == "on the way" else (A, "OUTPUT")
    rules.add(netns, chain, "-d", ADDRESS["d"], "-j", "DROP")
    answer = ask(A, protocol, ADDRESS["d"])
    assert answer.outcome == "timeout"
    assert answer.error in {"no answer", "Operation not permitted"}


@pytest.mark.parametrize("protocol", ["TCP", "UDP", "ICMP"])
@pytest.mark.parametrize("netns", [CLIENT, "demo.fabric.router"])
def test_no_route_there_or_here(protocol: str, netns: str) -> None:
    """A router rations its errors by destination (net/ipv4: ip_error and icmp.c both take): one per two seconds."""
    assert ask(netns, protocol, "10.96.0.1", timeout=2.5, tries=3).outcome == "unreachable"


def test_a_connection_that_is_reset(rules: Rules) -> None:
    match = ("-p", "tcp", "--tcp-flags", "PSH", "PSH", "-j", "REJECT", "--reject-with", "tcp-reset")
    rules.add(D, "INPUT", *match)
    assert ask(A, "TCP", ADDRESS["d"]).outcome == "reset"


def test_a_namespace_that_is_not_there() -> None:
    for protocol in ("TCP", "UDP", "ICMP"):
        answer = ask("demo.pod.default.nobody", protocol, ADDRESS["d"])
        assert (answer.outcome, answer.error) == ("error", "No such file or directory")


def test_a_name_is_not_an_address() -> None:
    with pytest.raises(ValueError, match=r"example\.org"):
        ask(A, "TCP", "example.org")


@pytest.mark.parametrize("protocol", ["TCP", "UDP", "ICMP"])
def test_a_lost_packet_is_sent_again_and_reported(rules: Rules, protocol: str) -> None:
    every_other = ("-m", "statistic", "--mode", "nth", "--every", "2", "--packet", "0")
    rules.add(D, "INPUT", "-p", protocol.lower(), *(["--syn"] if protocol == "TCP" else []), *every_other, "-j", "DROP")
    answer = ask(A, protocol, ADDRESS["d"], tries=2)
    assert (answer.outcome, answer.tries) == ("refused" if protocol == "UDP" else "ok", 2)
    assert answer.seconds < PATIENCE


def test_answers_stand_in_the_order_of_the_questions() -> None:
    names = ["a", "b", "d"] * 100
    answers = probe([Probe(A if name != "a" else B, "TCP", ADDRESS[name], 80, GET) for name in names], concurrency=7)
    assert [answer.body[-1:].decode() for answer in answers] == names


def test_all_pairs_on_one_bridge_leave_no_neighbours_and_never_more_than_a_window_of_them() -> None:
    addresses = {f"demo.pod.default.{name}": f"10.244.1.{place}" for place, name in enumerate(PODS, 4)}
    probes = [
        Probe(source, "ICMP", address, learns=(Learned(source, address), Learned(target, addresses[source])))
        for source in addresses
        for target, address in addresses.items()
        if source != target
    ]
    counts: list[int] = []

    def count(*_: int) -> None:
        counts.append(sum(map(learned, addresses)))

    answers = probe(probes, progress=count)
    assert {answer.outcome for answer in answers} == {"ok"}
    assert len(probes) > 2 * ENTRIES  # several windows
    assert 0 < max(counts) <= ENTRIES
    assert counts[-1] == 0


def test_forgetting_spares_permanent_entries_of_other_addresses() -> None:
    assert ask(A, "ICMP", ADDRESS["b"]).outcome == "ok"
    before = neighbours(A)
    assert {item["dst"] for item in before} == {ADDRESS["b"], "10.244.1.1"}
    forget([Learned(A, ADDRESS["b"]), Learned(A, "10.244.1.200"), Learned("demo.pod.default.nobody", "10.244.1.1")])
    assert neighbours(A) == [item for item in before if item["dst"] == "10.244.1.1"]
    forget([Learned(B, ADDRESS["a"])])


def neighbours(netns: str) -> list[dict[str, object]]:
    words = ["ip", "-n", netns, "-j", "neighbour", "show", "nud", "all"]
    found = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    return [item for item in found if item.get("dev") == "eth0" and "." in item["dst"] and "NOARP" not in item["state"]]


def learned(netns: str) -> int:
    return sum("PERMANENT" not in item["state"] for item in neighbours(netns))  # type: ignore[operator]


def test_an_answer_that_lies_unread_is_no_silence() -> None:
    """Opening so many takes longer than each has; the kernel answers a SYN at once, so that none is silent."""
    addresses = [pod.status.podIP for pod in model.of(OBJECTS, model.Pod) if pod.metadata.name in PODS]
    answers = probe(
        [Probe(D, "TCP", address, 80) for address in addresses * 200], timeout=0.1, tries=1, concurrency=8192
    )
    assert Counter(answer.outcome for answer in answers) == {"ok": 200 * len(PODS)}
