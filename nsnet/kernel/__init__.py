"""The only system calls. Two verbs: `observe` turns what the kernel has into values, `apply` writes changes.

`destroy` is both at once for a whole cluster, without knowing what was wanted of it. The rooms behind them:

    netns.py      create, delete, list, enter          process.py   programs: seen in /proc, started, ended
    netlink.py    sockets and framing                  files.py     the files they read
    rtnl.py       values ↔ rtnetlink messages          sysctl.py    /proc/sys/net, every write read back
    sockdiag.py   who listens                          iptables.py  chains, by iptables' own tools
    nftnl.py      nf_tables' messages → values         nftables.py  tables of rules, sets and maps, written by nft
    sandbox.py    a command with namespaces of its own, for clusters that nobody shall see

Nothing here remembers anything between two calls, and nothing here knows what a Service is.
"""

from nsnet.kernel.applying import apply
from nsnet.kernel.observing import observe
from nsnet.kernel.teardown import destroy

__all__ = ["apply", "destroy", "observe"]
