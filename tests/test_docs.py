"""The jobs in docs/ci.md are YAML, and the commands in them are commands."""

import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from nsnet.cli import main

PAGE = (Path(__file__).parents[1] / "docs" / "ci.md").read_text()


def _texts(value: Any) -> Iterator[str]:
    match value:
        case dict():
            for item in value.values():
                yield from _texts(item)
        case list():
            for item in value:
                yield from _texts(item)
        case str():
            yield value


def _commands() -> Iterator[str]:
    for job in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL):
        lines = (line for text in _texts(yaml.safe_load(job)) for line in text.splitlines())
        yield from (line for line in lines if re.match(r"(sudo )?nsnet ", line))


COMMANDS = sorted({command.removeprefix("sudo ") for command in _commands()})


def test_there_are_jobs() -> None:
    assert {shlex.split(command)[1] for command in COMMANDS} >= {"doctor", "up", "verify", "exec", "down"}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_what_the_verbs_take(command: str) -> None:
    verb, *words = shlex.split(command)[1:]
    module, _, name = main.VERBS[verb].where.partition(":")
    found = getattr(import_module(f"nsnet.cli.{module}"), name)
    assert isinstance(found, click.Command)
    found.make_context(verb, words, resilient_parsing=False)
