"""Whether packets fare as `trace` says: every pair, Service and port of every topology, in every mode of kube-proxy."""

import os
from collections.abc import Callable, Iterator

Line = tuple[str, str, str, bool]
Nsnet = Callable[..., float]
MODES = ("iptables", "nftables")
OF_ITS_OWN = {"userspace": ("userspace", *MODES)}
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
