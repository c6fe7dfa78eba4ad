"""The report: every mistake that KTransformers passes over in silence, and the pages that explain them."""

from __future__ import annotations

import re
from functools import cache

import pytest
from ktc.grammar.catalogue import codes, explanation
from ktc.grammar.diagnostics import Diagnostic, KtError, Severity
from support.architectures import tiny_config
from support.rule_files import RuleText, operators, rule_file
from transformers import PreTrainedConfig

from ktc.import_yaml import convert, guess_model
from ktc.import_yaml.reading import read_rules

LINEAR = operators("linear.KTransformersLinear")
EXPERTS = operators("experts.KTransformersExperts")
LISTS = r"\\.experts$"


@cache
def config_of(name: str) -> PreTrainedConfig:
    return tiny_config(name, 4)


def report(rules: RuleText | str, name: str = "deepseek_v3", rest: bool = True) -> list[Diagnostic]:
    """What is said of a file; a last rule places everything else unless `rest` is false."""
    text = rules if isinstance(rules, str) else rules.text()
    if rest:
        last = RuleText().add(name="^model|^lm_head", generate_device="cuda:0", prefill_device="cuda:0")
        text += "\n" + last.text()
    return list(convert(read_rules(text.encode(), "rules.yaml"), config_of(name)).diagnostics)


def only(found: list[Diagnostic], code: str) -> Diagnostic:
    """The one diagnostic of a code."""
    (one,) = [d for d in found if d.code == code]
    assert one.severity is Severity.WARNING and one.labels[0].span.file == "rules.yaml"
    return one


def linear(**kwargs: object) -> RuleText:
    ops = {"generate_op": "KLinearTorch", "prefill_op": "KLinearTorch"}
    devices = {"generate_device": "cuda:0", "prefill_device": "cuda:0"}
    return RuleText().add(name="o_proj", cls="torch.nn.Linear", replace=LINEAR, **(devices | ops | kwargs))


def experts(**kwargs: object) -> RuleText:
    plain = {
        "generate_device": "cpu",
        "prefill_device": "cpu",
        "generate_op": "KExpertsCPU",
        "prefill_op": "KExpertsCPU",
    }
    return RuleText().add(name=LISTS, replace=EXPERTS, recursive=False, **(plain | kwargs))


def test_a_sound_file_gets_no_warning() -> None:
    assert report(linear()) == []
    assert report(experts()) == []


# --- rules that do nothing -------------------------------------------------------------------------
def test_a_dollar_that_ends_the_name_too_early() -> None:
    rules = RuleText().add(name=r"^model\\.layers\\.([012])$", cls="torch.nn.Linear", replace=LINEAR)
    found = only(report(rules), "KT704")
    assert (found.labels[0].span.line, found.labels[0].span.column) == (3, 12)
    assert "`$` ends the name there: without it" in " ".join(found.notes)
    assert "3 modules have such a name; their classes are" in found.notes[0]
    assert "\\\\." in found.fixes[0].text


def test_the_class_of_another_models_file() -> None:
    path = "ktransformers.models.modeling_deepseek.MoEGate"
    rules = RuleText().add(name=r"\\.gate$", cls=path, replace=operators("gate.KMoEGate"))
    found = only(report(rules), "KT704")
    assert found.fixes[0].replacement == "ktransformers.models.modeling_deepseek_v3.MoEGate"


def test_a_class_of_transformers_where_ktransformers_has_its_own() -> None:
    path = "transformers.models.deepseek_v3.modeling_deepseek_v3.DeepseekV3MoE"
    notes = only(report(RuleText().add(cls=path, generate_device="cpu")), "KT704").notes
    assert "KTransformers builds this model from ktransformers.models.modeling_deepseek_v3" in notes


