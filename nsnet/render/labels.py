"""Pods by their labels: which of them a selector matches, without asking each pod for each selector.

A thousand pods and two hundred policies are half a million questions; with an index each selector is a few set
operations. Semantics: apimachinery `pkg/labels` (facts/NETPOL.md, rule 10): In needs the key, NotIn and DoesNotExist
match where it is absent, all parts of a selector have to hold.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import reduce
from operator import and_

from nsnet.model import LabelSelector, Requirement

Found = frozenset[str]
_NOBODY: Found = frozenset()


class Index:
    """What bears labels, by what it is called (a pod by its address, a namespace by its name)."""

    def __init__(self, labelled: Mapping[str, Mapping[str, str]]) -> None:
        self.all: Found = frozenset(labelled)
        pairs: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        keys: defaultdict[str, set[str]] = defaultdict(set)
        for name, labels in labelled.items():
            for key, value in labels.items():
                pairs[key, value].add(name)
                keys[key].add(name)
        self._pairs = {pair: frozenset(found) for pair, found in pairs.items()}
        self._keys = {key: frozenset(found) for key, found in keys.items()}

    def select(self, selector: LabelSelector) -> Found:
        """Whom the selector matches; an empty one matches all."""
        parts = [self._with(key, (value,)) for key, value in (selector.matchLabels or {}).items()]
        parts += [self._meeting(requirement) for requirement in selector.matchExpressions or ()]
        return reduce(and_, parts) if parts else self.all

    def _with(self, key: str, values: Iterable[str]) -> Found:
        found = [self._pairs[key, value] for value in values if (key, value) in self._pairs]
        return found[0] if len(found) == 1 else _NOBODY.union(*found)

    def _meeting(self, requirement: Requirement) -> Found:
        there = self._keys.get(requirement.key, _NOBODY)
        match requirement.operator:
            case "In":
                return self._with(requirement.key, requirement.values)
            case "NotIn":
                return self.all - self._with(requirement.key, requirement.values)
            case "Exists":
                return there
            case "DoesNotExist":
                return self.all - there
        return _NOBODY
