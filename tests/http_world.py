"""Objects for tests of Ingress and Gateway API, written as rows, and the routes that come of them."""

from collections.abc import Iterable
from typing import Any

import yaml

from nsnet import model
from nsnet.model import Key, Object
from nsnet.routes import Compiled
from nsnet.routes.table import Forward, Redirect, Reply, Routed, route


def objects(*parts: Object | Iterable[Object] | str) -> dict[Key, Object]:
    """Objects by key; text is YAML. What has no namespace is in default."""
    found: list[Object] = []
    for part in parts:
        if isinstance(part, str):
            found += [model.from_doc(_placed(doc)) for doc in yaml.safe_load_all(part) if doc]
        elif isinstance(part, Iterable):
            found += part
        else:
            found.append(part)
    return model.by_key(found)


def _placed(doc: dict[str, Any]) -> dict[str, Any]:
    meta = doc["metadata"]
    if doc["kind"] in model.CLUSTER_SCOPED or "namespace" in meta:
        return doc
    return {**doc, "metadata": {"namespace": "default", **meta}}


def services(*names: str) -> list[Object]:
    """`web` has port 80, `web:8080` that one; `other/web` is in namespace other."""
    found: list[Object] = []
    for name in names:
        where, _, rest = name.rpartition("/")
        called, _, port = rest.partition(":")
        meta = model.ObjectMeta(name=called, namespace=where or "default")
        spec = model.ServiceSpec(selector={"app": called}, ports=(model.ServicePort(int(port or 80), "http"),))
        found.append(model.Service(meta, spec))
    return found


def ingress(name: str, rows: str = "", *, default: str = "", age: str = "", **spec: Any) -> Object:
    """Rows are `HOST PATH TYPE SERVICE[:PORT]`; `-` is no host, or no path."""
    rules: list[dict[str, Any]] = []
    for row in rows.strip().splitlines():
        host, path, kind, backend = row.split()
        item = {"pathType": kind, "backend": _backend(backend), **({} if path == "-" else {"path": path})}
        rules.append({"http": {"paths": [item]}, **({} if host == "-" else {"host": host})})
    doc: dict[str, Any] = {"kind": "Ingress", "metadata": {"name": name, "namespace": "default"}}
    if age:
        doc["metadata"]["creationTimestamp"] = age
    doc["spec"] = {"rules": rules, **spec, **({"defaultBackend": _backend(default)} if default else {})}
    return model.from_doc(doc)


def _backend(text: str) -> dict[str, Any]:
    name, _, port = text.partition(":")
    number = {"name": port} if port and not port.isdecimal() else {"number": int(port or 80)}
    return {"service": {"name": name, "port": number}}


def endpoints(service: str, *addresses: str, port: int = 8080, namespace: str = "default") -> Object:
    """A slice of ready endpoints."""
    meta = model.ObjectMeta(name=f"{service}-1", namespace=namespace, labels={"kubernetes.io/service-name": service})
    ports = (model.EndpointPort(port, "http", "TCP"),)
    return model.EndpointSlice(meta, endpoints=tuple(model.Endpoint((address,)) for address in addresses), ports=ports)


def said(routed: Routed) -> str:
    """`web`, `web 9 other 1`, `301 https://…`, `404`: what a row of a table says."""
    match routed.action:
        case Forward(shares):
            named = [share.backend.service if share.backend else str(share.status) for share in shares]
            if len(shares) == 1:
                return named[0]
            return " ".join(f"{name} {share.weight}" for name, share in zip(named, shares, strict=True))
        case Redirect(status, scheme, hostname, port, path):
            return f"{status} {scheme or '-'}://{hostname or '-'}{f':{port}' if port else ''}{path}"
        case Reply(status):
            return str(status)
    raise AssertionError(routed)


def answer(compiled: Compiled, host: str, path: str, headers: dict[str, str] | None = None, **more: Any) -> str:
    return said(route(compiled.table, host, path, headers, **more))
