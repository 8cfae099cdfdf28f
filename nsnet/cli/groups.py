"""Verbs with verbs of their own, such as `fault add`."""

import click

from nsnet.cli.words import did_you_mean


class Group(click.Group):
    """Its own verbs, with the nearest one in the error."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, with the nearest verb in the error."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            near = did_you_mean(args[0], self.commands)
            raise click.UsageError(f'there is no {self.name} verb "{args[0]}"{near}', ctx)
        return super().resolve_command(ctx, args)
