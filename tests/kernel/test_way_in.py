"""The whole way in under load: client → balancer's address → node → proxy → pod, while routes, pods and nodes change.

The proxies stand on node1 and node2 behind externalTrafficPolicy Local, everything they lead to on node3: so what is
lost when a proxy or its node dies is what the balancer still sent there.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from math import sqrt
from pathlib import Path
from typing import Any

import pytest

from nsnet import names
from nsnet.cli import main
from nsnet.kernel import process
from nsnet.kernel.probe import Probe, probe
from nsnet.programs.lbhealth import FAILURES, PATIENCE, PERIOD
from tests.outside import Load, until

ROOT = Path(__file__).parents[2]
NSNET = (sys.executable, "-m", "nsnet")
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}
CLIENT = names.host_netns("way", "client")
CLIENT_IP, ADDRESS = "203.0.113.2", "198.51.100.10"
# What the reference's own checks take at most: Envoy waits PERIOD after each one that took PATIENCE, so two are 10 s.
# Ours are asked every PERIOD: a node that dies when it has just answered fails those after 2 and 4 s, the second at 7.
# So 3 s are left for the rules, on a busy machine.
WINDOW = FAILURES * (PERIOD + PATIENCE)

CLUSTER = f"""
apiVersion: nsnet/v1
kind: Cluster
metadata: {{name: way}}
nodes: 3
loadBalancer: {{addresses: [{ADDRESS}]}}
ingress: {{replicas: 2, externalTrafficPolicy: Local}}
"""
APP = """
---
apiVersion: v1
kind: Pod
metadata: {name: NAME-1, labels: {app: NAME}}
spec: {nodeName: node3, containers: [{name: c, ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: NAME-2, labels: {app: NAME}}
spec: {nodeName: node3, containers: [{name: c, ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: NAME}
spec: {selector: {app: NAME}, ports: [{port: 80, targetPort: 8080}]}
"""
INGRESS = """
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: NAME}
spec: {rules: [{host: HOST, http: {paths: [
  {path: /, pathType: Prefix, backend: {service: {name: APP, port: {number: 80}}}}]}}]}
"""
GATEWAY = """
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: front}
spec: {gatewayClassName: nsnet, listeners: [{name: http, port: 80, protocol: HTTP, hostname: "*.shop.org"}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop}
spec:
  parentRefs: [{name: front}]
  hostnames: [www.shop.org]
  rules:
    - matches: [{headers: [{name: Version, value: two}]}]
      backendRefs: [{name: b, port: 80}]
    - filters:
        - type: RequestHeaderModifier
          requestHeaderModifier: {set: [{name: X-Shop, value: "it's 100%"}], remove: [X-Away]}
      backendRefs: [{name: a, port: 80, weight: 3}, {name: b, port: 80, weight: 1}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: moved}
spec:
  parentRefs: [{name: front}]
  hostnames: [old.shop.org]
  rules: [{filters: [{type: RequestRedirect, requestRedirect: {hostname: www.shop.org, statusCode: 301}}]}]
"""


def app(name: str) -> str:
    return APP.replace("NAME", name)


def ingress(name: str, host: str, to: str) -> str:
    return INGRESS.replace("NAME", name).replace("HOST", host).replace("APP", to)


def nsnet(*words: str, stdin: str | None = None) -> str:
    done = subprocess.run(  # noqa: PLW1510 - the exit code is what is looked at
        [*NSNET, *words], input=stdin, capture_output=True, text=True, env=ENV, timeout=120
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    nsnet("up", "--no-verify", "-", stdin=CLUSTER + app("a") + app("b") + ingress("one", "a.org", "a") + GATEWAY)
    yield
    nsnet("down", "--all")


def asked(host: str, count: int = 1, *headers: str) -> list[tuple[str, dict[str, Any]]]:
    """Status (with where it redirects to) and what the pod said, of each request; a connection of its own."""
    lines = ("GET /x HTTP/1.1", f"Host: {host}", "Connection: close", *headers)
    request = Probe(CLIENT, "TCP", ADDRESS, 80, "".join(f"{line}\r\n" for line in (*lines, "")).encode(), tries=1)
    found = []
    for answer in probe([request] * count, timeout=5):
        head, _, body = answer.body.partition(b"\r\n\r\n")
        where = next((line[10:] for line in head.split(b"\r\n") if line.lower().startswith(b"location: ")), b"")
        found.append((f"{head[9:12].decode()} {where.decode()}".strip(), json.loads(body) if body[:1] == b"{" else {}))
    return found


def status(host: str) -> str:
    return asked(host)[0][0]


def nodes() -> list[str]:
    """To which nodes the balancer sends what is for the proxy."""
    said = json.loads(nsnet("get", "svc", "ingress", "-n", "ingress-nsnet", "-o", "json"))["status"]
    found = next(item for item in said["conditions"] if item["type"] == "nsnet/Nodes")
    return list(found["message"].split(",")) if found["status"] == "True" else []


def proxies() -> dict[str, str]:
    """Node → its proxy's pod."""
    listed = json.loads(nsnet("get", "po", "-n", "ingress-nsnet", "-o", "json"))["items"]
    return {pod["spec"]["nodeName"]: pod["metadata"]["name"] for pod in listed}


# --- what arrives -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_by_name_from_outside_the_pod_is_told_who_asks(scheme: str) -> None:
    """The outside's DNS has the name; under policy Local the proxy sees the client itself."""
    said = json.loads(nsnet("exec", "host/client", "--", "curl", "-sk", "-m", "5", f"{scheme}://a.org/x?y=1"))
    headers = said["headers"]
    assert said["pod"] in {"a-1", "a-2"}
    assert (said["path"], said["host"]) == ("/x?y=1", "a.org")
    assert headers["x-forwarded-for"] == CLIENT_IP
    assert (headers["x-forwarded-proto"], headers["x-forwarded-host"]) == (scheme, "a.org")


def test_a_gateways_routes() -> None:
    """Weights within 5 standard deviations; what a header asks for; headers changed; a redirect."""
    until(lambda: status("www.shop.org") == "200", "the route is not served")
    answers = asked("www.shop.org", 400, "X-Away: yes")
    shares = Counter(said["pod"][0] for _, said in answers)
    assert shares.keys() == {"a", "b"}
    assert abs(shares["a"] - 300) < 5 * sqrt(400 * 0.75 * 0.25), shares
    assert {said["headers"].get("x-shop") for _, said in answers} == {"it's 100%"}
    assert not any("x-away" in said["headers"] for _, said in answers)
    assert {said["pod"][0] for _, said in asked("www.shop.org", 20, "Version: two")} == {"b"}
    assert status("old.shop.org") == "301 http://www.shop.org/x"
    assert status("other.shop.org") == "404"


def test_what_a_student_looks_at() -> None:
    """The whole way is one walk; a page says what becomes of each request."""
    assert nsnet("trace", "host/client", "http://a.org/x").count("delivered to pod/a-") == 2 * len(nodes())
    assert "a.org/… → default/a:80\n" in nsnet("explain", "ing/one")
    assert "www.shop.org/… → default/b:80 (1 of 4)\n" in nsnet("explain", "httproute/shop")
    assert "listener http: HTTP 80, *.shop.org\n        2 routes attached" in nsnet("explain", "gateway/front")
    assert "type: Accepted\n" in nsnet("describe", "httproute/shop")


# --- changes under load -----------------------------------------------------------------------------------------------


REQUEST = re.compile(r'\S+:\d+ \[\S+\] \S+ \S+ [-\d/]+ \d+ \d+ \S+ [\d/]+ "\S*" "GET .*"')


def log() -> str:
    """What both proxies say; each has a file of its own."""
    return "".join(path.read_text() for path in Path("/run/nsnet/way/log").rglob("ingress.log"))


def reloads() -> int:
    """How often the proxies' programs have started a worker that reads its file anew."""
    return log().count("New worker")


def test_no_request_is_lost_in_twenty_endpoint_changes_and_six_reloads(tmp_path: Path) -> None:
    """At 1,000 a second, half of them on connections of their own. Their logs are whole lines."""
    before, manifest = reloads(), tmp_path / "more.yaml"
    with Load(CLIENT, ADDRESS, "a.org", 1000) as load:
        for number in range(20):
            annotation = "nsnet/ready-" if number % 2 else "nsnet/ready=false"
            assert main.run(["--cluster", "way", "annotate", "pod", f"a-{number // 2 % 2 + 1}", annotation]) == 0
        assert reloads() == before  # endpoints need none
        for number in range(6):
            manifest.write_text(ingress("more", f"h{number}.org", "b"))
            assert main.run(["--cluster", "way", "apply", "-f", str(manifest)]) == 0
            assert [code for code, _ in asked(f"h{number}.org", 8)] == ["200"] * 8
    assert load.lost == []
    assert load.done >= 1000 * load.seconds
    assert reloads() == before + 6 * 2
    assert [line for line in log().splitlines() if "GET" in line and not REQUEST.fullmatch(line)] == []
    nsnet("delete", "ing", "more")


# --- deaths under load ------------------------------------------------------------------------------------------------


def assert_lost_in_window(load: Load) -> None:
    """From the first request that was lost to the last."""
    lost = sorted(sent for sent, _ in load.lost)
    assert not lost or lost[-1] - lost[0] <= WINDOW, (len(lost), lost[-1] - lost[0])
    assert load.done > len(lost)


def test_a_proxy_that_is_killed_is_missed_no_longer_than_the_checks_take() -> None:
    place = names.pod_netns("way", "ingress-nsnet", proxies()["node1"])

    def program() -> int:
        here = (one for one in process.running("way") if one.netns == place)
        return next((one.pid for one in here if "nsnet.programs.ingress" in one.argv), 0)

    with Load(CLIENT, ADDRESS, "a.org", 300) as load:
        until(lambda: status("a.org") == "200", "nobody answers")
        first = program()
        os.kill(first, signal.SIGKILL)  # HAProxy dies with it
        until(lambda: program() not in {0, first}, "it stays away")
        until(lambda: all(code == "200" for code, _ in asked("a.org", 20)), "its node is still dead to the balancer")
    assert_lost_in_window(load)


def test_a_proxys_pod_that_is_deleted_is_missed_no_longer_than_the_checks_take() -> None:
    with Load(CLIENT, ADDRESS, "a.org", 300, kept=False) as load:
        nsnet("delete", "pod", "-n", "ingress-nsnet", proxies()["node2"])
        until(lambda: all(code == "200" for code, _ in asked("a.org", 20)), "its node is still dead to the balancer")
    assert_lost_in_window(load)
    until(lambda: len(nodes()) == 2, "the new one is not used")


def test_a_node_that_dies_is_missed_no_longer_than_the_checks_take() -> None:
    """New connections; those that were open are the client's to give up, as with any balancer that forwards packets."""
    node = nodes()[0]
    with Load(CLIENT, ADDRESS, "a.org", 300, kept=False) as load:
        nsnet("fault", "add", "node-down", "--on", f"node/{node}")
        until(lambda: node not in nodes(), f"{node} is dead and still used")
        until(lambda: all(code == "200" for code, _ in asked("a.org", 40)), "the rules do not know it")
    assert load.lost
    assert_lost_in_window(load)
    nsnet("fault", "clear")
    until(lambda: node in nodes(), f"{node} is back and not used")
