"""A command of nsnet on another machine, by ssh: that asks who we are, and nsnet opens no port for it.

NSNET_RSH is what rsync calls --rsh: the words before the address, `ssh` by default, `ssh -l admin -i key` or any
program that takes an address and a line for a shell.
"""

import os
import shlex
import subprocess
from collections.abc import Sequence

from nsnet.errors import MachineError


def run(address: str, words: Sequence[str]) -> int:
    """Runs `nsnet WORDS` on the machine that has the address, with our terminal; returns its exit code.

    Raises MachineError where the program that leads there cannot be run, or reports that it got nowhere (ssh: 255).
    """
    way = shlex.split(os.environ.get("NSNET_RSH") or "ssh")
    try:
        code = subprocess.run([*way, address, shlex.join(["nsnet", *words])], check=False).returncode
    except OSError as error:
        raise MachineError(f"{way[0]}: {error.strerror}", "NSNET_RSH says how other machines are reached") from error
    if code == 255:
        raise MachineError(f"{way[0]} does not reach {address}", "NSNET_RSH says how other machines are reached: ssh …")
    return code
