"""The command: a table of verbs, and what every verb has in common (flags, errors, exit codes).

A verb's module is imported when the verb is used, and not before: `nsnet --help` reads this table and nothing else, so
that it answers in a few hundredths of a second (the loops of `scripts/bench` and shell completion feel it).

The contract of every verb: what was asked for goes to stdout; `error: …` and `hint: …` go to stderr, never a traceback;
the exit code is 0, 1, 2, 5 or 6 as in `nsnet.errors`, 130 after Ctrl-C, 141 when the reader of stdout went away.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple, NoReturn

import click

from nsnet.cli.words import did_you_mean
from nsnet.errors import INTERRUPTED, READER_GONE, InputError, MachineError, NsnetError
from nsnet.garbage import kept


class Verb(NamedTuple):
    """Where a verb lives (`module:function` under nsnet.cli) and its line in `nsnet --help`."""

    where: str
    help: str


SECTIONS: dict[str, dict[str, Verb]] = {
    "Build": {
        "up": Verb("up:up", "Build or converge a cluster from files, start its controller, verify it."),
        "agent": Verb("agent:agent", "Carry one machine's part of a cluster that several carry."),
        "down": Verb("down:down", "Remove a cluster, everything of it."),
        "plan": Verb("plan:plan", "Show the changes `up` would make, as lines a person could type."),
        "validate": Verb("plan:validate", "Check files; say file, line and field of what is wrong."),
    },
    "Change": {
        "apply": Verb("change:apply", "Create or change objects of a running cluster."),
        "delete": Verb("change:delete", "Delete objects by file or by name."),
        "scale": Verb("change:scale", "Set the number of replicas."),
        "label": Verb("change:label", "Set or remove labels."),
        "annotate": Verb("change:annotate", "Set or remove annotations."),
    },
    "Look": {
        "get": Verb("get:get", "List objects as kubectl does."),
        "describe": Verb("describe:describe", "Show one object, what belongs to it and its events."),
        "status": Verb("health:status", "Show a cluster's health, drift and components."),
        "list": Verb("health:list_", "List all clusters of this machine."),
        "events": Verb("health:events", "Show what the controllers have to say."),
        "logs": Verb("logs:logs", "Show the log of a component or a pod."),
        "trace": Verb("trace:trace", "Show the way a packet would take, hop by hop, and how it ends."),
        "capture": Verb("capture:capture", "Show or write the packets that pass, on one hop or on all."),
        "graph": Verb("graph:graph", "Draw the cluster: mermaid, dot, svg or json."),
        "ui": Verb("ui:ui", "Show the live cluster as a page in a browser, with traces by two clicks."),
        "snapshot": Verb("snapshot:snapshot", "Keep what the kernel has now under a name."),
        "diff": Verb("snapshot:diff", "Show what changed in the kernel since a snapshot."),
        "explain": Verb(
            "realised:explain", "Show how a Service, pod or node is realised here, each line with its reason."
        ),
        "policy": Verb("policy:policy", "Show what NetworkPolicies allow, whether packets agree, and why."),
        "rules": Verb("explain:rules", "Show the Service rules of a node, explained."),
        "leases": Verb("explain:leases", "Show flannel's subnet leases."),
        "conntrack": Verb("explain:conntrack", "Show the connections a node tracks, with the Service of each."),
    },
    "Use": {
        "exec": Verb("inside:exec_", "Run a command in a pod, node or host."),
        "shell": Verb("inside:shell", "Open a shell in a pod, node or host."),
        "verify": Verb("check:verify_", "Prove with packets that what should be reachable is, and nothing else."),
    },
    "Break": {
        "fault": Verb("fault:fault", "Break it on purpose, list what is broken, mend it."),
        "lab": Verb("lab:lab", "Learn to find and mend what breaks: labs with hints, checked with packets."),
    },
    "The tool": {
        "doctor": Verb("doctor:doctor", "Show what this machine lacks, what it costs, and what mends it."),
        "bundle": Verb(
            "bundle:bundle", "Pack objects, kernel state, logs and doctor into an archive, without secrets."
        ),
        "completion": Verb("machine:completion", "Print the completion script of a shell."),
        "version": Verb("machine:version", "Print the version."),
    },
}
HIDDEN = {"beside": Verb("beside:beside", "What nsnet on another machine of the cluster starts here.")}
VERBS: dict[str, Verb] = {name: verb for section in SECTIONS.values() for name, verb in section.items()} | HIDDEN


class Verbs(click.Group):
    """A click group that knows its commands by the table."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in the table's order."""
        del ctx
        return [name for name in VERBS if name not in HIDDEN]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the verb's module."""
        del ctx
        verb = VERBS.get(cmd_name)
        if verb is None:
            return None
        module, _, name = verb.where.partition(":")
        with kept():
            command = getattr(importlib.import_module(f"nsnet.cli.{module}"), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, with the nearest verb in the error."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            raise click.UsageError(f'there is no verb "{args[0]}"{did_you_mean(args[0], VERBS)}', ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table, without importing anything."""
        del ctx
        for title, verbs in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, verb.help) for name, verb in verbs.items()])


CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


@click.group(cls=Verbs, context_settings=CONTEXT, no_args_is_help=False, invoke_without_command=True)
@click.option("--cluster", metavar="NAME", help="The cluster (also NSNET_CLUSTER).")
@click.option(
    "--rootless", is_flag=True, envvar="NSNET_ROOTLESS", help="Without root, in a user namespace of your own."
)
@click.option("--version", is_flag=True, help="Print the version.")
@click.pass_context
def nsnet(ctx: click.Context, cluster: str | None, rootless: bool, version: bool) -> None:
    """A whole Kubernetes cluster network on one Linux machine, real, and checked with packets.

    Start with: sudo nsnet up topologies/quickstart.yaml
    """
    del rootless  # each verb heeds it (options.py)
    ctx.obj = cluster
    if version:
        from nsnet import __version__

        click.echo(f"nsnet {__version__}")
    elif ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Runs the command and exits with its code, without taking apart all that it read."""
    code = run(list(sys.argv[1:] if args is None else args))
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(code)


def run(args: list[str]) -> int:
    """Runs the command; every error has become a line on stderr and an exit code."""
    try:
        code = _invoke(args)
        sys.stdout.flush()
    except BrokenPipeError:
        _forget_stdout()
        return READER_GONE
    except Exception as error:  # noqa: BLE001 - the last line of defence: a person never sees a traceback
        return _failed(error)
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    return code


def _invoke(args: list[str]) -> int:
    if "_NSNET_COMPLETE" in os.environ:
        nsnet.main(args, prog_name="nsnet", complete_var="_NSNET_COMPLETE")
    try:
        with nsnet.make_context("nsnet", args) as ctx:
            result = nsnet.invoke(ctx)
    except click.exceptions.Exit as done:
        return done.exit_code
    return result if isinstance(result, int) else 0


def _failed(error: Exception) -> int:
    match error:
        case NsnetError():
            _say(str(error), error.hint)
            return error.exit_code
        case click.UsageError():
            where = error.ctx.command_path if error.ctx else "nsnet"
            _say(error.format_message().rstrip("."), f"`{where} --help` shows how it is used")
            return InputError.exit_code
        case click.ClickException():
            _say(error.format_message())
            return InputError.exit_code
        case click.Abort():
            _say("interrupted")
            return INTERRUPTED
        case OSError() if error.errno == 28:  # ENOSPC
            _say(f"cannot write: {error}", "make room and run the command again")
            return MachineError.exit_code
    return _bug(error)


def _bug(error: Exception) -> int:
    first = (str(error).splitlines() or [""])[0]
    _say(f"this is a bug in nsnet: {type(error).__name__}: {first}", f"please report it{_kept(error)}")
    return NsnetError.exit_code


def _kept(error: Exception) -> str:
    """` with FILE`, which has the traceback; or why there is none."""
    import tempfile
    import traceback

    try:
        with tempfile.NamedTemporaryFile("w", prefix="nsnet-", suffix=".traceback", delete=False) as file:
            file.write(f"nsnet {' '.join(sys.argv[1:])}\n\n")
            traceback.print_exception(error, file=file)
    except OSError as failed:
        return f"; its traceback could not be written: {failed.strerror}"
    return f" with {file.name}"


def _say(message: str, hint: str = "") -> None:
    """On stderr, also where what stdout still holds cannot be written."""
    from nsnet.cli.output import error

    try:
        error(message, hint)
    except OSError:
        _forget_stdout()
        with suppress(OSError):  # nobody reads stderr either
            error(message, hint)


def _forget_stdout() -> None:
    """Nobody takes what goes to stdout any more: what is still buffered must not raise a second time at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
