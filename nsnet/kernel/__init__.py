"""The only system calls. Two verbs: `observe` turns what the kernel has into values, `apply` writes changes.

`look` is `observe` piece by piece, for who goes through little of it; `destroy` is both verbs at once for a whole
cluster, without knowing what was wanted of it. The rooms behind them:

    the verbs
    observing.py  looking.py  applying.py  teardown.py
    places.py     the namespaces of one apply          wiring.py    what of it goes by rtnetlink

    what a namespace is, and how to talk to it
    netns.py      create, delete, list, enter          netlink.py   sockets and framing
    notify.py     it says that something changed

    values, read and written
    rtnl.py       values ↔ rtnetlink messages          sysctl.py    /proc/sys/net, every write read back
    tun.py        TUN devices                          wireguard.py keys and peers of WireGuard devices
    ethtool.py    offloads of cables                   qdisc.py     impairments of links, by tc
    iptables.py   chains, by iptables' own tools       legacy.py    those of the older xtables, by its tools
    nftnl.py      nf_tables' messages → values         nftables.py  tables of rules, sets and maps, written by nft
    ipset.py      sets that rules name                 conntrack.py connections that netfilter tracks
    tracking.py   how full conntrack's table is        sockdiag.py  who listens
    process.py    programs: seen, started, ended       files.py     the files they read
    health.py     who says that it is healthy          refusals.py  who has refused its file

    packets
    probe.py      many questions in many namespaces    tls.py       the few that are asked by TLS
    beacon.py     one packet, known again anywhere     ruletrace.py the rules that it matched
    capture.py    what passes, on one clock            everywhere.py the same on several machines
    bpf.py        tcpdump's filters                    frames.py    bytes → words
    pcapng.py     files for Wireshark

    the machine
    features.py   what this kernel can, by trying      demands.py   what a wanted state needs of that
    limits.py     what it allows in number             interrupt.py Ctrl-C as a question
    run.py        a command inside a namespace         sandbox.py   a command with namespaces of its own
    rootless.py   a user namespace to be root in       holder.py    its process 1
    remote.py     nsnet on another machine, by ssh     beside.py    what it is asked, and answers

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
