"""What `kubectl get -o yaml` printed of another cluster loads: its nodes, pods and ReplicaSets are taken over."""

# ruff: noqa: E501 - a row of a table is one line

import pytest

from nsnet import model
from nsnet.model import Node, ReplicaSet
from tests.controlled import apply, one, pods, refused, slices, up

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: default, uid: d-1, creationTimestamp: "2024-05-01T10:00:00Z", generation: 3}
spec:
  replicas: 2
  revisionHistoryLimit: 10
  selector: {matchLabels: {app: web}}
  strategy: {type: RollingUpdate}
  template:
    metadata: {creationTimestamp: null, labels: {app: web}}
    spec:
      containers:
      - {name: c, image: nginx, imagePullPolicy: Always, resources: {}, ports: [{containerPort: 80, protocol: TCP}]}
      dnsPolicy: ClusterFirst
      restartPolicy: Always
      securityContext: {}
      terminationGracePeriodSeconds: 30
status: {replicas: 2, readyReplicas: 1, observedGeneration: 3}
---
"""


def replicaset(name: str, replicas: int, image: str) -> str:
    label = name.removeprefix("web-")
    return f"""
apiVersion: apps/v1
kind: ReplicaSet
metadata:
  name: {name}
  labels: {{app: web, pod-template-hash: {label}}}
  annotations: {{deployment.kubernetes.io/revision: "{1 if replicas == 0 else 2}"}}
  ownerReferences: [{{apiVersion: apps/v1, kind: Deployment, name: web, uid: d-1, controller: true, blockOwnerDeletion: true}}]
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web, pod-template-hash: {label}}}}}
  template:
    metadata: {{creationTimestamp: null, labels: {{app: web, pod-template-hash: {label}}}}}
    spec:
      containers:
      - {{name: c, image: {image}, imagePullPolicy: Always, resources: {{}}, ports: [{{containerPort: 80, protocol: TCP}}]}}
      dnsPolicy: ClusterFirst
      restartPolicy: Always
      securityContext: {{}}
      terminationGracePeriodSeconds: 30
---
"""


def dumped_pod(name: str, owner: str, node: str, ip: str, phase: str = "Running") -> str:
    kind, _, owned_by = owner.partition("/")
    return f"""
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  uid: u-{name}
  labels: {{app: web, pod-template-hash: 6d4cf56db6}}
  ownerReferences: [{{apiVersion: apps/v1, kind: {kind}, name: {owned_by}, uid: x, controller: true}}]
spec:
  nodeName: {node}
  containers: [{{name: c, image: nginx, ports: [{{containerPort: 80, protocol: TCP}}]}}]
  terminationGracePeriodSeconds: 30
status: {{phase: {phase}, podIP: {ip}, podIPs: [{{ip: {ip}}}], hostIP: 10.0.0.1, qosClass: BestEffort,
  conditions: [{{type: Ready, status: "False", lastTransitionTime: "2024-05-01T10:00:00Z"}}]}}
---
"""


SVC = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.7.7, clusterIPs: [10.96.7.7], selector: {app: web}, ports: [{port: 80, protocol: TCP, targetPort: 80}]}
status: {loadBalancer: {}}
---
"""
PODS = dumped_pod("web-6d4cf56db6-aaaaa", "ReplicaSet/web-6d4cf56db6", "kind-worker", "10.244.1.7") + dumped_pod(
    "web-6d4cf56db6-bbbbb", "ReplicaSet/web-6d4cf56db6", "kind-worker2", "10.99.9.9"
)
SETS = replicaset("web-6d4cf56db6", 2, "nginx") + replicaset("web-599fdcfc8f", 0, "nginx:old")
DUMP = DEPLOYMENT + SETS + PODS + SVC


def test_pods_and_replicasets_are_adopted_not_doubled() -> None:
    objects = up(DUMP)
    assert pods(objects) == {
        "web-6d4cf56db6-aaaaa": "kind-worker 10.244.1.7",
        "web-6d4cf56db6-bbbbb": "kind-worker2 10.244.2.2",  # its address was none of this cluster's
    }
    sets = [item.metadata for item in model.of(objects, ReplicaSet)]
    assert sorted(meta.name for meta in sets if meta.namespace == "default") == ["web-599fdcfc8f", "web-6d4cf56db6"]
    assert slices(objects, "web") == ["10.244.1.7,10.244.2.2:80"]
    assert [item.metadata.name for item in model.of(objects, Node)] == ["kind-worker", "kind-worker2"]
    assert one(objects, "Service/web").spec.clusterIP == "10.96.7.7"  # type: ignore[attr-defined]
    doc = model.to_doc(one(objects, "Pod/web-6d4cf56db6-aaaaa"))  # type: ignore[arg-type]
    assert "qosClass" not in doc["status"]
    assert {item["type"]: item["status"] for item in doc["status"]["conditions"]}["Ready"] == "True"


def test_the_dump_again_and_a_change_of_it() -> None:
    stored = up(DUMP)
    assert pods(up(DUMP, stored)) == pods(stored)
    changed = apply(stored, DEPLOYMENT.replace("image: nginx", "image: nginx:new"))
    assert len([item for item in model.of(changed, ReplicaSet) if item.metadata.namespace == "default"]) == 3
    assert sum("terminating" not in line for line in pods(changed).values()) == 2


