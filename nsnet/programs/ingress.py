"""Looks after one HAProxy: `python -m nsnet.programs.ingress /…/haproxy.cfg`.

HAProxy's master process executes itself anew with other arguments at every reload, so it is no program that could be
known by its argv; this one is, and HAProxy is its child (which ends when it is killed). It speaks as the others of
ours do: a byte on NSNET_READY_FD when it is ready, and on the unix socket CONFIG.sock

    reload   the file has changed: `ok` when HAProxy lives by the new one, or goes on with the old one
    status   `ok`, or why the file was refused (`haproxy -c` said no, or the reload failed)

A configuration is checked before it is used. Where only servers have changed (the hash in `description` is the same),
they are added and taken away over HAProxy's own socket: nothing is reloaded, no connection ends. Otherwise the master
is told to reload: the new worker takes over the listening sockets, the old one serves what it has to the end. A reload
forgets what was set at run time, so the file is written first, always (facts/PARTS.md).

Its worker serves as nobody (65534), which the file calls $NSNET_NOBODY: in a user namespace there may be no such user,
and it stays the one it is, who is nobody outside.

HAProxy's log comes through a pipe and is written from here: HAProxy sets its standard output to O_NONBLOCK alone, which
takes O_APPEND from a file, and then it and this program, which share one, would write over each other's lines.

Source: HAProxy's management guide (master-worker mode, Runtime API: `add server`, `show servers state`).
"""

import asyncio
import contextlib
import ctypes
import fcntl
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from functools import partial
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from nsnet.programs import lines, plain, start

HAPROXY = "haproxy"
TIMEOUT = 10.0  # s until a new worker must live by the file
GLANCE = 0.005  # s between two looks at whether it does
FIRST_PAUSE, LAST_PAUSE = 0.02, 5.0  # s before HAProxy is started again
POOL = "pool-purge-delay 5s pool-max-conn 1000"  # as a server of the file has it; else no connection is used twice
AT_ONCE = 50  # commands of one line: HAProxy takes 16 kB
LARGEST_LOG, MINUTE = 32 << 20, 60.0  # bytes after which the access log begins anew, looked at so often
LOG_PIPE, LOG_PAUSE = 1 << 20, 0.05  # bytes of lines on their way to the log, s between two writes of them
PR_SET_PDEATHSIG = 1
NOBODY = 65534
_DIGEST = re.compile(r"^ *description:? (.*)$", re.MULTILINE | re.IGNORECASE)
_LINE = re.compile(r"^(backend|    server) (\S+)(?: (\S+))?", re.MULTILINE)

log = partial(plain.log, "ingress")

Servers = dict[tuple[str, str], str]
"""(backend, server) → address and port."""


class Wanted(NamedTuple):
    """What a configuration file says: its own hash, and its servers."""

    digest: str
    servers: Servers


def wanted_of(text: str) -> Wanted:
    """Read from the file's text, which is our own and has one form."""
    found = _DIGEST.search(text)
    servers: Servers = {}
    backend = ""
    for word, name, address in _LINE.findall(text):
        if word == "backend":
            backend = name
        else:
            servers[backend, name] = address
    return Wanted(found.group(1).strip() if found else "", servers)


def states(text: str) -> dict[tuple[str, str], bool]:
    """`show servers state` → is each server in use?"""
    said = [line.split() for line in text.splitlines()]
    head = next((words[1:] for words in said if words[:2] == ["#", "be_id"]), [])
    rows = (dict(zip(head, words, strict=False)) for words in said if words and words[0].isdigit() and len(words) > 1)
    return {(row["be_name"], row["srv_name"]): row["srv_admin_state"] == "0" for row in rows}


