"""The rules of the house, as its package docstring draws them: imports point down, rooms never see each other, only the
kernel room (and what runs inside namespaces) makes system calls, only the roof prints and exits.

An exception stands here with its reason, or it is a defect. An exception that nobody uses any more is one, too.
"""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent / "nsnet"

FLOORS = {
    "errors": -1, "garbage": -1, "ondemand": -1, "model": 0, "state": 0, "names": 0, "routes": 0.5,
    "manifests": 1, "store": 1, "control": 1, "render": 1, "diff": 1, "kernel": 1, "programs": 1, "trace": 1,
    "faults": 1,
    "locking": 1.5, "scopes": 1.5,
    "reconcile": 2, "verify": 2, "labs": 2,
    "controller": 3, "cli": 3, "__main__": 4,
}  # fmt: skip

# (importing module or room, imported room or module): why
DOORS = {
    ("programs", "kernel.netns"): "what runs inside namespaces enters them the one way there is",
    ("programs", "kernel.tun"): "and attaches to a device the one way there is",
    ("cli", "controller"): "verbs start, ask and stop it",
}

SYSTEM = {
    "ctypes", "socket", "subprocess", "fcntl", "mmap", "select", "selectors", "signal", "resource", "termios", "pty",
    "multiprocessing", "asyncio", "sqlite3", "pyroute2", "scapy", "shutil", "tempfile",
}  # fmt: skip
SYSTEM_ROOMS = {"kernel", "programs"}
# (module, what it imports): why
ALLOWED = {
    ("store.sqlite", "sqlite3"): "the store is a file",
    ("store.sqlite", "socket"): "writers wake those who wait by a datagram",
    ("store.sqlite", "select"): "waiting for that datagram",
    ("store.gateway", "socket"): "the store is a server: connections that notice when it is cut off",
    ("store.watch", "socket"): "its changes come as a stream",
    ("store.watch", "select"): "waiting for that stream, under one descriptor whatever connection it is",
    ("locking", "fcntl"): "the one writer's lock is a file lock",
    ("reconcile", "shutil"): "down removes the state and run directories",
    ("controller.client", "socket"): "verbs ask the controller over its unix socket",
    ("controller.client", "subprocess"): "verbs start it",
    ("controller.client", "select"): "and wait until it is ready, or gone",
    ("controller.client", "signal"): "and end it",
    ("controller.loop", "selectors"): "the loop waits",
    ("controller.loop", "socket"): "the loop answers verbs",
    ("controller.loop", "shutil"): "a log that has grown is put aside",
    ("controller.supervise", "subprocess"): "the supervisor starts the controller again",
    ("controller.supervise", "fcntl"): "one supervisor per cluster",
    ("controller.supervise", "select"): "it waits for a controller it did not start itself",
    ("controller.supervise", "signal"): "it ends in peace on SIGTERM",
    ("cli.page.browser", "shutil"): "is there a desktop's opener?",
    ("cli.page.browser", "subprocess"): "it opens the page in the user's browser",
    ("cli.page.browser", "tempfile"): "by a file that nobody else can read: it holds the token",
    ("cli.main", "tempfile"): "the traceback of a bug goes to a file",
}
SPEAKING_ROOMS = {"cli", "programs", "controller", "__main__"}
ENDING = {
    "cli.main": "a verb leaves its hundred thousand objects to the kernel, which is faster than taking them apart",
    "kernel.probe": "a forked child ends by os._exit, or it would run its parent's clean-up",
    "kernel.rootless": "and so do the processes between a verb and its namespaces",
    "kernel.holder": "process 1 of a home, a program of its own",
}
SPEAKING = {"print", "input", "exit", "quit"}
STREAMS = {"stdout", "stderr", "stdin", "exit"}


class Module(NamedTuple):
    name: str  # without `nsnet.`; `kernel.netns`, `model`
    tree: ast.Module

    @property
    def room(self) -> str:
        return self.name.partition(".")[0]


class Import(NamedTuple):
    module: Module
    target: str
    line: int

    def __str__(self) -> str:
        return f"nsnet.{self.module.name}:{self.line} imports {self.target}"


def _modules() -> list[Module]:
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found.append(Module(name, ast.parse(path.read_text(), str(path))))
    return found


MODULES = _modules()
NAMES = {module.name for module in MODULES}


