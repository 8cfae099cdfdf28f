"""How this kernel impairs links: asked before anything is stored, and kept with what asks for it.

netem does all of it. Without it a rate is tbf's, a loss is the `statistic` match's, and anything else cannot be.
"""

from msgspec.structs import replace

from nsnet import model
from nsnet.errors import MachineError
from nsnet.faults import CATALOGUE
from nsnet.model import Cluster, Fault, Key, Object, Objects

INSTEAD = {"netem or statistic": "statistic", "netem or tbf": "tbf"}
HINT = "sudo modprobe sch_netem (kernel option CONFIG_NET_SCH_NETEM); loss and rate work without it"


def equipped(objects: Objects) -> dict[Key, Object]:
    """The objects, each impairment with what does it. Raises MachineError where nothing can."""
    return {key: _equipped(obj) if key.kind in {"Fault", "Cluster"} else obj for key, obj in objects.items()}


def _equipped(obj: Object) -> Object:
    if isinstance(obj, Fault) and not obj.spec.means:
        means = _means(obj)
        return replace(obj, spec=replace(obj.spec, means=means)) if means else obj
    if isinstance(obj, Cluster) and any(link.delay or link.loss or link.rate for link in obj.underlay.links):
        return _with_links(obj)
    return obj


def _means(fault: Fault) -> str:
    kind = CATALOGUE.get(fault.spec.fault)
    needs = [need for need in (kind.needs if kind else ()) if need.startswith("netem")]
    if not needs:
        return ""
    if _has_netem():
        return "netem"
    if needs[0] not in INSTEAD:
        raise MachineError(f"{fault.spec.fault} needs netem, which this kernel does not have", HINT)
    return INSTEAD[needs[0]]


def _with_links(cluster: Cluster) -> Cluster:
    plain = not _has_netem()
    for number, link in enumerate(cluster.underlay.links):
        if plain and link.delay:
            where = f"underlay.links[{number}].delay"
            raise MachineError(f"{model.key_of(cluster)}: {where} needs netem, which this kernel does not have", HINT)
    meta = cluster.metadata
    by = {model.IMPAIRED_BY: "plain" if plain else "netem"}
    return replace(cluster, metadata=replace(meta, annotations={**meta.annotations, **by}))


def _has_netem() -> bool:
    from nsnet.kernel import qdisc

    return qdisc.has_netem()
