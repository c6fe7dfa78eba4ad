"""Models of published shapes with random weights, as GGUF files that both llama.cpp and ktc read.

`SHAPES` has Qwen3-30B-A3B, Mixtral-8x7B and DeepSeek-V3; `write` makes a file. Layers, experts and the vocabulary can
be cut, all other sizes stay. Formats are those that llama-quantize chooses for Q4_K_M (DeepSeek: for Q4_K, with the
matrices of the latent in Q8_0, as their rows are no whole blocks). What a layer adds is small beside the embedding, so
that tokens differ at every router, which spreads over all experts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np

from benchmarks import random_blocks

CONTEXT = 40960
_ADDED = 0.3
"""Deviation of what attention or a feed-forward block adds, about, where the embedding's is 1."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file.

    Attributes:
        name: in GGUF.
        shape: rows first, as in torch; experts before rows.
        format: of its elements.
        deviation: standard deviation of its elements; 0 with f32: all are `fill`.
        fill: see there.
    """

    name: str
    shape: tuple[int, ...]
    format: str = "f32"
    deviation: float = 0.0
    fill: float = 1.0

    @property
    def elements(self) -> int:
        """Their number."""
        count = 1
        for length in self.shape:
            count *= length
        return count

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return random_blocks.size(self.format, self.elements)


@dataclass(frozen=True)
class Shape:
    """A published shape, or a part of it.

    Attributes:
        title: for tables. architecture: GGUF's. class_name, library: transformers' class and the file of `std/`.
        layers, experts, vocabulary: may be cut.
        dense: layers without experts, the first ones.
        used: experts a token.
        hidden, heads, kv_heads, head: sizes of attention; `head` is that of the true keys for DeepSeek.
        inner, expert: rows of the gate of dense layers (0: none) and of an expert.
    """

    title: str
    architecture: str
    class_name: str
    library: str
    layers: int
    experts: int
    vocabulary: int
    used: int
    hidden: int
    heads: int
    kv_heads: int
    head: int
    inner: int
    expert: int
    dense: int = 0

    def cut(self, layers: int = 0, experts: int = 0, vocabulary: int = 0) -> Shape:
        """With fewer (or more) layers, experts or tokens; 0 leaves a size as it is."""
        return replace(
            self,
            layers=layers or self.layers,
            experts=experts or self.experts,
            vocabulary=vocabulary or self.vocabulary,
        )

    @property
    def latent(self) -> bool:
        """Whether attention is multi-head latent attention, with DeepSeek-V3's sizes."""
        return self.architecture == "deepseek2"


SHAPES = {
    "qwen3": Shape(
        "Qwen3-30B-A3B", "qwen3moe", "Qwen3MoeForCausalLM", "qwen3_moe",
        layers=8, experts=128, vocabulary=151936, used=8, hidden=2048, heads=32, kv_heads=4, head=128,
        inner=0, expert=768,
    ),
    "mixtral": Shape(
        "Mixtral-8x7B", "llama", "MixtralForCausalLM", "mixtral",
        layers=2, experts=8, vocabulary=32000, used=2, hidden=4096, heads=32, kv_heads=8, head=128,
        inner=0, expert=14336,
    ),
    "deepseek": Shape(
        "DeepSeek-V3", "deepseek2", "DeepseekV3ForCausalLM", "deepseek_v3",
        layers=2, experts=256, vocabulary=129280, used=8, hidden=7168, heads=128, kv_heads=1, head=192,
        inner=18432, expert=2048, dense=1,
    ),
}  # fmt: skip
_QUERY_RANK, _LATENT, _ROTATED = 1536, 512, 64
"""DeepSeek-V3's: ranks of queries, keys and values; rotated elements of a key."""


def tensors(shape: Shape) -> list[Tensor]:
    """Everything in the file, in order."""
    mixtral, hidden = shape.architecture == "llama", shape.hidden
    head = "q4_k" if shape.latent else "q6_k"
    found = [
        Tensor("token_embd.weight", (shape.vocabulary, hidden), "q4_k", 1.0),
        Tensor("output_norm.weight", (hidden,)),
        Tensor("output.weight", (shape.vocabulary, hidden), head, 2 * hidden**-0.5),
    ]
    for layer in range(shape.layers):
        more = not shape.latent and _more_bits(layer, shape.layers)
        block: list[Tensor] = [
            Tensor("attn_norm.weight", (hidden,)),
            *(_latent(shape) if shape.latent else _attention(shape, mixtral, more)),
            Tensor("ffn_norm.weight", (hidden,)),
            *_feed_forward(shape, layer >= shape.dense, "q6_k" if more else "q4_k"),
        ]
        found += [replace(tensor, name=f"blk.{layer}.{tensor.name}") for tensor in block]
    return found


