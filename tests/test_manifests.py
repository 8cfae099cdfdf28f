"""Files → objects. Wrong input is in `tests/wrong/*.txt`: what was written, the whole error, the hint."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from nsnet import model
from nsnet.errors import InputError, ObjectError
from nsnet.manifests import MAX_BYTES, Loaded, Source, load, located, problems, schema
from nsnet.manifests.scalars import resolve
from nsnet.model import Key

HERE = Path(__file__).parent
PUBLISHED = HERE.parent.parent / "shared" / "manifests"


def read(text: str | bytes, name: str | None = None, file: str = "topo.yaml") -> Loaded:
    return load([Source(file, text.encode() if isinstance(text, str) else text)], name)


def one(text: str) -> Any:
    """The only object of a file besides the Cluster."""
    (obj,) = (obj for key, obj in read(text).objects.items() if key.kind != "Cluster")
    return obj


def refused(text: str | bytes, name: str | None = None, file: str = "topo.yaml") -> tuple[str, str]:
    with pytest.raises(InputError) as caught:
        read(text, name, file)
    assert type(caught.value) is InputError
    return str(caught.value), caught.value.hint


# --- wrong input ------------------------------------------------------------------------------------------------------


def rows() -> list[Any]:
    found = []
    for file in sorted(HERE.glob("wrong/*.txt")):
        for number, block in enumerate(file.read_text().split("=====\n")[1:], 1):
            text, _, outcome = block.rpartition("\nerror: ")
            error, _, hint = outcome.removesuffix("\n").partition("\nhint: ")
            found.append(pytest.param(text, error, hint, id=f"{file.stem}-{number}"))
    return found


@pytest.mark.parametrize(("text", "error", "hint"), rows())
def test_wrong_input(text: str, error: str, hint: str) -> None:
    assert refused(text) == (error, hint)
    assert "{" not in hint or "{{" not in hint  # no unfilled place


def test_every_group_of_wrong_input_is_read() -> None:
    assert len(rows()) > 150


def test_problems_lists_all_in_the_order_of_the_file() -> None:
    text = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  tipe: NodePort\n  ports: [{prot: 80}]\n"
    assert [str(error) for error in problems([Source("topo.yaml", text.encode())])] == [
        'topo.yaml:5:3: Service "web": spec.tipe: unknown field (did you mean type?)',
        'topo.yaml:6:12: Service "web": spec.ports[0].prot: unknown field (did you mean port?)',
        'topo.yaml:6:11: Service "web": spec.ports[0].port: is missing; an integer is wanted',
    ]
    assert problems([Source("topo.yaml", b"apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n")]) == []


def test_an_object_given_twice_names_both_files() -> None:
    text = b"apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n"
    with pytest.raises(InputError, match=r'^b.yaml:4:9: Namespace "shop": stands already at a.yaml:1:1$'):
        load([Source("a.yaml", text), Source("b.yaml", text)])


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
DEEP_ALIASES = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 120))


@pytest.mark.parametrize(
    ("data", "error", "hint"),
    [
        (b" " * (MAX_BYTES + 1), "the file has 16,777,217 bytes; at most 16,777,216 (16 MiB) are read",
         "a manifest is text written for kubectl: is this the right file? If so, split it in several"),
        (b"\x7fELF\x02\x01", "this is a program, not YAML", "unpack it first, or name the right file"),
        (b"\x1f\x8b\x08", "this is gzip data, not YAML", "unpack it first, or name the right file"),
    ],
)  # fmt: skip
def test_files_that_are_refused_at_once(data: bytes, error: str, hint: str) -> None:
    assert refused(data) == (f"topo.yaml:1:1: {error}", hint)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"a: 1\nb: \x00\n", "topo.yaml:2:4: the character U+0000 cannot stand in YAML"),
        (b"a: \x07\n", "topo.yaml:1:4: the character U+0007 cannot stand in YAML"),
        (b"a: 1\nname: caf\xe9\n", "topo.yaml:2:10: the byte 0xe9 is not UTF-8"),
        ("a: é\nb: ".encode() + b"\xff\n", "topo.yaml:2:4: the byte 0xff is not UTF-8"),
        (b"[" * 1_000_000, "topo.yaml:1:101: nested more than 100 deep"),
        (b"- " * 1_000_000, "topo.yaml:1:201: nested more than 100 deep"),
        (b'{"a":' * 1_000_000, "topo.yaml:1:501: nested more than 100 deep"),
        (BOMB.encode(), "topo.yaml:6:20: the aliases stand for more than 500,000 values"),
        (DEEP_ALIASES.encode(), "topo.yaml:100:12: nested more than 100 deep"),
    ],
)  # fmt: skip
def test_hostile_files(data: bytes, error: str) -> None:
    assert refused(data)[0] == error


@pytest.mark.parametrize(
    ("spec", "each"),
    [
        ("spec:", "  frobnicate-{}: 1"),
        ("spec:", "  frobnicate-{}: {{a: [1]}}"),
        ("spec:\n  externalIPs:", "  - {}"),
        ("spec:\n  ports:", "  - a{}"),
        ("spec:\n  ports:", "  - {{name: n{}}}"),
        ("spec:\n  ports:", "  - {{name: n{}, port: null}}"),
        ("spec:\n  ports:", "  - {{port: 99999999999999999999{}}}"),
    ],
)
def test_two_thousand_wrong_things_take_no_time(spec: str, each: str) -> None:
    wrong = "\n".join(each.format(number) for number in range(2_000))
    text = f"apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\n{spec}\n{wrong}\n"
    assert len(problems([Source("topo.yaml", text.encode())])) <= 101


def test_a_foreign_kind_with_too_much_in_its_metadata() -> None:
    """What has not been looked at is not let in."""
    fields = "".join(f"  frobnicate-{n}: 1\n" for n in range(200))
    text = f"apiVersion: acme.example/v1\nkind: Robot\nmetadata:\n{fields}  name: [1]\n"
    assert len(problems([Source("topo.yaml", text.encode())])) == 100


# --- what YAML says to kubectl ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", True), ("On", True), ("y", True), ("TRUE", True), ("no", False), ("off", False), ("N", False),
        ("yEs", "yEs"), ("yesterday", "yesterday"), ("", None), ("~", None), ("Null", None), ("none", "none"),
        ("80", 80), ("-1", -1), ("+7", 7), ("0", 0), ("0644", 420), ("0o17", 15), ("0x1F", 31), ("0b101", 5),
        ("1_000", 1000), ("08", 8.0), ("1.10", 1.1), (".5", 0.5), ("1.", 1.0), ("1e3", 1000.0), ("6.02E+23", 6.02e23),
        ("12:30:45", "12:30:45"), ("2026-01-02", "2026-01-02"), ("1.2.3", "1.2.3"), ("10.0.0.1", "10.0.0.1"),
        ("-", "-"), (".", "."), ("0x", "0x"), ("0o9", "0o9"), ("1e999", "1e999"), ("9" * 5000, "9" * 5000), ("=", "="),
    ],
)  # fmt: skip
def test_plain_scalars(text: str, value: object) -> None:
    assert (type(resolve(text)), resolve(text)) == (type(value), value)


def test_the_type_that_a_field_wants_decides() -> None:
    pod = one("""
