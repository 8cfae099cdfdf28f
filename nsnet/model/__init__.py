"""What is asked, in Kubernetes' words: typed objects with the API's own names and nesting.

A struct declares the fields that the network reads or nsnet writes; everything else a document said stays in `raw`
and comes back out of `to_doc` unchanged. Whoever changes an object makes a new one (`msgspec.structs.replace`).

`Objects` maps (kind, namespace, name) to objects; names are unique within a kind whatever the API group.

    metadata.py   keys, metadata, selectors           cluster.py    nsnet's own kinds: Cluster, SubnetLease, Fault
    workloads.py  nodes, pods and what makes pods     kubeproxy.py  KubeProxyConfiguration
    services.py   Services and their endpoints        http.py       Ingress and Gateway API
    objects.py    all kinds, sets of objects, objects as documents
    asked.py      what is asked of one object         parts.py      which objects are the DNS, a balancer, the proxy
    units.py      what durations, rates and shares say
"""

from nsnet.model.asked import *  # noqa: F403
from nsnet.model.cluster import *  # noqa: F403
from nsnet.model.http import *  # noqa: F403
from nsnet.model.kubeproxy import *  # noqa: F403
from nsnet.model.metadata import *  # noqa: F403
from nsnet.model.objects import *  # noqa: F403
from nsnet.model.parts import *  # noqa: F403
from nsnet.model.services import *  # noqa: F403
from nsnet.model.units import *  # noqa: F403
from nsnet.model.workloads import *  # noqa: F403
