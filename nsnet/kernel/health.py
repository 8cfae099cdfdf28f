"""Who says that it is healthy: every exechealthz is asked for all its checks, by HTTP, in its own namespace.

Where all of them say 200 that is observed as `Listener("HTTP", port)`, beside the TCP socket itself: an answer is one
more thing that is there, or is not. Nothing is asked where no exechealthz runs.

What the balancer's own health checks hear is theirs to say, for they count failures: `lbhealth` is asked by a line on
its socket. A node's port that it finds well is `Listener("HTTP", port)` in the node, one that it does not
`Listener("FAIL", port)`; one that it has not asked yet, or where it does not run, is neither.
"""

import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import pairwise

import msgspec

from nsnet import names
from nsnet.kernel.probe import Answer, Probe, probe
from nsnet.state import Listener, Process

PROGRAM = "nsnet.programs.exechealthz"
PATIENCE = 1.0  # s, as a kubelet's probe has by default
HERE = "127.0.0.1"
BALANCER = "lbhealth.json.sock"


def observe(programs: Mapping[str, Iterable[Process]]) -> dict[str, Listener]:
    """Namespace → the port at which all is well; `programs` are those that run in each."""
    asked = [(netns, port, path) for netns, running in programs.items() for port, path in _checks(running)]
    questions = [Probe(netns, "TCP", HERE, port, _get(path)) for netns, port, path in asked]
    answers = probe(questions, timeout=PATIENCE, tries=1) if questions else []
    healthy = {netns: Listener("HTTP", port, HERE) for netns, port, _ in asked}
    for (netns, _, _), answer in zip(asked, answers, strict=True):
        if not _is_good(answer):
            healthy.pop(netns, None)
    return healthy


def _checks(running: Iterable[Process]) -> Iterator[tuple[int, str]]:
    for program in running:
        if PROGRAM in program.argv:
            port = next(iter(_values(program.argv, "port")), "8080")
            yield from ((int(port), path) for path in _values(program.argv, "url"))


def _values(argv: tuple[str, ...], flag: str) -> list[str]:
    """What `--flag=value` and `--flag value` say."""
    joined = [word.partition("=")[2] for word in argv if word.startswith(f"--{flag}=")]
    return joined + [value for word, value in pairwise(argv) if word == f"--{flag}"]


def _get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {HERE}\r\nConnection: close\r\n\r\n".encode()


def _is_good(answer: Answer) -> bool:
    return answer.outcome == "ok" and answer.body.startswith(b"HTTP/1.1 200 ")


# --- the balancer's checks --------------------------------------------------------------------------------------------


def balanced(cluster: str) -> dict[str, list[Listener]]:
    """Namespace of each node → the ports at which the balancer has an opinion of it."""
    with suppress(OSError, msgspec.MsgspecError), _connected(cluster) as asking:
        asking.sendall(b"health\n")
        with asking.makefile("rb") as answers:
            found = msgspec.json.decode(answers.readline(), type=dict[str, dict[int, bool]])
        return {netns: [_listener(port, well) for port, well in ports.items()] for netns, ports in found.items()}
    return {}


def _listener(port: int, well: bool) -> Listener:
    return Listener("HTTP" if well else "FAIL", port)


def watch(cluster: str) -> socket.socket | None:
    """A socket that has something to read whenever the balancer's opinion changes; None where nobody has one."""
    try:
        watching = _connected(cluster)
    except OSError:
        return None
    with suppress(OSError):
        watching.sendall(b"watch\n")
        watching.setblocking(False)
    return watching


def _connected(cluster: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        client.settimeout(PATIENCE)
        client.connect(str(names.run_dir(cluster) / BALANCER))
    except OSError:
        client.close()
        raise
    return client
