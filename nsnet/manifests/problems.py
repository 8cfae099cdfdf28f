"""What is wrong with an object, before anyone knows where in the file that is.

Checks walk plain values and say `Problem(path, message, hint)`; `loading` looks the path up in the file afterwards.
"""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any, NamedTuple

import msgspec

from nsnet.manifests.reading import Path, shown

ENOUGH = 100  # nobody reads more; and a search for near spellings takes time, of which a hostile file has plenty


class Problem(NamedTuple):
    """`{text}` in the hint stands for the value's own spelling in the file. `key`: the key is wrong, not the value."""

    path: Path
    message: str
    hint: str
    key: bool = False


class At(msgspec.Struct, frozen=True, gc=False):
    """A value, where it stands, and the list that what is wrong with it goes to. A value that is absent is None."""

    value: Any
    path: Path
    found: list[Problem]

    def __getitem__(self, name: str) -> "At":
        value = self.value.get(name) if isinstance(self.value, dict) else None
        return At(value, (*self.path, name), self.found)

    def each(self) -> Iterator["At"]:
        """The items of a list, or the values of a mapping; nothing where there is neither."""
        if isinstance(self.value, list):
            return (At(item, (*self.path, index), self.found) for index, item in enumerate(self.value))
        if isinstance(self.value, dict):
            return (At(item, (*self.path, key), self.found) for key, item in self.value.items())
        return iter(())

    def wrong(self, message: str, hint: str, *, key: bool = False) -> None:
        if not self.enough:
            self.found.append(Problem(self.path, message, hint, key))

    @property
    def enough(self) -> bool:
        return len(self.found) >= ENOUGH


def spelled(path: Iterable[str | int]) -> str:
    """`("spec", "ports", 0, "port")` → `spec.ports[0].port`; a key that is no plain word stands in brackets."""
    text = ""
    for step in path:
        if isinstance(step, int) or not step.replace("-", "").replace("_", "").isalnum():
            text += f"[{shown(str(step))}]"
        else:
            text += f".{shown(step)}" if text else shown(step)
    return text


def nearest(word: str, words: Iterable[str], cutoff: float = 0.7) -> str:
    """The word that was probably meant, or nothing: capitals do not count, then the closest spelling does."""
    known = {known.lower(): known for known in words}
    if word.lower() in known:
        return known[word.lower()]
    close = get_close_matches(word.lower()[:64], known, 1, cutoff)
    return known[close[0]] if close else ""
