"""TUN devices: made by ioctl on /dev/net/tun, in the namespace of whoever opens that.

The device is made to stay (TUNSETPERSIST), so that it is a link like any other; a program of the namespace attaches to
it (`nsnet.programs.flannel_udp`). Source: Linux Documentation/networking/tuntap.rst.
"""

import fcntl
import os
import socket
from struct import Struct

from nsnet.kernel.netns import inside

DEVICE = "/dev/net/tun"
TUNSETIFF, TUNSETPERSIST = 0x400454CA, 0x400454CB
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000

_IFREQ = Struct("=16sH22x")


def make(netns: str, name: str) -> int:
    """`ip tuntap add dev NAME mode tun`; its interface number. Raises OSError, EBUSY where a program has it."""
    with inside(netns):
        fd = attach(name)
        try:
            fcntl.ioctl(fd, TUNSETPERSIST, 1)
            return socket.if_nametoindex(name)
        finally:
            os.close(fd)


def attach(name: str) -> int:
    """A descriptor from which packets sent to the device are read; makes it where it is not there. Raises OSError."""
    fd = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, TUNSETIFF, _IFREQ.pack(name.encode(), IFF_TUN | IFF_NO_PI))
    except OSError:
        os.close(fd)
        raise
    return fd
