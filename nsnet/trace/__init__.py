"""Where a packet goes, from state alone: no packet is sent, nothing is asked of the kernel.

`walk(state, netns, packet)` follows one packet of a new connection through the values of a State (rendered or observed)
and says every way it can go: the choice of an endpoint is random, so there may be several. `answer` follows the reply
back, `joined` makes one way of a proxy's two connections. A way names each device and each rule that mattered;
`service_of` finds the Service port a rule belongs to, `policy_of` the network policy.

    values.py     Packet, Hop, Trip (a packet under way), Way (where it ended, and why)
    rules.py      one iptables rule: parsed, and does it match this packet?
    nft.py        nftables chains, sets and maps
    netfilter.py  chains: a hook of a namespace, NAT and conntrack included
    ports.py      source ports that a rule gives from a range, and who has them already
    view.py       one namespace, indexed: links, addresses, routes, neighbours
    process.py    kube-proxy's userspace process: what it would do with a connection
    further.py    packets of full size, and what conntrack remembers of before
    walk.py       routing, bridges, veth pairs: from namespace to namespace
    tunnels.py    what carries a packet, and takes it out again: VXLAN, IPIP, WireGuard, flannel's process
"""

from nsnet.trace.process import joined
from nsnet.trace.rules import policy_of, service_of
from nsnet.trace.values import Hop, Packet, Way
from nsnet.trace.walk import answer, walk

__all__ = ["Hop", "Packet", "Way", "answer", "joined", "policy_of", "service_of", "walk"]
