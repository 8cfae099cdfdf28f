"""Faults of names: what a resolver asks, what becomes of its questions, and who answers them."""

from msgspec.structs import replace

from nsnet import model
from nsnet.faults.draft import Draft, Site
from nsnet.faults.kinds import Kind, Option
from nsnet.model import ObjectMeta, Objects, Other
from nsnet.state import File, Process

AAAA = (
    '-p udp -m udp --dport 53 -m string --hex-string "|00001c0001|" --algo bm '
    "-m statistic --mode nth --every 2 --packet 0 -j DROP"
)
OF_THE_NODE = ("rack1.example.net", "example.net", "example.com")
"""Search domains of a node, which kubelet adds to those of its pods."""


def _aaaa_lost(draft: Draft, site: Site) -> None:
    for netns in site.on():
        draft.first(netns, "mangle", "PREROUTING", AAAA)


def _long_way(draft: Draft, site: Site) -> None:
    for netns in site.on():
        for file in draft.of(netns, File):
            if file.path.endswith("/resolv.conf"):
                lines = [_longer(line, site.options["ndots"]) for line in file.content.splitlines()]
                draft.put(netns, replace(file, content="\n".join((*lines, ""))))


def _longer(line: str, ndots: str) -> str:
    """A line of resolv.conf, with more to search and sooner."""
    word, *rest = line.split()
    if word == "search":
        return " ".join((line, *OF_THE_NODE))
    return " ".join((word, *(f"ndots:{ndots}" if item.startswith("ndots:") else item for item in rest)))


def _dns_stopped(draft: Draft, site: Site) -> None:
    for pod in [pod for node in site.on() for _, pod in draft.pods_of(node)]:
        if any("nsnet.programs.kubedns" in process.argv for process in draft.of(pod, Process)):
            for process in draft.of(pod, Process):
                draft.drop(pod, process)


def _policy_without_dns(objects: Objects, site: Site) -> Objects:
    """Egress of every pod of the namespace is allowed to its own pods, and nobody thought of names."""
    namespace = site.options["namespace"]
    name = "fault-forgets-dns"
    doc = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": {}}]}]},
    }
    policy = Other(ObjectMeta(name, namespace), "NetworkPolicy", doc)
    return {**objects, model.key_of(policy): policy}


KINDS = (
    Kind(
        name="dns-slow",
        title="Every second AAAA query is lost",
        symptom="Lookups take exactly 5 seconds, now and then.",
        cause="One of the two queries that a resolver sends at once is dropped, as by the conntrack race.",
        detect=("nsnet capture POD 'udp port 53'   # two queries, one answer", "time getent ahosts NAME"),
        mend=("nsnet exec node/NODE -- iptables -t mangle -F PREROUTING   # or use-vc, single-request in resolv.conf",),
        needs=("string",),
        damage=_aaaa_lost,
        source="kubernetes#56903, weave#3287, flannel#1004",
    ),
    Kind(
        name="ndots",
        title="Every name is looked for in many domains first",
        symptom="Names resolve, slowly: each name outside costs seven questions of a kind, and the DNS pods are busy "
        "with names that do not exist.",
        cause="The pod's resolv.conf has a high ndots and the node's search domains besides the cluster's: a name with "
        "fewer dots is asked for in each domain before it is asked for itself.",
        detect=(
            "nsnet exec POD -- cat /etc/resolv.conf",
            "nsnet exec POD -- dig +search +showsearch NAME   # one answer for each domain",
            "nsnet capture POD 'udp port 53'",
        ),
        mend=("options ndots:1 in the pod's dnsConfig (or its /etc/resolv.conf), or names with a dot at their end",),
        places="pod",
        options=(Option("ndots", "15", r"1?[0-9]", "15", "dots of a name that is asked for itself first"),),
        needs=("dns",),
        damage=_long_way,
        source="kubernetes#14051, #33554",
    ),
    Kind(
        name="policy-forgets-dns",
        title="A NetworkPolicy forgot about DNS",
        symptom="Pods of the namespace reach each other by address, and no name resolves.",
        cause="An egress policy allows the namespace's own pods and not kube-dns.",
        detect=("nsnet policy why POD kube-dns:53", "nsnet exec POD -- getent hosts NAME"),
        mend=("allow egress to kube-system, port 53 of UDP and TCP",),
        options=(Option("namespace", "default", r"[a-z0-9][-a-z0-9]*", "default", "whose pods"),),
        everywhere=True,
        asked=_policy_without_dns,
    ),
    Kind(
        name="kubedns-stopped",
        title="The DNS pods of a node do not answer",
        symptom="Names resolve slowly or not at all until the pods have left the Service.",
        cause="The programs in the node's kube-dns pods are dead.",
        detect=("nsnet get pods -n kube-system   # 0/1", "nsnet exec POD -- nslookup kubernetes.default"),
        mend=("start them (nsnet fault clear NAME)",),
        everywhere=True,
        needs=("dns",),
        damage=_dns_stopped,
    ),
)
