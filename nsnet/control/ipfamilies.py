"""Which address families a Service has, as the API server decides and refuses it.

    ipFamilyPolicy      in a cluster of one family         in a cluster of both
    SingleStack (none)  the family asked for, or the first  the family asked for, or the cluster's first
    PreferDualStack     that one                            both; the one that is asked for first
    RequireDualStack    refused                             both

A headless Service without a selector may name families that the cluster has not: its endpoints are written by hand,
and RequireDualStack gives it both anywhere. What clusterIPs say counts where ipFamilies says nothing.

One difference: the API server leaves a PreferDualStack Service as it was when the cluster becomes dual stack. Here a
topology is the whole truth, so it gets its second address.

Source: Kubernetes `pkg/registry/core/service/storage/alloc.go` (initIPFamilyFields), `pkg/apis/core/validation`
(ValidateServiceClusterIPsRelatedFields).
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile

from nsnet.control.addresses import NOWHERE, Range, around, number
from nsnet.errors import ObjectError
from nsnet.model import (
    API_FAMILIES,
    Family,
    Key,
    Networking,
    ServiceSpec,
    cluster_ips,
    family_of,
    subnet_of,
    subnets,
)

SINGLE, PREFER, REQUIRE = "SingleStack", "PreferDualStack", "RequireDualStack"
LARGEST = 108  # the shortest prefix of an IPv6 serviceSubnet, as kubeadm has it: at most 2^20 addresses
SUBNETS: Mapping[str, Mapping[Family, str]] = {  # the defaults of each family
    "podSubnet": {"ip": "10.244.0.0/16", "ip6": "fd00:10:244::/56"},
    "serviceSubnet": {"ip": "10.96.0.0/16", "ip6": "fd00:10:96::/112"},
}
NAMES: dict[str, Family] = {name: family for family, name in API_FAMILIES.items()}
HEADLESS = ("None",)


def said_ips(spec: ServiceSpec) -> tuple[str, ...]:
    """What clusterIPs are, as the document says it in either field; `None` for a headless Service."""
    several = tuple(spec.clusterIPs or ())
    if not spec.clusterIP:
        return several
    return several if several[:1] == (spec.clusterIP,) else (spec.clusterIP,)


def carried(new: ServiceSpec, old: ServiceSpec, there: Sequence[Range]) -> tuple[str, ...]:
    """Of the addresses that the Service had, those that it keeps although its manifest says none."""
    had = {family_of(ip): ip for ip in cluster_ips(old) if around(number(ip), there)}
    asked = [NAMES[name] for name in new.ipFamilies or ()] or list(had)
    several = len(asked) if (new.ipFamilyPolicy or SINGLE) != SINGLE else 1
    return tuple(takewhile(bool, (had.get(family, "") for family in asked[:several])))


def wanted(spec: ServiceSpec) -> tuple[Family, ...]:
    """A defaulted Service's families, in our words."""
    return tuple(NAMES[name] for name in spec.ipFamilies or ())


def chosen(key: Key, spec: ServiceSpec, networking: Networking) -> tuple[str, ...]:
    """The ipFamilies as the API server fills them in. Raises ObjectError for what it refuses."""
    cluster = tuple(map(family_of, subnets(networking.serviceSubnet)))
    ips, policy = said_ips(spec), spec.ipFamilyPolicy or SINGLE
    asked = tuple(spec.ipFamilies or ())
    _well_formed(key, ips, asked)
    _fit_policy(key, ips, asked, policy)
    families = _with_those_of(ips, asked)
    if ips == HEADLESS and not spec.selector:
        return _completed(families or _names(cluster[:1]), both=policy != SINGLE)
    for index, name in enumerate(families):
        if NAMES[name] not in cluster:
            field = f"ipFamilies[{index}]" if index < len(asked) else ("clusterIP" if index == 0 else "clusterIPs[1]")
            hint = f"give the cluster both families: {_pairs(networking)}"
            raise ObjectError(key, f"spec.{field}", f"{name} is not configured on this cluster", hint)
    if policy == REQUIRE and len(cluster) < len(NAMES):
        hint = f"write {PREFER}, or leave it out, or give the cluster both families: {_pairs(networking)}"
        raise ObjectError(key, "spec.ipFamilyPolicy", "this cluster is not configured for dual-stack services", hint)
    return _completed(families or _names(cluster[:1]), both=policy != SINGLE and len(cluster) == len(NAMES))


