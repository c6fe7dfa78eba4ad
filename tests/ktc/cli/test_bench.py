"""`ktc bench`: what it prints and returns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.gguf_files import write_gguf
from support.tiny_models import tiny_model

from ktc import _cpu
from ktc.cli import main
from ktc.cli.bench import FUSED

RULES = """model LlamaForCausalLM from "m.gguf"
include "std/llama.kt"
param context: int = 128
device host = cpu (memory = 1GiB)
rule everything { match ** place host }
rule cache { match @attention cache paged(dtype = f16, tokens = context) }
"""


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    write_gguf(tiny_model("llama"), folder / "m.gguf", "q8_0")
    (folder / "rules.kt").write_text(RULES)
    return folder / "rules.kt"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["bench", *(str(a) for a in arguments)])
    return code, *capsys.readouterr()


def test_rates_and_profile(rules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, rules, "-p", 40, "-n", 6, "-r", 2, "--profile", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [test["name"] for test in found["tests"]] == ["pp40", "tg6"]
    assert [piece["native"] for piece in found["segments"]["step"]] == [True]
    for test in found["tests"]:
        assert len(test["rates"]) == 2 and min(test["rates"]) > 0
        kinds = {share["kind"]: share for share in test["profile"]}
        assert {"linear", "attention", "embedding"} <= kinds.keys()
        assert sum(share["share"] for share in kinds.values()) == pytest.approx(1, abs=0.05)
        assert kinds["linear"]["gigaops"] > 0 and kinds["attention"]["gigabytes"] > 0
    steps = {share["kind"]: share["calls"] for share in found["tests"][1]["profile"]}
    assert steps["attention"] == 6 * 2 and steps["embedding"] == 6
    # Norms of a prompt of 40 tokens are made by the products that read them, and count there.
    assert steps["rms_norm"] == 6
    assert {"rms_norm", "rope"}.isdisjoint(share["kind"] for share in found["tests"][0]["profile"])


def test_a_table_and_the_python_program(
    rules: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run(capsys, rules, "-p", 0, "-n", 3, "-r", 1, "--profile")
    assert code == 0 and "tg3" in out and "pp" not in out and "one native program" in out and FUSED in out
    monkeypatch.setenv("KTC_NATIVE", "0")
    code, out, _ = run(capsys, rules, "-p", 3, "-n", 0, "-r", 1)
    assert code == 0 and "Python (KTC_NATIVE=0)" in out


def test_refusals(rules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, rules, "-p", 1000, "-r", 1)
    assert code == 1 and "room for 128 tokens" in err
    code, out, _ = run(capsys, rules, "-r", 0, "--json")
    assert code == 1 and "repetition" in json.loads(out)["error"]["message"]
    before = _cpu.threads()
    code, _, err = run(capsys, rules, "-p", 4, "--threads", 0)
    assert code == 1 and "threads" in err and _cpu.threads() == before
