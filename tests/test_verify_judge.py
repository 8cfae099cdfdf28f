"""Judging answers: every way an expectation can fail has its own sentence."""

import json
from xml.etree import ElementTree as ET

import msgspec
import pytest

from nsnet.kernel.probe import Answer
from nsnet.state import Change, Neighbour, Route
from nsnet.verify import Expectation, report
from nsnet.verify.asking import drift, parts, question, run
from nsnet.verify.judge import Result, judge

WEB = Expectation(
    group="service",
    source="pod/default/a",
    netns="demo.pod.default.a",
    target="svc/default/web",
    protocol="TCP",
    address="10.96.0.10",
    port=80,
    answers=frozenset({"default/web-1", "default/web-2"}),
    seen="sender",
    hidden=frozenset({"default/web-2"}),
)


def but(**changes: object) -> Expectation:
    return msgspec.structs.replace(WEB, **changes)


def says(pod: str, client: str = "10.244.1.2:4711") -> Answer:
    """The pod server's answer to a client at 10.244.1.2."""
    line = json.dumps({"pod": pod, "namespace": "default", "client": client, "node": "node1"})
    return Answer("ok", f"HTTP/1.1 200 OK\r\n\r\n{line}\n".encode(), ("10.244.1.2", 4711))


SILENCE = Answer("timeout", error="no answer")
REFUSED = Answer("refused", error="Connection refused")
NO_ROUTE = Answer("unreachable", error="No route to host")
WANTED = "wanted default/web-1 or default/web-2 answers and sees the sender"
MASQUERADED = says("web-1", "10.244.1.1:99")


@pytest.mark.parametrize(
    ("item", "answer", "reason"),
    [
        (WEB, says("web-1"), ""),
        (WEB, says("web-3"), f"default/web-3 answered, {WANTED}"),
        (WEB, SILENCE, f"no answer, {WANTED}"),
        (WEB, REFUSED, f"refused (Connection refused), {WANTED}"),
        (WEB, NO_ROUTE, f"out of reach (No route to host), {WANTED}"),
        (
            WEB,
            Answer("reset", error="Connection reset by peer"),
            f"the connection was reset (Connection reset by peer), {WANTED}",
        ),
        (WEB, Answer("error", error="No such file or directory"), f"not asked (No such file or directory), {WANTED}"),
        (WEB, Answer("ok", b"220 smtp ready"), "an answer that is not the pod server's: b'220 smtp ready'"),
        (WEB, Answer("ok", b"\xff\xfe"), "an answer that is not the pod server's: b'\\xff\\xfe'"),
        # the address the server sees
        (WEB, MASQUERADED, "default/web-1 saw 10.244.1.1, wanted 10.244.1.2 (the address was translated on the way)"),
        (WEB, says("web-2", "10.244.1.1:99"), ""),
        (but(seen=""), MASQUERADED, ""),
        (but(seen="10.244.1.1"), MASQUERADED, ""),
        # what should not pass
        (but(want="refused"), REFUSED, ""),
        (but(want="refused"), SILENCE, "no answer, wanted refused"),
        (but(want="refused"), says("web-1"), "default/web-1 answered, wanted refused"),
        (but(want="timeout"), SILENCE, ""),
        (but(want="timeout"), REFUSED, "refused (Connection refused), wanted no answer"),
        (but(want="unreachable"), NO_ROUTE, ""),
        (but(want="unreachable"), SILENCE, ""),
        (but(want="unreachable"), REFUSED, "refused (Connection refused), wanted out of reach"),
        # what is not the pod server
        (but(answers=frozenset(), seen="", ask="connect"), Answer("ok"), ""),
        (but(answers=frozenset(), seen="", ask="ping", protocol="ICMP"), SILENCE, "no answer, wanted an answer"),
        (but(ask="http"), Answer("ok", b"HTTP/1.1 302 Found\r\n\r\n"), ""),
        (but(ask="http"), Answer("ok", b"HTTP/1.1 503 Busy\r\n\r\n"), "HTTP status 503 Busy, wanted one below 400"),
        (but(ask="http"), Answer("ok", b"hello"), "an answer that is not HTTP: b'hello'"),
        (but(ask="http"), Answer("ok", b""), "an answer that is not HTTP: b''"),
    ],
)
def test_one_answer(item: Expectation, answer: Answer, reason: str) -> None:
    result = judge(item, [answer])
    assert (result.reason, result.ok) == (reason, not reason)


FAIR = but(calls=40, spread=True, seen="")
STICKY = but(calls=4, sticky=True, seen="")


@pytest.mark.parametrize(
    ("item", "counts", "reason"),
    [
        (FAIR, {"web-1": 20, "web-2": 20}, ""),
        (FAIR, {"web-1": 30, "web-2": 10}, ""),
        (FAIR, {"web-1": 40}, "default/web-2 never answered in 40 calls (default/web-1 40x)"),
        (
            FAIR,
            {"web-1": 37, "web-2": 3},
            "no fair spread: default/web-1 37x, default/web-2 3x; chance does that less than once in 1,000,000 tests",
        ),
        (STICKY, {"web-2": 4}, ""),
        (
            STICKY,
            {"web-1": 1, "web-2": 3},
            "2 endpoints answered (default/web-1 1x, default/web-2 3x), wanted always the same one",
        ),
    ],
)
def test_many_answers(item: Expectation, counts: dict[str, int], reason: str) -> None:
    answers = [says(pod) for pod, count in counts.items() for _ in range(count)]
    assert judge(item, answers).reason == reason


