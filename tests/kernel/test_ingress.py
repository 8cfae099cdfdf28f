"""Ingress with real requests: curl from outside, over HTTP and HTTPS, under load, with the proxy killed.

Everything goes in by the proxy's node port, so that no load balancer is needed.
"""

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nsnet.kernel import netns, process

ROOT = Path(__file__).parents[2]
NSNET = (sys.executable, "-m", "nsnet")
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "NSNET_RESYNC": "1"}
NODE = "172.18.0.2"
CLIENT = "web.host.client"

CLUSTER = """
apiVersion: nsnet/v1
kind: Cluster
metadata: {name: web}
dns: {enabled: false}
"""
APP = """
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: NAME}
spec:
  replicas: COPIES
  selector: {matchLabels: {app: NAME}}
  template: {metadata: {labels: {app: NAME}}, spec: {containers: [{name: c, ports: [{containerPort: 8080}]}]}}
---
apiVersion: v1
kind: Service
metadata: {name: NAME}
spec: {selector: {app: NAME}, ports: [{name: http, port: 80, targetPort: 8080}]}
"""
INGRESS = """
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: NAME}
spec:
  rules:
  - {host: HOST, http: {paths: [{path: PATH, pathType: Prefix, backend: {service: {name: APP, port: PORT}}}]}}
"""


def app(name: str, copies: int = 2) -> str:
    return APP.replace("NAME", name).replace("COPIES", str(copies))


def ingress(name: str, host: str, path: str, to: str, port: str = "{number: 80}") -> str:
    text = INGRESS.replace("NAME", name).replace("HOST", host).replace("PATH", path)
    return text.replace("APP", to).replace("PORT", port)


def nsnet(*words: str, stdin: str | None = None, code: int | None = 0) -> str:
    done = subprocess.run(  # noqa: PLW1510 - the exit code is what is looked at
        [*NSNET, *words], input=stdin, capture_output=True, text=True, env=ENV, timeout=120
    )
    assert code is None or done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout + (done.stderr if code else "")


def secret(directory: Path, name: str, host: str) -> str:
    """A TLS Secret with a certificate of its own, as a manifest."""
    key, crt = directory / f"{name}.key", directory / f"{name}.crt"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-keyout", key, "-out", crt,
         "-subj", f"/CN={host}"],
        check=True, capture_output=True,
    )  # fmt: skip
    data = {"tls.crt": crt, "tls.key": key}
    coded = {field: base64.b64encode(path.read_bytes()).decode() for field, path in data.items()}
    return "\n---\n" + json.dumps(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": "kubernetes.io/tls", "data": coded}
    )


TLS = """
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: tls}
spec:
  tls:
  - {hosts: [tls.org], secretName: tls}
  - {hosts: ["*.wild.org"], secretName: wild}
  - {hosts: [bad.org], secretName: bad}
  rules:
  - {host: tls.org, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: a, port: {name: http}}}}]}}
"""


@pytest.fixture(scope="module", autouse=True)
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    directory = tmp_path_factory.mktemp("tls")
    bad = secret(directory, "bad", "bad.org").replace("LS0tLS1", "LS0tLS0", 1)
    text = CLUSTER + app("a") + app("b") + ingress("one", "a.org", "/", "a") + ingress("two", "b.org", "/path", "b")
    text += secret(directory, "tls", "tls.org") + secret(directory, "wild", "*.wild.org") + bad + TLS
    nsnet("up", "--no-verify", "-", stdin=text)
    yield
    nsnet("down", "--all")
    assert not Path("/run/nsnet/web").exists()
    assert [pid for pid in pids("haproxy") if b"/run/nsnet/web/" in Path(f"/proc/{pid}/cmdline").read_bytes()] == []


def ports() -> dict[int, int]:
    """The proxy's ports → node ports."""
    found = json.loads(nsnet("get", "svc", "ingress", "-n", "ingress-nsnet", "-o", "json"))
    return {port["port"]: port["nodePort"] for port in found["spec"]["ports"]}


@pytest.fixture(scope="module")
def http_port(_cluster: None) -> int:
    return ports()[80]


def curl(url: str, *words: str) -> str:
    """What curl prints, run by the host outside."""
    return nsnet("exec", "host/client", "--", "curl", "-s", "-m", "5", *words, url)


