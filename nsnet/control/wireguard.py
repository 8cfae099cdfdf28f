"""WireGuard's keys: one for each node, drawn once and kept in a Secret that goes with its Node.

A key that anyone could compute would be none: where there is something to draw from (`Facts.entropy`) it is drawn, so
`plan` of a cluster that is not up shows other keys than its `up` will have. A Secret under that name that a manifest
brings is taken.
"""

import base64
import hashlib

from nsnet.control.table import Table, of, owner, put
from nsnet.errors import ObjectError
from nsnet.model import Cluster, Key, Node, ObjectMeta, Other, wireguard_key, wireguard_secret


def public_keys(table: Table, cluster: Cluster, entropy: bytes) -> dict[str, str]:
    """Node → its public key in base64; none where the backend is another one. Raises ObjectError for what is no key."""
    assert isinstance(cluster.nodes, tuple)
    if cluster.flannel.Backend.kind != "wireguard":
        return {}
    for entry in cluster.nodes:
        if wireguard_secret(entry.name) not in table["Secret"]:
            _draw(table, cluster, entry.name, entropy)
    return {entry.name: _public(table["Secret"][wireguard_secret(entry.name)]) for entry in cluster.nodes}


def _draw(table: Table, cluster: Cluster, node: str, entropy: bytes) -> None:
    key = wireguard_secret(node)
    private = hashlib.sha256(entropy + f"{cluster.metadata.name}/{node}".encode()).digest()
    of_node = owner(of(table, Node).get(Key("Node", "", node)) or Node(ObjectMeta(name=node)))
    meta = ObjectMeta(name=key.name, namespace=key.namespace, ownerReferences=(of_node,))
    data = {"wgkey": base64.b64encode(base64.b64encode(private) + b"\n").decode()}
    put(table, Other(meta, "Secret", {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "data": data}))


def _public(secret: Other) -> str:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    try:
        private = X25519PrivateKey.from_private_bytes(base64.b64decode(wireguard_key(secret)))
    except ValueError:
        key = Key("Secret", secret.metadata.namespace, secret.metadata.name)
        hint = "what `wg genkey | base64` prints, or leave the Secret out: nsnet draws a key"
        raise ObjectError(key, "data.wgkey", "is not a private key of WireGuard's", hint) from None
    return base64.b64encode(private.public_key().public_bytes_raw()).decode()
