"""Notifications: a namespace says that a link, an address, a route or a permanent neighbour has changed.

They are hints: messages get lost when the socket's buffer is full, and nothing here says what is right. Neighbours that
the kernel learns and forgets by itself (and a bridge's learned FDB entries) are not worth a look and are passed over.

Source: Linux `include/uapi/linux/rtnetlink.h`, `include/uapi/linux/neighbour.h`.
"""

import errno
import socket
from struct import Struct

from nsnet.kernel.netlink import NETLINK_ROUTE
from nsnet.kernel.netns import inside
from nsnet.kernel.rtnl import AF_BRIDGE, NEIGH, NUD_PERMANENT, RTM_DELNEIGH, RTM_NEWNEIGH

GROUPS = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400  # RTMGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_…, _IPV6_…

_HEADER = Struct("=IHHII")


def subscribe(netns: str) -> socket.socket:
    """A non-blocking socket that becomes readable when something changes in the namespace. Raises OSError."""
    with inside(netns):
        listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE)
    listener.setblocking(False)
    listener.bind((0, GROUPS))
    return listener


def changed(listener: socket.socket) -> bool:
    """Reads all that waits on the socket; True when it (perhaps) is worth a look."""
    found = False
    while True:
        try:
            data = listener.recv(1 << 17)
        except BlockingIOError:
            return found
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            found = True
        else:
            found = found or _matters(data)


def _matters(data: bytes) -> bool:
    """Does one of these messages tell of more than a neighbour that came or went by itself?"""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, at)
        if kind not in (RTM_NEWNEIGH, RTM_DELNEIGH) or _is_set_by_hand(kind, data, at + _HEADER.size):
            return True
        at += max((length + 3) & ~3, _HEADER.size)
    return False


def _is_set_by_hand(kind: int, data: bytes, at: int) -> bool:
    """A permanent entry; or an ARP entry that is deleted, since a permanent one loses its state before it goes."""
    family, _, state, _, _ = NEIGH.unpack_from(data, at)
    return bool(state & NUD_PERMANENT) or (kind == RTM_DELNEIGH and family != AF_BRIDGE)
