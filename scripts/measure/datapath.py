"""Throughput (iperf3) and request/response time of one TCP connection between two named namespaces."""

import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import time
from multiprocessing.synchronize import Event


def throughput(client: str, server: str, address: str, seconds: float) -> float:
    """Gbit/s that iperf3 sees, one stream."""
    inside = ("ip", "netns", "exec")
    with subprocess.Popen(
        [*inside, server, "iperf3", "-s", "-1", "--forceflush", "-p", "5299"], stdout=subprocess.PIPE, text=True
    ) as listener:
        assert listener.stdout is not None
        listener.stdout.readline()  # "----": iperf3 has printed its head, so it listens
        out = subprocess.run(
            [*inside, client, "iperf3", "-c", address, "-p", "5299", "-A", "0,1", "-t", str(seconds), "-J"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        listener.communicate(timeout=10)
    return float(json.loads(out)["end"]["sum_received"]["bits_per_second"]) / 1e9


def _echo(server: str, port: int, ready: Event) -> None:
    from nsnet.kernel import netns

    os.sched_setaffinity(0, {1})
    with netns.inside(server):
        listener = socket.create_server(("", port))
    ready.set()
    peer, _ = listener.accept()
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while peer.recv(1):
        peer.send(b"x")


def round_trip(client: str, server: str, address: str, count: int, port: int = 5298) -> float:
    """Median microseconds of a one-byte request and its answer."""
    from nsnet.kernel import netns

    ready = multiprocessing.Event()
    peer = multiprocessing.Process(target=_echo, args=(server, port, ready))
    peer.start()
    home = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {0})  # where the scheduler puts two processes moves the figure by half
    ready.wait(10)
    with netns.inside(client):
        sock = socket.create_connection((address, port), timeout=5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    taken = []
    for _ in range(count):
        start = time.perf_counter()
        sock.send(b"x")
        sock.recv(1)
        taken.append(time.perf_counter() - start)
    sock.close()
    peer.join()
    os.sched_setaffinity(0, home)
    return statistics.median(taken) * 1e6
