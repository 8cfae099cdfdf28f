"""exechealthz: runs commands over and over, and says over HTTP whether each one's last run succeeded.

Kubernetes' exec-healthz (kubernetes-retired/contrib), the `healthz` container of the kube-dns pod, with its flags,
codes and texts. Every PERIOD seconds each command runs, or without a pause when it takes longer. A GET of its path says
200 `ok` if the last run exited 0, and before the first run has ended; 503 with the output if it did not; 503 when it is
more than LATENCY since one has ended. Any other path is a page of links, and /quit ends the program.

    python -m nsnet.programs.exechealthz --cmd 'nslookup NAME 127.0.0.1' --url /healthz-dnsmasq --cmd ... --url ...

Three things are nsnet's own: no shell is used (a command is split into words as a shell would, and that is all); a
command that runs for longer than LATENCY is killed, with all that it started; of its output only OUTPUT bytes are kept.
"""

import argparse
import asyncio
import contextlib
import os
import re
import shlex
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from nsnet.programs import plain, start
from nsnet.programs.web import HTML, Page, serve

OUTPUT = 64 * 1024
LINKS = (
    ("/healthz", 'healthz probe. Returns "ok" if the command given through -cmd exits with 0.'),
    ("/quit", "Cause this container to exit."),
)
UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
PART = r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)"
log = partial(plain.log, "exechealthz")
Clock = Callable[[], float]


class Result(NamedTuple):
    """Of the last run; at the start, of none, so that the first one has LATENCY seconds to end. `at` is unix time."""

    output: str
    error: str  # empty: it exited 0
    at: float

    def __str__(self) -> str:
        return f"Result of last exec: {self.output}, at {_printed(self.at)}, error {self.error or 'None'}"


class Probe:
    """A command, its path and its last result."""

    def __init__(self, command: str, path: str, now: float) -> None:
        self.command = command
        self.path = path
        self.result = Result("", "", now)


class Settings(NamedTuple):
    """The flags; times in seconds."""

    pairs: tuple[tuple[str, str], ...]
    port: int = 8080
    period: float = 2.0
    latency: float = 30.0
    quiet: bool = False
    output: bool = False


# --- what is said -----------------------------------------------------------------------------------------------------


def health(probe: Probe, settings: Settings, now: float) -> Page:
    """200 or 503, as the last result says; an error goes to the log, too."""
    result = probe.result
    if result.error:
        said = f"Healthz probe on {probe.path} error: {result}"
    elif now - result.at > settings.latency:
        said = f"Latest result too old to be useful: {result}."
    else:
        return Page(200, result.output.encode() if settings.output else b"ok")
    log(said)
    return Page(503, f"{said}\n".encode())


def links() -> Page:
    anchors = "".join(f'<a href="{link}">{link}: {text}</a><br/>' for link, text in LINKS)
    return Page(200, f"<b> Kubernetes healthz sidecar container </b><br/><br/>{anchors}".encode(), HTML)


def _printed(at: float) -> str:
    """As Go prints a time in UTC: `2016-11-22 10:02:03.25 +0000 UTC`."""
    whole, microseconds = divmod(round(at * 1e6), 10**6)
    fraction = f".{microseconds:06}".rstrip("0").rstrip(".")
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(whole))}{fraction} +0000 UTC"


# --- commands ---------------------------------------------------------------------------------------------------------


async def work(probe: Probe, settings: Settings, clock: Clock = time.time) -> None:
    """Runs the command at every PERIOD, for ever; a tick that comes while it runs is kept, further ones are not."""
    loop = asyncio.get_running_loop()
    due = loop.time() + settings.period
    while True:
        await asyncio.sleep(due - loop.time())
        if not settings.quiet:
            log(f"Worker running {probe.command} to serve {probe.path}")
        output, error = await run(shlex.split(probe.command), settings.latency)
        probe.result = Result(output, error, clock())
        due = max(due + settings.period, loop.time())


async def run(argv: list[str], patience: float) -> tuple[str, str]:
    """Output (both streams) and error (empty: exited 0, else in Go's words) of a command in a session of its own."""
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    except FileNotFoundError:
        return "", f'exec: "{argv[0]}": executable file not found in $PATH'
    except OSError as error:
        return "", f"fork/exec {argv[0]}: {(error.strerror or '').lower()}"
    output = bytearray()
    try:
        async with asyncio.timeout(patience):
            await _drain(process, output)
            await process.wait()
    except TimeoutError:
        _kill(process)
    except asyncio.CancelledError:
        _kill(process)
        raise
    return output.decode(errors="replace"), _exit(await process.wait())


