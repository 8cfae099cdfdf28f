"""`bundle`: everything that somebody needs who shall find out what went wrong, in one archive without secrets.

It is made when things are broken, so no part may break it: what cannot be had stands in the archive as the reason why.
"""

import io
import secrets
import tarfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from nsnet import __version__, diff, kernel, model, names, render
from nsnet import state as kernels
from nsnet.cli import options, redact
from nsnet.cli.context import chosen, need_root, opened
from nsnet.cli.doctor import documents, examine
from nsnet.cli.output import out
from nsnet.errors import InputError, NsnetError
from nsnet.kernel import netns, run
from nsnet.model import Objects
from nsnet.state import State
from nsnet.store.objects import load_objects

CAPTURES = (".pcap", ".pcapng")
PATIENCE = 20.0  # s for one tool in one namespace
LARGEST = 64 << 20  # bytes of a log or capture: the end of it counts
TOOLS: tuple[tuple[str, ...], ...] = (  # run in every node and in the fabric, where rules are
    ("ip", "-d", "-s", "link"),
    ("ip", "address"),
    ("ip", "route", "show", "table", "all"),
    ("ip", "-6", "route", "show", "table", "all"),
    ("ip", "neighbour"),
    ("bridge", "fdb"),
    ("ss", "-tulpn"),
    ("iptables-save", "-c"),
    ("ip6tables-save", "-c"),
    ("nft", "list", "ruleset"),
    ("conntrack", "-L"),
    ("tc", "-s", "qdisc"),
)
ABOUT = """nsnet {version}, cluster {cluster}, {time}

objects.yaml       what the store holds; the data of Secrets, private keys, tokens and passwords are redacted
drift.txt          what differs in the kernel from what is wanted, as the lines that would mend it
kernel/            what the kernel has, a file for each namespace: a line for each value, as a person would type it
tools/             what ip, iptables-save, nft, conntrack … print, in every node and in the fabric
logs/              of the controller and of every program
captures/          those in the cluster's own directories that hold no secret
doctor.json        the machine
*.error.txt        what could not be had, and why
"""
Part = Callable[[], Iterator[tuple[str, str | bytes]]]


@options.verb("bundle")
@click.argument("file", required=False, type=click.Path(dir_okay=True, path_type=Path), metavar="[FILE]")
@options.cluster
def bundle(file: Path | None, cluster: str | None) -> None:
    """Pack objects, kernel state of every namespace, logs, captures and doctor into FILE (a .tar.gz), without secrets.

    Without FILE, or where it is a directory, the name is nsnet-CLUSTER-TIME.tar.gz.
    """
    need_root("bundle")
    out(str(pack(chosen(cluster), file or Path())))


def pack(cluster: str, file: Path, further: Mapping[str, str] | None = None) -> Path:
    """Writes the archive, whole or not at all; its path. Raises InputError where it cannot be written."""
    now = datetime.now(UTC)
    stem = f"nsnet-{cluster}-{now:%Y%m%dT%H%M%SZ}"
    path = file / f"{stem}.tar.gz" if file.is_dir() else file
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")  # what nobody else can have put there
    try:
        with tarfile.open(draft, "x:gz") as archive:
            for name, content in _contents(cluster, now, further or {}):
                entry = tarfile.TarInfo(f"{stem}/{name}")
                entry.size, entry.mtime, entry.mode = len(content), int(now.timestamp()), 0o644
                archive.addfile(entry, io.BytesIO(content))
        draft.replace(path)
    except OSError as failed:
        hint = "name a file or directory that can be written"
        raise InputError(f"{path}: {failed.strerror or failed}", hint) from failed
    finally:
        with suppress(OSError):
            draft.unlink()  # where it has not become the archive
    return path


# --- what is in it ----------------------------------------------------------------------------------------------------


def _contents(cluster: str, now: datetime, further: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    """Every file with its content, the secrets of the objects (and what looks like one) taken out."""
    objects, problem = _objects(cluster)
    docs = [model.to_doc(obj) for obj in objects.values()]
    known = redact.secrets(docs)
    parts: dict[str, Part] = {
        "README.txt": lambda: iter([("README.txt", ABOUT.format(version=__version__, cluster=cluster, time=now))]),
        "objects.yaml": lambda: iter([("objects.yaml", _yaml(map(redact.document, docs)))]),
        "kernel": lambda: _kernel(cluster, objects),
        "tools": lambda: _tools(cluster),
        "logs": lambda: _files("logs", names.run_dir(cluster), (".log",)),
        "captures": lambda: (
            item
            for top in (names.run_dir(cluster), names.state_dir(cluster))
            for item in _files("captures", top, CAPTURES)
        ),
        "doctor.json": lambda: iter([("doctor.json", _json(documents(examine())))]),
        "further": lambda: iter(further.items()),
    }
    if problem:
        yield "objects.error.txt", redact.text(problem, known).encode()
    for part, contents in parts.items():
        for name, content in _guarded(part, contents):
            if isinstance(content, str):
                yield name, redact.text(content, known).encode()
            elif redact.is_clean(content, known):
                yield name, content
            else:
                yield f"{name}.error.txt", b"left out: it holds a secret of the objects\n"


def _guarded(part: str, contents: Part) -> Iterator[tuple[str, str | bytes]]:
    try:
        yield from contents()
    except Exception:  # noqa: BLE001 - whatever is broken is what the bundle is about
        yield f"{part}.error.txt", traceback.format_exc()


def _objects(cluster: str) -> tuple[Objects, str]:
    try:
        with opened(cluster) as store:
            return load_objects(store)[0], ""
    except Exception:  # noqa: BLE001 - a damaged store is a reason for a bundle
        return {}, traceback.format_exc()


def _yaml(docs: Iterable[Any]) -> str:
    import yaml

    return yaml.safe_dump_all((msgspec.to_builtins(doc) for doc in docs), sort_keys=False, allow_unicode=True)


def _json(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def _kernel(cluster: str, objects: Objects) -> Iterator[tuple[str, str]]:
    have: State = kernel.observe(cluster)
    for name, values in sorted(have.items()):
        ordered = sorted(values, key=lambda value: value.key)
        yield f"kernel/{name}.txt", "".join(f"{line}\n" for value in ordered for line in kernels.words(value))
    changes = diff.diff(have, render.render(objects)) if objects else []
    yield "drift.txt", "".join(f"{change}\n" for change in changes) or "none\n"


def _tools(cluster: str) -> Iterator[tuple[str, str]]:
    """Not in pods and hosts: they are many and have nothing that is not in kernel/."""
    for name in netns.candidates(cluster):
        if names.kind_of(name) in {"node", "fabric"}:
            yield f"tools/{name}.txt", "".join(f"$ {' '.join(words)}\n{_said(name, words)}\n" for words in TOOLS)


def _said(name: str, words: tuple[str, ...]) -> str:
    try:
        return run.output(name, words, timeout=PATIENCE)
    except (NsnetError, OSError) as failed:
        return f"({failed})\n"


def _files(folder: str, top: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, str | bytes]]:
    for path in sorted(top.rglob("*")):
        if path.suffix in suffixes and path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - LARGEST))
                content = file.read()
            inner = f"{folder}/{path.relative_to(top)}"
            yield inner, content.decode(errors="replace") if folder == "logs" else content
