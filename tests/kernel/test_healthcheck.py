"""The program of health ports over real namespaces: whatever is asked of it at once, it stays at home."""

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsnet.programs.healthcheck import Server

NODES = [f"t.node.{name}" for name in ("a", "b", "c")]


@pytest.fixture
def nodes() -> Iterator[None]:
    for name in NODES:
        subprocess.run(["ip", "netns", "add", name], check=True)
    yield
    for name in NODES:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.mark.usefixtures("nodes")
def test_reloads_that_overlap_leave_the_process_at_home(tmp_path: Path) -> None:
    config = tmp_path / "healthcheck.json"
    config.write_text(json.dumps({"nodes": [{"netns": name, "healthz": ["127.0.0.1", 10256]} for name in NODES]}))

    def where() -> int:
        return Path("/proc/thread-self/ns/net").stat().st_ino

    async def overlapping() -> set[int]:
        server, seen = Server(config), set()
        reloads = [asyncio.create_task(server.reload()) for _ in range(3)]
        while not all(one.done() for one in reloads):
            await asyncio.sleep(0)
            seen.add(where())
        assert [one.result() for one in reloads] == ["ok"] * 3
        assert len(server.servers) == len(NODES)
        for one in server.servers.values():
            one.close()
        return seen

    home = where()
    assert asyncio.run(overlapping()) == {home}
    assert where() == home
