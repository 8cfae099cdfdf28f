"""What a bundle must not hold: by its place in an object, by what the objects know, by its look."""

import base64
from typing import Any

import pytest

from nsnet.cli import redact

KEY = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIB\n-----END EC PRIVATE KEY-----"
CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----"


def coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


SECRET: dict[str, Any] = {
    "kind": "Secret",
    "metadata": {"name": "tls", "annotations": {redact.LAST_APPLIED: '{"data": "c2VjcmV0"}', "note": "kept"}},
    "type": "kubernetes.io/tls",
    "data": {"tls.key": coded(KEY), "tls.crt": coded(CERTIFICATE), "user": coded("root")},
    "stringData": {"password": "correct horse"},
}
POD: dict[str, Any] = {
    "kind": "Pod",
    "spec": {"containers": [{"name": "c", "env": [
        {"name": "API_TOKEN", "value": "t0ken-of-the-pod"},
        {"name": "LEVEL", "value": "debug"},
        {"name": "DB_PASSWORD", "valueFrom": {"secretKeyRef": {"name": "tls", "key": "password"}}},
    ]}]},
}  # fmt: skip

CLUSTER: dict[str, Any] = {
    "kind": "Cluster",
    "flannel": {"Backend": {"Type": "wireguard", "PSK": "J7Jc4rRMIpRe4TqSv+1l6cX0OqQF0q2SBzW2i2mTzOc="}},
}


def test_objects_lose_their_secrets_and_nothing_else() -> None:
    hidden = redact.REDACTED
    assert redact.document(SECRET) == {
        "kind": "Secret",
        "metadata": {"name": "tls", "annotations": {redact.LAST_APPLIED: hidden, "note": "kept"}},
        "type": "kubernetes.io/tls",
        "data": {"tls.key": hidden, "tls.crt": hidden, "user": hidden},
        "stringData": {"password": hidden},
    }
    assert [item.get("value") for item in redact.document(POD)["spec"]["containers"][0]["env"]] == [
        hidden, "debug", None,
    ]  # fmt: skip
    assert redact.document(CLUSTER)["flannel"]["Backend"] == {"Type": "wireguard", "PSK": hidden}
    assert redact.document({"kind": "Service", "spec": {"ports": [{"name": "http", "port": 80}]}}) == {
        "kind": "Service",
        "spec": {"ports": [{"name": "http", "port": 80}]},
    }


TEXTS = [
    ("GET /?p=correct%20horse", "GET /?p=[redacted]"),
    (f"read {coded('correct horse')} from the store", "read [redacted] from the store"),
    ("argv: --with t0ken-of-the-pod --level debug", "argv: --with [redacted] --level debug"),
    (f"pem:\n{KEY}\n{CERTIFICATE}", f"pem:\n[redacted]\n{CERTIFICATE}"),
    ("-----BEGIN PRIVATE KEY-----\ncut sho", "[redacted]"),
    ("Authorization: Bearer eyJh.eyJz.x_-y", "Authorization: Bearer [redacted]"),
    (
        "the page is at http://127.0.0.1:8000/?token=abc123&x=1",
        "the page is at http://127.0.0.1:8000/?token=[redacted]&x=1",
    ),
    ("etcd at https://root:hunter2@192.0.2.1:2379", "etcd at https://[redacted]@192.0.2.1:2379"),
    ("peer PSK J7Jc4rRMIpRe4TqSv+1l6cX0OqQF0q2SBzW2i2mTzOc= set", "peer PSK [redacted] set"),
    ("root of the tree", "root of the tree"),  # a value of four letters is found everywhere
    ('-A KUBE-SVC-X -m comment --comment "default/web"', '-A KUBE-SVC-X -m comment --comment "default/web"'),
]


@pytest.mark.parametrize(("said", "kept"), TEXTS)
def test_texts_lose_what_the_objects_know_and_what_looks_secret(said: str, kept: str) -> None:
    assert redact.text(said, redact.secrets([SECRET, POD, CLUSTER])) == kept


def test_bytes_with_a_secret_are_not_clean() -> None:
    known = redact.secrets([POD])
    assert redact.is_clean(b"\x00GET /hostname", known)
    assert not redact.is_clean(b"\x00t0ken-of-the-pod\xff", known)
