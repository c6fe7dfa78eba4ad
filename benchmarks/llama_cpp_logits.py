"""Logits of llama.cpp, ktc and eager transformers on the same GGUF file; llama.cpp's converter beside our writer.

`python -m benchmarks.llama_cpp_logits --peer PYTHON [--llama-cpp SOURCE]`, PYTHON having llama-cpp-python and numpy,
SOURCE being llama.cpp's checkout. It says whether names, permutations and layouts are llama.cpp's: tests compare ktc
only with files that they wrote themselves. With float32 weights all three should agree up to the order of sums.
Quantised weights meet rounded activations in both, by different rules: in llama.cpp int8 in blocks of 32 with a float16
scale, or of 256 for the K formats.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

import ktc
from benchmarks.machine import ROOT, header, save, table
from ktc.api import load_compiled
from ktc.cli.common import quiet_libraries
from ktc.eager import eager_model
from ktc.verify import TEXT, Agreement, compare_logits, encode, logits_of
from ktc.weights.opening import open_source

sys.path.insert(0, str(ROOT / "tests"))
from support.families import FAMILIES, PROGRAM, Family, write
from support.safetensors_files import write_safetensors
from support.tiny_models import tiny_model

TOKENS = 64
FORMATS = ("f32", "q8_0", "mixed")
REAL = {
    "SmolLM2-135M": ("SmolLM2-135M-Instruct.Q4_1.gguf", "LlamaForCausalLM", "llama"),
    "Gemma 3 270M": ("gemma-3-270m.Q4_K_M.gguf", "Gemma3ForCausalLM", "gemma3"),
}
LITE = "deepseek_v2_lite"
READING = """
With float32 weights L and K are sums in another order, but for three places where llama.cpp computes something else
than transformers; ktc computes what transformers does. The rows that say "eager with" show that each is the whole
difference: there eager does as llama.cpp.

- Gemma 3: GELU comes from a table of float16 (`ggml_table_gelu_f16`); shown with one layer, since with more of them
  values that fall between two float16 and are rounded the other way add up.
- GPT-OSS: YaRN's ramp begins and ends at whole dimensions (`ggml_rope_yarn_corr_dims`). The published configuration
  says `truncate: false`, which a GGUF file cannot say; ktc assumes it for this architecture.
- DeepSeek-V2 with groups: a group is scored by the sum of its two best experts, as DeepSeek-V3's are; DeepSeek-V2's own
  code takes the best one. llama.cpp's converter writes the number of groups for both.

