"""What it costs to look: a predicted and a live trace, the picture and the page, at 1,000 pods and 1,000 Services."""

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import page

Line = tuple[str, str, str, bool]
Nsnet = Callable[..., float]


def measure(nsnet: Nsnet, topology: str, name: str, source: str) -> Iterator[Line]:
    """Lines of the table; `topology` is the cluster as YAML, `source` a pod's name by its cluster's objects."""
    nsnet("up", "--no-verify", "-", stdin=topology)
    _settled(name)
    try:
        yield from _measured(nsnet, name, source)
        yield from page.measure(1000, "svc/default/web")
    finally:
        nsnet("down", name)


def _settled(name: str) -> None:
    """Waits until the controller has looked at the new cluster, and rests: a moment after `up` it takes a processor."""
    from nsnet.controller.client import living

    spent, before = -1, -2
    while spent != before:
        time.sleep(1)
        before, spent = spent, sum(_ticks(found.pid) for found in living(name))


def _ticks(pid: int) -> int:
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))


def _measured(nsnet: Nsnet, name: str, source: str) -> Iterator[Line]:
    from nsnet import kernel, model
    from nsnet.store.objects import load_objects
    from nsnet.store.sqlite import open_store
    from nsnet.trace import Packet, walk

    store = open_store(name)
    objects, _ = load_objects(store, print)
    store.close()
    pods = [pod for pod in model.of(objects, model.Pod) if pod.metadata.name.startswith(source)]
    service = next(item for item in model.of(objects, model.Service) if item.metadata.name == "web")
    first = pods[0].metadata.name
    words = ("trace", first, "svc/web", "-o", "json")
    plain = statistics.median(nsnet(*words) for _ in range(5))
    yield "nsnet trace, 1,000 pods and Services", f"{plain:.2f} s", "< 0.3 s", plain < 0.3
    live = statistics.median(nsnet(*words, "--live") for _ in range(5)) - plain
    yield "what --live adds", f"{live:.2f} s", "< 0.5 s", live < 0.5
    drawn = statistics.median(nsnet("graph", "-o", "svg") for _ in range(3))
    yield "nsnet graph -o svg, 1,000 pods", f"{drawn:.2f} s", "< 1 s", drawn < 1
    state = kernel.observe(name)
    netns, other = f"{name}.pod.default.{first}", pods[-1]
    for what, packet in (
        ("pod to pod", Packet("tcp", other.status.podIP, 80)),
        ("pod to a Service of 5", Packet("tcp", service.spec.clusterIP, 80)),
    ):
        walk(state, netns, packet)
        taken = []
        for _ in range(20):
            start = time.perf_counter()
            walk(state, netns, packet)
            taken.append(time.perf_counter() - start)
        middle = statistics.median(taken) * 1000
        yield f"a predicted way in process, {what}", f"{middle:.2f} ms", "< 2 ms", middle < 2
