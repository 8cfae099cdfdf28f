"""WireGuard devices' keys and peers, by generic netlink; the devices themselves are links (`rtnl.py`).

    wg set flannel-wg listen-port 51820 private-key FILE             WireguardKey
    wg set flannel-wg peer KEY endpoint IP:PORT allowed-ips CIDR     WireguardPeer

A private key never becomes a value: what the kernel has is compared with the file it should be from (`names`), and the
value bears the file's name when they are the same. One that the kernel has from elsewhere bears none, and is drift.

Sources: Linux `include/uapi/linux/wireguard.h`, `drivers/net/wireguard/netlink.c`; tests hold the messages against
pyroute2's, whose codec takes half a second to load.
"""

import errno
import os
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from struct import Struct

from nsnet import names
from nsnet.kernel.netlink import (
    NLA_F_NESTED,
    Message,
    Netlink,
    Request,
    attribute,
    attributes,
    inner,
    listed,
    nested,
    text,
)
from nsnet.kernel.netns import netlink
from nsnet.state import Change, Refusal, Value, WireguardKey, WireguardPeer, socket_address

NETLINK_GENERIC = 16
GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 16, 3, 1, 2

WG_CMD_GET_DEVICE, WG_CMD_SET_DEVICE = 0, 1
WGDEVICE_A_IFNAME, WGDEVICE_A_PRIVATE_KEY, WGDEVICE_A_PUBLIC_KEY = 2, 3, 4
WGDEVICE_A_LISTEN_PORT, WGDEVICE_A_PEERS = 6, 8
WGPEER_A_PUBLIC_KEY, WGPEER_A_PRESHARED_KEY, WGPEER_A_FLAGS, WGPEER_A_ENDPOINT = 1, 2, 3, 4
WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL, WGPEER_A_ALLOWEDIPS = 5, 9
WGPEER_F_REMOVE_ME, WGPEER_F_REPLACE_ALLOWEDIPS = 1, 2
WGALLOWEDIP_A_FAMILY, WGALLOWEDIP_A_IPADDR, WGALLOWEDIP_A_CIDR_MASK = 1, 2, 3

NO_KEY = bytes(32)
ELSEWHERE = "(not from a file of ours)"  # where a preshared key is from

_GENL = Struct("=BBxx")  # command, version
_U32, _U16, _BE16 = Struct("=I"), Struct("=H"), Struct("!H")


def _family(route: Netlink) -> int:
    """The number that "wireguard" has in this kernel; the module is loaded by the first device of its kind.

    Raises OSError (ENOENT) where there is none.
    """
    body = _GENL.pack(CTRL_CMD_GETFAMILY, 1) + text(CTRL_ATTR_FAMILY_NAME, "wireguard")
    _, data, start, end = route.get(Request(GENL_ID_CTRL, 0, body))
    number: int = _U16.unpack(attributes(data, start + _GENL.size, end)[CTRL_ATTR_FAMILY_ID])[0]
    return number


# --- reading ----------------------------------------------------------------------------------------------------------


def read(netns: str, devices: Sequence[str]) -> Iterator[Value]:
    """The keys and peers of these WireGuard devices."""
    with netlink(netns, NETLINK_GENERIC) as generic:
        family = _family(generic)
        ask = partial(_GENL.pack, WG_CMD_GET_DEVICE, 1)
        answers = generic.dump([Request(family, 0, ask() + text(WGDEVICE_A_IFNAME, dev)) for dev in devices])
    for dev, messages in zip(devices, answers, strict=True):
        yield from decoded(netns, dev, messages)


def decoded(netns: str, dev: str, messages: Iterable[Message]) -> Iterator[Value]:
    """What a device tells of itself: one with many peers in several messages, the first of which says who it is."""
    peers: dict[bytes, dict[int, bytes]] = {}
    ranges: dict[bytes, list[str]] = {}
    for _, data, start, end in messages:
        found = attributes(data, start + _GENL.size, end)
        if WGDEVICE_A_PUBLIC_KEY in found:
            file = _origin(names.wireguard_key_file(netns), found.get(WGDEVICE_A_PRIVATE_KEY, NO_KEY), private=True)
            port = _U16.unpack(found[WGDEVICE_A_LISTEN_PORT])[0]
            yield WireguardKey(dev, _words(found[WGDEVICE_A_PUBLIC_KEY]), port, file)
        for payload in listed(found.get(WGDEVICE_A_PEERS, b"")):
            peer = inner(payload)
            key = peer[WGPEER_A_PUBLIC_KEY]
            peers[key] = peers.get(key, {}) | peer
            ranges.setdefault(key, []).extend(map(_cidr, listed(peer.get(WGPEER_A_ALLOWEDIPS, b""))))
    for key, peer in peers.items():
        yield _peer(netns, dev, peer, ranges[key])


def _peer(netns: str, dev: str, peer: Mapping[int, bytes], ranges: Iterable[str]) -> WireguardPeer:
    shared = peer.get(WGPEER_A_PRESHARED_KEY, NO_KEY)
    file = "" if shared == NO_KEY else _origin(names.wireguard_psk_file(netns), shared) or ELSEWHERE
    keepalive = _U16.unpack(peer.get(WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL, bytes(2)))[0]
    endpoint = _endpoint(peer.get(WGPEER_A_ENDPOINT, b""))
    return WireguardPeer(dev, _words(peer[WGPEER_A_PUBLIC_KEY]), endpoint, tuple(sorted(ranges)), keepalive, file)


def _words(key: bytes) -> str:
    return b64encode(key).decode()


