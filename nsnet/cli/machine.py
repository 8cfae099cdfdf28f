"""`doctor`, `completion`, `version`: about the machine and the tool, not about a cluster."""

import os

import click

from nsnet import __version__
from nsnet.cli import options
from nsnet.cli.output import coloured, out, print_json
from nsnet.kernel.features import Finding, features, neighbour_limit, root, tools

MACHINE_CANNOT = 5
THRESHOLD = "net.ipv4.neigh.default.gc_thresh3"


@options.verb("version", anywhere=True)
def version() -> None:
    """Print the version."""
    out(f"nsnet {__version__}")


@options.verb("completion", anywhere=True)
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def completion(shell: str) -> None:
    """Print the completion script of a shell: `source <(nsnet completion bash)`."""
    from click.shell_completion import get_completion_class

    from nsnet.cli.main import nsnet

    found = get_completion_class(shell)
    assert found is not None
    out(found(nsnet, {}, "nsnet", "_NSNET_COMPLETE").source())


@options.verb("doctor")
@options.output("json")
def doctor(output: str | None) -> int:
    """Show what this machine lacks (tools, kernel features), with the command that mends it; runs none of them.

    Every kernel feature is tried in a network namespace made for the try. Exit code 5: something needed is missing.
    """
    found = [root(), *tools(), *(features() if os.geteuid() == 0 else [])]
    if output == "json":
        print_json(found)
    else:
        _print(found)
    return MACHINE_CANNOT if any(item.needed and not item.ok for item in found) else 0


def _print(found: list[Finding]) -> None:
    for item in found:
        out(_line(item))
    if os.geteuid() != 0:
        out("kernel features were not tried: that takes root")
    limit = neighbour_limit()
    if limit:
        out(f"note     the machine has one IPv4 neighbour table of {limit} entries for all namespaces (nsnet's own are")
        out(f"         permanent and do not count); sudo sysctl -w {THRESHOLD}={limit * 8} raises it")


def _line(item: Finding) -> str:
    why = f" ({item.why})" if item.why else ""
    if item.ok:
        return f"{coloured('ok', 'green')}       {item.name}"
    word = coloured("missing", "red" if item.needed else "yellow")
    return f"{word}  {item.name}{why}: {item.mend}"
