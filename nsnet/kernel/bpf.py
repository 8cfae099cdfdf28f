"""tcpdump's filter language: compiled by tcpdump itself, and made to look into VXLAN packets as well.

`tcpdump -ddd` prints a filter as classic BPF; the expression is one argument, never a shell's. It is compiled against
an empty Ethernet file, so that no device is opened and no right is needed.

A packet between pods of two nodes is on the underlay only inside of a UDP packet, where `tcp port 80` finds nothing. So
a filter is put together of two programs: the one that was asked for, and where that says no, the same one once more
with every offset moved to behind the outer headers (`inner_too`), for packets to VXLAN's port. What flannel's other
backends carry is no frame but an IP packet, and their devices have no Ethernet header either: there the program takes
the protocol for granted (`bare`). What WireGuard carries nobody sees.

Sources: Linux Documentation/networking/filter.rst, `include/uapi/linux/filter.h` (SKF_AD_HATYPE); libpcap `gencode.c`;
VXLAN RFC 7348 §5; IPIP RFC 2003.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from struct import Struct
from typing import NamedTuple

from nsnet.errors import InputError, MachineError

SNAPSHOT = 262_144  # tcpdump's own
OUTER = 14 + 20 + 8 + 8  # Ethernet, IPv4 without options (Linux sends none), UDP, VXLAN
OUTER6 = 14 + 40 + 8 + 8  # the same over IPv6 without extensions
BEHIND_IP, BEHIND_IP6, BEHIND_UDP = 14 + 20, 14 + 40, 14 + 20 + 8
ETHERNET = 14
WITH_ETHERNET_HEADER = (1, 772)  # ARPHRD_ETHER, ARPHRD_LOOPBACK
COMPILING = 10.0  # s; the machine's own resolver may be asked for a host's name

_EMPTY_FILE = Struct("=IHHiIII").pack(0xA1B2C3D4, 2, 4, 0, 0, SNAPSHOT, 1)  # pcap, Ethernet
_INSTRUCTION = Struct("=HBBI")
_MOST = 4096  # instructions that the kernel takes (BPF_MAXINSNS)

_LD, _LDX = 0, 1
_PACKET_MODES = {0x20, 0x40, 0xA0}  # absolute, indirect, 4*([k]&0xf): these look into the packet
_RET_K, _JA, _JEQ = 0x06, 0x05, 0x15
_LDB, _LDH, _LD_ABS, _LD_IMM, _LDX_IMM = 0x30, 0x28, 0x20, 0x00, 0x01
_HATYPE = 0xFFFFF000 + 28  # SKF_AD_OFF + SKF_AD_HATYPE
_IPV4, _IPV6, _IPIP, _UDP = 0x0800, 0x86DD, 4, 17


class Instruction(NamedTuple):
    code: int
    jt: int
    jf: int
    k: int


Program = tuple[Instruction, ...]
EVERYTHING: Program = (Instruction(_RET_K, 0, 0, SNAPSHOT),)
NOTHING: Program = (Instruction(_RET_K, 0, 0, 0),)


def compiled(expression: str) -> Program:
    """The filter as a program; an empty one lets everything pass.

    Raises InputError with tcpdump's own sentence where it is no filter, MachineError where tcpdump is missing.
    """
    if not expression.strip():
        return EVERYTHING
    if "\0" in expression:
        raise InputError("a filter holds no zero byte", "man pcap-filter")
    tcpdump = shutil.which("tcpdump", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if tcpdump is None:
        raise MachineError("tcpdump is not installed", "run `scripts/setup`, or `apt-get install tcpdump`")
    argv = (tcpdump, "-s", str(SNAPSHOT), "-r", "-", "-ddd", "--", expression)
    try:
        done = subprocess.run(argv, input=_EMPTY_FILE, capture_output=True, check=False, timeout=COMPILING)
    except subprocess.TimeoutExpired:
        raise InputError(f"filter {expression!r}: a name in it is not resolved", "use addresses") from None
    if done.returncode:
        raise InputError(f"filter {expression!r}: {_sentence(done.stderr)}", "man pcap-filter; quote it as one word")
    return _parsed(done.stdout.decode())


def _sentence(complaint: bytes) -> str:
    """Tcpdump's last line without its name."""
    lines = [line for line in complaint.decode(errors="replace").splitlines() if line.startswith("tcpdump: ")]
    return lines[-1].removeprefix("tcpdump: ") if lines else "is no filter"


def _parsed(text: str) -> Program:
    count, *lines = text.splitlines()
    rows = [tuple(int(word) for word in line.split()) for line in lines]
    assert len(rows) == int(count)
    return tuple(Instruction(*row) for row in rows)