def _origin(file: Path, key: bytes, *, private: bool = False) -> str:
    """The file, where the key stands in it. Of a private key the kernel sets three bits and clears two (RFC 7748)."""
    try:
        said = _key_in(file)
        return str(file) if (_clamped(said) if private else said) == key else ""
    except (OSError, ValueError):
        return ""


def _clamped(key: bytes) -> bytes:
    return bytes((key[0] & 0xF8, *key[1:31], key[31] & 0x7F | 0x40))


def _key_in(file: Path | str) -> bytes:
    """The key in a file, as `wg genkey` writes it. Raises OSError or ValueError."""
    key = b64decode(Path(file).read_text(encoding="ascii"))
    if len(key) != len(NO_KEY):
        raise ValueError(f"{file} holds no key of 32 bytes")
    return key


def _endpoint(packed: bytes) -> str:
    """A sockaddr_in or sockaddr_in6."""
    if not packed:
        return ""
    six = _U16.unpack_from(packed)[0] == AF_INET6
    address = inet_ntop(AF_INET6, packed[8:24]) if six else inet_ntop(AF_INET, packed[4:8])
    return socket_address(address, _BE16.unpack_from(packed, 2)[0])


def _cidr(payload: bytes) -> str:
    found = inner(payload)
    family = _U16.unpack(found[WGALLOWEDIP_A_FAMILY])[0]
    return f"{inet_ntop(family, found[WGALLOWEDIP_A_IPADDR])}/{found[WGALLOWEDIP_A_CIDR_MASK][0]}"


# --- writing ----------------------------------------------------------------------------------------------------------


def write(netns: str, changes: Sequence[Change]) -> list[Refusal]:
    """Keys, then peers that come, then those that go; a key goes with its device. Raises OSError."""
    ordered = sorted(changes, key=lambda change: (isinstance(change.value, WireguardPeer), change.verb == "delete"))
    refusals: list[Refusal] = []
    with netlink(netns, NETLINK_GENERIC) as generic:
        family = _family(generic)
        sent: list[tuple[Change, Request]] = []
        for change in ordered:
            try:
                sent += [(change, Request(family, 0, body)) for body in bodies(change)]
            except (OSError, ValueError) as why:
                refusals.append(Refusal(change, str(why)))
        for position, failure in generic.ask([request for _, request in sent]).items():
            change = sent[position][0]
            if not (change.verb == "delete" and failure.code in {errno.ENODEV, errno.ENOENT}):
                refusals.append(Refusal(change, failure.sentence or os.strerror(failure.code)))
    return refusals


def bodies(change: Change) -> Iterator[bytes]:
    """The message of one change, behind its header. Raises OSError or ValueError for a file without a key."""
    value = change.value
    match value:
        case WireguardKey(dev, _, port, file) if change.verb != "delete":
            key = attribute(WGDEVICE_A_PRIVATE_KEY, _key_in(file))
            yield _set(dev, key, attribute(WGDEVICE_A_LISTEN_PORT, _U16.pack(port)))
        case WireguardPeer(dev, public) if change.verb == "delete":
            yield _set(dev, _peers(public, attribute(WGPEER_A_FLAGS, _U32.pack(WGPEER_F_REMOVE_ME))))
        case WireguardPeer(dev, public):
            yield _set(dev, _peers(public, *_peer_parts(value)))


def _set(dev: str, *parts: bytes) -> bytes:
    return _GENL.pack(WG_CMD_SET_DEVICE, 1) + text(WGDEVICE_A_IFNAME, dev) + b"".join(parts)


def _peers(public: str, *parts: bytes) -> bytes:
    """The list of peers, with one in it."""
    key = attribute(WGPEER_A_PUBLIC_KEY, b64decode(public))
    return nested(WGDEVICE_A_PEERS | NLA_F_NESTED, nested(1 | NLA_F_NESTED, key, *parts))


def _peer_parts(peer: WireguardPeer) -> Iterator[bytes]:
    yield attribute(WGPEER_A_PRESHARED_KEY, _key_in(peer.psk_file) if peer.psk_file else NO_KEY)
    yield attribute(WGPEER_A_FLAGS, _U32.pack(WGPEER_F_REPLACE_ALLOWEDIPS))
    yield attribute(WGPEER_A_ENDPOINT, _packed_endpoint(peer.endpoint))
    yield attribute(WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL, _U16.pack(peer.keepalive))
    yield nested(
        WGPEER_A_ALLOWEDIPS | NLA_F_NESTED, *(_allowed(number, cidr) for number, cidr in enumerate(peer.allowed_ips, 1))
    )


def _packed_endpoint(words: str) -> bytes:
    address, _, number = words.rpartition(":")
    port = _BE16.pack(int(number))
    if address.startswith("["):
        return _U16.pack(AF_INET6) + port + bytes(4) + inet_pton(AF_INET6, address.strip("[]")) + bytes(4)
    return _U16.pack(AF_INET) + port + inet_pton(AF_INET, address) + bytes(8)


def _allowed(number: int, cidr: str) -> bytes:
    """One of a list: the kernel does not ask for its number."""
    address, _, length = cidr.partition("/")
    family = AF_INET6 if ":" in address else AF_INET
    return nested(
        number | NLA_F_NESTED,
        attribute(WGALLOWEDIP_A_FAMILY, _U16.pack(family)),
        attribute(WGALLOWEDIP_A_IPADDR, inet_pton(family, address)),
        attribute(WGALLOWEDIP_A_CIDR_MASK, bytes([int(length)])),
    )
