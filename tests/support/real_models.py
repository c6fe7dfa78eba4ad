"""The real models of the demo, for tests marked `models`: skipped where `make models` has not unpacked them."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "models"
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
GEMMA3 = "gemma-3-270m.Q4_K_M.gguf"
MINILM = "all-MiniLM-L6-v2"


def real_model(name: str) -> Path:
    """The path of a model; skips the test when it is not there."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"{path} is missing: run `make models`")
    return path