def test_pods_alone_stand_for_themselves() -> None:
    objects = up(PODS)
    assert list(pods(objects)) == ["web-6d4cf56db6-aaaaa", "web-6d4cf56db6-bbbbb"]
    assert one(objects, "Pod/web-6d4cf56db6-aaaaa").metadata.ownerReferences == ()  # type: ignore[attr-defined]


def test_ended_pods_stay_ended() -> None:
    objects = up(DEPLOYMENT + SETS + dumped_pod("old", "ReplicaSet/web-6d4cf56db6", "w", "10.244.1.7", "Failed") + SVC)
    assert one(objects, "Pod/old").status.phase == "Failed"  # type: ignore[attr-defined]
    assert len(pods(objects)) == 3
    assert len(slices(objects, "web")[0].split(",")) == 2


NODES = """
apiVersion: v1
kind: Node
metadata: {name: control, labels: {kubernetes.io/os: linux, node-role.kubernetes.io/control-plane: ""}}
spec: {podCIDR: 10.244.0.0/24, podCIDRs: [10.244.0.0/24], taints: [{key: node-role.kubernetes.io/control-plane, effect: NoSchedule}]}
status: {addresses: [{type: InternalIP, address: 10.0.0.4}], capacity: {cpu: "8"}, conditions: [{type: Ready, status: "False"}]}
---
apiVersion: v1
kind: Node
metadata: {name: worker}
spec: {podCIDR: 10.244.1.0/24}
status: {addresses: [{type: InternalIP, address: 172.18.0.9}]}
---
"""
STATIC = """
apiVersion: v1
kind: Pod
metadata: {name: etcd-control, namespace: kube-system, ownerReferences: [{apiVersion: v1, kind: Node, name: control, uid: c-1}]}
spec: {nodeName: control, hostNetwork: true, containers: [{name: etcd, image: etcd}]}
---
"""


def test_nodes_of_a_dump_are_the_nodes() -> None:
    objects = up(
        NODES + STATIC + "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: i}]}}"
    )
    found = {item.metadata.name: (item.spec.podCIDR, model.internal_ip(item)) for item in model.of(objects, Node)}
    assert found == {"control": ("10.244.0.0/24", "172.18.0.2"), "worker": ("10.244.1.0/24", "172.18.0.9")}
    assert pods(objects) == {"p": "worker 10.244.1.2"}  # the other one is tainted
    assert one(objects, "Pod/kube-system/etcd-control").status.podIP == "172.18.0.2"  # type: ignore[attr-defined]
    node = one(objects, "Node/control")
    assert isinstance(node, Node)
    assert model.condition(node.status.conditions, "Ready")
    assert node.metadata.ownerReferences == ()


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        (PODS.replace("kind-worker2", "node2").replace("kind-worker", "node1"), ["node1", "node2"]),
        (PODS.replace("kind-worker2", "node1").replace("kind-worker", "node1"), ["node1", "node2"]),
        (PODS, ["kind-worker", "kind-worker2"]),
        (
            "{apiVersion: nsnet/v1, kind: Cluster, nodes: [{name: extra}]}\n---\n" + NODES,
            ["control", "extra", "worker"],
        ),
    ],
)
def test_who_the_nodes_are(text: str, nodes: list[str]) -> None:
    assert [item.metadata.name for item in model.of(up(text), Node)] == nodes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{apiVersion: nsnet/v1, kind: Cluster, nodes: 2}\n---\n" + PODS, 'there is no node "kind-worker'),
        (NODES.replace("10.244.1.0/24", "10.4.1.0/24"), "Node worker: spec.podCIDR: 10.4.1.0/24 is outside podSubnet 10.244.0.0/16"),
        (NODES.replace("10.244.1.0/24", "10.244.0.0/24"), "Node worker: spec.podCIDR: 10.244.0.0/24 is taken by node control"),
        (SVC.replace("10.96.7.7", "172.30.1.1"), "(write networking: {serviceSubnet: 172.30.0.0/16}"),
    ],
)  # fmt: skip
def test_refused(text: str, said: str) -> None:
    assert said in refused(text)


def test_revisions_of_stateful_sets_are_taken_for_current() -> None:
    stateful = """
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec: {replicas: 1, serviceName: db, selector: {matchLabels: {app: db}},
  template: {metadata: {labels: {app: db}}, spec: {containers: [{name: c, image: i}]}}}
---
"""
    pod = (
        "{apiVersion: v1, kind: Pod, metadata: {name: db-0, labels: {app: db, controller-revision-hash: db-5d9c7}, "
        "ownerReferences: [{apiVersion: apps/v1, kind: StatefulSet, name: db, uid: s, controller: true}]}, "
        "spec: {nodeName: node2, containers: [{name: c, image: i}]}, status: {podIP: 10.244.2.44}}\n---\n"
    )
    objects = up(stateful + pod)
    assert pods(objects) == {"db-0": "node2 10.244.2.44"}
    assert pods(apply(objects, stateful.replace("image: i", "image: j"))) != pods(objects)


def test_slices_of_a_dump_are_written_anew_by_their_controller() -> None:
    slice_ = """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-x1x1x
  labels: {kubernetes.io/service-name: web, endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io}
  ownerReferences: [{apiVersion: v1, kind: Service, name: web, uid: w, controller: true}]
addressType: IPv4
endpoints: [{addresses: [10.99.9.9], conditions: {ready: true}}]
ports: [{port: 80}]
---
"""
    assert slices(up(DUMP + slice_), "web") == ["10.244.1.7,10.244.2.2:80"]
