"""Objects in the store: the keys they stand under, the bytes, and whole sets written all or nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nsnet import control, manifests
from nsnet.errors import InputError
from nsnet.model import (
    Cluster,
    Condition,
    Endpoint,
    EndpointConditions,
    EndpointPort,
    Endpoints,
    EndpointSlice,
    HostEntry,
    Key,
    LabelSelector,
    Node,
    NodeSpec,
    NodeStatus,
    Object,
    ObjectMeta,
    Objects,
    OwnerReference,
    Pod,
    PodAffinityTerm,
    PodIP,
    PodSpec,
    PodStatus,
    Service,
    ServicePort,
    ServiceSpec,
    SubnetLease,
    by_key,
    from_doc,
)
from nsnet.store import Conflict, sqlite
from nsnet.store.keys import FENCE, GONE, decode, encode, path, path_of, records
from nsnet.store.objects import clear, differences, load_objects, refresh, save_objects, update

replace = msgspec.structs.replace


@pytest.mark.parametrize(
    ("key", "api_version", "expected"),
    [
        (Key("Pod", "default", "web-0"), "v1", "/registry/pods/default/web-0"),
        (Key("Service", "default", "web"), "v1", "/registry/services/specs/default/web"),
        (Key("Endpoints", "default", "web"), "v1", "/registry/services/endpoints/default/web"),
        (Key("EndpointSlice", "default", "web-x"), "discovery.k8s.io/v1", "/registry/endpointslices/default/web-x"),
        (Key("Node", "", "node1"), "v1", "/registry/minions/node1"),
        (Key("Namespace", "", "default"), "v1", "/registry/namespaces/default"),
        (Key("Deployment", "shop", "web"), "apps/v1", "/registry/deployments/shop/web"),
        (Key("ReplicationController", "a", "b"), "v1", "/registry/controllers/a/b"),
        (Key("StatefulSet", "a", "b"), "apps/v1", "/registry/statefulsets/a/b"),
        (Key("Job", "a", "b"), "batch/v1", "/registry/jobs/a/b"),
        (Key("Event", "a", "b"), "v1", "/registry/events/a/b"),
        (Key("ConfigMap", "a", "b"), "v1", "/registry/configmaps/a/b"),
        (Key("Ingress", "a", "b"), "networking.k8s.io/v1", "/registry/ingress/a/b"),
        (Key("IngressClass", "", "b"), "networking.k8s.io/v1", "/registry/ingressclasses/b"),
        (Key("NetworkPolicy", "a", "b"), "networking.k8s.io/v1", "/registry/networkpolicies/a/b"),
        (Key("ClusterRole", "", "b"), "rbac.authorization.k8s.io/v1", "/registry/clusterroles/b"),
        (Key("HTTPRoute", "a", "b"), "", "/registry/gateway.networking.k8s.io/httproutes/a/b"),
        (Key("Certificate", "a", "b"), "cert-manager.io/v1", "/registry/cert-manager.io/certificates/a/b"),
        (Key("BackendPolicy", "", "b"), "acme.io/v1", "/registry/acme.io/backendpolicies/b"),
        (Key("Cluster", "", "demo"), "nsnet/v1", "/registry/nsnet/clusters/demo"),
        (Key("SubnetLease", "", "10.244.1.0-24"), "nsnet/v1", "/coreos.com/network/subnets/10.244.1.0-24"),
    ],
)  # fmt: skip
def test_keys_are_kubernetes_own(key: Key, api_version: str, expected: str) -> None:
    assert path_of(key, api_version) == expected


# --- what controllers make comes back equal ---------------------------------------------------------------------------

OWNER = (OwnerReference("ReplicaSet", "web-5d8", "apps/v1", "uid-1"),)
LEASE = SubnetLease(
    ObjectMeta("10.244.1.0-24"), "172.18.0.2", "vxlan", {"VNI": 1, "VtepMAC": "6e:1c:aa:bb:cc:dd"}
)  # fmt: skip
MADE: list[Object] = [
    Pod(
        ObjectMeta("web-0", "default", labels={"app": "web"}, ownerReferences=OWNER, uid="u"),
        PodSpec(nodeName="node1", tolerations=None, enableServiceLinks=None, hostNetwork=True),
        PodStatus("Running", "10.244.1.2", (PodIP("10.244.1.2"),), conditions=(Condition("Ready", "True"),)),
    ),
    Node(ObjectMeta("node1"), NodeSpec("10.244.1.0/24", ("10.244.1.0/24",)), NodeStatus()),
    Service(ObjectMeta("db", "default"), ServiceSpec(clusterIP="None", ports=None, selector={})),
    Service(ObjectMeta("web", "default"), ServiceSpec(ports=(ServicePort(80, targetPort="http", nodePort=30080),))),
    Endpoints(ObjectMeta("db", "default"), None),
    EndpointSlice(
        ObjectMeta("web-1", "default", labels={"kubernetes.io/service-name": "web"}),
        endpoints=(Endpoint(("10.244.1.2",), EndpointConditions(True, True, False), nodeName="node1"),),
        ports=(EndpointPort(8080, None, None), EndpointPort(8081)),
    ),
    Cluster(ObjectMeta("demo"), hosts=()),  # no hosts at all is not the default
    Cluster(ObjectMeta("demo"), hosts=(HostEntry("client"),), nodes=7),
    LEASE,
    replace(LEASE, BackendType="", BackendData=None),
]


@pytest.mark.parametrize("obj", MADE, ids=lambda obj: type(obj).__name__)
def test_what_was_made_comes_back_equal(obj: Object) -> None:
    assert decode(path(obj), encode(obj)) == obj


def test_an_empty_selector_is_not_an_absent_one() -> None:
    term = PodAffinityTerm("kubernetes.io/hostname", LabelSelector())
    doc = msgspec.to_builtins(term)
    pod = from_doc({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "b"},
        "spec": {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [doc]}}},
    })  # fmt: skip
    back = decode(path(pod), encode(replace(pod, raw={})))
    assert isinstance(back, Pod)
    assert isinstance(pod, Pod)
    assert back.spec == pod.spec


DOCS: list[dict[str, Any]] = [
    {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "a", "managedFields": [{"manager": "kubectl"}]},
        "spec": {
            "replicas": 0,
            "strategy": {"rollingUpdate": {"maxSurge": 1}},
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {
                    "containers": [
                        {"name": "main", "image": "nginx"},
                        {"name": "side", "readinessProbe": {"tcpSocket": {"port": 80}}, "securityContext": {}},
                    ],
                    "volumes": [{"name": "tmp", "emptyDir": {}}],
                },
            },
        },
        "status": {},
    },
    {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "namespace": "a"}, "raw": {"odd": 1}, "spec": {}},
    {"apiVersion": "acme.io/v1", "kind": "Rocket", "metadata": {"name": "x", "namespace": "a"}, "spec": {"fuel": None}},
    {"kind": "ConfigMap", "metadata": {"name": "x", "namespace": "a"}, "data": {"raw": "1"}},
]


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: str(doc["kind"]))
def test_what_a_file_said_is_kept(doc: dict[str, Any]) -> None:
    obj = from_doc(doc)
    stored = encode(obj)
    found = decode(path(obj), stored)
    assert replace(found, raw={}) == replace(obj, raw={})
    assert _within(doc, msgspec.json.decode(stored))
    assert encode(found) == stored
    assert decode(path(found), encode(found)) == found


def _within(part: Any, whole: Any) -> bool:
    """Everything `part` says stands in `whole` too."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(_within(value, whole.get(name)) for name, value in part.items())
    if isinstance(part, list):
        return len(part) == len(whole) and all(map(_within, part, whole))
    return bool(part == whole)


