"""Policy sets with what they let pass, written by hand: the table that walk, packets and the decision are held to.

A fixture is a small cluster; a `Case` a set of policies with its truth table. The table starts with everything open;
each line closes (`X`) or opens (`.`) what it names, the last one that fits wins:

    X * -> x/*            everybody to every pod of x, on every port
    . v/b -> x/a 80/tcp   but for v/b to x/a on that port

What no policy can close stands in no line: a pod to itself, and a pod's own node to it.
"""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

import msgspec

from nsnet import control, manifests, model, names
from nsnet.model import Key, Object, Objects

Flow = tuple[str, str, int, str]  # from, to, port, protocol


class Case(NamedTuple):
    name: str
    policies: str
    table: str


class End(NamedTuple):
    netns: str
    ip: str
    node: str  # where it is; a node: itself; empty outside


class Fixture(NamedTuple):
    """`document`: the cluster; `ports` of every pod are asked for, and `doors` of nodes, as `node1:30080`."""

    name: str
    document: str
    ports: tuple[tuple[int, str], ...]
    cases: tuple[Case, ...]
    doors: tuple[str, ...] = ()


def objects_of(fixture: Fixture, mode: str = "iptables", policy: str = "{}") -> dict[Key, Object]:
    """The cluster without any policy, complete."""
    head = (
        f"{{apiVersion: nsnet/v1, kind: Cluster, metadata: {{name: {fixture.name}}}, nodes: 3, "
        f"networking: {{kubeProxyMode: {mode}}}, dns: {{enabled: false}}, policy: {policy}}}\n---\n"
    )
    source = manifests.Source(f"{fixture.name}.yaml", (head + fixture.document).encode())
    loaded = manifests.load([source], fixture.name)
    return control.complete(control.admit({}, loaded.objects, whole=True))


def with_policies(objects: Objects, text: str) -> dict[Key, Object]:
    """The cluster with these policies and no others. A document of another kind replaces the one that is there."""
    kept = {key: obj for key, obj in objects.items() if key.kind != "NetworkPolicy"}
    return {**kept, **documents(text)}


def documents(text: str) -> dict[Key, Object]:
    """Policies in short: `shop/name` and the spec of each document, as in `shop/deny: {podSelector: {}}`."""
    if not text:
        return {}
    found = manifests.load([manifests.Source("policies.yaml", _long(text).encode())], "x").objects
    return {key: obj for key, obj in found.items() if key.kind == "NetworkPolicy"}


def _long(text: str) -> str:
    docs = []
    for line in _joined(text):
        head, _, spec = line.partition(": ")
        namespace, _, name = head.partition("/")
        docs.append(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n"
            f"metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
        )
    return "---\n".join(docs)


def _joined(text: str) -> Iterator[str]:
    """Lines that begin with a space go on with the one before."""
    line = ""
    for part in text.strip("\n").splitlines():
        if part.startswith(" "):
            line += " " + part.strip()
        else:
            if line:
                yield line
            line = part
    if line:
        yield line


# --- who asks whom ----------------------------------------------------------------------------------------------------


def ends(objects: Objects) -> dict[str, End]:
    """Pods as `x/a`, nodes and hosts by their names."""
    cluster = model.cluster_of(objects)
    name = cluster.metadata.name
    found = {
        f"{pod.metadata.namespace}/{pod.metadata.name}": End(
            names.node_netns(name, pod.spec.nodeName)
            if pod.spec.hostNetwork
            else names.pod_netns(name, pod.metadata.namespace, pod.metadata.name),
            pod.status.podIP,
            pod.spec.nodeName,
        )
        for pod in model.of(objects, model.Pod)
        if pod.metadata.namespace != "kube-system"
    }
    for node in model.of(objects, model.Node):
        node_name = node.metadata.name
        found[node_name] = End(names.node_netns(name, node_name), model.internal_ip(node), node_name)
    for host in cluster.hosts or ():
        found[host.name] = End(names.host_netns(name, host.name), host.address, "")
    return found


