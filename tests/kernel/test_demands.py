"""A topology that needs what this kernel lacks is refused before anything is stored or built."""

from pathlib import Path

import pytest

from nsnet.kernel import demands, netns
from nsnet.kernel.features import FEATURES, Feature, features
from nsnet.kernel.netlink import NETLINK_ROUTE, Netlink
from nsnet.kernel.rtnl import GET_LINKS, interfaces
from tests.kernel.test_cli_real import nsnet

NEVER = Feature("the moon", ("ip", "link", "add", "moon1", "type", "moon"), "sudo modprobe moon (CONFIG_MOON)")
NO_MATCH = Feature("moon match", ("iptables", "-w", "-t", "nat", "-A", "OUTPUT", "-m", "moon", "-j", "ACCEPT"), "moon")


def test_asked_together_or_one_by_one_the_answer_is_the_same() -> None:
    one_by_one = [item.name for item in features(FEATURES) if not item.ok]
    assert [item.name for item in demands.missing(FEATURES)] == one_by_one


def test_the_one_that_is_missing_is_found_among_others() -> None:
    wanted = [*(feature for feature in FEATURES if feature.needed), NEVER, NO_MATCH]
    assert [item.name for item in demands.missing(wanted)] == [NEVER.name, NO_MATCH.name]


@pytest.mark.parametrize("there", [True, False])
def test_what_would_change_the_machine_is_not_tried(tmp_path: Path, there: bool) -> None:
    tried, after = tmp_path / "tried", tmp_path / "after"
    if there:
        after.touch()
    feature = Feature("the moon", ("touch", str(tried)), "", after=str(after))
    assert [item.name for item in demands.missing([feature])] == ([] if there else [feature.name])
    assert tried.exists() is there


def test_asking_leaves_nothing_where_we_are() -> None:
    before = _devices()
    demands.missing(FEATURES)
    with netns.throw_away():
        assert len(_devices()) <= len(before)
    assert _devices() == before


def _devices() -> set[str]:
    with Netlink(NETLINK_ROUTE) as route:
        return {one.name for one in interfaces(route.dump([GET_LINKS])[0]).values()}


@pytest.mark.parametrize("backend", ["ipip", "wireguard"])
def test_up_refuses_with_the_kernel_option_and_leaves_nothing(tmp_path: Path, backend: str) -> None:
    if not demands.missing([feature for feature in FEATURES if feature.name == backend]):
        pytest.skip(f"this kernel has {backend}")
    path = tmp_path / "topo.yaml"
    path.write_text(
        f"apiVersion: nsnet/v1\nkind: Cluster\nmetadata: {{name: lacking}}\nflannel: {{Backend: {{Type: {backend}}}}}\n"
    )
    said = nsnet("up", str(path), code=5).stderr
    assert said.startswith(f"error: this machine has no {backend} (flannel's backend {backend}); nothing was changed\n")
    assert f"CONFIG_{'NET_IPIP' if backend == 'ipip' else 'WIREGUARD'}" in said
    assert not Path("/var/lib/nsnet/lacking").exists()
    assert not list(Path("/run").rglob("lacking.*"))
