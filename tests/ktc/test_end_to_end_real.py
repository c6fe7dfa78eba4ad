"""SmolLM2-135M and Gemma-3-270M, compiled for the CPU, beside transformers' eager model on the dequantised weights.

Quantised weights meet activations rounded to int8 in blocks of 32, so logits differ a little and greedy answers may
part where the model has no clear favourite; with the reference kernels nothing is rounded and they may not.
Measured with the CPU kernels over 650 positions: KL 0.0024 and top-1 96.5 % (SmolLM2), 0.0019 and 96.9 % (Gemma 3);
rounding the inputs of eager's own linear layers in the same way costs as much. benchmarks/accuracy.py prints the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from support.agreement import differences, greedy
from support.real_models import GEMMA3, SMOLLM2
from support.references import NEW_TOKENS, Reference, reference

import ktc
from ktc.api import load_compiled
from ktc.verify import compare_logits, logits_of

pytestmark = pytest.mark.models

PROGRAM = """model {name} from "{path}"
include "std/{family}.kt"
device host = cpu (memory = 3GiB)
rule everything {{ match ** place host }}
"""
NAMES = {SMOLLM2: ("LlamaForCausalLM", "llama"), GEMMA3: ("Gemma3ForCausalLM", "gemma3")}
REFERENCE = "rule exact { match ** : Linear kernel torch.linear }\n"
HALF_CACHE = "rule cache { match @attention cache paged(dtype = f16, tokens = 2048) }\n"
NO_FAVOURITE = 0.75
"""Where a greedy answer may leave eager's: eager's logits of the two tokens differ by less. On these prompts SmolLM2's
eager model itself, with the inputs of its linears rounded to int8 in blocks of 32, leaves its answers by up to 0.59.
"""


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Eager's threads wait for each other in a busy loop, which starves the kernels' own pool on two cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def program(which: str, extra: str = "") -> str:
    name, family = NAMES[which]
    return PROGRAM.format(name=name, family=family, path=reference(which).path) + extra


@cache
def compiled_model(which: str, extra: str = "") -> Any:
    """The compiled model and what compiling it gave."""
    done, placement = ktc.compile(program(which, extra))
    return load_compiled(done, placement), done


def fired(done: Any) -> dict[str, int]:
    return {
        e.stage.removeprefix("rewrite."): e.data["fired"] for e in done.context.events if e.data.get("fired")
    }


def kernels(done: Any) -> set[str]:
    return {e.data["kernel"] for e in done.context.events if e.kind == "lowered"}


@pytest.mark.parametrize("which", [SMOLLM2, GEMMA3])
def test_logits(which: str) -> None:
    ref: Reference = reference(which)
    model, done = compiled_model(which)
    assert "cpu.linear" in kernels(done) and "torch.linear" not in kernels(done)
    found = compare_logits(ref.logits, logits_of(model, ref.ids))
    assert found.positions >= 512
    assert found.kl_mean < 0.005 and found.kl_max < 0.06 and found.top1 > 0.94, found


@pytest.mark.parametrize("which", [SMOLLM2, GEMMA3])
def test_greedy_answers(which: str) -> None:
    """64 tokens on five prompts. Each answer is eager's up to a token that eager hardly preferred."""
    ref = reference(which)
    expected, logits = ref.answers
    model, _ = compiled_model(which)
    got = torch.cat([greedy(model, [prompt], NEW_TOKENS)[0] for prompt in ref.prompts])
    found = differences(expected, logits, got)
    assert all(difference.gap < NO_FAVOURITE for difference in found), found
    # How far an answer goes with eager's is chance (the int8 of activations decides near ties), their sum less so.
    together = [NEW_TOKENS] * len(ref.prompts)
    for difference in found:
        together[difference.prompt] = difference.token
    assert sum(together) >= 10 * len(ref.prompts), f"answers go with eager's for {together} tokens"


