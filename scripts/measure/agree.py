"""Whether packets fare as `trace` says: every pair, Service and port of every topology, in every mode of kube-proxy.

And so with every fault of the tables in `tests/faulted`, where only prediction and observation are compared.
"""

import os
import time
from collections.abc import Callable, Iterator

Line = tuple[str, str, str, bool]
Nsnet = Callable[..., float]
MODES = ("iptables", "nftables")
OF_ITS_OWN = {"userspace": ("userspace", *MODES)}
BROKEN = (("cluster", "iptables"), ("cluster", "nftables"), ("racks", "iptables"), ("dual-stack", "iptables"))
WHAT = "predicted = observed = intended"


def measure(nsnet: Nsnet) -> Iterator[Line]:
    """A line for each topology and mode. NSNET_TOPOLOGIES (names with commas between them) chooses some."""
    from tests.agreeing import TOPOLOGIES

    chosen = os.environ.get("NSNET_TOPOLOGIES", "")
    names = chosen.split(",") if chosen else sorted(path.stem for path in TOPOLOGIES.glob("*.yaml"))
    total, lost = 0, 0
    for name in names:
        for mode in OF_ITS_OWN.get(name, MODES):
            asked, wrong = _asked(nsnet, name, mode)
            total, lost = total + asked, lost + len(wrong)
            for sentence in wrong:
                print(f"  {sentence}", flush=True)  # what is to be mended
            yield f"{WHAT}, {name}, {mode}", f"{asked - len(wrong)} of {asked}", "all", not wrong
    yield WHAT, f"{total - lost} of {total}", "all", not lost
    for world, mode in () if chosen else BROKEN:
        yield from _with_faults(world, mode)


def _asked(nsnet: Nsnet, topology: str, mode: str) -> tuple[int, list[str]]:
    """How many packets, and where the three parted."""
    from nsnet import kernel
    from nsnet.store.objects import load_objects
    from nsnet.store.sqlite import open_store
    from tests import agreeing

    nsnet("up", "--no-verify", "-", stdin=agreeing.document(topology, "agree", mode))
    try:
        store = open_store("agree")
        objects, _ = load_objects(store, print)
        store.close()
        questions = list(agreeing.asked(objects, everybody=True))
        return len(questions), agreeing.differences(objects, kernel.observe("agree"), questions)
    finally:
        nsnet("down", "agree")


def _with_faults(world: str, mode: str) -> Iterator[Line]:
    """Every pair with each of the table's faults in turn.

    But for those that show only beside another connection: of many packets at once each would be that to the others.
    """
    from nsnet import kernel
    from tests import agreeing, faulted

    cluster = faulted.Cluster(mode, world)
    total, lost = 0, 0
    rows = [row for row in cluster.rows if row.question.how != "second"]
    for row in rows:
        cluster.add(row.words)
        if row.words[0] in {"node-down", "link-down"}:
            time.sleep(1)  # the kernel's linkwatch takes as long to stop a device that has lost its carrier
        questions = list(agreeing.asked(cluster.objects, everybody=True))
        wrong = agreeing.differences(cluster.objects, kernel.observe(faulted.NAME), questions, meant=False)
        total, lost = total + len(questions), lost + len(wrong)
        for sentence in wrong:
            print(f"  {row}: {sentence}", flush=True)
        cluster.clear()
    cluster.down()
    faults = f"with {len(rows)} faults in turn, {world}, {mode}"
    yield f"predicted = observed {faults}", f"{total - lost} of {total}", "all", not lost
