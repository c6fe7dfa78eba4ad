"""std/experts_per_token.kt: the graph computes what a model configured with fewer experts computes, and says so."""

from __future__ import annotations

import pytest
import torch
from ktc.grammar.diagnostics import KtError
from support.compiling import HOST, compile_for, tiny
from support.tiny_models import tiny_model

import ktc
from ktc.cli.plan import decode_bytes, rewrites

LIBRARY = 'include "std/experts_per_token.kt"\n'
FAMILIES = ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3", "glm4_moe", "gpt_oss")


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_the_model_with_fewer_experts(name):
    ids = torch.randint(3, 500, (1, 17), generator=torch.Generator().manual_seed(5))
    model, fewer = tiny(name), tiny_model(name, num_experts_per_tok=1)
    fewer.load_state_dict(model.state_dict())
    got = ktc.rewrite(model, HOST + LIBRARY, params={"experts_per_token": 1})(ids).logits
    expected, trained = fewer(ids).logits, model(ids).logits
    assert (got - expected).norm() / expected.norm() < 1e-5
    assert (got - trained).norm() / trained.norm() > 1e-3, "it changes the numbers, as it says"
    same = ktc.rewrite(model, HOST + LIBRARY)(ids).logits
    assert (same - trained).norm() / trained.norm() < 1e-5, "without a value for it, it does nothing"


def test_the_plan_and_the_cost_model_see_fewer_experts():
    model = tiny("qwen3_moe")
    trained = compile_for(model, LIBRARY, {"experts_per_token": 2})
    fewer = compile_for(model, LIBRARY, {"experts_per_token": 1})
    experts = [w for w in fewer.context.weights.values() if ".experts." in w.name]
    assert experts and all(weight.share == 1 / 4 for weight in experts)
    saved = decode_bytes(trained.context)["host"] - decode_bytes(fewer.context)["host"]
    assert saved == sum(s.nbytes for w in experts for s in w.stores.values()) // 4
    assert {"name": "fewer_experts", "fired": 2, "missed": 0} in rewrites(fewer)
    assert {"name": "fewer_experts", "fired": 0, "missed": 2} in rewrites(trained)


@pytest.mark.parametrize("number", [-1, 3, 64])
def test_numbers_that_are_refused(number):
    with pytest.raises(KtError) as caught:
        compile_for(tiny("qwen3_moe"), LIBRARY, {"experts_per_token": number})
    (problem,) = caught.value.diagnostics
    assert problem.code == "KT304"
    assert problem.notes[:2] == ("`config.num_experts_per_tok` is 2", f"`experts_per_token` is {number}")


def test_a_model_without_experts_is_told():
    with pytest.raises(KtError) as caught:
        compile_for(tiny("llama"), LIBRARY)
    assert caught.value.diagnostics[0].code == "KT109"
