"""tcpdump's filter language: compiled by tcpdump itself, and made to look into VXLAN packets as well.

`tcpdump -ddd` prints a filter as classic BPF; the expression is one argument, never a shell's. It is compiled against
an empty Ethernet file, so that no device is opened and no right is needed.

A packet between pods of two nodes is on the underlay only inside of a UDP packet, where `tcp port 80` finds nothing. So
a filter is put together of two programs: the one that was asked for, and where that says no, the same one once more
with every offset moved to behind the outer headers (`inner_too`), for packets to VXLAN's port.

Sources: Linux Documentation/networking/filter.rst; libpcap `gencode.c`; VXLAN RFC 7348 §5.
"""

import os
import shutil
import subprocess
from struct import Struct
from typing import NamedTuple

from nsnet.errors import InputError, MachineError

SNAPSHOT = 262_144  # tcpdump's own
OUTER = 14 + 20 + 8 + 8  # Ethernet, IPv4 without options (Linux sends none), UDP, VXLAN
COMPILING = 10.0  # s; the machine's own resolver may be asked for a host's name

_EMPTY_FILE = Struct("=IHHiIII").pack(0xA1B2C3D4, 2, 4, 0, 0, SNAPSHOT, 1)  # pcap, Ethernet
_INSTRUCTION = Struct("=HBBI")
_MOST = 4096  # instructions that the kernel takes (BPF_MAXINSNS)

_LD, _LDX, _JUMP, _RET = 0, 1, 5, 6
_PACKET_MODES = {0x20, 0x40, 0xA0}  # absolute, indirect, 4*([k]&0xf): these look into the packet
_RET_K, _JA, _JEQ = 0x06, 0x05, 0x15
_LDB, _LDH = 0x30, 0x28


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


# --- into VXLAN -------------------------------------------------------------------------------------------------------


def inner_too(program: Program, port: int) -> Program:
    """The program, and for packets to VXLAN's UDP port the same on what they carry; both offsets' answers count.

    Where both together are more than the kernel takes, the outer packet alone is looked at.
    """
    ask = _is_vxlan(port)
    both = (*_failing_to(program, len(program)), *ask, *moved(program, OUTER))
    return both if program not in (EVERYTHING, NOTHING) and len(both) <= _MOST else program


def moved(program: Program, offset: int) -> Program:
    """The program as it looks at a packet that begins `offset` bytes later."""
    return tuple(one._replace(k=one.k + offset) if _looks(one) else one for one in program)


def _looks(one: Instruction) -> bool:
    return one.code & 0x07 in (_LD, _LDX) and one.code & 0xE0 in _PACKET_MODES


def _failing_to(program: Program, target: int) -> Program:
    """Where it says no it goes to instruction `target` instead."""
    return tuple(
        Instruction(_JA, 0, 0, target - index - 1) if one.code == _RET_K and one.k == 0 else one
        for index, one in enumerate(program)
    )


def _is_vxlan(port: int) -> Program:
    """IPv4, no further fragment, UDP to this port; anything else is refused."""
    return (
        Instruction(_LDH, 0, 0, 12),
        Instruction(_JEQ, 0, 6, 0x0800),
        Instruction(_LDB, 0, 0, 14),
        Instruction(_JEQ, 0, 4, 0x45),
        Instruction(_LDB, 0, 0, 23),
        Instruction(_JEQ, 0, 2, 17),
        Instruction(_LDH, 0, 0, 36),
        Instruction(_JEQ, 1, 0, port),
        Instruction(_RET_K, 0, 0, 0),
    )
