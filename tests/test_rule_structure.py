"""Every rule set hangs together, in both modes; and a Service that goes leaves nothing behind."""

from pathlib import Path

import pytest
import yaml

from nsnet import control, manifests, model, names
from nsnet.model import Key, Object, Objects, Service
from nsnet.render import render
from nsnet.state import Chain, Loopback, Netns, Nft, NftChain, State, Value
from tests import packets, worlds
from tests.fake import Kernel, sync
from tests.rule_structure import rule_faults
from tests.structure import faults

TOPOLOGIES = sorted((Path(__file__).parents[1] / "topologies").glob("*.yaml"))


def in_mode(topology: Path, mode: str) -> dict[Key, Object]:
    docs = [doc for doc in yaml.safe_load_all(topology.read_text()) if doc]
    cluster = next((doc for doc in docs if doc["kind"] == "Cluster"), None)
    if cluster is None:
        cluster = {"apiVersion": "nsnet/v1", "kind": "Cluster", "metadata": {"name": topology.stem}}
        docs.append(cluster)
    cluster.setdefault("networking", {})["kubeProxyMode"] = mode
    loaded = manifests.load([manifests.Source(topology.name, yaml.safe_dump_all(docs).encode())])
    return control.complete(control.admit({}, loaded.objects, whole=True))


@pytest.mark.parametrize("mode", packets.MODES)
@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda path: path.stem)
def test_topology(topology: Path, mode: str) -> None:
    assert faults(render(in_mode(topology, mode))) == []


@pytest.mark.parametrize("node", worlds.NODES)
def test_every_kind_of_service(node: str) -> None:
    assert list(rule_faults(worlds.chains(worlds.load(worlds.SERVICES))[node])) == []


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (
            Chain("nat", "KUBE-SVC-A", ("-m statistic --mode random --probability 0.4 -j KUBE-SEP-A", "-j KUBE-SEP-B")),
            "unfairly",
        ),
        (Chain("nat", "KUBE-SVC-A", ("-m statistic --mode random --probability 0.5 -j KUBE-SEP-A",)), "unfairly"),
        (NftChain("kube-proxy", "a", ("dnat to numgen random mod 3 map { 0 : x, 1 : y }",), "hook"), "unfairly"),
        (NftChain("kube-proxy", "a", ("numgen random mod 2 vmap { 0 : goto a, 1 : goto a }",), "hook"), "unfairly"),
        (NftChain("kube-proxy", "service-x"), "nobody goes to service-x"),
        (NftChain("kube-proxy", "a", ("goto b",), "hook"), "needs"),
    ],
)
def test_the_checks_find_faults(value: Value, sentence: str) -> None:
    assert any(sentence in fault for fault in rule_faults([value]))


# --- nothing left over ------------------------------------------------------------------------------------------------

STEM = "cluster-ip"
NODE = packets.NETNS["node1"]
EVERY = [item.metadata.name for item in model.of(packets.objects(STEM, "iptables"), Service)]


@pytest.mark.parametrize("mode", packets.MODES)
@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("kubernetes", "kube-dns")])
def test_a_service_that_goes_leaves_nothing(mode: str, name: str) -> None:
    """Its slices written by hand stay in the store; they are nobody's then."""
    before = packets.objects(STEM, mode)
    after = control.complete(control.remove(before, [Key("Service", "default", name)]))
    kernel = Kernel()
    sync(kernel, rules(before))
    sync(kernel, rules(after))
    assert kernel.observe() == rules(after)
    text = "\n".join(str(value) for value in kernel.observe()[NODE] if isinstance(value, Chain | Nft))
    service = before[Key("Service", "default", name)]
    assert isinstance(service, Service)
    for mark in marks(service):
        assert mark not in text


def rules(objects: Objects) -> State:
    """The packet filters of node1."""
    return {
        NODE: frozenset(value for value in render(objects)[NODE] if isinstance(value, Netns | Loopback | Chain | Nft))
    }


def marks(service: Service) -> list[str]:
    """What in a rule set would tell of a Service."""
    name = f"default/{service.metadata.name}"
    found = [f'"{name} ', f'"{name}"', f'"{name}:', f"{name}/"]
    if service.spec.clusterIP not in ("", "None"):
        found += [f"{service.spec.clusterIP}/32", f"{service.spec.clusterIP} "]
    for port in service.spec.ports or ():
        said = names.service_port("default", service.metadata.name, port.name)
        found.append(names.kube_chain("SVC", said, port.protocol).rpartition("-")[2])
    return found
