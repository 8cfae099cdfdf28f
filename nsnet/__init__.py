"""nsnet: a whole Kubernetes cluster network on one Linux machine, real, and checked with packets.

One sentence: nsnet turns Kubernetes objects into a set of plain values per network namespace, asks the kernel what is
there, and writes the difference.

    topo.yaml ─manifests→ objects ─control→ objects, complete ─store→ disk, before the kernel is touched
                                                 │
                                                 ▼ render                (pure)
                                    want: {netns: {values}}    faults: what is broken on purpose changes it
    kernel ─observe→ have: {netns: {values}} ────┤
                                                 ▼ diff                  (pure)
                                          [Change, …]        `nsnet plan` prints these and stops
                                                 ▼ apply                 (batched)
                                              kernel ─observe→ … until nothing differs

    floor 3, the roof     cli/ · controller/                the only code that prints, exits or waits
    floor 2, halls        reconcile.py · verify/ · labs.py  the order in which rooms are used
    between them          locking.py · scopes.py          who may write, and what a look has to see
    floor 1, rooms        manifests/ · store/ · control/ · render/ · faults/ · diff.py · kernel/ · trace/ · programs/
    floor 0, words        model/ · state.py · names.py · errors.py; made of them, routes/: what is asked of HTTP

Imports only point down, and rooms on floor 1 never see each other. `render` never sees the kernel, the kernel never
sees a Service; only `kernel/` (and `programs/`, which run inside) make system calls; only `kernel/netns.py` enters a
namespace. Nothing remembers: there are the objects in the store and the kernel, and no third thing.

The store is a file, or an etcd that several machines share: then every machine runs the same controller, renders
what is its own (`render/spread.py`) and tells the others who listens there (`store/members.py`); one at a time does
control, and its writes carry the charge as a fencing token. Verbs that look ask every machine's kernel by ssh
(`cli/kernels.py`, `kernel/beside.py`).
"""

__version__ = "0.1.0"