def flows(fixture: Fixture, who: Mapping[str, End]) -> list[Flow]:
    """All but hosts to every pod with a network of its own, on every port; hosts to node ports, pods to services."""
    pods = [label for label in who if "/" in label and not label.endswith("host")]
    starts = [label for label in who if who[label].node]
    found = [(start, to, port, protocol) for start in starts for to in pods for port, protocol in fixture.ports]
    for door in fixture.doors:
        found += [(start, door, 0, "tcp") for start in (["client"] if door.startswith("node") else pods)]
    return found


def address(flow: Flow, who: Mapping[str, End]) -> tuple[str, int]:
    """Where its packet is sent to."""
    _, to, port, _ = flow
    where, _, door = to.partition(":")
    if door:
        return (who[where].ip if where in who else where), int(door)
    return who[to].ip, port


def expected(case: Case, every: list[Flow], who: Mapping[str, End]) -> dict[Flow, bool]:
    """Flow → does it pass?"""
    lines = [_parsed(line) for line in case.table.strip().splitlines()]
    return {flow: _passes(lines, flow, who) for flow in every}


class _Line(NamedTuple):
    is_open: bool
    start: str
    to: str
    ports: tuple[str, ...]


def _parsed(line: str) -> _Line:
    sign, start, _, to, *ports = line.split()
    return _Line(sign == ".", start, to, tuple(ports[0].split(",")) if ports else ("*",))


def _passes(lines: list[_Line], flow: Flow, who: Mapping[str, End]) -> bool:
    start, to, _, _ = flow
    if ":" in to:
        to = ""
    elif (
        start == to
        or ("/" not in start and who[start].node == who[to].node)
        or (start.endswith("host") and who[start].node == who[to].node)
    ):
        return True
    fits = [line.is_open for line in lines if _fits(line, flow)]
    return fits[-1] if fits else True


def _fits(line: _Line, flow: Flow) -> bool:
    start, to, port, protocol = flow
    return (
        any(fnmatchcase(start, pattern) for pattern in line.start.split(","))
        and any(fnmatchcase(to, pattern) for pattern in line.to.split(","))
        and any(fnmatchcase(f"{port}/{protocol}", pattern) for pattern in line.ports)
    )


# --- nine pods --------------------------------------------------------------------------------------------------------


def _nine() -> str:
    """x, v and z with a, b and c each; a on node1, b on node2, c on node3. `web` is 80, but on c it is 81, and `alt` the other."""  # noqa: E501 - a document is a line
    docs = [
        f"{{apiVersion: v1, kind: Namespace, metadata: {{name: {space}, labels: {{ns: {space}}}}}}}" for space in "xvz"
    ]
    for space in "xvz":
        for number, pod in enumerate("abc", 1):
            web, alt = (81, 80) if pod == "c" else (80, 81)
            docs.append(
                f"{{apiVersion: v1, kind: Pod, metadata: {{name: {pod}, namespace: {space}, labels: {{pod: {pod}}}}}, "
                f"spec: {{nodeName: node{number}, containers: [{{name: c, ports: ["
                f"{{containerPort: {web}, name: web}}, {{containerPort: {alt}, name: alt}}, "
                f"{{containerPort: 80, protocol: UDP, name: dgram}}, {{containerPort: 81, protocol: UDP}}]}}]}}}}"
            )
    return "\n---\n".join(docs)


_PORTS = ((80, "tcp"), (81, "tcp"), (80, "udp"), (81, "udp"), (80, "sctp"))

