"""`nsnet policy`, and what other verbs say of policies, without a kernel: whole texts as a person reads them."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from nsnet import model
from nsnet.cli import main as cli
from nsnet.cli.columns import Look, cells
from nsnet.cli.context import Running
from nsnet.cli.decided import intended
from nsnet.cli.describe import lines
from nsnet.cli.policy import reasons, showing, tries
from nsnet.cli.target import target
from nsnet.cli.trace import destination, traced
from nsnet.control import policy
from nsnet.errors import InputError, NotReachedError
from nsnet.kernel.probe import Answer
from nsnet.model import Objects
from nsnet.render import render
from nsnet.trace import Packet
from nsnet.verify import table as tables
from nsnet.verify import world as worlds
from tests.controlled import up
from tests.deciding import namespace, pod, written

QUIET = "{apiVersion: nsnet/v1, kind: Cluster, metadata: {name: demo}, nodes: 2, dns: {enabled: false}}"
ONE = "ports: [{containerPort: 80, name: http}]"
ALL = (
    "{apiVersion: v1, kind: Service, metadata: {name: all, namespace: shop}, "
    "spec: {type: NodePort, selector: {tier: any}, ports: [{port: 8000, targetPort: http, nodePort: 30080}]}}"
)
SHOP = [
    QUIET,
    namespace("shop"), namespace("ops", "team=ops"),
    pod("shop/web", "app=web,tier=any", ports="ports: [{containerPort: 80, name: http}, {containerPort: 443}]"),
    pod("shop/db", "app=db,tier=any", "node2", ports=ONE),
    pod("shop/agent", "app=agent", "node1", "hostNetwork: true,", "ports: [{containerPort: 9100}]"),
    pod("ops/mon", "app=mon", "node2", ports=ONE),
    ALL,
]  # fmt: skip
FROM_WEB = "from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: http}]"
DB = written(f"podSelector: {{matchLabels: {{app: db}}}}, ingress: [{{{FROM_WEB}}}]", "shop/db")


def shop(*policies: str) -> Objects:
    """web on node1 and db on node2 in namespace shop, mon on node2 in ops, and Service all of web and db."""
    return up("\n---\n".join((*SHOP, *policies)))


OBJECTS = shop(DB)


# --- show -------------------------------------------------------------------------------------------------------------


def shown(*spaces: str, seen: dict[tuple[str, str], bool | None] | None = None, **more: Any) -> str:
    """What `policy show` prints where packets find all as wanted, but for some pairs."""
    found = tables.tables(worlds.world(OBJECTS), spaces, **more)
    if seen is not None:
        found = [
            msgspec.structs.replace(one, seen=tuple(
                tuple(seen.get((source.name, target.name), want) for target, want in zip(one.targets, row, strict=True))
                for source, row in zip(one.sources, one.wanted, strict=True)
            ))
            for one in found
        ]  # fmt: skip
    return "\n".join(showing.show_lines(found))


def test_a_namespace() -> None:
    assert (
        shown("shop", seen={})
        == """\
TCP 80, rows from, columns to
     db  web
db   .   .
web  .   .
4 of 4 open, packets agree

TCP 443, rows from, columns to
     web
db   .
web  .
2 of 2 open, packets agree"""
    )


def test_wanted_against_seen() -> None:
    assert (
        shown(ports=[80], seen={("ops/mon", "shop/db"): True, ("shop/web", "ops/mon"): None})
        == """\
TCP 80, rows from, columns to
          ops/mon  shop/db  shop/web
ops/mon   .        X/.      .
shop/db   .        .        .
shop/web  .?       .        .
8 of 9 open, packets find 1 otherwise (wanted/seen); 1 marked ? cannot be told: nobody listens there
DIFFERS  pod/ops/mon → pod/shop/db TCP 80: wanted closed, packets pass"""
    )


def test_without_packets() -> None:
    assert (
        shown("shop", ports=[443], protocol="UDP")
        == """\
UDP 443, rows from, columns to
     db  web
