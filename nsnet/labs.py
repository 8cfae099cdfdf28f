"""Labs: a network that is broken on purpose, a story, hints, and how one sees that it is mended. Pure.

    lab file ─parsed→ Lab ─┬─ built:   the topology's objects, with the lab's own over them
                           ├─ damage:  Faults, done once and then left alone, and hands off everywhere
                           └─ checks:  traffic (as a topology's `checks`), state (a command and what it says), the rest
                                       of the cluster as it was

A lab file is a stream of YAML documents: a `Lab`, and manifests that are put over its topology. A student works with
ordinary tools on the kernel, so nothing may undo the damage or the repair: every Fault is left alone once it is done,
and `hands-off` is on every node, host and pod. In labs about objects (a selector, a port, a policy) nothing is held:
there the controllers are what makes a repair come true.

What is right is told by what works, never by which command was typed: several ways may be right.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from shlex import quote, split
from typing import Literal

import msgspec
import yaml
from msgspec.structs import replace

from nsnet import model
from nsnet.errors import InputError
from nsnet.manifests import Loaded
from nsnet.model import Check, Cluster, Fault, FaultSpec, Key, Object, ObjectMeta, Objects, Pod

CLUSTER = "lab"  # one at a time, and its namespaces have short names
HINTS = "nsnet/lab-hints"  # how many were given
HANDS = "hands-off"
DOCUMENTS = re.compile(r"^---\s*$", re.MULTILINE)

Result = tuple[str, bool, str]
"""What was asked, whether it is so, and what was found instead."""


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A command line, without a shell, in every one of these places; without a place on the machine (`nsnet …`)."""

    run: str | tuple[str, ...]
    where: tuple[str, ...] = msgspec.field(name="in", default=())
    stdin: str = ""

    @property
    def argv(self) -> tuple[str, ...]:
        return tuple(split(self.run)) if isinstance(self.run, str) else self.run


