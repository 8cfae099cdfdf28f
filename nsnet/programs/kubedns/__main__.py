"""Run as `python -m nsnet.programs.kubedns CONFIG.json [--port 10053] [--http 8081]`.

CONFIG need not be there yet: until it has been read once, every question gets SERVFAIL and the HTTP port is closed
(which is how kube-dns is seen not to be ready). A client of the unix socket CONFIG.sock that sends a line `reload` gets
a line `ok` once the file has been read again and its records are served (or `error: ...`, and all stays as it is);
SIGHUP does the same. SIGTERM ends the server.
"""

import argparse
import asyncio
import time
from functools import partial
from pathlib import Path

import msgspec

from nsnet.programs import lines, plain, start, web
from nsnet.programs.kubedns import config as configuration
from nsnet.programs.kubedns.answers import Answers
from nsnet.programs.kubedns.config import Config
from nsnet.programs.kubedns.pages import page
from nsnet.programs.kubedns.server import Server
from nsnet.programs.kubedns.upstream import Upstream
from nsnet.programs.kubedns.zone import Zone

HOUR = 3600
log = partial(plain.log, "kubedns")


class Control:
    """Reads the file, and opens the HTTP port when it has been read for the first time."""

    def __init__(self, path: Path, server: Server, http: int) -> None:
        self.path = path
        self.server = server
        self.http = http
        self.hourly: asyncio.TimerHandle | None = None
        self.opening: asyncio.Task[None] | None = None
        self.said = ""

    def reload(self) -> str:
        """`ok`, or what is wrong with the file."""
        try:
            config = configuration.read(self.path.read_bytes())
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            log(f"{self.path}: {error}")
            return f"error: {error}"
        self.server.answers.reloads += 1
        self.use(config)
        self._say(config)
        if self.opening is None:
            self.opening = asyncio.create_task(self._open())
        return "ok"

    def use(self, config: Config) -> None:
        """Serves it; kube-dns' serial is the hour, so its zone is another one every hour."""
        now = time.time()
        self.server.answers.use(Zone(config, now))
        if self.hourly:
            self.hourly.cancel()
            self.hourly = None
        if config.flavour == "kube-dns":
            self.hourly = asyncio.get_running_loop().call_later(HOUR - now % HOUR, self.use, config)

    def _say(self, config: Config) -> None:
        """What is served and who else is asked, where that is new; a Service that comes or goes is not."""
        stubs = "".join(f"; {name} of {' '.join(servers)}" for name, servers in sorted(config.stubs.items()))
        others = f"names outside are asked of {' '.join(config.upstreams) or 'nobody'}{stubs}"
        said = f"{config.domain}, as {config.flavour}; {others}"
        if said != self.said:
            log(f"{len(config.services)} services of {said}")
        self.said = said

    async def _open(self) -> None:
        try:
            await web.serve(lambda path, _: page(path, self.server), self.http)
        except OSError as error:
            log(f"HTTP port {self.http}: {error}; tried again at the next reload")
            self.opening = None

    async def reloaded(self) -> str:
        """The same, once the HTTP port is open, too."""
        said = self.reload()
        if self.opening:
            await self.opening
        return said


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="kubedns", description="The cluster's DNS server.")
    parser.add_argument("config", type=Path, help="a JSON file, as nsnet.programs.kubedns.config has it")
    parser.add_argument("--port", type=int, default=10053, help="UDP and TCP (default 10053)")
    parser.add_argument("--http", type=int, default=8081, help="/readiness, /cache and /metrics (default 8081)")
    return parser.parse_args()


async def run(path: Path, port: int, http: int) -> None:
    """Serves until SIGTERM. Raises OSError when the DNS port cannot be opened."""
    server = Server(Answers(Upstream()))
    control = Control(path, server, http)
    await lines.take_reloads(path, control.reloaded)
    control.reload()
    await server.listen(port)
    if control.opening:
        await control.opening
    await start.until_told(control.reload)


def main() -> None:
    plain.all_descriptors()
    given = arguments()
    asyncio.run(run(given.config, given.port, given.http))


if __name__ == "__main__":
    main()
