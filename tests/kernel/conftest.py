"""Tests that touch the kernel run inside `scripts/sandbox` and nowhere else: there nothing can leak.

Outside of it they do not run at all, and loudly: a skip would be green without having tested anything.
"""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsnet import names
from nsnet.kernel import iptables


def _in_sandbox() -> bool:
    """Root, a network with nothing but `lo` up, and a /run of its own: what scripts/sandbox makes."""
    devices = {name for _, name in socket.if_nameindex()} - {"lo"}
    up = [name for name in devices if _is_up(name)]
    return os.geteuid() == 0 and not up and _is_mount("/run") and _is_mount("/var/lib/nsnet")


def _is_up(name: str) -> bool:
    import fcntl
    import struct

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        answer = fcntl.ioctl(asking, 0x8913, struct.pack("16sh", name.encode(), 0))  # SIOCGIFFLAGS
    return bool(struct.unpack("16sh", answer[:18])[1] & 1)


def _is_mount(path: str) -> bool:
    return any(line.split()[4] == path for line in Path("/proc/self/mountinfo").read_text().splitlines())


if not _in_sandbox():
    pytest.exit("tests/kernel runs inside scripts/sandbox only; `sudo scripts/test` does that", 4)


@pytest.fixture(scope="module", autouse=True)
def _no_run_files_for_the_next() -> Iterator[None]:
    """Tests of rooms below `reconcile.destroy` leave run files of their cluster, which the next verbs would list."""
    yield
    for top in (names.RUN, names.STATE):
        for entry in top.glob("*"):
            shutil.rmtree(entry, ignore_errors=True)


@pytest.fixture
def older_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose alternatives lead to iptables-legacy: what stands in PATH first is what is taken."""
    directory = tmp_path / "alternatives"
    directory.mkdir()
    for name in ("iptables", "iptables-save", "iptables-restore"):
        found = shutil.which(name.replace("iptables", "iptables-legacy"), path="/usr/sbin:/sbin")
        if found is None:
            pytest.skip("iptables-legacy is not installed")
        (directory / name).symlink_to(found)
    if subprocess.run([directory / "iptables", "-t", "nat", "-S"], capture_output=True, check=False).returncode:
        pytest.skip("this kernel has no legacy iptables tables")
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    iptables.tool.cache_clear()
    yield
    iptables.tool.cache_clear()
