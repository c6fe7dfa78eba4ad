"""Packed artifacts: the same answers as from the source, which may be gone; whatever is damaged is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ktc.backends import registry
from support.families import FAMILIES, PROGRAM, write
from support.gguf_files import write_gguf
from support.real_models import SMOLLM2, real_model
from support.tiny_models import tiny_model

import ktc
from ktc.errors import ArtifactError
from ktc.runtime import artifact as artifacts
from ktc.runtime import packed as packed_module
from ktc.runtime.packed import ALIGNMENT, PackedWeights
from ktc.runtime.placement import Placement

RULES = """model LlamaForCausalLM from "{path}"
include "std/llama.kt"
device host = cpu (memory = 1GiB)
device far = cpu (memory = 1GiB)
rule everything {{ match ** place host }}
rule second {{ match model.layers[1] place far }}
rule cache {{ match @attention cache paged(dtype = f16, tokens = 256) }}
"""
IDS = torch.tensor([[1, 7, 42, 99, 5, 260, 3, 17, 300]])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed artifact over two devices whose source is gone."""
    folder = tmp_path_factory.mktemp("packed")
    weights = write_gguf(tiny_model("llama"), folder / "m.gguf", "q8_0")
    (folder / "rules.kt").write_text(RULES.format(path=weights))
    ktc.compile(folder / "rules.kt", output=folder / "a.ktc", pack=True)
    weights.unlink()
    return folder / "a.ktc"


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A copy of the artifact, to be damaged."""
    return Path(shutil.copytree(made, tmp_path / "copy.ktc"))


def packed_of(folder: Path) -> PackedWeights:
    found = artifacts.load(folder).packed
    assert found is not None
    return found


def logits(model: Any) -> list[torch.Tensor]:
    """Of a prompt and of one more token."""
    first = model(IDS)
    return [first.logits, model(torch.tensor([[11]]), past_key_values=first.past_key_values).logits]


FILE = """rule blocks { match @linears kernel torch.linear_blocks }
rule rows { match **.embed_tokens kernel cpu.embedding_file }
"""
CASES = {
    "linear": ("llama", "mixed", "", {"r16", "dense"}),
    "file": ("llama", "q8_0", FILE, {"file", "dense", "r16"}),
    "dense": ("llama", "f16", "rule exact { match @linears kernel torch.linear }\n", {"dense", "r16"}),
    "experts": ("qwen3_moe", "experts-q4_k", "", {"r16", "r16.experts", "dense"}),
    "experts, file": (
        "mixtral",
        "q8_0",
        "rule e { match **.experts kernel torch.experts_blocks }\n",
        {"r16", "file", "dense"},
    ),
    "latent": ("deepseek_v3", "q8_0", "", set()),
    "latent, fp8": ("deepseek_v3", "safetensors-fp8", "", set()),
    "mxfp4": ("gpt_oss", "safetensors-mxfp4", "", {"r16", "r16.experts", "dense"}),
}


@pytest.mark.parametrize("case", CASES)
def test_same_logits_bit_for_bit_without_the_source(case: str, tmp_path: Path) -> None:
    name, format, extra, layouts = CASES[case]
    family, source = FAMILIES[name], tmp_path / "source"
    source.mkdir()
    path = write(tiny_model(family.architecture, **family.changes), family, format, source, {})
    done = ktc.compile(PROGRAM.format(name=family.class_name, library=family.library, path=path) + extra)
    expected = logits(done.load())
    done.save(tmp_path / "a.ktc", pack=True)
    shutil.rmtree(source)
    found = packed_of(tmp_path / "a.ktc")
    used = {entry.layout for entry in found.entries}
    assert used == layouts if layouts else len(used) >= 3
    found.verify()
    got = logits(ktc.load(tmp_path / "a.ktc"))
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


FRESH = """
import sys, torch, ktc
print(ktc.load(sys.argv[1]).generate(torch.tensor([[1, 7]]), max_new_tokens=4)[0].tolist())
"""


def test_a_fresh_process_needs_the_folder_only(made: Path, copy: Path) -> None:
    model = ktc.load(made)
    assert getattr(model, "tokenizer") is not None  # noqa: B009  (PreTrainedModel declares none)
    expected = model.generate(torch.tensor([[1, 7]]), max_new_tokens=4)[0].tolist()
    done = subprocess.run([sys.executable, "-c", FRESH, str(copy)], capture_output=True, text=True, cwd="/")
    assert done.stdout.strip() == str(expected), done.stderr


def test_places_are_aligned_in_the_file_and_in_memory(made: Path) -> None:
    found = packed_of(made)
    assert set(found.sizes) == {"host", "far"} and all(e.offset % ALIGNMENT == 0 for e in found.entries)
    for device, size in found.sizes.items():
        assert (made / f"weights-{device}.bin").stat().st_size == size
    seen: list[tuple[int, int]] = []
    tensors = found.load(lambda done, total: seen.append((done, total)))
    assert list(tensors) and all(t.data_ptr() % ALIGNMENT == 0 for t in tensors.values())
    assert len({t.untyped_storage().data_ptr() for t in tensors.values()}) == len(tensors)
    assert [d for d, _ in seen] == sorted(d for d, _ in seen) and seen[-1] == (found.nbytes, found.nbytes)
    seen.clear()
    found.verify(lambda done, total: seen.append((done, total)))
    assert seen[-1] == (found.nbytes, found.nbytes)


def test_weights_of_other_devices_are_moved_one_by_one(made: Path) -> None:
    found = packed_of(made)
    placement: Placement = replace(found.placement, devices={"host": "cpu", "far": "meta"})
    tensors, here = replace(found, placement=placement).load(), found.load()
    assert {t.device.type for t in tensors.values()} == {"cpu", "meta"}
    for entry in found.entries:
        got, expected = tensors[entry.name], here[entry.name]
        assert got.shape == expected.shape and got.dtype == expected.dtype
        assert (got.device.type == "meta") == (entry.device == "far")


def test_a_packed_artifact_takes_no_other_weights(made: Path) -> None:
    with pytest.raises(ArtifactError, match="holds its weights"):
        ktc.load(made, model="elsewhere.gguf")


def table(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[Path], None]:
    """A change to the rows of `weights.json`."""

    def apply(folder: Path) -> None:
        path = folder / "weights.json"
        data = json.loads(path.read_text())
        change(data["weights"])
        path.write_text(json.dumps(data))

    return apply


def cut(size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(
        folder / "weights-far.bin", (folder / "weights-far.bin").stat().st_size + size
    )


def leads_out(folder: Path) -> None:
    """Renames a device in plan and table alike to a path."""
    for name in ("plan.json", "weights.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace('"far"', '"/../far"'))


def pipe(folder: Path) -> None:
    (folder / "weights-far.bin").unlink()
    os.mkfifo(folder / "weights-far.bin")


def directory(folder: Path) -> None:
    (folder / "weights-far.bin").unlink()
    (folder / "weights-far.bin").mkdir()


def last_far(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return [row for row in rows if row["device"] == "far"][-1]


DAMAGE: dict[str, Callable[[Path], None]] = {
    "offset beyond the file": table(lambda t: last_far(t).update(offset=1 << 40)),
    "offset negative": table(lambda t: t[0].update(offset=-4096)),
    "offset not aligned": table(lambda t: t[1].update(offset=t[1]["offset"] + 64)),
    "overlap": table(lambda t: last_far(t).update(offset=0)),
    "gap": table(lambda t: last_far(t).update(offset=last_far(t)["offset"] + ALIGNMENT)),
    "offset a bool": table(lambda t: t[0].update(offset=False)),
    "offset a float": table(lambda t: t[0].update(offset=0.0)),
    "offset huge": table(lambda t: t[0].update(offset=1 << 80)),
    "size": table(lambda t: last_far(t).update(nbytes=last_far(t)["nbytes"] - 1)),
    "size zero": table(lambda t: t[0].update(nbytes=0)),
    "checksum a text": table(lambda t: t[0].update(crc32="0")),
    "name": table(lambda t: t[0].update(name="model.nothing")),
    "device": table(lambda t: t[0].update(device="moon")),
    "device a list": table(lambda t: t[0].update(device=["host"])),
    "row missing": table(lambda t: t.pop()),
    "row twice": table(lambda t: t.append(t[0])),
    "rows swapped": table(lambda t: t.reverse()),
    "field more": table(lambda t: t[0].update(more=1)),
    "field missing": table(lambda t: t[0].pop("crc32")),
    "row no object": table(lambda t: t.__setitem__(0, 3)),
    "layout": table(lambda t: t[0].update(layout="r32")),
    "layout a number": table(lambda t: t[0].update(layout=16)),
    "leads out": leads_out,
    "pipe": pipe,
    "directory": directory,
    "file gone": lambda folder: (folder / "weights-far.bin").unlink(),
    "file empty": lambda folder: os.truncate(folder / "weights-far.bin", 0),
    "file one byte short": cut(-1),
    "file a page short": cut(-ALIGNMENT),
    "file too long": cut(1),
    "table gone": lambda folder: (folder / "weights.json").unlink(),
    "table empty": lambda folder: (folder / "weights.json").write_text(""),
    "table deep": lambda folder: (folder / "weights.json").write_text("[" * 100_000),
    "table a list": lambda folder: (folder / "weights.json").write_text("[]"),
    "table of nothing": lambda folder: (folder / "weights.json").write_text("{}"),
    "rows a number": lambda folder: (folder / "weights.json").write_text('{"version": 1, "weights": 3}'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_before_anything_is_read(copy: Path, damage: str) -> None:
    DAMAGE[damage](copy)
    with pytest.raises(ArtifactError):
        artifacts.load(copy)


def test_a_truncated_table(copy: Path) -> None:
    whole = (copy / "weights.json").read_bytes()
    for length in range(1, len(whole) - 3, max(1, len(whole) // 40)):
        (copy / "weights.json").write_bytes(whole[:length])
        with pytest.raises(ArtifactError):
            artifacts.load(copy)


PLAN_DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "size": lambda w: w.update(nbytes=64),
    "shape": lambda w: w.update(shape=[1 << 40, 1 << 20]),
    "shape negative": lambda w: w.update(shape=[-1, -32]),
    "shape a text": lambda w: w.update(shape="ab"),
    "format": lambda w: w.update(format="q9_9"),
    "format a list": lambda w: w.update(format=[]),
    "kernel unknown": lambda w: w.update(kernel="cpu.nothing"),
    "kernel that packs nothing": lambda w: w.update(kernel="cpu.rms_norm"),
    "kernel none": lambda w: w.update(kernel=None),
}


@pytest.mark.parametrize("damage", PLAN_DAMAGE)
def test_a_plan_that_does_not_fit_the_table(copy: Path, damage: str) -> None:
    plan = json.loads((copy / "plan.json").read_text())
    PLAN_DAMAGE[damage](next(w for w in plan["weights"] if w["kernel"] == "cpu.linear"))
    (copy / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ArtifactError):
        artifacts.load(copy)


@pytest.mark.parametrize("where", ["sources", None, 3, ["packed"]])
def test_a_manifest_with_weights_elsewhere(copy: Path, where: object) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "weights": where}))
    with pytest.raises(ArtifactError):
        artifacts.load(copy)


def change_byte(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_changed_bytes(copy: Path) -> None:
    """At a weight's ends they are found when it is loaded; in between, on request."""
    entry = max(packed_of(copy).entries, key=lambda e: e.nbytes)
    path, last = copy / f"weights-{entry.device}.bin", entry.offset + entry.nbytes - 1
    assert entry.nbytes > 3 * ALIGNMENT
    for offset in (entry.offset, entry.offset + ALIGNMENT - 1, last - ALIGNMENT + 1, last):
        change_byte(path, offset)
        with pytest.raises(ArtifactError, match="not what was packed"):
            ktc.load(copy)
        with pytest.raises(ArtifactError, match="checksum differs") as caught:
            packed_of(copy).verify()
        assert entry.name in str(caught.value)
        change_byte(path, offset)
    change_byte(path, entry.offset + 2 * ALIGNMENT)
    packed_of(copy).load()
    with pytest.raises(ArtifactError, match="checksum differs"):
        packed_of(copy).verify()
    change_byte(path, entry.offset + 2 * ALIGNMENT)
    packed_of(copy).verify()