apiVersion: v1
kind: Pod
metadata: {name: a, labels: {version: "1.10", on: "no"}}
spec:
  terminationGracePeriodSeconds: 1e1
  hostNetwork: yes
  containers:
  - name: a
    ports: [{containerPort: 0x50}]
    resources: {limits: {cpu: 1, memory: 64Mi}}
    volumeMounts: []
  volumes: [{name: v, configMap: {name: c, defaultMode: 0644}}]
""")
    assert pod.metadata.labels == {"version": "1.10", "true": "no"}
    assert pod.spec.terminationGracePeriodSeconds == 10
    assert pod.spec.hostNetwork is True
    assert pod.spec.containers[0].ports[0].containerPort == 80
    assert pod.raw["spec"]["volumes"][0]["configMap"]["defaultMode"] == 420
    assert pod.raw["spec"]["containers"][0]["resources"]["limits"] == {"cpu": 1, "memory": "64Mi"}


def test_anchors_and_merges() -> None:
    pod = one("""
apiVersion: v1
kind: Pod
metadata: {name: a, labels: &labels {app: web, tier: front}}
spec:
  nodeSelector: {<<: [*labels, {zone: a, app: other}], tier: back}
  containers:
  - &main {name: a, image: x, ports: [{containerPort: 80}]}
  - {<<: *main, name: b}
