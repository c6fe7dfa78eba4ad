"""Rule files written after KTransformers' published schema, for any number of layers and GPUs.

They are laid out as such files are: for each GPU, its range of layers again and again, once for each kind of module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Family:
    """What rules for an architecture name.

    Attributes:
        modelling: file of KTransformers' models.
        prefix: of its classes.
        block: class of the block with experts, and the class that replaces it.
        block_name: how it is called inside a layer.
        model: class that replaces the whole model, "" where there is none.
        attention: class that replaces attention, "" where there is none.
        rotary: class of rotary embeddings, and the class that replaces it.
        gate: class of the router, "" where it is a Linear.
        linears: the regular expression inside a layer for Linears to replace.
    """

    modelling: str
    prefix: str
    block: tuple[str, str]
    rotary: tuple[str, str]
    block_name: str = "mlp"
    model: str = ""
    attention: str = ""
    gate: str = ""
    linears: str = r".*"
    layers: int = 32


_MLA = dict(attention="attention.KDeepseekV2Attention", model="models.KDeepseekV2Model", gate="MoEGate")
_NO_KV_B = r"(?!.*self_attn\\.kv_b_proj).*"
FAMILIES = {
    "deepseek_v2": Family(
        "modeling_deepseek", "DeepseekV2", ("DeepseekV2MoE", "KDeepseekV2MoE"),
        ("DeepseekV2RotaryEmbedding", "YarnRotaryEmbedding"), linears=_NO_KV_B, layers=60, **_MLA,
    ),
    "deepseek_v3": Family(
        "modeling_deepseek_v3", "DeepseekV3", ("DeepseekV3MoE", "KDeepseekV3MoE"),
        ("DeepseekV3RotaryEmbedding", "YarnRotaryEmbeddingV3"), linears=_NO_KV_B, layers=61, **_MLA,
    ),
    "mixtral": Family(
        "modeling_mixtral", "Mixtral", ("MixtralSparseMoeBlock", "KMistralSparseMoEBlock"),
        ("MixtralRotaryEmbedding", "RotaryEmbedding"), block_name="block_sparse_moe", layers=32,
    ),
    "qwen2_moe": Family(
        "modeling_qwen2_moe", "Qwen2Moe", ("Qwen2MoeSparseMoeBlock", "KQwen2MoeSparseMoeBlock"),
        ("Qwen2MoeRotaryEmbedding", "RotaryEmbedding"), model="models.KQwen2MoeModel", layers=28,
    ),
}  # fmt: skip
NAMES = tuple(FAMILIES)
GPUS = (1, 2, 8)


@dataclass
class RuleText:
    """A rule file as it is written."""

    rules: list[str] = field(default_factory=list)

    def add(
        self,
        *,
        name: str = "",
        cls: str = "",
        replace: str = "default",
        recursive: bool = True,
        **kwargs: object,
    ) -> RuleText:
        """Appends one rule; the name is a regular expression as it stands between double quotes."""
        lines = ["- match:"]
        lines += [f'    name: "{name}"'] if name else []
        lines += [f"    class: {cls}"] if cls else []
        lines += ["  replace:", f"    class: {replace}" if replace != "default" else '    class: "default"']
        if kwargs:
            lines.append("    kwargs:")
        for key, value in kwargs.items():
            if isinstance(value, dict):
                lines += [f"      {key}:", *(f'        {k}: "{v}"' for k, v in value.items())]
            else:
                lines.append(f'      {key}: "{value}"' if isinstance(value, str) else f"      {key}: {value}")
        lines += [] if recursive else ["  recursive: False"]
        self.rules.append("\n".join(lines) + "\n")
        return self

    def text(self) -> str:
        """The file."""
        return "\n".join(self.rules)


def operators(path: str) -> str:
    """A dotted path inside `ktransformers.operators`."""
    return f"ktransformers.operators.{path}"


def blocks(layers: int, gpus: int) -> list[range]:
    """The layers of each GPU: blocks of one size, or as even as can be where that would leave a GPU without any."""
    size = -(-layers // gpus)
    starts = list(range(0, layers, size))
    if len(starts) < gpus:
        starts = [-(-gpu * layers // gpus) for gpu in range(gpus)]
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], layers], strict=True)]


def pattern(layers: Sequence[int], whole: int) -> str:
    """A regular expression for a range of layer numbers."""
    return r"\\d+" if len(layers) == whole else f"({'|'.join(map(str, layers))})"


def rule_file(name: str, gpus: int, layers: int | None = None) -> str:
    """A sound rule file: everything on the GPUs, block by block of layers; routed experts and embedding on the CPU."""
    family = FAMILIES[name]
    count = family.layers if layers is None else layers
    dealt = blocks(count, gpus)
    out = RuleText()
    own = f"ktransformers.models.{family.modelling}."
    out.add(name=r"^model\\.embed_tokens", generate_device="cpu", prefill_device="cpu")
    for section in ("rotary", "linear", "block", "gate", "experts", "attention"):
        for gpu, part in enumerate(dealt):
            device = f"cuda:{gpu}" if gpus > 1 else "cuda"
            both = {"generate_device": device, "prefill_device": device}
            layer = rf"^model\\.layers\\.{pattern(part, count)}\\."
            if section == "rotary":
                out.add(
                    name=layer,
                    cls=own + family.rotary[0],
                    replace=operators(f"RoPE.{family.rotary[1]}"),
                    **both,
                )
            elif section == "linear":
                out.add(
                    name=f"{layer}{family.linears}$", cls="torch.nn.Linear",
                    replace=operators("linear.KTransformersLinear"), **both,
                    generate_op="KLinearMarlin", prefill_op="KLinearTorch",
                )  # fmt: skip
            elif section == "block":
                replace = operators(f"experts.{family.block[1]}")
                out.add(
                    name=rf"{layer}{family.block_name}$", cls=own + family.block[0], replace=replace, **both
                )
            elif section == "gate" and family.gate:
                out.add(
                    name=rf"{layer}{family.block_name}\\.gate$", cls=own + family.gate,
                    replace=operators("gate.KMoEGate"), **both,
                )  # fmt: skip
            elif section == "experts":
                out.add(
                    name=rf"{layer}{family.block_name}\\.experts$",
                    replace=operators("experts.KTransformersExperts"), prefill_device=device,
                    prefill_op="KExpertsTorch", generate_device="cpu", generate_op="KExpertsCPU", out_device=device,
                    recursive=False,
                )  # fmt: skip
            elif section == "attention" and family.attention:
                out.add(name=rf"{layer}self_attn$", replace=operators(family.attention), **both)
    if family.model:
        moves = {part[0]: f"cuda:{gpu}" for gpu, part in enumerate(dealt) if gpu}
        more = {"transfer_map": moves} if moves else {}
        out.add(name="^model$", replace=operators(family.model), per_layer_prefill_intput_threshold=0, **more)
    for gpu, part in enumerate(dealt):
        device = f"cuda:{gpu}" if gpus > 1 else "cuda"
        name_ = rf"^model\\.layers\\.{pattern(part, count)}\\."
        out.add(name=name_, generate_device=device, prefill_device=device)
    last = f"cuda:{len(dealt) - 1}" if gpus > 1 else "cuda"
    out.add(
        name="^lm_head", cls="torch.nn.Linear", replace=operators("linear.KTransformersLinear"),
        generate_device=last, prefill_device=last, generate_op="KLinearMarlin", prefill_op="KLinearTorch",
    )  # fmt: skip
    out.add(name=r"^model\\.norm", generate_device=last, prefill_device=last)
    return out.text()