def test_a_replaced_field_wins_over_what_the_file_said() -> None:
    service = from_doc({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "a"},
        "spec": {"ports": [{"port": 80, "vendor": "x"}], "vendor": "y"},
    })  # fmt: skip
    assert isinstance(service, Service)
    given = replace(service, spec=replace(service.spec, clusterIP="10.96.0.7"))
    assert msgspec.json.decode(encode(given))["spec"] == {
        "type": "ClusterIP", "ports": [{"port": 80, "protocol": "TCP", "vendor": "x"}], "clusterIP": "10.96.0.7",
        "sessionAffinity": "None", "vendor": "y",
    }  # fmt: skip


# --- flannel's records ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lease", "record"),
    [
        (
            LEASE,
            (
                b'{"PublicIP":"172.18.0.2","PublicIPv6":null,"BackendType":"vxlan",'
                b'"BackendData":{"VNI":1,"VtepMAC":"6e:1c:aa:bb:cc:dd"}}'
            ),
        ),
        (
            replace(LEASE, BackendType="host-gw", BackendData=None),
            b'{"PublicIP":"172.18.0.2","PublicIPv6":null,"BackendType":"host-gw"}',
        ),
    ],
)
def test_a_lease_is_flannels_own_json(lease: SubnetLease, record: bytes) -> None:
    assert encode(lease) == record
    assert decode("/coreos.com/network/subnets/10.244.1.0-24", record) == lease