def _more_bits(layer: int, layers: int) -> bool:
    """Whether llama-quantize gives a layer's values and down matrices more bits in Q4_K_M."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _matrix(name: str, rows: int, columns: int, format: str, gain: float = 1.0, experts: int = 0) -> Tensor:
    shape = (experts, rows, columns) if experts else (rows, columns)
    return Tensor(f"{name}.weight", shape, format, gain * columns**-0.5)


def _attention(shape: Shape, mixtral: bool, more: bool) -> list[Tensor]:
    queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    found = [
        _matrix("attn_q", queries, shape.hidden, "q4_k"),
        _matrix("attn_k", keys, shape.hidden, "q8_0" if mixtral else "q4_k"),
        _matrix("attn_v", keys, shape.hidden, "q8_0" if mixtral else "q6_k" if more else "q4_k"),
        _matrix("attn_output", shape.hidden, queries, "q5_k" if mixtral else "q4_k", _ADDED),
    ]
    if not mixtral:
        found += [Tensor(f"attn_{one}_norm.weight", (shape.head,)) for one in "qk"]
    return found


def _latent(shape: Shape) -> list[Tensor]:
    plain, hidden, heads = shape.head - _ROTATED, shape.hidden, shape.heads
    return [
        _matrix("attn_q_a", _QUERY_RANK, hidden, "q4_k"),
        Tensor("attn_q_a_norm.weight", (_QUERY_RANK,)),
        _matrix("attn_q_b", heads * shape.head, _QUERY_RANK, "q4_k"),
        _matrix("attn_kv_a_mqa", _LATENT + _ROTATED, hidden, "q4_k"),
        Tensor("attn_kv_a_norm.weight", (_LATENT,)),
        Tensor("attn_k_b.weight", (heads, _LATENT, plain), "q8_0", _LATENT**-0.5),
        Tensor("attn_v_b.weight", (heads, plain, _LATENT), "q8_0", _LATENT**-0.5),
        _matrix("attn_output", hidden, heads * plain, "q4_k", _ADDED),
    ]


def _feed_forward(shape: Shape, routed: bool, down: str) -> list[Tensor]:
    hidden = shape.hidden

    def gated(suffix: str, inner: int, experts: int = 0) -> list[Tensor]:
        return [
            _matrix(f"ffn_gate{suffix}", inner, hidden, "q4_k", experts=experts),
            _matrix(f"ffn_up{suffix}", inner, hidden, "q4_k", experts=experts),
            _matrix(f"ffn_down{suffix}", hidden, inner, down, _ADDED, experts),
        ]

    if not routed:
        return gated("", shape.inner)
    found = [
        _matrix("ffn_gate_inp", shape.experts, hidden, "f32", 1.5),
        *gated("_exps", shape.expert, shape.experts),
    ]
    if shape.latent:
        bias = Tensor("exp_probs_b.bias", (shape.experts,), fill=0.0)
        found += [bias, *gated("_shexp", shape.expert)]
    return found


def _metadata(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_name(f"{shape.title} shape, random weights")
    writer.add_block_count(shape.layers)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.inner or shape.expert)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_expert_count(shape.experts)
    writer.add_expert_used_count(shape.used)
    if shape.architecture == "llama":
        writer.add_rope_dimension_count(shape.head)
    else:
        writer.add_expert_feed_forward_length(shape.expert)
    if shape.latent:
        _latent_metadata(writer, shape)
    else:
        writer.add_key_length(shape.head)
        writer.add_value_length(shape.head)
    writer.add_tokenizer_model("no_vocab")


def _latent_metadata(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_q_lora_rank(_QUERY_RANK)
    writer.add_kv_lora_rank(_LATENT)
    writer.add_key_length(_LATENT + _ROTATED)
    writer.add_value_length(_LATENT)
    writer.add_key_length_mla(shape.head)
    writer.add_value_length_mla(shape.head - _ROTATED)
    writer.add_rope_dimension_count(_ROTATED)
    writer.add_leading_dense_block_count(shape.dense)
    writer.add_expert_shared_count(1)
    writer.add_expert_weights_scale(2.5)
    writer.add_expert_weights_norm(True)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_expert_group_count(8)
    writer.add_expert_group_used_count(4)


def _pieces(tensor: Tensor, seed: int) -> Iterator[random_blocks.Blocks]:
    if tensor.format == "f32" and not tensor.deviation:
        yield np.full(tensor.elements, tensor.fill, np.float32).view(np.uint8)
    else:
        yield from random_blocks.pieces(tensor.format, tensor.elements, tensor.deviation, seed)


def path_of(shape: Shape, folder: Path) -> Path:
    """Where `write` puts a shape; the name changes with anything in the file."""
    facts = repr((shape, tensors(shape))).encode()
    digest = hashlib.sha256(facts).hexdigest()[:8]
    return folder / f"{shape.title.lower()}-{shape.layers}-layers-{digest}.gguf"


def write(
    shape: Shape, folder: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> Path:
    """The file of a shape, made if it is not there; one tensor's piece is in memory at a time.

    Args:
        shape: what to write. folder: where; it is made. progress: called with (bytes written, bytes in all).
    """
    path = path_of(shape, folder)
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part")
    writer = gguf.GGUFWriter(scratch, shape.architecture)
    _metadata(writer, shape)
    entries = tensors(shape)
    for tensor in entries:
        stored = (*tensor.shape[:-1], random_blocks.size(tensor.format, tensor.shape[-1]))
        if tensor.format == "f32":
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes)
        else:
            kind = random_blocks.kind(tensor.format)
            writer.add_tensor_info(tensor.name, stored, np.dtype(np.uint8), tensor.nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if not writer.fout:
        raise RuntimeError(f"gguf did not open {scratch}")
    out = writer.fout[0]
    writer.write_padding(out, out.tell())
    total, done = sum(tensor.nbytes for tensor in entries), 0
    for seed, tensor in enumerate(entries):
        for piece in _pieces(tensor, seed):
            out.write(piece.data)
            done += piece.nbytes
            progress(done, total)
        writer.write_padding(out, tensor.nbytes)
    writer.close()
    scratch.rename(path)
    return path
