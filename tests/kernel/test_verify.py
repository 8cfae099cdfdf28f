"""verify on the real kernel: a whole cluster keeps every expectation, and each kind of damage is found and named."""

import re
import shlex
import subprocess
from collections.abc import Iterator

import pytest

from nsnet import faults, kernel, verify
from nsnet.cli.trace_lines import look_of
from nsnet.diff import diff
from nsnet.model import Fault, FaultSpec, Key, ObjectMeta
from nsnet.render import render
from nsnet.verify import Result
from nsnet.verify.why import explained
from tests.verifying import CHECKS, cluster

OBJECTS = cluster()


@pytest.fixture(scope="module", autouse=True)
def network() -> Iterator[None]:
    assert kernel.apply(diff({}, render(OBJECTS))) == []
    yield
    kernel.destroy("demo")


@pytest.fixture
def repaired() -> Iterator[None]:
    """What a test breaks is mended by the very thing the product mends with."""
    yield
    assert kernel.apply(diff(kernel.observe("demo"), render(OBJECTS))) == []


def inside(netns: str, *words: str) -> None:
    subprocess.run(["ip", "netns", "exec", f"demo.{netns}", *words], check=True, capture_output=True)


def failed(pattern: str = "", retry: int = 0) -> dict[str, str]:
    """Names and reasons of what fails now."""
    found = verify.run(verify.only(verify.expectations(OBJECTS), pattern), retry=retry)
    return {result.name: result.reason for result in found if not result.ok}


def test_a_whole_cluster_keeps_every_expectation() -> None:
    results: list[Result] = verify.run(verify.expectations(OBJECTS))
    assert [f"{result.name}: {result.reason}" for result in results if not result.ok] == []
    assert {result.group for result in results} == {
        *("pod-to-pod", "full-size", "node-to-pod", "pod-to-node", "node-to-node", "localhost"),
        *("service", "nodeport", "spread", "affinity", "outside", "environment"),
    }


def test_the_topologys_own_checks() -> None:
    results = verify.run(verify.checks(OBJECTS))
    assert [(result.name, result.reason) for result in results] == [(f"check: {check.name}", "") for check in CHECKS]


BOTH = ("node/node1", "node/node2")  # TCP sends what both ends can take
BLACK_HOLES = [
    ("mtu", BOTH[1:], {"mtu": "1400"}, r"at .* takes 1400 bytes, it has 1500: dropped without a word$"),
    ("mtu-black-hole", BOTH, {},
     r"at node/(.*) flannel\.1 takes 1450 bytes, .* ICMP that should say so is dropped at node/\1 by filter OUTPUT: "),
]  # fmt: skip


@pytest.mark.usefixtures("repaired")
@pytest.mark.parametrize(("kind", "on", "options", "says"), BLACK_HOLES, ids=[row[0] for row in BLACK_HOLES])
def test_an_mtu_black_hole_is_found_and_explained(
    kind: str, on: tuple[str, ...], options: dict[str, str], says: str
) -> None:
    """Small packets pass everywhere; large ones between the nodes do not, and the sentence names who swallows them."""
    fault = Fault(ObjectMeta("hole"), FaultSpec(kind, on, options=options))
    want = faults.broken(render(OBJECTS), OBJECTS | {Key("Fault", "", "hole"): fault})
    assert kernel.apply(diff(kernel.observe("demo"), want)) == []
    assert failed("^pod-to-pod: ") == {}
    wrong = [result for result in told("^full-size: ") if not result.ok]
    assert wrong, "no packet of full size is lost"
    for result in wrong:
        assert re.search(f"; large packets are lost: {says}", result.why), result.why
        assert {result.source[-1] in "abc", result.target[-1] in "abc"} == {True, False}, "only between the nodes"


def told(pattern: str) -> list[Result]:
    """The results with what `trace` says of those that failed."""
    found = verify.only(verify.expectations(OBJECTS), pattern)
    place = look_of({}, OBJECTS).place
    return explained(found, verify.run(found), OBJECTS, lambda: kernel.observe("demo"), place)


