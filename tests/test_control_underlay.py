"""What lies under the cluster: the Cluster document completed, Nodes, flannel's leases, and what is refused."""

# ruff: noqa: E501, ISC004 - a row of a table is one line

import pytest

from nsnet import model, names
from nsnet.model import Cluster, HostEntry, Node, NodeEntry, SubnetLease
from tests.controlled import apply, delete, events, one, pods, refused, up

HEAD = "{apiVersion: nsnet/v1, kind: Cluster, "
POD = "\n---\n{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: i}]}}"


def cluster(words: str) -> str:
    return HEAD + words + "}"


def document(objects: object) -> Cluster:
    return model.cluster_of(objects)  # type: ignore[arg-type]


def machines(objects: object) -> list[str]:
    """`node1 172.18.0.2 nodes`, hosts too."""
    said = document(objects)
    assert isinstance(said.nodes, tuple)
    every: list[NodeEntry | HostEntry] = [*said.nodes, *(said.hosts or ())]
    return [f"{item.name} {item.address} {item.network}" for item in every]


def networks(objects: object) -> list[str]:
    return [f"{item.name} {item.subnet}" for item in document(objects).underlay.networks]


def leases(objects: object) -> list[str]:
    """`10.244.1.0-24 172.18.0.2`."""
    found = model.of(objects, SubnetLease)  # type: ignore[arg-type]
    return [f"{item.metadata.name} {item.PublicIP}" for item in found]


def subnets(objects: object) -> dict[str, str]:
    return {item.metadata.name: item.spec.podCIDR for item in model.of(objects, Node)}  # type: ignore[arg-type]


# --- defaults ---------------------------------------------------------------------------------------------------------


def test_nothing_said() -> None:
    objects = up(POD)
    assert machines(objects) == ["node1 172.18.0.2 nodes", "node2 172.18.0.3 nodes", "client 203.0.113.2 outside"]
    assert networks(objects) == ["nodes 172.18.0.0/16", "outside 203.0.113.0/24"]
    assert document(objects).networking.clusterDNS == "10.96.0.10"
    flannel = document(objects).flannel
    assert (flannel.SubnetLen, flannel.SubnetMin, flannel.SubnetMax) == (24, "10.244.1.0", "10.244.255.0")
    assert leases(objects) == ["10.244.1.0-24 172.18.0.2", "10.244.2.0-24 172.18.0.3"]
    assert pods(objects) == {"p": "node1 10.244.1.2"}


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("nodes: 1, hosts: []", ["node1 172.18.0.2 nodes"]),
        ("nodes: [{name: a}, {name: b, address: 172.18.0.2}], hosts: []", ["a 172.18.0.3 nodes", "b 172.18.0.2 nodes"]),
        (
            "underlay: {networks: [{name: lan, subnet: 10.10.1.0/24}]}, nodes: [{name: k}], hosts: [{name: h, network: lan}]",
            ["k 10.10.1.2 lan", "h 10.10.1.3 lan"],
        ),
        (
            "underlay: {networks: [{name: a, subnet: 10.1.0.0/24}, {name: b, subnet: 10.2.0.0/24}]}, "
            "nodes: [{name: k}, {name: m, network: b}, {name: o, address: 10.2.0.9}], hosts: [{name: h}]",
            ["k 10.1.0.2 a", "m 10.2.0.2 b", "o 10.2.0.9 b", "h 203.0.113.2 outside"],
        ),
        (
            "nodes: 3, hosts: [], loadBalancer: {addresses: [172.18.0.3-172.18.0.5]}",
            ["node1 172.18.0.2 nodes", "node2 172.18.0.6 nodes", "node3 172.18.0.7 nodes"],
        ),
    ],
)
def test_machines(words: str, found: list[str]) -> None:
    assert machines(up(cluster(words))) == found


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (
            "underlay: {networks: [{name: a}, {name: b}]}",
            ["a 172.18.0.0/16", "b 172.19.0.0/16", "outside 203.0.113.0/24"],
        ),
        ("networking: {podSubnet: 172.18.0.0/16}, hosts: []", ["nodes 172.19.0.0/16"]),
        ("underlay: {networks: [{name: a, subnet: 203.0.113.0/25}]}", ["a 203.0.113.0/25", "outside 198.51.100.0/24"]),
    ],
)
def test_default_networks_overlap_nothing(words: str, found: list[str]) -> None:
    assert networks(up(cluster(words))) == found