NINE = Fixture("nine", _nine(), _PORTS, (
    Case("no policy", "", ""),
    Case("a policy with nothing in it denies ingress, of all pods", "x/p: {}", "X * -> x/*"),
    Case("deny ingress", "x/p: {podSelector: {}, policyTypes: [Ingress]}", "X * -> x/*"),
    Case("deny egress", "x/p: {podSelector: {}, policyTypes: [Egress]}", "X x/* -> *"),
    Case("deny both", "x/p: {podSelector: {}, policyTypes: [Ingress, Egress]}", "X * -> x/*\nX x/* -> *"),
    Case("deny of one pod", "x/p: {podSelector: {matchLabels: {pod: a}}}", "X * -> x/a"),
    Case("matchLabels null is all", "x/p: {podSelector: {matchLabels: }}", "X * -> x/*"),
    Case("ingress: [] is nobody", "x/p: {ingress: []}", "X * -> x/*"),
    Case("ingress: [{}] is everybody", "x/p: {ingress: [{}]}", ""),
    Case("from: [] is everybody", "x/p: {ingress: [{from: []}]}", ""),
    Case("egress: [] without policyTypes isolates ingress alone", "x/p: {egress: []}", "X * -> x/*"),
    Case("egress: [{}] without policyTypes closes ingress", "x/p: {egress: [{}]}", "X * -> x/*"),
    Case(
        "rules of a direction that is not in policyTypes are ignored",
        "x/p: {policyTypes: [Ingress], ingress: [{}], egress: [{to: [{podSelector: {matchLabels: {pod: q}}}]}]}",
        "",
    ),
    Case("pods of this namespace", "x/p: {ingress: [{from: [{podSelector: {}}]}]}", "X * -> x/*\n. x/* -> x/*"),
    Case(
        "one pod of this namespace",
        "x/p: {ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]}",
        "X * -> x/*\n. x/b -> x/*",
    ),
    Case(
        "a namespace by its name",
        "x/p: {ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: v}}}]}]}",
        "X * -> x/*\n. v/* -> x/*",
    ),
    Case(
        "a namespace by its label",
        "x/p: {ingress: [{from: [{namespaceSelector: {matchLabels: {ns: z}}}]}]}",
        "X * -> x/*\n. z/* -> x/*",
    ),
    Case(
        "all namespaces: every pod, and nobody outside",
        "x/p: {ingress: [{from: [{namespaceSelector: {}}]}]}",
        "X * -> x/*\n. ?/? -> x/*",
    ),
    Case(
        "both in one peer",
        "x/p: {ingress: [{from: [{namespaceSelector: {matchLabels: {ns: v}}, podSelector: {matchLabels: {pod: b}}}]}]}",
        "X * -> x/*\n. v/b -> x/*",
    ),
    Case(
        "both in two peers",
        "x/p: {ingress: [{from: [{namespaceSelector: {matchLabels: {ns: v}}}, {podSelector: {matchLabels: {pod: b}}}]}]}",  # noqa: E501 - a document is a line
        "X * -> x/*\n. v/* -> x/*\n. x/b -> x/*",
    ),
    Case(
        "In, and a key that is absent",
        "x/p: {ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: ns, operator: In, values: [x, z]}]}}]}]}",  # noqa: E501 - a document is a line
        "X * -> x/*\n. x/*,z/* -> x/*",
    ),
    Case(
        "NotIn",
        "x/p: {ingress: [{from: [{namespaceSelector: {}, podSelector: {matchExpressions: "
        "[{key: pod, operator: NotIn, values: [a]}]}}]}]}",
        "X * -> x/*\n. ?/b,?/c -> x/*",
    ),
    Case(
        "NotIn matches where the key is absent",
        "x/p: {podSelector: {matchExpressions: [{key: tier, operator: NotIn, values: [db]}]}}",
        "X * -> x/*",
    ),
    Case(
        "Exists and DoesNotExist",
        "x/p: {ingress: [{from: [{podSelector: {matchExpressions: [{key: pod, operator: Exists}]}}]}]}\n"
        "v/p: {ingress: [{from: [{podSelector: {matchExpressions: [{key: pod, operator: DoesNotExist}]}}]}]}",
        "X * -> x/*,v/*\n. x/* -> x/*",
    ),
    Case(
        "matchLabels and matchExpressions are one condition",
        "x/p: {podSelector: {matchLabels: {pod: a}, matchExpressions: [{key: pod, operator: In, values: [b]}]}}",
        "",
    ),
    Case(
        "forty policies, of which the last lets in",
        "\n".join(f"x/n{n:02}: {{ingress: [{{from: [{{podSelector: {{matchLabels: {{pod: q}}}}}}]}}]}}" for n in range(39))  # noqa: E501 - a document is a line
        + "\nx/n99: {ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}], ports: [{port: 81}]}]}",
        "X * -> x/*\n. x/b -> x/* 81/tcp",
    ),
    Case("a port", "x/p: {ingress: [{ports: [{port: 80}]}]}", "X * -> x/*\n. * -> x/* 80/tcp"),
    Case(
        "a port of another protocol",
        "x/p: {ingress: [{ports: [{port: 80, protocol: UDP}]}]}",
        "X * -> x/*\n. * -> x/* 80/udp",
    ),
    Case("a port item without anything is all TCP", "x/p: {ingress: [{ports: [{}]}]}", "X * -> x/*\n. * -> x/* */tcp"),
    Case(
        "all of UDP",
        "x/p: {ingress: [{ports: [{protocol: UDP}]}]}",
        "X * -> x/*\n. * -> x/* */udp",
    ),
    Case(
        "SCTP is a protocol of its own",
        "x/p: {ingress: [{ports: [{port: 80, protocol: SCTP}]}]}",
        "X * -> x/*\n. * -> x/* 80/sctp",
    ),
    Case(
        "endPort",
        "x/p: {ingress: [{ports: [{port: 79, endPort: 80}]}]}",
        "X * -> x/*\n. * -> x/* 80/tcp",
    ),
    Case(
        "a range with both",
        "x/p: {ingress: [{ports: [{port: 80, endPort: 81}, {port: 81, endPort: 90, protocol: UDP}]}]}",
        "X * -> x/*\n. * -> x/* 80/tcp,81/tcp,81/udp",
    ),
    Case(
        "a port by name, resolved on each pod",
        "x/p: {ingress: [{ports: [{port: web}]}]}",
        "X * -> x/*\n. * -> x/a,x/b 80/tcp\n. * -> x/c 81/tcp",
    ),
    Case("a name matches with its protocol only", "x/p: {ingress: [{ports: [{port: dgram}]}]}", "X * -> x/*"),
    Case(
        "a UDP port by name",
        "x/p: {ingress: [{ports: [{port: dgram, protocol: UDP}]}]}",
        "X * -> x/*\n. * -> x/* 80/udp",
    ),
    Case("an unknown name isolates", "x/p: {ingress: [{ports: [{port: nobody}]}]}", "X * -> x/*"),
    Case(
        "peers and ports",
        "x/p: {ingress: [{from: [{podSelector: {}}], ports: [{port: web}, {port: 81, protocol: UDP}]}]}",
        "X * -> x/*\n. x/* -> x/a,x/b 80/tcp,81/udp\n. x/* -> x/c 81/tcp,81/udp",
    ),
    Case(
        "two rules never mix",
        "x/p: {podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}], "
        "ports: [{port: 80}]}, {from: [{podSelector: {matchLabels: {pod: c}}}], ports: [{port: 81}]}]}",
        "X * -> x/a\n. x/b -> x/a 80/tcp\n. x/c -> x/a 81/tcp",
    ),
    Case(
        "the union of two policies",
        "x/p: {ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]}\n"
        "x/q: {podSelector: {matchLabels: {pod: a}}, ingress: [{ports: [{port: 81}]}]}",
        "X * -> x/*\n. x/b -> x/*\n. * -> x/a 81/tcp",
    ),
    Case(
        "deny all, and one that allows",
        "x/deny: {podSelector: {}, policyTypes: [Ingress, Egress]}\n"
        "x/p: {podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: v}}}]}]}",
        "X * -> x/*\nX x/* -> *\n. v/* -> x/a",
    ),
    Case(
        "both ends must agree",
        "x/p: {podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], "
        "egress: [{to: [{namespaceSelector: {matchLabels: {ns: v}}}]}]}\n"
        "v/p: {podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: z}}}]}]}",
        "X x/a -> *\n. x/a -> v/*\nX * -> v/a\n. z/* -> v/a",
    ),
    Case(
        "egress to a port",
        "x/p: {policyTypes: [Egress], egress: [{ports: [{port: 80}]}]}",
        "X x/* -> *\n. x/* -> * 80/tcp",
    ),
    Case(
        "egress by name is the destination's",
        "x/p: {policyTypes: [Egress], egress: [{ports: [{port: web}]}]}",
        "X x/* -> *\n. x/* -> ?/a,?/b 80/tcp\n. x/* -> ?/c 81/tcp",
    ),
    Case(
        "egress by name to some pods",
        "x/p: {policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {ns: v}}}], ports: [{port: alt}]}]}",  # noqa: E501 - a document is a line
        "X x/* -> *\n. x/* -> v/a,v/b 81/tcp\n. x/* -> v/c 80/tcp",
    ),
    Case(
        "egress of one pod to one pod, both isolated",
        "x/p: {podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{podSelector: "
        "{matchLabels: {pod: b}}}], ports: [{port: 80}]}]}\n"
        "x/q: {podSelector: {matchLabels: {pod: b}}, ingress: [{from: [{podSelector: {matchLabels: {pod: a}}}], "
        "ports: [{port: 81}]}]}",
        "X x/a -> *\nX * -> x/b",
    ),
    Case(
        "an ipBlock: node1's pods",
        "x/p: {ingress: [{from: [{ipBlock: {cidr: 10.244.1.0/24}}]}]}",
        "X * -> x/*\n. ?/a,node1 -> x/*",
    ),
    Case(
        "an ipBlock with an exception",
        "x/p: {ingress: [{from: [{ipBlock: {cidr: 10.244.0.0/16, except: [10.244.2.0/24]}}]}]}",
        "X * -> x/*\n. ?/a,?/c,node1,node3 -> x/*",
    ),
    Case(
        "an exception is of its own item only",
        "x/p: {ingress: [{from: [{ipBlock: {cidr: 10.244.0.0/16, except: [10.244.2.0/24]}}, "
        "{podSelector: {matchLabels: {pod: b}}}]}]}",
        "X * -> x/*\n. ?/a,?/c,x/b,node1,node3 -> x/*",
    ),
    Case(
        "two blocks, one inside the exception of the other",
        "x/p: {ingress: [{from: [{ipBlock: {cidr: 10.244.0.0/16, except: [10.244.0.0/17]}}, "
        "{ipBlock: {cidr: 10.244.3.0/24}}]}]}",
        "X * -> x/*\n. ?/c,node3 -> x/*",
    ),
    Case(
        "everything but the pods",
        "x/p: {ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.244.0.0/16]}}]}]}",
        "X * -> x/*\n. client -> x/*",
    ),
    Case(
        "0.0.0.0/0 is everybody",
        "x/p: {ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}",
        "",
    ),
    Case(
        "egress to an ipBlock and a port",
        "x/p: {policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.244.2.0/24}}], ports: [{port: 81}]}]}",
        "X x/* -> *\n. x/* -> ?/b 81/tcp",
    ),
    Case(
        "egress by name within an ipBlock",
        "x/p: {policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.244.3.0/24}}], ports: [{port: web}]}]}",
        "X x/* -> *\n. x/* -> ?/c 81/tcp",
    ),
    Case(
        "three namespaces, each for itself",
        "\n".join(f"{ns}/own: {{ingress: [{{from: [{{podSelector: {{}}}}]}}]}}" for ns in "xvz"),
        "X * -> ?/?\n. x/* -> x/*\n. v/* -> v/*\n. z/* -> z/*",
    ),
))  # fmt: skip


