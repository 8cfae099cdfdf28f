"""nsnet on another machine, by ssh: that asks who we are, and nsnet opens no port for it.

NSNET_RSH is what rsync calls --rsh: the words before the address, `ssh -o ConnectTimeout=10` by default, `ssh -l admin
-i key`, or any program that takes an address and a line for a shell.

`run` is one command with our terminal. A `Talk` is one process there (the verb `beside`) that is asked and answers by
its stdin and stdout, as git and rsync do it: frames of MessagePack, each after a word that nobody else says (a login
shell may have printed something of its own) and its length.
"""

import contextlib
import os
import select
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Any, Self, TypeVar

import msgspec

from nsnet.errors import InputError, MachineError, NotReachedError, NsnetError

T = TypeVar("T")
WAY = "ssh -o ConnectTimeout=10"
HINT = "NSNET_RSH says how other machines are reached: ssh …"
VERB = "beside"
LARGEST = 1 << 30  # bytes of a frame
_MAGIC = b"nsnt"
_HEAD = Struct(f">{len(_MAGIC)}sI")
_KINDS = {kind.exit_code: kind for kind in (NsnetError, NotReachedError, InputError, MachineError)}


def _way() -> list[str]:
    return shlex.split(os.environ.get("NSNET_RSH") or WAY)


def run(address: str, words: Sequence[str]) -> int:
    """Runs `nsnet WORDS` on the machine that has the address, with our terminal; returns its exit code.

    Raises MachineError where the program that leads there cannot be run, or reports that it got nowhere (ssh: 255).
    """
    way = _way()
    try:
        code = subprocess.run([*way, address, shlex.join(["nsnet", *words])], check=False).returncode
    except OSError as error:
        raise MachineError(f"{way[0]}: {error.strerror}", HINT) from error
    if code == 255:
        raise MachineError(f"{way[0]} does not reach {address}", HINT)
    return code


# --- frames -----------------------------------------------------------------------------------------------------------


class Frames:
    """Frames by two file descriptors, which stay whoever's they are."""

    def __init__(self, source: int, sink: int) -> None:
        self.source, self.sink = source, sink
        self._read = bytearray()

    def write(self, body: bytes) -> None:
        """Raises BrokenPipeError where nobody reads any more."""
        left = memoryview(_HEAD.pack(_MAGIC, len(body)) + body)
        while left:
            left = left[os.write(self.sink, left) :]

    def waiting(self, timeout: float) -> bool:
        """Is there something to read within so many seconds? The end is something, too."""
        return self._whole() or bool(select.select([self.source], [], [], timeout)[0])

    def read(self) -> bytes | None:
        """The next frame; None at the end. Raises MachineError for what is none."""
        while not self._whole():
            part = os.read(self.source, 1 << 20)
            if not part:
                return None
            self._read += part
        size = self._size()
        body = bytes(self._read[_HEAD.size : _HEAD.size + size])
        del self._read[: _HEAD.size + size]
        return body

    def _size(self) -> int:
        """Of the frame that has begun, 0 where that is not said yet."""
        head = bytes(self._read[: _HEAD.size])
        size = _HEAD.unpack(head)[1] if len(head) == _HEAD.size else 0
        if not _MAGIC.startswith(head[: len(_MAGIC)]) or size > LARGEST:
            raise MachineError(f"what answers is not nsnet: {bytes(self._read[:40])!r}", HINT)
        return int(size)

    def _whole(self) -> bool:
        return len(self._read) >= _HEAD.size + self._size()


class Failed(msgspec.Struct, frozen=True):
    """What a request ended with there: an error of nsnet's."""

    exit_code: int
    message: str
    hint: str = ""


class Said(msgspec.Struct, frozen=True):
    """An answer: either of the two."""

    body: msgspec.Raw = msgspec.Raw(b"\xc0")
    failed: Failed | None = None


class Talk:
    """nsnet of another machine of the cluster, asked one thing after the other. A context manager."""

    def __init__(self, machine: str, address: str, cluster: str) -> None:
        """It is not waited for yet. Ctrl-C is ours alone: what the other machine still has to say is heard."""
        self.machine, self.address = machine, address
        way = _way()
        self._program = way[0]
        line = shlex.join(["nsnet", "--cluster", cluster, VERB])
        argv = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *way, address, line]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._pipes = (self._process.stdin, self._process.stdout)
        self.frames = Frames(self._process.stdout.fileno(), self._process.stdin.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """It ends there, too: with its stdin."""
        for pipe in self._pipes:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        self._process.wait()

    def tell(self, what: msgspec.Struct) -> None:
        try:
            self.frames.write(msgspec.msgpack.encode(what))
        except BrokenPipeError:
            raise self._gone() from None

    def answer(self, kind: type[T]) -> T:
        """Raises what the request ended with there; MachineError where nobody is there (any more)."""
        frame = self.frames.read()
        if frame is None:
            raise self._gone()
        try:
            said = msgspec.msgpack.decode(frame, type=Said)
            if said.failed is None:
                return msgspec.msgpack.decode(said.body, type=kind)
        except msgspec.MsgspecError as error:
            raise MachineError(
                f"what nsnet on machine {self.machine} answers cannot be read: {error}", f"is it the same nsnet? {HINT}"
            ) from error
        kind_ = _KINDS.get(said.failed.exit_code, NsnetError)
        raise kind_(f"machine {self.machine}: {said.failed.message}", said.failed.hint)

    def ask(self, what: msgspec.Struct, kind: type[T]) -> T:
        self.tell(what)
        return self.answer(kind)

    def _gone(self) -> MachineError:
        code = self._process.wait()
        if code == 255:
            return MachineError(f"{self._program} does not reach {self.address}", HINT)
        if code in (126, 127):
            return MachineError(f"{self._program} cannot be run, or there is no nsnet on {self.address}", HINT)
        return MachineError(f"nsnet on machine {self.machine} has ended ({code})", f"is it the same nsnet? {HINT}")


def answered(body: object) -> bytes:
    return msgspec.msgpack.encode(Said(msgspec.Raw(msgspec.msgpack.encode(body))))


def refused(error: NsnetError) -> bytes:
    return msgspec.msgpack.encode(Said(failed=Failed(error.exit_code, str(error), error.hint)))


def requests(frames: Frames, kind: Any) -> Iterator[Any]:
    """What is asked of us, until the asker goes."""
    while (frame := frames.read()) is not None:
        yield msgspec.msgpack.decode(frame, type=kind)
