"""(have, want) → changes: tables, and every order judged by the fake kernel."""

import random
import shlex
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nsnet.diff import diff, touched
from nsnet.state import (
    Address,
    Bridge,
    BridgePort,
    Chain,
    Change,
    FdbEntry,
    File,
    Hold,
    Key,
    Listener,
    Loopback,
    Neighbour,
    Netns,
    OtherLink,
    Process,
    Route,
    Scope,
    State,
    Sysctl,
    Value,
    Veth,
    Vxlan,
    lines,
)
from tests.fake import Kernel, copied, holding, sync
from tests.variants import NAMES, VARIANTS

# --- one namespace, by hand -------------------------------------------------------------------------------------------

UP = Veth("eth0", "s/n", "02:00:00:00:00:01")
TUNNEL = Vxlan("flannel.1", "02:00:00:00:00:02", 1450, 1, "10.0.0.1", "eth0")
BASE: tuple[Value, ...] = (
    Netns("nsnet/t"),
    Loopback(),
    UP,
    Address("eth0", "10.0.0.1/24"),
    Neighbour("eth0", "10.0.0.2", "02:00:00:00:00:22"),
    Route("default", "eth0", "10.0.0.254"),
    TUNNEL,
    Address("flannel.1", "10.244.1.0/32"),
    Neighbour("flannel.1", "10.244.2.0", "02:00:00:00:00:33"),
    FdbEntry("flannel.1", "02:00:00:00:00:33", "10.0.0.2"),
    Route("10.244.2.0/24", "flannel.1", "10.244.2.0", onlink=True),
    Bridge("cni0", "02:00:00:00:00:04"),
    Address("cni0", "10.244.1.1/24"),
    Veth("vethp", "p/eth0", "02:00:00:00:00:05"),
    BridgePort("vethp", "cni0", hairpin=True),
    Sysctl("net.ipv4.ip_forward", "1"),
    Chain("nat", "POSTROUTING", ("-j A",), "ACCEPT"),
    Chain("nat", "A", ("-j B",)),
    Chain("nat", "B", ("-j MASQUERADE",)),
)
SWITCH: tuple[Value, ...] = (
    Netns("nsnet/t"),
    Loopback(),
    Bridge("br0", "02:00:00:00:00:06"),
    Veth("n", "t.node.n/eth0", "02:00:00:00:00:07"),
    BridgePort("n", "br0"),
)
POD: tuple[Value, ...] = (
    Netns("nsnet/t"),
    Loopback(),
    Veth("eth0", "t.node.n/vethp", "02:00:00:00:00:08"),
    Address("eth0", "10.244.1.2/24"),
    Route("default", "eth0", "10.244.1.1"),
)
NODE, FABRIC, PODNS = "t.node.n", "t.fabric.s", "t.pod.d.p"


def small(
    *, without: Sequence[Value] = (), plus: Sequence[Value] = (), pod: bool = True
) -> dict[str, frozenset[Value]]:
    """BASE, its switch and its pod; `without` and `plus` speak of the node."""
    node = [value for value in BASE if value not in without] + list(plus)
    state = {FABRIC: SWITCH, NODE: node} | ({PODNS: POD} if pod else {})
    return {netns: frozenset(_named(value) for value in values) for netns, values in state.items()}


def _named(value: Value) -> Value:
    peers = {"s/n": f"{FABRIC}/n", "p/eth0": f"{PODNS}/eth0"}
    return msgspec.structs.replace(value, peer=peers.get(value.peer, value.peer)) if isinstance(value, Veth) else value


def shown(changes: Sequence[Change]) -> list[str]:
    """`verb namespace: value` with the value in its own words, for tables."""
    return [f"{change.verb} {change.netns.rpartition('.')[2]}: {_short(change.value)}" for change in changes]


def _short(value: Value) -> str:
    return " ".join((type(value).__name__, *value.key[1:]))


def test_nothing_to_do() -> None:
    assert diff(small(), small()) == []


