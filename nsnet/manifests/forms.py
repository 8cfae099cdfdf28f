"""The forms a text or number must have: names, labels, ports, addresses.

Source: apimachinery `pkg/util/validation/validation.go` and `pkg/api/validation`; the rules are the API server's, the
sentences are ours. Each check takes an `At`, says what is wrong, and passes over a value that is absent: whether one
must be there is the schema's business. They run on values whose types are right already.
"""

import re
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from nsnet.manifests.problems import At, nearest
from nsnet.manifests.reading import shown
from nsnet.names import DEVICE

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_SERVICE_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
MOST_PODS = 100_000  # of one workload; Kubernetes is built for 150,000 in all
PROTOCOLS = ("TCP", "UDP", "SCTP")

_LABEL_RULE = "lower-case letters, digits and -, beginning and ending with a letter or digit, at most 63 characters"
_SUBDOMAIN_RULE = (
    "lower-case letters, digits, - and ., beginning and ending with a letter or digit, at most 253 characters"
)


# --- names ------------------------------------------------------------------------------------------------------------


@lru_cache(4096)
def is_dns_label(text: str) -> bool:
    return len(text) <= 63 and _LABEL.fullmatch(text) is not None


@lru_cache(4096)
def is_dns_subdomain(text: str) -> bool:
    return len(text) <= 253 and _SUBDOMAIN.fullmatch(text) is not None


def proposed(text: str, most: int = 63) -> str:
    """The DNS label nearest to a text: `My_App v2` → `my-app-v2`; empty if nothing of it can stay."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:most].strip("-")


def _proposed_subdomain(text: str) -> str:
    return ".".join(filter(None, map(proposed, text.split("."))))[:253].strip("-.")


def dns_label(at: At) -> None:
    if at.value is not None and not is_dns_label(at.value):
        _misnamed(at, "a DNS label", _LABEL_RULE, proposed(at.value))


def dns_subdomain(at: At) -> None:
    if at.value is not None and not is_dns_subdomain(at.value):
        _misnamed(at, "a DNS name", _SUBDOMAIN_RULE, _proposed_subdomain(at.value))


def _misnamed(at: At, what: str, rule: str, near: str) -> None:
    at.wrong(f'"{shown(at.value)}" is not {what}', f"{rule}{f': {near}' if near else ''}")


def path_segment(at: At) -> None:
    """The name of a kind that has no rule of its own."""
    if at.value in {".", ".."} or "/" in at.value or "%" in at.value:
        at.wrong(f'"{shown(at.value)}" cannot be a name', "a name is not . or .. and has neither / nor %")


def port_name(at: At) -> None:
    """IANA_SVC_NAME: what a container port may be called, and a targetPort may name."""
    text = at.value
    if text in (None, ""):
        return
    if text.isdecimal():
        at.wrong(
            f'"{shown(text)}" is not a port name, which has a letter',
            f"write {shown(text)} without quotes for the port number",
        )
    elif len(text) > 15 or not _SERVICE_NAME.fullmatch(text) or "--" in text or not re.search("[a-z]", text):
        at.wrong(
            f'"{shown(text)}" is not a port name',
            "lower-case letters, digits and single -, at least one letter, at most 15 characters",
        )


def device(at: At) -> None:
    """A network device that is ours to name: none that a shell, or a rule, could read as anything else."""
    if at.value and not DEVICE.fullmatch(at.value):
        hint = "letters, digits, -, _ and ., beginning with a letter or digit, at most 15 characters"
        at.wrong(f'"{shown(at.value)}" is not a device name', hint)


def hostname(at: At) -> None:
    """An Ingress host: a DNS name, or one behind `*.`."""
    if at.value and not is_dns_subdomain(at.value.removeprefix("*.")):
        near = ("*." if at.value.startswith("*.") else "") + _proposed_subdomain(at.value)
        _misnamed(at, "a host name", "a DNS name in lower-case letters; *. may stand before it", near)


# --- labels -----------------------------------------------------------------------------------------------------------


@lru_cache(4096)
def _is_qualified(text: str) -> bool:
    prefix, slash, name = text.rpartition("/")
    return (not slash or is_dns_subdomain(prefix)) and len(name) <= 63 and _QUALIFIED.fullmatch(name) is not None


@lru_cache(4096)
def _is_label_value(text: str) -> bool:
    return not text or (len(text) <= 63 and _QUALIFIED.fullmatch(text) is not None)


def label_key(at: At, *, key: bool = False) -> None:
    """A label's key is the last step of the path where `key` is set, else the value."""
    text = str(at.path[-1]) if key else at.value
    if text is not None and not _is_qualified(text):
        at.wrong(f'"{shown(text)}" is not a label key',
                 "letters, digits, -, _ and ., at most 63; a DNS name and / may stand before", key=key)  # fmt: skip


