"""NetworkPolicy as objects say it: the decision's speed. Pure, so it needs no namespaces.

100 pods in 10 namespaces with 50 policies: the truth table on 2 ports (20,000 decisions) as a share of what packets may
take for it (3 s, issue 9); 1,000 pods with 200 policies: making the index that every decision stands on.
"""

import statistics
import time
from collections.abc import Iterator

from nsnet import model
from nsnet.control import policy
from nsnet.model import Container, ContainerPort, ObjectMeta, Pod, PodIP, PodSpec, PodStatus

Line = tuple[str, str, str, bool]
PACKETS = 3.0  # s, what a truth table may take with packets


def objects(pods: int, policies: int, namespaces: int = 10) -> model.Objects:
    """Pods spread over namespaces with labels of ten tiers, and policies of every kind among them."""
    spaces = (ObjectMeta(name=f"ns{number}", labels={"team": f"t{number % 3}"}) for number in range(namespaces))
    found: list[model.Object] = [model.Cluster(ObjectMeta(name="bench")), *map(model.Namespace, spaces)]
    for number in range(pods):
        meta = ObjectMeta(
            name=f"p{number}", namespace=f"ns{number % namespaces}", labels={"tier": f"t{number // namespaces % 10}"}
        )
        ip = f"10.244.{number // 250 + 1}.{number % 250 + 2}"
        container = Container("c", ports=(ContainerPort(80, "http"), ContainerPort(81)))
        found.append(Pod(meta, PodSpec((container,), f"node{number // 250}"), PodStatus("Running", ip, (PodIP(ip),))))
    found += [model.from_doc(_policy(number, namespaces)) for number in range(policies)]
    return model.by_key(found)


def _policy(number: int, namespaces: int) -> dict[str, object]:
    peers: list[dict[str, object]] = [
        {"podSelector": {"matchLabels": {"tier": f"t{number % 7}"}}},
        {"namespaceSelector": {"matchLabels": {"team": f"t{number % 3}"}}},
        {"ipBlock": {"cidr": "10.244.0.0/16", "except": [f"10.244.1.{number % 16 * 16}/28"]}},
    ]
    rule = {"ports": [{"port": "http"}, {"port": 8000, "endPort": 9000}]}
    spec = {
        "podSelector": {"matchLabels": {"tier": f"t{number % 10}"}},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": peers[: number % 3 + 1], **rule}],
        "egress": [{"to": peers[number % 3 :], **rule}, {"ports": [{"port": 53, "protocol": "UDP"}]}],
    }
    meta = {"name": f"np{number}", "namespace": f"ns{number % namespaces}"}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta, "spec": spec}


def measure() -> Iterator[Line]:
    some = objects(100, 50)
    spent, opened = [], 0
    for _ in range(5):
        start = time.perf_counter()
        opened = table(some)
        spent.append(time.perf_counter() - start)
    middle = statistics.median(spent)
    said = f"{middle * 1000:.0f} ms: {middle / PACKETS:.3f} of {PACKETS:.0f} s"
    yield f"decisions: 100 pods x 2 ports, 50 policies ({opened} open)", said, "<= 0.2", middle / PACKETS <= 0.2
    many = objects(1000, 200)
    indexed = statistics.median(_seconds(many) for _ in range(5))
    share = indexed / 0.2
    yield "decisions: index of 1,000 pods, 200 policies", f"{indexed * 1000:.0f} ms: {share:.2f} of 0.2 s", "-", True


def table(found: model.Objects) -> int:
    """How many cells of the truth table are open; the index included."""
    known = policy.index(found)
    ends = list(known.pods.values())
    return sum(
        policy.allows(known, source, target, port, "TCP") for port in (80, 81) for source in ends for target in ends
    )


def _seconds(found: model.Objects) -> float:
    start = time.perf_counter()
    policy.index(found)
    return time.perf_counter() - start