def status(host: str, path: str, port: int) -> str:
    """Of a request by the host outside; a connection of its own."""
    try:
        connection = connected(port)
    except OSError as error:
        return str(error)
    try:
        return str(get(connection, host, path)[0])
    except (OSError, http.client.HTTPException) as error:
        return repr(error)
    finally:
        connection.close()


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Waits for something that has been asked for; it happens, or the test fails."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def pids(name: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text().strip() == name:
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def connected(port: int) -> http.client.HTTPConnection:
    """A connection whose socket is the outside host's."""
    with netns.inside(CLIENT):
        sock = socket.create_connection((NODE, port), timeout=10)
    connection = http.client.HTTPConnection(NODE, port, timeout=10)
    connection.sock = sock
    return connection


def get(connection: http.client.HTTPConnection, host: str, path: str = "/") -> tuple[int, dict[str, Any]]:
    connection.request("GET", path, headers={"Host": host})
    answer = connection.getresponse()
    body = answer.read()
    return answer.status, json.loads(body) if body.startswith(b"{") else {}


# --- requests ---------------------------------------------------------------------------------------------------------


def test_hosts_and_paths(http_port: int) -> None:
    said = json.loads(curl(f"http://{NODE}:{http_port}/x?y=1", "-H", "Host: A.org:8080"))
    assert said["pod"].startswith("a-")
    assert (said["path"], said["host"]) == ("/x?y=1", "A.org:8080")
    forwarded = {name: value for name, value in said["headers"].items() if name.startswith("x-forwarded")}
    assert set(forwarded) == {"x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port"}
    assert (forwarded["x-forwarded-proto"], forwarded["x-forwarded-host"]) == ("http", "A.org:8080")
    rows = {("b.org", "/path"): "200", ("b.org", "/path/x"): "200", ("b.org", "/pathx"): "404", ("c.org", "/"): "404"}
    assert {row: status(*row, http_port) for row in rows} == rows


def test_every_ready_pod_is_used(http_port: int) -> None:
    counts: Counter[str] = Counter()
    for _ in range(40):
        connection = connected(http_port)
        counts[get(connection, "a.org")[1]["pod"]] += 1
        connection.close()
    assert len(counts) == 2
    assert min(counts.values()) >= 15, counts


def test_certificates_by_server_name() -> None:
    port = ports()[443]

    def shown(name: str) -> str:
        said = curl(f"https://{name}:{port}/", "-k", "-v", "--stderr", "-", "--resolve", f"{name}:{port}:{NODE}")
        return next(line.partition("subject: ")[2] for line in said.splitlines() if "subject: " in line)

    own = "O=nsnet; CN=nsnet default certificate"
    wanted = {"tls.org": "CN=tls.org", "x.wild.org": "CN=*.wild.org", "bad.org": own, "other.org": own}
    assert {name: shown(name) for name in wanted} == wanted
    events = nsnet("events")
    assert "CertificateNotUsed" in events
    assert "Secret default/bad is no certificate" in events


def test_http_keeps_answering_where_there_is_tls(http_port: int) -> None:
    assert status("tls.org", "/", http_port) == "200"


def test_long_bodies_pass(http_port: int, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"x" * (8 << 20))
    sent = curl(f"http://{NODE}:{http_port}/", "-H", "Host: a.org", "--data-binary", f"@{body}", "-o", "/dev/null",
                "-w", "%{http_code} %{size_upload}")  # fmt: skip
    assert sent == f"200 {8 << 20}"


UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
WEBSOCKET = (  # RFC 6455's own example; HAProxy passes no upgrade without
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n",
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n",
)


def test_an_upgraded_connection_passes_bytes_both_ways(http_port: int) -> None:
    """As a WebSocket begins: 101, and then whatever the two of them say."""
    name = next(line.split()[0] for line in nsnet("get", "po").splitlines() if line.startswith("a-"))
    node = nsnet("get", "po", name, "-o", "json")
    address = json.loads(node)["status"]["podIP"]
    text = f"""
apiVersion: v1
kind: Service
metadata: {{name: ws}}
spec: {{ports: [{{name: http, port: 80, targetPort: 9090}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: ws-1, labels: {{kubernetes.io/service-name: ws}}}}
addressType: IPv4
endpoints: [{{addresses: [{address}]}}]
ports: [{{name: http, port: 9090}}]
""" + ingress("ws", "ws.org", "/", "ws")
    with netns.inside(f"web.pod.default.{name}"):
        listener = socket.create_server((address, 9090))
    listener.settimeout(10)
    with listener:
        nsnet("apply", "-f", "-", stdin=text)
        with netns.inside(CLIENT):
            sock = socket.create_connection((NODE, http_port), timeout=10)
        with sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: ws.org\r\n" + UPGRADE + WEBSOCKET[0] + b"\r\n")
            peer, _ = listener.accept()
            with peer:
                peer.settimeout(10)
                assert b"upgrade: websocket" in peer.recv(65536).lower()
                peer.sendall(b"HTTP/1.1 101 Switching Protocols\r\n" + UPGRADE + WEBSOCKET[1] + b"\r\n")
                assert sock.recv(65536).startswith(b"HTTP/1.1 101")
                for _ in range(3):
                    sock.sendall(b"ping")
                    assert peer.recv(100) == b"ping"
                    peer.sendall(b"pong")
                    assert sock.recv(100) == b"pong"
    nsnet("delete", "ing", "ws")


