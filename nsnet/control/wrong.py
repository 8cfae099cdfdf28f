"""Sentences that several controllers say when something cannot be."""

from collections.abc import Iterable
from difflib import get_close_matches

from nsnet.errors import ObjectError
from nsnet.model import Cluster, key_of


def cluster_error(cluster: Cluster, field: str, message: str, hint: str = "") -> ObjectError:
    """An error of the Cluster document."""
    return ObjectError(key_of(cluster), field, message, hint)


def meant(word: str, known: Iterable[str]) -> str:
    """` (did you mean rack-a?)`, or nothing where no name is near."""
    found = get_close_matches(word, list(known), 1)
    return f" (did you mean {found[0]}?)" if found else ""


def some(known: Iterable[str], limit: int = 8) -> str:
    """The first few names, for a hint."""
    names = list(known)
    return ", ".join([*names[:limit], *(["…"] if len(names) > limit else [])]) or "none"