With quantised weights both round activations, each in its way, and either is about as far from eager as from the other.
These weights are random: a rounding may exchange the experts of a token, which moves the logits by a multiple of that.
"""
HELPER = Path(__file__).with_name("llama_cpp_peer.py")


@dataclass(frozen=True)
class Row:
    """One file: how far llama.cpp and ktc are from eager, and from each other."""

    model: str
    format: str
    peer: Agreement
    ours: Agreement
    between: Agreement

    def cells(self) -> tuple[str, ...]:
        """As cells of the table."""
        errors = [f"{found.relative_error:.1e}" for found in (self.peer, self.ours, self.between)]
        kl = [f"{found.kl_mean:.1e}" for found in (self.peer, self.ours, self.between)]
        top = [f"{100 * found.top1:.1f} %" for found in (self.peer, self.ours)]
        return (self.model, self.format, str(self.peer.positions), *errors, *kl, *top)


def peer_logits(python: str, model: Path, ids: torch.Tensor, work: Path) -> torch.Tensor:
    """llama.cpp's logits float32[tokens, vocabulary] of ids int64[1, tokens]."""
    np.save(work / "ids.npy", ids[0].numpy())
    command = [python, str(HELPER), "logits", str(model), str(work / "ids.npy"), str(work / "logits.npy")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{model}: {done.stderr[-2000:]}")
    return torch.from_numpy(np.load(work / "logits.npy"))


def compiled(path: Path, class_name: str, library: str) -> Any:
    """The program that the tests of families use, on this file."""
    return load_compiled(*ktc.compile(PROGRAM.format(name=class_name, library=library, path=path)))


def compare(model: str, format: str, expected: torch.Tensor, peer: torch.Tensor, ours: torch.Tensor) -> Row:
    """A row."""
    return Row(
        model,
        format,
        compare_logits(expected, peer),
        compare_logits(expected, ours),
        compare_logits(peer, ours),
    )


def tiny(name: str, family: Family, format: str, python: str, work: Path) -> Row:
    """The row of one family in one format."""
    source = tiny_model(family.architecture, **family.changes)
    path = write(source, family, format, work, {})
    ids = torch.randint(3, 500, (1, TOKENS), generator=torch.Generator().manual_seed(4))
    reference = source if format == "f32" else eager_model(open_source(path))
    ours = logits_of(compiled(path, family.class_name, family.library), ids)
    return compare(name, format, logits_of(reference, ids), peer_logits(python, path, ids, work), ours)


def explained(name: str, python: str, work: Path) -> Row:
    """A row whose eager model computes what llama.cpp does and transformers does not."""
    note, changes, change = AS_LLAMA_CPP[name]
    family = replace(FAMILIES[name], changes={**FAMILIES[name].changes, **changes})
    source = tiny_model(family.architecture, **family.changes)
    path = write(source, family, "f32", work, {})
    ids = torch.randint(3, 500, (1, TOKENS), generator=torch.Generator().manual_seed(4))
    ours = logits_of(compiled(path, family.class_name, family.library), ids)
    peer = peer_logits(python, path, ids, work)
    return compare(f"{name}, {note}", "f32", logits_of(change(source), ids), peer, ours)


def _loadable(name: str) -> Family:
    """The family as llama.cpp takes it: it knows DeepSeek-V2-Lite, which has no q_lora, by 26 or 27 layers."""
    family = FAMILIES[name]
    return replace(family, changes={**family.changes, "num_hidden_layers": 26}) if name == LITE else family


def _formats(name: str) -> tuple[str, ...]:
    """Roundings add up over the 26 layers of DeepSeek-V2-Lite until random weights show nothing."""
    return ("f32",) if name == LITE else (*FORMATS, "experts-mxfp4") if name == "gpt_oss" else FORMATS


def float16_gelu(model: PreTrainedModel) -> PreTrainedModel:
    """Gemma 3 with GELU as ggml's CPU backend has it: a table of float16 values by float16 argument."""

    def gelu(x: torch.Tensor) -> torch.Tensor:
        return F.gelu(x.half().float(), approximate="tanh").half().float()

    for layer in model.model.layers:
        layer.mlp.act_fn.forward = gelu
    return model


def truncated_yarn(model: PreTrainedModel) -> PreTrainedModel:
    """GPT-OSS with the ends of YaRN's ramp rounded to whole dimensions, as `ggml_rope_yarn_corr_dims` does."""
    config = copy.deepcopy(model.config)
    config.rope_parameters["truncate"] = True
    changed = type(model)(config).eval()
    changed.load_state_dict(model.state_dict())
    return changed


def best_two_of_a_group(model: PreTrainedModel) -> PreTrainedModel:
    """DeepSeek-V2 with groups of experts scored as DeepSeek-V3 does: llama.cpp has no other way."""
    for layer in model.model.layers:
        gate = getattr(layer.mlp, "gate", None)
        if gate is not None:
            gate.forward = _route_by_two.__get__(gate)
    return model


def _route_by_two(gate: Any, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logits = F.linear(hidden.view(-1, gate.hidden_dim), gate.weight)
    scores = logits.softmax(-1).unflatten(-1, (gate.num_group, -1))
    kept = scores.topk(2).values.sum(-1).topk(gate.topk_group).indices
    mask = torch.zeros(scores.shape[:2]).scatter_(1, kept, 1.0)
    weights, indices = (scores * mask[..., None]).flatten(1).topk(gate.top_k)
    return logits, weights * gate.routed_scaling_factor, indices


AS_LLAMA_CPP: dict[str, tuple[str, dict[str, Any], Callable[[PreTrainedModel], PreTrainedModel]]] = {
    "gemma3": (  # values at the edge between two float16 go either way: more layers, more of them
        "one layer; eager with GELU from a float16 table",
        {"num_hidden_layers": 1, "layer_types": ["sliding_attention"]},
        float16_gelu,
    ),
    "gpt_oss": ("eager with YaRN's ramp truncated", {}, truncated_yarn),
    "deepseek_v2": ("eager with groups scored by their two best", {}, best_two_of_a_group),
}


def real(name: str, python: str, work: Path) -> Row:
    """A published model over ktc's own text."""
    file, class_name, library = REAL[name]
    path = ROOT / "models" / file
    source = open_source(path)
    ids = encode(source.tokenizer(), TEXT)
    expected = logits_of(eager_model(source), ids)
    ours = logits_of(compiled(path, class_name, library), ids)
    return compare(name, file.split(".")[-2].lower(), expected, peer_logits(python, path, ids, work), ours)


def converted(name: str, family: Family, source: Path, work: Path) -> tuple[str, ...]:
    """Our safetensors through llama.cpp's converter: its tensors beside our writer's, and ktc on its file."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    model = tiny_model(family.architecture, **family.changes)
    folder = write_safetensors(model, work / "model", **family.safetensors)
    mine = write(model, family, "f32", work, {})
    open_source(mine).tokenizer().save_pretrained(folder)  # type: ignore[union-attr]
    _complete_config(folder, name)
    theirs = work / "converted.gguf"
    command = [sys.executable, str(HELPER), "convert", str(source), str(folder), str(theirs)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    left, right = ({t.name: t for t in GGUFReader(path).tensors} for path in (theirs, mine))
    same = [
        key
        for key in left.keys() & right.keys()
        if np.array_equal(*(dequantize(t[key].data, t[key].tensor_type).ravel() for t in (left, right)))
    ]
    ids = torch.randint(3, 500, (1, TOKENS), generator=torch.Generator().manual_seed(4))
    found = compare_logits(
        logits_of(model, ids), logits_of(compiled(theirs, family.class_name, family.library), ids)
    )
    return (
        name, str(len(left)), str(len(same)), str(len(left.keys() ^ right.keys())), f"{found.relative_error:.1e}"
    )  # fmt: skip


def _complete_config(folder: Path, name: str) -> None:
    """Adds what published configurations say and transformers' classes do not keep."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    if name == "deepseek_v3":
        config |= {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}
    if name == "glm4_moe":
        config |= {"num_nextn_predict_layers": 0}
    file.write_text(json.dumps(config), encoding="utf-8")


def peer_versions(python: str, source: Path | None) -> str:
    """llama-cpp-python's version, and llama.cpp's commit when its source is given."""
    command = [python, "-c", "import llama_cpp; print(llama_cpp.__version__)"]
    found = f"llama-cpp-python {subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()}"
    if source is not None:
        command = ["git", "-C", str(source), "rev-parse", "--short=12", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True)
        found += f", llama.cpp {done.stdout.strip()}" if done.returncode == 0 else ""
    return found


def main() -> int:
    """Compares, prints and saves the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peer", default=sys.executable, help="an interpreter that has llama-cpp-python and numpy"
    )
    parser.add_argument(
        "--llama-cpp", type=Path, metavar="SOURCE", help="llama.cpp's checkout, to run its converter"
    )
    parser.add_argument(
        "families", nargs="*", help=f"of {', '.join(FAMILIES)}; default: all, and the real models"
    )
    arguments = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(1)
    head = header(
        "Logits of llama.cpp, ktc and eager transformers on the same GGUF files",
        peer_versions(arguments.peer, arguments.llama_cpp),
        "llama.cpp: CPU, float32 KV cache, flash attention off; ktc: `kernel auto`, float32 KV cache; eager: float32",
        "L: llama.cpp against eager, K: ktc against eager, L-K: ktc against llama.cpp; error: relative, of all logits; "
        "KL: mean, in nats",
    )  # fmt: skip
    rows, conversions = [], []
    for name in arguments.families or FAMILIES:
        family = _loadable(name)
        for format in _formats(name):
            with tempfile.TemporaryDirectory() as work:
                rows.append(tiny(name, family, format, arguments.peer, Path(work)))
                print(*rows[-1].cells(), file=sys.stderr, flush=True)
        if name in AS_LLAMA_CPP:
            with tempfile.TemporaryDirectory() as work:
                rows.append(explained(name, arguments.peer, Path(work)))
                print(*rows[-1].cells(), file=sys.stderr, flush=True)
        if arguments.llama_cpp is not None:
            with tempfile.TemporaryDirectory() as work:
                conversions.append(converted(name, family, arguments.llama_cpp, Path(work)))
                print(*conversions[-1], file=sys.stderr, flush=True)
    for name in () if arguments.families else REAL:
        with tempfile.TemporaryDirectory() as work:
            rows.append(real(name, arguments.peer, Path(work)))
            print(*rows[-1].cells(), file=sys.stderr, flush=True)
    columns = (
        "model", "format", "positions", "error L", "error K", "error L-K", "KL L", "KL K", "KL L-K", "top-1 L",
        "top-1 K",
    )  # fmt: skip
    text = head + "\n" + table(columns, [row.cells() for row in rows])
    if conversions:
        names = (
            "family",
            "tensors",
            "equal to our writer's",
            "in one file only",
            "error of ktc on the converted file",
        )
        text += "\n## llama.cpp's converter on our safetensors\n\n" + table(names, conversions)
    save("llama-cpp-logits", text + READING)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
