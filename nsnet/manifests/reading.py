"""Bytes → plain values, one per YAML document, and the place of every value in the file.

libyaml's events are put together here, not by PyYAML's composer: that one recurses in C, so that a megabyte of `[`
ends the process. The loop below has a stack of its own, stops at a stated depth, refuses a key given twice, and counts
what aliases stand for, so that a YAML bomb is refused before it goes off.

Values are read without places. Where something is wrong, the file is read once more with them (`places`): errors are
rare and files are short, so good files pay nothing for the exact position in bad ones.

JSON is YAML. Aliases share one value, so nobody may change what `documents` yields.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import yaml
from yaml._yaml import CParser

from nsnet.errors import InputError
from nsnet.manifests.scalars import resolve

MAX_BYTES = 16 * 1024 * 1024
MAX_DEPTH = 100
MAX_ALIASED = 500_000

Path = tuple[str | int, ...]


class Source(msgspec.Struct, frozen=True):
    """A file's name, as errors shall say it (`-`: standard input), and what is in it."""

    name: str
    data: bytes


class Place:
    """Where a value stands: line and column (from 0) of itself and of its key, its text if a scalar, its children."""

    __slots__ = ("children", "column", "key", "line", "text")

    def __init__(self, line: int, column: int, text: str | None = None) -> None:
        self.line, self.column, self.text = line, column, text
        self.key: tuple[int, int] | None = None
        self.children: dict[str | int, Place] = {}

    def under_key(self, mark: Any) -> "Place":
        """The same place as the value of a key (an aliased value has several)."""
        place = Place(self.line, self.column, self.text)
        place.key, place.children = (mark.line, mark.column), self.children
        return place

    def position(self) -> tuple[int, int]:
        """Where an editor should jump to: a scalar itself, the key of a mapping or list."""
        return self.key if self.key and self.text is None else (self.line, self.column)

    def find(self, path: Path) -> "Place":
        """The place of a path, or of the deepest part of it that is there."""
        place = self
        for step in path:
            if step not in place.children:
                break
            place = place.children[step]
        return place


def documents(source: Source) -> list[Any]:
    """The values of all documents of a source; None for an empty one. Raises InputError `name:line:column: …`."""
    return [ready.value for ready in _Reader(source, keep=False).read()]


def places(source: Source) -> list[Place]:
    """The places of all documents, in the same order. The source is one that `documents` has read."""
    return [ready.place for ready in _Reader(source, keep=True).read() if ready.place is not None]


def wrong(source: str, line: int, column: int, message: str, hint: str) -> InputError:
    """An error at a place; `line` and `column` count from 0, as libyaml does, and are shown from 1, as editors do."""
    return InputError(f"{source}:{line + 1}:{column + 1}: {message}", hint)


# --- bytes → text -----------------------------------------------------------------------------------------------------

_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x84\x86-\x9f\ufffe\uffff]")
_MAGIC = {b"\x1f\x8b": "gzip data", b"PK\x03\x04": "a zip archive", b"\x7fELF": "a program", b"%PDF": "a PDF file"}
_PAIR = rb"\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})"
_SURROGATES = re.compile(rb"\\\\|" + _PAIR)  # an escaped backslash is passed over, so that what follows it is text


def text_of(source: Source) -> str:
    """The source as text. Raises InputError where it is too large, or not text."""
    data = source.data
    if len(data) > MAX_BYTES:
        raise wrong(
            source.name, 0, 0, f"the file has {len(data):,} bytes; at most {MAX_BYTES:,} (16 MiB) are read",
            "a manifest is text written for kubectl: is this the right file? If so, split it in several",
        )  # fmt: skip
    for magic, what in _MAGIC.items():
        if data.startswith(magic):
            raise wrong(source.name, 0, 0, f"this is {what}, not YAML", "unpack it first, or name the right file")
    text = _decoded(source)
    if match := _UNPRINTABLE.search(text):
        line, column = _place_at(text, match.start())
        raise wrong(
            source.name, line, column, f"the character U+{ord(match[0]):04X} cannot stand in YAML",
            "the file is binary or damaged; inside a quoted string write it as an escape, such as \\x07",
        )  # fmt: skip
    return text


