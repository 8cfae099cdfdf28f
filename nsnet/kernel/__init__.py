"""The only system calls. Two verbs: `observe` turns what the kernel has into values, `apply` writes changes.

`look` is `observe` piece by piece, for who goes through little of it; `destroy` is both verbs at once for a whole
cluster, without knowing what was wanted of it. The rooms behind them:

    netns.py      create, delete, list, enter          process.py   programs: seen in /proc, started, ended
    netlink.py    sockets and framing                  files.py     the files they read
    rtnl.py       values ↔ rtnetlink messages          sysctl.py    /proc/sys/net, every write read back
    sockdiag.py   who listens                          iptables.py  chains, by iptables' own tools
    nftnl.py      nf_tables' messages → values         nftables.py  tables of rules, sets and maps, written by nft
    tun.py        TUN devices                          wireguard.py keys and peers of WireGuard devices
    ethtool.py    offloads of cables                   conntrack.py connections that netfilter tracks
    tracking.py   how full conntrack's table is
    legacy.py     chains of the older xtables beside nf_tables, by its tools
    sandbox.py    a command with namespaces of its own, for clusters that nobody shall see
    features.py   what this kernel can, by trying      demands.py   what a wanted state needs of that
    remote.py     nsnet on another machine, by ssh     beside.py    what it is asked, and answers
    everywhere.py packets of several machines as one
    rootless.py   a user namespace to be root in       holder.py    its process 1

Nothing here remembers anything between two calls, and nothing here knows what a Service is.
"""

from typing import TYPE_CHECKING

from nsnet import ondemand

if TYPE_CHECKING:
    from nsnet.kernel.applying import apply
    from nsnet.kernel.looking import look
    from nsnet.kernel.observing import observe
    from nsnet.kernel.teardown import destroy

__all__ = ["apply", "destroy", "look", "observe"]

__getattr__ = ondemand.attributes(
    __name__, {"apply": "applying", "destroy": "teardown", "look": "looking", "observe": "observing"}
)
