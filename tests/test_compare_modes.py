"""`verify --compare-modes`, the pure part: questions, words, what is explained and what is not."""

import subprocess
import sys

import msgspec
import pytest

from nsnet import model
from nsnet.cli.alone import under
from nsnet.kernel.probe import Answer
from nsnet.verify import compare, modes
from nsnet.verify.compare import Compared
from nsnet.verify.expect import SENDER, Expectation
from nsnet.verify.judge import met
from tests.controlled import pods, up
from tests.verifying import cluster

OBJECTS = cluster()
POD = Expectation(
    group="service", source="pod/default/a", netns="n", target="svc/default/web", protocol="TCP", address="10.96.0.1",
    port=80, answers=frozenset({"default/a", "default/b"}), seen=SENDER,
)  # fmt: skip
SAID = '{{"pod": "{}", "namespace": "default", "client": "{}:1"}}'


def said(pod: str, client: str = "10.244.1.2") -> Answer:
    return Answer("ok", SAID.format(pod, client).encode(), ("10.244.1.2", 1))


WORDS = [
    ([said("a")], "ok, sender seen"),
    ([said("a"), said("b")], "ok, sender seen"),
    ([said("a", "10.244.1.1")], "ok, another address seen"),
    ([said("c")], "ok, by others"),
    ([said("a"), said("c")], "ok, by others | ok, sender seen"),
    ([Answer("refused")], "refused"),
    ([Answer("reset")], "closed"),
    ([Answer("ok")], "closed"),
    ([Answer("unreachable")], "no answer"),
    ([Answer("timeout")], "no answer"),
]


@pytest.mark.parametrize(("answers", "words"), WORDS)
def test_words(answers: list[Answer], words: str) -> None:
    assert met(POD, answers) == words


def test_a_mere_connection_says_nothing_and_is_not_closed() -> None:
    assert met(msgspec.structs.replace(POD, ask="connect", answers=frozenset()), [Answer("ok")]) == "ok"


EXPLAINED = [
    # mode, group, in iptables mode, in this one, reason
    ("nftables", "modes", "out of reach", "refused", "other port"),
    ("userspace", "service", "ok, sender seen", "ok, another address seen", "own connection"),
    ("userspace", "outside", "refused", "closed", "accepts first"),
    ("userspace", "outside", "no answer", "ok", "no policies"),
    ("userspace", "spread", "ok", "ok | ok, by others", "no policies"),
    ("userspace", "service", "ok", "closed", "no fallback"),
    ("nftables", "service", "ok, sender seen", "ok, another address seen", ""),
    ("nftables", "service", "refused", "no answer", ""),
    ("userspace", "pod-to-pod", "ok", "no answer", ""),
    ("userspace", "hostport", "ok", "refused", ""),
    ("userspace", "service", "ok", "ok, by others", "no policies"),
]


@pytest.mark.parametrize(("mode", "group", "usual", "here", "name"), EXPLAINED)
def test_what_upstream_means(mode: str, group: str, usual: str, here: str, name: str) -> None:
    title = "a port that no Service has: …" if group == "modes" else "…"
    assert modes.reason(mode, group, title, usual, here) == (modes.SITUATIONS[mode][name].reason if name else "")


def test_every_reason_is_one_of_the_table() -> None:
    assert all(row.situation in modes.SITUATIONS[row.mode] for row in modes.DIFFERENCES)
    assert {row.mode for row in modes.DIFFERENCES} == set(modes.MODES) - {modes.USUAL}


def test_the_questions_show_where_modes_part() -> None:
    asked = [item.name for item in compare.questions(OBJECTS) if item.group == "modes"]
    assert asked == [
        "modes: a port that no Service has: pod/default/a → 10.96.0.16:65432",
        "modes: an address that no Service has: pod/default/a → 10.96.255.254:80",
        "modes: a node port on loopback: node/node1 → 127.0.0.1:30080",
        "modes: a node port on the bridge's address: pod/default/a → 10.244.1.1:30080",
    ]


def compared(usual: str, nftables: str, userspace: str) -> Compared:
    (found,) = compare.compared([POD], {"iptables": [usual], "nftables": [nftables], "userspace": [userspace]})
    return found


def test_an_unknown_difference_fails_and_is_named() -> None:
    found = compared("ok", "refused", "ok")
    assert not found.ok
    assert compare.rows([found]) == [
        ("CHECK", "IPTABLES", "NFTABLES", "USERSPACE", "WHY"),
        (
            "service (1), as pod/default/a → svc/default/web TCP 10.96.0.1:80",
            "ok", "refused", "ok", "nftables: NOT KNOWN OF UPSTREAM",
        ),
    ]  # fmt: skip
    assert compare.document([found])["passed"] is False


def test_alike_checks_are_one_row() -> None:
    same, other = compared("refused", "refused", "closed"), compared("ok", "ok", "ok")
    assert same.ok
    rows = compare.rows([same, other, same])
    assert [row[:4] for row in rows[1:]] == [
        ("service (2)", "refused", "refused", "closed"),
        ("service (1)", "ok", "ok", "ok"),
    ]
    assert rows[1][4] == f"userspace: {modes.SITUATIONS['userspace']['accepts first'].reason}"


def test_what_is_wrong_in_every_mode_is_no_difference() -> None:
    assert compared("no answer", "no answer", "no answer").ok


@pytest.mark.parametrize("mode", modes.MODES)
def test_a_copy_under_another_mode_and_name_is_the_same_cluster(mode: str) -> None:
    """Nobody moves: pods, addresses and ports are those of the running one."""
    from nsnet import control

    text = """
{apiVersion: nsnet/v1, kind: Cluster, metadata: {name: demo}}
---
{apiVersion: kubeproxy.config.k8s.io/v1alpha1, kind: KubeProxyConfiguration, mode: nftables}
---
{apiVersion: v1, kind: Pod, metadata: {name: a, labels: {app: a}}, spec: {containers: [{name: c}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {type: NodePort, selector: {app: a}, ports: [{port: 80}]}}
"""
    running = up(text)
    copy = control.complete(under(running, mode, "copy"))
    assert model.cluster_of(copy).networking.kubeProxyMode == mode
    assert model.cluster_of(copy).metadata.name == "copy"
    assert {key for key in copy if key.kind not in {"Cluster", "Event"}} == {
        key for key in running if key.kind not in {"Cluster", "Event"}
    }
    assert pods(copy) == pods(running)
    for service in model.of(running, model.Service):
        assert copy[model.key_of(service)].spec == service.spec  # type: ignore[union-attr]


@pytest.mark.parametrize("words", [("--list",), ("--only", "dns"), ("--junit-file", "x.xml")])
def test_it_asks_everything_or_says_so(words: tuple[str, ...]) -> None:
    done = subprocess.run(
        (sys.executable, "-m", "nsnet", "verify", "--compare-modes", *words),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: --compare-modes asks everything and prints its own table\nhint: leave the other options out\n"
    )