def _decoded(source: Source) -> str:
    data = source.data
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"  # PowerShell's `>` writes UTF-16
    if data.lstrip()[:1] == b"{" and re.search(_PAIR, data):
        data = _SURROGATES.sub(_pair, data)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line, column = _place_at(data[: error.start].decode(encoding, "replace"), None)
        byte = data[error.start]
        raise wrong(
            source.name, line, column, f"the byte 0x{byte:02x} is not {encoding[:6].upper().rstrip('-')}",
            "save the file as UTF-8 text, or name the right file",
        ) from error  # fmt: skip


def _pair(match: re.Match[bytes]) -> bytes:
    r"""JSON's `\ud83d\ude00` is one character; libyaml knows no surrogates."""
    if match[1] is None:
        return match[0]
    high, low = int(match[1], 16), int(match[2], 16)
    return chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00)).encode()


def _place_at(text: str, offset: int | None) -> tuple[int, int]:
    before = text[:offset]
    return before.count("\n"), len(before) - before.rfind("\n") - 1


# --- events → values --------------------------------------------------------------------------------------------------

_NOTHING: Any = object()
_TYPES: dict[str, set[type]] = {
    "null": {type(None)},
    "bool": {bool},
    "int": {int},
    "float": {int, float},
    "timestamp": {str},
}
_SCALAR_TAGS = {"tag:yaml.org,2002:" + name for name in _TYPES}
_COLLECTION_TAGS = {yaml.MappingStartEvent: "tag:yaml.org,2002:map", yaml.SequenceStartEvent: "tag:yaml.org,2002:seq"}
_STRINGS = {"!", "tag:yaml.org,2002:str", "tag:yaml.org,2002:binary"}
_MERGE = "<<"  # a key is a merge if it *is* this object: a quoted "<<" is another string


class _Value(NamedTuple):
    """A finished value: how many values it is with all below it (aliases written out), how deep it goes, its place."""

    value: Any
    size: int
    height: int
    place: Place | None


class _Frame:
    """A mapping or list that is being read."""

    __slots__ = ("anchor", "height", "key", "keys", "mark", "merged", "place", "size", "value")

    def __init__(self, value: Any, event: Any, place: Place | None) -> None:
        self.value, self.anchor, self.mark, self.place = value, event.anchor, event.start_mark, place
        self.size = self.height = 1
        self.key: Any = _NOTHING  # of a mapping: the key whose value comes next
        self.keys: dict[str, Any] = {}  # the marks of all keys
        self.merged: list[tuple[dict[str, Any], Place | None]] = []


