"""Clusters with NetworkPolicies, and questions to the decision as short lines. For the tests of policy."""

from collections.abc import Mapping
from pathlib import Path

from nsnet.control import policy
from nsnet.control.policy import Decision, End, Index
from nsnet.model import Objects
from tests.controlled import up

PUBLISHED = [Path(__file__).parents[2] / "shared" / "manifests", Path("/work/shared/manifests")]

PORTS = "ports: [{containerPort: 80, name: http}, {containerPort: 81}, {containerPort: 80, protocol: UDP, name: dns}]"


def published(folder: str) -> Path | None:
    """A folder of published manifests, where they are on this machine."""
    return next((path / folder for path in PUBLISHED if (path / folder).is_dir()), None)


def pod(name: str, labels: str = "", node: str = "node1", more: str = "", ports: str = PORTS) -> str:
    """A pod `namespace/name` with labels `a=b,c=d`; more of its spec as YAML."""
    namespace, _, name = name.partition("/")
    words = ", ".join(
        f'{key}: "{value}"' for key, _, value in (item.partition("=") for item in labels.split(",")) if key
    )
    return (
        f"{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}, labels: {{{words}}}}}, "
        f"spec: {{nodeName: {node}, {more} containers: [{{name: c, {ports}}}]}}}}"
    )


def _space(word: str) -> str:
    return word * 3 if word in {"x", "y", "z"} else word


def namespace(name: str, labels: str = "") -> str:
    words = ", ".join(f"{key}: {value}" for key, _, value in (item.partition("=") for item in labels.split(",")) if key)
    return f"{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}, labels: {{{words}}}}}}}"


def written(spec: str, name: str = "x/p") -> str:
    """A policy `namespace/name`; x is short for namespace xxx."""
    namespace, _, name = name.partition("/")
    namespace = _space(namespace)
    head = "apiVersion: networking.k8s.io/v1, kind: NetworkPolicy"
    return f"{{{head}, metadata: {{name: {name}, namespace: {namespace}}}, spec: {{{spec}}}}}"


def nine() -> str:
    """Nine pods in three namespaces over three nodes (cyclonus' fixture), and a hostNetwork pod."""
    docs = ["{apiVersion: nsnet/v1, kind: Cluster, metadata: {name: demo}, nodes: 3}"]
    for space in "xyz":
        docs.append(namespace(f"{space * 3}", f"ns={space * 2}"))
        docs += [pod(f"{space * 3}/{name}", f"pod={name}", f"node{number}") for number, name in enumerate("abc", 1)]
    docs.append(pod("xxx/guest", "pod=guest", more="hostNetwork: true,", ports="ports: [{containerPort: 7000}]"))
    return "\n---\n".join(docs)


NINE = nine()


def cluster(*policies: str, base: str = NINE) -> Objects:
    """The nine pods, and policies as `written`."""
    return up("\n---\n".join((base, *policies)))


# --- questions --------------------------------------------------------------------------------------------------------


def asked(objects: Objects, line: str) -> Decision:
    """`x/a > y/b:80`, `node1 > x/a:80/UDP`, `203.0.113.2 > x/a:81`; x is short for namespace xxx."""
    return _asked(policy.index(objects), line)


def _asked(known: Index, line: str) -> Decision:
    source, _, rest = line.partition(" > ")
    there, _, port = rest.rpartition(":")
    number, _, protocol = port.partition("/")
    start, to = end(known, source), end(known, there)
    if source.startswith("node"):
        start = policy.as_source(known, start, to)
    return policy.decided(known, start, to, int(number), protocol or "TCP")


def end(known: Index, word: str) -> End:
    space, slash, name = word.partition("/")
    if not slash:
        return known.at(word) if "." in word or ":" in word else policy.end(known, f"node/{word}")
    return policy.end(known, f"pod/{_space(space)}/{name}")


def answers(objects: Objects, lines: Mapping[str, bool]) -> dict[str, bool]:
    """What is decided of each line."""
    known = policy.index(objects)
    return {line: _asked(known, line).allowed for line in lines}


def table(objects: Objects, port: int = 80, protocol: str = "TCP", spaces: str = "xyz") -> str:
    """The nine pods' truth table as text: rows from, columns to."""
    known = policy.index(objects)
    names = [f"{space * 3}/{name}" for space in spaces for name in "abc"]
    rows = (
        "".join(
            ".X"[not policy.allows(known, known.pods[source], known.pods[target], port, protocol)] for target in names
        )
        for source in names
    )
    return "\n".join(rows)
