"""The examples: each passes `ktc check` and `ktc fmt --check`; those whose model is here compile."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from ktc.grammar import check
from ktc.passes.plan_memory import DeviceMemory
from support.real_models import GEMMA3, MINILM, SMOLLM2, real_model

import ktc
from ktc.cli import main

EXAMPLES = Path(__file__).parents[1] / "examples"
PROGRAMS = sorted(EXAMPLES.glob("*.kt"))
GIB = 2**30


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
    assert {path.stem for path in PROGRAMS} == {
        "smollm2",
        "gemma3",
        "two-devices",
        "deepseek-v3",
        "qwen3-30b-a3b",
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


def test_deepseek_v3_is_planned_without_weights() -> None:
    devices = memory_of("deepseek-v3", model=EXAMPLES / "configs" / "deepseek-v3", weights=False)
    # 671.0 B parameters: 654.1 B in routed experts and 0.9 B in the embedding stay in host memory, the rest in bf16.
    assert 30 * GIB < devices["gpu"].weights < 31 * GIB
    assert devices["host"].cache == 0
    assert devices["gpu"].peak <= 80 * GIB - 1.5 * GIB


def test_qwen3_30b_a3b_is_planned_without_weights() -> None:
    host = memory_of("qwen3-30b-a3b", model=EXAMPLES / "configs" / "qwen3-30b-a3b", weights=False)["host"]
    # Keys and values: 48 layers, 4 heads of 128 in bf16, for 8192 tokens.
    assert host.cache == 2 * 48 * 4 * 128 * 2 * 8192
    assert host.weights > 14 * GIB


@pytest.mark.models
def test_minilm_agrees_with_eager() -> None:
    real_model(MINILM)
    spec = importlib.util.spec_from_file_location("minilm_example", EXAMPLES / "minilm.py")
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    assert example.main() > 0.999