# --- tiers ------------------------------------------------------------------------------------------------------------

_TIERS = """
{apiVersion: v1, kind: Namespace, metadata: {name: front, labels: {tier: front}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: back, labels: {tier: back}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web-1, namespace: front, labels: {app: web}}, spec: {nodeName: node1, containers: [{name: c, ports: [{containerPort: 80}, {containerPort: 81}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web-2, namespace: front, labels: {app: web}}, spec: {nodeName: node2, containers: [{name: c, ports: [{containerPort: 80}, {containerPort: 81}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: api-1, namespace: back, labels: {app: api}}, spec: {nodeName: node2, containers: [{name: c, ports: [{containerPort: 80, name: http}, {containerPort: 81, name: admin}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: api-2, namespace: back, labels: {app: api}}, spec: {nodeName: node3, containers: [{name: c, ports: [{containerPort: 80, name: http}, {containerPort: 81, name: admin}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db-1, namespace: back, labels: {app: db}}, spec: {nodeName: node3, containers: [{name: c, ports: [{containerPort: 80, name: sql}, {containerPort: 81}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: job-1, namespace: back, labels: {app: job}}, spec: {nodeName: node1, containers: [{name: c, ports: [{containerPort: 80}, {containerPort: 81}]}]}}
"""  # noqa: E501 - a pod is a line
_DENY = "front/deny: {}\nback/deny: {}\n"
_DENIED = "X * -> front/*,back/*\n"
_FROM_WEB = "{namespaceSelector: {matchLabels: {tier: front}}, podSelector: {matchLabels: {app: web}}}"

