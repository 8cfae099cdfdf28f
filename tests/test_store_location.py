"""`--store` in words, and the file that remembers it."""

from pathlib import Path

import pytest

from nsnet.errors import InputError, MachineError
from nsnet.store import opening
from nsnet.store.location import Here, Location, checked, here, inside, parsed, settle


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("sqlite", "sqlite"),
        ("etcd", "etcd"),
        ("etcd://10.0.0.1", "etcd://10.0.0.1:2379"),
        ("etcd://a:1,b,[fd00::1]:3", "etcd://a:1,b:2379,[fd00::1]:3"),
        ("etcd://a/", "etcd://a:2379"),
        ("etcd://a/demo/", "etcd://a:2379/demo"),
        ("etcds://a", "etcds://a:2379"),
        ("etcd://a?cacert=/p/ca.pem", "etcds://a:2379?cacert=/p/ca.pem"),
        ("etcds://a/x?key=/k&cert=/c&cacert=/ca", "etcds://a:2379/x?cacert=/ca&cert=/c&key=/k"),
    ],
)
def test_what_is_meant(said: str, meant: str) -> None:
    assert checked(said) == meant
    assert checked(meant) == meant


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("etcd:///x", "names no host"),
        ("etcd://a:b", "is not a store"),
        ("etcd://a,", "names no host"),
        ("etcd://me:secret@a", "password"),
        ("etcd://a?certificate=x", "certificate is none of"),
        ("etcd://a?cert=x", "cert and key go together"),
        ("etcd://a/de mo", "is no prefix"),
        ("etcd://a/../b?x", "is not a store"),
        ("mysql://a", "none of these"),
        ("", "none of these"),
    ],
)
def test_what_cannot_be_meant(said: str, why: str) -> None:
    with pytest.raises(InputError, match=why) as raised:
        checked(said)
    assert "write sqlite, etcd, or etcd://HOST:2379" in raised.value.hint


def test_the_parts() -> None:
    assert parsed("etcds://a:1,b:2/demo?cacert=/ca") == Location(
        "etcds://a:1,b:2/demo?cacert=/ca", ("a:1", "b:2"), "/demo", tls=True, cacert="/ca"
    )


def test_it_is_remembered_for_root_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nsnet.names.STATE", tmp_path)
    assert here("demo") == Here("sqlite")
    assert not opening.exists("demo")
    settle("demo", Here("etcd://a:2379", "b"))
    assert here("demo") == Here("etcd://a:2379", "b")
    assert opening.exists("demo")
    assert (tmp_path / "demo" / "here.json").stat().st_mode & 0o777 == 0o600
    assert inside("demo").endpoints == (f"unix:{tmp_path}/demo/etcd/etcd.sock:0",)
    (tmp_path / "demo" / "here.json").write_text("nonsense")
    with pytest.raises(MachineError, match="does not say where the store is"):
        here("demo")
    settle("demo", Here())
    assert list(tmp_path.iterdir()) == []
