"""A length of time as it is typed: `30s`, `1m30s`, `500ms`, as Go and kubectl have it; a plain number is seconds."""

import re

import click

from nsnet import model

_PLAIN = re.compile(r"\d+(?:\.\d+)?")


class Duration(click.ParamType[float]):
    """Seconds."""

    name = "duration"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Raises click's usage error where it is none, or negative."""
        if isinstance(value, float):
            return value
        found = float(value) if _PLAIN.fullmatch(value) else model.seconds(value)
        return self.fail(f'"{value}" is no length of time: 60s, 2m, 1m30s', param, ctx) if found is None else found


DURATION = Duration()
