"""A cluster over several machines: who carries which node, what each renders, and what cannot be."""

from typing import Any

import pytest

from nsnet import control
from nsnet.control.machines import at as found_at
from nsnet.errors import ObjectError
from nsnet.model import Objects, by_key, cluster_of, from_doc, key_of
from nsnet.render import machines, render
from nsnet.state import FdbEntry, Veth, Vxlan, far_end, is_uplink, words

A, B, C = ({"name": name, "address": f"192.0.2.{number}"} for number, name in enumerate("abc", 1))


def completed(
    listed: list[dict[str, Any]],
    nodes: list[dict[str, Any]],
    stored: Objects | None = None,
    networks: list[dict[str, Any]] | None = None,
) -> Objects:
    doc = {
        "apiVersion": "nsnet/v1", "kind": "Cluster", "metadata": {"name": "multi"},
        "underlay": {"machines": listed, "networks": networks or []}, "nodes": nodes,
    }  # fmt: skip
    return control.complete(control.admit(stored or {}, by_key([from_doc(doc)]), whole=True))


def carried(objects: Objects) -> dict[str, str]:
    return dict(machines.of_nodes(cluster_of(objects)))


def named(*nodes: str) -> list[dict[str, Any]]:
    """`n1` or `n1@b`."""
    return [
        {"name": name, **({"machine": at} if at else {})} for name, _, at in (node.partition("@") for node in nodes)
    ]


@pytest.mark.parametrize(
    ("listed", "nodes", "where"),
    [
        ([], ["n1", "n2"], {}),
        ([A, B, C], ["n1", "n2", "n3", "n4"], {"n1": "a", "n2": "b", "n3": "c", "n4": "a"}),
        ([A, B], ["n1@b", "n2", "n3"], {"n1": "b", "n2": "a", "n3": "a"}),
        ([A, B], ["n1", "n2@a", "n3@a"], {"n1": "b", "n2": "a", "n3": "a"}),
        ([A], ["n1", "n2"], {"n1": "a", "n2": "a"}),
    ],
)
def test_nodes_are_where_they_say_or_spread(
    listed: list[dict[str, Any]], nodes: list[str], where: dict[str, str]
) -> None:
    assert carried(completed(listed, named(*nodes))) == where


def test_a_node_stays_where_it_is() -> None:
    before = completed([A, B], named("n1", "n2"))
    assert carried(completed([A, B, C], named("n0", "n1", "n2"), before)) == {"n0": "c", "n1": "a", "n2": "b"}
    assert carried(completed([A, C], named("n1", "n2"), before)) == {"n1": "a", "n2": "c"}
    assert carried(completed([A, B], named("n1@b", "n2"), before)) == {"n1": "b", "n2": "b"}


@pytest.mark.parametrize(
    ("listed", "nodes", "error"),
    [
        ([A], ["n1@x"], r'nodes\[0\].machine: there is no machine "x"'),
        ([], ["n1@x"], r'there is no machine "x"'),
        ([A, {**B, "name": "a"}], ["n1"], r"underlay.machines\[1\]: a is given twice"),
        ([A, {**B, "address": "192.0.2.1"}], ["n1"], r"192.0.2.1 is given twice"),
        ([{**A, "address": "here"}], ["n1"], r'"here" is not an address'),
        ([{**A, "address": "fd00::1"}], ["n1"], r'"fd00::1" is not an address'),
        ([{"name": "a"}], ["n1"], r'"" is not an address'),
        ([{**A, "name": "A!"}], ["n1"], r'"A!" is no name'),
    ],
)
def test_what_cannot_be(listed: list[dict[str, Any]], nodes: list[str], error: str) -> None:
    with pytest.raises(ObjectError, match=error):
        completed(listed, named(*nodes))


def test_every_namespace_of_a_node_is_rendered_on_one_machine() -> None:
    """As the whole cluster renders it, but for the networks' way to the other machines."""
    objects = completed([A, B, C], named("n1", "n2", "n3"))
    whole = render(objects)
    parts = {name: render(objects, name) for name in "abc"}
    for netns, values in whole.items():
        at = [name for name, part in parts.items() if netns in part]
        if ".fabric." in netns:
            assert at == ["a", "b", "c"]
        else:
            assert len(at) == 1
            assert parts[at[0]][netns] == values


@pytest.mark.parametrize(
    ("listed", "bridges", "error"),
    [
        ([], ["br-lab"], r"networks\[0\].bridge: a bridge joins the switches of several machines"),
        ([A, B], ["br lab"], r'networks\[0\].bridge: "br lab" is no name of a bridge'),
        ([A, B], ["br-lab", "br-lab"], r"networks\[1\].bridge: br-lab is given twice"),
    ],
)
def test_what_no_bridge_carries(listed: list[dict[str, Any]], bridges: list[str], error: str) -> None:
    networks = [{"name": f"n{at}", "subnet": f"172.{18 + at}.0.0/16", "bridge": one} for at, one in enumerate(bridges)]
    with pytest.raises(ObjectError, match=error):
        completed(listed, named("n1"), networks=networks)


def test_a_bridge_carries_a_network_without_vxlan() -> None:
    """At its full MTU; what the machine itself gets is one cable, said as a person would lay it."""
    objects = completed([A, B], named("n1", "n2"), networks=[{"name": "lab", "bridge": "br-lab"}])
    values = render(objects, "b")["multi.fabric.lab"]
    assert not any(isinstance(value, Vxlan | FdbEntry) for value in values)
    (cable,) = [value for value in values if isinstance(value, Veth) and is_uplink(value)]
    far = far_end(cable)
    assert words(cable) == [
        f"ip link add trunk address {cable.mac} mtu 1500 type veth peer name {far} netns 1",
        f"nsenter -t 1 -n ip link set {far} master br-lab up",
        "ip link set trunk up",
    ]


def test_a_machine_that_names_its_interface_is_led_to_when_it_has_said_its_address() -> None:
    """What it has said stays where the document is written again and names the same interface."""
    b = {"name": "b", "interface": "eth1"}
    objects = completed([A, b], named("n1", "n2"))

    def led_to(objects: Objects) -> set[str]:
        return {value.dst for value in render(objects, "a")["multi.fabric.nodes"] if isinstance(value, FdbEntry)}

    assert led_to(objects) == set()
    assert not any(isinstance(value, Vxlan) for value in render(objects, "b")["multi.fabric.nodes"])
    cluster = cluster_of(objects)
    joined = {**objects, key_of(cluster): found_at(cluster, "b", "192.0.2.7")}
    assert led_to(joined) == {"192.0.2.7"}
    assert led_to(completed([A, b], named("n1", "n2"), joined)) == {"192.0.2.7"}
    assert led_to(completed([A, {**b, "interface": "eth2"}], named("n1", "n2"), joined)) == set()


def test_switches_know_who_is_behind_which_machine() -> None:
    objects = completed([A, B, C], named("n1", "n2", "n3"))
    for name, address in (("a", "192.0.2.1"), ("b", "192.0.2.2"), ("c", "192.0.2.3")):
        values = render(objects, name)["multi.fabric.nodes"]
        (trunk,) = [value for value in values if isinstance(value, Vxlan)]
        assert (trunk.local, trunk.dev, trunk.mtu, trunk.learning) == (address, "", 1450, False)
        behind = {value.dst for value in values if isinstance(value, FdbEntry)}
        assert behind == {"192.0.2.1", "192.0.2.2", "192.0.2.3"} - {address}
    assert not any(isinstance(value, Vxlan) for value in render(completed([], named("n1")))["multi.fabric.nodes"])
