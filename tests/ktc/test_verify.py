"""Comparing logits: measures against independent formulations, and the eager model that a file gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.gguf_files import write_gguf
from support.threads import one_thread
from support.tiny_models import tiny_model

from ktc import eager
from ktc.eager import eager_model
from ktc.errors import KtcError, WeightError
from ktc.verify import compare_logits, encode, logits_of, perplexity, verify
from ktc.weights.opening import open_source


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    with one_thread():
        yield


def logits(seed: int, rows: int = 150, columns: int = 40) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_compare_logits() -> None:
    expected, got = logits(0), logits(0) + 0.3 * logits(1)
    found = compare_logits(expected, got)
    p, q = (torch.distributions.Categorical(logits=x.double()) for x in (expected, got))
    kl = torch.distributions.kl_divergence(p, q)
    assert found.positions == 150
    assert found.kl_mean == pytest.approx(float(kl.mean())) and found.kl_max == pytest.approx(float(kl.max()))
    assert found.worst == int(kl.argmax())
    assert found.top1 == float((p.probs.argmax(-1) == q.probs.argmax(-1)).double().mean()) < 1
    assert found.max_error == pytest.approx(float((expected - got).abs().max()))
    assert found.relative_error == pytest.approx(float((expected - got).norm() / expected.norm()), rel=1e-5)
    same = compare_logits(expected, expected)
    assert (same.kl_max, same.top1, same.max_error, same.relative_error) == (0.0, 1.0, 0.0, 0.0)


def test_parts_of_a_verification() -> None:
    expected, ids = logits(0), torch.arange(150)[None] % 40
    got = expected.clone()
    got[145] += logits(1)[145]
    found = verify(expected, got, ids, steps=8)
    assert found.prefill.positions == 142 and found.prefill.kl_max == 0
    assert found.steps is not None and found.steps.positions == 8 and found.steps.worst == 3
    assert found.overall.worst == 145 and found.overall.kl_max == found.steps.kl_max > 0
    assert verify(expected, got, ids, steps=0).steps is None


def test_perplexity_is_that_of_the_models_loss() -> None:
    model = tiny_model("llama")
    ids = torch.randint(3, 500, (1, 140), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = model(ids, labels=ids).loss
    assert perplexity(logits_of(model, ids), ids) == pytest.approx(float(loss.exp()), rel=1e-5)


def test_logits_token_by_token() -> None:
    model = tiny_model("qwen2")
    ids = torch.randint(3, 500, (1, 20), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(logits_of(model, ids, steps=5), logits_of(model, ids), rtol=0, atol=1e-5)


def test_bad_logits_and_texts() -> None:
    expected, ids = logits(0), torch.zeros(1, 150, dtype=torch.int64)
    broken = expected.clone()
    broken[7, 3] = torch.nan
    with pytest.raises(KtcError, match="the model has logits that are not finite, first at position 7"):
        verify(expected, broken, ids, 0)
    with pytest.raises(KtcError, match="a vocabulary of 40 tokens and the model one of 41"):
        verify(expected, logits(0, columns=41), ids, 0)
    with pytest.raises(KtcError, match="no tokenizer"):
        encode(None, "text")


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "qwen2_moe", "glm4_moe"])
def test_eager_model_of_a_file(architecture: str, tmp_path: Path) -> None:
    """The same logits as the model that was written: with tied embeddings, experts, and a router's buffer."""
    model = tiny_model(architecture)
    read = eager_model(open_source(write_gguf(model, tmp_path / "m.gguf", "f32")))
    ids = torch.randint(3, 500, (1, 20), generator=torch.Generator().manual_seed(0))
    expected, got = logits_of(model, ids), logits_of(read, ids)
    assert float((got - expected).norm() / expected.norm()) < 2e-6
    assert type(read) is type(model)


def test_eager_model_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(write_gguf(tiny_model("llama"), tmp_path / "m.gguf", "q8_0"))
    free = eager.available_memory()
    assert free is None or 0 < free < 2**50
    monkeypatch.setattr(eager, "available_memory", lambda: 2**20)
    with pytest.raises(KtcError, match=r"takes 0\.0 GiB in float32, and 0\.0 GiB are free\n.*--against"):
        eager_model(source)


def test_eager_model_of_a_file_that_lacks_a_tensor(tmp_path: Path) -> None:
    path = write_gguf(
        tiny_model("llama"), tmp_path / "m.gguf", "f32", rename={"blk.0.attn_q.": "blk.0.attn_x."}
    )
    with pytest.raises(WeightError, match=r"model\.layers\.0\.self_attn\.q_proj\.weight"):
        eager_model(open_source(path))
