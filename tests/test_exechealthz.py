"""exechealthz without its port: flags, texts and codes as in the original, and commands that fail, hang and flood."""

import asyncio
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from nsnet.programs import exechealthz, web
from nsnet.programs.exechealthz import OUTPUT, Probe, Result, Settings, health, pages, run, seconds, settings_of, work

SETTINGS = Settings((("true", "/healthz"),), quiet=True)
START = 1479808923.25  # 2016-11-22 10:02:03.25 UTC


AT = "2016-11-22 10:02:03.25 +0000 UTC"
B_ERROR = f"Healthz probe on /b error: Result of last exec: , at {AT}, error exit status 2"
LINKS = (
    "<b> Kubernetes healthz sidecar container </b><br/><br/>"
    '<a href="/healthz">/healthz: healthz probe. Returns "ok" if the command given through -cmd exits with 0.</a>'
    '<br/><a href="/quit">/quit: Cause this container to exit.</a><br/>'
)


def probe(result: Result | None = None) -> Probe:
    made = Probe("nslookup web", "/healthz-kubedns", START)
    made.result = result or made.result
    return made


FAILED = Result("no answer\n", "exit status 1", START)


OLD = "Latest result too old to be useful: Result of last exec:"
ERROR = "Healthz probe on /healthz-kubedns error: Result of last exec:"


@pytest.mark.parametrize(
    ("result", "later", "status", "text"),
    [
        (None, 0.0, 200, "ok"),
        (None, 30.0, 200, "ok"),
        (None, 30.1, 503, f"{OLD} , at {AT}, error None.\n"),
        (Result("fine\n", "", START), 29.0, 200, "ok"),
        (Result("fine\n", "", START), 31.0, 503, f"{OLD} fine\n, at {AT}, error None.\n"),
        (FAILED, 5.0, 503, f"{ERROR} no answer\n, at {AT}, error exit status 1\n"),
        (FAILED, 100.0, 503, f"{ERROR} no answer\n, at {AT}, error exit status 1\n"),
    ],
)
def test_health(result: Result | None, later: float, status: int, text: str) -> None:
    assert health(probe(result), SETTINGS, START + later) == web.Page(status, text.encode())


def test_output_instead_of_ok() -> None:
    assert health(probe(Result("fine\n", "", START)), SETTINGS._replace(output=True), START) == web.Page(200, b"fine\n")


def test_pages(capfd: pytest.CaptureFixture[str]) -> None:
    ended = asyncio.Event()
    first, second = Probe("a", "/a", time.time()), Probe("b", "/b", time.time())
    page = pages([first, second], SETTINGS._replace(quiet=False), ended)
    second.result = Result("", "exit status 2", START)
    assert [page(path, "10.0.0.1:99") for path in ("/a", "/b")] == [
        web.Page(200, b"ok"),
        web.Page(503, f"{B_ERROR}\n".encode()),
    ]
    for path in ("/", "/healthz", "/a/"):
        said = page(path, "10.0.0.1:99")
        assert said is not None
        assert (said.status, said.kind) == (200, "text/html; charset=utf-8")
        assert said.body.decode() == LINKS
    assert not ended.is_set()
    assert page("/quit", "10.0.0.1:99") is None
    assert ended.is_set()
    assert capfd.readouterr().err.splitlines() == [
        "exechealthz: Client ip 10.0.0.1:99 requesting /a probe servicing cmd a",
        "exechealthz: Client ip 10.0.0.1:99 requesting /b probe servicing cmd b",
        f"exechealthz: {B_ERROR}",
        "exechealthz: Shutdown requested via /quit by 10.0.0.1:99",
    ]


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "output", "error"),
    [
        (["true"], "", ""),
        (["false"], "", "exit status 1"),
        (["sh", "-c", "echo out; echo err >&2; exit 3"], "out\nerr\n", "exit status 3"),
        (["echo", "a b", ">/dev/null", "$HOME", "; false"], "a b >/dev/null $HOME ; false\n", ""),
        (["no-such-command"], "", 'exec: "no-such-command": executable file not found in $PATH'),
        (["/etc/passwd"], "", "fork/exec /etc/passwd: permission denied"),
        (["sh", "-c", "kill -9 $$"], "", "signal: killed"),
        (["sh", "-c", "kill -15 $$"], "", "signal: terminated"),
        (["printf", r"\377"], "�", ""),
    ],
)
def test_commands(argv: list[str], output: str, error: str) -> None:
    assert asyncio.run(run(argv, 10)) == (output, error)