db   .   .
web  X   .
3 of 4 open; no packets were sent"""
    )


def test_wide_tables_have_numbers() -> None:
    many = up("\n---\n".join((QUIET, *(pod(f"default/a-pod-with-a-long-name-{n}", ports=ONE) for n in range(6)))))
    assert "\n".join(showing.show_lines(tables.tables(worlds.world(many), (), [80]))).splitlines()[1:3] == [
        "                            1  2  3  4  5  6",
        "1 a-pod-with-a-long-name-0  .  .  .  .  .  .",
    ]


@pytest.mark.parametrize(
    ("spaces", "more", "said"),
    [
        (("nope",), {}, "there is no pod with a network of its own in namespace nope"),
        (("shop", "nope"), {}, "there is no pod with a network of its own in namespace nope"),
        (("shop",), {"protocol": "UDP"}, "no pod there serves a port"),
    ],
)
def test_nothing_to_show(spaces: tuple[str, ...], more: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        tables.tables(worlds.world(OBJECTS), spaces, **more)


def test_what_is_asked() -> None:
    """Every ordered pair and a pod itself; where silence is wanted once, else twice."""
    (one,) = tables.tables(worlds.world(OBJECTS), (), [80])
    asked = {(probe.netns.removeprefix("demo.pod."), probe.address): probe.tries for probe in tables.probes(one)}
    known = policy.index(OBJECTS)
    addresses = {name: end.address for name, end in known.pods.items()}
    assert len(asked) == 9
    assert {key for key, tries in asked.items() if tries == 1} == {("ops.mon", addresses["shop/db"])}


@pytest.mark.parametrize(
    ("protocol", "port", "outcome", "passed"),
    [
        ("TCP", 80, "ok", True),
        ("TCP", 80, "timeout", False),
        ("TCP", 80, "refused", False),  # it listens, so that was REJECT
        ("TCP", 80, "unreachable", False),
        ("TCP", 81, "refused", None),  # its own refusal, or REJECT
        ("TCP", 81, "timeout", False),
        ("UDP", 81, "timeout", None),
        ("TCP", 80, "error", None),
    ],
)
def test_what_an_answer_says(protocol: tables.Protocol, port: int, outcome: Any, passed: bool | None) -> None:
    one = tables.tables(worlds.world(OBJECTS), ("ops",), [port], protocol)[0]
    assert tables.seen(one, iter([Answer(outcome)])) == ((passed,),)


# --- why --------------------------------------------------------------------------------------------------------------


def asked(source: str, to: str, namespace_: str = "shop", objects: Objects = OBJECTS) -> str:
    known = policy.index(objects)
    start = reasons.source_of(objects, known, source, namespace_)
    end = destination(objects, to, namespace_, "tcp")
    found = reasons.cases(objects, start, end, "TCP", as_is=source == start.address)
    return "\n".join(reasons.why_lines(known, start, end, "TCP", found))


def address(name: str) -> str:
    return policy.index(OBJECTS).pods[name].address


def test_allowed_by_a_rule() -> None:
    assert (
        asked("pod/web", "pod/db:80")
        == f"""\
TCP from pod/shop/web to pod/db, {address("shop/db")} port 80
pod/shop/db: allowed
  egress of pod/shop/web: allowed: no policy selects it
  ingress of pod/shop/db: allowed: selected by shop/db; shop/db ingress[0] (from[0], ports[0]) allows it
    shop/db ingress[0] (from[0], ports[0]): from pods app=web, port http/TCP"""
    )


def test_denied_from_another_namespace() -> None:
    assert (
        asked("pod/ops/mon", "pod/shop/db:80")
        == f"""\
