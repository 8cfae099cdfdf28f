"""The certificate that is shown where none was given for a name: self-signed, and the same for the same cluster.

Every choice here is a function of names, and so is this key: `plan` shows what `up` does. That makes it a key that
anyone can recompute, good for what ingress controllers have such a certificate for (a handshake that ends in a
browser's warning) and for nothing else.

ECDSA on P-256 (FIPS 186-4, SEC 1) and as much DER as a certificate takes (RFC 5280, RFC 5915), since nothing that nsnet
depends on can sign.
"""

import base64
import hashlib

PRIME = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
BASE = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
EC_PUBLIC_KEY, P256 = "1.2.840.10045.2.1", "1.2.840.10045.3.1.7"
ECDSA_SHA256 = "1.2.840.10045.4.3.2"
COMMON_NAME, ORGANIZATION, ALT_NAME = "2.5.4.3", "2.5.4.10", "2.5.29.17"
NAME, OWNER, SERVER = "nsnet default certificate", "nsnet", "ingress.local"
SINCE, UNTIL = b"250101000000Z", b"491231235959Z"

Point = tuple[int, int] | None


def default_certificate(cluster: str) -> tuple[str, str]:
    """Certificate and key as PEM."""
    private = _number(f"key of {cluster}") % (ORDER - 1) + 1
    point = _times(private, BASE)
    assert point is not None
    public = b"\x04" + b"".join(part.to_bytes(32, "big") for part in point)
    body = _body(_number(f"serial of {cluster}") >> 130, public)
    signature = _signature(private, body)
    whole = _sequence(body, _sequence(_oid(ECDSA_SHA256)), _bits(signature))
    return _pem("CERTIFICATE", whole), _pem("EC PRIVATE KEY", _key(private, public))


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")


def _body(serial: int, public: bytes) -> bytes:
    who = _sequence(_named(ORGANIZATION, OWNER), _named(COMMON_NAME, NAME))
    key = _sequence(_sequence(_oid(EC_PUBLIC_KEY), _oid(P256)), _bits(public))
    names = _tagged(0x04, _sequence(_tagged(0x82, SERVER.encode())))
    return _sequence(
        _tagged(0xA0, _integer(2)),
        _integer(serial),
        _sequence(_oid(ECDSA_SHA256)),
        who,
        _sequence(_tagged(0x17, SINCE), _tagged(0x17, UNTIL)),
        who,
        key,
        _tagged(0xA3, _sequence(_sequence(_oid(ALT_NAME), names))),
    )


def _named(kind: str, text: str) -> bytes:
    return _tagged(0x31, _sequence(_oid(kind), _tagged(0x0C, text.encode())))


def _key(private: int, public: bytes) -> bytes:
    return _sequence(
        _integer(1),
        _tagged(0x04, private.to_bytes(32, "big")),
        _tagged(0xA0, _oid(P256)),
        _tagged(0xA1, _bits(public)),
    )


def _pem(label: str, data: bytes) -> str:
    text = base64.b64encode(data).decode()
    lines = "\n".join(text[at : at + 64] for at in range(0, len(text), 64))
    return f"-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n"


# --- P-256 ------------------------------------------------------------------------------------------------------------


def _signature(private: int, message: bytes) -> bytes:
    """The nonce is a function of key and message (the idea of RFC 6979): the same certificate every time."""
    digest = hashlib.sha256(message).digest()
    nonce = int.from_bytes(hashlib.sha512(private.to_bytes(32, "big") + digest).digest(), "big") % (ORDER - 1) + 1
    point = _times(nonce, BASE)
    assert point is not None
    first = point[0] % ORDER
    second = pow(nonce, -1, ORDER) * (int.from_bytes(digest, "big") + first * private) % ORDER
    return _sequence(_integer(first), _integer(second))


def _times(number: int, point: Point) -> Point:
    total: Point = None
    while number:
        if number & 1:
            total = _sum(total, point)
        point = _sum(point, point)
        number >>= 1
    return total


def _sum(one: Point, other: Point) -> Point:
    if one is None or other is None:
        return one or other
    (x, y), (u, v) = one, other
    if x == u and (y + v) % PRIME == 0:
        return None
    slope = (3 * x * x - 3) * pow(2 * y, -1, PRIME) if x == u else (v - y) * pow(u - x, -1, PRIME)
    third = (slope * slope - x - u) % PRIME
    return third, (slope * (x - third) - y) % PRIME


# --- DER --------------------------------------------------------------------------------------------------------------


def _tagged(tag: int, body: bytes) -> bytes:
    size = len(body)
    if size < 0x80:
        return bytes((tag, size)) + body
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + body


def _sequence(*parts: bytes) -> bytes:
    return _tagged(0x30, b"".join(parts))


def _integer(number: int) -> bytes:
    return _tagged(0x02, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def _bits(data: bytes) -> bytes:
    return _tagged(0x03, b"\0" + data)


def _oid(text: str) -> bytes:
    first, second, *rest = map(int, text.split("."))
    return _tagged(0x06, b"".join(_base128(number) for number in (first * 40 + second, *rest)))


def _base128(number: int) -> bytes:
    found = [number & 0x7F]
    while number := number >> 7:
        found.append(0x80 | (number & 0x7F))
    return bytes(reversed(found))
