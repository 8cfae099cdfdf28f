"""ipsets by netlink: what is written is read, a swap is one step, and a set in use stays."""

import subprocess
import threading
from collections.abc import Iterator

import pytest

from nsnet import names
from nsnet.kernel import apply as write
from nsnet.kernel import features, ipset, netns, observe
from nsnet.state import Chain, Change, IpSet, Key, Refusal, Value
from tests.byhand import adds, namespace

NODE = names.node_netns("sets", "node1")
SETS = (
    IpSet("KUBE-SRC-A", "hash:ip", frozenset({"10.244.1.2", "10.244.1.3"})),
    IpSet("KUBE-SRC-EMPTY", "hash:ip"),
    IpSet("KUBE-SRC-NETS", "hash:net", frozenset({"0.0.0.0/1", "128.0.0.0/1", "192.0.2.7"})),
    IpSet("KUBE-DST-PORTS", "hash:ip,port", frozenset({"10.0.0.1,tcp:80", "10.0.0.1,udp:80", "10.0.0.1,sctp:65535"})),
    IpSet("KUBE-SRC-6", "hash:net", frozenset({"2001:db8::/32", "fd00::1"}), "inet6"),
    IpSet("LARGE", "hash:ip", frozenset(f"10.{n >> 8}.{n & 255}.1" for n in range(5000))),
)


@pytest.fixture(autouse=True)
def _node() -> Iterator[None]:
    if not all(found.ok for found in features.features([one for one in features.FEATURES if one.name == "ipset"])):
        pytest.skip("this kernel has no ipset")
    assert write(adds(namespace(NODE))) == []
    yield
    netns.delete(NODE)


def add(*values: IpSet | Chain) -> None:
    assert write([Change("add", NODE, value) for value in values]) == []


def there(*keys: Key) -> set[Value]:
    found = observe("sets", only={NODE: frozenset(keys or {("ipset",)})})[NODE]
    return {value for value in found if isinstance(value, IpSet)}


def test_what_is_written_is_read() -> None:
    add(*SETS)
    assert there() == set(SETS)
    assert there(SETS[0].key, ("ipset", "NOBODY")) == {SETS[0]}
    assert set(SETS) <= observe("sets")[NODE]
    add(*SETS)  # again, as after a kill
    assert there() == set(SETS)


def test_a_replaced_set_holds_the_new_entries_only() -> None:
    add(*SETS)
    new = IpSet("KUBE-SRC-A", "hash:ip", frozenset({"10.244.9.9"}))
    assert write([Change("replace", NODE, new, SETS[0])]) == []
    assert there() == {new, *SETS[1:]}


def test_what_a_kill_left_half_written_is_no_obstacle() -> None:
    add(IpSet("TMP-KUBE-SRC-A", "hash:ip", frozenset({"192.0.2.1"})))
    assert [value.name for value in there()] == ["TMP-KUBE-SRC-A"]  # type: ignore[union-attr]
    add(SETS[0])
    assert there() == {SETS[0]}


def test_a_set_that_goes_while_a_rule_names_it_is_refused() -> None:
    chain = Chain("filter", "NAMES", ("-m set --match-set KUBE-SRC-A src -j DROP",))
    add(SETS[0], chain)
    (refusal,) = write([Change("delete", NODE, SETS[0])])
    assert refusal.reason == "the set is in use"
    assert write([Change("delete", NODE, SETS[0]), Change("delete", NODE, chain)]) == []
    assert there() == set()
    assert write([Change("delete", NODE, SETS[0])]) == []  # deleting what is gone is success


def test_an_entry_that_no_set_takes_is_refused_with_a_sentence() -> None:
    (refusal,) = write([Change("add", NODE, IpSet("ALL", "hash:net", frozenset({"0.0.0.0/0"})))])
    assert refusal.reason == "the prefix length is not one a set takes"


def test_nobody_meets_a_half_written_set() -> None:
    """What is in the old set and in the new one is in it at every moment, as 5,000 entries are swapped to and fro."""
    always = "10.0.0.1"
    one = IpSet("SWAPPED", "hash:ip", SETS[5].entries)
    other = IpSet("SWAPPED", "hash:ip", frozenset({always}))
    add(one)
    over = threading.Event()

    refusals: list[Refusal] = []

    def swap() -> None:
        try:
            for old, new in [(one, other), (other, one)] * 20:
                refusals.extend(write([Change("replace", NODE, new, old)]))
        finally:
            over.set()

    swapping = threading.Thread(target=swap)
    swapping.start()
    missing = looks = 0
    while not over.is_set():
        (value,) = ipset.read(NODE, frozenset({"SWAPPED"}))
        looks += 1
        missing += always not in value.entries
    swapping.join()
    assert refusals == []
    assert looks > 5
    assert missing == 0


def test_the_tool_reads_them_too() -> None:
    """The revisions are ones that `ipset` knows, so that people can list what is there."""
    if not ipset_tool():
        pytest.skip("the tool ipset is not installed")
    add(*SETS[:5])
    done = subprocess.run(
        ["ip", "netns", "exec", NODE, "ipset", "list", "-n"], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == {one.name for one in SETS[:5]}


def ipset_tool() -> bool:
    return subprocess.run(["which", "ipset"], capture_output=True, check=False).returncode == 0