def label_value(at: At) -> None:
    if at.value is not None and not _is_label_value(at.value):
        at.wrong(f'"{shown(at.value)}" is not a label value',
                 "letters, digits, -, _ and ., beginning and ending with a letter or digit, at most 63")  # fmt: skip


def labels(at: At) -> None:
    for item in at.each():
        label_key(item, key=True)
        label_value(item)


def annotation_keys(at: At) -> None:
    for item in at.each():
        if not _is_qualified(str(item.path[-1]).lower()):
            label_key(item, key=True)


# --- choices and numbers ----------------------------------------------------------------------------------------------


def one_of(at: At, choices: Collection[str]) -> None:
    """An enumeration, which the API spells in one way only. An empty text is an absent one."""
    if at.value and at.value not in choices and not at.enough:
        near = nearest(at.value, choices, 0.6)
        asked = f" (did you mean {near}?)" if near else ""
        hint = f"{'one of' if len(choices) > 1 else 'only'} {', '.join(choices)}"
        at.wrong(f'"{shown(at.value)}" is not allowed{asked}', hint)


def protocol(at: At) -> None:
    one_of(at, PROTOCOLS)


def within(at: At, low: int, high: int) -> None:
    if at.value is not None and not low <= at.value <= high:
        at.wrong(f"{at.value} is out of range", f"a number from {low} to {high}")


def count(at: At) -> None:
    """A number of things: none is fine, fewer is not."""
    within(at, 0, 2**31 - 1)


def pods(at: At) -> None:
    """How many pods a workload asks for. They are made before anyone counts addresses, so there is an end to it."""
    within(at, 0, MOST_PODS)


def port(at: At, low: int = 1) -> None:
    """A port number; `low` is 0 where 0 means: choose one."""
    if at.value is not None and not low <= at.value <= 65535:
        at.wrong(f"{at.value} is not a port number", f"a number from {low} to 65535")


def port_or_name(at: At, low: int = 1) -> None:
    if isinstance(at.value, int):
        port(at, low)
    else:
        port_name(at)


# --- addresses --------------------------------------------------------------------------------------------------------

Address = IPv4Address | IPv6Address
Subnet = IPv4Network | IPv6Network


def address_of(text: str) -> Address | None:
    try:
        return ip_address(text) if "%" not in text else None
    except ValueError:
        return None


def subnet_of(text: str) -> Subnet | None:
    """`10.0.0.0/8`; host bits may be set, a mask in dots may not, as in Go's net.ParseCIDR."""
    address, slash, length = text.partition("/")
    if not slash or not length.isdecimal() or len(length) > 3 or (len(length) > 1 and length[0] == "0"):
        return None
    try:
        return (IPv6Network if ":" in address else IPv4Network)((address, int(length)), strict=False)
    except (AddressValueError, ValueError):
        return None


def address(at: At) -> None:
    if at.value and address_of(at.value) is None:
        at.wrong(f'"{shown(at.value)}" is not an IP address', _address_hint(at.value))


def _address_hint(text: str) -> str:
    if subnet_of(text):
        return f"without the prefix length: {text.partition('/')[0]}"
    if re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3}){3}", text) and re.search(r"\b0[0-9]", text):
        return "no leading zeros"
    return "four numbers from 0 to 255 with dots between, as 10.0.0.1"


def address_v4(at: At) -> None:
    found = address_of(at.value) if at.value else None
    if found is not None and found.version == 6:
        at.wrong(f"{at.value} is an IPv6 address; an IPv4 address is wanted", "as 10.0.0.1")
    else:
        address(at)


def subnet(at: At) -> None:
    """A CIDR; host bits may be set (Kubernetes takes them, and means the network)."""
    if at.value and subnet_of(at.value) is None:
        host = address_of(at.value) is not None and not at.value.endswith(".0")
        near = f": {at.value}/{128 if ':' in at.value else 32}" if host else ", as 10.244.0.0/16"
        at.wrong(f'"{shown(at.value)}" is not a subnet', f"an address, a slash and the prefix length{near}")


def one_of_each(
    at: At, parts: Sequence[str], check: Callable[[At], None], read: Callable[[str], Address | Subnet | None], what: str
) -> None:
    """One value, or one of each family; they stood with a comma between."""
    for part in parts:
        check(At(part, at.path, at.found))
    versions = [found.version for part in parts if (found := read(part))]
    if len(set(versions)) < len(versions):
        example = "10.244.1.9,fd00:10:244:1::9" if read is address_of else "10.244.0.0/16,fd00:10:244::/56"
        at.wrong(f'"{shown(at.value)}" is not a pair of one IPv4 and one IPv6 {what}', f"as {example}")


def exact_subnet(at: At) -> None:
    """A CIDR that is a network's own address, as a subnet of ours must be."""
    found = subnet_of(at.value) if at.value else None
    if found is not None and str(found) != at.value and found.network_address != address_of(at.value.partition("/")[0]):
        at.wrong(f"{at.value} is an address in a subnet, not a subnet", f"write {found}")
    else:
        subnet(at)