def test_the_access_log(http_port: int) -> None:
    status("a.org", "/this-very-path", http_port)
    until(lambda: "/this-very-path" in nsnet("logs", "ingress"))


# --- changes (under load: test_way_in.py) -----------------------------------------------------------------------------


def test_a_new_pod_is_used_and_a_service_without_endpoints_answers_503(http_port: int) -> None:
    nsnet("scale", "deploy/b", "--replicas", "0")
    assert status("b.org", "/path", http_port) == "503"
    assert status("a.org", "/", http_port) == "200"
    nsnet("scale", "deploy/b", "--replicas", "2")
    until(lambda: status("b.org", "/path", http_port) == "200")


@pytest.mark.parametrize("victim", ["the master", "a worker", "the program"])
def test_what_is_killed_comes_back(victim: str, http_port: int) -> None:
    program = next(found.pid for found in process.running("web") if "nsnet.programs.ingress" in found.argv)
    master = next(pid for pid in pids("haproxy") if parent(pid) == program)
    worker = next(pid for pid in pids("haproxy") if parent(pid) == master)
    pid = {"the master": master, "a worker": worker, "the program": program}[victim]
    os.kill(pid, signal.SIGKILL)
    until(lambda: parent(pid) == 0)
    until(lambda: status("a.org", "/", http_port) == "200")
    assert program not in pids("haproxy")


def parent(pid: int) -> int:
    """The process that started it; 0 where it is no more, or a zombie."""
    try:
        state, above = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return 0
    return 0 if state == "Z" else int(above)


# --- what is wrong ----------------------------------------------------------------------------------------------------


def test_bad_objects_leave_the_others_alone(http_port: int) -> None:
    text = (
        ingress("gone", "gone.org", "/", "nobody")
        + ingress("misnamed", "misnamed.org", "/", "a", "{name: web}")
        + ingress("regex", "regex.org", "/(.*)", "a").replace("Prefix", "ImplementationSpecific")
    )
    nsnet("apply", "-f", "-", stdin=text)
    wanted = {"gone.org": "503", "misnamed.org": "503", "regex.org": "404", "a.org": "200"}
    assert {host: status(host, "/", http_port) for host in wanted} == wanted
    events = nsnet("events")
    for reason in ("ServiceNotFound", "PortNotFound", "LiteralPath"):
        assert reason in events
    for wrong in (ingress("port", "port.org:80", "/", "a"), ingress("path", "path.org", "path", "a")):
        nsnet("apply", "-f", "-", stdin=wrong, code=2)
    assert {host: status(host, "/", http_port) for host in wanted} == wanted
    nsnet("delete", "ing", "gone", "misnamed", "regex", code=None)


def test_a_thousand_hosts_and_ten_thousand_paths(http_port: int) -> None:
    docs = []
    for host in range(1000):
        paths = [
            {"path": f"/p{number}", "pathType": "Prefix", "backend": {"service": {"name": "a", "port": {"number": 80}}}}
            for number in range(10)
        ]
        rules = [{"host": f"h{host}.many.org", "http": {"paths": paths}}]
        meta = {"name": f"many-{host}"}
        docs.append(
            {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": meta, "spec": {"rules": rules}}
        )
    nsnet("apply", "-f", "-", stdin="\n---\n".join(json.dumps(doc) for doc in docs))
    assert [status("h999.many.org", path, http_port) for path in ("/p9/x", "/p10", "/")] == ["200", "404", "404"]
    assert status("a.org", "/", http_port) == "200"
