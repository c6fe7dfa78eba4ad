"""The committed types of the C++ module are those of the module."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "cpp" / "tools" / "write_stub.py"


def test_stub_is_up_to_date() -> None:
    pytest.importorskip("nanobind", reason="the stub is made by nanobind's generator")
    pytest.importorskip("ruff", reason="the stub is formatted with ruff")
    spec = importlib.util.spec_from_file_location("write_stub", TOOL)
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.STUB.read_text() == tool.stub(), "run python cpp/tools/write_stub.py"