def test_a_node_object_has_all_that_others_read() -> None:
    text = cluster(
        "nodes: [{name: a, labels: {zone: x}, taints: [{key: gpu, effect: NoSchedule}], addresses: [192.168.1.2]}]"
    )
    node = one(up(text), "Node/a")
    assert isinstance(node, Node)
    assert node.metadata.labels == {
        "beta.kubernetes.io/arch": "amd64",
        "beta.kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/hostname": "a",
        "kubernetes.io/os": "linux",
        "zone": "x",
    }
    assert [f"{item.type} {item.address}" for item in node.status.addresses] == [
        "InternalIP 172.18.0.2",
        "Hostname a",
        "InternalIP 192.168.1.2",
    ]
    assert [taint.key for taint in node.spec.taints] == ["gpu"]
    assert node.metadata.annotations == {
        "nsnet/network": "nodes",
        "flannel.alpha.coreos.com/backend-type": "vxlan",
        "flannel.alpha.coreos.com/backend-data": f'{{"VNI":1,"VtepMAC":"{names.vtep_mac("demo", "a", 1)}"}}',
        "flannel.alpha.coreos.com/public-ip": "172.18.0.2",
    }
    assert model.condition(node.status.conditions, "Ready")


# --- what stays -------------------------------------------------------------------------------------------------------


def test_a_new_address_keeps_the_subnet_and_reaches_everything() -> None:
    host = POD.replace("{name: p}", "{name: h}").replace("containers", "hostNetwork: true, nodeName: node1, containers")
    stored = up(cluster("nodes: [{name: node1}, {name: node2}]") + host)
    assert pods(stored) == {"h": "node1 172.18.0.2"}
    after = apply(stored, cluster("nodes: [{name: node1, address: 172.18.0.77}, {name: node2}]"))
    assert machines(after)[:2] == ["node1 172.18.0.77 nodes", "node2 172.18.0.3 nodes"]
    assert leases(after) == ["10.244.1.0-24 172.18.0.77", "10.244.2.0-24 172.18.0.3"]
    assert model.internal_ip(one(after, "Node/node1")) == "172.18.0.77"  # type: ignore[arg-type]
    assert pods(after) == {"h": "node1 172.18.0.77"}
    assert one(after, "Endpoints/kubernetes").subsets[0].addresses[0].ip == "172.18.0.77"  # type: ignore[attr-defined]


def test_apply_without_a_cluster_document_leaves_the_cluster() -> None:
    stored = up(cluster("nodes: 3, networking: {podSubnet: 10.9.0.0/16}, dns: {enabled: false}"))
    after = apply(stored, POD)
    assert document(after) is document(stored)
    assert pods(after) == {"p": "node1 10.9.1.2"}


def test_addresses_and_subnets_stay_when_a_node_comes_in_between() -> None:
    stored = up(cluster("nodes: [{name: a}, {name: c}], hosts: []"))
    after = up(cluster("nodes: [{name: a}, {name: b}, {name: c}], hosts: []"), stored)
    assert machines(after) == ["a 172.18.0.2 nodes", "b 172.18.0.4 nodes", "c 172.18.0.3 nodes"]
    assert subnets(after) == {"a": "10.244.1.0/24", "b": "10.244.3.0/24", "c": "10.244.2.0/24"}


