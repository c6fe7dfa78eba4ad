"""`ktc.rewrite`, `ktc.compile`, `ktc.load`: what they take, what they give, what they refuse; generate() on the
compiled engine gives eager's tokens on a float32 model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ktc.grammar.diagnostics import KtError
from ktc.grammar.loading import load
from support.gguf_files import write_gguf, write_safetensors_folder
from support.tiny_models import tiny_model
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

import ktc
from ktc.api import load_compiled
from ktc.errors import KtcError

RULES = 'include "std/llama.kt"\ndevice host = cpu (memory = 1GiB)\nrule everything { match ** place host }\n'
FIXED: dict[str, Any] = {"max_new_tokens": 14, "eos_token_id": None, "pad_token_id": 0}
GREEDY: dict[str, Any] = {**FIXED, "do_sample": False}


@pytest.fixture(scope="module")
def eager() -> PreTrainedModel:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def placed(eager: PreTrainedModel) -> Any:
    return ktc.rewrite(eager, RULES)


def token_ids(*shape: int, seed: int = 7) -> torch.Tensor:
    return torch.randint(3, 500, shape, generator=torch.Generator().manual_seed(seed))


def left_padded() -> tuple[torch.Tensor, torch.Tensor]:
    ids = token_ids(3, 11)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    mask[2, :9] = 0
    return ids, mask


def test_the_kernels_are_ours(placed: Any) -> None:
    targets = {
        str(node.target)
        for node in placed.engine.placement.graphs["step"].nodes
        if node.op == "call_function"
    }
    assert {"kt_cpu.linear.default", "kt_cpu.attention.default", "kt_cpu.add_rms_norm.default"} <= targets
    assert {"kt_cpu.silu_mul.default", "kt_cpu.rope.default", "kt_cpu.embedding.default"} <= targets


def test_greedy(eager: PreTrainedModel, placed: Any) -> None:
    for length in (1, 9, 40):
        ids = token_ids(1, length, seed=length)
        assert torch.equal(placed.generate(ids, **GREEDY), eager.generate(ids, **GREEDY))


def test_seeded_sampling(eager: PreTrainedModel, placed: Any) -> None:
    settings = {**FIXED, "do_sample": True, "temperature": 0.8, "top_k": 30, "top_p": 0.9}
    torch.manual_seed(5)
    expected = eager.generate(token_ids(2, 9), **settings)
    torch.manual_seed(5)
    assert torch.equal(placed.generate(token_ids(2, 9), **settings), expected)


class Chunks(BaseStreamer):
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.chunks: list[list[int]] = []

    def put(self, value: torch.Tensor) -> None:
        self.chunks.append(value.flatten().tolist())

    def end(self) -> None:
        self.chunks.append([])


def test_streamer(eager: PreTrainedModel, placed: Any) -> None:
    ours, theirs = Chunks(), Chunks()
    placed.generate(token_ids(1, 7), streamer=ours, **GREEDY)
    eager.generate(token_ids(1, 7), streamer=theirs, **GREEDY)
    assert ours.chunks == theirs.chunks and len(ours.chunks) == 16


def test_left_padded_batch(eager: PreTrainedModel, placed: Any) -> None:
    ids, mask = left_padded()
    expected = eager.generate(ids, attention_mask=mask, **GREEDY)
    assert torch.equal(placed.generate(ids, attention_mask=mask, **GREEDY), expected)


def test_beams(eager: PreTrainedModel, placed: Any) -> None:
    ids, mask = left_padded()
    settings = {
        **FIXED,
        "num_beams": 3,
        "num_return_sequences": 2,
        "attention_mask": mask,
        "do_sample": False,
    }
    assert torch.equal(placed.generate(ids, **settings), eager.generate(ids, **settings))


def test_resume_from_a_cache(eager: PreTrainedModel, placed: Any) -> None:
    first = placed.generate(token_ids(1, 9), return_dict_in_generate=True, **GREEDY)
    ids = torch.cat([first.sequences, token_ids(1, 5, seed=1)], 1)
    assert first.past_key_values.get_seq_length() == 9 + 13
    resumed = placed.generate(ids, past_key_values=first.past_key_values, **GREEDY)
    assert torch.equal(resumed, eager.generate(ids, **GREEDY))


def test_two_models_in_one_process(eager: PreTrainedModel, placed: Any) -> None:
    other = tiny_model("qwen2", seed=3)
    second = ktc.rewrite(other, RULES.replace("llama", "qwen2"))
    caches = [placed.new_cache(), second.new_cache()]
    rows = [token_ids(1, 9), token_ids(1, 5, seed=2)]
    for _ in range(6):
        for index, model in enumerate((placed, second)):
            fresh = rows[index][:, caches[index].get_seq_length() :]
            logits = model(fresh, past_key_values=caches[index], logits_to_keep=1).logits
            rows[index] = torch.cat([rows[index], logits[:, -1].argmax(-1, keepdim=True)], 1)
    for row, model, prompt in zip(rows, (eager, other), (9, 5), strict=True):
        assert torch.equal(row, model.generate(row[:, :prompt], **{**GREEDY, "max_new_tokens": 6}))


def test_rules_are_a_path_a_text_or_parsed(eager: PreTrainedModel, tmp_path: Path) -> None:
    text = (
        "param context: int = 128\n" + RULES + "rule c { match @attention cache paged(tokens = context) }\n"
    )
    path = tmp_path / "r.kt"
    path.write_text(text)
    found = [
        ktc.rewrite(eager, text),
        ktc.rewrite(eager, path, params={"context": 64}),
        ktc.rewrite(eager, str(path), params={"context": "96"}),
        ktc.rewrite(eager, load(path)),
    ]
    assert [model.engine.placement.tokens for model in found] == [128, 64, 96, 128]  # type: ignore[union-attr]
    assert all(isinstance(model, type(eager)) for model in found)


def test_errors_point_into_the_rules(eager: PreTrainedModel) -> None:
    with pytest.raises(KtError) as caught:
        ktc.rewrite(eager, RULES + "rule dead { match model.nothing place host }\n")
    assert [d.code for d in caught.value.diagnostics] == ["KT201"]
    assert "rule dead { match model.nothing" in str(caught.value)
    with pytest.raises(KtcError, match="example"):
        ktc.rewrite(torch.nn.Linear(2, 2), RULES)
    with pytest.raises(KtcError, match="no model"):
        ktc.compile(RULES)


def test_rows_that_do_not_divide() -> None:
    """Like SmolLM2's 576 columns, which are no multiple of q4_k's 256."""
    odd = tiny_model("llama", hidden_size=288, head_dim=32, intermediate_size=512)
    with pytest.raises(KtError) as caught:
        ktc.rewrite(odd, RULES + "rule w { match @linears quant q4_k }\n")
    (problem,) = caught.value.diagnostics
    assert problem.code == "KT605" and "rows have 288 elements" in problem.message


@pytest.mark.parametrize(
    ("quant", "bound"), [("", 1e-5), ("q8_0", 0.05), ("q4_0", 0.6), ("q4_k", 0.6), ("bf16", 0.05)]
)
def test_quantising_a_safetensors_folder(
    eager: PreTrainedModel, tmp_path: Path, quant: str, bound: float
) -> None:
    """The error against the model in full precision is that of the format; the weights are as small as it says."""
    folder = write_safetensors_folder(eager, tmp_path / "model")
    rule = f"rule w {{ match @linears quant {quant} }}\n" if quant else ""
    stages: list[str] = []
    done, placement = ktc.compile(RULES + rule, model=folder, progress=stages.append)
    assert stages[0] == "capture" and "lower" in stages
    bytes_seen: list[tuple[int, int]] = []
    model = load_compiled(done, placement, lambda now, total: bytes_seen.append((now, total)))
    assert bytes_seen[-1][0] == bytes_seen[-1][1] == sum(w.nbytes for w in placement.weights)
    formats = {w.format for w in placement.weights if "_proj" in w.name and w.name.endswith("weight")}
    assert formats == {quant or "f32"}
    ids = token_ids(1, 24)
    with torch.no_grad():
        expected, got = eager(ids).logits, model(ids).logits
    assert float((got - expected).norm() / expected.norm()) < bound


def test_plan_without_weights(tmp_path: Path, eager: PreTrainedModel) -> None:
    path = write_gguf(eager, tmp_path / "m.gguf", "q8_0")
    done, placement = ktc.compile(RULES, model=path, weights=False)
    assert placement.weights and done.context.source is None
    with pytest.raises(KtcError, match="compiled without weights"):
        load_compiled(done, placement)


def test_dump(eager: PreTrainedModel, tmp_path: Path) -> None:
    ktc.rewrite(eager, RULES, dump=tmp_path / "d")
    names = sorted(p.name for p in (tmp_path / "d").iterdir())
    assert names[0].startswith("00-capture") and "events.jsonl" in names
    assert any(n.endswith("-lower.fx.txt") for n in names) and any(n.endswith(".diff") for n in names)
