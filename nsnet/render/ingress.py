"""What runs in the pods of the proxy: HAProxy, and the files it reads, made of the route table.

    haproxy.cfg     one frontend per port, one backend per Service port, one server per ready endpoint
    N.hosts         host → virtual host (`*.foo.com` for what covers one label)      N counts the listeners that differ
    N.deep          `.foo.com` → virtual host, the longest first (what covers one label or more)
    N.exact         virtual host + path → backend, or a rule of haproxy.cfg
    N.prefix        the same for prefixes, which end in a slash; HAProxy finds the longest
    PORT.crts       certificate file → server names; certificates/NAMESPACE.NAME.pem

Most paths lead to one Service, and cost a line in a map: 10,000 of them are looked up as fast as ten. Only what asks
for more (headers, weights, redirects) is rules in haproxy.cfg. Everything that objects say is put in words that HAProxy
cannot take for its own: map lines of checked characters, quoted arguments; what cannot be said so is left out.

The configuration names its own hash, without the servers (`description`): by that the program that looks after HAProxy
(`nsnet.programs.ingress`) knows whether a new file is a reload or only other endpoints.

It has one thread: all nodes share this machine, and waking another processor for a request costs more than it gives
(one connection gets 14,000 requests a second with one thread, 3,000 to 14,000 with two: `scripts/bench ingress`).
"""

import hashlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping

from nsnet import model, names, routes
from nsnet.model import DEFAULT_CERTIFICATE, Key
from nsnet.render.view import View
from nsnet.routes.certificates import Broken, pem_of
from nsnet.routes.table import HTTP, HTTPS, Action, Backend, Chain, Forward, Frontend, Host, Redirect, Rule, VirtualHost
from nsnet.state import File, Process, Value

