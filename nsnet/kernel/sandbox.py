"""Namespaces of our own for a whole machine's worth of clusters: what runs there is seen by nobody, and nothing stays.

A command is started with a network, a mount and a process namespace of its own; once inside, `furnish` gives it empty
directories where clusters leave their traces. When it ends, however it ends, the kernel kills all it has started and
the last network namespace goes with the last process. It ends with us: setpriv sees to a parent that is killed,
unshare's --kill-child to the rest.

Source: util-linux `unshare(1)`, `setpriv(1)`; the same as scripts/sandbox for tests.
"""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from nsnet import names
from nsnet.errors import MachineError
from nsnet.kernel import netns

_ALONE = (
    "setpriv", "--pdeathsig", "KILL",
    "unshare", "--net", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc",
)  # fmt: skip
PLACES = ("/run", str(names.STATE), str(names.ETC_NETNS))


@contextmanager
def alone(argv: Sequence[str]) -> Iterator[Iterator[str]]:
    """Runs a command in a sandbox; gives its lines as they come, and ends it with all it started.

    Raises MachineError where a sandbox cannot be made, or the command fails.
    """
    try:
        process = subprocess.Popen(
            (*_ALONE, *argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
    except FileNotFoundError as error:
        raise MachineError(f"there is no {error.filename} on this machine", "scripts/setup installs it") from error
    assert process.stdout is not None
    try:
        yield iter(process.stdout)
        if process.wait():
            raise MachineError(f"what ran in private namespaces ended with status {process.returncode}")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def furnish() -> None:
    """Inside: nothing of the machine's clusters is seen from here on. Raises MachineError where the kernel refuses."""
    try:
        for place in PLACES:
            netns.mount("tmpfs", place, 0, "tmpfs")
        subprocess.run(("ip", "link", "set", "lo", "up"), check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise MachineError(f"cannot furnish a sandbox: {error}", "are we root?") from error
