"""Small models of every family in files, compiled with the family's library, beside eager on the same weights.

`Case` is one model in one file, eager and compiled. `steps` runs either over a prefill and decode steps. Quantised
weights meet activations rounded to int8 in blocks of 32; `round_inputs` makes the eager model round them as well, so
that what remains is the order of summation, and the values that lie at the edge between two codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from support.gguf_files import write_gguf
from support.safetensors_files import write_safetensors
from support.threads import one_thread
from support.tiny_models import tiny_model
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

import ktc
from ktc.api import load_compiled
from ktc.eager import eager_model
from ktc.weights.opening import open_source


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        architecture: key of `tiny_models`. class_name: as a `.kt` file says it. library: file of `std/`.
        changes: configuration fields that differ from the tiny model's.
        gguf, safetensors: options of the writers.
    """

    architecture: str
    class_name: str
    library: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    gguf: Mapping[str, Any] = field(default_factory=dict)
    safetensors: Mapping[str, Any] = field(default_factory=dict)


_LITE = {"q_lora_rank": None, "topk_method": "greedy", "n_group": 1, "topk_group": 1}
FAMILIES = {
    "llama": Family("llama", "LlamaForCausalLM", "llama"),
    "internlm2": Family(
        "llama", "LlamaForCausalLM", "internlm2", {}, {"architecture": "internlm2"}, {"internlm2": True}
    ),
    "qwen2": Family("qwen2", "Qwen2ForCausalLM", "qwen2"),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", "qwen3"),
    "gemma3": Family("gemma3_text", "Gemma3ForCausalLM", "gemma3"),
    "mixtral": Family("mixtral", "MixtralForCausalLM", "mixtral"),
    "qwen2_moe": Family("qwen2_moe", "Qwen2MoeForCausalLM", "qwen2_moe"),
    "qwen3_moe": Family("qwen3_moe", "Qwen3MoeForCausalLM", "qwen3_moe"),
    "deepseek_v2": Family("deepseek_v2", "DeepseekV2ForCausalLM", "deepseek_v2"),
    "deepseek_v2_lite": Family("deepseek_v2", "DeepseekV2ForCausalLM", "deepseek_v2", _LITE),
    "deepseek_v3": Family("deepseek_v3", "DeepseekV3ForCausalLM", "deepseek_v3"),
    "gpt_oss": Family("gpt_oss", "GptOssForCausalLM", "gpt_oss"),
    "glm4_moe": Family("glm4_moe", "Glm4MoeForCausalLM", "glm4_moe"),
}
LATENT = tuple(name for name in FAMILIES if name.startswith("deepseek"))
PROGRAM = """model {name} from "{path}"
include "std/{library}.kt"
device host = cpu (memory = 1GiB)
rule everything {{ match ** place host }}
rule cache {{ match @attention cache paged(dtype = f32, tokens = 256) }}
"""
REFERENCE_KERNELS = """rule exact { match ** : Linear and not **.kv_b_proj kernel torch.linear }
rule exact_experts { match **.experts kernel torch.experts expect any }
"""
# Absorbed, latent attention rounds what no module of the eager model sees; expanded, it rounds nothing.
EXPANDED_LATENT = 'rule whole { match @attention kernel cpu.mla_attention(form = "expanded") }\n'
MIXED = {"attn_v": "q6_k", "ffn_down": "q6_k", "token_embd": "q8_0"}
EXACT_FORMATS = ("f32", "f16", "bf16", "fp8")
PREFILL = 21


