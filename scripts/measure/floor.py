"""The bare kernel work of a cluster, in the plainest fast way: netlink messages packed by hand, nothing checked.

What `scripts/bench` divides nsnet's time by. Nothing of nsnet is used, so that a slow room cannot slow the floor too.
Order and flags are those that facts/FLOOR.md found fastest: all namespaces, then a node's veths, then each pod.
"""

import ctypes
import os
import socket
import struct
import time
from pathlib import Path

NETNS = Path("/run/netns")
LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000
REQUEST_ACK, CREATE_EXCL, REPLACE = 0x5, 0x600, 0x500
CNI0, VTEP = 10_000, 10_001  # fixed indexes, above those the kernel gives out
NEWLINK, NEWADDR, NEWROUTE, NEWNEIGH = 16, 20, 24, 28


def attr(kind: int, data: bytes) -> bytes:
    return struct.pack("HH", len(data) + 4, kind) + data + b"\0" * (-len(data) % 4)


def text(kind: int, value: str) -> bytes:
    return attr(kind, value.encode() + b"\0")


def number(kind: int, value: int) -> bytes:
    return attr(kind, struct.pack("I", value))


def message(kind: int, body: bytes, flags: int = 0) -> bytes:
    return struct.pack("IHHII", len(body) + 16, kind, REQUEST_ACK | flags, 1, 0) + body


def link(attrs: bytes, index: int = 0, up: bool = False, flags: int = 0) -> bytes:
    return message(NEWLINK, struct.pack("BxHiII", 0, 0, index, int(up), int(up)) + attrs, flags)


def address(index: int, ip: str, length: int) -> bytes:
    raw = socket.inet_aton(ip)
    return message(NEWADDR, struct.pack("BBBBI", 2, length, 0, 0, index) + attr(1, raw) + attr(2, raw), CREATE_EXCL)


def route(index: int, dst: str, length: int, via: str, onlink: bool = False) -> bytes:
    attrs = (attr(1, socket.inet_aton(dst)) if length else b"") + attr(5, socket.inet_aton(via)) + number(4, index)
    head = struct.pack("BBBBBBBBI", 2, length, 0, 0, 254, 3, 0, 1, 4 if onlink else 0)
    return message(NEWROUTE, head + attrs, REPLACE)


def neighbour(index: int, ip: str, mac: bytes, family: int = 2, flags: int = 0) -> bytes:
    dst = attr(1, socket.inet_aton(ip))
    return message(NEWNEIGH, struct.pack("BxxxiHBB", family, index, 0x80, flags, 0) + dst + attr(2, mac), REPLACE)


def mac(ip: str) -> bytes:
    return b"\x0a\x58" + socket.inet_aton(ip)


NO_IPV6 = attr(26, attr(10, attr(8, b"\1")))  # IFLA_AF_SPEC, AF_INET6, IFLA_INET6_ADDR_GEN_MODE none
QUEUES = number(31, 1) + number(32, 1)


def namespace(name: str) -> tuple[int, socket.socket]:
    """A named namespace, made by this thread; its fd and a netlink socket in it."""
    if LIBC.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    sock.setsockopt(socket.SOL_SOCKET, 33, 4 << 20)  # SO_RCVBUFFORCE
    path = f"/run/netns/{name}"
    os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    if LIBC.mount(b"/proc/thread-self/ns/net", path.encode(), None, 4096, None):
        raise OSError(ctypes.get_errno(), "mount")
    return os.open(path, os.O_RDONLY), sock


def send(sock: socket.socket, messages: list[bytes]) -> None:
    """All messages in a few sends; every acknowledgement is read, and a refusal is an error."""
    for start in range(0, len(messages), 64):
        batch = messages[start : start + 64]
        sock.send(b"".join(batch))
        left = len(batch)
        while left:
            data = sock.recv(1 << 18)
            while data:
                size, _, _, _, _, error = struct.unpack_from("IHHIIi", data)
                if error:
                    raise OSError(-error, os.strerror(-error))
                data, left = data[(size + 3) & ~3 :], left - 1


def veth(name: str, master: int, peer_ns: int, peer: str, mac_here: bytes, mac_there: bytes, mtu: int) -> bytes:
    there = struct.pack("BxHiII", 0, 0, 0, 0, 0) + text(3, peer) + attr(1, mac_there) + number(4, mtu)
    info = text(1, "veth") + attr(2, attr(1, there + number(28, peer_ns) + QUEUES))
    here = text(3, name) + attr(1, mac_here) + number(4, mtu) + QUEUES + number(10, master)
    return link(here + attr(18, info), up=True, flags=CREATE_EXCL)