""")
    assert pod.spec.nodeSelector == {"tier": "back", "app": "web", "zone": "a"}
    assert [(c.name, c.image, c.ports[0].containerPort) for c in pod.spec.containers] == [
        ("a", "x", 80),
        ("b", "x", 80),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(encoding: str) -> None:
    text = "apiVersion: v1\r\nkind: ConfigMap\r\nmetadata: {name: a}\r\ndata: {k: café 😀}\r\n"
    assert read(text.encode(encoding)).objects[Key("ConfigMap", "default", "a")].raw["data"] == {"k": "café 😀"}


def test_json_with_tabs_and_surrogate_pairs() -> None:
    text = '{\n\t"apiVersion": "v1",\n\t"kind": "ConfigMap",\n\t"metadata": {"name": "a"},\n'
    text += '\t"data": {"k": "\\ud83d\\ude00 \\\\ud83d\\\\ude00 \\/"}\n}\n'
    assert one(text).raw["data"] == {"k": "😀 \\ud83d\\ude00 /"}


# --- streams ----------------------------------------------------------------------------------------------------------

DUMP = """
apiVersion: v1
kind: List
metadata: {resourceVersion: "", selfLink: ""}
items:
- apiVersion: v1
  kind: Pod
  metadata:
    creationTimestamp: "2026-01-02T03:04:05Z"
    generateName: web-6d4cf56db6-
    labels: {app: web, pod-template-hash: 6d4cf56db6}
    managedFields:
    - {apiVersion: v1, fieldsType: FieldsV1, fieldsV1: {"f:metadata": {"f:labels": {".": {}}}}, manager: kubelet,
       operation: Update, subresource: status, time: "2026-01-02T03:04:05Z"}
    name: web-6d4cf56db6-x7k2p
    namespace: shop
    ownerReferences:
    - {apiVersion: apps/v1, blockOwnerDeletion: true, controller: true, kind: ReplicaSet, name: web-6d4cf56db6, uid: u1}
    resourceVersion: "4711"
    uid: u2
  spec:
    containers: [{name: web, image: nginx, ports: [{containerPort: 80, protocol: TCP}], resources: {}}]
    nodeName: kind-worker
    tolerations:
    - {effect: NoExecute, key: node.kubernetes.io/not-ready, operator: Exists, tolerationSeconds: 300}
  status:
    aFieldOfTomorrow: {x: 1}
    conditions: [{lastProbeTime: null, status: "True", type: Ready}]
    hostIP: 172.18.0.3
    phase: Running
    podIP: 10.244.1.7
    podIPs: [{ip: 10.244.1.7}]
- apiVersion: discovery.k8s.io/v1
  kind: EndpointSlice
  metadata: {name: web-abcde, namespace: shop, labels: {kubernetes.io/service-name: web}}
  addressType: IPv4
  endpoints: null
  ports: null
- apiVersion: v1
  kind: Service
  metadata: {name: web, namespace: shop, creationTimestamp: null}
  spec:
    clusterIP: 10.96.12.34
    clusterIPs: [10.96.12.34]
    internalTrafficPolicy: Cluster
    ipFamilies: [IPv4]
    ipFamilyPolicy: SingleStack
    ports: [{port: 80, protocol: TCP, targetPort: 80}]
    selector:
    sessionAffinity: None
    type: ClusterIP
  status: {loadBalancer: {}}
