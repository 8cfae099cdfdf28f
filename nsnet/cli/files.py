"""FILE… and -f FILE: bytes from files, directories and standard input, and the objects they say."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from nsnet import manifests, model
from nsnet.cli.context import checked
from nsnet.cli.words import nearest
from nsnet.errors import InputError, ObjectError
from nsnet.manifests import MAX_BYTES, Loaded, Source
from nsnet.model import Cluster, Key

T = TypeVar("T")
SUFFIXES = {".yaml", ".yml", ".json"}


def sources(files: Sequence[str]) -> list[Source]:
    """The bytes of each file; `-` is stdin, a directory its *.yaml, *.yml and *.json by name. Raises InputError."""
    if len([name for name in files if name == "-"]) > 1:
        raise InputError("- is given twice", "standard input can be read once")
    return [_source(path) for name in files for path in _expanded(name)]


def _expanded(name: str) -> list[str]:
    try:
        if name == "-" or not Path(name).is_dir():
            return [name]
        found = sorted(str(path) for path in Path(name).iterdir() if path.suffix in SUFFIXES)
    except OSError as error:  # a directory on the way that may not be entered, a name that is too long
        raise InputError(f"{name}: {error.strerror}", _near(name)) from error
    if not found:
        raise InputError(f"{name}: there is no *.yaml, *.yml or *.json in this directory", "name the files")
    return found


def _source(name: str) -> Source:
    try:
        if name == "-":
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with Path(name).open("rb") as file:
                data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}", _near(name)) from error
    if len(data) > MAX_BYTES:
        raise InputError(f"{name}: the file is larger than {MAX_BYTES >> 20} MiB", "is it a file of manifests?")
    return Source(name, data)


def _near(name: str) -> str:
    path = Path(name)
    try:
        found = nearest(path.name, (entry.name for entry in path.parent.iterdir() if entry.name != path.name))
    except OSError:
        return ""
    return f"did you mean {path.parent / found}?" if found else ""


def load(files: Sequence[str], cluster: str | None, namespace: str = "") -> Loaded:
    """The objects of the files, for the cluster and namespace of that name if one is given. Raises InputError."""
    return parsed(sources(files), cluster, namespace)


def parsed(found: Sequence[Source], cluster: str | None, namespace: str = "") -> Loaded:
    """The same of what was read already; standard input can be read once."""
    loaded = manifests.load(found, cluster, namespace)
    return _renamed(loaded, checked(cluster)) if cluster else loaded


def _renamed(loaded: Loaded, name: str) -> Loaded:
    """--cluster wins over the document: the same files can be up twice, side by side."""
    said = model.cluster_of(loaded.objects)
    if said.metadata.name == name:
        return loaded
    old, new = model.key_of(said), Key("Cluster", "", name)
    renamed: Cluster = msgspec.structs.replace(said, metadata=msgspec.structs.replace(said.metadata, name=name))
    objects = {new if key == old else key: renamed if key == old else obj for key, obj in loaded.objects.items()}
    origins = {new if key == old else key: origin for key, origin in loaded.origins.items()}
    return msgspec.structs.replace(loaded, objects=objects, origins=origins)


def says_cluster(loaded: Loaded) -> bool:
    """Does a file say a Cluster document (or is it the default one)?"""
    return any(key.kind == "Cluster" for key in loaded.origins)


def placed(loaded: Loaded, compute: Callable[[], T]) -> T:
    """Calls a pure room; its ObjectError comes out with file, line and column in front."""
    try:
        return compute()
    except ObjectError as error:
        raise manifests.located(error, loaded) from error