def test_a_name_of_todays_transformers() -> None:
    rules = RuleText().add(name=r"\\.mlp\\.experts$", generate_device="cpu")
    notes = only(report(rules, "mixtral"), "KT704").notes
    assert notes == (
        "`model.layers.0.mlp.experts` of today's transformers is "
        "`model.layers.0.block_sparse_moe.experts` for KTransformers",
    )


def test_a_rule_behind_a_wider_one() -> None:
    rules = RuleText().add(name="layers", generate_device="cuda:0", prefill_device="cuda:0")
    found = only(report(rules.add(name="o_proj", cls="torch.nn.Linear", replace=LINEAR)), "KT705")
    assert [label.span.line for label in found.labels] == [10, 2]
    assert "4 modules" in found.notes[0] and "at 4 of them" in found.labels[1].text


def test_a_rule_for_what_recursive_false_hides() -> None:
    rules = experts().add(name=r"experts\\.\\d+\\.up_proj", generate_device="cpu")
    found = only(report(rules), "KT705")
    assert found.message == "the rule's modules are never looked at"
    assert found.labels[1].text == "nothing inside is looked at"
    assert "`model.layers.1.mlp.experts.0.up_proj` lies inside" in found.notes[0]


def test_rotary_embeddings_are_named_once_for_all_rules() -> None:
    found = only(report(rule_file("deepseek_v3", 2, 4), rest=False), "KT706")
    assert found.message == "2 rules replace rotary embeddings, and nothing is left to place"
    assert len(found.labels) == 2


# --- classes, ops, kwargs and devices --------------------------------------------------------------
@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("ktransformers.models.modeling_deepseek_v3.DeepseekV3MOE", "DeepseekV3MoE"),
        ("torch.nn.Linaer", "torch.nn.Linear"),
        ("os.system", ""),
    ],
)
def test_a_match_class_that_does_not_exist(path: str, near: str) -> None:
    found = only(report(RuleText().add(cls=path, generate_device="cpu")), "KT707")
    assert path in found.message
    assert [fix.replacement.endswith(near) for fix in found.fixes] == ([True] if near else [])


def test_classes_that_exist_elsewhere_are_not_unknown() -> None:
    rules = RuleText().add(cls="torch.nn.LayerNorm", generate_device="cpu")
    rules.add(cls="ktransformers.models.modeling_llama.LlamaMLP", generate_device="cpu")
    rules.add(cls="ktransformers.models.modeling_qwen3_next.Qwen3NextMLP", generate_device="cpu")
    assert {d.code for d in report(rules)} == {"KT704"}


def test_a_replacement_class_that_does_not_exist() -> None:
    rules = RuleText().add(
        name="o_proj", replace=operators("linear.KTransformerLinear"), generate_device="cpu"
    )
    found = only(report(rules), "KT707")
    assert found.fixes[0].replacement == LINEAR
    assert "only its devices are converted" in found.notes


def test_a_class_of_the_users_own_is_not_imported() -> None:
    rules = RuleText().add(name="o_proj", replace="my_ops.Linear", generate_device="cuda:0")
    assert "ktc imports nothing that a rule file names" in only(report(rules), "KT707").notes


def test_a_class_in_place_of_what_it_cannot_replace() -> None:
    rules = RuleText().add(name=r"layers\\.1\\.mlp", replace=LINEAR, generate_op="KLinearTorch")
    found = [d for d in report(rules) if d.code == "KT707"]
    assert "`KTransformersLinear` cannot replace `model.layers.1.mlp`, a DeepseekV3MoE" in found[0].message


@pytest.mark.parametrize(
    ("op", "near", "note"),
    [
        ("MLPCPUExperts", "KExpertsCPU", "an old tutorial's name for KExpertsCPU"),
        ("KExpertCPU", "KExpertsCPU", "ops for experts: "),
        ("None", "", "YAML's nothing is `null`"),
        ("KLinearTorch", "", "ops for experts: "),
    ],
)
def test_an_op_that_does_not_exist(op: str, near: str, note: str) -> None:
    found = only(report(experts(generate_op=op)), "KT708")
    assert f"there is no op `{op}` for experts" == found.message
    assert any(text.startswith(note) for text in found.notes)
    if near:
        assert found.fixes[0].replacement == near


