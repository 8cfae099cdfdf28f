"""Opens a cluster's store, whichever it is: a file of this machine, or an etcd (`location.py` says where)."""

from nsnet.errors import NsnetError
from nsnet.store import Store, sqlite
from nsnet.store.location import INSIDE, PATIENCE, SQLITE, Here, here, location


def exists(cluster: str) -> bool:
    """Has the cluster a store, as far as this machine knows? It may be damaged, or out of reach."""
    return sqlite.exists(cluster) or here(cluster) != Here()


def open_store(cluster: str, *, create: bool = False, patience: float = PATIENCE) -> Store:
    """The cluster's store.

    Raises InputError where there is none and `create` is not set; MachineError as `sqlite.open_file` and
    `etcd.open_etcd`. `patience`: seconds in which an etcd that does not answer is asked again.
    """
    return open_at(cluster, here(cluster).store, create=create, patience=patience)


def open_at(cluster: str, store: str, *, create: bool = False, patience: float = PATIENCE) -> Store:
    """The cluster's store at that place."""
    if store == SQLITE:
        return sqlite.open_store(cluster, create=create)
    from nsnet.store.etcd import open_etcd  # most clusters never need it

    return open_etcd(location(cluster, store), cluster, create=create, patience=patience)


def forget(cluster: str, patience: float = 2.0) -> str:
    """Takes the cluster out of the etcd that it shares; why not, where that fails. A file goes with its directory."""
    from nsnet.store.objects import clear

    at = here(cluster)
    store = at.store
    if store in (SQLITE, INSIDE):
        return ""
    try:
        with open_at(cluster, store, patience=patience) as opened:
            clear(opened, spread=bool(at.machine))
    except NsnetError as error:
        return str(error)
    return ""
