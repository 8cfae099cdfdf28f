"""Questions to kubedns and dnsmasq, as fast as one client can ask, and what an answer costs the server.

A server's rate here is answers per second *of its own processor time* (/proc/PID/stat), which is what a core could give
it: the client shares the machine with it, and a busy neighbour changes nothing.
"""

import os
import select
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
IN_FLIGHT = 64


def question(name: str) -> bytes:
    """For the A record, with the number 0."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!HHHHHH", 0, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", 1, 1)


def rate(sock: socket.socket, names: list[str], seconds: float, pid: int) -> tuple[float, float]:
    """Answers per second on the clock, and per second of the server's processor time; a wrong answer is an error."""
    questions = [question(name) for name in names]
    answers, sent = 0, 0
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    began, used = time.perf_counter(), processor_time(pid)
    end = began + seconds
    while time.perf_counter() < end:
        for _ in range(IN_FLIGHT):
            sock.send(questions[sent % len(questions)])
            sent += 1
        for _ in range(IN_FLIGHT):
            if not poll.poll(1000):
                break  # one was lost: the socket's buffer is as long as it is
            answer = sock.recv(4096)
            assert answer[3] & 15 == 0, "not an answer"
            assert answer[7], "no address"
            answers += 1
    return answers / (time.perf_counter() - began), answers / max(processor_time(pid) - used, 1 / TICKS)


def processor_time(pid: int) -> float:
    """Seconds, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def seen(sock: socket.socket, name: str, address: str, change: Callable[[], object]) -> float:
    """Seconds from the change to the first answer that holds the address; asks every millisecond, for 10 s at most."""
    asked, wanted = question(name), socket.inet_aton(address)
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    began = time.perf_counter()
    change()
    while time.perf_counter() < began + 10:
        sock.send(asked)
        while poll.poll(1):
            if wanted in sock.recv(4096):
                return time.perf_counter() - began
    raise TimeoutError(f"{name} is not {address} after 10 s")
