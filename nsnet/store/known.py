"""What this machine knew last of a cluster whose store does not answer: enough to look at what goes on without it.

The controller writes it when the store is lost and removes it when that is back; verbs that only read take it meanwhile
and say so. It is never written to the store again.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from nsnet import names
from nsnet.model import Key, Object, Objects
from nsnet.store import Entry
from nsnet.store.keys import records
from nsnet.store.objects import Warn, entries_decoded


class _Known(msgspec.Struct, frozen=True):
    revision: int
    records: dict[str, bytes]


def _file(cluster: str) -> Path:
    return names.state_dir(cluster) / "known.json"


def is_there(cluster: str) -> bool:
    return _file(cluster).exists()


def keep(cluster: str, objects: Objects, revision: int) -> None:
    """Whole or not at all; nothing where the state directory is gone or the disk full."""
    found = {key: value for obj in objects.values() for key, value in records(obj).items()}
    draft = _file(cluster).with_suffix(".new")
    with contextlib.suppress(OSError):
        draft.touch(mode=0o600)
        draft.write_bytes(msgspec.json.encode(_Known(revision, found)))
        draft.replace(_file(cluster))


def forget(cluster: str) -> None:
    _file(cluster).unlink(missing_ok=True)


def last(cluster: str, warn: Warn, decoded: Callable[[str, bytes], Object]) -> tuple[dict[Key, Object], int] | None:
    """The objects, and the revision they stood for; None where nothing was kept."""
    try:
        found = msgspec.json.decode(_file(cluster).read_bytes(), type=_Known)
    except (OSError, msgspec.MsgspecError):
        return None
    entries = [Entry(key, value, found.revision, found.revision) for key, value in found.records.items()]
    return entries_decoded(entries, warn, decoded), found.revision
