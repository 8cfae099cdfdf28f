"""Ingress, and the Gateway API's GatewayClass, Gateway, HTTPRoute and ReferenceGrant.

Source: Kubernetes `pkg/apis/networking/validation`; of the Gateway API, whose OpenAPI is not Kubernetes' own, the
markers of its types (`apis/v1/*.go`). Their fields are the structs in `model`.
"""

import re

from nsnet.manifests.common import selector, unique
from nsnet.manifests.forms import (
    address_of,
    dns_label,
    dns_subdomain,
    hostname,
    one_of,
    port,
    port_name,
    within,
)
from nsnet.manifests.problems import At
from nsnet.manifests.reading import shown

NOT_IN_PATHS = ("//", "/./", "/../", "%2f", "%2F")
NOT_AT_THE_END = ("/..", "/.")
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
FILTERS = (
    "RequestHeaderModifier", "ResponseHeaderModifier", "RequestMirror", "RequestRedirect", "URLRewrite",
    "ExtensionRef", "CORS", "ExternalAuth",
)  # fmt: skip
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+\-.^_`|~]{1,256}")
_CONTROLLER = re.compile(
    r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/[A-Za-z0-9/\-._~%!$&'()*+,;=:]+"
)


# --- Ingress ----------------------------------------------------------------------------------------------------------


def ingress(doc: At) -> None:
    spec = doc["spec"]
    if not spec["rules"].value and not spec["defaultBackend"].value:
        spec.wrong("has neither rules nor a defaultBackend", "add one of the two")
    backend(spec["defaultBackend"])
    dns_subdomain(_said(spec["ingressClassName"]))
    for rule in spec["rules"].each():
        host(rule["host"])
        for item in rule["http"]["paths"].each():
            one_of(item["pathType"], ("Exact", "Prefix", "ImplementationSpecific"))
            ingress_path(item)
            backend(item["backend"])
    for item in spec["tls"].each():
        for name in item["hosts"].each():
            host(name)


def _said(at: At) -> At:
    return At(at.value or None, at.path, at.found)


def host(at: At) -> None:
    """A DNS name, or `*.` and one; never an address, never with a port."""
    name, colon, number = (at.value or "").rpartition(":")
    if colon and number.isdecimal():
        at.wrong(f'"{shown(at.value)}" has a port; a host has none', f"write {shown(name)}")
    elif at.value and address_of(at.value.strip("[]")) is not None:
        at.wrong(f'"{shown(at.value)}" is an address; a host is a name', "leave `host:` out to serve every name")
    else:
        hostname(at)


def ingress_path(item: At) -> None:
    """ImplementationSpecific is whatever a controller makes of it; the other two are paths."""
    path = item["path"].value
    if item["pathType"].value == "ImplementationSpecific" and not path:
        return
    if not path:
        item["path"].wrong("is missing; pathType Exact and Prefix need it", "write path: /")
    elif not path.startswith("/"):
        if item["pathType"].value != "ImplementationSpecific":
            item["path"].wrong(f'"{shown(path)}" does not begin with /', f"write /{shown(path)}")
    elif item["pathType"].value != "ImplementationSpecific":
        absolute_path(item["path"])


def absolute_path(at: At) -> None:
    strange = next((part for part in NOT_IN_PATHS if part in at.value), None)
    ending = next((part for part in NOT_AT_THE_END if at.value.endswith(part)), None)
    if strange or ending:
        where = f"has {strange} in it" if strange else f"ends in {ending}"
        at.wrong(
            f'"{shown(at.value)}" {where}', "write the path as a browser sends it, without . and .. and empty parts"
        )


def backend(at: At) -> None:
    if at.value is None:
        return
    if bool(at["service"].value) == bool(at["resource"].value):
        at.wrong("names a service or a resource, one of the two", "add `service:` with a name and a port")
    number, name = at["service"]["port"]["number"], at["service"]["port"]["name"]
    port(number)
    port_name(name)
    if at["service"].value and (number.value is None) == (not name.value):
        at["service"]["port"].wrong("has a number or a name, one of the two", "as port: {number: 80}")


# --- Gateway API ------------------------------------------------------------------------------------------------------


def gateway_class(doc: At) -> None:
    name = doc["spec"]["controllerName"]
    if name.value and not _CONTROLLER.fullmatch(name.value):
        name.wrong(f'"{shown(name.value)}" is not the name of a controller', "a DNS name and a path, as nsnet/gateway")


def gateway(doc: At) -> None:
    dns_subdomain(doc["spec"]["gatewayClassName"])
    listeners = doc["spec"]["listeners"]
    if not listeners.value:
        listeners.wrong("is missing; a Gateway has at least one listener", "as {name: http, port: 80, protocol: HTTP}")
    unique(listeners, "name")
    for item in listeners.each():
        dns_subdomain(item["name"])
        port(item["port"])
        host(item["hostname"])
        _listener_protocol(item)
        spaces = item["allowedRoutes"]["namespaces"]
        one_of(spaces["from"], ("All", "Same", "Selector", "None"))
        selector(spaces["selector"])
        if spaces["from"].value == "Selector" and spaces["selector"].value is None:
            spaces["selector"].wrong("is missing; from: Selector needs it", "add `selector: {matchLabels: …}`")


def _listener_protocol(item: At) -> None:
    protocol, tls = item["protocol"], item["tls"]
    one_of(tls["mode"], ("Terminate", "Passthrough"))
    if protocol.value == "HTTP" and tls.value is not None:
        tls.wrong("does not go with protocol HTTP", "write protocol: HTTPS, or leave tls out")
    for reference in tls["certificateRefs"].each():
        dns_subdomain(reference["name"])


def http_route(doc: At) -> None:
    spec = doc["spec"]
    for parent in spec["parentRefs"].each():
        dns_subdomain(parent["name"])
        dns_label(parent["namespace"])
        port(parent["port"])
    for name in spec["hostnames"].each():
        host(name)
    for rule in spec["rules"].each():
        for match in rule["matches"].each():
            route_match(match)
        for item in rule["filters"].each():
            route_filter(item)
        for reference in rule["backendRefs"].each():
            backend_reference(reference)
        _redirect_or_backend(rule)


def route_match(at: At) -> None:
    kind, path = at["path"]["type"], at["path"]["value"]
    one_of(kind, ("Exact", "PathPrefix", "RegularExpression"))
    if path.value and kind.value != "RegularExpression":
        if not path.value.startswith("/"):
            path.wrong(f'"{shown(path.value)}" does not begin with /', f"write /{shown(path.value)}")
        else:
            absolute_path(path)
    one_of(at["method"], METHODS)
    for item in at["headers"].each():
        one_of(item["type"], ("Exact", "RegularExpression"))
        header_name(item["name"])
    for item in at["queryParams"].each():
        one_of(item["type"], ("Exact", "RegularExpression"))


def header_name(at: At) -> None:
    if at.value is not None and not _HEADER.fullmatch(at.value):
        at.wrong(f'"{shown(at.value)}" is not the name of a header', "letters, digits and -, as X-Version")


def route_filter(at: At) -> None:
    one_of(at["type"], FILTERS)
    kind = at["type"].value or ""
    field = (
        kind[:1].lower() + kind[1:] if kind not in {"CORS", "URLRewrite"} else {"CORS": "cors"}.get(kind, "urlRewrite")
    )
    if kind in FILTERS and at[field].value is None:
        at[field].wrong(f"is missing; a filter of type {kind} needs it", f"add `{field}:`")
    changes = at["requestHeaderModifier"]
    for item in (*changes["set"].each(), *changes["add"].each()):
        header_name(item["name"])
    for name in changes["remove"].each():
        header_name(name)
    redirect = at["requestRedirect"]
    one_of(redirect["scheme"], ("http", "https"))
    host(redirect["hostname"])
    port(redirect["port"])
    code = redirect["statusCode"]
    if code.value is not None and code.value not in {301, 302, 303, 307, 308}:
        code.wrong(f"{code.value} is no redirect", "one of 301, 302, 303, 307, 308")


def backend_reference(at: At) -> None:
    dns_subdomain(at["name"])
    dns_label(at["namespace"])
    port(at["port"])
    within(at["weight"], 0, 1_000_000)
    if (at["kind"].value or "Service") == "Service" and not at["group"].value and at["port"].value is None:
        at["port"].wrong("is missing; a Service needs it", "add `port:` with the Service's port")


def _redirect_or_backend(rule: At) -> None:
    redirects = [item for item in rule["filters"].each() if item["type"].value == "RequestRedirect"]
    if redirects and rule["backendRefs"].value:
        rule["backendRefs"].wrong("does not go with a RequestRedirect", "a redirect is answered by the proxy itself")


def reference_grant(doc: At) -> None:
    for name in ("from", "to"):
        if not doc["spec"][name].value:
            doc["spec"][name].wrong("is missing; a ReferenceGrant says from whom and to what", f"add `{name}:`")