@pytest.mark.usefixtures("repaired")
def test_a_lost_route_cuts_one_direction_between_two_nodes() -> None:
    inside("node.node1", "ip", "route", "del", "10.244.2.0/24")
    found = failed("pod-to-pod: pod/default/a → pod/default/[bd] TCP")
    (name,) = found
    assert name.startswith("pod-to-pod: pod/default/a → pod/default/d TCP 10.244.2.2:")
    assert found[name].endswith(", wanted default/d answers and sees the sender")


@pytest.mark.usefixtures("repaired")
def test_without_hairpin_a_pod_does_not_reach_itself_through_its_service() -> None:
    for device in bridge_ports("node.node1"):
        inside("node.node1", "ip", "link", "set", device, "type", "bridge_slave", "hairpin", "off")
    (item,) = verify.only(verify.expectations(OBJECTS), "^spread: pod/default/[abc] → svc/default/web TCP")
    (reason,) = failed(re.escape(item.name)).values()
    # The SYN that came back is dropped and sent again a second later, and may then go to another endpoint.
    itself = item.source.removeprefix("pod/")
    assert reason.startswith(("no answer, wanted ", f"{itself} never answered in 90 calls"))


@pytest.mark.usefixtures("repaired")
def test_an_endpoint_that_no_rule_chooses_is_named() -> None:
    rules = save("node.node2")
    chain = next(
        line.split()[1] for line in rules if "--to-destination 10.244.1.3:80" in line and "default/web" in line
    )
    jump = next(line for line in rules if line.endswith(f"-j {chain}"))
    inside("node.node2", "iptables", "-t", "nat", "-D", *words(jump))
    found = failed("^spread: .* → svc/default/web TCP")
    assert len(found) == 1  # only node2's
    assert "default/b never answered in 90 calls" in next(iter(found.values()))


@pytest.mark.usefixtures("repaired")
def test_an_address_that_is_translated_on_the_way_is_told() -> None:
    rule = ("-s", "10.244.1.2", "-d", "10.244.2.2", "-j", "MASQUERADE")
    inside("node.node1", "iptables", "-t", "nat", "-I", "POSTROUTING", *rule)
    # Asked twice: on a machine that is busy with other things the first question may stay without an answer.
    assert list(failed("pod-to-pod: pod/default/a → pod/default/d TCP", retry=1).values()) == [
        "default/d saw 10.244.1.0, wanted 10.244.1.2 (the address was translated on the way)"
    ]


@pytest.mark.usefixtures("repaired")
def test_a_door_that_should_be_shut_is_told() -> None:
    inside("fabric.router", "ip", "route", "add", "10.244.0.0/16", "via", "172.18.0.2")
    reasons = failed("outside: host/client → pod/default/")
    assert set(reasons.values()) == {"an answer, wanted out of reach"}


@pytest.mark.usefixtures("repaired")
def test_drift_is_the_change_that_would_mend_it() -> None:
    inside("node.node1", "ip", "route", "del", "10.244.2.0/24")
    (result,) = verify.drift(diff(kernel.observe("demo"), render(OBJECTS)))
    assert not result.ok
    assert result.reason.startswith("ip -n demo.node.node1 route replace 10.244.2.0/24 ")


def bridge_ports(netns: str) -> list[str]:
    done = subprocess.run(
        ["ip", "-n", f"demo.{netns}", "-br", "link", "show", "master", "cni0"],
        check=True,
        capture_output=True,
        text=True,
    )
    return [line.partition("@")[0] for line in done.stdout.splitlines()]


def save(netns: str) -> list[str]:
    words = ["ip", "netns", "exec", f"demo.{netns}", "iptables-save", "-t", "nat"]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()


def words(rule: str) -> list[str]:
    """An iptables-save line as arguments, without `-A`."""
    return shlex.split(rule)[1:]