TIERS = Fixture("tiers", _TIERS, ((80, "tcp"), (81, "tcp")), (
    Case("all closed", _DENY, _DENIED),
    Case("the front is open", f"{_DENY}front/p: {{ingress: [{{ports: [{{port: 80}}]}}]}}", f"{_DENIED}. * -> front/* 80/tcp"),  # noqa: E501 - a document is a line
    Case(
        "web to api",
        f"{_DENY}back/p: {{podSelector: {{matchLabels: {{app: api}}}}, ingress: [{{from: [{_FROM_WEB}], ports: [{{port: http}}]}}]}}",  # noqa: E501 - a document is a line
        f"{_DENIED}. front/web-* -> back/api-* 80/tcp",
    ),
    Case(
        "web to api to db",
        f"{_DENY}back/p: {{podSelector: {{matchLabels: {{app: api}}}}, ingress: [{{from: [{_FROM_WEB}]}}]}}\n"
        "back/q: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}], "
        "ports: [{port: sql}]}]}",
        f"{_DENIED}. front/web-* -> back/api-*\n. back/api-* -> back/db-1 80/tcp",
    ),
    Case(
        "nobody but api leaves the back",
        "back/p: {podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [api]}]}, policyTypes: [Egress]}",  # noqa: E501 - a document is a line
        "X back/db-1,back/job-1 -> *",
    ),
    Case(
        "the job reaches the db and nothing else",
        "back/p: {podSelector: {matchLabels: {app: job}}, policyTypes: [Egress], egress: [{to: [{podSelector: "
        "{matchLabels: {app: db}}}], ports: [{port: sql}]}]}",
        "X back/job-1 -> *\n. back/job-1 -> back/db-1 80/tcp",
    ),
    Case(
        "the front reaches the back, and not itself",
        "front/p: {policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {tier: back}}}]}]}",
        "X front/* -> *\n. front/* -> back/*",
    ),
    Case(
        "the admin port is for the job",
        "back/p: {podSelector: {matchLabels: {app: api}}, ingress: [{ports: [{port: http}]}, {from: [{podSelector: "
        "{matchLabels: {app: job}}}], ports: [{port: admin}]}]}",
        "X * -> back/api-*\n. * -> back/api-* 80/tcp\n. back/job-1 -> back/api-* 81/tcp",
    ),
    Case(
        "a selector that nobody has closes nothing (Sock Shop's cart and carts)",
        "back/p: {podSelector: {matchLabels: {app: dbs}}, ingress: []}",
        "",
    ),
    Case(
        "a peer that nobody has lets nobody in",
        "back/p: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: apis}}}]}]}",  # noqa: E501 - a document is a line
        "X * -> back/db-1",
    ),
))  # fmt: skip


