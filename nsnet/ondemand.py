"""Packages whose names are loaded when they are asked for: who needs one room does not pay for all."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def attributes(package: str, rooms: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package (PEP 562) whose names stand in these of its modules."""

    def attribute(name: str) -> Any:
        if name not in rooms:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(import_module(f"{package}.{rooms[name]}"), name)
        setattr(import_module(package), name, found)
        return found

    return attribute
