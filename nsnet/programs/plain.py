"""What every program of ours does, whichever loop it runs: nothing here needs asyncio, which takes time to load."""

import contextlib
import os
import resource
import socket
from pathlib import Path
from typing import NamedTuple

from nsnet.names import NETNS

ANY, ANY6 = "0.0.0.0", "::"  # noqa: S104 - all addresses of the pod's own namespace
_ADDRESSES = Path("/proc/self/net/if_inet6")  # one line per IPv6 address


class Place(NamedTuple):
    """A socket's identity. `inode` is the namespace's: under the same name there may be a new one."""

    netns: str
    inode: int
    protocol: str
    port: int
    address: str = ANY


def inode_of(netns: str) -> int:
    """The namespace's inode; 0 where there is none of that name."""
    try:
        return (NETNS / netns).stat().st_ino
    except OSError:
        return 0


def everywhere() -> tuple[str, ...]:
    """What to bind to for all addresses, those that come later too: IPv6 where the namespace has any, as `::1`."""
    with contextlib.suppress(OSError):  # a kernel without IPv6
        if _ADDRESSES.read_text(encoding="ascii"):
            return ANY, ANY6
    return (ANY,)


def all_descriptors() -> int:
    """As many files as the system lets us have, and how many these are: connections need them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def log(program: str, text: str) -> None:
    with contextlib.suppress(OSError):  # whoever read it may be gone
        os.write(2, f"{program}: {text}\n".encode(errors="replace"))


def tell_ready() -> None:
    """One byte to whoever started us (NSNET_READY_FD), when every socket is open."""
    fd = os.environ.pop("NSNET_READY_FD", "")
    if fd:
        with contextlib.suppress(OSError):
            os.write(int(fd), b"\n")
        os.close(int(fd))


def beside(config: Path) -> socket.socket:
    """The unix socket CONFIG.sock, bound; one of a program that died goes. Raises OSError.

    It is bound by its directory, since paths of unix sockets end at 108 bytes.
    """
    name = f"{config.name}.sock"
    with contextlib.suppress(FileNotFoundError):
        config.with_name(name).unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    directory = os.open(config.parent, os.O_PATH | os.O_CLOEXEC)
    try:
        sock.bind(f"/proc/self/fd/{directory}/{name}")
    except OSError:
        sock.close()
        raise
    finally:
        os.close(directory)
    return sock
