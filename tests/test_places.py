"""What one apply knows of namespaces."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from nsnet.kernel.places import Place, Places


class AtOnce(Places):
    """Two lanes look at the same moment."""

    both = Barrier(2, timeout=10)

    def _learn(self, name: str) -> Place:
        self.both.wait()
        return Place({name: 1})


def test_two_lanes_that_learn_of_a_namespace_know_the_same_one() -> None:
    places = AtOnce()
    with ThreadPoolExecutor(2) as lanes:
        first, second = lanes.map(places.at, ["t.node.n", "t.node.n"])
    assert first is second is places.at("t.node.n")
