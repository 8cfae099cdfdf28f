"""Where a cluster's store is: `--store`, NSNET_STORE, and the file in the state directory that remembers it.

    sqlite                                       a file of this machine (the default)
    etcd                                         one etcd member of the cluster's own, in its fabric
    etcd://10.0.0.1:2379,10.0.0.2:2379           an etcd that several machines share; the cluster has it for itself
    etcd://10.0.0.1:2379/demo                    several clusters in one etcd: every key stands under /demo
    etcds://…?cacert=ca.pem&cert=me.pem&key=me-key.pem     by TLS, with etcdctl's names of the three files

The path is to etcd what `--etcd-prefix` is to kube-apiserver: without one, `etcdctl get --prefix /registry/pods` shows
the cluster's pods and flannel's leases stand where flanneld looks for them by default; with `/demo`, flanneld needs
`-etcd-prefix /demo/coreos.com/network`. Clusters are never told apart by anything but that prefix, and an etcd (prefix)
that another cluster has is refused.
"""

import contextlib
import re
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import msgspec

from nsnet.errors import InputError, MachineError
from nsnet.names import state_dir

SQLITE, INSIDE = "sqlite", "etcd"
PATIENCE = 6.0  # seconds in which every endpoint is tried again before a verb gives up
PORT = 2379
FORMS = "sqlite, etcd, or etcd://HOST:2379[,HOST…][/PREFIX]"
TLS_FILES = ("cacert", "cert", "key")
_PREFIX = re.compile(r"(/[A-Za-z0-9._-]+)*")
_UNIX = "unix:"


class Location(msgspec.Struct, frozen=True):
    """An etcd: `endpoints` are `host:port` or `unix:PATH`; `prefix` is empty or `/demo`."""

    text: str
    endpoints: tuple[str, ...]
    prefix: str = ""
    tls: bool = False
    cacert: str = ""
    cert: str = ""
    key: str = ""


def parsed(text: str) -> Location:
    """`etcd://…` in parts. Raises InputError."""
    try:
        parts = urlsplit(text)
        asked = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
        endpoints = tuple(_endpoint(text, said) for said in parts.netloc.split(","))
    except ValueError as error:
        raise _wrong(text, str(error)) from error
    if parts.scheme not in {"etcd", "etcds"}:
        raise _wrong(text, "it does not begin with etcd:// or etcds://")
    if unknown := sorted(asked.keys() - set(TLS_FILES)):
        raise _wrong(text, f"{unknown[0]} is none of {', '.join(TLS_FILES)}")
    if bool(asked.get("cert")) != bool(asked.get("key")):
        raise _wrong(text, "cert and key go together")
    prefix = parts.path.rstrip("/")
    if not _PREFIX.fullmatch(prefix):
        raise _wrong(text, f"{prefix} is no prefix of keys")
    files = {name: str(Path(path).absolute()) for name, path in asked.items()}
    return Location(text, endpoints, prefix, bool(asked) or parts.scheme == "etcds", **files)


def _endpoint(text: str, said: str) -> str:
    """`host:port`, with etcd's port where none is said."""
    if "@" in said:
        raise _wrong(text, "a user and password in it are not supported: the machines show certificates instead")
    parts = urlsplit(f"//{said}")
    if not parts.hostname:
        raise _wrong(text, "it names no host")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{host}:{parts.port or PORT}"


def _wrong(text: str, why: str) -> InputError:
    return InputError(f'"{text}" is not a store: {why}', f"write {FORMS}")


def checked(text: str) -> str:
    """The word or URL, absolute and without what differs in spelling only. Raises InputError."""
    if text in {SQLITE, INSIDE}:
        return text
    if not text.startswith(("etcd://", "etcds://")):
        raise _wrong(text, "it is none of these")
    at = parsed(text)
    files = "&".join(f"{name}={path}" for name in TLS_FILES if (path := getattr(at, name)))
    return f"etcd{'s' if at.tls else ''}://{','.join(at.endpoints)}{at.prefix}{f'?{files}' if files else ''}"


# --- a cluster's ------------------------------------------------------------------------------------------------------


class Here(msgspec.Struct, frozen=True):
    """What this machine knows of a cluster without asking anybody: where its store is, and which machine this is."""

    store: str = SQLITE
    machine: str = ""  # empty: the only one
    id: str = ""  # of this installation among the machines


def etcd_dir(cluster: str) -> Path:
    """The data of the member inside the fabric, and its socket."""
    return state_dir(cluster) / "etcd"


def inside(cluster: str) -> Location:
    """The member in the cluster's own fabric, by a unix socket: it listens on no address that anybody else can reach.

    `:0` because etcd takes `host:port` alone for the name of a socket.
    """
    return Location(INSIDE, (f"{_UNIX}{etcd_dir(cluster)}/etcd.sock:0",))


def unix_path(endpoint: str) -> str:
    """The path of a `unix:` endpoint; empty for any other."""
    return endpoint.removeprefix(_UNIX) if endpoint.startswith(_UNIX) else ""


def _note(cluster: str) -> Path:
    return state_dir(cluster) / "here.json"


def here(cluster: str) -> Here:
    """What `settle` wrote down; a file of this machine where it wrote nothing."""
    try:
        return msgspec.json.decode(_note(cluster).read_bytes(), type=Here)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return Here()
    except msgspec.MsgspecError as error:
        hint = "write it again: nsnet up --store …"
        raise MachineError(f"{_note(cluster)} does not say where the store is: {error}", hint) from error


def settle(cluster: str, at: Here) -> None:
    """Remembers where the cluster's store is, so that every verb (and the controller) finds it."""
    path = _note(cluster)
    if at == Here():
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()  # if nothing else of the cluster is there
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_bytes(msgspec.json.encode(at))
    new.chmod(0o600)
    new.replace(path)


def location(cluster: str, store: str) -> Location:
    """The etcd that these words mean."""
    return inside(cluster) if store == INSIDE else parsed(store)