def _kill(process: asyncio.subprocess.Process) -> None:
    """With all that it started: its session has one group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


async def _drain(process: asyncio.subprocess.Process, output: bytearray) -> None:
    assert process.stdout is not None
    while data := await process.stdout.read(4096):
        output += data[: OUTPUT - len(output)]


def _exit(code: int) -> str:
    if code < 0:
        return f"signal: {'killed' if code == -signal.SIGKILL else signal.strsignal(-code)}".lower()
    return f"exit status {code}" if code else ""


# --- flags ------------------------------------------------------------------------------------------------------------


def seconds(text: str) -> float:
    """A duration as Go writes it: `2s`, `1m30s`, `500ms`. Raises ValueError."""
    if not re.fullmatch(f"({PART})+", text):
        raise ValueError(f"invalid duration {text!r}")
    return sum(float(number) * UNITS[unit] for number, unit in re.findall(PART, text))


def settings_of(argv: list[str] | None = None) -> Settings:
    """One or two dashes, as in Go. Exits with 2 for a wrong flag, and with 1 where commands and paths do not pair."""
    parser = argparse.ArgumentParser(
        prog="exechealthz", description="Health of commands, over HTTP.", allow_abbrev=False
    )
    parser.add_argument("-cmd", "--cmd", action="append", help="command to run (default: echo healthz)")
    parser.add_argument("-url", "--url", action="append", help="path that tells of it (default: /healthz)")
    parser.add_argument("-port", "--port", type=int, default=8080, help="default 8080")
    parser.add_argument("-period", "--period", type=seconds, default=2.0, help="between two runs (default 2s)")
    parser.add_argument("-latency", "--latency", type=seconds, default=30.0, help="longest without a result (30s)")
    switch = partial(parser.add_argument, nargs="?", const=True, default=False, type=_switched)
    switch("-quiet", "--quiet", help="log errors only")
    switch("-output", "--output", help="say the output instead of ok")
    given = parser.parse_args(argv)
    commands, paths = given.cmd or ["echo healthz"], given.url or ["/healthz"]
    if len(commands) != len(paths):
        parser.exit(1, "failed to initialize flag, number of cmds and urls are different\n")
    for command in commands:
        _check(parser, command)
    pairs = tuple(zip(commands, paths, strict=True))
    return Settings(pairs, given.port, given.period, given.latency, given.quiet, given.output)


def _switched(text: str) -> bool:
    """`--quiet=true`, as Go has it."""
    return text in {"1", "t", "T", "true", "TRUE", "True"}


def _check(parser: argparse.ArgumentParser, command: str) -> None:
    """It must be words: a shell's quoting is understood, nothing else of a shell is."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        parser.error(f"{command!r}: {error}")
    if not words:
        parser.error("an empty command")


# --- the program ------------------------------------------------------------------------------------------------------


def pages(probes: list[Probe], settings: Settings, ended: asyncio.Event) -> Callable[[str, str], Page | None]:
    """Of two probes with one path the later counts, as in the original."""
    by_path = {probe.path: probe for probe in probes}

    def page(path: str, client: str) -> Page | None:
        if path == "/quit":
            log(f"Shutdown requested via /quit by {client}")
            ended.set()
            return None
        probe = by_path.get(path)
        if probe is None:
            return links()
        if not settings.quiet:
            log(f"Client ip {client} requesting {path} probe servicing cmd {probe.command}")
        return health(probe, settings, time.time())

    return page


async def watch(settings: Settings) -> None:
    """Serves until SIGTERM or /quit. Raises OSError when the port cannot be opened."""
    probes = [Probe(command, path, time.time()) for command, path in settings.pairs]
    ended = asyncio.Event()
    await serve(pages(probes, settings, ended), settings.port)
    workers = [asyncio.create_task(work(probe, settings)) for probe in probes]
    await start.until_told(lambda: None, ended)
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)


def main() -> None:
    os.environ.pop("NSNET_NETNS", None)  # the commands lead sessions of their own, and are no programs of the cluster
    asyncio.run(watch(settings_of()))


if __name__ == "__main__":
    main()
