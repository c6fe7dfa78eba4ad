"""Packing: one weight in memory at a time, nothing half-valid left behind, what stood there kept until the end."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from support.gguf_files import write_gguf
from support.tiny_models import tiny_model

import ktc
from ktc.api import CompiledModel
from ktc.errors import ArtifactError, KtcError, WeightError
from ktc.runtime import artifact as artifacts
from ktc.runtime import packing
from ktc.runtime.load import StoredWeight, read_weight
from ktc.weights.source import WeightSource

RULES = """model LlamaForCausalLM from "{path}"
include "std/llama.kt"
device host = cpu (memory = 1GiB)
rule everything {{ match ** place host }}
rule cache {{ match @attention cache paged(dtype = f16, tokens = 64) }}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> CompiledModel:
    """A compiled model, nothing saved."""
    path = write_gguf(tiny_model("llama"), tmp_path_factory.mktemp("packing") / "m.gguf", "q8_0")
    return ktc.compile(RULES.format(path=path))


def test_one_weight_is_held_at_a_time(
    done: CompiledModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[torch.Tensor]] = []

    def watched(source: WeightSource, item: StoredWeight) -> torch.Tensor:
        assert all(ref() is None for ref in made)
        tensor = read_weight(source, item)
        made.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(packing, "read_weight", watched)
    seen: list[tuple[int, int]] = []
    done.save(tmp_path / "a.ktc", pack=True, progress=lambda n, total: seen.append((n, total)))
    assert len(made) == len(done.placement.weights) == len(seen)
    assert [n for n, _ in seen] == sorted(n for n, _ in seen)
    assert seen[-1] == ((tmp_path / "a.ktc" / "weights-host.bin").stat().st_size,) * 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("the disk is gone"), MemoryError, SystemExit])
def test_an_interrupted_pack_leaves_what_was_there(
    done: CompiledModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    target, calls = tmp_path / "a.ktc", 0

    def interrupted(*arguments: Any) -> int:
        nonlocal calls
        calls += 1
        if calls % 5 == 0:
            raise error
        return write(*arguments)

    write = packing._write
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_write", interrupted)
        with pytest.raises((KeyboardInterrupt, KtcError, MemoryError, SystemExit)):
            done.save(target, pack=True)
        assert list(tmp_path.iterdir()) == []
    done.save(target)
    before = (target / "manifest.json").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_write", interrupted)
        with pytest.raises((KeyboardInterrupt, KtcError, MemoryError, SystemExit)):
            done.save(target, pack=True)
    assert list(tmp_path.iterdir()) == [target] and (target / "manifest.json").read_text() == before
    artifacts.load(target)


def test_packed_replaces_unpacked_and_the_other_way_round(done: CompiledModel, tmp_path: Path) -> None:
    target = tmp_path / "a.ktc"
    for pack in (False, True, True, False):
        done.save(target, pack=pack)
        assert (artifacts.load(target).packed is not None) == pack == (target / "weights.json").exists()
        assert artifacts.load(target).manifest["weights"] == ("packed" if pack else "source")
        assert list(tmp_path.iterdir()) == [target]


def test_a_place_that_cannot_be_taken_keeps_what_it_had(
    done: CompiledModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.ktc"
    done.save(target)
    rename = Path.rename

    def refused(self: Path, to: Path) -> Path:
        if Path(to) == target and not self.name.endswith(".old"):
            raise OSError("not now")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OSError, match="not now"):
        done.save(target, pack=True)
    assert list(tmp_path.iterdir()) == [target] and artifacts.load(target).packed is None


def test_a_disk_without_room(done: CompiledModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    with pytest.raises(ArtifactError, match="has 1048576 left"):
        done.save(tmp_path / "a.ktc", pack=True)
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_cannot_be_read_is_named(
    done: CompiledModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = done.compiled.context.source
    assert source is not None

    def broken(recipe: Any) -> Any:
        raise ValueError("nonsense")

    monkeypatch.setattr(source, "read", broken)
    with pytest.raises(WeightError, match="nonsense") as caught:
        done.save(tmp_path / "a.ktc", pack=True)
    assert caught.value.tensor == "model.embed_tokens.weight" and list(tmp_path.iterdir()) == []


def test_packing_needs_weights_and_a_place(done: CompiledModel, tmp_path: Path) -> None:
    with pytest.raises(KtcError, match="need a place"):
        ktc.compile(RULES, pack=True)
    with pytest.raises(KtcError, match="needs the weights"):
        ktc.compile(RULES, pack=True, output=tmp_path / "a.ktc", weights=False)
