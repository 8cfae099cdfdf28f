"""Names and addresses, turned into each other. Pure.

Labels are text of any bytes (latin-1), in the order in which they are written, without the root's.
"""

from ipaddress import ip_address

Labels = tuple[str, ...]

IN_ADDR = ("in-addr", "arpa")
IP6 = ("ip6", "arpa")


def labels_of(name: str) -> Labels:
    """`cluster.local.` and `Cluster.Local` are ("cluster", "local")."""
    return tuple(name.lower().strip(".").split(".")) if name.strip(".") else ()


def canonical(text: str) -> str:
    """The address as Python spells it; empty when it is none."""
    try:
        return str(ip_address(text))
    except ValueError:
        return ""


def spelled(address: str) -> str:
    """`canonical` for an address that is known to be one: IPv4 has one spelling only. Fast."""
    return canonical(address) if ":" in address else address


def kind_of(address: str) -> str:
    return "AAAA" if ":" in address else "A"


def address_of(labels: Labels) -> str:
    """Whose reverse name this is; empty when it is no address' whole one. `labels` are in lower case."""
    if labels[-2:] == IN_ADDR and len(labels) == 6:
        return canonical(".".join(labels[3::-1]))
    if labels[-2:] == IP6 and len(labels) == 34 and all(len(label) == 1 for label in labels[:32]):
        digits = "".join(labels[31::-1])
        return canonical(":".join(digits[i : i + 4] for i in range(0, 32, 4)))
    return ""


def pod_address(label: str) -> str:
    """`10-244-1-2` and `fd00--2` as addresses; empty when the label is none.

    Three dashes, no two of them together, are IPv4 (CoreDNS, `findPods`).
    """
    four = label.count("-") == 3 and "--" not in label
    return canonical(label.replace("-", "." if four else ":"))


def dashed(address: str) -> str:
    """An endpoint without a hostname, as CoreDNS calls it: `172-0-0-2`, `5678-abcd--1`; a label ends in no dash."""
    label = address.replace(".", "-").replace(":", "-")
    return f"{label}0" if label.endswith("-") else label


def hashed(address: str) -> str:
    """An endpoint without a hostname, and a cluster IP, as kube-dns calls it (kubernetes/dns, `util.GetSkyMsg`).

    The hex digits of the hex digits of FNV-1a-32 over what Go prints for the record: `64333736353661` for 10.0.25.249.
    """
    value = 0x811C9DC5
    for byte in f"&{{{address} 0 10 10  false 30 0  }}".encode():
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return f"{value:x}".encode().hex()
