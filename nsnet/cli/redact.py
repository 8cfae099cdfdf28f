"""What must not leave the machine in a bundle: the data of Secrets, private keys, tokens and passwords.

Objects lose them by their place; every other text loses whatever was found there, wherever it turns up, and what looks
like a key or a token by itself. Public parts (certificates, addresses, names) stay: they are what one looks for.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

REDACTED = "[redacted]"
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"  # kubectl's copy of the whole object
PSK = "PSK"  # WireGuard's preshared key, in flannel's configuration
SHORT = 6  # characters: what is shorter would also be found where it is none

_NAMES_SECRET = re.compile(r"token|passw|secret|credential|private|api_?key|access_?key|auth", re.IGNORECASE)
_LOOKS_SECRET = (
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    re.compile(r"(?<=[Bb]earer )[A-Za-z0-9._~+/-]+=*"),
    re.compile(r"(?i)(?<=token=)[^\s&\"']+"),
    re.compile(r"(?i)(?<=password=)[^\s&\"']+"),
    re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"),
)


def document(doc: Mapping[str, Any]) -> Any:
    """A Kubernetes object without its secrets: the values of a Secret, those of telling environment variables."""
    if doc.get("kind") == "Secret":
        hidden = {name: dict.fromkeys(doc[name] or (), REDACTED) for name in ("data", "stringData") if name in doc}
        return _plain(_without_copy({**doc, **hidden}))
    return _plain(_without_copy(doc))


def _without_copy(doc: Mapping[str, Any]) -> dict[str, Any]:
    meta = dict(doc.get("metadata") or {})
    if LAST_APPLIED in (meta.get("annotations") or {}):
        meta["annotations"] = {**meta["annotations"], LAST_APPLIED: REDACTED}
    return {**doc, "metadata": meta} if meta else dict(doc)


def _plain(value: Any) -> Any:
    match value:
        case {"name": str(name), "value": str() | int() | float()} if _NAMES_SECRET.search(name):
            return {**value, "value": REDACTED}
        case Mapping():
            return {name: REDACTED if item and name == PSK else _plain(item) for name, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
    return value


def secrets(docs: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Every secret in the objects, in each form it may turn up in: plain, base64, quoted for a URL."""
    return frozenset(form for doc in docs for value in _secret_values(doc) for form in _forms(value))


def _secret_values(value: Any) -> Iterator[str]:
    match value:
        case {"kind": "Secret"}:
            yield from map(str, (value.get("stringData") or {}).values())
            for coded in map(str, (value.get("data") or {}).values()):
                yield coded
                yield from _decoded(coded)
        case {"name": str(name), "value": str(said)} if _NAMES_SECRET.search(name):
            yield said
        case Mapping():
            if isinstance(psk := value.get(PSK), str):
                yield psk
            for item in value.values():
                yield from _secret_values(item)
        case list() | tuple():
            for item in value:
                yield from _secret_values(item)


def _decoded(coded: str) -> Iterator[str]:
    try:
        yield base64.b64decode(coded, validate=True).decode()
    except (binascii.Error, ValueError):
        return


def _forms(value: str) -> Iterator[str]:
    """A certificate is no secret, and would take every text about it with it."""
    said = value.strip()
    if len(said) >= SHORT and "BEGIN CERTIFICATE" not in said:
        yield from (said, quote(said, safe=""), base64.b64encode(value.encode()).decode())


def text(said: str, known: Iterable[str]) -> str:
    """Without the known secrets (the longest first: one may be part of another) and what looks like one."""
    for secret in sorted(known, key=len, reverse=True):
        said = said.replace(secret, REDACTED)
    for pattern in _LOOKS_SECRET:
        said = pattern.sub(REDACTED, said)
    return said


def is_clean(content: bytes, known: Iterable[str]) -> bool:
    """Whether bytes that cannot be rewritten (a capture) hold none of the known secrets."""
    return not any(secret.encode() in content for secret in known)
