"""destroy: everything of a cluster goes; the names in /run/netns, the marks inside and /proc are all it needs.

Whole namespaces go at once: programs first (their sockets hold namespaces), then files, then names. Deleting links one
by one would cost 20 ms each; the kernel takes those of a dropped namespace down by itself, 1,000 pods in 0.7 s, and
`netns.Witness` says when that is over.
"""

from contextlib import suppress

from nsnet import names
from nsnet.kernel import files, netns, process
from nsnet.kernel.process import all_descriptors


def destroy(cluster: str, *, timeout: float = 10.0) -> bool:
    """Ends what runs in the cluster's namespaces and removes them, and its files under /run/nsnet and /etc/netns.

    Waits at most `timeout` seconds until the kernel has taken down every link; whether it has (False: somebody else
    still holds a namespace). Nothing there is success. Only what bears the cluster's mark is touched.
    """
    all_descriptors()  # one for each namespace that is watched
    witness = netns.Witness()
    try:
        ours = netns.listing(cluster)
        for name in ours:
            with suppress(OSError):  # gone meanwhile, or no descriptor left: the others tell
                witness.watch(name)
        process.end_programs(cluster, lambda _: True)
        process.end_inhabitants(ours)
        files.delete_cluster(cluster)
        for name in (*ours, *netns.half_made(cluster)):
            netns.delete(name)
        netns.tidy()
        return witness.wait(timeout)
    finally:
        witness.close()


def left(cluster: str) -> list[str]:
    """What is left of a cluster, as lines for a person; empty after `destroy`."""
    found = [f"namespace {name}" for name in netns.listing(cluster)]
    found += [f"name {netns.path_of(name)} that leads nowhere" for name in netns.half_made(cluster)]
    found += [f"process {program.pid} {' '.join(program.argv)}" for program in process.running(cluster)]
    found += [f"file {value.path}" for values in files.observe(cluster).values() for value in values]
    return found + ([f"directory {names.run_dir(cluster)}"] if names.run_dir(cluster).exists() else [])