TCP from pod/ops/mon to pod/db, {address("shop/db")} port 80
pod/shop/db: denied
  egress of pod/ops/mon: allowed: no policy selects it
  ingress of pod/shop/db: denied: selected by shop/db; no rule allows it
    shop/db ingress[0] allows only from pods app=web, port http/TCP"""
    )


def test_a_service_names_every_endpoint() -> None:
    text = asked("pod/ops/mon", "svc/shop/all")
    verdicts = [line for line in text.splitlines() if line.startswith("svc/")]
    assert sorted(verdicts) == [
        "svc/shop/all by pod/shop/db port 80: denied",
        "svc/shop/all by pod/shop/web port 80: allowed",
    ]


@pytest.mark.parametrize(
    ("node", "seen"),
    [("node1", "10.244.1.0"), ("node2", "203.0.113.2")],  # db is on node2
)
def test_by_a_node_port(node: str, seen: str) -> None:
    rule = f"podSelector: {{matchLabels: {{app: db}}}}, ingress: [{{from: [{{ipBlock: {{cidr: {seen}/32}}}}]}}]"
    text = asked("host/client", f"node/{node}:30080", objects=shop(written(rule, "shop/db")))
    assert "svc/shop/all by pod/shop/db port 80: allowed" in text
    other = "node2" if node == "node1" else "node1"
    text = asked("host/client", f"node/{other}:30080", objects=shop(written(rule, "shop/db")))
    assert "svc/shop/all by pod/shop/db port 80: denied" in text


def test_a_host_network_pod_is_its_node() -> None:
    text = asked("pod/agent", "pod/db:80")
    assert text.splitlines()[-1] == policy.HOST_NETWORK
    assert "TCP from node/node1" in text
    assert "pod/shop/db: denied" in text


def test_an_address_is_taken_as_it_is() -> None:
    allowed = "podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 172.18.0.2/32}}]}]"
    objects = shop(written(allowed, "shop/p"))
    assert "pod/shop/db: allowed" in asked("172.18.0.2", "pod/db:80", objects=objects)
    assert "pod/shop/db: denied" in asked("node/node1", "pod/db:80", objects=objects)  # through the tunnel


def test_the_outside_has_no_cluster_ip() -> None:
    with pytest.raises(InputError, match="host/client has no way to the clusterIP of svc/shop/all"):
        asked("host/client", "svc/all")


def test_a_service_without_endpoints() -> None:
    none = ALL.replace("name: all", "name: none").replace("tier: any", "tier: none").replace(", nodePort: 30080", "")
    with pytest.raises(NotReachedError, match="svc/shop/none has no endpoint"):
        asked("pod/web", "svc/none", objects=shop(none))


# --- try --------------------------------------------------------------------------------------------------------------


def tried(before: Objects, then: Objects) -> str:
    one, other = worlds.world(before), worlds.world(then)
    return "\n".join(tries.try_lines(one, other, list(tries.changes(one, other))))


def test_what_would_close() -> None:
    assert (
        tried(shop(), OBJECTS)
        == """\
TCP 80, rows from, columns to (before>after)
         shop/db
ops/mon  .>X

pod/ops/mon → pod/shop/db TCP 80: allowed → denied
  ingress of pod/shop/db: denied: selected by shop/db; no rule allows it
0 would open, 1 would close; nothing was applied"""
    )


def test_what_would_open_and_who_would_come() -> None:
    more = written("podSelector: {}, ingress: [{}]", "shop/more")
    assert tried(OBJECTS, shop(DB, more, pod("shop/new", "app=new", ports=ONE))).splitlines()[-4:] == [
        "pod/ops/mon → pod/shop/db TCP 80: denied → allowed",
        "  ingress of pod/shop/db: allowed: selected by shop/db, shop/more; shop/more ingress[0] allows it",
        "1 would open, 0 would close; nothing was applied",
        "not compared, because they would come or go: shop/new",
    ]


def test_a_policy_that_goes_is_said() -> None:
    assert "  no policy selects it any more" in tried(OBJECTS, shop())


def test_nothing_would_change() -> None:
    assert tried(OBJECTS, OBJECTS) == "nothing would change between the pods there are"


# --- the other verbs --------------------------------------------------------------------------------------------------


def one(objects: Objects, name: str) -> model.Object:
    return objects[model.Key("NetworkPolicy", "shop", name)]


WRITTEN = """\
podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress, Egress], ingress: [
  {from: [{podSelector: {matchLabels: {app: web}}},
          {namespaceSelector: {matchExpressions: [{key: team, operator: In, values: [ops, dev]}]}, podSelector: {}}],
   ports: [{port: http}, {port: 8000, endPort: 9000, protocol: UDP}, {}]},
  {from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 10.2.0.0/16]}}]}, {}]"""


def test_described_as_kubectl_does() -> None:
    objects = shop(written(WRITTEN, "shop/db"))
    assert (
        "\n".join(lines(Running("demo", dict(objects)), one(objects, "db")))
        == """\