def test_a_backend_that_does_not_exist() -> None:
    found = only(report(experts(backend="AMXINT8")), "KT708")
    assert found.fixes[0].replacement == "AMXInt8"


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (linear(generate_devise="cpu"), "`KTransformersLinear` does not read `generate_devise`"),
        (linear(out_device="cpu"), "`KTransformersLinear` does not read `out_device`"),
        (experts(absorb_for_prefill=True), "`KTransformersExperts` does not read `absorb_for_prefill`"),
        (
            RuleText().add(name="norm", generate_device="cpu", generate_op="KLinearTorch"),
            "`default` does not read",
        ),
        (RuleText().add(name="norm", prefill_device="cpu"), "`default` needs `generate_device`"),
    ],
)
def test_kwargs_that_nothing_reads(rules: RuleText, message: str) -> None:
    assert message in only(report(rules), "KT709").message


def test_a_kwarg_that_another_op_reads() -> None:
    note = only(report(linear(out_device="cpu")), "KT709").notes[1]
    assert "KLinearCPUInfer" in note and "would read it" in note


def test_the_kernel_of_a_gpu_on_the_cpu() -> None:
    rules = RuleText().add(
        name="^lm_head$",
        cls="torch.nn.Linear",
        replace=LINEAR,
        generate_device="cpu",
        prefill_op="KLinearTorch",
    )
    found = only(report(rules), "KT710")
    assert found.message == (
        "`KLinearMarlin`, which `generate_op` is by default, runs on GPUs only, and `generate_device` is the CPU"
    )
    assert "KLinearCPUInfer" in found.fixes[0].text


def test_an_op_of_the_cpu_on_a_gpu() -> None:
    found = only(report(experts(generate_device="cuda")), "KT710")
    assert "runs on the CPU only, and `generate_device` is cuda:0" in found.message


@pytest.mark.parametrize(
    ("device", "said"), [("gpu0", "is no device"), ("xpu", "no kernels for xpu"), (7, "is no device")]
)
def test_devices_that_are_none_here(device: object, said: str) -> None:
    rules = RuleText().add(name="o_proj", generate_device=device, prefill_device="cuda:0")
    assert said in only(report(rules), "KT710").message


def test_npu_classes_are_not_unknown() -> None:
    rules = RuleText().add(
        name="o_proj",
        replace=operators("ascend.ascend_linear.KTransformersLinearW8A8A2"),
        generate_device="npu",
    )
    assert {d.code for d in report(rules)} == {"KT710"}


# --- the file as a whole ---------------------------------------------------------------------------
def test_weights_that_fall_to_the_default_device() -> None:
    rules = RuleText().add(name=r"layers\\.[23]\\.", cls="torch.nn.Linear", generate_device="cuda:1")
    rules.add(name=r"layers\\.[23]\\.input_layernorm", generate_device="cuda:1", prefill_device="cuda:1")
    found = only(report(rules, rest=False), "KT711")
    assert "the default device, cuda:0, gets them" in found.message
    assert "in layers that live elsewhere, " in found.notes[1]


def test_what_recursive_false_leaves_behind() -> None:
    rules = RuleText().add(name=r"layers\\.1$", generate_device="cuda:0", recursive=False)
    found = only(report(rules), "KT711")
    assert "lie inside `recursive: False`" in found.message


def test_experts_of_one_layer_on_several_devices() -> None:
    rules = RuleText().add(name=r"experts\\.[0-5]\\.", generate_device="cuda:1", prefill_device="cuda:1")
    assert only(report(rules), "KT712").message == "single experts of one layer go to different devices"


