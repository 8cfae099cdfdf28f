"""What goes to a terminal: plain columns as kubectl prints them, errors, and lines of progress.

kubectl's tables are columns three spaces apart, so ten lines do it and no library is loaded. Colour and progress
appear on a terminal only; `NO_COLOR` (any value) turns colour off, as no-color.org has it.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from typing import IO, Any, Literal

import msgspec

Colour = Literal["red", "green", "yellow", "cyan"]
_CODES: dict[Colour, str] = {"red": "31", "green": "32", "yellow": "33", "cyan": "36"}


def coloured(text: str, colour: Colour, stream: IO[str] | None = None) -> str:
    """The text in a colour, if the stream (stdout) is a terminal and nobody objects."""
    stream = stream or sys.stdout
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty():
        return text
    return f"\x1b[{_CODES[colour]}m{text}\x1b[0m"


def out(text: str = "") -> None:
    """One line (or several) to stdout."""
    sys.stdout.write(text + "\n")


def note(text: str) -> None:
    """A line to stderr that is no error: what a person should know and a script need not."""
    sys.stdout.flush()
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def warning(text: str) -> None:
    """`warning: …` on stderr."""
    note(coloured("warning:", "yellow", sys.stderr) + f" {text}")


def error(message: str, hint: str = "") -> None:
    """`error: …`, and `hint: …` where there is one."""
    note(coloured("error:", "red", sys.stderr) + f" {message}")
    if hint:
        note(coloured("hint:", "cyan", sys.stderr) + f" {hint}")


def progress(text: str) -> None:
    """A line on stderr that the next one overwrites; on a terminal only. An empty text removes it."""
    if sys.stderr.isatty():
        width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
        sys.stderr.write(f"\r\x1b[K{text[: width - 1]}")
        sys.stderr.flush()


def table(rows: Iterable[Sequence[str]], *, gap: int = 3) -> list[str]:
    """Rows as aligned columns; the first row is the header."""
    lines = [list(row) for row in rows]
    if not lines:
        return []
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return [
        (" " * gap).join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    ]


def print_table(rows: Iterable[Sequence[str]]) -> None:
    for line in table(rows):
        out(line)


def print_json(value: Any) -> None:
    """Indented as kubectl does, keys in the order given."""
    out(msgspec.json.format(msgspec.json.encode(value), indent=4).decode())


def as_list(items: Iterable[Any]) -> dict[str, Any]:
    """`kind: List`, as kubectl prints several objects."""
    return {"apiVersion": "v1", "items": list(items), "kind": "List", "metadata": {"resourceVersion": ""}}


def print_yaml(value: Any) -> None:
    import yaml

    plain = msgspec.to_builtins(value)
    out(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120).rstrip())
