"""cpu.mla_attention against kt.mla_attention: both forms, every weight format, odd sizes, bad steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from ktc.backends.cpu import packed, packed_matrices
from ktc.backends.cpu.library import OperandError
from ktc.backends.registry import Weight
from support.attention_limits import attention_limit
from support.attention_steps import descriptor
from support.packed_weights import aligned, columns_step, dense, make_blocks, nmse

import ktc.dialect
from ktc import _cpu
from ktc.dialect.cache_formats import Q8_0, row_length, write

FORMS = ("absorbed", "expanded")
INTEGER_LIMIT = 3e-4
"""Of quantised weights where they are absorbed: two products with int8 activations, one after the other."""


def packed_heads(
    format: str, heads: int, rows: int, columns: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(packed weight, what it means as float32[heads, rows, columns])."""
    blocks = make_blocks(format, heads * rows, columns, seed)
    weight = Weight("w", format, (heads, rows, columns))
    out = aligned(packed_matrices.packed_bytes(weight))
    packed_matrices.pack(blocks, weight, out)
    return out, dense(format, blocks, heads * rows, columns).view(heads, rows, columns)


class Step:
    """The operands of one step: sequences with `new` tokens after `cached` ones, in shuffled blocks."""

    def __init__(
        self, new: Sequence[int], cached: Sequence[int], heads: int = 4, nope: int = 32, rope: int = 16,
        latent: int = 64, value: int = 32, block_size: int = 32, dtype: torch.dtype = torch.float32,
        key_format: str = "f32", value_format: str = "f32", seed: int = 0,
    ) -> None:  # fmt: skip
        torch.manual_seed(seed)
        described, blocks = descriptor(new, cached, block_size)
        table, tokens = described["block_tables"], sum(new)
        queries = torch.randn(1, tokens, heads, nope + rope).transpose(1, 2)
        joined = torch.randn(1, tokens, latent + rope)
        w_key, self.key = packed_heads(key_format, heads, latent, nope, seed)
        w_value, self.value = packed_heads(value_format, heads, value, latent, seed + 1)
        # Weights of any size: scores and results of the size of one.
        size = float(self.key.square().mean().sqrt()) * (nope * latent) ** 0.5
        # What no sequence holds is NaN, so that reading it shows.
        shapes = ((blocks, 1, block_size, row_length(d, dtype)) for d in (latent, rope))
        nothing = 0x7F if dtype is Q8_0 else torch.nan
        key_cache, value_cache = (torch.full(shape, nothing, dtype=dtype) for shape in shapes)
        for sequence, count in enumerate(cached):
            for place in range(count):
                block, offset = (
                    table[sequence, place // block_size, None].long(),
                    torch.tensor([place % block_size]),
                )
                write(key_cache, block, offset, torch.randn(1, 1, latent))
                write(value_cache, block, offset, torch.randn(1, 1, rope))
        self.operands: dict[str, Any] = {
            "q_nope": queries[..., :nope],
            "q_rope": queries[..., nope:],
            "latent": joined[..., :latent],
            "k_rope": joined[..., latent:].unsqueeze(1),
            "w_key": w_key,
            "w_value": w_value,
            "key_cache": key_cache,
            "value_cache": value_cache,
            **described,
            "scale": 2.0 / size,
            "key_format": key_format,
            "value_format": value_format,
            "value_dim": value,
        }

    def run(self, form: str = "auto", **changes: Any) -> torch.Tensor:
        """The kernel's result; caches are copies, so that the step can run again."""
        caches = {name: self.operands[name].clone() for name in ("key_cache", "value_cache")}
        return torch.ops.kt_cpu.mla_attention(**{**self.operands, **caches, **changes}, form=form)

    def check(self, form: str, limit: float) -> None:
        """Output and caches equal those of the dialect's op on the weights' exact values."""
        wanted = {
            n: v for n, v in self.operands.items() if n not in ("key_format", "value_format", "value_dim")
        }
        wanted |= {"w_key": self.key, "w_value": self.value}
        caches = {name: self.operands[name].clone() for name in ("key_cache", "value_cache")}
        wanted |= {name: cache.clone() for name, cache in caches.items()}
        expected = torch.ops.kt.mla_attention(**wanted)
        found = torch.ops.kt_cpu.mla_attention(**{**self.operands, **caches}, form=form)
        for name, cache in caches.items():
            assert torch.equal(cache.nan_to_num(7.0), wanted[name].nan_to_num(7.0))
        assert found.is_contiguous()
        assert nmse(found, expected) <= limit


STEPS: dict[str, tuple[list[int], list[int]]] = {
    "one token": ([1], [0]),
    "decode": ([1], [100]),
    "prefill": ([77], [0]),
    "resumed prefill": ([40], [61]),
    "ragged": ([1, 33, 0, 5], [200, 7, 50, 0]),
    "many decoding": ([1] * 9, [0, 3, 17, 64, 65, 130, 200, 31, 32]),
    "long decode": ([1, 2], [1100, 513]),
}


def limit(form: str, new: Sequence[int], dtype: torch.dtype, heads: int = 4) -> float:
    """Absorbed, up to 64 rows of queries go together; expanded ones are always rounded if caches are."""
    return attention_limit(64 if form == "expanded" else min(64, heads * max(new)), dtype)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_steps(name: str, dtype: torch.dtype, form: str, level: str) -> None:
    Step(*STEPS[name], dtype=dtype).check(form, limit(form, STEPS[name][0], dtype))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", STEPS)
def test_quantised_caches(name: str, form: str, level: str) -> None:
    Step(*STEPS[name], rope=32, block_size=9, dtype=Q8_0).check(form, limit(form, STEPS[name][0], Q8_0))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tokens", [*range(1, 10), 15, 16, 17, 33, 257])
def test_numbers_of_tokens(tokens: int, form: str) -> None:
    for dtype in (torch.float32, torch.float16):
        Step([tokens], [29], dtype=dtype).check(form, limit(form, [tokens], dtype))


SHAPES: dict[str, dict[str, int]] = {
    "deepseek v2 lite": {"heads": 16, "nope": 128, "rope": 64, "latent": 512, "value": 128},
    "deepseek v3": {"heads": 128, "nope": 128, "rope": 64, "latent": 512, "value": 128},
    "one head": {"heads": 1},
    "67 heads": {"heads": 67},
    "130 heads": {"heads": 130, "rope": 32},
    "odd multiples": {"heads": 3, "nope": 96, "rope": 48, "latent": 160, "value": 80},
    "long latent": {"heads": 2, "latent": 1056},
    "blocks of 1": {"block_size": 1},
    "blocks of 7": {"block_size": 7},
    "blocks of 256": {"block_size": 256},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name: str, form: str, threads: int) -> None:
    heads = SHAPES[name].get("heads", 4)
    for dtype in (torch.float32, torch.bfloat16):
        step = Step([3, 20, 1], [10, 0, 70], dtype=dtype, **SHAPES[name])
        step.check(form, limit(form, [20], dtype, heads))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("format", packed.PACKED)
def test_formats(format: str, form: str, level: str) -> None:
    step = columns_step(format)
    sizes = {"nope": max(32, step), "latent": max(64, step)}
    whole = form == "expanded" or format in ("f32", "f16", "bf16", "fp8")
    for new, cached in (([1], [40]), ([40, 2], [3, 0])):
        made = Step(new, cached, heads=2, key_format=format, value_format=format, **sizes)
        made.check(form, 1e-10 if whole else INTEGER_LIMIT)


def test_keys_and_values_may_have_different_formats() -> None:
    step = Step([5], [30], latent=256, key_format="q8_0", value_format="q4_k")
    step.check("absorbed", INTEGER_LIMIT)
    step.check("expanded", 1e-10)


@pytest.mark.parametrize("form", ["auto", *FORMS])
def test_the_result_does_not_depend_on_threads(form: str) -> None:
    step = Step([1, 300, 2], [1500, 20, 40], key_format="q8_0", value_format="q8_0")
    before = _cpu.threads()
    results = []
    try:
        for count in (1, 2, 5):
            _cpu.set_threads(count)
            results.append(step.run(form))
    finally:
        _cpu.set_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("form", ["auto", *FORMS])
def test_a_sequence_does_not_depend_on_the_others(form: str) -> None:
    """With quantised weights, to the bit: alone as beside others, and in batches cut anywhere."""
    step = Step([3, 70, 1, 1], [700, 0, 90, 5], key_format="q8_0", value_format="q8_0")
    together = step.run(form)
    given = step.operands
    for sequence in range(4):
        first, last = (int(place) for place in given["seq_starts"][sequence : sequence + 2])
        alone = step.run(
            form,
            **{name: given[name][:, :, first:last] for name in ("q_nope", "q_rope", "k_rope")},
            latent=given["latent"][:, first:last],
            seq_starts=torch.tensor([0, last - first], dtype=torch.int32),
            context_lens=given["context_lens"][sequence : sequence + 1],
            block_tables=given["block_tables"][sequence : sequence + 1],
            slots=given["slots"][first:last],
        )
        assert torch.equal(alone, together[:, first:last])


def test_auto_takes_one_of_the_two_forms() -> None:
    """Decoding absorbs, a long prefill expands: to the bit, and the two differ in rounding."""
    sizes = SHAPES["deepseek v2 lite"]
    for new, cached, form in (([1], [300], "absorbed"), ([260], [0], "expanded"), ([4], [600], "absorbed")):
        step = Step(new, cached, **sizes)
        assert torch.equal(step.run("auto"), step.run(form))
        other = FORMS[1 - FORMS.index(form)]
        assert not torch.equal(step.run("auto"), step.run(other))


@pytest.mark.parametrize("form", FORMS)
def test_large_scores_stay_finite(form: str, level: str) -> None:
    step = Step([20], [40])
    assert torch.isfinite(step.run(form, scale=1e4)).all()


@pytest.mark.parametrize("form", FORMS)
def test_what_is_wrong_shows_and_stays_where_it_is(form: str) -> None:
    step = Step([5, 3], [40, 2])
    step.operands["q_rope"] = step.operands["q_rope"].clone()
    step.operands["q_rope"][0, 1, 2] = torch.nan
    out = step.run(form)
    assert torch.isnan(out[0, 2, 1]).all()
    out[0, 2, 1] = 0
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("form", FORMS)
def test_tokens_of_no_sequence_get_zeros(form: str) -> None:
    step = Step([4], [0])
    starts, contexts = torch.tensor([1, 3], dtype=torch.int32), torch.tensor([2], dtype=torch.int32)
    slots = step.operands["slots"][[2, 0, 1, 3]]  # those in the sequence take positions 0 and 1
    out = step.run(form, seq_starts=starts, context_lens=contexts, slots=slots)
    assert (out[0, [0, 3]] == 0).all() and (out[0, 1:3] != 0).any(-1).all()


def test_no_tokens() -> None:
    assert Step([0], [0]).run().shape == (1, 0, 4, 32)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "slot outside": ({"slots": torch.tensor([0, 10**9])}, "mla_attention: `slots`"),
    "negative slot": ({"slots": torch.tensor([-1, 0])}, "`slots`"),
    "too few slots": ({"slots": torch.tensor([0])}, "`slots`"),
    "starts beyond": ({"seq_starts": torch.tensor([0, 3], dtype=torch.int32)}, "`seq_starts`"),
    "starts backwards": ({"seq_starts": torch.tensor([2, 0], dtype=torch.int32)}, "`seq_starts`"),
    "context too long": ({"context_lens": torch.tensor([10**6], dtype=torch.int32)}, "`context_lens`"),
    "context too short": ({"context_lens": torch.tensor([1], dtype=torch.int32)}, "`context_lens`"),
    "block outside": ({"block_tables": torch.tensor([[99]], dtype=torch.int32)}, "`block_tables`"),
    "negative block": ({"block_tables": torch.tensor([[-1]], dtype=torch.int32)}, "`block_tables`"),
    "wrong integers": ({"context_lens": torch.tensor([2])}, "`context_lens`"),
    "wrong table": ({"block_tables": torch.zeros(2, 1, dtype=torch.int32)}, "`block_tables`"),
    "wrong queries": ({"q_nope": torch.randn(1, 3, 2, 32)}, "`q_rope`"),
    "wrong dtype": ({"q_nope": torch.randn(1, 4, 2, 32).half()}, "`q_nope`"),
    "wrong latent": ({"latent": torch.randn(1, 2, 96)}, "`key_cache`"),
    "wrong key": ({"k_rope": torch.randn(1, 4, 2, 16)}, "`k_rope`"),
    "wrong weight": ({"w_key": torch.zeros(64, dtype=torch.uint8)}, "`w_key`"),
    "wrong cache": ({"key_cache": torch.randn(4, 2, 32, 64)}, "`key_cache`"),
    "wrong cache dtype": ({"value_cache": torch.zeros(4, 1, 32, 16, dtype=torch.int8)}, "`value_cache`"),
    "unknown format": ({"key_format": "q9"}, "q9"),
}


