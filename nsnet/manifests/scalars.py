"""What a YAML scalar without quotes means to kubectl.

kubectl reads YAML 1.1 through goyaml.v2 (`sigs.k8s.io/yaml`, `goyaml.v2/resolve.go`), whose rules are neither those of
YAML 1.2 nor PyYAML's: `no`, `off` and `n` are false, `0644` is octal, `12:30` is a string (PyYAML: 750) and a date
stays a string. Whoever wants the text quotes it; where a field wants a string, the error says so (`schema`).
"""

import re
from typing import Any

_WORDS: dict[str, Any] = {
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"), True),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
}
_NUMERIC = frozenset("0123456789+-.")
_INTEGER = re.compile(r"([-+]?)(?:0[xX]([0-9a-fA-F]+)|0[bB]([01]+)|0[oO]?([0-7]+)|(0|[1-9][0-9]*))")
_BASES = (16, 2, 8, 10)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_LONGEST = 400  # no number has more digits; int() refuses 4,300


def resolve(text: str) -> Any:
    """The value of a plain scalar: None, bool, int, float or the text itself. NaN and infinities come as floats."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in _NUMERIC or len(text) > _LONGEST:
        return text
    return _number(text)


def _number(text: str) -> int | float | str:
    if text.isdecimal() and text.isascii() and text[0] != "0":
        return int(text)
    plain = text.replace("_", "") if text[0] != "." else text
    if match := _INTEGER.fullmatch(plain):
        digits, base = next((d, b) for d, b in zip(match.groups()[1:], _BASES, strict=True) if d is not None)
        return int(match[1] + digits, base)
    if _FLOAT.fullmatch(plain):
        value = float(plain)
        return value if value not in (float("inf"), float("-inf")) else text
    return text
