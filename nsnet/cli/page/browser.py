"""Opens the page in the browser of whoever sits there, where there is a desktop."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from html import escape
from pathlib import Path

OPENER = "xdg-open"


@contextmanager
def opened(url: str) -> Iterator[None]:
    """Opens it if there is a desktop, as the user who called sudo; what cannot be opened is no error.

    Every user sees the words of a command, so the token is not among them: the browser is given a file that only the
    caller can read, and that leads to the page. It is removed at the end.
    """
    desktop = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not desktop or shutil.which(OPENER) is None:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="nsnet-ui-") as directory:
        with suppress(OSError, ValueError, OverflowError):  # SUDO_UID is what the environment says
            _start(_written(Path(directory), url))
        yield


def _written(directory: Path, url: str) -> Path:
    page = directory / "open.html"
    page.write_text(f'<!doctype html><title>nsnet</title><meta http-equiv="refresh" content="0; url={escape(url)}">\n')
    for path in (page, directory):
        path.chmod(0o700 if path is directory else 0o600)
        os.chown(path, int(os.environ.get("SUDO_UID", "0")), int(os.environ.get("SUDO_GID", "0")))
    return page


def _start(page: Path) -> None:
    user = os.environ.get("SUDO_USER")
    who = ["runuser", "-u", user, "--"] if user else []
    argv, no = [*who, OPENER, str(page)], subprocess.DEVNULL
    subprocess.Popen(argv, stdin=no, stdout=no, stderr=no, start_new_session=True)
