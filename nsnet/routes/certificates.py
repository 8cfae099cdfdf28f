"""TLS Secrets: is there a certificate in it, a key, and do they belong together? And as the one file the proxy reads.

The proxy would refuse its whole configuration for one broken certificate, and with it every other route; so what is
broken is told apart before. Only as much of X.509 is read here as that takes: a certificate's public key, a private
key's public part (RFC 5280, RFC 8017, RFC 5915, RFC 5958). OpenSSL's own limit on RSA keys is kept, too.
"""

import base64
import binascii
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from nsnet.model import Object, Other

SMALLEST_RSA = 2048  # bits: Debian's OpenSSL has security level 2
_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----(.*?)-----END \1-----", re.DOTALL)
_SEQUENCE, _INTEGER, _BITS = 0x30, 0x02, 0x03
_VERSION, _PUBLIC = 0xA0, 0xA1


class Broken(Exception):  # noqa: N818 - what it says is a sentence about a Secret
    """Why a Secret cannot be served."""


def pem_of(secret: Object) -> str:
    """Certificates and key as one PEM text. Raises Broken, with the reason as a sentence."""
    certificate, key = (_field(secret, name) for name in ("tls.crt", "tls.key"))
    _check(certificate, key)
    return "".join(f"{text.strip()}\n" for text in (certificate, key))


def _field(secret: Object, name: str) -> str:
    """Plain text under stringData wins over base64 under data, as the API server has it."""
    raw = secret.raw if isinstance(secret, Other) else {}
    plain, coded = (raw.get("stringData") or {}).get(name), (raw.get("data") or {}).get(name)
    if plain is None and not coded:
        raise Broken(f"it has no {name}")
    try:
        return str(plain) if plain is not None else base64.b64decode("".join(str(coded).split())).decode("ascii")
    except (binascii.Error, ValueError):
        raise Broken(f"{name} is not PEM text") from None


@lru_cache(maxsize=4096)
def _why(certificate: str, key: str) -> str:
    try:
        public = _public_of_certificate(certificate)
        private = _public_of_key(key)
    except Broken as broken:
        return str(broken)
    except (IndexError, ValueError):
        return "tls.crt or tls.key is damaged"
    if private and private not in public:
        return "tls.key does not belong to tls.crt"
    return ""


def _check(certificate: str, key: str) -> None:
    why = _why(certificate, key)
    if why:
        raise Broken(why)


def leaf(pem: str) -> bytes:
    """The first certificate of a PEM text, as the client is shown it (DER)."""
    return next(_blocks(pem, "CERTIFICATE"), b"")


def _blocks(text: str, ending: str) -> Iterator[bytes]:
    for label, body in _BLOCK.findall(text):
        if label.endswith(ending):
            yield base64.b64decode("".join(body.split()), validate=True)


def _public_of_certificate(text: str) -> bytes:
    """The subjectPublicKeyInfo's bits of the first certificate; every one must be one for OpenSSL."""
    import ssl  # takes 15 ms, and most clusters have no certificate

    first = leaf(text)
    if not first:
        raise Broken("tls.crt has no certificate in it")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError):
        raise Broken("tls.crt is not a certificate") from None
    fields = _children(_children(_item(first).body)[0].body)
    skip = 1 if fields[0].tag == _VERSION else 0
    info = _children(fields[skip + 5].body)
    public = info[1].body[1:]
    if public[:1] == bytes((_SEQUENCE,)):  # RSA: SEQUENCE { modulus, exponent }
        modulus = _children(_item(public).body)[0].body.lstrip(b"\0")
        if len(modulus) * 8 < SMALLEST_RSA:
            raise Broken(f"its RSA key has {len(modulus) * 8} bits, and OpenSSL wants {SMALLEST_RSA}")
    return public


def _public_of_key(text: str) -> bytes:
    """What must stand in the certificate: an RSA modulus, an EC point; nothing where only the private part is given."""
    labels = [label for label, _ in _BLOCK.findall(text) if label.endswith("PRIVATE KEY")]
    if not labels:
        raise Broken("tls.key has no private key in it")
    if labels[0].startswith("ENCRYPTED"):
        raise Broken("tls.key is encrypted, and nobody here knows the password")
    fields = _children(_item(next(_blocks(text, "PRIVATE KEY"))).body)
    if labels[0] == "PRIVATE KEY":  # PKCS #8: version, algorithm, the key as octets
        inner = _item(fields[2].body)
        if inner.tag != _SEQUENCE:
            return b""  # Ed25519 and its like
        fields = _children(inner.body)
    if fields[1].tag == _INTEGER:
        return fields[1].body.lstrip(b"\0")
    point = next((item for item in fields if item.tag == _PUBLIC), None)
    return _item(point.body).body[1:] if point else b""


# --- DER --------------------------------------------------------------------------------------------------------------


class _Item(NamedTuple):
    tag: int
    body: bytes
    size: int  # with the tag and the length


def _item(data: bytes) -> _Item:
    """The first element. Raises IndexError and ValueError where there is none."""
    tag, length, start = data[0], data[1], 2
    if length & 0x80:
        count = length & 0x7F
        length, start = int.from_bytes(data[2 : 2 + count], "big"), 2 + count
    if len(data) < start + length:
        raise ValueError("too short")
    return _Item(tag, data[start : start + length], start + length)


def _children(data: bytes) -> list[_Item]:
    found = []
    while data:
        found.append(_item(data))
        data = data[found[-1].size :]
    return found
