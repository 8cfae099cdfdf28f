"""What of a cluster that is spread over several machines is this one's own.

The router's namespace is everywhere, since the programs that serve every pod of a machine stand in it; on all machines
but the first nothing is plugged into it.
"""

import msgspec

from nsnet.render import machines
from nsnet.render.view import View
from nsnet.state import File, Loopback, Netns, Process, State, Sysctl, Value

EVERYWHERE = ("podserver", "healthcheck")  # what serves the pods and nodes of its own machine


def local(view: View) -> View:
    """The view of this machine's own nodes and pods, for what serves only these."""
    if not view.here:
        return view
    nodes = tuple(node for node in view.nodes if node.machine.on == view.here)
    known = {node.name for node in nodes}
    pods = {name: pods for name, pods in view.pods.items() if name in known}
    return msgspec.structs.replace(view, nodes=nodes, pods=pods)


def own(view: View, state: State) -> State:
    """What of a whole cluster's state stands here."""
    if not view.here:
        return state
    places = machines.where(view.objects)
    kept = {netns: values for netns, values in state.items() if places.get(netns, view.here) == view.here}
    if machines.first(view.cluster) != view.here:
        kept[view.router] = frozenset(value for value in state[view.router] if _everywhere(value))
    return kept


def _everywhere(value: Value) -> bool:
    match value:
        case Netns() | Loopback() | Sysctl():
            return True
        case Process(argv):
            return any(f"nsnet.programs.{name}" in argv for name in EVERYWHERE)
        case File(path):
            return any(path.endswith(f"/{name}.json") for name in EVERYWHERE)
    return False