def test_what_flanneld_wrote_for_two_stacks_is_kept() -> None:
    record = (
        b'{"PublicIP":"172.18.0.2","PublicIPv6":"fd00::2","BackendType":"vxlan","BackendData":{"VNI":1},'
        b'"BackendV6Data":{"VNI":1}}'
    )
    assert encode(decode("/coreos.com/network/subnets/10.244.1.0-24", record)) == record


@pytest.fixture
def store(tmp_path: Path) -> Iterator[sqlite.SqliteStore]:
    with sqlite.open_file(tmp_path / "store.db") as opened:
        yield opened


OWNED = replace(LEASE, metadata=ObjectMeta("10.244.1.0-24", ownerReferences=(OwnerReference("Node", "node1"),)))


def test_the_metadata_of_a_lease_stands_beside_it(store: sqlite.SqliteStore) -> None:
    save_objects(store, {}, by_key([OWNED]), 0)
    assert load_objects(store)[0] == by_key([OWNED])
    assert records(OWNED)["/coreos.com/network/subnets/10.244.1.0-24"] == encode(LEASE)


def test_a_lease_that_flanneld_took_over_has_no_metadata_of_ours(store: sqlite.SqliteStore) -> None:
    save_objects(store, {}, by_key([OWNED]), 0)
    other = replace(LEASE, PublicIP="172.18.0.9")
    store.txn({}, {path(other): encode(other)})
    assert load_objects(store)[0] == by_key([other])


# --- whole sets -------------------------------------------------------------------------------------------------------


def pod(name: str, node: str = "node1") -> Pod:
    return Pod(ObjectMeta(name, "default"), PodSpec(nodeName=node))


def names(objects: Objects) -> list[str]:
    return sorted(key.name for key in objects)


def test_only_differences_are_written(store: sqlite.SqliteStore) -> None:
    first = by_key([pod("a"), pod("b"), pod("c")])
    assert save_objects(store, {}, first, 0) == 1
    second = by_key([pod("a"), pod("b", "node2"), pod("d")])
    assert save_objects(store, first, second, 1) == 2
    assert {event.key: event.value is not None for event in store.changes("/registry/pods/", 1)[0]} == {
        "/registry/pods/default/b": True,
        "/registry/pods/default/c": False,
        "/registry/pods/default/d": True,
    }
    assert load_objects(store) == (second, 2)


def test_nothing_different_writes_nothing(store: sqlite.SqliteStore) -> None:
    save_objects(store, {}, by_key([pod("a")]), 0)
    same = by_key([replace(pod("a"), raw={"apiVersion": "v1"})])
    assert differences(by_key([pod("a")]), same) == {}
    assert save_objects(store, by_key([pod("a")]), same, 1) == 1
    assert store.revision() == 1


def test_two_writers_from_one_reading_never_both_succeed(store: sqlite.SqliteStore) -> None:
    """Even where they write different objects: the second might have taken an address the first took."""
    save_objects(store, {}, by_key([pod("a")]), 0)
    objects, revision = load_objects(store)
    save_objects(store, objects, {**objects, **by_key([pod("b")])}, revision)
    with pytest.raises(Conflict):
        save_objects(store, objects, {**objects, **by_key([pod("c")])}, revision)
    assert names(load_objects(store)[0]) == ["a", "b"]


@pytest.mark.parametrize("spread", [False, True])
def test_nothing_lands_in_a_cluster_that_was_removed(store: sqlite.SqliteStore, spread: bool) -> None:
    """The fence went with it: a controller that read before and writes after must not leave a part of it behind."""
    cluster = Cluster(ObjectMeta(name="demo"))
    save_objects(store, {}, by_key([cluster, pod("a")]), 0)
    objects, revision = load_objects(store)
    clear(store, spread=spread)
    with pytest.raises(Conflict):
        save_objects(store, objects, {**objects, **by_key([pod("b")])}, revision)
    assert [entry.key for entry in store.list("/")[0]] == [GONE] * spread


def test_what_etcdctl_wrote_meanwhile_is_not_overwritten(store: sqlite.SqliteStore) -> None:
    save_objects(store, {}, by_key([pod("a")]), 0)
    objects, revision = load_objects(store)
    store.txn({}, {path(pod("a")): encode(pod("a", "node9"))})
    with pytest.raises(Conflict):
        save_objects(store, objects, by_key([pod("a", "node2")]), revision)


