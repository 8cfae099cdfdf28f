"""`policy show`, `why` and `try`: what NetworkPolicies allow, whether packets agree, and because of what.

The decision is `nsnet.control.policy`'s; the tables are those of `nsnet.verify.table`, laid out as cyclonus does.
"""

import click

from nsnet.cli.policy.reasons import why
from nsnet.cli.policy.showing import show
from nsnet.cli.policy.tries import try_


@click.group("policy", context_settings={"auto_envvar_prefix": "NSNET"})
@click.option("--cluster", metavar="NAME", help="The cluster, when several are up.")
@click.pass_context
def policy(ctx: click.Context, cluster: str | None) -> None:
    """Show what NetworkPolicies allow, whether packets agree, and which policy decides."""
    if cluster:
        ctx.find_root().obj = cluster


for command in (show, why, try_):
    policy.add_command(command)
