"""Flags that several verbs share. Every flag is also an environment variable `NSNET_<FLAG>`, whatever the verb."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

Function = TypeVar("Function", bound=Callable[..., Any])


def verb(name: str, *, anywhere: bool = False, **settings: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """A click command whose flags read `NSNET_<FLAG>` from the environment, by the longest form of the flag.

    Click's own names would have the verb in them, and the parameter of the function in the place of the flag.
    `anywhere`: it asks nothing of the machine, so that --rootless means nothing to it.
    """

    def decorate(function: Callable[..., Any]) -> click.Command:
        whole = function if anywhere else _rootless(function)
        command = click.command(name, cls=click.Command, **settings)(whole)
        for option in command.params:
            if isinstance(option, click.Option):
                option.envvar = f"NSNET_{max(option.opts, key=len).lstrip('-').replace('-', '_').upper()}"
        return command

    return decorate


def _rootless(function: Function) -> Function:
    return click.option(
        "--rootless", is_flag=True, callback=_enter, expose_value=False, help="Without root, in a user namespace."
    )(function)


def _enter(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Before the verb does anything (but after --help): said behind it, before it, or in the environment."""
    del param
    if (value or ctx.find_root().params.get("rootless")) and not ctx.resilient_parsing:
        from nsnet.kernel import rootless

        rootless.enter()


def _chosen(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """After the verb wins over before the verb wins over the environment."""
    before: str | None = ctx.find_root().obj
    if before and ctx.get_parameter_source(param.name or "") is not ParameterSource.COMMANDLINE:
        return before
    return value


def cluster(function: Function) -> Function:
    return click.option("--cluster", metavar="NAME", callback=_chosen, help="The cluster, when several are up.")(
        function
    )


def cluster_before(function: Function) -> Function:
    """--cluster between a group and its verb, as good as before the group.

    Only flags of verbs read the environment, so that it never wins over what was typed.
    """
    text = "The cluster, when several are up."
    return click.option("--cluster", metavar="NAME", callback=_remembered, expose_value=False, help=text)(function)


def _remembered(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    del param
    if value:
        ctx.find_root().obj = value


def namespace(function: Function) -> Function:
    return click.option("-n", "--namespace", default="default", metavar="NAMESPACE", help="Default: default.")(function)


def namespace_of_files(function: Function) -> Function:
    """-n where files may say one: as kubectl, for objects that say none, and no object may say another."""
    text = "Of objects that say none (default); others are refused."
    return click.option("-n", "--namespace", default="", metavar="NAMESPACE", help=text)(function)


def files(function: Function) -> Function:
    """FILE…, at least one; `-` is stdin."""
    return click.argument("files", nargs=-1, required=True, metavar="FILE…")(function)


def filenames(function: Function) -> Function:
    """-f FILE, several times; a directory stands for its *.yaml, *.yml and *.json."""
    return click.option("-f", "--filename", "filenames", multiple=True, metavar="FILE", help="A file; - is stdin.")(
        function
    )


def output(*choices: str) -> Callable[[Function], Function]:
    """-o, one of `choices`."""
    return click.option("-o", "--output", type=click.Choice(choices), help="The form of what is printed.")


def bundle_on_failure(function: Function) -> Function:
    """--bundle-on-failure DIR, for jobs that keep files: `bundle`'s archive of what there was when it failed."""
    where = click.Path(file_okay=False, path_type=Path)
    text = "Leave an archive (see `bundle`) there if this fails."
    return click.option("--bundle-on-failure", type=where, metavar="DIR", help=text)(function)
