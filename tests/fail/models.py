"""The models that cases name in `# model:`: tiny ones, written once a test session, some with a flaw."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ktc.grammar import Diagnostic, check
from ktc.grammar.diagnostics import KtError
from ktc.passes.fit import machine_isa
from support.gguf_files import write_gguf
from support.safetensors_files import write_safetensors
from support.tiny_models import tiny_model

from ktc import api

MODELS = (
    "tiny-llama",
    "tiny-llama-gguf",
    "tiny-llama-q8",
    "tiny-deepseek",
    "tiny-qwen-moe",
    "missing-tensor",
    "wrong-shape",
    "unknown-type",
    "odd-rows",
)
_FOLDERS = {"tiny-llama": "llama", "tiny-deepseek": "deepseek_v3", "tiny-qwen-moe": "qwen3_moe"}
"""Folders of safetensors, by the architecture of the model."""


@functools.cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="ktc-fail-"))


@functools.cache
def model_path(name: str) -> Path:
    """Where the model of that name lies; written at the first call."""
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; there are {', '.join(MODELS)}")
    folder = _folder() / name
    for kind, architecture in _FOLDERS.items():
        if name == kind:
            write_safetensors(tiny_model(architecture), folder)
            return folder
    path = folder.with_suffix(".gguf")
    if name == "odd-rows":
        write_safetensors(tiny_model("llama", intermediate_size=336), folder)
        return folder
    write_gguf(tiny_model("llama"), path, format="q8_0" if name == "tiny-llama-q8" else "f32")
    if name in ("tiny-llama-gguf", "tiny-llama-q8"):
        return path
    data = bytearray(path.read_bytes())
    tensor = b"blk.1.ffn_up.weight"
    name_at = data.index(tensor)  # in the tensor's header: name, u32 n_dims, u64 dims, u32 type, u64 offset
    dims_at = name_at + len(tensor) + 4
    if name == "missing-tensor":
        data[name_at : name_at + len(tensor)] = b"blk.1.ffn_xx.weight"
    elif name == "wrong-shape":  # half the rows
        data[dims_at + 8 : dims_at + 16] = (256).to_bytes(8, "little")
    else:
        data[dims_at + 16 : dims_at + 20] = (35).to_bytes(
            4, "little"
        )  # TQ2_0, which ktc does not compute with
    path.write_bytes(data)
    return path


def compile_case(
    file: str, model: str, definitions: Mapping[str, str]
) -> tuple[Sequence[Diagnostic], Mapping[str, str]]:
    """Compiles a case for a model: its diagnostics, and the texts they point into."""
    checked = check(file, params=dict(definitions), text=False)
    if checked.rules is None:
        return checked.diagnostics, checked.sources
    try:
        compiled, _ = api.compile(checked.rules, model=model_path(model))
    except KtError as error:
        return [_portable(d) for d in error.diagnostics], error.sources
    return [_portable(d) for d in compiled.context.warnings], checked.sources


def _portable(diagnostic: Diagnostic) -> Diagnostic:
    """The same without what differs from machine to machine: a temporary folder, the instruction set."""

    def clean(text: str) -> str:
        return text.replace(str(_folder()), "MODELS").replace(f"offers {machine_isa()}", "offers ISA")

    return replace(diagnostic, message=clean(diagnostic.message), notes=tuple(map(clean, diagnostic.notes)))