def test_from_nothing_each_kind_in_its_turn() -> None:
    changes = diff({}, {NODE: small()[NODE]})
    assert shown(changes) == [
        "add n: Netns",
        "add n: Sysctl net.ipv4.ip_forward",
        "add n: Bridge cni0",
        "add n: Loopback lo",
        "add n: Veth vethp",  # the end that is a bridge port makes the pair
        "add n: Veth eth0",
        "add n: Vxlan flannel.1",
        "add n: BridgePort vethp",
        "add n: Address cni0 10.244.1.1/24",
        "add n: Address eth0 10.0.0.1/24",
        "add n: Address flannel.1 10.244.1.0/32",
        "add n: Neighbour eth0 10.0.0.2",
        "add n: Neighbour flannel.1 10.244.2.0",
        "add n: FdbEntry flannel.1 02:00:00:00:00:33",
        "add n: Route 10.244.2.0/24 0",
        "add n: Route default 0",
        "add n: Chain ip nat B",  # what is jumped to stands first
        "add n: Chain ip nat A",
        "add n: Chain ip nat POSTROUTING",
    ]


def _replaced(old: Value, **fields: object) -> dict[str, frozenset[Value]]:
    return small(without=[old], plus=[msgspec.structs.replace(old, **fields)])


ETH0_ANEW = [
    "add n: Address eth0 10.0.0.1/24",
    "add n: Address flannel.1 10.244.1.0/32",
    "add n: Neighbour eth0 10.0.0.2",
    "add n: Neighbour flannel.1 10.244.2.0",
    "add n: FdbEntry flannel.1 02:00:00:00:00:33",
    "add n: Route 10.244.2.0/24 0",
    "add n: Route default 0",
]

HAVE = [
    (
        "an MTU is changed in place, and the neighbours that go with any such change are written again",
        _replaced(UP, mtu=1400),
        ["replace n: Veth eth0", "add n: Neighbour eth0 10.0.0.2"],
    ),
    (
        "a MAC too",
        _replaced(UP, mac="02:00:00:00:00:99"),
        ["replace n: Veth eth0", "add n: Neighbour eth0 10.0.0.2"],
    ),
    (
        "up again: neighbours and routes",
        _replaced(TUNNEL, up=False),
        ["replace n: Vxlan flannel.1", "add n: Neighbour flannel.1 10.244.2.0", "add n: Route 10.244.2.0/24 0"],
    ),
    (
        "another VNI: the device and what hangs on it are made anew",
        _replaced(TUNNEL, vni=2),
        [
            "delete n: Vxlan flannel.1",
            "add n: Vxlan flannel.1",
            "add n: Address flannel.1 10.244.1.0/32",
            "add n: Neighbour flannel.1 10.244.2.0",
            "add n: FdbEntry flannel.1 02:00:00:00:00:33",
            "add n: Route 10.244.2.0/24 0",
        ],
    ),
    (
        "eth0 is gone: its other end goes with it, and the tunnel over it",
        small(without=[UP]),
        [
            "delete s: Veth n",
            "delete n: Vxlan flannel.1",
            "add s: Veth n",
            "add n: Veth eth0",
            "add n: Vxlan flannel.1",
            "add s: BridgePort n",
            *ETH0_ANEW,
        ],
    ),
    (
        "a bridge of another kind: its ports too",
        small(without=[BASE[11]], plus=[OtherLink("cni0", "dummy")]),
        [
            "delete n: OtherLink cni0",
            "add n: Bridge cni0",
            "add n: BridgePort vethp",
            "add n: Address cni0 10.244.1.1/24",
        ],
    ),
    (
        "another address: first the old one goes, then all that hangs on the subnet is written",
        small(without=[BASE[3]], plus=[Address("eth0", "10.0.0.9/24")]),
        [
            "delete n: Address eth0 10.0.0.9/24",
            "add n: Address eth0 10.0.0.1/24",
            "add n: Neighbour eth0 10.0.0.2",
            "add n: Route default 0",
        ],
    ),
    (
        "a stray link takes along what hangs on it",
        small(plus=[Bridge("docker0", "02:00:00:00:00:0a"), Address("docker0", "172.17.0.1/16")]),
        ["delete n: Bridge docker0"],
    ),
    (
        "stray values",
        small(plus=[Route("10.9.0.0/16", "eth0", "10.0.0.7"), Chain("nat", "X", ("-j Y",)), Chain("nat", "Y")]),
        ["delete n: Chain ip nat X", "delete n: Chain ip nat Y", "delete n: Route 10.9.0.0/16 0"],
    ),
    (
        "values that differ",
        small(
            without=[BASE[5], BASE[17], BASE[15]],
            plus=[Route("default", "eth0", "10.0.0.253"), Chain("nat", "A", ()), Sysctl("net.ipv4.ip_forward", "0")],
        ),
        ["replace n: Sysctl net.ipv4.ip_forward", "replace n: Route default 0", "replace n: Chain ip nat A"],
    ),
    (
        "a namespace too many: its processes, its files, and then all of it at once",
        small() | {"t.pod.d.q": frozenset((*POD, File("/r/f", "x"), Process(("p", "/r/f"))))},
        ["delete q: Process p /r/f", "delete q: File /r/f", "delete q: Netns"],
    ),
    ("what only ever is observed", small(plus=[Listener("TCP", 80)]), []),
    ("a sysctl nobody asked for stays", small(plus=[Sysctl("net.ipv4.conf.all.rp_filter", "0")]), []),
]