def _names(families: Sequence[Family]) -> tuple[str, ...]:
    return tuple(API_FAMILIES[family] for family in families)


def _completed(families: tuple[str, ...], *, both: bool) -> tuple[str, ...]:
    return (*families, *(name for name in NAMES if name not in families)) if both else families


def _well_formed(key: Key, ips: tuple[str, ...], asked: tuple[str, ...]) -> None:
    """At most one address and one name of each family, in the same order."""
    for field, many in (("clusterIPs", ips), ("ipFamilies", asked)):
        if len(many) > len(NAMES):
            raise ObjectError(key, f"spec.{field}", f"may hold at most {len(NAMES)} values", "one of each family")
    if len(set(asked)) < len(asked):
        raise ObjectError(key, "spec.ipFamilies", f"{asked[0]} is given twice", "each family once")
    if "None" in ips and ips != HEADLESS:
        message = "None must be the first and only value"
        raise ObjectError(key, "spec.clusterIPs", message, "leave the others out, or None")
    families = [API_FAMILIES[family_of(ip)] for ip in ips if ip != "None"]
    if len(set(families)) < len(families):
        message = "may specify no more than one IP for each IP family"
        raise ObjectError(key, "spec.clusterIPs", message, "leave the second one out")
    for index, (found, said) in enumerate(zip(families, asked, strict=False)):
        if found != said:
            message = f"{ips[index]} is {found}, and ipFamilies[{index}] says {said}"
            raise ObjectError(key, f"spec.clusterIPs[{index}]", message, "the same order in both, or leave one out")


def _fit_policy(key: Key, ips: tuple[str, ...], asked: tuple[str, ...], policy: str) -> None:
    for field, many in (("clusterIPs", ips), ("ipFamilies", asked)):
        if policy == SINGLE and len(many) > 1:
            message = f"must be {REQUIRE} or {PREFER} when multiple {field} are specified"
            raise ObjectError(key, "spec.ipFamilyPolicy", message, f"add ipFamilyPolicy: {PREFER}, or keep one")


def _with_those_of(ips: tuple[str, ...], asked: tuple[str, ...]) -> tuple[str, ...]:
    """The families asked for, and those of addresses that no name is given for."""
    further = ips[len(asked) :] if ips != HEADLESS else ()
    return (*asked, *(API_FAMILIES[family_of(ip)] for ip in further if number(ip) != NOWHERE))


def strangers(spec: ServiceSpec) -> Iterator[str]:
    """What the Service says of a family that it has not: kube-proxy passes over it, and says so (`pkg/proxy/util`)."""
    own = spec.ipFamilies or ()
    for field, said in (("externalIPs", spec.externalIPs), ("loadBalancerSourceRanges", spec.loadBalancerSourceRanges)):
        for address in said or ():
            if own and API_FAMILIES[family_of(address)] not in own:
                yield f"{address} in {field} has incorrect IP version: the Service has {' and '.join(own)} alone"


def _pairs(networking: Networking) -> str:
    """What to write so that the cluster has both families, the one it has first."""
    fields = ((name, getattr(networking, name), known) for name, known in SUBNETS.items())
    wanted = {name: [said, *(cidr for family, cidr in known.items() if not subnet_of(said, family))]
              for name, said, known in fields}  # fmt: skip
    words = ", ".join(f'{name}: "{",".join(parts)}"' for name, parts in wanted.items())
    return f"networking: {{{words}}} in the Cluster document"
