"""`exec` and `shell`: a command where a pod, a node or a host lives; its exit code is ours.

In a pod it has, besides the caller's variables, those that name Services, as kubelet gave them when the pod started
(control/environment.py). Of the caller's those are left out that would lead astray in there: a proxy's address, what
libc's resolver is told besides resolv.conf, and the Services of another cluster, if the caller lives in a pod itself.
What else a manifest says under `env` is meant for an image: as a PATH or LD_PRELOAD it would change what runs here,
with root's rights.
"""

import os
from collections.abc import Mapping
from typing import NoReturn

import click

from nsnet import names
from nsnet.cli import elsewhere, options
from nsnet.cli.context import running
from nsnet.cli.output import error
from nsnet.cli.target import Target, target
from nsnet.control.environment import service_variables
from nsnet.kernel.run import replace_process
from nsnet.model import Objects

PASSED = {"ignore_unknown_options": True, "allow_interspersed_args": False}
RESOLVER = {"LOCALDOMAIN", "RES_OPTIONS", "HOSTALIASES"}  # resolv.conf(5), hostname(7)
NOT_EXECUTABLE, NOT_FOUND = 126, 127  # as a shell says it


@options.verb("exec", context_settings=PASSED)
@click.option("-c", "--container", default="", metavar="CONTAINER", help="Containers of a pod share one namespace.")
@options.namespace
@options.cluster
@click.argument("where", metavar="TARGET")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[--] CMD…")
def exec_(container: str, namespace: str, cluster: str | None, where: str, command: tuple[str, ...]) -> int:
    """Run a command in a pod, node or host, with its network, hostname, resolv.conf and hosts.

    TARGET is POD, pod/POD, pod/NAMESPACE/POD, node/NODE, host/HOST, deploy/NAME or svc/NAME (one ready pod of it). What
    another machine of the cluster carries is reached by ssh (NSNET_RSH: the words before its address).
    """
    words = command[1:] if command[:1] == ("--",) else command
    if not words:
        raise click.UsageError("a command is missing", click.get_current_context())
    now = running("exec", cluster)
    found = target(now.objects, where, namespace, container)
    if there := elsewhere.machine_of(now, found.netns):
        return elsewhere.run(now, there, "exec", "-n", namespace, *_of(container), where, "--", *words)
    return _become(now.objects, found, words, container)


@options.verb("shell")
@click.option("-c", "--container", default="", metavar="CONTAINER", help="Containers of a pod share one namespace.")
@options.namespace
@options.cluster
@click.argument("where", metavar="TARGET")
def shell(container: str, namespace: str, cluster: str | None, where: str) -> int:
    """Open a shell in a pod, node or host; the prompt says where."""
    now = running("shell", cluster)
    found = target(now.objects, where, namespace, container)
    if there := elsewhere.machine_of(now, found.netns):
        return elsewhere.run(now, there, "shell", "-n", namespace, *_of(container), where)
    return _become(now.objects, found, (os.environ.get("SHELL") or "/bin/sh",), container)


def _of(container: str) -> tuple[str, ...]:
    return ("-c", container) if container else ()


def _become(objects: Objects, found: Target, words: tuple[str, ...], container: str) -> int:
    env = {**_callers(os.environ), "NSNET_TARGET": found.label, "debian_chroot": found.label}
    if found.pod is not None:
        env |= service_variables(objects, found.pod, container)
    env["HOSTNAME"] = found.hostname
    try:
        _replace(found, words, env)
    except FileNotFoundError:
        error(f"{words[0]}: there is no such command on this machine")
        return NOT_FOUND
    except PermissionError:
        error(f"{words[0]}: is not executable")
        return NOT_EXECUTABLE


def _callers(environment: Mapping[str, str]) -> dict[str, str]:
    """The caller's variables, as far as they are true in another network."""
    services = [name.removesuffix("SERVICE_HOST") for name in environment if name.endswith("_SERVICE_HOST")]
    foreign = tuple(prefix + word for prefix in services for word in ("SERVICE_", "PORT"))
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(foreign) and not name.lower().endswith("_proxy") and name not in RESOLVER
    }


def _replace(found: Target, words: tuple[str, ...], env: dict[str, str]) -> NoReturn:
    pod = found.pod
    guest = pod is not None and pod.spec.hostNetwork
    etc = names.guest_etc_dir(found.netns, pod.metadata.namespace, pod.metadata.name) if guest and pod else None
    replace_process(found.netns, words, hostname=found.hostname, env=env, etc=etc)