def test_update_computes_again_when_somebody_was_faster(store: sqlite.SqliteStore) -> None:
    seen = []

    def add_b(objects: Objects) -> Objects:
        seen.append(names(objects))
        if len(seen) == 1:
            save_objects(store, objects, {**objects, **by_key([pod("a")])}, store.revision())
        return {**objects, **by_key([pod("b")])}

    objects, revision = update(store, add_b)
    assert seen == [[], ["a"]]
    assert (names(objects), revision) == (["a", "b"], 2)
    assert load_objects(store) == (objects, revision)


def test_many_objects_at_once(store: sqlite.SqliteStore) -> None:
    many = by_key([pod(f"web-{number}") for number in range(300)])
    save_objects(store, {}, many, 0)
    fewer = dict(list(many.items())[:100])
    save_objects(store, many, fewer, 1)
    assert load_objects(store) == (fewer, 2)


def test_refresh_follows_changes(store: sqlite.SqliteStore) -> None:
    first = by_key([pod("a"), pod("b"), OWNED])
    save_objects(store, {}, first, 0)
    second = by_key([pod("a", "node2"), pod("c"), OWNED])
    save_objects(store, first, second, 1)
    assert refresh(store, first, 1) == (second, 2)
    third = {**second, **by_key([replace(OWNED, PublicIP="172.18.0.3")])}
    save_objects(store, second, third, 2)
    assert refresh(store, second, 2) == (third, 3)
    store.compact(3)
    assert refresh(store, first, 1) == (third, 3)


def test_refresh_after_a_writing_of_ours_finds_what_others_wrote_before_it(store: sqlite.SqliteStore) -> None:
    """They know no fence: a flanneld, or a person with etcdctl. What we wrote keeps its identity."""
    first = by_key([pod("a")])
    save_objects(store, {}, first, 0)
    foreign = pod("c")
    store.txn({}, {path(foreign): encode(foreign)})
    second = by_key([pod("a", "node2")])
    puts = differences(first, second)
    assert save_objects(store, first, second, 1) == 3
    found, revision = refresh(store, second, 1, ours=puts)
    assert (found, revision) == ({**second, **by_key([foreign])}, 3)
    assert all(found[key] is obj for key, obj in second.items())


# --- garbage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("/registry/pods/default/x", b"\x00\xff"),
        ("/registry/pods/default/x", b"[]"),
        ("/registry/pods/default/x", b"{}"),
        ("/registry/pods/default/x", b'{"kind":"Pod","metadata":{"name":7}}'),
        ("/registry/pods/default/x", encode(pod("y"))),
        ("/coreos.com/network/subnets/10.244.1.0-24", b'{"PublicIP":null}'),
    ],
)
def test_garbage_is_skipped_with_a_warning(store: sqlite.SqliteStore, key: str, value: bytes) -> None:
    save_objects(store, {}, by_key([pod("a"), pod("x")]), 0)
    both, revision = load_objects(store)
    store.txn({}, {key: value})
    with pytest.raises(InputError, match=key):
        decode(key, value)
    loaded: list[str] = []
    followed: list[str] = []
    assert load_objects(store, loaded.append) == refresh(store, both, revision, followed.append)
    assert len(loaded) == len(followed) == 1
    assert key in loaded[0]


def test_foreign_keys_are_left_alone(store: sqlite.SqliteStore) -> None:
    store.txn({}, {"/somebody/else": b"x", "/coreos.com/network/config": b'{"Network":"10.244.0.0/16"}'})
    warnings: list[str] = []
    objects, revision = load_objects(store, warnings.append)
    assert (objects, warnings) == ({}, [])
    save_objects(store, objects, by_key([pod("a")]), revision)
    assert [entry.key for entry in store.list("/")[0]] == [
        "/coreos.com/network/config", FENCE, path(pod("a")), "/somebody/else",
    ]  # fmt: skip


# --- what control leaves is what it finds -----------------------------------------------------------------------------

TOPOLOGIES = sorted(Path(__file__).parent.parent.joinpath("topologies").glob("*.yaml"))


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda path: str(path.stem))
def test_a_stored_cluster_is_complete(store: sqlite.SqliteStore, topology: Path) -> None:
    """Read back, every object is one that control has nothing to add to: else each sync would write the store."""
    loaded = manifests.load([manifests.Source(topology.name, topology.read_bytes())], topology.stem)
    facts = control.Facts(now="2026-01-31T12:00:00Z")
    made = control.complete(control.admit({}, loaded.objects, whole=True), facts)
    save_objects(store, {}, made, 0)
    objects, revision = load_objects(store, pytest.fail)
    assert objects.keys() == made.keys()
    again = control.complete(objects, facts)
    assert [key for key in objects if again[key] is not objects[key]] == []
    assert save_objects(store, objects, again, revision) == revision
