"""How often a namespace asks for one name, by the resolv.conf that lies over its own."""

from collections.abc import Iterator

from nsnet.state import File, State

GIVEN = 5, 3  # ndots and search domains that kubelet gives a pod of dnsPolicy ClusterFirst


def long_way(state: State, netns: str) -> str:
    """Why a name costs more questions than a pod's does by itself; empty where it does not."""
    files = (value for value in state.get(netns, ()) if isinstance(value, File))
    lines = [line for file in files if file.path.endswith("/resolv.conf") for line in file.content.splitlines()]
    domains = len(list(_after("search", lines)))
    dots = max((int(word[6:]) for word in _after("options", lines) if word[6:].isdecimal()), default=1)
    if not domains or (dots <= GIVEN[0] and domains <= GIVEN[1]):
        return ""
    return (
        f"asks for a name with fewer than {dots} dots in {domains} domains before itself: by ndots and search of its "
        f"resolv.conf one outside costs {domains + 1} questions of a kind"
    )


def _after(word: str, lines: list[str]) -> Iterator[str]:
    for line in lines:
        first, *rest = line.split() or [""]
        if first == word:
            yield from rest
