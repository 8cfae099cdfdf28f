"""Metadata, and what selects by it."""

from typing import Literal, NamedTuple

import msgspec

Labels = dict[str, str]
IntOrString = int | str
Family = Literal["ip", "ip6"]
"""An address family, in netfilter's words (as `state.Family`); the API says IPv4 and IPv6 (`API_FAMILIES`)."""


class Key(NamedTuple):
    """An object's identity. `namespace` is empty for kinds without one."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        where = f"{self.namespace}/" if self.namespace else ""
        return f"{self.kind} {where}{self.name}"


class OwnerReference(msgspec.Struct, frozen=True):
    kind: str
    name: str
    apiVersion: str = ""
    uid: str = ""
    controller: bool = True


class ObjectMeta(msgspec.Struct, frozen=True):
    name: str = ""
    namespace: str = ""
    generateName: str = ""
    labels: Labels = {}
    annotations: dict[str, str] = {}
    ownerReferences: tuple[OwnerReference, ...] = ()
    uid: str = ""
    creationTimestamp: str | None = None
    deletionTimestamp: str | None = None
    deletionGracePeriodSeconds: int | None = None


class Requirement(msgspec.Struct, frozen=True):
    """One item of matchExpressions: operator In, NotIn, Exists, DoesNotExist (Gt, Lt for node affinity)."""

    key: str
    operator: str
    values: tuple[str, ...] = ()


class LabelSelector(msgspec.Struct, frozen=True):
    matchLabels: Labels | None = None
    matchExpressions: tuple[Requirement, ...] | None = None


class Condition(msgspec.Struct, frozen=True):
    type: str
    status: str  # True, False or Unknown
    reason: str = ""
    message: str = ""
