"""`--bundle-on-failure`: what a verb leaves behind when it fails, for jobs whose machine is gone a minute later."""

import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import click

from nsnet.cli.output import note
from nsnet.errors import NsnetError


def guarded(directory: Path | None, cluster: Callable[[], str], work: Callable[[dict[str, str]], int]) -> int:
    """Runs `work`; where it fails and there is a directory, leaves a bundle there, and says so on stderr.

    `work` may put further files for the bundle (a report) into the dictionary it is given.
    """
    further: dict[str, str] = {}
    try:
        code = work(further)
    except click.exceptions.Exit:  # interrupted
        raise
    except Exception as failed:
        if directory is not None:
            further["failure.txt"] = "".join(traceback.format_exception(failed))
            _leave(directory, cluster, further)
        raise
    if code and directory is not None:
        _leave(directory, cluster, further)
    return code


def _leave(directory: Path, cluster: Callable[[], str], further: Mapping[str, str]) -> None:
    """What went wrong before is what the command ends with: a bundle that cannot be made is only a note."""
    from nsnet.cli.bundle import pack

    try:
        directory.mkdir(parents=True, exist_ok=True)
        note(f"bundle: {pack(cluster(), directory, further)}")
    except (NsnetError, OSError) as failed:
        note(f"no bundle: {failed}")
