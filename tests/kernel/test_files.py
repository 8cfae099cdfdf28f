"""Files of namespaces: where they stand says whose they are; written whole, with their mode; nothing empty is left."""

import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsnet import names
from nsnet.kernel import apply, destroy, files, observe
from nsnet.state import Change, File, Netns
from tests.byhand import adds, namespace

ROUTER, NODE = names.fabric_netns("t", "router"), names.node_netns("t", "n1")
RUN, ETC = names.run_dir("t"), names.ETC_NETNS

# (namespace, path)
PLACES = [
    (ROUTER, RUN / "podserver.json"),
    (ROUTER, RUN / "haproxy.conf"),
    (ROUTER, RUN / "fabric.router" / "x"),
    (NODE, RUN / "node.n1" / "flannel" / "subnet.env"),
    (NODE, ETC / NODE / "resolv.conf"),
]

STRANGE = [
    (NODE, RUN / "podserver.json"),
    (NODE, RUN / "node.n2" / "x"),
    (ROUTER, RUN / "podserver.txt"),
    (NODE, ETC / "resolv.conf"),
    (NODE, ETC / "t.node.n2" / "resolv.conf"),
    (NODE, Path("/etc/nsnet.strange")),
    (NODE, RUN / "node.n1" / ".." / ".." / ".." / ".." / "etc" / "nsnet.strange"),
]


@pytest.fixture(autouse=True)
def _two() -> Iterator[None]:
    assert apply(adds(namespace(ROUTER) | namespace(NODE))) == []
    yield
    assert destroy("t")
    assert not RUN.exists()
    assert list(ETC.iterdir()) == []


def found(name: str) -> set[File]:
    return {value for value in observe("t")[name] if isinstance(value, File)}


@pytest.mark.parametrize(("name", "path"), PLACES, ids=str)
def test_written_is_observed_and_deleted_leaves_no_directory(name: str, path: Path) -> None:
    value = File(str(path), "one\n", 0o640)
    assert apply([Change("add", name, value)]) == []
    assert found(name) == {value}
    assert {entry for other in {ROUTER, NODE} - {name} for entry in found(other)} == set()
    assert observe("t", {name: frozenset({value.key})}) == {name: {value}}
    new = File(str(path), "zwei ü\n", 0o600)
    assert apply([Change("replace", name, new, value)]) == []
    assert found(name) == {new}
    assert [entry for entry in path.parent.iterdir() if entry.is_file()] == [path], "nothing half written beside it"
    for _ in range(2):
        assert apply([Change("delete", name, new)]) == []
        assert found(name) == set()
    assert not path.parent.exists() or path.parent == ETC
    assert list(ETC.iterdir()) == []


@pytest.mark.parametrize(("name", "path"), STRANGE, ids=str)
def test_a_path_that_is_not_the_namespaces_is_refused(name: str, path: Path) -> None:
    refusals = apply([Change("add", name, File(str(path), "x"))])
    assert [refusal.reason for refusal in refusals] == ["the path is not one of the namespace's"]
    assert not path.exists()


def test_directories_are_private() -> None:
    apply([Change("add", name, File(str(path), "x")) for name, path in PLACES])
    made = [RUN, *(entry for entry in RUN.rglob("*") if entry.is_dir()), ETC / NODE]
    assert {stat.S_IMODE(directory.stat().st_mode) for directory in made} == {0o700}


def test_what_lies_beside_is_no_file_of_a_namespace() -> None:
    (RUN / "log").mkdir(parents=True, mode=0o700)
    for path in (RUN / "log" / "podserver.log", RUN / "podserver.json.sock", RUN / "lock", ETC / "other"):
        path.touch()
    assert (found(ROUTER), found(NODE)) == (set(), set())
    (ETC / "other").unlink()


@pytest.mark.parametrize("name", ["strange", names.SYSCTL_FILE])
def test_what_somebody_puts_there_is_drift(name: str) -> None:
    """It can be said, printed and sent, whatever its bytes are."""
    path = RUN / "node.n1" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\xff\xfe = 1")
    path.chmod(0o604)
    (value,) = found(NODE)
    assert value == File(str(path), r"\xff\xfe = 1", 0o604)
    assert apply([Change("delete", NODE, value)]) == []
    assert not RUN.exists()


def test_a_file_that_its_program_has_yet_to_read_is_observed_as_another_mode() -> None:
    value = File(str(RUN / "podserver.json"), "{}")
    files.write(value, unread=True)
    assert found(ROUTER) == {File(value.path, "{}", 0o1600)}
    files.has_been_read(Path(value.path))
    assert found(ROUTER) == {value}
    files.must_be_read(Path(value.path))
    assert found(ROUTER) == {File(value.path, "{}", 0o1600)}


def test_a_leftover_of_a_killed_writer_goes() -> None:
    value = File(str(RUN / "podserver.json"), "{}")
    assert apply([Change("add", ROUTER, value)]) == []
    (RUN / ".podserver.json.new.json").write_text("{")
    (leftover,) = found(ROUTER) - {value}
    assert apply([Change("delete", ROUTER, leftover)]) == []
    assert found(ROUTER) == {value}


def test_a_full_disk_is_a_refusal_and_the_old_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=True)
    monkeypatch.setattr(names, "RUN", small)
    old = File(str(small / "t" / "podserver.json"), "old")
    try:
        assert apply([Change("add", ROUTER, old)]) == []
        new = File(old.path, "x" * 200_000)
        (refusal,) = apply([Change("replace", ROUTER, new, old)])
        assert "No space left on device" in refusal.reason
        assert found(ROUTER) == {old}
    finally:
        files.delete_cluster("t")
        subprocess.run(["umount", str(small)], check=True)


def test_with_the_namespace_go_its_files() -> None:
    apply([Change("add", name, File(str(path), "x")) for name, path in PLACES])
    assert apply([Change("delete", NODE, Netns("nsnet/t"))]) == []
    assert sorted(path.name for path in RUN.iterdir()) == ["fabric.router", "haproxy.conf", "podserver.json"]
    assert list(ETC.iterdir()) == []
