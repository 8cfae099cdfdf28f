"""Classic BPF as the kernel runs it: what a filter that was put together says to a packet, without a kernel."""

from collections.abc import Sequence

from nsnet.kernel.bpf import Instruction

_LD, _JA, _RET_K = 0, 0x05, 0x06
_HARDWARE = 0xFFFFF000 + 28  # SKF_AD_OFF + SKF_AD_HATYPE


def run(program: Sequence[Instruction], packet: bytes, hardware: int = 1) -> int:
    """What the kernel would answer: bytes to keep, 0 for none. The oracle of tests for programs put together here.

    `hardware`: the kind of device it is asked on (ARPHRD_ETHER).
    """
    a = x = at = 0
    memory = [0] * 16
    while True:
        code, jt, jf, k = program[at]
        at += 1
        match code & 0x07:
            case 0 | 1:
                value = hardware if k == _HARDWARE else _loaded(code, k, x, packet, memory)
                if value is None:
                    return 0
                a, x = (value, x) if code & 0x07 == _LD else (a, value)
            case 2:
                memory[k] = a
            case 3:
                memory[k] = x
            case 4:
                a = _computed(code, a, x if code & 0x08 else k)
            case 5:
                operand = x if code & 0x08 else k
                at += k if code == _JA else jt if _holds(code, a, operand) else jf
            case 6:
                return k if code == _RET_K else a
            case _:
                a, x = (x, x) if code & 0x80 else (a, a)


def _loaded(code: int, k: int, x: int, packet: bytes, memory: Sequence[int]) -> int | None:
    match code & 0xE0:
        case 0x00:
            return k
        case 0x60:
            return memory[k]
        case 0x80:
            return len(packet)
        case 0xA0:
            return 4 * (packet[k] & 0xF) if k < len(packet) else None
    size = {0x00: 4, 0x08: 2, 0x10: 1}[code & 0x18]
    start = k + (x if code & 0xE0 == 0x40 else 0)
    return int.from_bytes(packet[start : start + size], "big") if start + size <= len(packet) else None


def _computed(code: int, a: int, b: int) -> int:
    done = {0x00: a + b, 0x10: a - b, 0x20: a * b, 0x40: a | b, 0x50: a & b, 0x60: a << (b & 31), 0x70: a >> (b & 31)}
    if code & 0xF0 == 0x30:
        return a // b if b else 0
    return (-a if code & 0xF0 == 0x80 else done[code & 0xF0]) & 0xFFFFFFFF


def _holds(code: int, a: int, b: int) -> bool:
    return {0x10: a == b, 0x20: a > b, 0x30: a >= b, 0x40: bool(a & b)}[code & 0xF0]
