"""Results as text and values for others: JUnit XML, JSON-able documents, rows of a table. Pure; nothing is printed."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any
from xml.etree import ElementTree as ET

from nsnet.verify.expect import Expectation, describe
from nsnet.verify.judge import Result

LEGAL_CONTROLS = "\t\n\r"


def passed(results: Iterable[Result]) -> bool:
    return all(result.ok for result in results)


def junit(results: Sequence[Result], name: str = "nsnet verify") -> str:
    """JUnit XML, one testsuite per group, as Jenkins, GitLab and pytest write and read it."""
    root = ET.Element("testsuites", _totals(name, results))
    for group in dict.fromkeys(result.group for result in results):
        members = [result for result in results if result.group == group]
        suite = ET.SubElement(root, "testsuite", _totals(group, members))
        for result in members:
            attributes = {"classname": f"nsnet.{group}", "name": _legal(result.name), "time": f"{result.seconds:.6f}"}
            case = ET.SubElement(suite, "testcase", attributes)
            if result.skipped:
                ET.SubElement(case, "skipped", {"message": _legal(result.reason)})
            elif not result.ok:
                ET.SubElement(case, "failure", {"message": _legal(_whole(result))})
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _whole(result: Result) -> str:
    return f"{result.reason}; {result.why}" if result.why else result.reason


def _totals(name: str, results: Sequence[Result]) -> dict[str, str]:
    skipped = sum(result.skipped for result in results)
    return {
        "name": name,
        "tests": str(len(results)),
        "failures": str(sum(not result.ok for result in results) - skipped),
        "errors": "0",
        "skipped": str(skipped),
        "time": f"{sum(result.seconds for result in results):.6f}",
    }


def _legal(text: str) -> str:
    """Without the characters that XML 1.0 has no way to write."""
    return "".join(letter if letter >= " " or letter in LEGAL_CONTROLS else "?" for letter in text)


def document(result: Result) -> dict[str, Any]:
    """A result as JSON shows it."""
    return {
        "name": result.name,
        "group": result.group,
        "source": result.source,
        "target": result.target,
        "status": status(result),
        "reason": result.reason,
        **({"why": result.why} if result.why else {}),
        "seconds": round(result.seconds, 6),
        "calls": result.calls,
        "tries": result.tries,
    }


def listed(item: Expectation) -> dict[str, Any]:
    """An expectation as `--list -o json` shows it."""
    return {
        "name": item.name,
        "group": item.group,
        "source": item.source,
        "target": item.target,
        "protocol": item.protocol,
        "address": item.address,
        "port": item.port,
        "want": item.want,
        "answers": sorted(item.answers),
        "calls": item.calls,
        "expects": describe(item),
    }


def status(result: Result) -> str:
    return "skipped" if result.skipped else "passed" if result.ok else "failed"


def summary(results: Sequence[Result]) -> list[tuple[str, int, int, int]]:
    """Rows (group, passed, failed, skipped), in the order the groups were asked in."""
    counts = Counter((result.group, status(result)) for result in results)
    groups = dict.fromkeys(result.group for result in results)
    return [(group, *(counts[group, word] for word in ("passed", "failed", "skipped"))) for group in groups]  # type: ignore[misc]


def rows(results: Iterable[Result]) -> list[tuple[str, str, str]]:
    """Rows (status, name, reason) of what a person should read: the failed ones."""
    return [(status(result), result.name, result.reason) for result in results if not result.ok and not result.skipped]