def test_what_ktc_does_in_other_ways_is_said_once() -> None:
    found = [d for d in report(rule_file("deepseek_v3", 2, 4), rest=False) if d.code == "KT712"]
    assert [d.message for d in found] == [
        "KLinearMarlin turns weights into 4-bit Marlin blocks when it loads them",
        "not needed: `out_device` and `transfer_map`",
    ]
    assert "AMX" in only(report(experts(backend="AMXInt8")), "KT712").message


def test_layers_and_transfer_map_at_odds() -> None:
    rules = RuleText().add(
        name="^model$", replace=operators("models.KDeepseekV2Model"), per_layer_prefill_intput_threshold=0,
        transfer_map={3: "cuda:1"},
    )  # fmt: skip
    rules.add(
        name=r"layers\\.[23]\\.|^model\\.norm|^lm_head", generate_device="cuda:1", prefill_device="cuda:1"
    )
    found = only(report(rules), "KT713")
    assert found.message == "`transfer_map` disagrees with the layers' devices: 1 layer"
    assert found.notes[0] == "layer 2 lives on cuda:1, and its input is on cuda:0"


def test_experts_that_answer_on_the_wrong_device() -> None:
    found = only(report(experts(out_device="cuda:3")), "KT713")
    assert found.message == "`out_device` is not where 3 layers go on"


def test_an_attention_away_from_its_layer() -> None:
    rules = RuleText().add(
        name=r"layers\\.2\\.self_attn$",
        replace=operators("attention.KDeepseekV2Attention"),
        generate_device="cuda:1",
    )
    found = only(report(rules), "KT713")
    assert found.message == "attention and its cache are away from their layer: 1 layer"


def test_prefill_settings_that_never_run() -> None:
    rules = experts(prefill_device="cuda", prefill_op="KExpertsTorch")
    assert "of 1 rule are never used" in only(report(rules), "KT714").message
    on = RuleText().add(name="^model$", replace=operators("models.KDeepseekV2Model"))
    on.rules += rules.rules
    assert "KT714" not in {d.code for d in report(on)}


def test_nothing_to_convert_is_an_error() -> None:
    rules = RuleText().add(name="nowhere", generate_device="cpu")
    with pytest.raises(KtError) as caught:
        report(rules, rest=False)
    assert [d.code for d in caught.value.diagnostics] == ["KT716", "KT704"]


def test_the_model_is_guessed_from_class_names() -> None:
    def guess(text: str) -> str | None:
        return guess_model(read_rules(text.encode(), "rules.yaml"))

    assert guess(rule_file("mixtral", 1)) == "MixtralForCausalLM"
    assert guess(rule_file("deepseek_v2", 2)) == "DeepseekV2ForCausalLM"
    assert guess(RuleText().add(name="model", generate_device="cpu").text()) is None


# --- the pages ------------------------------------------------------------------------------------
PAGES = {
    code: dict(
        re.findall(r"^(Wrong|Right):\n\n```yaml\n(.*?)```", explanation(code) or "", re.DOTALL | re.MULTILINE)
    )
    for code in codes()
    if code.startswith("KT7")
}


@pytest.mark.parametrize("code", [code for code, examples in PAGES.items() if examples])
def test_the_examples_of_a_page_are_what_they_say(code: str) -> None:
    def found(text: str) -> set[str]:
        try:
            return {d.code for d in report(text, rest=False)}
        except KtError as error:
            return {d.code for d in error.diagnostics}

    assert code in found(PAGES[code]["Wrong"])
    assert code not in found(PAGES[code]["Right"])


def test_every_code_of_the_package_has_a_page() -> None:
    from importlib.util import find_spec
    from pathlib import Path

    spec = find_spec("ktc.import_yaml")
    assert spec is not None and spec.origin is not None
    used = {
        code
        for path in Path(spec.origin).parent.glob("*.py")
        for code in re.findall(r'"(KT\d{3})"', path.read_text("utf-8"))
    }
    assert used == set(PAGES)
