"""Who has refused its file: the program that looks after the HTTP proxy is asked on its socket, and says why.

Observed as `Listener("REFUSED why", 0)`, as health is: one more thing that is there, or is not. It is no failure of the
sync that wrote the file; the proxy goes on with the last good one, and everything else goes on, too.
"""

from collections.abc import Iterable, Mapping

from nsnet.kernel import process
from nsnet.state import Listener, Process

PROGRAM = "nsnet.programs.ingress"
PATIENCE = 1.0  # s


def observe(programs: Mapping[str, Iterable[Process]]) -> dict[str, Listener]:
    """Namespace → the refusal there; `programs` are those that run in each."""
    found = {}
    for netns, running in programs.items():
        for program in running:
            if is_asked(program):
                why = process.status(program.argv[-1], PATIENCE)
                if why:
                    found[netns] = Listener(f"REFUSED {why}", 0)
    return found


def may_be(netns: str) -> bool:
    """Could a proxy's pod live there? Saves a look at all processes where not."""
    return ".pod.ingress-nsnet." in netns


def is_asked(program: Process) -> bool:
    return PROGRAM in program.argv
