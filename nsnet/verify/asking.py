"""Expectations answered with packets, and drift as failed checks."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from time import sleep

from nsnet.kernel import probe as kernel
from nsnet.kernel.probe import Answer, Probe
from nsnet.state import Change, lines
from nsnet.verify.expect import Expectation
from nsnet.verify.judge import Result, judge

CALLS_AT_ONCE = 20_000  # calls of one part; between parts progress is told, and a failure may end the run
CONCURRENCY = 512
SILENT = frozenset({"blocked", "timeout", "unreachable"})  # what is wanted where nobody need say that it is so
SILENT_AT_ONCE = 4096  # they only wait, so that many may do it together
SILENCE = 0.6  # s; what comes through answers within milliseconds
TIMEOUT = 1.3  # s; TCP sends a lost SYN again after 1 s
PATIENT = 4  # times as long when asked again: on an emulated or overloaded machine what is slow is not lost
PAUSE = 1.0  # s before a retry: what converges needs time, and the kernel's ration of ICMP errors grows by one a second

Progress = Callable[[int, int], None]


def run(
    expectations: Sequence[Expectation],
    *,
    progress: Progress | None = None,
    retry: int = 0,
    keep_going: bool = True,
    timeout: float = TIMEOUT,
    tries: int = 2,
) -> list[Result]:
    """Asks every expectation with packets; the results stand in the same order.

    Of `tries` attempts one has to be answered in time. What failed is asked again up to `retry` times. Without
    `keep_going` the first part that has a failure is the last: the rest is `skipped`. `progress` gets (calls answered,
    calls in all). Never raises for what the network does.
    """
    results: list[Result] = []
    total, done = sum(item.calls for item in expectations), 0
    for part in parts(expectations):
        answers = _part(part, progress and shifted(progress, done, total), retry, timeout, tries)
        results += [judge(item, found) for item, found in zip(part, answers, strict=True)]
        done += sum(item.calls for item in part)
        if not keep_going and not all(result.ok for result in results):
            break
    return results + [_skipped(item) for item in expectations[len(results) :]]


def ask(expectations: Sequence[Expectation], *, retry: int = 0, timeout: float = TIMEOUT) -> list[list[Answer]]:
    """The answers to all calls of every expectation, in the same order, for who wants to judge them otherwise."""
    return [found for part in parts(expectations) for found in _part(part, None, retry, timeout)]


def parts(expectations: Sequence[Expectation]) -> Iterator[list[Expectation]]:
    """Runs of expectations with some CALLS_AT_ONCE calls each."""
    part: list[Expectation] = []
    size = 0
    for item in expectations:
        part.append(item)
        size += item.calls
        if size >= CALLS_AT_ONCE:
            yield part
            part, size = [], 0
    if part:
        yield part


def shifted(progress: Progress, done: int, total: int) -> Progress:
    """Progress of a part, of which so many calls of all are done."""
    return lambda now, _: progress(min(done + now, total), total)


def _part(
    part: list[Expectation], progress: Progress | None, retry: int, timeout: float, tries: int = 2
) -> list[list[Answer]]:
    answers = _ask(part, progress, timeout, tries)
    for _ in range(retry):
        failed = [index for index, item in enumerate(part) if not judge(item, answers[index]).ok]
        if not failed:
            break
        sleep(PAUSE)
        for index, found in zip(failed, _ask([part[index] for index in failed], None, timeout * PATIENT), strict=True):
            answers[index] = found
    return answers


def _ask(part: Sequence[Expectation], progress: Progress | None, timeout: float, tries: int = 2) -> list[list[Answer]]:
    """Everything once; affinity's first call before the others, so that there is something to stick to."""
    answers: list[list[Answer]] = [[] for _ in part]
    first = [index for index, item in enumerate(part) if item.sticky]
    rest = list(chain.from_iterable([index] * (item.calls - item.sticky) for index, item in enumerate(part)))
    coded = [index for index, item in enumerate(part) if _server_name(item)]
    silent = {index for index, item in enumerate(part) if item.want in SILENT}
    apart = silent.union(coded)
    others = [index for index in rest if index not in apart]
    total, done = sum(item.calls for item in part), 0
    for indexes, patience, together in (
        (first, timeout, CONCURRENCY),
        (others, timeout, CONCURRENCY),
        ([index for index in rest if index in silent], min(timeout, SILENCE), SILENT_AT_ONCE),
    ):
        probes = [question(part[index]) for index in indexes]
        told = progress and shifted(progress, done, total)
        found = kernel.probe(probes, timeout=patience, tries=tries, concurrency=together, progress=told)
        for index, answer in zip(indexes, found, strict=True):
            answers[index].append(answer)
        done += len(probes)
    if coded:
        from nsnet.kernel import tls  # takes 15 ms, and most clusters have no certificate

        named = [(question(part[index]), _server_name(part[index])) for index in coded]
        for index, answer in zip(coded, tls.probe(named, timeout=timeout), strict=True):
            answers[index].append(answer)
    return answers


def _server_name(item: Expectation) -> str:
    """What a TLS handshake names; empty where there is none."""
    return item.request.sni if item.request else ""


def question(item: Expectation) -> Probe:
    """One call of an expectation, as the kernel room asks it.

    Silence is not asked again where it is what is wanted, nor where several may answer: a second try would choose
    another endpoint and hide a dead one.
    """
    silence = item.partly or item.want in SILENT
    tries = 1 if silence or len(item.answers) > 1 else 0
    return Probe(
        item.netns,
        item.protocol,
        item.address,
        item.port,
        item.payload,
        learns=item.learns,
        tries=tries,
        framed=item.ask == "dns",
    )


def _skipped(item: Expectation) -> Result:
    return Result(
        name=item.name,
        group=item.group,
        ok=False,
        reason="not asked: an earlier one failed",
        source=item.source,
        target=item.target,
        skipped=True,
    )


def drift(changes: Iterable[Change]) -> list[Result]:
    """`diff(observe, render)` as results: every change it would make is something that is not as it was written."""
    found = [
        Result(
            name=f"drift: {change.netns}: {change.verb} {' '.join(change.value.key)}",
            group="drift",
            ok=False,
            reason=lines(change)[0],
            source=change.netns,
        )
        for change in changes
    ]
    return found or [Result(name="drift: the kernel holds what was written, and nothing else", group="drift", ok=True)]
