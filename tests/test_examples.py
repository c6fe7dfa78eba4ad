"""The examples: each passes `ktc check` and `ktc fmt --check`; those whose model is here compile."""

from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from ktc.grammar import check
from ktc.grammar.values import Symbol
from ktc.passes.plan_memory import DeviceMemory
from support.real_models import GEMMA3, MINILM, SMOLLM2, real_model

import ktc
from ktc.cli import main
from ktc.weights.formats import nbytes

EXAMPLES = Path(__file__).parents[1] / "examples"
CONFIGS = EXAMPLES / "configs"
PROGRAMS = sorted(EXAMPLES.glob("*.kt"))
GIB = 2**30


@dataclass(frozen=True)
class Planned:
    """An example, the configuration it is planned for with four layers, and formats that its plan must hold."""

    example: str
    config: str
    formats: frozenset[str]
    params: tuple[tuple[str, object], ...] = ()


def _planned(example: str, config: str, formats: str, **params: object) -> Planned:
    return Planned(example, config, frozenset(formats.split()), tuple(params.items()))


PLANNED = (
    _planned("llama-gpu", "llama-3-8b", "q4_k q6_k q8_0", host_layers=1),
    _planned("qwen2-cpu", "qwen2.5-7b", "q4_k q6_k", careful=1),
    _planned("qwen2-gpu", "qwen2.5-7b", "q8_0"),
    _planned("qwen3-cpu", "qwen3-8b", "q4_k q8_0"),
    _planned("qwen3-gpu", "qwen3-8b", "q8_0", fast=4 * GIB),
    _planned("gemma3-gpu", "gemma-3-27b", "q4_k q6_k", host_layers=1),
    _planned("qwen2-moe-cpu", "qwen2-57b-a14b", "q4_k q8_0 f32"),
    _planned("qwen2-moe-gpu", "qwen2-57b-a14b", "q4_k q8_0 f32", gpu_layers=1),
    _planned("qwen3-moe-cpu", "qwen3-30b-a3b", "q4_k q8_0 f32", careful=1),
    _planned("qwen3-moe-gpu", "qwen3-235b-a22b", "q4_k q6_k q8_0 f32", bits=Symbol("q4_k"), gpu_layers=1),
    _planned("mixtral-cpu", "mixtral-8x22b", "q4_k q8_0 f32"),
    _planned("mixtral-gpu", "mixtral-8x7b", "q4_k q8_0 f32", gpu_layers=1),
    _planned("deepseek-v2-cpu", "deepseek-v2-lite", "q4_0 q8_0 f32"),
    _planned("deepseek-v2-cpu", "deepseek-v2", "q4_k q8_0 f32"),
    _planned("deepseek-v2-gpu", "deepseek-v2", "q4_k q8_0 f32", gpu_layers=1),
    _planned("deepseek-v3-cpu", "deepseek-v3", "q4_k q6_k q8_0 f32", experts_per_token=6),
    _planned("deepseek-v3-gpu", "deepseek-v3", "q4_k q6_k q8_0 f32", gpu_layers=1),
    _planned("deepseek-v3-multi-gpu", "deepseek-v3", "q4_k q6_k q8_0 f32", devices=2),
    _planned("gpt-oss-cpu", "gpt-oss-120b", "mxfp4 q8_0 f32"),
    _planned("gpt-oss-gpu", "gpt-oss-120b", "mxfp4 q8_0 f32", gpu_layers=1),
    _planned("glm4-moe-cpu", "glm-4.5-air", "q4_0 q8_0 f32"),
    _planned("glm4-moe-gpu", "glm-4.5-air", "q4_0 q8_0 f32", gpu_layers=1),
)


def memory_of(name: str, **where: object) -> dict[str, DeviceMemory]:
    """Compiles an example and returns what its memory plan says of each device."""
    compiled, _ = ktc.compile(EXAMPLES / f"{name}.kt", **where)  # type: ignore[arg-type]
    plan = compiled.context.memory
    assert plan is not None
    return dict(plan.devices)


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_checked_and_formatted(path: Path) -> None:
    assert main(["check", str(path)]) == 0
    assert main(["fmt", "--check", str(path)]) == 0


def test_no_program_is_left_out() -> None:
    assert {path.stem for path in PROGRAMS} == {"smollm2", "gemma3", "two-devices"} | {
        p.example for p in PLANNED
    }


