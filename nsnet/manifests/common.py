"""What objects of several kinds have: annotations, label selectors, lists whose items have names."""

from nsnet.manifests.forms import (
    address,
    address_of,
    annotation_keys,
    label_key,
    label_value,
    labels,
    one_of,
    one_of_each,
)
from nsnet.manifests.problems import At
from nsnet.manifests.reading import shown

EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")  # of taints, and of tolerations


def annotations(at: At) -> None:
    annotation_keys(at)
    _pod_addresses(at["nsnet/ip"])
    for name in ("nsnet/ready", "nsnet/run"):
        one_of(at[name], ("true", "false"))


def selector(at: At) -> None:
    """A LabelSelector."""
    labels(at["matchLabels"])
    for item in at["matchExpressions"].each():
        requirement(item, ("In", "NotIn", "Exists", "DoesNotExist"))


def requirement(at: At, operators: tuple[str, ...]) -> None:
    """One of matchExpressions: In and NotIn need values, Exists and DoesNotExist have none, Gt and Lt one number."""
    label_key(at["key"])
    one_of(at["operator"], operators)
    operator, values = at["operator"].value, at["values"].value or []
    if operator in {"In", "NotIn"} and not values:
        at["values"].wrong(f"is empty; {operator} needs at least one value", "add `values:` with a list")
    if operator in {"Exists", "DoesNotExist"} and values:
        at["values"].wrong(f"{operator} takes no values", "leave it out, or write In or NotIn")
    if operator in {"Gt", "Lt"} and (len(values) != 1 or not values[0].removeprefix("-").isdecimal()):
        at["values"].wrong(f"{operator} takes one number", 'as values: ["5"]')
    for item in at["values"].each():
        label_value(item)


def unique(at: At, name: str) -> None:
    """No two items of a list may have the same `name` field."""
    first: dict[str, int] = {}
    for index, item in enumerate(at.each()):
        text = item[name].value
        if text and first.setdefault(text, index) != index:
            item[name].wrong(f'"{shown(str(text))}" is given twice', f"{name}s differ within a list")


def _pod_addresses(at: At) -> None:
    """One address, or one of each family with a comma between."""
    one_of_each(at, [part.strip() for part in (at.value or "").split(",")], address, address_of, "address")
