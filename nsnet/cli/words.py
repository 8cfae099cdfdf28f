"""The nearest right spelling."""

from collections.abc import Iterable


def nearest(word: str, words: Iterable[str]) -> str:
    """The word that may have been meant, or nothing."""
    from difflib import get_close_matches

    found = get_close_matches(word, list(words), 1)
    return found[0] if found else ""


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """` (did you mean X?)`, or nothing."""
    found = nearest(word, words)
    return f" (did you mean {found}?)" if found else ""
