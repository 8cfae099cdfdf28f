"""`completion`, `version`: about the tool, not about a cluster."""

import click

from nsnet import __version__
from nsnet.cli import options
from nsnet.cli.output import out


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
