"""kubectl's `-l`: `app=web,tier!=db,zone in (a,b),!canary` as a LabelSelector.

Grammar: k8s.io/apimachinery pkg/labels (`=`, `==`, `!=`, `in`, `notin`, `key`, `!key`; no `<` and `>` here).
"""

import re

from nsnet.errors import InputError
from nsnet.model import LabelSelector, Requirement

_KEY = r"[A-Za-z0-9][-A-Za-z0-9_./]*"
_SET = re.compile(rf"({_KEY})\s+(in|notin)\s+\(([^()]*)\)")
_EQUAL = re.compile(rf"({_KEY})\s*(==|=|!=)\s*([-A-Za-z0-9_.]*)")
_EXISTS = re.compile(rf"(!?)\s*({_KEY})")
_COMMA = re.compile(r",(?![^()]*\))")


def selector(text: str) -> LabelSelector:
    """Raises InputError where the text is no selector."""
    return LabelSelector(matchExpressions=tuple(_requirement(part.strip()) for part in _COMMA.split(text)))


def _requirement(text: str) -> Requirement:
    if found := _SET.fullmatch(text):
        values = tuple(value.strip() for value in found[3].split(","))
        return Requirement(found[1], "In" if found[2] == "in" else "NotIn", values)
    if found := _EQUAL.fullmatch(text):
        return Requirement(found[1], "NotIn" if found[2] == "!=" else "In", (found[3],))
    if found := _EXISTS.fullmatch(text):
        return Requirement(found[2], "DoesNotExist" if found[1] else "Exists")
    raise InputError(f'"{text}" is no label selector', "for example: app=web,tier!=db or 'zone in (a,b)'")
