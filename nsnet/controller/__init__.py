"""The controller of a cluster: waits until something may have changed, then syncs. One process per cluster.

    a store change ─┐
    a netlink hint ─┤                                    ┌─ answers who waits for a revision
    a process died ─┼─→ `loop.py`: wait ──→ reconcile.sync ─┤
    a client asks ──┤      (under the cluster's lock)    └─ watches what is there now
    every few s ────┘

Events are hints; the look decides. `supervise.py` is its tiny parent, which starts it again when it dies; `client.py`
is what verbs use: start both, stop both, wait until the controller has reached a revision.

The two are found in /proc by their command line and environment, not by pid files, so `stop` works with every directory
deleted. Only processes of the same mount and pid namespaces count.
"""

from nsnet.controller.client import build, converge, start, status, stop

__all__ = ["build", "converge", "start", "status", "stop"]