Name:                  db
Namespace:             shop
Labels:                <none>
Annotations:           <none>
Spec:
  PodSelector:     app=db
  Allowing ingress traffic:
    To Port: http/TCP
    To Port: 8000-9000/UDP
    To Port: <any>/TCP
    From:
      PodSelector: app=web
    From:
      NamespaceSelector: team in (dev,ops)
      PodSelector: <none>
    ----------
    To Port: <any> (traffic allowed to all ports)
    From:
      IPBlock:
        CIDR: 10.0.0.0/8
        Except: 10.1.0.0/16, 10.2.0.0/16
    ----------
    To Port: <any> (traffic allowed to all ports)
    From: <any> (traffic not restricted by source)
  Allowing egress traffic:
    <none> (Selected pods are isolated for egress connectivity)
  Policy Types: Ingress, Egress
Events:                <none>"""
    )


@pytest.mark.parametrize(
    ("selector", "column"),
    [
        ("{}", "<none>"),
        ("{matchLabels: {b: c, a: b}}", "a=b,b=c"),
        ("{matchLabels: {tier: x}, matchExpressions: [{key: new, operator: Exists}]}", "new,tier=x"),
        ("{matchExpressions: [{key: old, operator: DoesNotExist}, {key: app, operator: NotIn, values: [b, a]}]}",
         "app notin (a,b),!old"),
    ],
)  # fmt: skip
def test_column(selector: str, column: str) -> None:
    objects = shop(written(f"podSelector: {selector}", "shop/p"))
    assert cells(one(objects, "p"), Look("demo", datetime.now(UTC)), wide=False)[:2] == ["p", column]


def test_trace_says_what_policies_intend() -> None:
    """By the objects: whether or not the rules do it."""
    start = target(OBJECTS, "pod/mon", "ops")
    ways = [item.way for item in traced(render(OBJECTS), start, Packet("tcp", address("shop/db"), 80))]
    assert list(intended(OBJECTS, start, ways)) == [
        "intended by NetworkPolicy to pod/shop/db port 80: denied",
        "  ingress of pod/shop/db: denied: selected by shop/db; no rule allows it",
    ]
    ways = [item.way for item in traced(render(OBJECTS), start, Packet("tcp", address("shop/web"), 80))]
    assert list(intended(OBJECTS, start, ways)) == []


def test_the_load_balancer_is_outside_for_policies() -> None:
    """Its address is the one that the way says: of a router there is one in every network."""
    start = target(OBJECTS, "lb")
    ways = [item.way for item in traced(render(OBJECTS), start, Packet("tcp", "172.18.0.2", 30080))]
    assert next(intended(OBJECTS, start, ways)) == "intended by NetworkPolicy to pod/shop/db port 80: denied"
    with pytest.raises(InputError, match="lb: there is no such end of a connection"):
        reasons.source_of(OBJECTS, policy.index(OBJECTS), "lb", "shop")


def test_trace_through_a_node_port_asks_as_the_pods_node_sees_it() -> None:
    """From outside by node1, the pod on node2: its node sees node1's VTEP."""
    rule = "podSelector: {matchLabels: {app: db}}, ingress: [{from: [{ipBlock: {cidr: 10.244.1.0/32}}]}]"
    objects = shop(written(rule, "shop/db"))
    start = target(objects, "host/client")
    ways = [item.way for item in traced(render(objects), start, Packet("tcp", "172.18.0.2", 30080))]
    assert "intended by NetworkPolicy to pod/shop/db port 80: allowed" in list(intended(objects, start, ways))
    ways = [item.way for item in traced(render(objects), start, Packet("tcp", "172.18.0.3", 30080))]
    assert "intended by NetworkPolicy to pod/shop/db port 80: denied" in list(intended(objects, start, ways))


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["policy", "bogus"], 'there is no policy verb "bogus"'),
        (["policy", "show", "-A", "shop"], "-A and a namespace contradict each other"),
        (["policy", "try"], "-f FILE is missing"),
        (["policy", "why", "pod/a"], "Missing argument 'TO[:PORT]'"),
        (["policy", "show", "--port", "0"], "Invalid value for '--port': 0 is not in the range 1<=x<=65535"),
    ],
)
def test_wrong_words(words: list[str], error: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert cli.run(words) == 2
    assert capsys.readouterr().err.startswith(f"error: {error}\n")