"""


def test_a_dump_loads_unchanged() -> None:
    loaded = read(DUMP)
    pod = loaded.objects[Key("Pod", "shop", "web-6d4cf56db6-x7k2p")]
    assert isinstance(pod, model.Pod)
    assert pod.metadata.ownerReferences == (model.OwnerReference("ReplicaSet", "web-6d4cf56db6", "apps/v1", "u1"),)
    assert (pod.spec.nodeName, pod.status.podIP, model.is_ready(pod)) == ("kind-worker", "10.244.1.7", True)
    assert pod.raw["metadata"]["managedFields"][0]["fieldsV1"] == {"f:metadata": {"f:labels": {".": {}}}}
    assert pod.raw["status"]["aFieldOfTomorrow"] == {"x": 1}
    endpoints = loaded.objects[Key("EndpointSlice", "shop", "web-abcde")]
    assert isinstance(endpoints, model.EndpointSlice)
    assert endpoints.endpoints == ()
    assert loaded.notes == ("not declared, so created: Namespace shop",)
    assert {key.kind for key in loaded.objects} == {"Pod", "EndpointSlice", "Service", "Cluster"}


def test_lists_of_a_kind_in_lists() -> None:
    text = """
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: NamespaceList
  items: [{metadata: {name: a}}, {metadata: {name: b}}]
- {apiVersion: v1, kind: ConfigMapList, items: null}
---
apiVersion: example.com/v1
kind: AllowList
metadata: {name: mine}
"""
    assert set(read(text).objects) == {
        Key("Namespace", "", "a"), Key("Namespace", "", "b"), Key("AllowList", "default", "mine"),
        Key("Cluster", "", "topo"),
    }  # fmt: skip


def test_a_list_without_items_is_a_cluster_without_objects() -> None:
    assert list(read("apiVersion: v1\nkind: List\nitems: []\n").objects) == [Key("Cluster", "", "topo")]


def test_namespaces_are_filled_in_and_taken_out() -> None:
    text = """
{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: a, namespace: kube-system}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop, namespace: shop}}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: "system:node", namespace: x}}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: t}
spec: {scope: Cluster, names: {kind: Thing}}
---
{apiVersion: example.com/v1, kind: Thing, metadata: {name: t}}
---
{apiVersion: example.com/v1, kind: Other, metadata: {name: o, anything: goes}, spec: {x: null}}
"""
    loaded = read(text)
    assert [str(key) for key in loaded.objects if key.kind != "Cluster"] == [
        "ConfigMap default/a", "ConfigMap kube-system/a", "Namespace shop", "ClusterRole system:node",
        "CustomResourceDefinition t", "Thing t", "Other default/o",
    ]  # fmt: skip
    assert loaded.objects[Key("Other", "default", "o")].raw["spec"] == {"x": None}
    assert loaded.notes == (
        "not emulated: ClusterRole system:node",
        "not emulated: CustomResourceDefinition t",
        "not emulated: Other default/o",
        "not emulated: Thing t",
    )


def test_a_namespace_for_objects_that_say_none() -> None:
    """As kubectl apply -n; what belongs to no namespace is left alone."""
    said = "{apiVersion: v1, kind: ConfigMap, metadata: {name: b, namespace: shop}}"
    docs = f"{{apiVersion: v1, kind: ConfigMap, metadata: {{name: a}}}}\n---\n{said}"
    node = "\n---\n{apiVersion: v1, kind: Node, metadata: {name: node1}}"
    found = load([Source("x.yaml", (docs + node).encode())], "demo", "shop").objects
    assert {Key("ConfigMap", "shop", "a"), Key("ConfigMap", "shop", "b"), Key("Node", "", "node1")} <= set(found)
    with pytest.raises(InputError) as refused:
        load([Source("x.yaml", docs.encode())], "demo", "ops")
    assert str(refused.value) == 'x.yaml:3:66: ConfigMap "shop/b": metadata.namespace: is not ops, as -n says'


def test_notes() -> None:
    claims = "---\n".join(
        f"{{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {{name: c{n}, namespace: shop}}}}\n"
        for n in range(5)
    )
    pod = """---