def commands(wanted: Servers, there: Mapping[tuple[str, str], bool]) -> list[str]:
    """What makes the servers that are there the wanted ones. A new server is added in maintenance."""
    found = []
    for key, address in wanted.items():
        name = "/".join(key)
        if key not in there:
            found += [f"add server {name} {address} {POOL}", f"enable server {name}"]
        elif not there[key]:
            found.append(f"set server {name} state ready")
    for key in there.keys() - wanted.keys():
        name = "/".join(key)
        found += [f"set server {name} state maint"] if there[key] else []
        found.append(f"del server {name}")  # refused as long as a connection lasts: then it stays, unused
    return found


# --- HAProxy ----------------------------------------------------------------------------------------------------------


class Proxy:
    """The child, and whether it lives by the file."""

    def __init__(self, config: Path) -> None:
        self.config = config
        self.socket = config.with_name("haproxy.stats")
        self.child: asyncio.subprocess.Process | None = None
        self.log = Log()
        self.refused = ""
        self.ending = False
        self.lock = asyncio.Lock()

    async def reload(self) -> None:
        """Brings HAProxy to what the file says, or says in `refused` why not."""
        async with self.lock:
            try:
                wanted = wanted_of(self.config.read_text())
                self.refused = await self._use(wanted)
            except OSError as error:
                self.refused = str(error)
        if self.refused:
            log(f"{self.config.name} is not used: {self.refused}")

    async def _use(self, wanted: Wanted) -> str:
        if await self._digest() == wanted.digest and await self._at_run_time(wanted.servers):
            return ""
        why = await self._check()
        if why:
            return why
        if self.child is None or self.child.returncode is not None:
            await self._start()
        else:
            self.child.send_signal(signal.SIGUSR2)
        return await self._await(wanted)

    async def _check(self) -> str:
        """`haproxy -c`: empty, or the sentence that says what is wrong."""
        checking = await asyncio.create_subprocess_exec(
            HAPROXY,
            "-c",
            "-q",
            "-f",
            str(self.config),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await checking.communicate()
        if checking.returncode == 0:
            return ""
        alerts = [line for line in said.decode(errors="replace").splitlines() if "[ALERT]" in line]
        first = (
            re.sub(r"^\[ALERT\]\s+\(\d+\) : ", "", alerts[0])
            if alerts
            else f"haproxy -c ends with {checking.returncode}"
        )
        return first.replace(f"{self.config.parent}/", "")[:300]

    async def _start(self) -> None:
        master = f"{self.config.with_name('haproxy.master')},mode,600"
        self.child = await asyncio.create_subprocess_exec(
            *(HAPROXY, "-W", "-S", master, "-f", str(self.config)),
            stdout=self.log.end,
            stderr=self.log.end,
            preexec_fn=_end_with_parent,
        )

    async def _await(self, wanted: Wanted) -> str:
        """Until a worker answers that lives by this file."""
        deadline = monotonic() + TIMEOUT
        while monotonic() < deadline:
            if await self._digest() == wanted.digest and await self._at_run_time(wanted.servers):
                return ""
            if self.child is None or self.child.returncode is not None:
                return "haproxy ended as it was started; its log says why"
            await asyncio.sleep(GLANCE)
        return "haproxy did not take it; its log says why"

    async def _digest(self) -> str:
        found = _DIGEST.search(await self._ask(["show info"]))
        return found.group(1).strip() if found else ""

    async def _at_run_time(self, wanted: Servers) -> bool:
        """Makes the servers the wanted ones, and looks whether they are."""
        there = states(await self._ask(["show servers state"]))
        changes = commands(wanted, there)
        if not changes:
            return True
        for at in range(0, len(changes), AT_ONCE):
            await self._ask(changes[at : at + AT_ONCE])
        there = states(await self._ask(["show servers state"]))
        return {key for key, used in there.items() if used} == wanted.keys()

    async def _ask(self, commands: Iterable[str]) -> str:
        """HAProxy's answer to commands; nothing where it does not answer."""
        try:
            reader, writer = await asyncio.open_unix_connection(str(self.socket))
        except OSError:
            return ""
        try:
            writer.write(("; ".join(commands) + "\n").encode())
            async with asyncio.timeout(TIMEOUT):
                return (await reader.read()).decode(errors="replace")
        except (OSError, TimeoutError):
            return ""
        finally:
            writer.close()

    async def keep_alive(self) -> None:
        """Starts HAProxy again when it has died, each time a little later."""
        pause = FIRST_PAUSE
        while not self.ending:
            child = self.child
            if child is None:
                await asyncio.sleep(GLANCE)
                continue
            born = monotonic()
            await child.wait()
            if self.ending:
                return
            pause = FIRST_PAUSE if monotonic() - born > LAST_PAUSE else min(pause * 2, LAST_PAUSE)
            log(f"haproxy ended with {child.returncode}; it is started again in {pause:g} s")
            await asyncio.sleep(pause)
            await self.reload()

    async def end(self) -> None:
        """Ends HAProxy, and waits for it."""
        self.ending = True
        if self.child is not None and self.child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.child.terminate()
            await self.child.wait()


def nobody(uid_map: str) -> int:
    """Who serves, as /proc/self/uid_map has it (first inside, first outside, how many): 65534, or 0 for no change."""
    ranges = ((int(first), int(count)) for first, _, count in (line.split() for line in uid_map.splitlines()))
    return NOBODY if any(first <= NOBODY < first + count for first, count in ranges) else 0


def _end_with_parent() -> None:
    """The kernel ends the master when we are killed; the master's workers end with it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


class Log:
    """The pipe that HAProxy writes to (`end`), and whole lines of it for our own output."""

    def __init__(self) -> None:
        self.reading, self.end = os.pipe()
        os.set_blocking(self.reading, False)
        with contextlib.suppress(OSError):  # who is not root has a share of pipes, and it may be used up
            fcntl.fcntl(self.end, fcntl.F_SETPIPE_SZ, LOG_PIPE)
        self.rest = b""

    async def keep(self) -> None:
        """Writes what comes, many lines at a time."""
        there = asyncio.Event()
        loop = asyncio.get_running_loop()
        while True:
            loop.add_reader(self.reading, there.set)
            await there.wait()
            loop.remove_reader(self.reading)
            there.clear()
            self.write()
            await asyncio.sleep(LOG_PAUSE)

    def write(self) -> None:
        """What is there now, without the beginning of a line."""
        with contextlib.suppress(OSError):
            whole, newline, self.rest = (self.rest + os.read(self.reading, LOG_PIPE)).rpartition(b"\n")
            os.write(1, whole + newline)


# --- the program ------------------------------------------------------------------------------------------------------


async def _answer(proxy: Proxy, line: str) -> AsyncIterator[str]:
    """What is said on the socket beside the file."""
    if line == "reload":
        await proxy.reload()
        yield "ok"
    elif line == "status":
        yield proxy.refused or "ok"
    else:
        yield "error: say reload or status"


async def _mind_log() -> None:
    """Our stdout is opened for appending: emptied, it goes on at its beginning."""
    while True:
        await asyncio.sleep(MINUTE)
        with contextlib.suppress(OSError):
            if os.fstat(1).st_size > LARGEST_LOG:
                os.ftruncate(1, 0)


async def run(config: Path) -> None:
    """Serves until SIGTERM."""
    proxy = Proxy(config)
    await lines.listen(config, partial(_answer, proxy))
    await proxy.reload()
    tasks = [asyncio.create_task(minding) for minding in (proxy.keep_alive(), proxy.log.keep(), _mind_log())]
    await start.until_told(proxy.reload)
    await proxy.end()
    proxy.log.write()
    for task in tasks:
        task.cancel()


def main() -> None:
    plain.all_descriptors()
    os.environ["NSNET_NOBODY"] = str(nobody(Path("/proc/self/uid_map").read_text()))
    if len(sys.argv) != 2:
        sys.exit("usage: python -m nsnet.programs.ingress CONFIG")
    asyncio.run(run(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
