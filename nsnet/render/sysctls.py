"""What a topology says of a node's sysctls, over whatever kubelet, CNI and kube-proxy set: `nodes: [{sysctls: {…}}]`.

They stand in a file as on a real machine, in /etc/sysctl.d's form: the file says which sysctls are looked at (there are
thousands), the sysctls whether they are so. One that is not of a network namespace is refused by the kernel.
"""

from collections.abc import Iterable, Iterator, Mapping

from nsnet import model, names
from nsnet.render.view import View
from nsnet.state import File, Sysctl, Value


def said(view: View) -> dict[str, dict[str, Sysctl]]:
    """Namespace → name → the sysctl that the topology sets there."""
    entries = view.cluster.nodes if isinstance(view.cluster.nodes, tuple) else ()
    return {names.node_netns(view.name, entry.name): _sysctls(entry) for entry in entries if entry.sysctls}


def _sysctls(entry: model.NodeEntry) -> dict[str, Sysctl]:
    return {name: Sysctl(name, str(value)) for name, value in sorted(entry.sysctls.items())}


def file(netns: str, sysctls: Mapping[str, Sysctl]) -> File:
    lines = "".join(f"{value.name} = {value.value}\n" for value in sysctls.values())
    return File(str(names.sysctl_file(netns)), lines)


def over(values: Iterable[Value], netns: str, sysctls: Mapping[str, Sysctl]) -> Iterator[Value]:
    """The values of a namespace with these sysctls in the place of those of the same name."""
    yield from (value for value in values if not (isinstance(value, Sysctl) and value.name in sysctls))
    yield from sysctls.values()
    yield file(netns, sysctls)