@pytest.mark.parametrize("name", BAD)
def test_refuses_steps(name: str) -> None:
    change, text = BAD[name]
    with pytest.raises(OperandError, match=text):
        Step([2], [0]).run(**change)


@pytest.mark.parametrize(
    ("sizes", "text"), [({"rope": 8}, "q_rope"), ({"value": 24}, "values")], ids=["rope", "value"]
)
def test_refuses_depths_it_has_no_vectors_for(sizes: dict[str, int], text: str) -> None:
    with pytest.raises(OperandError, match=text):
        Step([2], [0], **sizes).run()


def test_the_workspace_is_bounded_whatever_the_step() -> None:
    deepseek_v3 = _cpu.latent_workspace(128, 128, 64, 512, 128)
    queries, parts = 64 * 128 * 512 * 4, 128 * 128 * 514 * 4
    assert queries + parts < deepseek_v3 < queries + parts + _cpu.threads() * (8 << 20)


def test_a_cached_token_of_deepseek_v3_takes_68_and_a_half_kib() -> None:
    """61 layers of a 512-element latent and a 64-element rotated key in bfloat16."""
    spec = torch.ops.kt.mla_attention.default
    caches = ktc.dialect.spec_of(spec).caches
    operands = {
        "latent": torch.empty(1, 1, 512, device="meta"),
        "k_rope": torch.empty(1, 1, 1, 64, device="meta"),
    }
    heads, key, value = caches(operands)
    assert round(61 * heads * (key + value) * torch.bfloat16.itemsize / 1024, 1) == 68.6