PROGRAM = "nsnet.programs.ingress"
GLOBAL = """\
# Written by nsnet from Ingress and Gateway objects; a change here lasts until the next look.
global
    description nsnet {digest}
    log stdout format raw local0 info
    stats socket {directory}/haproxy.stats mode 600 level admin expose-fd listeners
    uid "$NSNET_NOBODY"
    gid "$NSNET_NOBODY"
    nbthread 1
    maxconn 4000
    no strict-limits
    hard-stop-after 10m
    mworker-max-reloads 20
    tune.ssl.default-dh-param 2048
    ssl-default-bind-options ssl-min-ver TLSv1.2

defaults
    mode http
    log global
    balance roundrobin
    option idle-close-on-response
    option redispatch 1
    retries 3
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    timeout http-request 30s
    timeout http-keep-alive 60s
    timeout queue 5s
    timeout tunnel 1h
"""
LOG = (
    'log-format "%ci:%cp [%tr] %ft %b/%s %TR/%Tw/%Tc/%Tr/%Ta %ST %B %ts %ac/%fc/%bc/%sc/%rc'
    ' %{+Q}[var(txn.host)] %{+Q}r"'
)
SENTENCES = {404: "no route for this host and path", 500: "the route leads nowhere", 503: "the Service is not there"}
_HOST = re.compile(r"(\*\.)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_PATH = re.compile(r"/[!-~]*")
_NAME = re.compile(r"[-A-Za-z0-9_]+")
_PARAMETER = re.compile(r"[-A-Za-z0-9_.~]+")
_TEXT = re.compile(r"[ -~]*")
_IN_URL = re.compile(r"[-A-Za-z0-9._~/:@!&=+,;%]")


def render(view: View) -> Iterator[tuple[str, Iterable[Value]]]:
    pods = [pod for found in view.pods.values() for pod in found if pod.proxy]
    if not pods:
        return
    compiled = routes.compiled(view.objects)
    endpoints = routes.endpoints(view.objects, compiled.table.backends())
    pems = _pems(view.objects, compiled.table.frontends)
    for pod in pods:
        yield pod.netns, _in_pod(str(names.netns_run_dir(pod.netns)), compiled.table.frontends, endpoints, pems)


def addresses(objects: model.Objects) -> dict[str, str]:
    """Every host name that is served → the address of the proxy's Service; nothing as long as that has none."""
    service = objects.get(Key("Service", model.PROXY_NAMESPACE, model.PROXY))
    given = service.status.loadBalancer.ingress if isinstance(service, model.Service) else ()
    address = next((item.ip for item in given or () if item.ip), "")
    if not address:
        return {}
    hosts = {host.name for frontend in routes.compiled(objects).table.frontends for host in frontend.hosts}
    return {name: address for name in sorted(hosts) if _HOST.fullmatch(name) and not name.startswith("*")}


Endpoints = Mapping[Backend, tuple[tuple[str, int], ...]]


def _in_pod(
    directory: str, frontends: tuple[Frontend, ...], endpoints: Endpoints, pems: Mapping[Key, str]
) -> Iterator[Value]:
    files = configuration(directory, frontends, endpoints, pems)
    yield from (File(f"{directory}/{name}", content) for name, content in files.items())
    yield Process((sys.executable, "-m", PROGRAM, f"{directory}/haproxy.cfg"))


def _pems(objects: model.Objects, frontends: tuple[Frontend, ...]) -> dict[Key, str]:
    """The certificates that are used; a damaged default one (somebody wrote there) leaves port 443 closed."""
    found = {}
    for key in dict.fromkeys((DEFAULT_CERTIFICATE, *(item.secret for each in frontends for item in each.certificates))):
        try:
            found[key] = pem_of(objects[key])
        except (Broken, KeyError):
            continue
    return found


def configuration(
    directory: str, frontends: tuple[Frontend, ...], endpoints: Endpoints, pems: Mapping[Key, str]
) -> dict[str, str]:
    """File name → content, for a proxy that finds them in `directory`."""
    known = {frontend.port for frontend in frontends}
    missing = (Frontend(HTTP, tls=False, hosts={}), Frontend(HTTPS, tls=True, hosts={}))
    every = sorted((*frontends, *(item for item in missing if item.port not in known)), key=lambda item: item.port)
    files, spaces = {}, _Spaces()
    sections = []
    for frontend in every:
        space = spaces.of(frontend.hosts)
        if frontend.tls:
            files[f"{frontend.port}.crts"] = _certificate_list(directory, frontend, pems)
        if not frontend.tls or files[f"{frontend.port}.crts"]:
            sections.append("".join(f"{line}\n" for line in _frontend(directory, frontend, space)))
    for space in spaces.found:
        files |= space.files
    files |= {_certificate_file(key): pem for key, pem in pems.items()}
    body = "\n".join((*sections, f"backend none\n    {_reply(404)}\n"))
    shape = [GLOBAL, body, *map(str, sorted(endpoints)), *(f"{name}\n{files[name]}" for name in sorted(files))]
    digest = hashlib.sha256("\0".join(shape).encode()).hexdigest()[:16]
    head = GLOBAL.format(digest=digest, directory=directory)
    servers = "".join(f"\n{_backend(backend, addresses)}" for backend, addresses in sorted(endpoints.items()))
    return {"haproxy.cfg": f"{head}\n{body}{servers}", **files}


# --- hosts and paths as maps ------------------------------------------------------------------------------------------


class _Space:
    """The maps of one set of hosts, and the rules of what no map can say."""

    def __init__(self, number: int, hosts: Mapping[Host, VirtualHost]) -> None:
        self.number = number
        self.any = ""
        self.deep = False
        self.chains: dict[tuple[object, ...], str] = {}
        self.rules: dict[str, Chain] = {}
        self.files = self._files(hosts)

    def _files(self, hosts: Mapping[Host, VirtualHost]) -> dict[str, str]:
        named: dict[str, list[tuple[str, str]]] = {kind: [] for kind in ("hosts", "deep", "exact", "prefix")}
        speakable = (host for host in hosts if not host.name or _HOST.fullmatch(host.name))
        for number, host in enumerate(sorted(speakable)):
            self._name(host, f"h{number}", named)
            for kind, chains in (("exact", hosts[host].exacts), ("prefix", hosts[host].prefixes)):
                found = ((path, chain) for path, chain in chains.items() if _PATH.fullmatch(path))
                named[kind] += [(f"h{number}{path}", self._target(chain)) for path, chain in sorted(found, key=_path)]
        named["deep"].sort(key=lambda line: (-len(line[0]), line[0]))
        return {
            f"{self.number}.{kind}": "".join(f"{key} {value}\n" for key, value in lines)
            for kind, lines in named.items()
        }

    def has(self, kind: str, beginning: str = "") -> bool:
        """Is there a line that begins so? A map with nothing to find is not asked."""
        return any(line.startswith(beginning) for line in self.files[f"{self.number}.{kind}"].splitlines())

    def _name(self, host: Host, virtual: str, named: dict[str, list[tuple[str, str]]]) -> None:
        if not host.name:
            self.any = virtual
        elif host.deep:
            self.deep = True
            named["deep"].append((host.name.removeprefix("*"), virtual))
        else:
            named["hosts"].append((host.name, virtual))

    def _target(self, chain: Chain) -> str:
        """The backend itself where that is all there is to say, else the name of a rule."""
        plain = _plain(chain)
        if plain is not None:
            return _section(plain)
        said = tuple((rule.match.method, rule.match.headers, rule.match.query, rule.action) for rule in chain)
        name = self.chains.setdefault(said, f"rule{len(self.chains)}")
        self.rules.setdefault(name, chain)
        return name


class _Spaces:
    """One space for all frontends that have the very same hosts."""

    def __init__(self) -> None:
        self.found: list[_Space] = []
        self.known: list[Mapping[Host, VirtualHost]] = []

    def of(self, hosts: Mapping[Host, VirtualHost]) -> _Space:
        number = next((at for at, item in enumerate(self.known) if item is hosts), -1)
        if number < 0:
            number = len(self.known)
            self.known.append(hosts)
            self.found.append(_Space(number, hosts))
        return self.found[number]


def _path(item: tuple[str, Chain]) -> str:
    return item[0]


def _plain(chain: Chain) -> Backend | None:
    """The one backend of a chain that asks nothing and changes nothing."""
    first = chain[0]
    action = first.action
    if first.match.conditional or not isinstance(action, Forward) or action.set or action.add or action.remove:
        return None
    return action.shares[0].backend if len(action.shares) == 1 else None


def _section(backend: Backend) -> str:
    return f"{backend.namespace}:{backend.service}:{backend.port}"


# --- one port ---------------------------------------------------------------------------------------------------------


def _frontend(directory: str, frontend: Frontend, space: _Space) -> Iterator[str]:
    base = f"{directory}/{space.number}"
    scheme = "https" if frontend.tls else "http"
    yield f"frontend {scheme}-{frontend.port}"
    tls = f" ssl crt-list {directory}/{frontend.port}.crts alpn h2,http/1.1" if frontend.tls else ""
    yield f"    bind :{frontend.port}{tls}"
    yield f"    {LOG}"
    yield "    http-request set-var(txn.host) req.hdr(host),host_only,lower"
    yield "    http-request set-var(txn.path) path"
    yield from (f"    http-request {line}" for line in _lookup(base, space))
    yield "    http-request set-header X-Forwarded-For %[src]"
    yield f"    http-request set-header X-Forwarded-Proto {scheme}"
    yield "    http-request set-header X-Forwarded-Host %[req.hdr(host)]"
    yield f"    http-request set-header X-Forwarded-Port {frontend.port}"
    for line in _rules(space, frontend):
        yield f"    {line}"
    yield "    use_backend %[var(txn.to)]"
    yield "    default_backend none"


def _lookup(base: str, space: _Space) -> Iterator[str]:
    """From host and path to `txn.to`; what is not found is left to the backend `none`. Every request pays each line."""
    host, found = f"var(txn.host),map_str({base}.hosts)", f"map_beg({base}.prefix)"
    if not (space.has("hosts", "*.") or space.deep or space.any or space.has("exact")):
        yield f"set-var(txn.to) {host},concat(,txn.path,/),{found}"
        return
    missing, unset = (f"if !{{ var(txn.{name}) -m found }}" for name in ("at", "to"))
    yield f"set-var(txn.at) {host}"
    if space.has("hosts", "*."):
        yield f"set-var(txn.at) var(txn.host),regsub(^[^.]*,*),map_str({base}.hosts) {missing}"
    if space.deep:
        yield f"set-var(txn.at) var(txn.host),map_end({base}.deep) {missing}"
    if space.any:
        yield f"set-var(txn.at) str({space.any}) {missing}"
    if space.has("exact"):
        yield f"set-var(txn.to) var(txn.at),concat(,txn.path),map_str({base}.exact)"
    yield f"set-var(txn.to) var(txn.at),concat(,txn.path,/),{found} {unset}"


def _reply(status: int) -> str:
    return f'http-request return status {status} content-type text/plain string "{SENTENCES[status]}\\n"'


# --- what no map can say ----------------------------------------------------------------------------------------------


def _rules(space: _Space, frontend: Frontend) -> Iterator[str]:
    """For each chain the first action whose conditions hold; then what each action does."""
    actions: dict[Action, str] = {}
    for name, chain in space.rules.items():
        for rule in chain:
            conditions = _conditions(rule)
            if conditions is not None:
                number = actions.setdefault(rule.action, f"action{len(actions)}")
                yield f"http-request set-var(txn.to) str({number}) if {_is(name)}{conditions}"
        yield f"{_reply(404)} if {_is(name)}"
    for action, number in actions.items():
        yield from _action(action, number, frontend)


def _is(name: str) -> str:
    return f"{{ var(txn.to) -m str {name} }}"


def _conditions(rule: Rule) -> str | None:
    """As ACLs; None where a name in them cannot be said, so that no request can have it."""
    match = rule.match
    if not all(_NAME.fullmatch(name) for name, _ in match.headers):
        return None
    if not all(_PARAMETER.fullmatch(name) for name, _ in match.query):
        return None
    if not all(_TEXT.fullmatch(value) for _, value in (*match.headers, *match.query)):
        return None
    found = [f"method -m str {match.method}"] if _NAME.fullmatch(match.method) else []
    found += [f"req.fhdr({name}) -m str -- {quoted(value)}" for name, value in match.headers]
    found += [f"url_param({name}) -m str -- {quoted(value)}" for name, value in match.query]
    return "".join(f" {{ {condition} }}" for condition in found)


def quoted(text: str) -> str:
    """One argument of HAProxy's configuration, whatever is in it: strong quotes, and a quote itself by a backslash."""
    return "'" + text.replace("'", "'\\''") + "'"


def _format(text: str) -> str:
    """The same where HAProxy would read `%[…]` in it."""
    return quoted(text.replace("%", "%%"))


def _action(action: Action, number: str, frontend: Frontend) -> Iterator[str]:
    match action:
        case Forward():
            yield from _forward(action, number)
        case Redirect():
            yield from _redirect(action, number, frontend)
        case _:
            yield f"{_reply(action.status)} if {_is(number)}"


def _forward(action: Forward, number: str) -> Iterator[str]:
    """Headers first: after that the name stands for the backend that the dice chose."""
    for verb, pairs in (("set-header", action.set), ("add-header", action.add)):
        for name, value in pairs:
            if _NAME.fullmatch(name) and _TEXT.fullmatch(value):
                yield f"http-request {verb} {name} {_format(value)} if {_is(number)}"
    for name in action.remove:
        if _NAME.fullmatch(name):
            yield f"http-request del-header {name} if {_is(number)}"
    total, below = sum(share.weight for share in action.shares), 0
    if len(action.shares) > 1:
        yield f"http-request set-var(txn.dice) rand({total}) if {_is(number)}"
    for share in action.shares:
        below += share.weight
        dice = f" {{ var(txn.dice) -m int lt {below} }}" if below < total else ""
        if share.backend is None:
            yield f"{_reply(share.status)} if {_is(number)}{dice}"
        else:
            yield f"http-request set-var(txn.to) str({_section(share.backend)}) if {_is(number)}{dice}"


def _redirect(action: Redirect, number: str, frontend: Frontend) -> Iterator[str]:
    """What the redirect does not say is the request's own; a port that the scheme implies is left out."""
    own = "https" if frontend.tls else "http"
    scheme = action.scheme if action.scheme in {"http", "https"} else own
    port = action.port or ({"http": HTTP, "https": HTTPS}[scheme] if action.scheme else frontend.port)
    shown = "" if port == {"http": HTTP, "https": HTTPS}[scheme] else f":{port}"
    host = _plain_format(action.hostname) if _HOST.fullmatch(action.hostname) else "%[var(txn.host)]"
    path = "%[path]"
    if action.prefix:
        yield f"http-request set-var(txn.rest) path,bytes({len(action.prefix.rstrip('/'))}) if {_is(number)}"
        path = _plain_format(action.path.rstrip("/")) + "%[var(txn.rest)]"
    elif action.path:
        path = _plain_format(action.path)
    yield f'http-request set-var-fmt(txn.query) "?%[query]" if {_is(number)} {{ query -m found }}'
    location = f'"{scheme}://{host}{shown}{path}%[var(txn.query)]"'
    yield f"http-request redirect location {location} code {action.status} if {_is(number)}"


def _plain_format(text: str) -> str:
    """Inside double quotes: what HAProxy or its quotes would read is percent-encoded, as a URL may have it."""
    said = "".join(
        letter if _IN_URL.fullmatch(letter) else "".join(f"%{byte:02X}" for byte in letter.encode()) for letter in text
    )
    return said.replace("%", "%%")


# --- certificates and backends ----------------------------------------------------------------------------------------


def _certificate_file(secret: Key) -> str:
    return f"certificates/{secret.namespace}.{secret.name}.pem"


def _certificate_list(directory: str, frontend: Frontend, pems: Mapping[Key, str]) -> str:
    """What is shown for each name. The first line is for names that no line has."""
    first: list[str] = []
    rest: dict[str, str] = {}
    for host, secret in frontend.certificates:
        path = f"{directory}/{_certificate_file(secret)}"
        if secret in pems and not host:
            first.append(path)
        elif secret in pems and _HOST.fullmatch(host):
            rest.setdefault(host, path)
    if DEFAULT_CERTIFICATE in pems:
        first.append(f"{directory}/{_certificate_file(DEFAULT_CERTIFICATE)}")
    if not first:
        first = list(dict.fromkeys(rest.values()))[:1]
    return "".join(f"{path}\n" for path in first[:1]) + "".join(f"{path} {host}\n" for host, path in rest.items())


def _backend(backend: Backend, addresses: tuple[tuple[str, int], ...]) -> str:
    lines = [f"backend {_section(backend)}"]
    lines += [f"    server {ip}:{port} {ip}:{port}" for ip, port in addresses]
    return "".join(f"{line}\n" for line in lines)
