"""Published policy sets decided: `tests/policy/published.txt`, Online Boutique whole, and Sock Shop's peculiarity."""

from functools import cache
from pathlib import Path

import pytest

from nsnet import model
from nsnet.control import policy
from nsnet.model import Objects
from tests.controlled import events, up
from tests.deciding import PUBLISHED, answers, namespace, pod, published, written

ROWS = [
    block.splitlines()
    for block in (Path(__file__).parent / "policy" / "published.txt").read_text().split("=====\n")[1:]
]  # fmt: skip
PODS = {
    "default/web": "app=web", "default/api": "app=bookstore,role=api", "default/search": "app=bookstore,role=search",
    "default/db": "app=bookstore,role=db", "default/inventory": "app=inventory,role=web",
    "default/apiserver": "app=apiserver", "default/mon": "role=monitoring,type=monitoring", "default/foo": "app=foo",
    "default/client": "", "prod/p": "", "dev/d": "", "ops/mon": "type=monitoring", "ops/plain": "",
    "kube-system/dns": "k8s-app=kube-dns",
}  # fmt: skip


@cache
def base() -> str:
    spaces = [
        namespace("prod", "purpose=production"),
        namespace("dev", "purpose=testing"),
        namespace("ops", "team=operations"),
    ]
    quiet = "{apiVersion: nsnet/v1, kind: Cluster, metadata: {name: demo}, dns: {enabled: false}}"
    return "\n---\n".join((quiet, *spaces, *(pod(name, labels) for name, labels in PODS.items())))


def whole(line: str) -> str:
    """With the namespace of what has none."""
    source, _, to = line.partition(" > ")
    return " > ".join(
        f"default/{word}" if f"default/{word.partition(':')[0]}" in PODS else word for word in (source, to)
    )


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_published(row: list[str]) -> None:
    files, *lines = row
    texts = []
    for file in files.split():
        folder = published(file.partition("/")[0])
        if folder is None:
            pytest.skip("needs shared/manifests")
        texts.append((folder.parent / file).read_text())
    wanted = {whole(question): line[0] == "." for line in lines for question in line[3:].split(", ")}
    assert answers(up("\n---\n".join((base(), *texts))), wanted) == wanted


def test_every_recipe_has_a_row() -> None:
    folder = published("netpol-recipes")
    if folder is None:
        pytest.skip("needs shared/manifests")
    said = {file for row in ROWS for file in row[0].split()}
    assert {f"netpol-recipes/{path.name}" for path in folder.iterdir()} <= said


# --- Online Boutique --------------------------------------------------------------------------------------------------

CALLS = {  # what the policies let each workload be called by, on its port
    "frontend": (8080, "*"),
    "adservice": (9555, "frontend"),
    "cartservice": (7070, "frontend checkoutservice"),
    "checkoutservice": (5050, "frontend"),
    "currencyservice": (7000, "frontend checkoutservice"),
    "emailservice": (8080, "checkoutservice"),
    "loadgenerator": (8089, ""),
    "paymentservice": (50051, "checkoutservice"),
    "productcatalogservice": (3550, "frontend checkoutservice recommendationservice"),
    "recommendationservice": (8080, "frontend"),
    "redis-cart": (6379, "cartservice"),
    "shippingservice": (50051, "frontend checkoutservice"),
}


def boutique() -> Objects:
    manifests, policies = published("online-boutique"), published("online-boutique-netpol")
    if manifests is None or policies is None:
        pytest.skip("needs shared/manifests")
    files = [*sorted(manifests.iterdir()), *sorted(policies.iterdir())]
    return up("\n---\n".join(path.read_text() for path in files))


def test_online_boutique() -> None:
    """Every workload by every other, on the port it serves: exactly who the policies name."""
    objects = boutique()
    known = policy.index(objects)
    apps = {
        item.metadata.labels["app"]: known.pods[f"default/{item.metadata.name}"]
        for item in model.of(objects, model.Pod)
        if item.metadata.namespace == "default" and "app" in item.metadata.labels
    }
    assert apps.keys() == CALLS.keys()
    found = {}
    for name, (port, _) in CALLS.items():
        callers = [
            app for app, end in apps.items() if app != name and policy.allows(known, end, apps[name], port, "TCP")
        ]
        found[name] = "*" if len(callers) == len(apps) - 1 else " ".join(sorted(callers))
    assert found == {name: " ".join(sorted(callers.split())) for name, (_, callers) in CALLS.items()}
    outside = known.at("203.0.113.9")
    entry = {name for name, end in apps.items() if policy.allows(known, outside, end, CALLS[name][0], "TCP")}
    assert entry == {"frontend"}
    assert not policy.allows(known, apps["frontend"], apps["cartservice"], 7071, "TCP")


# --- Sock Shop --------------------------------------------------------------------------------------------------------


def test_sock_shop_selects_cart_and_nobody_is_called_that() -> None:
    """Its policies say `name: cart`, its workload `name: carts`: nothing reaches carts, and that is said."""
    shop = [pod(f"sock-shop/{name}", f"name={name}") for name in ("carts", "carts-db", "front-end")]
    deny = written("podSelector: {matchLabels: }", "sock-shop/default-deny")
    cart = written(
        "podSelector: {matchLabels: {name: cart}}, "
        "ingress: [{from: [{podSelector: {matchLabels: {name: front-end}}}], ports: [{protocol: TCP, port: 80}]}]",
        "sock-shop/cart",
    )
    data = written(
        "podSelector: {matchLabels: {name: carts-db}}, "
        "ingress: [{from: [{podSelector: {matchLabels: {name: cart}}}], ports: [{protocol: TCP, port: 80}]}]",
        "sock-shop/cart-db",
    )
    objects = up("\n---\n".join((*shop, deny, cart, data)))
    wanted = {"sock-shop/front-end > sock-shop/carts:80": False, "sock-shop/carts > sock-shop/carts-db:80": False}
    assert answers(objects, wanted) == wanted
    nobody = "its podSelector name=cart matches no pod of namespace sock-shop"
    assert [line for line in events(objects) if line.startswith("NetworkPolicy")] == [
        f"NetworkPolicy cart-db: PeerMatchesNothing: ingress[0]: {nobody}",
        f"NetworkPolicy cart: SelectsNothing: {nobody}: it isolates nobody",
    ]


def test_all_published_policies_are_decided() -> None:
    """Each file for itself: a decision for every pair, and nothing raises."""
    folders = [
        folder
        for name in ("docs-networking", "netpol-recipes", "online-boutique-netpol")
        if (folder := published(name))
    ]
    if not folders:
        pytest.skip(f"needs {PUBLISHED[0]}")
    files = [path for folder in folders for path in sorted(folder.iterdir()) if "NetworkPolicy" in path.read_text()]
    assert len(files) > 25
    for path in files:
        known = policy.index(up(f"{base()}\n---\n{path.read_text()}"))
        ends = list(known.pods.values())
        for source in ends:
            for target in ends:
                decision = policy.decided(known, source, target, 80, "TCP")
                assert decision.allowed == policy.allows(known, source, target, 80, "TCP")
                assert decision.allowed or all(policy.sentence(side) for side in decision.sides)
