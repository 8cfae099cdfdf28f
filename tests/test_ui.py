"""The page's door and what goes through it, without a kernel: who is let in, what is served, how news reach readers."""

import json
import threading
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection
from itertools import islice
from pathlib import Path

import pytest

from nsnet.cli.page import asked, browser
from nsnet.cli.page.feed import Feed
from nsnet.cli.page.server import FILES, Server
from nsnet.errors import InputError


@pytest.fixture
def server() -> Iterator[Server]:
    with Server("demo", Feed()) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def said(server: Server, verb: str, path: str, headers: Mapping[str, str]) -> tuple[int, dict[str, str], bytes]:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=5)
    here = f"127.0.0.1:{server.port}"
    own = {"cookie": f"nsnet-ui-{server.port}={server.secret}", "here": here, "token": server.token}
    connection.request(verb, path.format(**own), headers={k: v.format(**own) for k, v in headers.items()})
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


KNOWN = {"Cookie": "{cookie}"}
DOOR = [
    ("the page", "GET", "/", KNOWN, 200),
    ("its script", "GET", "/page.js", KNOWN, 200),
    ("by the other name, as through ssh -L", "GET", "/", {**KNOWN, "Host": "localhost:9000"}, 200),
    ("its own request", "GET", "/", {**KNOWN, "Origin": "http://{here}"}, 200),
    ("no cookie", "GET", "/", {}, 403),
    ("no cookie, no feed", "GET", "/feed", {}, 403),
    ("a wrong cookie", "GET", "/", {"Cookie": "{cookie}x"}, 403),
    ("a cookie that is none", "GET", "/", {"Cookie": 'a="; b=,;'}, 403),
    ("a wrong token", "GET", "/?token={token}x", {}, 403),
    ("a token elsewhere", "GET", "/page.js?token={token}", {}, 403),
    ("a name that was pointed here", "GET", "/", {**KNOWN, "Host": "evil.example:80"}, 403),
    ("no name", "GET", "/", {**KNOWN, "Host": ""}, 403),
    ("the token, by such a name", "GET", "/?token={token}", {"Host": "evil.example"}, 403),
    ("another page", "GET", "/way?from=a&to=b", {**KNOWN, "Origin": "http://evil.example"}, 403),
    ("another page of this machine", "POST", "/packet?from=a&to=b", {**KNOWN, "Origin": "http://127.0.0.1:1"}, 403),
    ("a page that does not say", "POST", "/packet?from=a&to=b", KNOWN, 403),
    ("a packet by GET", "GET", "/packet?from=a&to=b", KNOWN, 404),
    ("the page by POST", "POST", "/", {**KNOWN, "Origin": "http://{here}"}, 404),
    ("a file beside", "GET", "/../schema.json", KNOWN, 404),
    ("a file anywhere", "GET", "/%2e%2e/%2e%2e/etc/passwd", KNOWN, 404),
    ("another verb", "DELETE", "/", KNOWN, 501),
    ("a length that is no number", "GET", "/", {"Content-Length": "x"}, 400),
    ("a path that is no path", "GET", "http://[", {"Host": "{here}"}, 400),
    ("a name that is no name", "GET", "/", {"Host": "["}, 400),
]  # fmt: skip


@pytest.mark.parametrize(("verb", "path", "headers", "status"), [row[1:] for row in DOOR], ids=[row[0] for row in DOOR])
def test_who_is_let_in(
    server: Server, verb: str, path: str, headers: dict[str, str], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is asked, nothing is printed over the address on the terminal."""
    assert said(server, verb, path, headers)[0] == status
    assert capsys.readouterr() == ("", "")


def test_a_browser_that_cannot_be_opened_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opener = tmp_path / browser.OPENER
    opener.write_text("#!/bin/sh\n")
    opener.chmod(0o700)
    for name, value in {"PATH": str(tmp_path), "DISPLAY": ":0", "SUDO_USER": "nobody"}.items():
        monkeypatch.setenv(name, value)
    for uid in ("0", "me", "9" * 40):  # with "0" runuser is not in PATH
        monkeypatch.setenv("SUDO_UID", uid)
        with browser.opened("http://127.0.0.1:1/"):
            pass


def test_the_token_becomes_a_cookie(server: Server) -> None:
    status, headers, _ = said(server, "GET", server.url.removeprefix(f"http://127.0.0.1:{server.port}"), {})
    assert (status, headers["Location"]) == (303, "/")
    cookie, *marks = headers["Set-Cookie"].split("; ")
    assert marks == ["Path=/", "HttpOnly", "SameSite=Strict"]
    assert said(server, "GET", "/", {"Cookie": f"other=1; {cookie}"})[0] == 200
    assert server.token not in cookie


def test_every_answer_forbids_what_the_page_does_not_need(server: Server) -> None:
    for path in ("/", "/nowhere"):
        headers = said(server, "GET", path, KNOWN)[1]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in headers["Content-Security-Policy"]
        assert headers["Cache-Control"] == "no-store"


def test_the_page_asks_for_nothing_of_elsewhere_and_sets_no_markup(server: Server) -> None:
    for path in FILES:
        text = said(server, "GET", path, KNOWN)[2].decode()
        assert text.replace("http://www.w3.org/2000/svg", "").count("http") == 0
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("):
            assert word not in text


def test_readers_get_all_there_is_and_then_what_is_new() -> None:
    feed = Feed()
    feed.put("picture", {"nodes": 1})
    feed.put("health", {"drift": 0})
    reader = feed.follow()
    assert dict(islice(reader, 2)) == {"picture": b'{"nodes":1}', "health": b'{"drift":0}'}
    feed.put("picture", {"nodes": 1})
    feed.put("health", {"drift": 2})
    assert next(reader) == ("health", b'{"drift":2}')


def test_nothing_is_done_while_nobody_reads() -> None:
    feed = Feed()
    worked = threading.Event()

    def work() -> None:
        feed.need_reader()
        feed.put("picture", {})
        worked.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert not worked.wait(0.05)
    assert next(feed.follow()) == ("picture", b"{}")
    thread.join()


def test_the_feed_is_server_sent_events(server: Server) -> None:
    server.feed.put("there", {"cluster": "demo"})
    connection = HTTPConnection("127.0.0.1", server.port, timeout=5)
    connection.request("GET", "/feed", headers={"Cookie": f"nsnet-ui-{server.port}={server.secret}"})
    answer = connection.getresponse()
    assert answer.getheader("Content-Type") == "text/event-stream"
    assert [answer.readline() for _ in range(3)] == [b"event: there\n", b'data: {"cluster":"demo"}\n', b"\n"]
    connection.close()


def test_a_question_that_is_wrong_is_answered_with_a_hint(server: Server) -> None:
    status, headers, body = said(server, "GET", "/way?from=&to=svc/web", KNOWN)
    assert (status, headers["Content-Type"]) == (400, "application/json")
    assert json.loads(body) == {"error": "a way has two ends", "hint": "FROM and TO"}
    with pytest.raises(InputError, match='"sctp" is no protocol'):
        asked.way("demo", "pod/a", "svc/web", "sctp", send=False)
