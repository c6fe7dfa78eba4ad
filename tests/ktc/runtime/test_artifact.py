"""Artifacts: loaded by a process that knows nothing else, replaced as a whole, refused when anything is wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.gguf_files import write_gguf
from support.tiny_models import tiny_model

import ktc
from ktc.api import load_compiled
from ktc.errors import ArtifactError, KtcError
from ktc.runtime import artifact as artifacts

RULES = """model LlamaForCausalLM from "{path}"
include "std/llama.kt"
device host = cpu (memory = 1GiB)
device far = cpu (memory = 1GiB)
rule everything {{ match ** place host }}
rule second {{ match model.layers[1] place far }}
rule weights {{ match @linears quant q8_0 }}
rule cache {{ match @attention cache paged(dtype = f16, tokens = 256) }}
"""
PROMPT = [1, 7, 42, 99, 5, 260, 3]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `m.gguf`, `rules.kt` and the artifact `a.ktc`, over two devices."""
    folder = tmp_path_factory.mktemp("made")
    weights = write_gguf(tiny_model("llama"), folder / "m.gguf", "f32")
    (folder / "rules.kt").write_text(RULES.format(path=weights))
    ktc.compile(folder / "rules.kt", output=folder / "a.ktc")
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A copy of the artifact, to be damaged."""
    return Path(shutil.copytree(made / "a.ktc", tmp_path / "copy.ktc"))


def tokens(model: Any) -> list[int]:
    out = model.generate(torch.tensor([PROMPT]), max_new_tokens=12, do_sample=False, eos_token_id=None)
    return [int(i) for i in out[0]]


FRESH = """
import sys, torch, ktc
model = ktc.load(sys.argv[1])
out = model.generate(torch.tensor([eval(sys.argv[2])]), max_new_tokens=12, do_sample=False, eos_token_id=None)
print(out[0].tolist(), model.tokenizer.apply_chat_template([{"role": "user", "content": "the"}], tokenize=False))
"""


def test_a_fresh_process_gives_the_same_tokens(made: Path) -> None:
    model = ktc.load(made / "a.ktc")
    expected = tokens(model)
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(made / "a.ktc"), str(PROMPT)],
        capture_output=True,
        text=True,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(expected)) and "<|im_start|>user" in done.stdout
    compiled, placement = ktc.compile(made / "rules.kt")
    assert tokens(load_compiled(compiled, placement)) == expected
    assert placement.devices == {"host": "cpu", "far": "cpu"}


def test_contents(made: Path) -> None:
    found = artifacts.load(made / "a.ktc")
    assert {w.device for w in found.placement.weights} == {"host", "far"}
    assert [c.device for c in found.placement.caches] == ["host", "far"]
    assert {c.dtype for c in found.placement.caches} == {"float16"} and found.placement.tokens == 256
    transfers = [n for n in found.placement.graphs["step"].nodes if str(n.target) == "kt.transfer.default"]
    assert transfers and {n.args[1] for n in transfers} <= {"cpu"}
    assert found.manifest["rules"]["path"].endswith("rules.kt")
    assert (made / "a.ktc" / "rules" / "rules.kt").read_text() == (made / "rules.kt").read_text()
    assert any(e.kind == "lowered" and e.subject == "model.layers.0.self_attn.q_proj" for e in found.events)
    assert "def step(" in (made / "a.ktc" / "graph.py").read_text()
    assert not [p for p in (made / "a.ktc").rglob("*") if p.suffix in (".pkl", ".pt", ".bin", ".pickle")]


def test_graph_py_is_never_run(copy: Path, tmp_path: Path) -> None:
    (copy / "graph.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit(3)\n")
    ktc.load(copy)
    assert not (tmp_path / "ran").exists()


def test_weights_that_moved(made: Path, copy: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copy(made / "m.gguf", tmp_path / "elsewhere.gguf"))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["source"]["path"] = str(tmp_path / "gone.gguf")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(KtcError):
        ktc.load(copy)
    assert tokens(ktc.load(copy, model=moved)) == tokens(ktc.load(made / "a.ktc"))


def test_other_weights(made: Path, tmp_path: Path) -> None:
    other = write_gguf(tiny_model("llama", num_hidden_layers=3), tmp_path / "other.gguf", "f32")
    with pytest.raises(ArtifactError, match="is not what"):
        ktc.load(made / "a.ktc", model=other)
    other = write_gguf(tiny_model("llama"), tmp_path / "q8.gguf", "q8_0")
    with pytest.raises(ArtifactError, match="is not what"):
        ktc.load(made / "a.ktc", model=other)


def test_saving_replaces_an_artifact_and_nothing_else(made: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    ktc.compile(made / "rules.kt", output=target)  # an empty folder is nobody's
    (target / "left-over").write_text("x")
    ktc.compile(made / "rules.kt", output=target)
    assert not (target / "left-over").exists()
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("words")
    for folder in (foreign, foreign / "thesis.tex"):
        with pytest.raises(ArtifactError, match="is no artifact"):
            ktc.compile(made / "rules.kt", output=folder)
    assert (foreign / "thesis.tex").read_text() == "words"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "thesis"]


def test_no_artifact_without_weights(made: Path, tmp_path: Path) -> None:
    with pytest.raises(KtcError, match="needs the weights"):
        ktc.compile(made / "rules.kt", output=tmp_path / "x", weights=False)
    with pytest.raises(ArtifactError, match="is no artifact"):
        ktc.load(tmp_path)


JSON_FILES = ("manifest.json", "plan.json", "config.json", "events.jsonl", "buffers.safetensors")


@pytest.mark.parametrize("name", JSON_FILES)
def test_truncated_file(copy: Path, name: str) -> None:
    path = copy / name
    whole = path.read_bytes()
    for length in (0, 1, len(whole) // 3, len(whole) - 2):
        path.write_bytes(whole[:length])
        if name == "events.jsonl" and length == 0:
            continue  # no event at all is a stream too
        with pytest.raises(ArtifactError):
            artifacts.load(copy)


@pytest.mark.parametrize("name", [n for n in JSON_FILES if n != "events.jsonl"])
@pytest.mark.parametrize("content", ["[]", "3", "null", "{}", "\x00", "[" * 100_000, '{"a": ' * 5000])
def test_other_content(copy: Path, name: str, content: str) -> None:
    (copy / name).write_text(content)
    with pytest.raises(ArtifactError):
        artifacts.load(copy)


@pytest.mark.parametrize("name", JSON_FILES)
def test_missing_file(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(ArtifactError):
        artifacts.load(copy)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_damaged_tokenizer(copy: Path, name: str) -> None:
    (copy / "tokenizer" / name).write_text("{")
    with pytest.raises(ArtifactError):
        ktc.load(copy)


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def node(plan: dict[str, Any], op: str) -> dict[str, Any]:
    found: dict[str, Any] = next(n for n in plan["graphs"]["step"] if n["op"] == op)
    return found


PLAN_DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "system": lambda p: node(p, "call_function").update(target="fn:os:system", args={"tuple": ["touch ran"]}),
    "torch.load": lambda p: node(p, "call_function").update(target="fn:torch:load"),
    "method": lambda p: node(p, "call_method").update(target="tofile"),
    "input name": lambda p: node(p, "placeholder").update(target="x, y=print('ran')"),
    "module": lambda p: node(p, "call_function").update(op="call_module", target="m"),
    "unknown weight": lambda p: node(p, "get_attr").update(target="model.nothing"),
    "unknown device": lambda p: p["weights"][0].update(device="moon"),
    "hardware": lambda p: p["devices"].update(host="moon"),
    "io device": lambda p: p.update(io_device="moon"),
    "no graph": lambda p: p.update(graphs={}),
    "empty graph": lambda p: p["graphs"].update(step=[]),
    "tokens": lambda p: p.update(tokens=-1),
    "block size": lambda p: p.update(block_size=0),
    "cache type": lambda p: p["caches"][0].update(dtype="object"),
    "cache field": lambda p: p["caches"][0].update(more=1),
    "cache size": lambda p: p["caches"][0].update(heads=-2),
    "kind": lambda p: p.update(kind="pickle"),
    "inputs": lambda p: p.update(inputs=["input_ids"]),
    "no weights": lambda p: p.pop("weights"),
}


@pytest.mark.parametrize("damage", PLAN_DAMAGE)
def test_damaged_plan(copy: Path, damage: str, capfd: pytest.CaptureFixture[str]) -> None:
    edit(copy / "plan.json", PLAN_DAMAGE[damage])
    with pytest.raises(ArtifactError):
        artifacts.load(copy)
    assert "ran" not in capfd.readouterr().out


LATE_DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "unknown kernel": lambda p: next(w for w in p["weights"] if w["kernel"]).update(kernel="cpu.nothing"),
    "source format": lambda p: p["weights"][0].update(source_format="q2_k"),
    "unknown parameter": lambda p: p["weights"][0].update(parameters=["model.nothing"]),
    "packed size": lambda p: next(w for w in p["weights"] if w["kernel"]).update(nbytes=64),
    "shape": lambda p: next(w for w in p["weights"] if w["kernel"]).update(shape=[1 << 40, 1 << 20]),
    "negative size": lambda p: p["weights"][0].update(nbytes=-64),
    "format": lambda p: next(w for w in p["weights"] if w["kernel"]).update(format="q9_9"),
}


@pytest.mark.parametrize("damage", LATE_DAMAGE)
def test_plan_that_does_not_fit_the_weights(copy: Path, damage: str) -> None:
    """Found when the weights are there; still typed, and nothing is written where it does not belong."""
    edit(copy / "plan.json", LATE_DAMAGE[damage])
    with pytest.raises(KtcError):
        ktc.load(copy)


def test_other_format_version_and_isa(copy: Path) -> None:
    edit(copy / "manifest.json", lambda m: m.update(format=1))
    with pytest.raises(ArtifactError, match="artifact format 1"):
        artifacts.load(copy)
    edit(
        copy / "manifest.json", lambda m: (m.update(format=artifacts.FORMAT), m["hardware"].update(isa="amx"))
    )
    with pytest.raises(ArtifactError, match="compiled for amx"):
        artifacts.load(copy)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_absent_hardware(copy: Path) -> None:
    edit(copy / "plan.json", lambda p: p["devices"].update(far="cuda:0"))
    with pytest.raises(ArtifactError, match="which is not here"):
        artifacts.load(copy)


def test_configuration_with_code(copy: Path, tmp_path: Path) -> None:
    """A configuration that asks for code of its own is refused without a question."""
    (copy / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\n")
    edit(copy / "config.json", lambda c: c.update(model_type="unknown", auto_map={"AutoConfig": "evil.C"}))
    with pytest.raises(ArtifactError):
        artifacts.load(copy)
    assert not (tmp_path / "ran").exists()
