"""What runs inside the namespaces: one pod server for the whole cluster, and the file it reads.

One process holds the listening sockets of every pod (a socket belongs for ever to the namespace it was opened in). It
stands in the router's namespace, which is there as long as the cluster is, and is known by its argv.
"""

import sys
from collections.abc import Iterable, Iterator

import msgspec

from nsnet import names
from nsnet.render import spread
from nsnet.render.view import Pod, View
from nsnet.state import File, Process, Value

_json = msgspec.json.Encoder()


def render(view: View) -> Iterator[tuple[str, Iterable[Value]]]:
    view = spread.local(view)
    path = str(names.run_dir(view.name) / "podserver.json")
    pods = sorted((pod for found in view.pods.values() for pod in found), key=lambda pod: (pod.namespace, pod.name))
    content = _json.encode({"pods": [_entry(pod) for pod in pods]}).decode()
    argv = (sys.executable, "-m", "nsnet.programs.podserver", path)
    yield view.router, (File(path, content), Process(argv))


def _entry(pod: Pod) -> dict[str, object]:
    return {
        "netns": pod.netns,
        "namespace": pod.namespace,
        "pod": pod.name,
        "node": pod.node,
        "ip": pod.ip,
        "hostname": pod.hostname,
        "tcp": pod.tcp,
        "udp": pod.udp,
        **({"ips": pod.ips} if any(":" in ip for ip in pod.ips) else {}),
    }