apiVersion: v1
kind: Pod
metadata: {name: a, annotations: {nsnet/redy: "false", nsnet/of-my-own: x}}
spec: {containers: [{name: a}]}
"""
    assert read(claims + pod).notes == (
        "not emulated: 5 PersistentVolumeClaim (shop/c0, shop/c1, shop/c2, …)",
        "not declared, so created: Namespace shop",
        'Pod "a": annotation nsnet/redy has no effect (did you mean nsnet/ready?)',
    )


def test_namesakes_of_other_groups_are_told_apart() -> None:
    text = """
{apiVersion: serving.knative.dev/v1, kind: Service, metadata: {name: web}, spec: {template: {}}}
---
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {ports: [{port: 80}]}}
---
{apiVersion: kind.x-k8s.io/v1alpha4, kind: Cluster, nodes: [{role: worker}]}
---
{apiVersion: kubeproxy.config.k8s.io/v1alpha1, kind: KubeProxyConfiguration, mode: nftables}
---
{apiVersion: kubeadm.k8s.io/v1beta4, kind: ClusterConfiguration, networking: {podSubnet: 10.0.0.0/8}}
"""
    objects = read(text).objects
    assert [str(key) for key in objects] == [
        "Service.serving.knative.dev default/web", "Service default/web", "Cluster.kind.x-k8s.io cluster.kind.x-k8s.io",
        "KubeProxyConfiguration kube-proxy", "ClusterConfiguration clusterconfiguration", "Cluster topo",
    ]  # fmt: skip
    assert isinstance(objects[Key("Service", "default", "web")], model.Service)
    assert isinstance(objects[Key("Service.serving.knative.dev", "default", "web")], model.Other)
    assert len(model.of(objects, model.Cluster)) == 1


def test_every_object_is_what_its_document_says() -> None:
    loaded = read("{apiVersion: v1, kind: ConfigMap, metadata: {name: a}, data: {k: null}, immutable: null}\n")
    assert model.to_doc(loaded.objects[Key("ConfigMap", "default", "a")]) == {
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "default"}, "data": {"k": ""},
    }  # fmt: skip


# --- the Cluster ------------------------------------------------------------------------------------------------------

CONFIG = "{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}\n"


@pytest.mark.parametrize(
    ("text", "name", "file", "cluster"),
    [
        (CONFIG, None, "topologies/quickstart.yaml", "quickstart"),
        (CONFIG, "lab", "-", "lab"),
        ("{apiVersion: nsnet/v1, kind: Cluster, metadata: {name: demo}}", "lab", "x.yaml", "demo"),
        ("{apiVersion: nsnet/v1, kind: Cluster, nodes: 3}", "lab", "x.yaml", "lab"),
        ("{apiVersion: nsnet/v1, kind: Cluster, nodes: 3}", None, "x.yaml", "x"),
    ],
)
def test_the_name_of_the_cluster(text: str, name: str | None, file: str, cluster: str) -> None:
    objects = read(text, name, file).objects
    assert model.cluster_of(objects).metadata.name == cluster
    assert [key for key in objects if key.kind == "Cluster"] == [Key("Cluster", "", cluster)]


@pytest.mark.parametrize(
    ("name", "file", "error", "hint"),
    [
        (None, "-", "the cluster has no name: nothing says one on standard input", ""),
        (None, "My_Topo v2.yaml", 'My_Topo v2.yaml: "My_Topo v2" cannot be the name of a cluster',
         "lower-case letters, digits and -, at most 20 characters: my-topo-v2; "),
        (None, "azure-vote-all-in-one-redis.yaml",
         'azure-vote-all-in-one-redis.yaml: "azure-vote-all-in-one-redis" cannot be the name of a cluster',
         "lower-case letters, digits and -, at most 20 characters: azure-vote-all-in-on; "),
        ("A", "x.yaml", '"A" cannot be the name of a cluster',
         "lower-case letters, digits and -, at most 20 characters: a; "),
    ],
)  # fmt: skip
def test_names_that_no_cluster_can_have(name: str | None, file: str, error: str, hint: str) -> None:
    ways = "write `metadata: {name: …}` in a Cluster document, or give --cluster"
    assert refused(CONFIG, name, file) == (error, hint + ways)


def test_no_file_at_all() -> None:
    assert list(load([], "lab").objects) == [Key("Cluster", "", "lab")]
    with pytest.raises(InputError, match=r"^no manifest is given$"):
        load([])


INTERFACE = """
apiVersion: nsnet/v1
kind: Cluster
metadata: {name: demo}             # default: the file's stem
networking:                        # kubeadm's and kind's words
  podSubnet: 10.244.0.0/16         # flannel's Network; a pair for dual stack
  serviceSubnet: 10.96.0.0/16
  dnsDomain: cluster.local
  kubeProxyMode: iptables          # iptables | nftables | userspace
  nodePortRange: 30000-32767
  clusterDNS: 10.96.0.10           # default: the tenth address of serviceSubnet