def test_readme_checks_cleanly() -> None:
    text = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```kt\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    for block in blocks:
        assert [item.message for item in check(block, text=True).diagnostics] == []


@pytest.mark.models
@pytest.mark.parametrize(("name", "model"), [("smollm2", SMOLLM2), ("gemma3", GEMMA3)])
def test_one_device_holds_the_weights_of_the_file(name: str, model: str) -> None:
    path = real_model(model)
    host = memory_of(name)["host"]
    assert 0.9 * path.stat().st_size < host.weights < path.stat().st_size
    assert host.cache > 0


@pytest.mark.models
def test_two_devices_share_the_layers() -> None:
    real_model(SMOLLM2)
    devices = memory_of("two-devices", params={"fast_layers": 10})
    # A third of the layers is on the fast device, and the cache follows its layers.
    assert devices["fast"].cache * 2 == devices["slow"].cache
    assert 0 < devices["fast"].weights < devices["slow"].weights / 2


def shortened(config: str, folder: Path, layers: int) -> Path:
    """A configuration of examples/configs with fewer layers, as wide as it is."""
    fields = json.loads((CONFIGS / config / "config.json").read_text(encoding="utf-8"))
    fields["num_hidden_layers"] = layers
    if "layer_types" in fields:
        fields["layer_types"] = fields["layer_types"][:layers]
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    return folder


@pytest.mark.parametrize("planned", PLANNED, ids=lambda planned: f"{planned.example}-{planned.config}")
def test_planned_with_a_few_layers(planned: Planned, tmp_path: Path) -> None:
    """Every example compiles for its model, as wide as it is, and holds quantised weights in their blocks."""
    model = shortened(planned.config, tmp_path / planned.config, layers=5)
    compiled, _ = ktc.compile(
        EXAMPLES / f"{planned.example}.kt", model=model, weights=False, params=dict(planned.params)
    )
    context = compiled.context
    formats = {weight.format for weight in context.weights.values()}
    assert planned.formats <= formats
    for weight in context.weights.values():
        *outer, columns = weight.shape
        padded = (*outer[:-1], -(-outer[-1] // 16) * 16, columns) if outer else (columns,)
        for store in weight.stores.values():
            # As large as in a file, or with what packing pads; as an ordinary tensor it would be more than thrice that.
            assert store.nbytes <= 1.1 * nbytes(weight.format, padded), store.name
    caches = {name for name, memory in context.memory.devices.items() if memory.cache}
    homes = {name for name in context.devices if name.startswith(("gpu", "host"))}
    assert caches and caches <= homes
    assert all(memory.peak > memory.cache for memory in context.memory.devices.values() if memory.cache)


def test_deepseek_v3_leaves_room_on_one_gpu_of_24_gb() -> None:
    """At full size: attention, dense and shared layers in 4 bits, latents cached, routed experts on the host."""
    devices = memory_of("deepseek-v3-gpu", model=CONFIGS / "deepseek-v3", weights=False)
    gpu, host = devices["gpu"], devices["host"]
    assert gpu.peak <= 14 * GIB
    # A latent of 512 and a rotated key of 64 elements in bf16, for 61 layers: 68.6 KiB a token.
    assert gpu.cache == 61 * (512 + 64) * 2 * 8192
    # 654.1 B parameters of routed experts, 144 bytes for 256 of them.
    assert 654.1e9 * 144 / 256 <= host.weights < 1.05 * 654.1e9 * 144 / 256
    assert host.cache == 0


def test_deepseek_v3_over_several_gpus_differs_by_one_parameter(tmp_path: Path) -> None:
    layers = 8
    model = shortened("deepseek-v3", tmp_path / "v3", layers)
    one = None
    for count in (1, 2, 4, 8):
        compiled, _ = ktc.compile(
            EXAMPLES / "deepseek-v3-multi-gpu.kt", model=model, weights=False, params={"devices": count}
        )
        memory = compiled.context.memory.devices
        gpus = [memory[f"gpus[{index}]"] for index in range(8)]
        used, idle = gpus[:count], gpus[count:]
        assert all(device.peak == 0 for device in idle)
        # The same weights and caches, shared out: the caches evenly, whole layers each.
        one = one or gpus[0]
        assert sum(device.weights for device in used) == one.weights
        assert {device.cache for device in used} == {one.cache // count}
        assert memory["host"].weights > 5 * one.weights
        crossings = Counter(
            (event.data["source"], event.data["device"])
            for event in compiled.context.events
            if event.kind == "transfer"
        )
        # From a GPU to the next goes the hidden state, once; each layer with experts sends their sum back to its own.
        between = {pair: n for pair, n in crossings.items() if "host" not in pair}
        assert between == {(f"gpus[{i}]", f"gpus[{i + 1}]"): 1 for i in range(count - 1)}
        moe = [layer for layer in range(layers) if layer >= 3]
        per_gpu = Counter(layer * count // layers for layer in moe)
        for index in range(count):
            # Besides, each GPU gets the step's descriptor (4 tensors), the rotary tables (2), and the first one the
            # embedded tokens, the last one which logits are wanted.
            once = 6 + (index == 0) + (index == count - 1)
            assert crossings["host", f"gpus[{index}]"] == per_gpu[index] + once
            # To the experts go the tokens, their choices and the weights of those; at the end, logits.
            assert crossings[f"gpus[{index}]", "host"] == 3 * per_gpu[index] + (index == count - 1)


@pytest.mark.models
def test_minilm_agrees_with_eager() -> None:
    real_model(MINILM)
    spec = importlib.util.spec_from_file_location("minilm_example", EXAMPLES / "minilm.py")
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    assert example.main() > 0.999
