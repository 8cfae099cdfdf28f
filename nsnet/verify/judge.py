"""An expectation and what came back: kept or not, and why not in one sentence. Pure."""

from collections import Counter
from collections.abc import Sequence

import msgspec

from nsnet.kernel.probe import Answer
from nsnet.verify import chance, http, names
from nsnet.verify.expect import SENDER, Expectation, describe

SIDE_BY_SIDE = "modes"  # the group of questions that are asked to compare modes, and for nothing else
WORDS = {
    "ok": "an answer",
    "refused": "refused",
    "reset": "the connection was reset",
    "timeout": "no answer",
    "unreachable": "out of reach",
    "error": "not asked",
}

BLOCKED = frozenset({"timeout", "refused", "unreachable"})  # what a policy may do: DROP or REJECT


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One expectation's end. `reason` is empty when it was kept; `skipped`: it was never asked.

    `seconds` is the time of the slowest of `calls`; `tries` above 1 says that packets were lost on the way.
    """

    name: str
    group: str
    ok: bool
    reason: str = ""
    source: str = ""
    target: str = ""
    seconds: float = 0.0
    calls: int = 1
    tries: int = 1
    skipped: bool = False
    why: str = ""  # where its packet's predicted way and what was promised part


class Said(msgspec.Struct, frozen=True):
    """What the pod server says of itself and of the asker."""

    pod: str
    namespace: str
    client: str


def judge(item: Expectation, answers: Sequence[Answer]) -> Result:
    """The result of an expectation, by the answers to all its calls."""
    reason = _reason(item, answers)
    return Result(
        name=item.name,
        group=item.group,
        ok=not reason,
        reason=reason,
        source=item.source,
        target=item.target,
        seconds=max((answer.seconds for answer in answers), default=0.0),
        calls=len(answers),
        tries=max((answer.tries for answer in answers), default=1),
    )


def met(item: Expectation, answers: Sequence[Answer]) -> str:
    """What a client finds, in a word or two, the same for every run: to be compared, where `judge` says right or wrong.

    `ok` · `ok, sender seen` · `ok, another address seen` · `ok, by others` · `refused` · `closed` · `no answer` …
    Words of several calls stand beside each other.
    """
    return " | ".join(sorted({_word(item, answer) for answer in answers}))


def _word(item: Expectation, answer: Answer) -> str:
    if answer.outcome == "reset" or (answer.outcome == "ok" and not answer.body and _speaks_first(item)):
        return "closed"
    if answer.outcome != "ok":
        lost = answer.outcome in {"timeout", "unreachable"}  # routers ration their errors
        return "no answer" if lost and item.group != SIDE_BY_SIDE else WORDS[answer.outcome]
    said = _said(answer) if item.answers else None
    if said is None:
        return "ok"
    if _who(said) not in item.answers:
        return "ok, by others"
    if item.seen != SENDER or item.hidden:
        return "ok"
    same = said.client.rpartition(":")[0] == answer.local[0]
    return "ok, sender seen" if same else "ok, another address seen"


def _speaks_first(item: Expectation) -> bool:
    """Is there a question that an answer must follow? A mere connection has none."""
    return bool(item.payload)


def _reason(item: Expectation, answers: Sequence[Answer]) -> str:
    wrong = [problem for problem in (_one(item, answer) for answer in answers) if problem]
    if wrong:
        most, count = Counter(wrong).most_common(1)[0]
        return f"{most} ({count} of {len(answers)} calls)" if len(answers) > 1 else most
    if item.sticky or item.spread:
        heard = [answer for answer in answers if answer.outcome == "ok" or not item.partly]
        return _together(item, Counter(_who(_said(answer)) for answer in heard), len(answers) - len(heard))
    return ""


def _one(item: Expectation, answer: Answer) -> str:
    """What is wrong with one answer."""
    if not _met(item, answer):
        return f"{_outcome(item, answer)}, wanted {describe(item)}"
    if item.want != "ok" or answer.outcome != "ok":
        return ""
    if item.ask == "http":
        return _status(answer.body)
    if item.request is not None:
        return http.wrong(item.request, answer, _who(_said(answer)))
    if item.question is not None:
        return names.wrong(item.question, names.read(answer.body, stream=item.protocol == "TCP"))
    if not item.answers:
        return ""
    said = _said(answer)
    if said is None:
        return f"an answer that is not the pod server's: {answer.body[:60]!r}"
    who = _who(said)
    if who not in item.answers:
        return f"{who} answered, wanted {describe(item)}"
    seen, wanted = said.client.rpartition(":")[0].strip("[]"), answer.local[0] if item.seen == SENDER else item.seen
    if item.seen_as and seen not in item.seen_as:
        return f"{who} saw {seen}, wanted one of {', '.join(sorted(item.seen_as))}"
    if wanted and who not in item.hidden and seen != wanted:
        return f"{who} saw {seen}, wanted {wanted} (the address was translated on the way)"
    return ""


def _met(item: Expectation, answer: Answer) -> bool:
    if item.want == "unreachable":
        return answer.outcome in {"unreachable", "timeout"}
    if answer.outcome in BLOCKED and (item.want == "blocked" or item.partly):
        return True
    if item.want == "closed":
        return answer.outcome == "reset" or (answer.outcome == "ok" and not answer.body)
    return answer.outcome == item.want


def _outcome(item: Expectation, answer: Answer) -> str:
    said = _said(answer) if item.ask == "identity" else None
    words = f"{_who(said)} answered" if said else WORDS[answer.outcome]
    return f"{words} ({answer.error})" if answer.error and answer.error != words else words


def _status(body: bytes) -> str:
    """What is wrong with an HTTP answer."""
    head, _, _ = body.partition(b"\r\n")
    words = head.split(b" ", 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return f"an answer that is not HTTP: {body[:60]!r}"
    return "" if int(words[1]) < 400 else f"HTTP status {head.decode('latin-1')[9:]}, wanted one below 400"


def _said(answer: Answer) -> Said | None:
    body = answer.body
    if b"\nHTTP/" in body[:80]:  # over TLS the certificate's hash stands before
        body = body.partition(b"\n")[2]
    if body.startswith(b"HTTP/"):
        body = body.partition(b"\r\n\r\n")[2]
    try:
        return msgspec.json.decode(body, type=Said)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _who(said: Said | None) -> str:
    return f"{said.namespace}/{said.pod}" if said else "?"


def _together(item: Expectation, counts: Counter[str], blocked: int) -> str:
    """What is wrong with all answers together; `blocked` of the calls were, by a policy that may do so."""
    listed = ", ".join(f"{who} {count}x" for who, count in sorted(counts.items()))
    if item.sticky:
        same = len(counts) + bool(blocked) == 1
        more = f" and {blocked} calls were blocked" if blocked else ""
        return "" if same else f"{len(counts)} endpoints answered ({listed}){more}, wanted always the same one"
    found = [counts[who] for who in sorted(item.answers)]
    silent = [who for who in sorted(item.answers) if not counts[who]]
    if not sum(found):
        return f"nobody answered in {blocked} calls"
    if chance.likelihood(found) >= chance.ERROR_RATE:
        return ""
    if silent:
        return f"{', '.join(silent)} never answered in {sum(found)} calls ({listed})"
    return f"no fair spread: {listed}; chance does that less than once in {1 / chance.ERROR_RATE:,.0f} tests"