def bridge(name: str, index: int, mac_here: bytes, mtu: int) -> bytes:
    attrs = text(3, name) + attr(1, mac_here) + number(4, mtu) + attr(18, text(1, "bridge"))
    return link(attrs, index=index, up=True, flags=CREATE_EXCL)


def vxlan(index: int, local: str, dev: int, mac_here: bytes) -> bytes:
    data = number(1, 1) + attr(4, socket.inet_aton(local)) + number(3, dev)
    data += attr(15, struct.pack(">H", 8472)) + attr(7, b"\0")
    attrs = text(3, "flannel.1") + attr(1, mac_here) + number(4, 1450)
    return link(attrs + attr(18, text(1, "vxlan") + attr(2, data)), index=index, up=True, flags=CREATE_EXCL)


def build(nodes: int, pods: int) -> dict[str, float]:
    """`nodes` nodes of `pods` pods, with bridge, VXLAN and permanent neighbours; seconds per phase."""
    NETNS.mkdir(parents=True, exist_ok=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    times, start = {}, time.perf_counter()
    fabric = namespace("floor.fabric")
    node_ns = [namespace(f"floor.node{n}") for n in range(nodes)]
    pod_ns = [[namespace(f"floor.pod{n}.{p}") for p in range(pods)] for n in range(nodes)]
    LIBC.setns(home, CLONE_NEWNET)
    times["namespaces"], start = time.perf_counter() - start, time.perf_counter()
    switch = [bridge("br0", CNI0, b"\2\0\0\0\0\1", 1500)]
    outer = [f"172.18.0.{n + 2}" for n in range(nodes)]
    for n in range(nodes):
        macs = b"\2\1\0\0\0" + bytes([n]), b"\2\2\0\0\0" + bytes([n])
        switch.append(veth(f"n{n}", CNI0, node_ns[n][0], "eth0", *macs, 1500))
    send(fabric[1], switch)
    for n in range(nodes):
        batch = [bridge("cni0", CNI0, mac(f"10.244.{n}.1"), 1450)]
        for p in range(pods):
            host = b"\2\3\0\0" + bytes([n, p])
            batch.append(veth(f"veth{p}", CNI0, pod_ns[n][p][0], "eth0", host, mac(f"10.244.{n}.{p + 2}"), 1450))
        send(node_ns[n][1], batch)
    times["links"], start = time.perf_counter() - start, time.perf_counter()
    for n in range(nodes):
        batch = [link(NO_IPV6, index=1, up=True), link(text(3, "eth0"), up=True)]
        send(node_ns[n][1], batch)
        eth0 = 2
        batch = [address(eth0, outer[n], 24), address(CNI0, f"10.244.{n}.1", 24)]
        batch += [vxlan(VTEP, outer[n], eth0, b"\2\4\0\0\0" + bytes([n])), address(VTEP, f"10.244.{n}.0", 32)]
        for m in range(nodes):
            if m != n:
                vtep = b"\2\4\0\0\0" + bytes([m])
                batch.append(neighbour(VTEP, f"10.244.{m}.0", vtep))
                batch.append(neighbour(VTEP, outer[m], vtep, family=7, flags=2))
                batch.append(neighbour(eth0, outer[m], b"\2\2\0\0\0" + bytes([m])))
                batch.append(route(VTEP, f"10.244.{m}.0", 24, f"10.244.{m}.0", onlink=True))
        batch += [neighbour(CNI0, f"10.244.{n}.{p + 2}", mac(f"10.244.{n}.{p + 2}")) for p in range(pods)]
        send(node_ns[n][1], batch)
        for p in range(pods):
            gateway = f"10.244.{n}.1"
            batch = [link(b"", index=1, up=True), link(text(3, "eth0") + NO_IPV6), link(text(3, "eth0"), up=True)]
            batch += [address(2, f"10.244.{n}.{p + 2}", 24), neighbour(2, gateway, mac(gateway))]
            send(pod_ns[n][p][1], [*batch, route(2, "", 0, gateway)])
    times["settings"] = time.perf_counter() - start
    for fd, sock in [fabric, *node_ns, *(pod for row in pod_ns for pod in row)]:
        os.close(fd)
        sock.close()
    return times


def destroy() -> None:
    """Drops every name of `build`; the kernel does the rest."""
    for path in NETNS.glob("floor.*"):
        LIBC.umount2(str(path).encode(), 2)
        path.unlink()


if __name__ == "__main__":
    import sys

    spent = build(int(sys.argv[1]), int(sys.argv[2]))
    print({name: round(value, 3) for name, value in spent.items()}, round(sum(spent.values()), 3))
    destroy()