@pytest.mark.parametrize(("have", "expected"), [row[1:] for row in HAVE], ids=[row[0] for row in HAVE])
def test_changes(have: State, expected: list[str]) -> None:
    assert shown(diff(have, small())) == expected


def test_a_program_that_is_replaced_is_ended_before_the_new_one_starts() -> None:
    old, new = Process(("p", "1")), Process(("p", "2"))
    assert shown(diff(small(plus=[old]), small(plus=[new]))) == ["delete n: Process p 1", "add n: Process p 2"]


def test_a_sysctl_of_an_interface_waits_for_it() -> None:
    all_of_it = shown(diff({}, {NODE: small(plus=[Sysctl("net.ipv4.conf.eth0.rp_filter", "0")])[NODE]}))
    order = [all_of_it.index(f"add n: {line}") for line in
             ("Sysctl net.ipv4.ip_forward", "Veth eth0", "Sysctl net.ipv4.conf.eth0.rp_filter")]  # fmt: skip
    assert order == sorted(order)


# --- limits and holds -------------------------------------------------------------------------------------------------

DRIFT = small(
    without=[BASE[5], BASE[17]],
    plus=[Route("default", "eth0", "10.0.0.253"), Chain("nat", "A", ())],
)
ONLY: list[tuple[str, Scope, list[str]]] = [
    ("nothing", {}, []),
    ("another namespace", {PODNS: frozenset()}, []),
    ("the whole namespace", {NODE: frozenset()}, ["replace n: Route default 0", "replace n: Chain ip nat A"]),
    ("one key", {NODE: frozenset({("chain", "ip", "nat", "A")})}, ["replace n: Chain ip nat A"]),
]


@pytest.mark.parametrize(("only", "expected"), [row[1:] for row in ONLY], ids=[row[0] for row in ONLY])
def test_only(only: Scope, expected: list[str]) -> None:
    assert shown(diff(DRIFT, small(), only=only)) == expected


def test_a_namespace_that_does_not_exist_is_made_whole_whatever_the_limit() -> None:
    have = small(pod=False)
    only: Scope = {PODNS: frozenset({("link", "eth0")})}
    assert {change.value for change in diff(have, small(), only=only) if change.netns == PODNS} == small()[PODNS]


def test_a_limited_look_still_writes_again_what_the_kernel_drops_elsewhere() -> None:
    """The pod's eth0 is missing and only that was looked at: the node's end, unseen, is made anew with its port."""
    have = {PODNS: frozenset({POD[0]})}
    changes = diff(have, small(), only={PODNS: frozenset({("link", "eth0")})})
    assert shown(changes) == [
        "add n: Veth vethp",
        "add p: Veth eth0",
        "add n: BridgePort vethp",
        "add p: Address eth0 10.244.1.2/24",
        "add p: Route default 0",
    ]


