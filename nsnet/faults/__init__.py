"""What is broken on purpose: pure functions from the desired state to another, and keys that nobody touches.

    objects ─control→ objects ─derived→ objects (what the controllers made, as the faults show it) ─→ store
    objects ─asked→ objects ─render→ desired state ─broken→ desired state of the broken network ─→ diff, without `holds`

A `Fault` object in the store names a kind of the catalogue, where it is, and until when; it is all there is. So a fault
survives every resync and restart, is listed, ends by itself, and is undone by not being there any more: what is wanted
is then what it was, and the difference is written. Nothing remembers.

A damage that is left alone (`spec.leave`) is done once; from then on its values are held, so that neither the damage
nor what somebody does about it is undone.

    draft.py      the desired state while functions change it; the places of a fault
    kinds.py      what the catalogue knows of each kind
    nodes.py · overlay.py · services.py · dns.py · links.py · hands.py      the catalogue
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from difflib import get_close_matches

from msgspec.structs import replace

from nsnet import model
from nsnet.errors import ObjectError
from nsnet.faults import dns, hands, links, nodes, overlay, services
from nsnet.faults.draft import Draft, Site
from nsnet.faults.kinds import OF_THE_KERNEL, Kind, Option
from nsnet.model import Fault, FaultStatus, Key, Object, Objects
from nsnet.state import Hold, State

__all__ = [
    "CATALOGUE",
    "OF_THE_KERNEL",
    "Kind",
    "Option",
    "asked",
    "broken",
    "check",
    "derived",
    "ends",
    "holds",
    "kind_of",
    "marked",
    "standing",
    "time_of",
]

CATALOGUE: Mapping[str, Kind] = {
    kind.name: kind for kind in (*nodes.KINDS, *overlay.KINDS, *services.KINDS, *dns.KINDS, *links.KINDS, *hands.KINDS)
}
LEAVES = ("keys", "places")
UNTIL = "%Y-%m-%dT%H:%M:%SZ"


def asked(objects: Objects) -> Objects:
    """The objects as they are rendered: with what faults change of what a person asked for."""
    for kind, site in _sites(objects):
        if kind.asked is not None:
            objects = kind.asked(objects, site)
    return objects


def derived(objects: Objects) -> Objects:
    """What the controllers made, as faults change it; the controllers make it anew from what it was made of."""
    for kind, site in _sites(objects):
        if kind.derived is not None:
            objects = kind.derived(objects, site)
    return objects


def broken(state: State, objects: Objects) -> State:
    """The desired state with every fault in it; the same state where there is none."""
    draft = Draft(state)
    found = [(kind.damage, site) for kind, site in _sites(objects) if kind.damage is not None]
    for damage, site in found:
        damage(draft, site)
    return draft.state() if found else state


def holds(state: State, objects: Objects) -> frozenset[Hold]:
    """What `diff` shall skip; `state` is the desired one without faults."""
    found: set[Hold] = set()
    for fault in model.of(objects, Fault):
        kind = CATALOGUE.get(fault.spec.fault)
        if kind is None:
            continue
        site = _site(objects, fault, kind)
        if kind.hold is not None and (fault.status.done or not fault.spec.leave):
            found |= set(kind.hold(Draft(state), site))
        if fault.spec.leave and fault.status.done:
            found |= set(_touched(state, kind, site))
    return frozenset(found)


def _touched(state: State, kind: Kind, site: Site) -> Iterator[Hold]:
    """What a damage changes: its keys, or the namespaces in which they are."""
    draft = Draft(state)
    if kind.damage is not None:
        kind.damage(draft, site)
    for netns, values in draft.state().items():
        keys = {value.key for value in values ^ state[netns]} if values is not state[netns] else set()
        if keys and site.spec.leave == "places":
            yield netns, ()
        else:
            yield from ((netns, key) for key in keys)


def _sites(objects: Objects) -> Iterator[tuple[Kind, Site]]:
    for fault in model.of(objects, Fault):
        kind = CATALOGUE.get(fault.spec.fault)
        if kind is not None:
            yield kind, _site(objects, fault, kind)


def _site(objects: Objects, fault: Fault, kind: Kind) -> Site:
    defaults = {option.name: option.default for option in kind.options}
    return Site(objects, fault.spec, {**defaults, **fault.spec.options})


# --- their lives ------------------------------------------------------------------------------------------------------


def standing(objects: Objects, now: str) -> Objects:
    """Without the faults whose time is over; `now` is RFC 3339 in UTC, empty: no clock."""
    clock = time_of(now)
    over = {key for key, obj in model.keyed(objects, Fault).items() if _is_over(obj, clock)}
    return {key: obj for key, obj in objects.items() if key not in over} if over else objects


def _is_over(fault: Fault, clock: datetime | None) -> bool:
    end = time_of(fault.spec.until)
    return bool(clock and end and end <= clock)


def ends(objects: Objects) -> Iterator[datetime]:
    """When faults end by themselves."""
    return (end for fault in model.of(objects, Fault) if (end := time_of(fault.spec.until)))


def time_of(text: str) -> datetime | None:
    """RFC 3339 in UTC, in whole seconds; None for what is none: that never comes."""
    with suppress(ValueError):
        return datetime.strptime(text, UNTIL).replace(tzinfo=UTC)
    return None


def marked(objects: Objects) -> Objects:
    """The objects when the kernel is as they say: a damage that is to be left alone is done."""
    new: dict[Key, Object] = {
        key: replace(obj, status=FaultStatus(done=True))
        for key, obj in objects.items()
        if isinstance(obj, Fault) and obj.spec.leave and not obj.status.done
    }
    return {**objects, **new} if new else objects


# --- is it one that can be? -------------------------------------------------------------------------------------------


def kind_of(fault: Fault) -> Kind:
    """Raises ObjectError where the catalogue has no such kind."""
    kind = CATALOGUE.get(fault.spec.fault)
    if kind is None:
        near = get_close_matches(fault.spec.fault, CATALOGUE, 1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        message = f'there is no fault "{fault.spec.fault}"{meant}'
        raise ObjectError(model.key_of(fault), "spec.fault", message, "nsnet fault list --available")
    return kind


def check(fault: Fault, objects: Objects) -> None:
    """Raises ObjectError where the fault is none, or cannot be in this cluster: what it names is not there."""
    kind = kind_of(fault)
    key, spec = model.key_of(fault), fault.spec
    if not spec.on and not kind.everywhere:
        raise ObjectError(key, "spec.where", "is missing", f"say where: --on {WORDS[kind.places]}")
    for field, places in (("where", spec.on), ("to", spec.to)):
        for place in places:
            _check_place(key, f"spec.{field}", place, kind, objects)
    if spec.to and not kind.pairs:
        raise ObjectError(key, "spec.to", f"{kind.name} has one side only", "leave it out")
    if both := sorted(set(spec.on) & set(spec.to)):
        raise ObjectError(key, "spec.to", f"{both[0]} is on both sides", "what stands between two needs two")
    if spec.leave and (spec.leave not in LEAVES or (kind.damage is None and kind.hold is None)):
        hint = (
            "keys or places" if kind.damage else f"{kind.name} is not a damage that somebody could mend in the kernel"
        )
        raise ObjectError(key, "spec.leave", f'"{spec.leave}" is not possible', hint)
    if spec.until and time_of(spec.until) is None:
        raise ObjectError(key, "spec.until", f'"{spec.until}" is no time', "in UTC, as 2026-12-31T23:59:59Z")
    _check_options(key, spec.options, kind)
    _check_needs(key, kind, objects)


WORDS = {
    "node": "node/NAME", "pod": "pod/NAME", "machine": "node/NAME or host/NAME", "service": "svc/NAME",
    "any": "node/NAME, host/NAME or pod/NAME",
}  # fmt: skip
_MAY_BE = {
    "node": ("node",), "pod": ("pod",), "machine": ("node", "host"), "service": ("svc",),
    "any": ("node", "host", "pod"),
}  # fmt: skip


def _check_place(key: Key, field: str, place: str, kind: Kind, objects: Objects) -> None:
    word, _, name = place.partition("/")
    if word not in _MAY_BE[kind.places]:
        raise ObjectError(key, field, f"{kind.name} cannot be on {place}", f"it is on {WORDS[kind.places]}")
    if not _is_there(word, name, objects):
        known = ", ".join(sorted(_known(word, objects))[:8]) or "none"
        raise ObjectError(key, field, f"there is no {place}", f"there are: {known}")


def _is_there(word: str, name: str, objects: Objects) -> bool:
    return f"{word}/{name}" in _known(word, objects)


def _known(word: str, objects: Objects) -> set[str]:
    if word == "host":
        return {f"host/{host.name}" for host in model.cluster_of(objects).hosts or ()}
    kind = {"node": "Node", "pod": "Pod", "svc": "Service"}[word]
    return {"/".join(filter(None, (word, key.namespace, key.name))) for key in objects if key.kind == kind}


def _check_options(key: Key, said: Mapping[str, str], kind: Kind) -> None:
    known = {option.name: option for option in kind.options}
    for name, value in said.items():
        field = f"spec.options.{name}"
        if name not in known:
            has = ", ".join(known) or "none"
            raise ObjectError(key, field, f"{kind.name} has no such option", f"its options: {has}")
        if not known[name].fits(value):
            raise ObjectError(key, field, f'"{value}" does not fit', f"as {known[name].example}")


def _check_needs(key: Key, kind: Kind, objects: Objects) -> None:
    cluster = model.cluster_of(objects)
    wrong = {
        "vxlan": cluster.flannel.Backend.Type.lower() != "vxlan"
        and "flannel's backend is not vxlan: there is no tunnel",
        "rules": cluster.networking.kubeProxyMode == "userspace"
        and "in userspace mode a process translates, not rules",
        "dns": not cluster.dns.enabled and "the cluster has no DNS of its own",
    }
    for need in kind.needs:
        if wrong.get(need):
            raise ObjectError(
                key, "spec.fault", f"{kind.name} cannot be here: {wrong[need]}", f"nsnet fault show {kind.name}"
            )