@pytest.mark.parametrize("which", [SMOLLM2, GEMMA3])
def test_favourites_along_eagers_answers(which: str) -> None:
    """The same tokens fed to the compiled model: its favourites are eager's but where eager has no clear one."""
    ref = reference(which)
    expected, logits = ref.answers
    model, _ = compiled_model(which)
    same = 0
    for prompt, answer, row in zip(ref.prompts, expected, logits, strict=True):
        ids = torch.cat([prompt, answer[None]], 1)
        out = model(ids, logits_to_keep=NEW_TOKENS + 1, use_cache=False).logits[0, :-1]
        mine = out.argmax(-1)
        same += int((mine == answer).sum())
        gaps = row.gather(-1, answer[:, None]) - row.gather(-1, mine[:, None])
        assert float(gaps.max()) < NO_FAVOURITE
    assert same >= 0.95 * expected.numel()


def test_reference_kernel_is_exact() -> None:
    """Activations in floating point: the same distribution to the last digits, and the same answers."""
    ref = reference(SMOLLM2)
    model, done = compiled_model(SMOLLM2, REFERENCE)
    assert "torch.linear" in kernels(done) and "cpu.linear" not in kernels(done)
    found = compare_logits(ref.logits, logits_of(model, ref.ids))
    assert found.kl_max < 1e-8 and found.top1 == 1.0, found
    expected, logits = ref.answers
    got, _ = greedy(model, ref.prompts, NEW_TOKENS)
    assert all(d.gap < 1e-4 for d in differences(expected, logits, got))


def test_reference_kernel_is_exact_for_gemma() -> None:
    ref = reference(GEMMA3)
    model, _ = compiled_model(GEMMA3, REFERENCE)
    ids = ref.ids[:, :600]
    assert ids.shape[1] > model.config.sliding_window
    found = compare_logits(ref.logits[:600], logits_of(model, ids))
    assert found.kl_max < 1e-6 and found.top1 > 0.998, found


def test_half_precision_cache() -> None:
    """What a float16 KV cache costs by itself, seen where nothing else is rounded."""
    ref = reference(SMOLLM2)
    found = compare_logits(ref.logits, logits_of(compiled_model(SMOLLM2, REFERENCE + HALF_CACHE)[0], ref.ids))
    assert 0 < found.kl_mean < 1e-4 and found.top1 > 0.99, found


def test_fusions_fire() -> None:
    layers = compiled_model(SMOLLM2)[0].config.num_hidden_layers
    found = fired(compiled_model(SMOLLM2)[1])
    assert found["add_rms_norm"] == 2 * layers and found["silu_mul"] == layers
    assert found["merge_qkv"] == layers and found["merge_gate_up_silu"] == layers
    gemma = fired(compiled_model(GEMMA3)[1])
    assert gemma["gelu_mul"] == compiled_model(GEMMA3)[0].config.num_hidden_layers


def test_chat_template_and_stop() -> None:
    """The text of the file's own template, its special tokens as single ids, and an answer that ends with one."""
    ref = reference(SMOLLM2)
    model, _ = compiled_model(SMOLLM2)
    messages = [{"role": "user", "content": "What is the capital of France? One word."}]
    expected = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France? One word.<|im_end|>\n<|im_start|>assistant\n"
    )
    tokenizer = model.tokenizer
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == expected == own_template(ref, messages)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (
        int((ids == tokenizer.convert_tokens_to_ids("<|im_start|>")).sum()) == 3
        and int((ids == end).sum()) == 2
    )
    out = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False)[0, ids.shape[1] :]
    assert int(out[-1]) == end and len(out) < NEW_TOKENS and "Paris" in tokenizer.decode(out)


def own_template(ref: Reference, messages: list[dict[str, str]]) -> str:
    """The template as the GGUF file has it, rendered by jinja alone."""
    import gguf
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    field = gguf.GGUFReader(ref.path).fields["tokenizer.chat_template"]
    template = bytes(field.parts[field.data[0]]).decode()
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        messages=messages, add_generation_prompt=True, bos_token=""
    )


def test_base_model_has_no_template() -> None:
    from ktc.runtime.errors import NoChatTemplateError
    from ktc.runtime.text import stream_text

    model, _ = compiled_model(GEMMA3)
    with pytest.raises(NoChatTemplateError):
        stream_text(model, model.tokenizer, "hello", chat=True)
    stream = stream_text(
        model, model.tokenizer, "Water boils at a temperature of", max_new_tokens=6, do_sample=False
    )
    assert "100" in "".join(stream)
    assert model.tokenizer("a")["input_ids"][0] == model.tokenizer.bos_token_id