def test_a_file_that_shrinks_while_it_is_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, read = packed_of(copy), packed_module.read_pieces

    def shrink(file: int, *arguments: Any, **options: Any) -> None:
        for path in copy.glob("weights-*.bin"):
            os.truncate(path, 4096)
        read(file, *arguments, **options)

    monkeypatch.setattr(packed_module, "read_pieces", shrink)
    for use in (found.load, found.verify):
        with pytest.raises(ArtifactError):
            use()


def test_another_version_of_a_layout_or_of_the_table(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    r16 = registry.kernels()["cpu.linear"].layout
    assert r16 is not None
    newer = {
        name: replace(kernel, layout=replace(r16, version=2)) if kernel.layout is r16 else kernel
        for name, kernel in registry.kernels().items()
    }
    with monkeypatch.context() as patch:
        patch.setattr(packed_module, "kernels", lambda: newer)
        with pytest.raises(ArtifactError, match=r"version 1 of the layout 'r16'") as caught:
            artifacts.load(copy)
        assert "model.embed_tokens.weight" in str(caught.value) and "pack again" in str(caught.value)
    data = json.loads((copy / "weights.json").read_text())
    (copy / "weights.json").write_text(json.dumps({**data, "version": 2}))
    with pytest.raises(ArtifactError, match="version 2"):
        artifacts.load(copy)


def test_more_weights_than_memory(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = packed_of(made)
    monkeypatch.setattr("ktc.runtime.packed.available_memory", lambda: found.nbytes - 1)
    with pytest.raises(ArtifactError, match="memory are free"):
        found.load()
    monkeypatch.setattr("ktc.runtime.packed.available_memory", lambda: None)

    def full(capacity: int, threads: int) -> None:
        raise MemoryError(f"{capacity} bytes")

    monkeypatch.setattr(packed_module, "TensorArena", full)
    with pytest.raises(ArtifactError, match="no memory for the weights"):
        found.load()


MEASURE = """
import re, sys
from pathlib import Path
import ktc.backends.cpu, ktc.backends.torch
from ktc.runtime import artifact
found = artifact.load(Path(sys.argv[1])).packed
def status(key):
    return 1024 * int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held now
before = status("VmRSS")
tensors = found.load()
print(found.nbytes, status("VmHWM") - before, status("VmRSS") - before)
"""


@pytest.mark.models
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_holds_the_weights_once(tmp_path: Path) -> None:
    """The most memory that a process takes while it loads is that of the arena."""
    text = RULES.format(path=real_model(SMOLLM2)).replace("= f16, tokens = 256", "= f16, tokens = 2048")
    ktc.compile(text, output=tmp_path / "a.ktc", pack=True)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "a.ktc")], capture_output=True, text=True
    )
    if "clear_refs" in done.stderr:
        pytest.skip("this system does not let a process reset its peak")
    assert done.returncode == 0, done.stderr
    nbytes, peak, held = map(int, done.stdout.split())
    assert nbytes > 80e6
    assert 0.95 * nbytes < held <= peak < 1.15 * nbytes
