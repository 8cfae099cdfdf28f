"""A decision in words: which policies select, which rule allows, and what was missing where none does. Pure."""

from collections.abc import Iterator

from nsnet.control.policy.decide import Decision, Side
from nsnet.control.policy.index import Index
from nsnet.control.policy.spec import Policy, Rule, written

HOST_NETWORK = "hostNetwork pods are node addresses here: policies neither select them nor match them as peers"


def because(known: Index, decision: Decision) -> Iterator[str]:
    """Two sentences, one per side, each with the rules that allow, or all rules there are where none does."""
    for side in decision.sides:
        yield sentence(side)
        if side.selecting and not side.always:
            for clause in side.allowing:
                rules = _policy(known, str(clause.policy)).rules[side.direction]
                yield f"  {clause}: {_rule_words(rules[clause.rule], side)}"
            if not side.allowing:
                yield from (f"  {line}" for line in _what_is_allowed(known, side))


def sentence(side: Side) -> str:
    """`egress of pod/shop/web: denied: selected by shop/deny-all; no rule allows it`."""
    word = side.direction.lower()
    if not side.pod:
        return f"{word}: no pod at this end, so no policy"
    head = f"{word} of pod/{side.pod}"
    if side.always:
        return f"{head}: allowed: {side.always}"
    if not side.selecting:
        return f"{head}: allowed: no policy selects it"
    by = f"selected by {_listed(side.selecting)}"
    if side.allowing:
        return f"{head}: allowed: {by}; {_listed(list(dict.fromkeys(map(str, side.allowing))))} allows it"
    return f"{head}: denied: {by}; no rule allows it"


def _listed(words: tuple[str, ...] | list[str], most: int = 5) -> str:
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def _policy(known: Index, name: str) -> Policy:
    return next(item for item in known.policies if str(item) == name)


def _what_is_allowed(known: Index, side: Side) -> Iterator[str]:
    """Every rule that could have let it pass, so that a person sees what does not fit."""
    word = side.direction.lower()
    for name in side.selecting:
        rules = _policy(known, name).rules[side.direction]
        if not rules:
            yield f"{name} {word}: nothing is allowed"
        for number, rule in enumerate(rules):
            yield f"{name} {word}[{number}] allows only {_rule_words(rule, side)}"


def _rule_words(rule: Rule, side: Side) -> str:
    """`from pods app=web, to port 80/TCP`."""
    way = "from" if side.direction == "Ingress" else "to"
    peers = " or ".join(_peer_words(rule, number) for number in range(len(rule.peers))) or "anybody"
    ports = ", ".join(map(str, rule.ports)) or "any port"
    return f"{way} {peers}, {'port ' if rule.ports else ''}{ports}"


def _peer_words(rule: Rule, number: int) -> str:
    peer = rule.peers[number]
    if peer.block is not None:
        holes = f" except {', '.join(peer.block.excepts)}" if peer.block.excepts else ""
        return f"{peer.block.cidr}{holes}"
    pods = "all pods" if peer.pods is None or written(peer.pods) == "<none>" else f"pods {written(peer.pods)}"
    if peer.namespaces is None:
        return pods
    space = written(peer.namespaces)
    return f"{pods} of {'all namespaces' if space == '<none>' else f'namespaces {space}'}"