def _imports(module: Module) -> Iterator[Import]:
    """Every import anywhere in the module, also inside functions; `from nsnet import model` is nsnet.model."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (Import(module, item.name, node.lineno) for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"nsnet.{module.name}:{node.lineno}: imports say where they lead, from the top"
            base = node.module or ""
            for item in node.names:
                inner = f"{base}.{item.name}"
                is_module = base == "nsnet" or (base.startswith("nsnet.") and inner.removeprefix("nsnet.") in NAMES)
                yield Import(module, inner if is_module else base, node.lineno)


IMPORTS = [item for module in MODULES for item in _imports(module)]
OURS = [item for item in IMPORTS if item.target.startswith("nsnet.") and item.target != "nsnet.__version__"]


def _room(target: str) -> str:
    return target.split(".")[1]


def _door(item: Import) -> tuple[str, str] | None:
    target = item.target.removeprefix("nsnet.")
    for who, what in DOORS:
        if who in {item.module.name, item.module.room} and (target == what or target.startswith(f"{what}.")):
            return who, what
    return None


def test_every_room_has_its_floor() -> None:
    rooms = {module.room for module in MODULES} - {"__init__"}
    assert sorted(rooms - FLOORS.keys()) == []


def test_imports_point_down_and_rooms_do_not_see_each_other() -> None:
    wrong = [
        str(item)
        for item in OURS
        if item.module.room != _room(item.target)
        and FLOORS[item.module.room] <= FLOORS[_room(item.target)]
        and not _door(item)
    ]
    assert wrong == []


def test_only_the_kernel_room_and_programs_make_system_calls() -> None:
    wrong = [
        str(item)
        for item in IMPORTS
        if item.target.partition(".")[0] in SYSTEM
        and item.module.room not in SYSTEM_ROOMS
        and (item.module.name, item.target.partition(".")[0]) not in ALLOWED
    ]
    assert wrong == []


def test_the_pure_rooms_see_no_clock_no_file_and_no_chance() -> None:
    """`render`, `diff`, `control` and the words: the same input, the same output."""
    pure = {"render", "diff", "control", "model", "state", "scopes", "trace", "faults", "routes"}
    impure = {"os", "time", "random", "secrets", "io", "uuid", "logging"}
    wrong = [str(item) for item in IMPORTS if item.module.room in pure and item.target.partition(".")[0] in impure]
    assert wrong == []


@pytest.mark.parametrize("word", ["setns", "pidfd_getfd"])
def test_only_netns_enters_a_namespace(word: str) -> None:
    users = [module.name for module in MODULES if _mentions(module.tree, word)]
    assert [name for name in users if name != "kernel.netns"] == []


def _mentions(tree: ast.Module, word: str) -> bool:
    return any(
        (isinstance(node, ast.Name) and node.id == word)
        or (isinstance(node, ast.Attribute) and node.attr == word)
        or (isinstance(node, ast.alias) and node.name == word)
        for node in ast.walk(tree)
    )


def test_the_kernel_room_lists_all_that_is_in_it() -> None:
    files = sorted((ROOT / "kernel").glob("[a-z]*.py"))
    told = ast.get_docstring(ast.parse((ROOT / "kernel" / "__init__.py").read_text())) or ""
    assert [file.name for file in files if told.split().count(file.name) != 1] == []


def test_only_the_roof_prints_and_exits() -> None:
    wrong = [
        f"nsnet.{module.name}:{node.lineno}"
        for module in MODULES
        if module.room not in SPEAKING_ROOMS
        for node in ast.walk(module.tree)
        if isinstance(node, ast.expr) and (_speaks(node) or (_ends(node) and module.name not in ENDING))
    ]
    assert wrong == []


def _speaks(node: ast.expr) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id in SPEAKING
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return node.value.id == "sys" and node.attr in STREAMS
    return False


def _ends(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "_exit"


def test_no_shell_is_ever_used() -> None:
    wrong = [
        f"nsnet.{module.name}:{node.lineno}"
        for module in MODULES
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and _uses_shell(node)
    ]
    assert wrong == []


def _uses_shell(call: ast.Call) -> bool:
    if isinstance(call.func, ast.Attribute) and call.func.attr in {"system", "popen", "getoutput", "getstatusoutput"}:
        return True
    return any(keyword.arg == "shell" for keyword in call.keywords)


def test_every_exception_is_still_used() -> None:
    used = {(item.module.name, item.target.partition(".")[0]) for item in IMPORTS}
    assert sorted(ALLOWED.keys() - used) == []
    assert sorted(DOORS.keys() - {_door(item) for item in OURS}) == []
    enders = {module.name for module in MODULES if any(map(_ends, ast.walk(module.tree)))}
    assert sorted(ENDING.keys() - enders) == []


def test_the_package_and_the_checkout_need_the_same() -> None:
    """`pip install .` reads pyproject.toml, scripts/setup reads requirements.txt."""
    lines = (ROOT.parent / "requirements.txt").read_text().splitlines()
    pinned = sorted(line for line in lines if line and not line.startswith("#"))
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    assert sorted(project["dependencies"]) == pinned
    assert all("==" in line for line in pinned)