class Case:
    """A model in a file, eager and compiled.

    Args:
        name: of `FAMILIES`. folder: where the file goes. format: see `write`.
        extra: more text of the program. library: of `std/`, by default the family's.
        gguf: options of the GGUF writer. changes: configuration fields.
    """

    @one_thread()
    def __init__(
        self,
        name: str,
        folder: Path,
        format: str,
        extra: str = "",
        *,
        library: str = "",
        gguf: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> None:
        family = FAMILIES[name]
        model = tiny_model(family.architecture, **{**family.changes, **changes})
        path = write(model, family, format, folder, gguf or {})
        self.source = open_source(path)
        self.eager: PreTrainedModel = eager_model(self.source)
        text = PROGRAM.format(name=family.class_name, library=library or family.library, path=path)
        exact = format in ("f32", "f16", "bf16", "safetensors", "safetensors-bf16")
        if name in LATENT and not library and not exact and "mla_attention" not in extra:
            extra += EXPANDED_LATENT
        self.compiled, placement = ktc.compile(text + extra)
        self.model = load_compiled(self.compiled, placement)

    @property
    def fired(self) -> dict[str, int]:
        """How often each rewrite fired."""
        events = self.compiled.context.events
        return {e.stage.removeprefix("rewrite."): e.data["fired"] for e in events if e.data.get("fired")}

    @property
    def kernels(self) -> set[str]:
        """Names of the kernels that run."""
        return {e.data["kernel"] for e in self.compiled.context.events if e.kind == "lowered"}

    @property
    def unused(self) -> tuple[str, ...]:
        """Tensors of the file that no parameter takes."""
        binding = self.compiled.context.binding
        return () if binding is None else binding.unused

    @property
    def quantised(self) -> set[str]:
        """Parameters held as integer codes, which meet rounded activations; expanded latent attention rounds none."""
        plans = self.compiled.context.weights.values()
        found = {name for plan in plans if plan.format not in EXACT_FORMATS for name in plan.parameters}
        absorbed = any(kernel.partition(".")[2].startswith("mla_attention") for kernel in self.kernels)
        return {name for name in found if not (absorbed and name.endswith("kv_b_proj.weight"))}

    def errors(self, ids: torch.Tensor, mask: torch.Tensor, prefill: int = PREFILL) -> torch.Tensor:
        """Relative error of the logits of each position that is no padding."""
        expected, got = (steps(m, ids, mask, prefill)[mask.bool()] for m in (self.eager, self.model))
        return (got - expected).norm(dim=-1) / expected.norm(dim=-1)

    def error(self, ids: torch.Tensor, mask: torch.Tensor, prefill: int = PREFILL) -> float:
        """Relative error of all logits."""
        expected, got = (steps(m, ids, mask, prefill)[mask.bool()] for m in (self.eager, self.model))
        return float((got - expected).norm() / expected.norm())

    def round_inputs(self) -> None:
        """Makes the eager model round what its quantised matrices are multiplied with."""
        round_inputs(self.eager, self.quantised)


def write(model: PreTrainedModel, family: Family, format: str, folder: Path, gguf: Mapping[str, Any]) -> Path:
    """Writes the model's file.

    Args:
        format: of the matrices of a GGUF file; "mixed": as the K_M files are, q4_k with some q6_k; "experts-F": experts
            in F, other matrices q8_0. Or a folder of safetensors in the names of the published files: "safetensors"
            (float32), "safetensors-bf16", "safetensors-fp8", "safetensors-mxfp4".
        gguf: options of `write_gguf` beside the family's.
    """
    kind, _, rest = format.partition("-")
    if kind == "safetensors":
        dtype = torch.float32 if not rest else torch.bfloat16
        blocks = rest if rest in ("fp8", "mxfp4") else None
        return write_safetensors(model, folder / "model", dtype, blocks, **family.safetensors)
    formats = None
    if format == "mixed":
        format, formats = "q4_k", MIXED
    elif kind == "experts":
        format, formats = "q8_0", {"_exps": rest}
    return write_gguf(model, folder / "m.gguf", format, formats=formats, **{**family.gguf, **gguf})


class _Rounding(TorchFunctionMode):
    """Rounds the left operand of every matrix product."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.linear, torch.Tensor.matmul, torch.Tensor.__matmul__):
            args = (rounded(args[0]), *args[1:])
        return func(*args, **(kwargs or {}))


def rounded(x: torch.Tensor) -> torch.Tensor:
    """To int8 in blocks of 32 along the last dimension, scaled by each block's largest value."""
    blocks = x.unflatten(-1, (-1, 32))
    scale = (blocks.abs().amax(-1, keepdim=True) / 127).clamp_min(1e-30)
    return ((blocks / scale).round() * scale).flatten(-2)


def round_inputs(model: PreTrainedModel, quantised: set[str]) -> None:
    """Makes every linear and every expert with a weight in `quantised` round what it reads."""

    def within(forward: Any, *args: Any, **kwargs: Any) -> Any:
        with _Rounding():
            return forward(*args, **kwargs)

    coded = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if name in quantised}
    for module in model.modules():
        weight = (
            module.weight if isinstance(module, torch.nn.Linear) else getattr(module, "gate_up_proj", None)
        )
        if id(weight) in coded:  # a tied head has the embedding's weight
            module.forward = partial(within, module.forward)


@one_thread()
def steps(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, prefill: int) -> torch.Tensor:
    """Logits [batch, columns, vocabulary]: a prefill of the first columns, then one column a step; padding is zero."""
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    cache, found = None, []
    for start, stop in [(0, prefill), *((i, i + 1) for i in range(prefill, ids.shape[1]))]:
        with torch.no_grad():
            out = model(
                ids[:, start:stop], attention_mask=mask[:, :stop], position_ids=positions[:, start:stop],
                past_key_values=cache, use_cache=True,
            )  # fmt: skip
        cache = out.past_key_values
        found.append(out.logits * mask[:, start:stop, None])
    return torch.cat(found, 1)


def sequence() -> tuple[torch.Tensor, torch.Tensor]:
    """29 tokens, more than the sliding window of 16 that some of the models have."""
    ids = torch.randint(3, 500, (1, PREFILL + 8), generator=torch.Generator().manual_seed(4))
    return ids, torch.ones_like(ids)


def ragged() -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts of 21, 2 and 13 tokens, padded on the left, and 8 more tokens each."""
    ids = torch.randint(3, 500, (3, PREFILL + 8), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[1, :19] = 0
    mask[2, :8] = 0
    return ids, mask
