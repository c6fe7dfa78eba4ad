"""From what a user wrote to files: folders, split models, hub ids; paths never reach the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ktc.errors import HubError, SourceNotFoundError
from ktc.weights import locate as place
from ktc.weights.locate import is_hub_id, locate


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(hub_id: str) -> Path:
        raise AssertionError(f"{hub_id} reached the hub")

    monkeypatch.setattr(place, "_snapshot", refuse)


@pytest.mark.parametrize(
    "where",
    [
        "nowhere",
        "./nowhere",
        "../x/y",
        "/no/such/place",
        "a/b/c",
        "models/x.gguf",
        "owner/name.safetensors",
        "~/nowhere",
        "a\\b",
        "owner/",
        "/name",
        "",
        "owner/na me",
        "owner/..",
        "--/x",
        "x\0y",
    ],
)
def test_paths_that_do_not_exist(where: str) -> None:
    with pytest.raises(SourceNotFoundError):
        locate(where)


def test_path_objects_are_never_hub_ids() -> None:
    with pytest.raises(SourceNotFoundError):
        locate(Path("owner/name"))


def test_a_folder_of_the_owners_name_makes_it_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("owner/name")
    (tmp_path / "owner").mkdir()
    assert not is_hub_id("owner/name")


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).write_bytes(b"x")
    return folder


def test_kinds_of_folders(tmp_path: Path) -> None:
    def folder(name: str, *files: str) -> Path:
        (tmp_path / name).mkdir()
        return touch(tmp_path / name, *files)

    assert locate(folder("hf", "config.json", "model.safetensors")).kind == "safetensors"
    assert locate(folder("one", "a.gguf")).files == (tmp_path / "one" / "a.gguf",)
    refused = {
        "several GGUF models (a.gguf, b.gguf)": ("a.gguf", "b.gguf"),
        "both safetensors and GGUF": ("config.json", "model.safetensors", "a.gguf"),
        "no config.json": ("model.safetensors",),
        "no safetensors": ("config.json", "pytorch_model.bin"),
        "holds no model": ("readme.md",),
        "several GGUF models (a-00001-of-00002.gguf": (
            "a-00001-of-00002.gguf",
            "a-00002-of-00002.gguf",
            "b.gguf",
        ),
    }
    for number, (words, files) in enumerate(refused.items()):
        with pytest.raises(SourceNotFoundError) as caught:
            locate(folder(f"bad{number}", *files))
        assert words in str(caught.value)


def test_split_files(tmp_path: Path) -> None:
    names = [f"m-{i:05d}-of-00003.gguf" for i in (1, 2, 3)]
    touch(tmp_path, *names)
    expected = tuple(tmp_path / name for name in names)
    for where in (tmp_path, tmp_path / names[2], str(tmp_path / names[0])):
        assert locate(where).files == expected
    (tmp_path / names[1]).unlink()
    with pytest.raises(SourceNotFoundError, match=r"1 of 3 parts are missing, first m-00002-of-00003\.gguf"):
        locate(tmp_path / names[0])
    touch(tmp_path, "n-00005-of-00003.gguf")
    with pytest.raises(SourceNotFoundError, match="part 5 of 3"):
        locate(tmp_path / "n-00005-of-00003.gguf")


def test_single_files_of_other_kinds(tmp_path: Path) -> None:
    touch(tmp_path, "model.safetensors", "notes.txt")
    with pytest.raises(SourceNotFoundError, match="one safetensors file"):
        locate(tmp_path / "model.safetensors")
    with pytest.raises(SourceNotFoundError, match="neither"):
        locate(tmp_path / "notes.txt")


def test_hub_id_from_cache_and_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    import huggingface_hub

    calls: list[dict[str, Any]] = []

    def snapshot(hub_id: str, **options: Any) -> str:
        calls.append(options)
        if options.get("local_files_only"):
            raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        locate("owner/name")
    assert [call.get("local_files_only") for call in calls] == [True]

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(HubError, match="ConnectionError") as caught:
        locate("owner/name")
    assert "path" in caught.value.hint
    assert not any(pattern.endswith((".bin", ".py", ".pt")) for pattern in calls[-1]["allow_patterns"])

    touch(tmp_path, "config.json", "model.safetensors")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda hub_id, **options: str(tmp_path))
    assert locate("owner/name").path == tmp_path