HOLDS: list[tuple[str, list[Hold], State, list[str]]] = [
    ("a whole node", [(NODE, ())], DRIFT, []),
    ("its kube-proxy", [(NODE, ("chain",))], DRIFT, ["replace n: Route default 0"]),
    ("one value", [(NODE, ("route", "default"))], DRIFT, ["replace n: Chain ip nat A"]),
    ("another node", [(PODNS, ())], DRIFT, ["replace n: Route default 0", "replace n: Chain ip nat A"]),
    ("a link: what hangs on it and its other end too", [(PODNS, ("link", "eth0"))], small(without=BASE[13:15]), []),
    ("a namespace that should go", [(PODNS, ("netns",))], small(), []),
]


@pytest.mark.parametrize(("holds", "have", "expected"), [row[1:] for row in HOLDS], ids=[row[0] for row in HOLDS])
def test_holds(holds: list[Hold], have: State, expected: list[str]) -> None:
    want = small(pod=(PODNS, ("netns",)) not in holds)
    kept = [line for line in shown(diff(have, want, holds=holds)) if "vethp" not in line or want == small()]
    assert kept == expected


def test_touched() -> None:
    old, new = small(), DRIFT | {"t.pod.d.q": frozenset(POD)}
    keys: frozenset[Key] = frozenset({("route", "default", "0"), ("chain", "ip", "nat", "A")})
    assert touched(old, new) == {NODE: keys, "t.pod.d.q": frozenset()}
    assert touched(old, old) == {}


# --- whole clusters on the fake kernel --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_one_sync_makes_it_and_the_second_has_nothing_to_do(name: str) -> None:
    kernel = Kernel()
    sync(kernel, VARIANTS[name])
    assert kernel.observe() == VARIANTS[name]


@pytest.mark.parametrize("start", NAMES)
@pytest.mark.parametrize("end", NAMES)
def test_from_one_to_any_other_in_one_sync(start: str, end: str) -> None:
    kernel = holding(VARIANTS[start])
    sync(kernel, VARIANTS[end])
    assert kernel.observe() == VARIANTS[end]


@pytest.mark.parametrize(("start", "end"), [("nothing", "racks"), ("racks", "docker0"), ("moved", "host-gw")])
def test_cut_after_any_change(start: str, end: str) -> None:
    """Any prefix of the list may have happened: the next sync arrives all the same."""
    begun = holding(VARIANTS[start])
    changes = diff(begun.observe(), VARIANTS[end])
    for length in range(len(changes)):
        kernel = copied(begun)
        assert kernel.apply(changes[:length]) == []
        sync(kernel, VARIANTS[end])
        assert kernel.observe() == VARIANTS[end]


def test_a_limited_sync_of_what_was_touched_is_a_whole_one() -> None:
    for start in NAMES:
        for end in NAMES:
            kernel = holding(VARIANTS[start])
            only = touched(VARIANTS[start], VARIANTS[end])
            assert kernel.apply(diff(kernel.observe(only), VARIANTS[end], only=only)) == []
            assert kernel.observe() == VARIANTS[end], f"{start} → {end}"


def _damage(kernel: Kernel, goal: State, dice: random.Random, times: int) -> None:
    """What people might do: delete, change and add at random, mend a thing or two; what is refused does not happen."""
    for _ in range(times):
        there = [(netns, value) for netns, values in kernel.observe().items() for value in values]
        repairs = diff(kernel.observe(), goal)
        if repairs and dice.random() < 0.5:
            kernel.apply([dice.choice(repairs)])
        elif there:
            netns, value = dice.choice(sorted(there, key=repr))
            kernel.apply([dice.choice(_HARM)(netns, value, dice)])