def test_of_many_answers_the_most_frequent_fault_is_told() -> None:
    result = judge(FAIR, [says("web-1")] * 10 + [SILENCE] * 29 + [REFUSED])
    assert result.reason.startswith("no answer, wanted ")
    assert result.reason.endswith("(29 of 40 calls)")


def test_the_slowest_call_and_the_most_tries_are_reported() -> None:
    slow = msgspec.structs.replace(says("web-1"), seconds=0.4, tries=2)
    result = judge(FAIR, [slow, msgspec.structs.replace(says("web-2"), seconds=0.1)])
    assert (result.seconds, result.tries, result.calls) == (0.4, 2, 2)


def test_silence_is_asked_again_only_where_that_hides_nothing() -> None:
    one = but(answers=frozenset({"default/web-1"}))
    assert [question(item).tries for item in (one, WEB, but(want="timeout"), but(want="unreachable"))] == [0, 1, 1, 1]


def test_parts_hold_some_twenty_thousand_calls() -> None:
    found = list(parts([but(calls=9000)] * 5))
    assert [len(part) for part in found] == [3, 2]


# --- drift and reports ------------------------------------------------------------------------------------------------

ROUTE = Route("10.244.2.0/24", "flannel.1", "10.244.2.0", onlink=True)


def test_drift_is_told_as_the_line_that_mends_it() -> None:
    changes = [
        Change("add", "demo.node.node1", ROUTE),
        Change("delete", "demo.node.node2", Neighbour("cni0", "10.244.2.9", "0a:58:0a:f4:02:09")),
    ]
    assert [(result.name, result.ok, result.reason) for result in drift(changes)] == [
        (
            "drift: demo.node.node1: add route 10.244.2.0/24 0",
            False,
            "ip -n demo.node.node1 route replace 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink",
        ),
        (
            "drift: demo.node.node2: delete neighbour cni0 10.244.2.9",
            False,
            "ip -n demo.node.node2 neighbour delete 10.244.2.9 dev cni0",
        ),
    ]
    assert [result.ok for result in drift([])] == [True]


RESULTS = [
    Result(name="pod-to-pod: a → b", group="pod-to-pod", ok=True, seconds=0.25),
    Result(name="pod-to-pod: a → c", group="pod-to-pod", ok=False, reason='no "answer" <\x00>', seconds=1.5, tries=2),
    Result(name="service: a → web", group="service", ok=False, reason="not asked", skipped=True),
]


def test_junit() -> None:
    assert report.junit(RESULTS) == (
        "<?xml version='1.0' encoding='utf-8'?>\n"
        '<testsuites name="nsnet verify" tests="3" failures="1" errors="0" skipped="1" time="1.750000">\n'
        '  <testsuite name="pod-to-pod" tests="2" failures="1" errors="0" skipped="0" time="1.750000">\n'
        '    <testcase classname="nsnet.pod-to-pod" name="pod-to-pod: a → b" time="0.250000" />\n'
        '    <testcase classname="nsnet.pod-to-pod" name="pod-to-pod: a → c" time="1.500000">\n'
        '      <failure message="no &quot;answer&quot; &lt;?&gt;" />\n'
        "    </testcase>\n"
        "  </testsuite>\n"
        '  <testsuite name="service" tests="1" failures="0" errors="0" skipped="1" time="0.000000">\n'
        '    <testcase classname="nsnet.service" name="service: a → web" time="0.000000">\n'
        '      <skipped message="not asked" />\n'
        "    </testcase>\n"
        "  </testsuite>\n"
        "</testsuites>\n"
    )
    ET.fromstring(report.junit(RESULTS))


def test_summary_rows_and_documents() -> None:
    assert report.summary(RESULTS) == [("pod-to-pod", 1, 1, 0), ("service", 0, 0, 1)]
    assert report.rows(RESULTS) == [("failed", "pod-to-pod: a → c", 'no "answer" <\x00>')]
    assert json.loads(json.dumps(report.document(RESULTS[1])))["status"] == "failed"
    assert json.loads(json.dumps(report.listed(WEB)))["answers"] == ["default/web-1", "default/web-2"]
    assert not report.passed(RESULTS)
    assert report.passed(RESULTS[:1])


def test_progress_only_grows() -> None:
    """First calls, the others, and those that are blocked are asked one after the other: it is one count."""
    told: list[tuple[int, int]] = []
    nobody = but(netns="demo.pod.default.nobody")  # not asked: there is no such namespace
    asked = [but(netns=nobody.netns, sticky=True, calls=4), nobody, but(netns=nobody.netns, want="blocked")]
    run(asked, progress=lambda now, total: told.append((now, total)))
    assert told == sorted(told)
    assert told[-1] == (6, 6)
    assert len({now for now, _ in told}) >= 3