class Way(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What somebody may do about it; `because`: why that is no repair."""

    name: str
    steps: tuple[Step, ...]
    because: str = ""


class Traffic(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """As a topology's check, asked `times` times.

    `size`: that many further bytes at the end of the URL, and so in the answer of /echo.
    """

    name: str
    to: str
    source: str = msgspec.field(name="from")
    expect: str = "ok"
    size: int = 0
    times: int = 1

    @property
    def checks(self) -> tuple[Check, ...]:
        return (Check(self.name, self.to + "x" * self.size, self.source, self.expect),) * self.times


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A command in a place; `says` is a regular expression found in what it prints, `never` one that is not."""

    name: str
    run: str | tuple[str, ...]
    where: str = msgspec.field(name="in")
    says: str = ""
    never: str = ""

    @property
    def step(self) -> Step:
        return Step(self.run, (self.where,))

    def judge(self, code: int, said: str) -> Result:
        """By its exit code and what it printed."""
        wrong = f"exit code {code}" if code else ""
        if self.says and not re.search(self.says, said, re.MULTILINE):
            wrong = f"it does not say {self.says}"
        if self.never and (found := re.search(f".*(?:{self.never}).*", said, re.MULTILINE)):
            wrong = f"it says {found[0].strip()}"
        return self.name, not wrong, f"{shown(self.step)}: {wrong}" if wrong else ""


class Damage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A kind of the catalogue of faults, and where."""

    fault: str
    where: tuple[str, ...] = msgspec.field(name="in", default=())
    to: tuple[str, ...] = ()
    options: dict[str, str] = {}


class Lab(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a lab file says.

    `begin`: what is broken besides faults, and `undo`: what a reset puts back besides what nsnet watches anyway.
    `may_change`: objects a repair may touch. `spared`: a pattern of expectations that are not asked at the end.
    `patience`: seconds until an answer must be there; 0: nine tenths of one.
    """

    name: str = ""
    title: str
    level: Literal[1, 2, 3]
    topology: str = "network/small.yaml"
    story: str
    faults: tuple[Damage, ...] = ()
    begin: tuple[Step, ...] = ()
    undo: tuple[Step, ...] = ()
    hints: tuple[str, str, str]
    traffic: tuple[Traffic, ...]
    patience: float = 0
    state: tuple[State, ...] = ()
    may_change: tuple[str, ...] = msgspec.field(name="mayChange", default=())
    spared: str = ""
    solutions: tuple[Way, ...]
    wrong: tuple[Way, ...] = ()
    lesson: str
    manifests: str = ""

    @property
    def held(self) -> bool:
        """Is the kernel the student's?"""
        return bool(self.faults or self.begin)


# --- reading ----------------------------------------------------------------------------------------------------------


def parsed(text: str, name: str) -> Lab:
    """The lab of a file called `name`. Raises InputError."""
    head, *rest = DOCUMENTS.split(text, maxsplit=1)
    try:
        doc = yaml.safe_load(head)
        kind, said = doc.pop("kind", None), doc.pop("apiVersion", None)
        if (kind, said) != ("Lab", "nsnet/v1"):
            raise InputError(f"{name}.yaml is no lab", "its first document is apiVersion: nsnet/v1, kind: Lab")
        lab = msgspec.convert(doc, Lab)
    except (yaml.YAMLError, msgspec.ValidationError, AttributeError) as error:
        raise InputError(f"{name}.yaml is no lab: {error}", "labs are part of nsnet: reinstall it") from error
    return replace(lab, name=name, manifests="".join(rest))


def built(lab: Lab, topology: Loaded, own: Loaded) -> Loaded:
    """What `up` shall build: the topology, and the lab's objects over it."""
    said = model.cluster_of(topology.objects)
    meta = replace(said.metadata, name=CLUSTER, annotations={**said.metadata.annotations, model.LAB: lab.name})
    cluster = replace(said, metadata=meta)
    others = {key: obj for key, obj in {**topology.objects, **own.objects}.items() if key.kind != "Cluster"}
    objects: dict[Key, Object] = {**others, model.key_of(cluster): cluster}
    first = len(topology.sources)
    origins = {key: replace(origin, source=first + origin.source) for key, origin in own.origins.items()}
    return replace(
        topology,
        objects=objects,
        notes=(),
        origins={**topology.origins, **origins},
        sources=(*topology.sources, *own.sources),
    )


# --- the damage -------------------------------------------------------------------------------------------------------


def damage(lab: Lab, objects: Objects) -> dict[Key, Object]:
    """The Faults of a lab, not done yet; the last one keeps everybody's hands off."""
    if not lab.held:
        return {}
    said = [FaultSpec(one.fault, one.where, one.to, one.options, leave="keys") for one in lab.faults]
    specs = [*said, FaultSpec(HANDS, tuple(_places(objects)), leave="places")]
    faults = [Fault(_meta(lab, number), spec) for number, spec in enumerate(specs, 1)]
    return {model.key_of(fault): fault for fault in faults}


def _meta(lab: Lab, number: int) -> ObjectMeta:
    return ObjectMeta(name=f"lab-{number}", labels={model.LAB: lab.name})


def _places(objects: Objects) -> Iterator[str]:
    yield from places("nodes", objects)
    yield from (f"host/{host.name}" for host in model.cluster_of(objects).hosts or ())
    yield from places("pods", objects)


def places(word: str, objects: Objects) -> list[str]:
    """`nodes` and `pods` (that have a network of their own) are all of these; anything else is itself."""
    if word == "nodes":
        return [f"node/{node.metadata.name}" for node in model.of(objects, model.Node)]
    if word == "pods":
        own = (pod.metadata for pod in model.of(objects, Pod) if pod.spec.nodeName and not pod.spec.hostNetwork)
        return [f"pod/{meta.namespace}/{meta.name}" for meta in own]
    return [word]


def running(cluster: Cluster) -> tuple[str, int]:
    """The lab that a cluster is, and how many hints were given (0 where somebody wrote no number); ("", 0) for none."""
    said = cluster.metadata.annotations
    given = said.get(HINTS, "")
    return said.get(model.LAB, ""), int(given) if given.isdecimal() else 0


def is_set_up(cluster: Cluster) -> bool:
    """Was everything broken that shall be? An interrupted start leaves a healthy cluster, which is no solved lab."""
    return HINTS in cluster.metadata.annotations


def hinted(objects: Objects, count: int) -> dict[Key, Object]:
    """The objects, with so many hints given."""
    cluster = model.cluster_of(objects)
    meta = replace(cluster.metadata, annotations={**cluster.metadata.annotations, HINTS: str(count)})
    return {**objects, model.key_of(cluster): replace(cluster, metadata=meta)}


# --- is it mended? ----------------------------------------------------------------------------------------------------


def asked(lab: Lab, now: Objects) -> dict[Key, Object]:
    """The objects, with the lab's traffic as the checks of the cluster's own."""
    cluster = model.cluster_of(now)
    checks = tuple(check for item in lab.traffic for check in item.checks)
    return {**now, model.key_of(cluster): replace(cluster, checks=checks)}


def counted(lab: Lab, answers: Sequence[tuple[str, bool, str]]) -> list[Result]:
    """A result for each question of the lab, of the answers to each time it was asked."""
    found: list[Result] = []
    for item in lab.traffic:
        own = [(good, why) for name, good, why in answers if name == item.name]
        wrong = [why for good, why in own if not good]
        many = f", {len(wrong)} of {len(own)} times" if len(own) > 1 else ""
        found.append((item.name, not wrong, f"{wrong[0]}{many}" if wrong else ""))
    return found


_DECLARED = ("Pod", "Deployment", "StatefulSet", "DaemonSet", "Service", "NetworkPolicy", "Ingress", "Node")


def as_it_was(lab: Lab, start: Mapping[Key, Object], now: Objects) -> list[Result]:
    """Is what the lab's files declare still there and the same? A pod less is no repair of the network."""
    found: list[Result] = []
    for key, obj in start.items():
        if key.kind in _DECLARED and _word(key) not in lab.may_change:
            there = now.get(key)
            wrong = f"{key} is gone" if there is None else "" if _same(obj, there) else f"{key} is another now"
            if wrong:
                found.append(("what runs in the cluster is as it was", False, wrong))
    return found or [("what runs in the cluster is as it was", True, "")]


def _word(key: Key) -> str:
    return f"{key.kind.lower()}/{key.name}"


def _same(one: Object, other: Object) -> bool:
    """By labels and spec."""
    spec = getattr(one, "spec", None), getattr(other, "spec", None)
    return spec[0] == spec[1] and one.metadata.labels == other.metadata.labels


def shown(step: Step) -> str:
    """The command line, and where a person types it."""
    words = " ".join(map(quote, step.argv))
    return f"{', '.join(step.where)}: {words}" if step.where else words