def packed(program: Program) -> bytes:
    """As the kernel wants it (struct sock_filter)."""
    return b"".join(_INSTRUCTION.pack(*one) for one in program)


# --- into tunnels -----------------------------------------------------------------------------------------------------


def inner_too(program: Program, port: int, backend: str = "vxlan") -> Program:
    """The program, and where it says no the same on what the packet carries, and on devices without Ethernet headers.

    `backend`: flannel's, which sends to UDP `port` (vxlan, udp) or as IPIP. Where all together are more than the kernel
    takes, the outer packet alone is looked at.
    """
    if program in (EVERYTHING, NOTHING):
        return program
    match backend:
        case "udp":
            inside: Program = (*_is_ipv4(_UDP, port), *bare(program, BEHIND_UDP))
        case "ipip":
            inside = (*_is_ipv4(_IPIP), *bare(program, BEHIND_IP))
        case "vxlan":
            over_ipv4 = (*_is_ipv4(_UDP, port), *moved(program, OUTER))
            over_ipv6 = (*_is_ipv6(port), *moved(program, OUTER6))
            inside = (*_failing_to(over_ipv4, len(over_ipv4)), *over_ipv6)
        case _:
            inside = NOTHING
    framed = (*_failing_to(program, len(program)), *inside)
    both = framed if backend in {"vxlan", "host-gw"} else (*_by_device(bare(program, 0)), *framed)
    return both if len(both) <= _MOST else program


def _by_device(headless: Program) -> Program:
    """For devices without Ethernet header this program, for others what follows."""
    first, second = WITH_ETHERNET_HEADER
    return (
        Instruction(_LD_ABS, 0, 0, _HATYPE),
        Instruction(_JEQ, 1, 0, first),
        Instruction(_JEQ, 0, 1, second),
        Instruction(_JA, 0, 0, len(headless)),
        *headless,
    )


def bare(program: Program, start: int) -> Program:
    """The program as it looks at an IPv4 packet that begins at `start`: what it asks of a frame's header is settled."""
    return tuple(_settled(one) if _asks_frame(one) else _shifted(one, start - ETHERNET) for one in program)


def _asks_frame(one: Instruction) -> bool:
    return _looks(one) and one.k < ETHERNET


def _settled(one: Instruction) -> Instruction:
    """Its Ethertype is IPv4's; addresses it has none."""
    value = _IPV4 if one.code == _LDH and one.k == ETHERNET - 2 else 0
    return Instruction(_LD_IMM if one.code & 0x07 == _LD else _LDX_IMM, 0, 0, value)


def _shifted(one: Instruction, offset: int) -> Instruction:
    return one._replace(k=one.k + offset) if _looks(one) else one


def moved(program: Program, offset: int) -> Program:
    """The program as it looks at a packet that begins `offset` bytes later."""
    return tuple(_shifted(one, offset) for one in program)


def _looks(one: Instruction) -> bool:
    return one.code & 0x07 in (_LD, _LDX) and one.code & 0xE0 in _PACKET_MODES


def _failing_to(program: Program, target: int) -> Program:
    """Where it says no it goes to instruction `target` instead."""
    return tuple(
        Instruction(_JA, 0, 0, target - index - 1) if one.code == _RET_K and one.k == 0 else one
        for index, one in enumerate(program)
    )


def _is_ipv4(protocol: int, port: int = 0) -> Program:
    """IPv4, no options, of this protocol, and to this UDP port where one is said; anything else is refused."""
    asked = [(_LDH, 12, _IPV4), (_LDB, ETHERNET, 0x45), (_LDB, ETHERNET + 9, protocol)]
    return _all_of([*asked, *([(_LDH, BEHIND_IP + 2, port)] if port else [])])


def _is_ipv6(port: int) -> Program:
    """IPv6, no extensions, UDP to this port; anything else is refused."""
    return _all_of([(_LDH, 12, _IPV6), (_LDB, ETHERNET + 6, _UDP), (_LDH, BEHIND_IP6 + 2, port)])


def _all_of(asked: Sequence[tuple[int, int, int]]) -> Program:
    """(how it is loaded, from where, what it must be); where all are, on with what follows."""
    left = range(2 * len(asked) - 2, -1, -2)
    steps = (
        (Instruction(load, 0, 0, at), Instruction(_JEQ, 0 if more else 1, more, value))
        for (load, at, value), more in zip(asked, left, strict=True)
    )
    return (*(one for pair in steps for one in pair), Instruction(_RET_K, 0, 0, 0))
