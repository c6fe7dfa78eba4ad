"""`ktc compile --pack` and `ktc inspect --verify`: an artifact that answers without the file it was made of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.gguf_files import write_gguf
from support.tiny_models import tiny_model

from ktc.cli import main

RULES = """model LlamaForCausalLM from "m.gguf"
include "std/llama.kt"
device host = cpu (memory = 1GiB)
rule everything { match ** place host }
rule cache { match @attention cache paged(dtype = f16, tokens = 64) }
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`rules.kt` with its packed artifact `rules.ktc` and an unpacked one; the model is gone."""
    folder = tmp_path_factory.mktemp("pack")
    write_gguf(tiny_model("llama"), folder / "m.gguf", "q8_0")
    (folder / "rules.kt").write_text(RULES)
    assert main(["compile", str(folder / "rules.kt"), "--pack"]) == 0
    assert main(["compile", str(folder / "rules.kt"), "-o", str(folder / "plain.ktc")]) == 0
    (folder / "m.gguf").unlink()
    return folder


def test_run_without_the_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["Once", "-n", "3", "--raw", "--temperature", "0", "--stats"]
    assert main(["run", str(folder / "rules.ktc"), *arguments]) == 0
    assert "answer 3 tokens" in capsys.readouterr().err
    assert main(["run", str(folder / "plain.ktc"), *arguments]) == 1
    assert main(["run", str(folder / "rules.ktc"), *arguments, "--model", "m.gguf"]) == 1
    assert "holds its weights" in capsys.readouterr().err


def test_inspect(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = (folder / "rules.ktc" / "weights-host.bin").stat().st_size
    for options in ([], ["--verify"]):
        capsys.readouterr()
        assert main(["inspect", str(folder / "rules.ktc"), "--json", *options]) == 0
        assert json.loads(capsys.readouterr().out)["packed"] == {"bytes": size, "verified": bool(options)}
    assert main(["inspect", str(folder / "rules.ktc"), "--verify"]) == 0
    assert "every checksum right" in capsys.readouterr().out
    assert main(["inspect", str(folder / "plain.ktc"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["packed"] is None
    for where in ("plain.ktc", "rules.kt"):
        assert main(["inspect", str(folder / where), "--verify"]) == 1
        assert "--verify is for packed artifacts" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--no-weights", "--freeze"])
def test_pack_writes_weights(folder: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", str(folder / "rules.kt"), "--pack", option]) == 2
    assert "--pack" in capsys.readouterr().err