# --- the edge ---------------------------------------------------------------------------------------------------------

_EDGE = """
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, spec: {nodeName: node1, containers: [{name: c, ports: [{containerPort: 80, name: http}, {containerPort: 81}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: far, namespace: shop, labels: {app: far}}, spec: {nodeName: node2, containers: [{name: c, ports: [{containerPort: 80, name: http}, {containerPort: 81}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: on-host, namespace: shop, labels: {app: web}}, spec: {nodeName: node2, hostNetwork: true, containers: [{name: c, ports: [{containerPort: 9000}]}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {type: NodePort, clusterIP: 10.96.7.1, selector: {app: web}, ports: [{port: 8080, targetPort: http, nodePort: 30080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: local, namespace: shop}, spec: {type: NodePort, externalTrafficPolicy: Local, clusterIP: 10.96.7.2, selector: {app: web}, ports: [{port: 8080, targetPort: http, nodePort: 30081}]}}
"""  # noqa: E501 - a pod is a line

_DOORS = ("node1:30080", "node2:30080", "node1:30081", "node2:30081", "10.96.7.1:8080")

EDGE = Fixture("edge", _EDGE, ((80, "tcp"), (81, "tcp")), (
    Case(
        "nothing: externalTrafficPolicy Local serves on the pod's node alone",
        "",
        "X client -> node2:30081",
    ),
    Case(
        "closed: the own node still comes in; other nodes, and who comes by a node port, do not",
        "shop/p: {}",
        "X * -> *\n. shop/web -> 10.96.7.1:8080",
    ),
    Case(
        "hostNetwork pods are neither selected nor peers",
        "shop/p: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}]}]}",
        "X * -> shop/web,node*\n. shop/far -> *",
    ),
    Case(
        "from outside by a block: a client is itself on the pod's node, and a node where another one sent it on",
        "shop/p: {ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24}}], ports: [{port: http}]}]}",
        "X * -> *\n. client -> node1:*\n. shop/web -> 10.96.7.1:8080",
    ),
    Case(
        "by the port of the pod: a service's is not seen",
        "shop/p: {podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 8080}, {port: 30080}]}]}",
        "X * -> shop/web,node*,10.96*\n. shop/web -> 10.96.7.1:8080",
    ),
    Case(
        "from all but the client",
        "shop/p: {ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [203.0.113.2/32]}}]}]}",
        "X client -> node1:*,node2:30081",
    ),
    Case(
        "from another node, by the address it sends from",
        "shop/p: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{ipBlock: {cidr: 10.244.2.0/32}}]}]}",
        "X * -> shop/web,node*,10.96*\n. node2,shop/on-host -> shop/web\n. client -> node2:30080\n. shop/web -> 10.96.7.1:8080",  # noqa: E501 - a document is a line
    ),
    Case(
        "a port for everybody",
        "shop/p: {ingress: [{ports: [{port: 81}]}]}",
        "X * -> *\n. * -> shop/* 81/tcp\n. shop/web -> 10.96.7.1:8080",
    ),
    Case(
        "an omitted peer list is the outside world, too",
        "shop/p: {ingress: [{}]}\nshop/q: {podSelector: {matchLabels: {app: far}}}",
        "X client -> node2:30081",
    ),
    Case(
        "egress to the client alone",
        "shop/p: {podSelector: {matchLabels: {app: far}}, policyTypes: [Egress], egress: [{to: [{ipBlock: "
        "{cidr: 203.0.113.0/24}}]}]}",
        "X shop/far -> *\nX client -> node2:30081",
    ),
    Case(
        "egress to the pod, by whatever service",
        "shop/p: {podSelector: {matchLabels: {app: far}}, policyTypes: [Egress], egress: [{to: [{podSelector: "
        "{matchLabels: {app: web}}}], ports: [{port: http}]}]}",
        "X shop/far -> *\n. shop/far -> shop/web 80/tcp\n. shop/far -> 10.96.7.1:8080\nX client -> node2:30081",
    ),
), _DOORS)  # fmt: skip

FIXTURES = (NINE, TIERS, EDGE)


def patched(objects: Objects, key: Key, labels: Mapping[str, str]) -> dict[Key, Object]:
    """The objects with other labels on one of them."""
    obj = objects[key]
    metadata = msgspec.structs.replace(obj.metadata, labels=dict(labels))
    return {**objects, key: msgspec.structs.replace(obj, metadata=metadata)}