flannel:                           # flannel's net-conf.json without Network
  SubnetLen: 24
  Backend: {Type: vxlan, VNI: 1, Port: 8472, DirectRouting: false}
bridge: cni0                       # docker0 in older texts
loadBalancer: {addresses: [172.18.0.200-172.18.0.250]}
underlay:
  networks: [{name: rack-a, subnet: 172.18.0.0/24, mtu: 1500}]   # several are joined by a router namespace
  links: [{between: [node1, rack-a], delay: 5ms, loss: 1%, rate: 100mbit, mtu: 1400}]
nodes:                             # or a number
  - {name: node1, network: rack-a, address: 172.18.0.2, podCIDR: 10.244.1.0/24,
     labels: {topology.kubernetes.io/zone: a}}
hosts: [{name: client, network: rack-a, address: 172.18.0.100}]  # outside the cluster
checks:
  - {name: web by name, from: pod/a, to: "http://web/hostname", expect: ok}
  - {name: db is closed, from: host/client, to: "tcp://172.18.0.2:30306", expect: refused}
"""


def test_the_cluster_document_of_the_interface() -> None:
    cluster = model.cluster_of(read(INTERFACE).objects)
    assert cluster.networking == model.Networking(kubeProxyMode="iptables", clusterDNS="10.96.0.10")
    assert cluster.flannel == model.Flannel(SubnetLen=24, Backend=model.Backend(Port=8472))
    assert cluster.underlay.links == (model.LinkSpec(("node1", "rack-a"), "5ms", "1%", "100mbit", 1400),)
    assert isinstance(cluster.nodes, tuple)
    assert cluster.nodes[0].labels == {"topology.kubernetes.io/zone": "a"}
    assert cluster.checks[1] == model.Check("db is closed", "tcp://172.18.0.2:30306", "host/client", "refused")


# --- places -----------------------------------------------------------------------------------------------------------

PLACED = """\
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Service
  metadata:
    name: web
    namespace: shop
    annotations:
      nsnet/ip: 10.0.0.1
    labels: &labels
      app.kubernetes.io/name: web
  spec:
    selector: *labels
    type: NodePort
    ports:
    - name: a
      port: 80
      nodePort: 30081
    - {name: b, port: 81, nodePort: 30080}