def _other(netns: str, value: Value, dice: random.Random) -> Change:
    """The same key with other content, or a stray value beside it."""
    match value:
        case Veth() | Bridge() | Vxlan():
            fields = dice.choice([{"mac": "02:00:00:00:00:ee"}, {"up": False}, {"mtu": 1234}])
            return Change("replace", netns, msgspec.structs.replace(value, **fields), value)  # type: ignore[arg-type]
        case Address(dev):
            return Change("add", netns, Address(dev, f"10.{dice.randrange(255)}.0.1/24"))
        case Route(dst, dev):
            return Change("replace", netns, Route(dst, dev), value)
        case Neighbour(dev, ip):
            return Change("replace", netns, Neighbour(dev, ip, "02:00:00:00:00:ee"), value)
        case FdbEntry(dev, mac):
            return Change("replace", netns, FdbEntry(dev, mac, "9.9.9.9"), value)
        case Sysctl(name):
            return Change("replace", netns, Sysctl(name, "2"), value)
        case File(path):
            return Change("replace", netns, File(path, "damaged"), value)
        case Chain(table, name, rules, policy):
            return Change("replace", netns, Chain(table, name, rules[1:], policy), value)
        case BridgePort(name):
            return Change("delete", netns, value)
    return Change("add", netns, Bridge(f"stray{dice.randrange(99)}", "02:00:00:00:00:dd"))


_HARM = (lambda netns, value, _: Change("delete", netns, value), _other, _other)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.tuples(*[st.sampled_from(NAMES)] * 3), st.integers(0, 20), st.randoms(use_true_random=False))
def test_from_any_state_to_the_wanted_one(ways: tuple[str, str, str], times: int, dice: random.Random) -> None:
    """Half on the way elsewhere, damaged: no refusal, and one round is enough: what the kernel drops is foreseen."""
    start, elsewhere, end = ways
    kernel = holding(VARIANTS[start])
    changes = diff(kernel.observe(), VARIANTS[elsewhere])
    kernel.apply(changes[: dice.randint(0, len(changes))])
    _damage(kernel, VARIANTS[start], dice, times)
    sync(kernel, VARIANTS[end])
    assert kernel.observe() == VARIANTS[end]


# --- as a script ------------------------------------------------------------------------------------------------------

ODD = "a;b$(c)"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Bridge(ODD, "02:00:00:00:00:04"), "ip -n n link add ODD address 02:00:00:00:00:04 mtu 1500 type bridge"),
        (Veth("e", f"{ODD}/{ODD}", "m"), "ip -n n link add e address m mtu 1500 type veth peer name ODD netns ODD"),
        (BridgePort("e", ODD), "ip -n n link set e master ODD"),
        (Address(ODD, "10.0.0.1/24"), "ip -n n address add 10.0.0.1/24 dev ODD"),
        (Route("10.0.0.0/8", ODD, "10.0.0.1"), "ip -n n route replace 10.0.0.0/8 via 10.0.0.1 dev ODD"),
        (Chain("nat", ODD), "ip netns exec n iptables -t nat -N ODD"),
        (Chain("nat", "A", (f"-i {ODD}",), "ACCEPT"), "ip netns exec n iptables -t nat -A A -i ODD"),
        (Chain("nat", "A", (f'-i "{ODD}" -j B',), "ACCEPT"), "ip netns exec n iptables -t nat -A A -i ODD -j B"),
        (Chain("nat", "A", (f'"{ODD}',), "ACCEPT"), 'ip netns exec n iptables -t nat -A A "ODD'),
    ],
)
def test_a_line_is_for_a_shell_what_it_is_for_the_kernel(value: Value, words: str) -> None:
    """`plan -o sh` is run as root: no name, whoever made it, is more than a word there."""
    said = [shlex.split(line) for line in lines(Change("add", "n", value))]
    assert [word.replace("ODD", ODD) for word in words.split()] in said


def test_a_plain_rule_is_printed_as_it_is() -> None:
    rule = '-d 10.0.0.1/32 ! -i veth+ -m comment --comment "a/b:http -> [c]; d" -j KUBE-SVC-A'
    assert lines(Change("add", "n", Chain("nat", "A", (rule,))))[-1].endswith(f"-A A {rule}")
