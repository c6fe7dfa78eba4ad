"""`ktc import-yaml` as a command: exit codes, files, streams, JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.architectures import tiny_config
from support.rule_files import RuleText, rule_file

from ktc.cli import main

Streams = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`rules.yaml` for a Mixtral of four layers, and `model/config.json`."""
    folder = tmp_path_factory.mktemp("import")
    tiny_config("mixtral", 4, architectures=["MixtralForCausalLM"]).save_pretrained(folder / "model")
    (folder / "rules.yaml").write_text(rule_file("mixtral", 1, 4))
    return folder


def run(folder: Path, *arguments: str) -> int:
    return main(["import-yaml", str(folder / "rules.yaml"), *arguments])


def test_the_program_goes_to_standard_output_and_the_report_to_standard_error(
    folder: Path, capsys: Streams
) -> None:
    assert run(folder, "--model", str(folder / "model")) == 0
    out, err = capsys.readouterr()
    assert out.startswith("# Converted from rules.yaml") and "\nmodel MixtralForCausalLM\n" in out
    assert "warning[KT706]: the rule replaces rotary embeddings" in err and "rules.yaml:" in err
    assert err.rstrip().endswith("`ktc help KT706` explains the first")


def test_what_it_writes_checks_is_formatted_and_plans(folder: Path, tmp_path: Path, capsys: Streams) -> None:
    written, model = tmp_path / "rules.kt", str(folder / "model")
    sizes = ["--gpu-memory", "24GiB", "--host-memory", "1.5TiB"]
    assert run(folder, "--model", str(folder / "model" / "config.json"), "-o", str(written), *sizes) == 0
    out, err = capsys.readouterr()
    assert out == "" and f"{written}: " in err
    text = written.read_text()
    assert "device gpu = cuda:0 (memory = 24GiB)\ndevice host = cpu (memory = 1.5TiB)\n" in text
    assert main(["check", str(written)]) == 0 and main(["fmt", "--check", str(written)]) == 0
    capsys.readouterr()
    assert main(["plan", "--no-weights", "--model", model, "--json", str(written)]) == 0
    plan = json.loads(capsys.readouterr().out)
    placed = {(row["sites"], row["device"]) for row in plan["sites"]}
    assert ("model.layers[*].mlp.experts", "host") in placed and ("lm_head", "gpu") in placed


def test_json_holds_program_and_report(folder: Path, capsys: Streams) -> None:
    assert run(folder, "--model", str(folder / "model"), "--json") == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert err == "" and report["kt"].startswith("# Converted") and report["output"] is None
    assert {d["code"] for d in report["diagnostics"]} == {"KT706", "KT712", "KT714"}
    assert report["diagnostics"][0]["labels"][0]["span"]["line"] > 1


def test_nothing_is_overwritten_unasked(folder: Path, tmp_path: Path, capsys: Streams) -> None:
    written = tmp_path / "rules.kt"
    written.write_text("mine")
    model = ["--model", str(folder / "model")]
    assert run(folder, *model, "-o", str(written)) == 1
    assert "--force overwrites it" in capsys.readouterr().err and written.read_text() == "mine"
    assert run(folder, *model, "-o", str(written), "--force") == 0
    assert written.read_text().startswith("# Converted")
    assert run(folder, *model, "-o", str(folder / "rules.yaml"), "--force") == 1
    assert run(folder, *model, "-o", str(tmp_path), "--force") == 1
    assert "the rule file itself" in (said := capsys.readouterr().err) and "is a folder" in said
    assert (folder / "rules.yaml").read_text() == rule_file("mixtral", 1, 4)


def test_without_a_model_it_says_what_it_needs(folder: Path, capsys: Streams) -> None:
    assert run(folder) == 1
    err = capsys.readouterr().err
    assert "error[KT715]" in err and "config.json" in err
    assert "the rules look written for MixtralForCausalLM" in err


@pytest.mark.parametrize("as_json", [False, True])
def test_what_cannot_be_converted_is_exit_code_1(
    folder: Path, tmp_path: Path, as_json: bool, capsys: Streams
) -> None:
    files = {
        "empty.yaml": b"",
        "latin.yaml": b"- match: {name: caf\xe9}\n",
        "nowhere.yaml": RuleText().add(name="nowhere", generate_device="cpu").text().encode(),
    }
    extra = ["--json"] if as_json else []
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        code = main(
            [
                "import-yaml",
                str(tmp_path / name),
                "--model",
                str(folder / "model"),
                "-o",
                str(tmp_path / "x.kt"),
                *extra,
            ]
        )
        out, err = capsys.readouterr()
        assert code == 1 and not (tmp_path / "x.kt").exists()
        assert json.loads(out)["diagnostics"][0]["code"].startswith("KT7") if as_json else "error[KT7" in err
    assert main(["import-yaml", str(tmp_path / "missing.yaml"), "--model", "m"]) == 1
    assert main(["import-yaml", str(folder / "rules.yaml"), "--model", str(tmp_path / "no-model")]) == 1
    assert main(["import-yaml", str(folder / "rules.yaml"), "--gpu-memory", "lots"]) == 2


def test_it_runs_as_a_program_without_colour(folder: Path) -> None:
    code = "import sys; from ktc.cli import main; sys.exit(main())"
    command = [
        sys.executable,
        "-c",
        code,
        "import-yaml",
        str(folder / "rules.yaml"),
        "--model",
        str(folder / "model"),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"}, timeout=300
    )
    assert done.returncode == 0 and "\033" not in done.stdout + done.stderr
    assert "rule routed_experts {" in done.stdout
