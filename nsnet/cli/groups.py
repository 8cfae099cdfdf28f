"""Verbs with verbs of their own, such as `fault add`."""

from collections.abc import Callable
from inspect import cleandoc
from typing import Any

import click

from nsnet.cli import options
from nsnet.cli.words import did_you_mean


class Group(click.Group):
    r"""Its own verbs, with the nearest one in the error. Lines after a line `\b` of its help stay as they are."""

    def __init__(self, *args: Any, help: str = "", **settings: Any) -> None:  # noqa: A002 - click's own word
        super().__init__(*args, help=cleandoc(help).replace("\\b\n", "\b\n"), **settings)

    def verb(self, name: str, *, anywhere: bool = False) -> Callable[[Callable[..., Any]], click.Command]:
        """As `options.verb`, of this group."""

        def decorate(function: Callable[..., Any]) -> click.Command:
            command = options.verb(name, anywhere=anywhere)(function)
            self.add_command(command)
            return command

        return decorate

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Without a word the help is what is asked for."""
        return super().parse_args(ctx, args or ["--help"])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, with the nearest verb in the error."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            near = did_you_mean(args[0], self.commands)
            raise click.UsageError(f'there is no {self.name} verb "{args[0]}"{near}', ctx)
        return super().resolve_command(ctx, args)