"""
WEB = Key("Service", "shop", "web")


@pytest.mark.parametrize(
    ("field", "place"),
    [
        ("spec.ports[0].nodePort", "21:17"), ("spec.ports[1].nodePort", "22:37"), ("spec.ports[1]", "22:7"),
        ("spec.ports[7].nodePort", "18:5"), ("spec.ports", "18:5"), ("spec.clusterIP", "15:3"), ("", "6:3"),
        ("metadata.annotations[nsnet/ip]", "12:17"), ("metadata.annotations.nsnet/ip", "12:17"),
        ("metadata.labels.app.kubernetes.io/name", "14:31"), ("spec.selector[app.kubernetes.io/name]", "14:31"),
        ("status.nothing[here", "6:3"), ("metadata.annotations[nsnet/ip", "11:5"),
    ],
)  # fmt: skip
def test_located(field: str, place: str) -> None:
    error = located(ObjectError(WEB, field, "taken", "take another"), read(PLACED))
    where = f"{field}: " if field else ""
    assert (str(error), error.hint) == (f'topo.yaml:{place}: Service "shop/web": {where}taken', "take another")


def test_located_where_no_file_says_it() -> None:
    loaded = load([Source("topo.yaml", CONFIG.encode())])
    error = located(ObjectError(Key("Cluster", "", "topo"), "nodes", "too many", "fewer"), loaded)
    assert (str(error), error.hint) == ('Cluster "topo": nodes: too many', "fewer")


# --- the schema -------------------------------------------------------------------------------------------------------


def declared(cls: type[msgspec.Struct]) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(cls)} - {"raw"}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (model.ServiceSpec, "ServiceSpec"), (model.ServicePort, "ServicePort"), (model.PodSpec, "PodSpec"),
        (model.PodStatus, "PodStatus"), (model.Container, "Container"), (model.ContainerPort, "ContainerPort"),
        (model.ObjectMeta, "ObjectMeta"), (model.Endpoint, "Endpoint"), (model.NodeSpec, "NodeSpec"),
        (model.NodeStatus, "NodeStatus"), (model.EndpointSlice, "EndpointSlice"), (model.Endpoints, "Endpoints"),
        (model.EndpointAddress, "EndpointAddress"), (model.Toleration, "Toleration"), (model.Taint, "Taint"),
    ],
)  # fmt: skip
def test_the_fields_that_structs_declare_are_kubernetes_own(ours: type[msgspec.Struct], theirs: str) -> None:
    missing = declared(ours) - set(schema.fields(theirs).types) - {"apiVersion", "kind"}
    assert missing == set()


def test_every_type_of_the_schema_is_defined() -> None:
    types = schema._data()["types"]
    words = {word for fields in types.values() for said in fields.values() for word in said.strip("[{}]").split("|")}
    assert words - set(types) - {"string", "integer", "number", "boolean", "quantity", "any"} == set()


# --- what others wrote ------------------------------------------------------------------------------------------------

NOT_VALID = {  # as published; kubectl apply refuses it too
    "ingress-nginx-examples/ingress-with-tls.yaml":
        'spec.rules[0].host: "registry.<your domain>" is not a host name',
}  # fmt: skip


def published() -> list[str]:
    return sorted(str(file.relative_to(PUBLISHED)) for file in PUBLISHED.rglob("*.y*ml"))


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="needs ../shared/manifests")
@pytest.mark.parametrize("file", published())
def test_published_manifests(file: str) -> None:
    source = Source(file, (PUBLISHED / file).read_bytes())
    if file in NOT_VALID:
        assert NOT_VALID[file] in refused(source.data)[0]
        return
    objects = load([source], "test").objects
    assert len(objects) > 1
    dump = msgspec.json.encode(
        {"apiVersion": "v1", "kind": "List", "items": [model.to_doc(o) for o in objects.values()]}
    )
    assert {key: model.to_doc(obj) for key, obj in load([Source("dump.json", dump)]).objects.items()} == {
        key: model.to_doc(obj) for key, obj in objects.items()
    }


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="needs ../shared/manifests")
@pytest.mark.parametrize(
    "folder",
    sorted(
        {file.split("/")[0] for file in published()} - {"docs-networking", "netpol-recipes", "ingress-nginx-examples"}
    ),
)
def test_published_folders_load_as_one(folder: str) -> None:
    sources = [Source(file.name, file.read_bytes()) for file in sorted((PUBLISHED / folder).glob("*.y*ml"))]
    assert len(load(sources, "test").objects) > len(sources) / 2