def test_a_command_that_floods_is_read_to_its_end() -> None:
    output, error = asyncio.run(run(["head", "-c", "10000000", "/dev/zero"], 10))
    assert (len(output), error) == (OUTPUT, "")


def test_a_command_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    mine = tmp_path / "child"
    argv = ["sh", "-c", f"sleep 60 & echo $! >{mine}.new; mv {mine}.new {mine}; echo begun; wait"]
    before = time.monotonic()
    assert asyncio.run(run(argv, 0.5)) == ("begun\n", "signal: killed")
    assert time.monotonic() - before < 10
    assert _ends(int(mine.read_text()))


def _ends(pid: int) -> bool:
    """Gone, or waiting to be buried by whoever it was left to."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


def test_a_command_has_a_session_of_its_own() -> None:
    script = "import os; print(os.getsid(0) == os.getpid())"
    assert asyncio.run(run(["python3", "-c", script], 10)) == ("True\n", "")


def runs(monkeypatch: pytest.MonkeyPatch, settings: Settings, takes: list[float]) -> list[float]:
    """When each run starts, in seconds after the start, where they take so long."""
    started: list[float] = []

    async def watched() -> None:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        done = asyncio.Event()

        async def instead(argv: list[str], patience: float) -> tuple[str, str]:
            assert (argv, patience) == (["echo", "a b"], settings.latency)
            started.append(loop.time() - begin)
            if len(started) == len(takes):
                done.set()
            await asyncio.sleep(takes[len(started) - 1])
            return "", "exit status 1"

        monkeypatch.setattr(exechealthz, "run", instead)
        one = Probe("echo 'a b'", "/a", START)
        task = asyncio.create_task(work(one, settings, lambda: START + 7))
        await done.wait()
        assert one.result == Result("", "exit status 1", START + 7)
        task.cancel()

    asyncio.run(watched())
    return started


def test_a_command_runs_every_period(monkeypatch: pytest.MonkeyPatch) -> None:
    at = runs(monkeypatch, SETTINGS._replace(period=0.1), takes=[0.0] * 4)
    assert at[0] >= 0.1  # not at once
    assert [later - earlier for earlier, later in pairwise(at)] == pytest.approx([0.1] * 3, abs=0.08)


def test_a_slow_command_runs_without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    at = runs(monkeypatch, SETTINGS._replace(period=0.01), takes=[0.1] * 4)
    assert [later - earlier for earlier, later in pairwise(at)] == pytest.approx([0.1] * 3, abs=0.08)


def test_runs_that_were_missed_are_not_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    at = runs(monkeypatch, SETTINGS._replace(period=0.2), takes=[0.7, 0.0, 0.0, 0.0])
    assert [later - earlier for earlier, later in pairwise(at)] == pytest.approx([0.7, 0.2, 0.2], abs=0.1)


# --- flags ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "settings"),
    [
        ([], Settings((("echo healthz", "/healthz"),))),
        (
            ["--cmd=a b", "--url=/a", "--cmd", "c", "--url", "/c", "--port=8081", "--quiet"],
            Settings((("a b", "/a"), ("c", "/c")), port=8081, quiet=True),
        ),
        (
            ["-cmd", "a", "-url=/a", "-period=500ms", "-latency", "1m30s", "-quiet=true", "-output"],
            Settings((("a", "/a"),), period=0.5, latency=90.0, quiet=True, output=True),
        ),
        (["--quiet=false"], Settings((("echo healthz", "/healthz"),))),
    ],
)
def test_flags(argv: list[str], settings: Settings) -> None:
    assert settings_of(argv) == settings


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["--cmd=a", "--cmd=b", "--url=/a"], 1, "failed to initialize flag, number of cmds and urls are different\n"),
        (["--cmd=a"], 0, ""),
        (["--url=/a", "--url=/b"], 1, "failed to initialize flag, number of cmds and urls are different\n"),
        (["--period=2"], 2, "invalid seconds value: '2'"),
        (["--cmd='a"], 2, "No closing quotation"),
        (["--cmd= "], 2, "an empty command"),
        (["word"], 2, "unrecognized arguments: word"),
    ],
)
def test_wrong_flags(argv: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    if not code:
        assert settings_of(argv).pairs == (("a", "/healthz"),)
        return
    with pytest.raises(SystemExit) as ended:
        settings_of(argv)
    assert ended.value.code == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "value"),
    [("2s", 2), ("1m30s", 90), ("1h", 3600), ("1.5s", 1.5), (".5s", 0.5), ("250ms", 0.25), ("10us", 1e-5)],
)
def test_durations(text: str, value: float) -> None:
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "2", "s", "2 s", "-2s", "2sec", "1m 30s"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="invalid duration"):
        seconds(text)


# --- web, which it shares with kubedns --------------------------------------------------------------------------------


def exchange(*said: bytes, pages: Callable[[str, str], web.Page | None]) -> bytes:
    """What a client gets that says this and then no more."""

    async def talk() -> bytes:
        async with await web.serve(pages, 0, "127.0.0.1") as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            try:
                for part in said:
                    writer.write(part)
                    await writer.drain()
                writer.write_eof()
                return await reader.read()
            finally:
                writer.transport.abort()

    return asyncio.run(talk())


def echo(path: str, client: str) -> web.Page:
    assert client.startswith("127.0.0.1:")
    return web.Page(503 if path == "/bad" else 200, path.encode())


@pytest.mark.parametrize(
    ("said", "starts", "ends"),
    [
        ([b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n"], b"HTTP/1.1 200 OK\r\n", b"Connection: close\r\n\r\n/a"),
        ([b"GE", b"T /a HTTP/1.0\r", b"\n\r\n"], b"HTTP/1.1 200 OK\r\n", b"\r\n\r\n/a"),
        ([b"HEAD /abc HTTP/1.1\r\n\r\n"], b"HTTP/1.1 200 OK\r\n", b"Content-Length: 4\r\nConnection: close\r\n\r\n"),
        ([b"GET /bad HTTP/1.1\r\n\r\n"], b"HTTP/1.1 503 Service Unavailable\r\n", b"\r\n\r\n/bad"),
        ([b"POST /a HTTP/1.1\r\nContent-Length: 1\r\n\r\nx"], b"HTTP/1.1 405 Method Not Allowed\r\n", b"\n"),
        ([b"sesame\r\n\r\n"], b"HTTP/1.1 400 Bad Request\r\n", b"\n"),
        ([b"GET /a HTTP/1.1\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n"], b"HTTP/1.1 400", b"\n"),
        ([b"GET /a HTT"], b"", b""),
        ([], b"", b""),
    ],
)
def test_web(said: list[bytes], starts: bytes, ends: bytes) -> None:
    answer = exchange(*said, pages=echo)
    assert answer.startswith(starts)
    assert answer.endswith(ends)
    assert bool(answer) == bool(starts)


def test_web_hangs_up_without_a_word() -> None:
    assert exchange(b"GET /quit HTTP/1.1\r\n\r\n", pages=lambda _, __: None) == b""


def test_web_hears_no_end_of_headers() -> None:
    with pytest.raises(ConnectionError):
        exchange(b"GET / HTTP/1.1\r\n", *[b"a: " + b"b" * 4000 + b"\r\n"] * 5000, pages=echo)