class _Reader:
    """Reads one source. `keep`: also places."""

    def __init__(self, source: Source, *, keep: bool) -> None:
        self.name, self.keep, self.text = source.name, keep, text_of(source)
        self.stack: list[_Frame] = []
        self.anchors: dict[str, _Value | None] = {}  # None: not finished yet
        self.aliased = 0

    def error(self, mark: Any, message: str, hint: str) -> InputError:
        return wrong(self.name, mark.line, mark.column, message, hint)

    def read(self) -> Iterator[_Value]:
        try:
            yield from self._documents(CParser(self.text))
        except yaml.MarkedYAMLError as error:
            raise self._syntax(error) from error
        except yaml.YAMLError as error:  # pragma: no cover - text_of has refused what libyaml's reader would
            raise wrong(self.name, 0, 0, " ".join(str(error).split()), "is this a YAML file?") from error

    def _documents(self, parser: Any) -> Iterator[_Value]:
        next_event = parser.get_event
        while True:
            event = next_event()
            cls = type(event)
            if cls is yaml.ScalarEvent:
                ready = _Value(self._scalar(event), 1, 0, self._place(event) if self.keep else None)
                self._put(ready, event.start_mark, event.anchor)
            elif cls is yaml.MappingStartEvent or cls is yaml.SequenceStartEvent:
                self._open(event, {} if cls is yaml.MappingStartEvent else [])
                continue
            elif cls is yaml.MappingEndEvent or cls is yaml.SequenceEndEvent:
                ready = self._close()
            elif cls is yaml.AliasEvent:
                ready = self._alias(event)
                self._put(ready, event.start_mark, None)
            elif cls is yaml.StreamEndEvent:
                return
            else:
                self.anchors = {}
                continue
            if not self.stack:
                yield ready

    def _place(self, event: Any) -> Place:
        return Place(event.start_mark.line, event.start_mark.column, getattr(event, "value", None))

    def _too_deep(self, mark: Any) -> InputError:
        return self.error(
            mark, f"nested more than {MAX_DEPTH} deep", "no Kubernetes object is; look for a loop of [ or {"
        )

    def _open(self, event: Any, value: Any) -> None:
        if len(self.stack) >= MAX_DEPTH:
            raise self._too_deep(event.start_mark)
        if event.tag and event.tag not in ("!", _COLLECTION_TAGS[type(event)]):
            raise self._unknown_tag(event)
        if event.anchor:
            self.anchors[event.anchor] = None
        self.stack.append(_Frame(value, event, self._place(event) if self.keep else None))

    def _close(self) -> _Value:
        frame = self.stack.pop()
        if frame.merged:
            self._merge(frame)
        ready = _Value(frame.value, frame.size, frame.height, frame.place)
        self._put(ready, frame.mark, frame.anchor)
        return ready

    def _merge(self, frame: _Frame) -> None:
        """`<<`: what a mapping says itself counts, then the first mapping merged in, then the next."""
        for mapping, place in frame.merged:
            for key, value in mapping.items():
                if key not in frame.value:
                    frame.value[key] = value
                    if frame.place and place:
                        frame.place.children[key] = place.children[key]

    def _alias(self, event: Any) -> _Value:
        name, mark = shown(event.anchor), event.start_mark
        if event.anchor not in self.anchors:
            raise self.error(
                mark, f"the alias *{name} has no anchor &{name} before it", f'or is it text? Quote it: "*{name}"'
            )
        found = self.anchors[event.anchor]
        if found is None:
            raise self.error(mark, f"the alias *{name} stands inside what it stands for", "write it out")
        self.aliased += found.size
        if self.aliased > MAX_ALIASED:
            message = f"the aliases stand for more than {MAX_ALIASED:,} values"
            raise self.error(mark, message, "write what is meant without aliases, or in several files")
        if len(self.stack) + found.height > MAX_DEPTH:
            raise self._too_deep(mark)
        return found

    def _put(self, ready: _Value, mark: Any, anchor: str | None) -> None:
        """Give a finished value to the mapping or list around it."""
        if anchor:
            self.anchors[anchor] = ready
        if not self.stack:
            return
        frame, place = self.stack[-1], ready.place
        frame.size += ready.size
        if ready.height >= frame.height:
            frame.height = ready.height + 1
        if type(frame.value) is list:
            if place and frame.place:
                frame.place.children[len(frame.value)] = place
            frame.value.append(ready.value)
        elif frame.key is _NOTHING:
            self._key(frame, ready.value, mark)
        else:
            self._pair(frame, ready.value, mark, place)

    def _key(self, frame: _Frame, value: Any, mark: Any) -> None:
        key = value if type(value) is str else self._key_text(value, mark)
        if key in frame.keys and key is not _MERGE:
            raise self.error(mark, f'the key "{shown(key)}" is given twice, first on line {frame.keys[key].line + 1}',
                        "keep one of the two")  # fmt: skip
        frame.key, frame.keys[key] = key, mark

    def _key_text(self, value: Any, mark: Any) -> str:
        """A key that is no string, as kubectl's YAML → JSON spells it: 8080 → "8080", yes → "true"."""
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, int | float):
            return format(value, "g") if isinstance(value, float) else str(value)
        if value is None:
            raise self.error(mark, "a key is empty", "write a name before the colon")
        raise self._no_key(value, mark)

    def _no_key(self, value: Any, mark: Any) -> InputError:
        hint = "keys are plain words; quote text that begins with { or ["
        if "{{" in self.text.splitlines()[mark.line]:
            hint = "this is a Helm template: give nsnet what `helm template` prints"
        return self.error(mark, f"a {'mapping' if isinstance(value, dict) else 'list'} cannot be a key", hint)

    def _pair(self, frame: _Frame, value: Any, mark: Any, place: Place | None) -> None:
        key, frame.key = frame.key, _NOTHING
        if key is _MERGE:
            frame.merged += self._mappings(value, mark, place)
            return
        frame.value[key] = value
        if place and frame.place:
            frame.place.children[key] = place.under_key(frame.keys[key])

    def _mappings(self, value: Any, mark: Any, place: Place | None) -> list[tuple[dict[str, Any], Place | None]]:
        if isinstance(value, dict):
            return [(value, place)]
        if isinstance(value, list) and all(isinstance(item, dict) for item in value):
            return [(item, place.children[index] if place else None) for index, item in enumerate(value)]
        raise self.error(
            mark, "<< takes a mapping, or a list of mappings, to merge", 'to have a key called <<, quote it: "<<"'
        )

    def _scalar(self, event: Any) -> Any:
        if event.tag:
            return self._tagged(event)
        if not event.implicit[0]:
            return event.value
        if event.value == _MERGE:
            return _MERGE
        value = resolve(event.value)
        if type(value) is int or type(value) is float:
            self._number(event, value)
        return value

    def _number(self, event: Any, value: float) -> None:
        """JSON, the API's language, has neither NaN nor infinity, and the API no integer over 64 bits."""
        fits = -(2**63) <= value < 2**64 if isinstance(value, int) else abs(value) < float("inf")
        if not fits:
            raise self.error(event.start_mark, f"the number {shown(event.value)} does not fit in the API's numbers",
                        f'if it is text, quote it: "{shown(event.value)}"')  # fmt: skip

    def _tagged(self, event: Any) -> Any:
        if event.tag in _STRINGS:
            return event.value
        if event.tag not in _SCALAR_TAGS:
            raise self._unknown_tag(event)
        value = resolve(event.value)
        name = event.tag.rpartition(":")[2]
        if type(value) not in _TYPES[name]:
            raise self.error(event.start_mark, f'"{shown(event.value)}" is not a !!{name}', "leave the tag out")
        return value

    def _unknown_tag(self, event: Any) -> InputError:
        tag = event.tag.replace("tag:yaml.org,2002:", "!!")
        return self.error(event.start_mark, f"the tag {shown(tag)} means nothing to Kubernetes",
                    "leave it out; if a text begins with !, quote it")  # fmt: skip

    def _syntax(self, error: yaml.MarkedYAMLError) -> InputError:
        mark = error.problem_mark or error.context_mark
        assert mark is not None
        said = " ".join(str(part) for part in (error.problem, error.context) if part)
        lines = self.text.splitlines() or [""]
        line = lines[min(mark.line, len(lines) - 1)]
        return wrong(
            self.name, mark.line, mark.column, f"not YAML: {said}", _syntax_hint(error.problem or "", line, mark.column)
        )


def shown(text: str, most: int = 60) -> str:
    """A user's text inside a one-line message: escapes instead of line ends, cut where it is long."""
    text = text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: most + 1])
    return text if len(text) <= most else text[:most] + "…"


def _syntax_hint(problem: str, line: str, column: int) -> str:
    if "{{" in line:
        return "this is a Helm template: give nsnet what `helm template` prints"
    if "\t" in line[: column + 1] or "tab" in problem:
        return "indent with spaces; YAML allows no tab there"
    if "mapping values" in problem:
        return 'check the indentation, or quote the text if it contains ": "'
    if "cannot start any token" in problem:
        return f"quote a text that begins with {line[column : column + 1]}"
    if "<document start>" in problem:
        return "separate documents with a line of three dashes: ---"
    if "quoted scalar" in problem or "end of stream" in problem:
        return "a quote is not closed, or one too many is there"
    if "',' or" in problem or "flow" in problem:
        return "a bracket or brace is not closed, or a comma is missing"
    return "check the indentation of this line and of the lines above"
