"""`policy show`, `why` and `try`: what NetworkPolicies allow, whether packets agree, and because of what.

The decision is `nsnet.control.policy`'s; the tables are those of `nsnet.verify.table`, laid out as cyclonus does.
"""

import click

from nsnet.cli import options
from nsnet.cli.groups import Group
from nsnet.cli.policy.reasons import why
from nsnet.cli.policy.showing import show
from nsnet.cli.policy.tries import try_


@click.group("policy", cls=Group)
@options.cluster_before
def policy() -> None:
    """Show what NetworkPolicies allow, whether packets agree, and which policy decides."""


for command in (show, why, try_):
    policy.add_command(command)