def test_a_node_that_goes_takes_its_lease_along_and_its_pods_move() -> None:
    stored = up(cluster("nodes: 3") + POD.replace("{name: p}", "{name: q}") + POD)
    assert pods(stored) == {"p": "node1 10.244.1.2", "q": "node2 10.244.2.2"}
    after = up(cluster("nodes: 1") + POD.replace("{name: p}", "{name: q}") + POD, stored)
    assert leases(after) == ["10.244.1.0-24 172.18.0.2"]
    assert pods(after) == {"p": "node1 10.244.1.2", "q": "node1 10.244.1.4"}  # .3 has a kube-dns
    deleted = delete(stored, "Node/node2")
    assert subnets(deleted) == {"node1": "10.244.1.0/24", "node3": "10.244.3.0/24"}
    assert pods(deleted)["q"] == "node3 10.244.3.3"  # .2 has the other kube-dns


def test_another_pod_subnet_moves_everything() -> None:
    stored = up(cluster("nodes: 1") + POD)
    after = up(cluster("nodes: 1, networking: {podSubnet: 10.50.0.0/16}") + POD, stored)
    assert subnets(after) == {"node1": "10.50.1.0/24"}
    assert leases(after) == ["10.50.1.0-24 172.18.0.2"]
    assert pods(after) == {"p": "node1 10.50.1.2"}


def test_labels_that_somebody_typed_stay_until_the_document_is_read_anew() -> None:
    stored = up(cluster("nodes: 1"))
    node = one(stored, "Node/node1")
    assert isinstance(node, Node)
    typed = {**stored, model.key_of(node): model.from_doc({**model.to_doc(node), "metadata": {
        **model.to_doc(node)["metadata"], "labels": {**node.metadata.labels, "disk": "ssd"}}})}  # fmt: skip
    after = apply(typed, POD)
    assert one(after, "Node/node1").metadata.labels["disk"] == "ssd"  # type: ignore[attr-defined]
    assert "disk" not in one(up(cluster("nodes: 1"), after), "Node/node1").metadata.labels  # type: ignore[attr-defined]


# --- flannel ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "length", "first", "last"),
    [
        ("networking: {podSubnet: 10.0.0.0/8, serviceSubnet: 192.168.0.0/16}", 24, "10.0.1.0", "10.255.255.0"),
        ("networking: {podSubnet: 10.0.0.0/22}", 24, "10.0.1.0", "10.0.3.0"),
        ("networking: {podSubnet: 10.0.0.0/23}", 25, "10.0.0.128", "10.0.1.128"),
        ("networking: {podSubnet: 10.0.0.0/28}, nodes: 1, dns: {replicas: 1}", 30, "10.0.0.4", "10.0.0.12"),
        ("flannel: {SubnetLen: 26}", 26, "10.244.0.64", "10.244.255.192"),
        ("flannel: {SubnetMin: 10.244.10.0, SubnetMax: 10.244.20.0}", 24, "10.244.10.0", "10.244.20.0"),
    ],
)
def test_net_conf_defaults(words: str, length: int, first: str, last: str) -> None:
    said = document(up(cluster(words))).flannel
    assert (said.SubnetLen, said.SubnetMin, said.SubnetMax) == (length, first, last)


def test_the_first_free_subnet_goes_round_what_is_asked_for() -> None:
    text = cluster(
        "nodes: [{name: a}, {name: b, podCIDR: 10.244.1.0/24}, {name: c, podCIDR: 10.244.0.0/24}, {name: d}]"
    )
    assert subnets(up(text)) == {
        "a": "10.244.2.0/24",
        "b": "10.244.1.0/24",
        "c": "10.244.0.0/24",  # below SubnetMin: kube mode takes it, kubeadm gives it to the first node
        "d": "10.244.3.0/24",
    }


def test_random_allocation_is_the_same_random_each_time() -> None:
    text = cluster("nodes: 8, flannel: {allocation: random}")
    found = subnets(up(text))
    assert found == subnets(up(text))
    assert len(set(found.values())) == 8
    assert list(found.values()) != sorted(found.values())


