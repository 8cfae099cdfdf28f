"""A page of `explain`: lines under headings, each with its reason."""

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from nsnet.cli.output import coloured


class Line(msgspec.Struct, frozen=True):
    """One line of the page: under which heading, where, what, and why."""

    section: str
    where: str
    text: str
    why: str = ""


def printed(lines: Sequence[Line]) -> Iterator[str]:
    """Headings, and reasons under their lines."""
    last = ("", "")
    for line in lines:
        if line.section != last[0]:
            yield ("\n" if last[0] else "") + coloured(line.section, "cyan")
        if line.where and (line.section, line.where) != last:
            yield f"  {line.where}"
        last = line.section, line.where
        yield ("    " if line.where else "  ") + line.text
        if line.why:
            yield ("          " if line.where else "        ") + coloured(line.why, "green")


def with_reasons(section: str, told: Iterable[str]) -> Iterator[Line]:
    """Lines of `rules`, where a reason stands indented under what it is of; headings in between are left out."""
    held = ""
    for line in told:
        if line.startswith("        "):
            yield Line(section, "", held, line.strip())
            held = ""
            continue
        if held:
            yield Line(section, "", held)
        held = line.strip() if line.startswith("  ") else ""
    if held:
        yield Line(section, "", held)
