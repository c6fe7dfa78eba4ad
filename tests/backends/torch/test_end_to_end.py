"""Whole models on the kernels that read a file's blocks: the numbers of eager on what the blocks mean, exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.families import Case, ragged, sequence

RULES = """
rule linears   {{ match ** : Linear and not (**.kv_b_proj or **.shared_expert_gate) kernel torch.linear_blocks }}
rule experts   {{ match **.experts kernel torch.experts_blocks expect any }}
rule rows      {{ match @embedding kernel torch.embedding_blocks }}
rule attention {{ match @attention kernel torch.{attention} }}
"""


@pytest.mark.parametrize(
    ("family", "format", "attention"),
    [
        ("llama", "mixed", "attention_pieces"),
        ("qwen2_moe", "q4_0", "attention_pieces"),
        ("gpt_oss", "experts-mxfp4", "attention_pieces"),
        ("deepseek_v3", "q8_0", "mla_attention_blocks"),
    ],
)
def test_agrees_with_eager(family: str, format: str, attention: str, tmp_path: Path) -> None:
    case = Case(family, tmp_path, format, RULES.format(attention=attention))
    wanted = {"torch.linear_blocks", "torch.embedding_blocks", f"torch.{attention}"}
    wanted |= {"torch.experts_blocks"} if family != "llama" else set()
    assert wanted <= case.kernels
    assert case.error(*sequence()) < 2e-5
    assert case.error(*ragged()) < 2e-5


ON_A_GPU = """
device gpu = cuda:0 (memory = 2GiB)
rule layers  {{ match @decoder or model.norm or @head place gpu }}
rule rows    {{ match @embedding kernel torch.embedding_blocks }}
rule experts {{ match **.experts place {experts} kernel torch.experts_blocks expect any }}
"""


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("family", "format", "experts"),
    [
        ("llama", "mixed", "gpu"),
        ("qwen3_moe", "q4_0", "host"),
        ("gpt_oss", "experts-mxfp4", "gpu"),
        ("deepseek_v3", "q8_0", "host"),
    ],
)
def test_on_a_gpu_with_the_host(family: str, format: str, experts: str, tmp_path: Path) -> None:
    """Layers on the GPU, the embedding and in turns the experts on the host, copies between them; the same numbers."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    latent = "rule latent { match @attention kernel torch.mla_attention_blocks }\n"
    extra = ON_A_GPU.format(experts=experts) + (latent if family == "deepseek_v3" else "")
    case = Case(family, tmp_path, format, extra)
    assert {"torch.linear_blocks", "torch.embedding_blocks"} <= case.kernels
    assert not {"cpu.linear", "cpu.experts"} & case.kernels
    memory = case.compiled.context.memory.devices
    assert memory["gpu"].cache > 0 and memory["gpu"].weights > memory["host"].weights * (experts == "gpu")
    assert case.error(*sequence()) < 1e-4
    assert case.error(*ragged()) < 1e-4