def test_a_lease_of_somebody_else_is_left_alone() -> None:
    foreign = SubnetLease(model.ObjectMeta(name="10.244.0.0-23"), "10.9.9.9", "vxlan")
    mine = SubnetLease(model.ObjectMeta(name="10.244.77.0-24"), "172.18.0.3", "vxlan")
    stored = {model.key_of(item): item for item in (foreign, mine)}
    objects = up(cluster("nodes: 3"), stored)
    assert subnets(objects) == {"node1": "10.244.2.0/24", "node2": "10.244.77.0/24", "node3": "10.244.3.0/24"}
    assert "10.244.0.0-23 10.9.9.9" in leases(objects)


def test_host_gw_has_no_backend_data() -> None:
    lease = one(up(cluster("nodes: 1, flannel: {Backend: {Type: host-gw}}")), "SubnetLease/10.244.1.0-24")
    assert isinstance(lease, SubnetLease)
    assert (lease.BackendType, lease.BackendData) == ("host-gw", None)


def test_host_gw_across_a_router_is_told_as_an_event() -> None:
    racks = "underlay: {networks: [{name: a}, {name: b}]}, nodes: [{name: k, network: a}, {name: m, network: b}]"
    said = events(up(cluster(racks + ", flannel: {Backend: {Type: host-gw}}")))
    assert len(said) == 2
    assert said[0].startswith("Node k: RouteNotPossible: host-gw: no route to the pods of m:")
    assert events(up(cluster(racks))) == []


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("networking: {podSubnet: 10.96.0.0/12}", "networking.podSubnet: podSubnet 10.96.0.0/12 overlaps"),
        ("networking: {podSubnet: 10.96.0.0/12}", "serviceSubnet 10.96.0.0/16"),
        (
            "networking: {podSubnet: 172.18.0.0/15}, underlay: {networks: [{name: lan, subnet: 172.18.0.0/24}]}",
            "networking.podSubnet: podSubnet 172.18.0.0/15 overlaps network lan 172.18.0.0/24",
        ),
        (
            "underlay: {networks: [{name: a, subnet: 10.1.0.0/16}, {name: b, subnet: 10.1.2.0/24}]}",
            "underlay.networks[1].subnet: network b 10.1.2.0/24 overlaps network a 10.1.0.0/16",
        ),
        ("underlay: {networks: [{name: router}]}", "underlay.networks[0].name: router is the name of"),
        ("networking: {serviceSubnet: 10.96.0.0/29}", "10.96.0.0/29 is too small"),
        ("networking: {clusterDNS: 10.0.0.1}", "networking.clusterDNS: 10.0.0.1 is outside serviceSubnet 10.96.0.0/16"),
        ("nodes: [{name: a, network: lab}]", 'nodes[0].network: there is no network "lab" (networks: nodes, outside)'),
        ("hosts: [{name: a, network: node}]", 'hosts[0].network: there is no network "node" (did you mean nodes?)'),
        ("nodes: [{name: a, address: 10.0.0.9}]", "nodes[0].address: 10.0.0.9 is not an address in network nodes"),
        ("nodes: [{name: a, address: 172.18.0.1}]", "nodes[0].address: 172.18.0.1 is taken by the router"),
        ("nodes: [{name: a, address: 172.18.0.0}]", "172.18.0.0 is not an address in network nodes"),
        ("nodes: [{name: a, address: 172.18.0.9}, {name: b, address: 172.18.0.9}]", "nodes[1].address: 172.18.0.9 is taken by node a"),
        ("nodes: [{name: a, address: 172.18.0.9}], hosts: [{name: h, address: 172.18.0.9}]", "hosts[0].address: 172.18.0.9 is taken by node a"),
        ("nodes: [{name: a, addresses: [192.168.1.2]}, {name: b, addresses: [192.168.1.2]}]", "nodes[1].addresses[0]: 192.168.1.2 is taken by node a"),
        ("nodes: [{name: a, addresses: [10.244.1.9]}]", "nodes[0].addresses[0]: 10.244.1.9 lies in podSubnet"),
        ("nodes: [{name: a}], hosts: [{name: a}]", 'hosts[0].name: "a" is given twice'),
        ("underlay: {networks: [{name: k, subnet: 10.1.0.0/30}]}, nodes: 2", 'nodes[1].name: "node2": no address is left for it in network k 10.1.0.0/30'),
        ("underlay: {networks: [{name: k, subnet: 10.1.0.0/31}]}", "10.1.0.0/31 is too small"),
        ("underlay: {links: [{between: [node1, rack]}]}", 'underlay.links[0].between: there is no "rack"'),
        ("underlay: {links: [{between: [node1, outside]}]}", "node1 and outside are not joined by a link"),
        ("nodes: [{name: a, podCIDR: 10.1.0.0/24}]", "nodes[0].podCIDR: 10.1.0.0/24 is outside podSubnet 10.244.0.0/16 (set networking.podSubnet so that it has it, as 10.1.0.0/16)"),
        ("nodes: [{name: a, podCIDR: 10.244.1.0/25}]", "nodes[0].podCIDR: 10.244.1.0/25 is not a /24"),
        ("nodes: [{name: a, podCIDR: 10.244.1.0/24}, {name: b, podCIDR: 10.244.1.0/24}]", "nodes[1].podCIDR: 10.244.1.0/24 is taken by node a"),
        ("nodes: 4, networking: {podSubnet: 10.244.0.0/22}", "nodes: 4 nodes, but podSubnet 10.244.0.0/22 has room for 3 subnets of length /24"),
        ("flannel: {SubnetLen: 17}", "flannel.SubnetLen: 17 does not go with podSubnet 10.244.0.0/16 (from 18 (four subnets) to 30)"),
        ("flannel: {SubnetMin: 10.1.0.0}", "flannel.SubnetMin: 10.1.0.0 is outside podSubnet"),
        ("flannel: {SubnetMin: 10.244.1.7}", "flannel.SubnetMin: 10.244.1.7 is not the beginning of a /24"),
        ("flannel: {SubnetMin: 10.244.9.0, SubnetMax: 10.244.8.0}", "flannel.SubnetMax: 10.244.8.0 is less than SubnetMin"),
        ("networking: {podSubnet: 10.244.0.0/29}", "10.244.0.0/29 is too small"),
        ("checks: [{name: x, from: pod/nobody, to: 'http://web'}]", "checks[0].from: there is no pod/nobody"),
        ("checks: [{name: x, from: host/clint, to: 'http://web'}]", "checks[0].from: there is no host/clint (did you mean client?)"),
        ("checks: [{name: x, from: node/node3, to: 'http://web'}]", "checks[0].from: there is no node/node3"),
    ],
)  # fmt: skip
def test_refused(words: str, said: str) -> None:
    assert said in refused(cluster(words))


def test_a_check_may_start_at_a_pod_that_a_workload_will_make() -> None:
    sts = """
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: i}]}}
"""
    for source in ("pod/web-0", "web-0", "sts/web", "node/node1", "host/client"):
        up(cluster(f"checks: [{{name: x, from: {source}, to: 'http://web'}}]") + sts)


def test_apply_of_another_clusters_document_is_refused() -> None:
    text = cluster("metadata: {name: other}")
    assert "the running cluster is called demo" in refused(text, up(POD), whole=False)


def test_the_same_errors_stand_at_their_place_in_the_file() -> None:
    from nsnet import control, manifests
    from nsnet.errors import ObjectError
    from nsnet.manifests import Source

    text = b"apiVersion: nsnet/v1\nkind: Cluster\nnodes:\n- {name: a}\n- {name: b, address: 10.0.0.1}\n"
    loaded = manifests.load([Source("topo.yaml", text)])
    with pytest.raises(ObjectError) as caught:
        control.complete(control.admit({}, loaded.objects, whole=True))
    assert str(manifests.located(caught.value, loaded)).startswith('topo.yaml:5:22: Cluster "topo": nodes[1].address:')
