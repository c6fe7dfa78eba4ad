"""`ktc verify`: what it prints and returns, against the eager model and against another program."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.gguf_files import write_gguf
from support.threads import one_thread
from support.tiny_models import tiny_model

from ktc.cli import main
from ktc.verify import TEXT

RULES = """model Qwen3MoeForCausalLM from "m.gguf"
include "std/qwen3_moe.kt"
param context: int = 512
device host = cpu (memory = 1GiB)
rule everything { match ** place host }
rule cache { match @attention cache paged(dtype = f32, tokens = context) }
"""
EXACT = "rule l { match ** : Linear kernel torch.linear }\nrule e { match @experts kernel torch.experts }\n"


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    write_gguf(tiny_model("qwen3_moe", max_position_embeddings=1024), folder / "m.gguf", "q8_0")
    (folder / "rules.kt").write_text(RULES)
    (folder / "exact.kt").write_text(RULES + EXACT)
    (folder / "text.txt").write_text("water over the wheel")
    return folder


class Verify:
    """Runs the command in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        self._capsys.readouterr()
        code = main(["verify", *(str(a) for a in arguments)])
        return code, *self._capsys.readouterr()

    def json(self, *arguments: object, code: int = 0) -> Any:
        got, out, err = self(*arguments, "--json")
        assert got == code, err
        return json.loads(out)


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Verify:
    return Verify(capsys)


def test_against_the_eager_model(folder: Path, verify: Verify) -> None:
    """Rounded activations show; reference kernels give the eager model's numbers."""
    found = verify.json(folder / "rules.kt", "-n", 64)
    assert found["overall"]["positions"] == 64
    assert (found["prefill"]["positions"], found["steps"]["positions"]) == (48, 16)
    assert 1e-7 < found["overall"]["kl_mean"] < 0.05  # a rounding may flip the choice of an expert
    assert found["within"] and found["reference"] == f"the eager model on {folder / 'm.gguf'}"
    exact = verify.json(folder / "exact.kt", "-n", 64, "--tolerance-kl", 1e-9)
    assert exact["overall"]["kl_max"] < 1e-9 and exact["overall"]["relative_error"] < 1e-5
    assert exact["overall"]["top1"] == 1 and exact["perplexity"] == pytest.approx(
        exact["expected_perplexity"]
    )


def test_tolerance(folder: Path, verify: Verify) -> None:
    code, out, err = verify(folder / "rules.kt", "-n", 40, "--tolerance-kl", 1e-9)
    assert code == 1 and "KL mean" in out and "is above 1e-09" in err
    assert verify.json(folder / "rules.kt", "-n", 40, "--tolerance-kl", 1e-9, code=1)["within"] is False
    assert verify(folder / "rules.kt", "-n", 40, "--tolerance-kl", 1)[0] == 0


def test_against_another_program(folder: Path, verify: Verify, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_eager(*arguments: object, **options: object) -> None:
        raise AssertionError("two programs are compared without an eager model")

    monkeypatch.setattr("ktc.eager.eager_model", no_eager)
    same = verify.json(folder / "rules.kt", "--against", folder / "rules.kt", "-D", "context=1024", "-n", 40)
    assert same["overall"]["kl_max"] == 0 and same["overall"]["max_error"] == 0
    found = verify.json(folder / "rules.kt", "--against", folder / "exact.kt", "-n", 40)
    assert found["overall"]["kl_max"] > 0 and found["reference"] == str(folder / "exact.kt")


def test_fewer_experts_than_trained(folder: Path, verify: Verify) -> None:
    """The effect of std/experts_per_token.kt, which a program has to ask for."""
    text = RULES.replace("include", 'include "std/experts_per_token.kt"\ninclude', 1)
    (folder / "fewer.kt").write_text(text)
    both = (folder / "fewer.kt", "--against", folder / "rules.kt", "-n", 40)
    for unchanged in ((), ("-D", "experts_per_token=2")):  # the tiny model was made with 2
        assert verify.json(*both, *unchanged)["overall"]["max_error"] == 0
    fewer = verify.json(*both, "-D", "experts_per_token=1")["overall"]
    assert fewer["kl_mean"] > 1e-3 and fewer["relative_error"] > 0.01
    eager = verify.json(folder / "fewer.kt", "-n", 40, "-D", "experts_per_token=1")["overall"]
    assert eager["kl_mean"] == pytest.approx(fewer["kl_mean"], rel=0.5)


def test_an_artifact(folder: Path, verify: Verify) -> None:
    artifact = folder / "rules.ktc"
    assert main(["compile", str(folder / "rules.kt"), "-o", str(artifact)]) == 0
    found = verify.json(artifact, "--against", folder / "rules.kt", "-n", 40)
    assert found["overall"]["max_error"] == 0
    assert 0 < verify.json(artifact, "-n", 40)["overall"]["kl_mean"] < 0.05
    code, _, err = verify(artifact, "-D", "context=64")
    assert code == 1 and "an artifact's parameters are fixed" in err


def test_texts(folder: Path, verify: Verify) -> None:
    code, out, err = verify(folder / "rules.kt", "--text", folder / "text.txt", "--steps", 0)
    assert code == 0 and not err
    assert "token by token" not in out and "the largest KL is at position" in out and "top-1" in out
    short = verify.json(folder / "rules.kt", "--prompt", "water", "--steps", 99)
    assert short["prefill"]["positions"] == 1
    assert verify(folder / "rules.kt", "--prompt", "a", "--text", folder / "text.txt")[0] == 2
    code, _, err = verify(folder / "rules.kt", "--prompt", "a")
    assert code == 1 and "the text has 1 tokens" in err
    (folder / "bytes.bin").write_bytes(b"\xff\xfe\xff")
    code, _, err = verify(folder / "rules.kt", "--text", folder / "bytes.bin")
    assert code == 1 and "is not UTF-8" in err
    assert verify(folder / "rules.kt", "--text", folder / "missing.txt")[0] == 1
    assert len(TEXT) > 800


def test_memory_is_checked_before_the_eager_model_is_loaded(
    folder: Path, verify: Verify, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ktc.eager.available_memory", lambda: 2**20)
    code, out, err = verify(folder / "rules.kt")
    assert code == 1 and not out and "are free" in err and "--against" in err


def test_a_model_without_a_tokenizer(folder: Path, tmp_path: Path, verify: Verify) -> None:
    write_gguf(tiny_model("qwen3_moe"), tmp_path / "m.gguf", "q8_0", tokenizer=False)
    (tmp_path / "rules.kt").write_text(RULES)
    code, _, err = verify(tmp_path / "rules.kt")
    assert code == 1 and "no tokenizer" in err
