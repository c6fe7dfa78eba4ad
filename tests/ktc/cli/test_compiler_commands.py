"""The commands that compile: what they print, write and return, on a small model in a GGUF file."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.gguf_files import write_gguf
from support.tiny_models import tiny_model

from ktc.cli import main

RULES = """model LlamaForCausalLM from "m.gguf"
include "std/llama.kt"
param context: int = 256 "tokens of KV cache"
device host = cpu (memory = 1GiB)
rule everything {
  match **
  place host
}
rule cache {
  match @attention
  cache paged(dtype = f16, tokens = context)
}
"""
Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`m.gguf`, `rules.kt`, and the artifact `rules.ktc` that `ktc compile rules.kt` writes."""
    folder = tmp_path_factory.mktemp("cli")
    write_gguf(tiny_model("llama"), folder / "m.gguf", "q8_0")
    (folder / "rules.kt").write_text(RULES)
    assert main(["compile", str(folder / "rules.kt"), "--dump", str(folder / "dump")]) == 0
    return folder


class Ktc:
    """Runs a command in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        self._capsys.readouterr()
        code = main([str(a) for a in arguments])
        return code, *self._capsys.readouterr()

    def json(self, *arguments: object, code: int = 0) -> Any:
        got, out, err = self(*arguments, "--json")
        assert got == code, err
        return json.loads(out)


@pytest.fixture
def ktc(capsys: pytest.CaptureFixture[str]) -> Ktc:
    return Ktc(capsys)


def test_compile_wrote_an_artifact(folder: Path, ktc: Ktc) -> None:
    assert (folder / "rules.ktc" / "manifest.json").exists()
    found = ktc.json("compile", folder / "rules.kt", "-o", folder / "other.ktc")
    assert found["artifact"] == str(folder / "other.ktc") and (folder / "other.ktc" / "plan.json").exists()
    code, out, _ = ktc("compile", folder / "rules.kt", "--no-weights")
    assert code == 0 and "no artifact" in out


def test_plan(folder: Path, ktc: Ktc) -> None:
    code, out, err = ktc("plan", folder / "rules.kt")
    assert code == 0 and not err
    for word in (
        "LlamaForCausalLM: 2 layers",
        "cpu.linear",
        "q8_0",
        "cpu.attention",
        "rewrites:",
        "merge_qkv ×2",
        "256 tokens",
    ):
        assert word in out
    found = ktc.json("plan", folder / "rules.kt", "-D", "context=512", "--no-weights")
    assert found["tokens"] == 512 and found["layers"] == 2
    assert {r["name"]: r["fired"] for r in found["rewrites"]}["add_rms_norm"] == 4
    host = found["devices"]["host"]
    assert host["peak"] == host["weights"] + host["cache"] + host["activations"] < host["memory"]
    assert host["cache"] == 512 * 2 * 2 * 64 * 2 * 2


def test_explain_names_rule_file_and_line(folder: Path, ktc: Ktc) -> None:
    found = ktc.json("explain", folder / "rules.kt", Q_PROJ)
    (place,) = [a for a in found["attributes"] if a["attribute"] == "place"]
    assert place["rule"] == "everything" and place["file"].endswith("rules.kt") and place["line"] == 7
    kinds = [p["kind"] for p in found["passes"]]
    assert {"fired", "folded", "format", "lowered"} <= set(kinds)
    code, out, _ = ktc("explain", folder / "rules.kt", Q_PROJ)
    assert code == 0 and "rule `everything` at" in out and "rules.kt:7" in out and "cpu.linear" in out
    assert "became one weight" in out and "rewrite `merge_qkv`" in out
    code, out, err = ktc("explain", folder / "rules.kt", "model.layers.0.self_attn.q_porj")
    assert code == 1 and not out and f"did you mean {Q_PROJ}" in err


def test_a_dump_follows_a_module_to_its_kernel(folder: Path) -> None:
    """q_proj: captured as kt.linear, merged with k and v, its weight folded, lowered to cpu.linear."""
    dump = folder / "dump"
    files = {p.name.split("-", 1)[1]: p.read_text() for p in dump.iterdir() if p.name.endswith(".fx.txt")}
    captured = [line for line in files["capture.fx.txt"].splitlines() if Q_PROJ in line]
    assert any("kt.linear" in line for line in captured)
    events = [json.loads(line) for line in (dump / "events.jsonl").read_text().splitlines()]
    about = [
        e
        for e in events
        if Q_PROJ in e.get("sites", ()) or e["subject"] == Q_PROJ or f"{Q_PROJ}.weight" in e.get("parts", ())
    ]
    kinds = [e["kind"] for e in about]
    assert kinds.index("applied") < kinds.index("fired") < kinds.index("folded") < kinds.index("lowered")
    (fired,) = [e for e in about if e["kind"] == "fired" and e["rule"] == "merge_qkv"]
    assert fired["file"].endswith("merges.kt") and fired["line"] > 0
    (lowered,) = [e for e in about if e["kind"] == "lowered"]
    assert (lowered["op"], lowered["kernel"], lowered["weights"]) == (
        "kt.linear",
        "cpu.linear",
        {"weight": "q8_0"},
    )
    last = files["lower.fx.txt"]
    (line,) = [line for line in last.splitlines() if line.startswith(f"%{lowered['node']}:")]
    assert "kt_cpu.linear" in line
    diffs = {p.name.split("-", 1)[1] for p in dump.iterdir() if p.suffix == ".diff"}
    assert {"rewrite.merge_qkv.diff", "lower.diff"} <= diffs


def test_inspect(folder: Path, ktc: Ktc) -> None:
    code, out, _ = ktc("inspect", folder / "rules.ktc", "--tensors")
    assert (
        code == 0
        and "artifact of LlamaForCausalLM" in out
        and "q8_0" in out
        and "KV cache for 256 tokens" in out
    )
    assert ktc.json("inspect", folder / "rules.ktc")["manifest"]["format"] == 2
    code, out, _ = ktc("inspect", folder / "m.gguf", "--tensors")
    assert code == 0 and "blk.0.attn_q.weight" in out
    assert ktc.json("inspect", folder / "m.gguf")


def test_run(folder: Path, ktc: Ktc) -> None:
    options = ("-n", 8, "--temperature", 0, "--stats")
    code, out, err = ktc("run", folder / "rules.ktc", "the red rose", *options)
    assert code == 0 and "answer" in err and "tok/s" in err
    again = ktc("run", folder / "rules.kt", "the red rose", *options)
    assert again[:2] == (0, out)
    assert ktc("run", folder / "rules.ktc", "the red rose", "--raw", *options)[0] == 0
    code, out, err = ktc("run", folder / "rules.ktc", "x", "-D", "context=4")
    assert code == 1 and "parameters are fixed" in err


def test_chat_remembers(folder: Path, ktc: Ktc, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question prints an answer; the second is computed after the first one's tokens, which are in the cache."""

    def chat(text: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        return ktc("chat", folder / "rules.ktc", "-n", 5, "--temperature", 0)

    once = chat("the red rose\n/stats\n")
    twice = chat("the red rose\nand the rest\n/stats\n")
    fresh = chat("the red rose\n/reset\nand the rest\n/stats\n/exit\nnever read\n")
    assert once[0] == twice[0] == fresh[0] == 0
    prompts = [int(err.split("prompt ")[1].split(" ")[0]) for _, _, err in (once, twice, fresh)]
    assert prompts[1] > prompts[0] + 5 and prompts[2] < prompts[1]


def test_errors(folder: Path, ktc: Ktc, tmp_path: Path) -> None:
    bad = tmp_path / "bad.kt"
    bad.write_text(
        RULES.replace("m.gguf", str(folder / "m.gguf"))
        + "rule dead {\n  match model.nothing\n  place host\n}\n"
    )
    for command in (
        ("compile", bad, "-o", tmp_path / "x"),
        ("plan", bad),
        ("explain", bad, Q_PROJ),
        ("run", bad, "hello"),
    ):
        code, out, err = ktc(*command)
        assert code == 1 and not out and "error[KT201]" in err and "bad.kt:" in err
    assert not (tmp_path / "x").exists()
    (problem,) = ktc.json("plan", bad, code=1)["diagnostics"]
    assert problem["code"] == "KT201"
    missing = ktc.json("plan", folder / "rules.kt", "--model", tmp_path / "none.gguf", code=1)
    assert missing["error"]["type"] == "SourceNotFoundError"
    code, _, err = ktc("run", tmp_path, "hello")
    assert code == 1 and "is no artifact" in err
    code, _, err = ktc("plan", folder / "rules.kt", "-D", "contxt=3")
    assert code == 1 and "KT106" in err and "context" in err
    code, _, err = ktc("inspect", bad)
    assert code == 1 and err.startswith("error:")


def test_parameters_are_listed(folder: Path, ktc: Ktc) -> None:
    assert (
        "-D context=256  (int)  tokens of KV cache" in ktc("compile", folder / "rules.kt", "--help-params")[1]
    )
    assert ktc.json("compile", folder / "rules.kt", "--help-params")["params"][0]["name"] == "context"


@pytest.mark.parametrize("command", ["compile", "plan", "explain", "inspect", "run", "chat"])
def test_help_of_each_command(command: str, ktc: Ktc) -> None:
    code, out, _ = ktc(command, "--help")
    assert code == 0 and "Usage" in out


def test_as_a_program(folder: Path) -> None:
    """The installed command: help lists every command; usage errors are 2, errors 1, without a traceback."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-c", "import sys; from ktc.cli import main; sys.exit(main())"]
        return subprocess.run([*program, *arguments], capture_output=True, text=True, cwd=folder)

    done = run("--help")
    assert done.returncode == 0
    assert all(
        f" {name} " in done.stdout
        for name in ("check", "fmt", "help", "compile", "plan", "explain", "run", "chat")
    )
    for arguments, code in (
        (("plan", "none.kt"), 1),
        (("plan",), 2),
        (("nothing",), 2),
        (("plan", "rules.kt", "-D", "x"), 2),
    ):
        done = run(*arguments)
        assert (done.returncode, done.stdout) == (code, "") and done.stderr and "Traceback" not in done.stderr
