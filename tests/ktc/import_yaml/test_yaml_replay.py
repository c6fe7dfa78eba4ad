"""The injection replayed: first match, `re.search`, isinstance, `recursive`, and what follows for each module."""

from __future__ import annotations

from support.architectures import tiny_config
from support.rule_files import RuleText, operators

from ktc.capture import meta_model, module_sites
from ktc.import_yaml.old_model import OldModel
from ktc.import_yaml.placement import Placement, place
from ktc.import_yaml.reading import read_rules
from ktc.import_yaml.replay import Replay, replay

CONFIG = tiny_config("deepseek_v3", 3)
MODEL = meta_model(CONFIG)
OLD = OldModel(MODEL, "deepseek_v3")
SITES = module_sites(MODEL)
EXPERTS = r"^model\\.layers\\..*\\.mlp\\.experts$"


def run(rules: RuleText) -> tuple[Replay, Placement]:
    file = read_rules(rules.text().encode(), "rules.yaml")
    assert file.diagnostics == ()
    outcome = replay(OLD, file.rules)
    return outcome, place(OLD, SITES, file.rules, outcome)


def devices(rules: RuleText) -> dict[str, str]:
    return {name: str(choice.device) for name, choice in run(rules)[1].choices.items()}


def gpu(rules: RuleText, name: str, number: int) -> RuleText:
    return rules.add(name=name, generate_device=f"cuda:{number}", prefill_device=f"cuda:{number}")


def test_the_first_rule_that_fits_speaks() -> None:
    rules = gpu(gpu(RuleText(), r"layers\\.1\\.", 1), r"layers", 2)
    found = devices(rules)
    assert found["model.layers.1.input_layernorm"] == "cuda:1"
    assert found["model.layers.2.input_layernorm"] == "cuda:2"
    outcome, _ = run(rules)
    assert {m.name for m in outcome.fates[0].won} <= {m.name for m in outcome.fates[1].lost[0]}


def test_names_are_searched_not_matched_whole() -> None:
    assert devices(gpu(RuleText(), "norm", 3))["model.layers.0.self_attn.q_a_layernorm"] == "cuda:3"
    assert devices(gpu(RuleText(), "^norm", 3))["model.norm"] == "cuda:0"


def test_class_and_name_must_both_fit() -> None:
    rules = RuleText().add(
        name=r"layers\\.0\\.", cls="torch.nn.Linear", generate_device="cuda:1", prefill_device="cuda:1"
    )
    found = devices(rules)
    assert found["model.layers.0.self_attn.o_proj"] == "cuda:1"
    assert found["model.layers.0.input_layernorm"] == "cuda:0"
    assert found["lm_head"] == "cuda:0"


def test_what_no_rule_fits_goes_to_the_default_device() -> None:
    _, placement = run(gpu(RuleText(), "lm_head", 1))
    assert placement.choices["model.norm"].decision is None
    assert "model.norm" in placement.unmatched and "lm_head" not in placement.unmatched
    assert str(placement.choices["model.norm"].device) == "cuda:0"


def test_recursive_false_hides_what_is_inside() -> None:
    rules = RuleText().add(name=r"^model\\.layers\\.0$", generate_device="cuda:1", recursive=False)
    outcome, placement = run(gpu(rules, "layers", 2))
    assert "model.layers.0.self_attn" not in outcome.decided
    assert outcome.fates[1].cut[0][0].name == "model.layers.0.self_attn"
    assert "model.layers.0.self_attn.o_proj" in placement.unvisited
    assert str(placement.choices["model.layers.0.self_attn.o_proj"].device) == "cuda:0"
    assert str(placement.choices["model.layers.1.self_attn.o_proj"].device) == "cuda:2"


def test_experts_are_placed_by_the_rule_of_their_list() -> None:
    rules = RuleText().add(
        name=EXPERTS, replace=operators("experts.KTransformersExperts"), generate_device="cpu",
        generate_op="KExpertsCPU", recursive=False,
    )  # fmt: skip
    choice = run(gpu(rules, "model", 1))[1].choices["model.layers.2.mlp.experts"]
    assert (str(choice.device), choice.kernel) == ("cpu", "cpu.experts")


def test_experts_that_nothing_replaces_are_placed_by_their_linears() -> None:
    rules = gpu(RuleText(), r"experts\\.[0-5]\\.", 1)
    _, placement = run(gpu(rules, "model", 2))
    assert str(placement.choices["model.layers.1.mlp.experts"].device) == "cuda:1"
    assert placement.split == ("model.layers.1.mlp.experts", "model.layers.2.mlp.experts")


def test_a_class_fills_in_what_its_rule_leaves_out() -> None:
    linear = RuleText().add(cls="torch.nn.Linear", replace=operators("linear.KTransformersLinear"))
    decision = run(linear)[1].choices["lm_head"].decision
    assert decision is not None and str(decision.device) == "cuda:0"
    assert (decision.generate_op, decision.prefill_op) == ("KLinearMarlin", "KLinearTorch")
    experts = RuleText().add(name=EXPERTS, replace=operators("experts.KTransformersExperts"))
    assert str(run(experts)[1].choices["model.layers.1.mlp.experts"].device) == "cpu"


def test_ops_of_the_cpu_run_there_whatever_the_rule_says() -> None:
    rules = RuleText().add(
        name="o_proj", cls="torch.nn.Linear", replace=operators("linear.KTransformersLinear"),
        generate_device="cuda", generate_op="KLinearCPUInfer",
    )  # fmt: skip
    choice = run(rules)[1].choices["model.layers.0.self_attn.o_proj"]
    assert (str(choice.device), choice.kernel) == ("cpu", "cpu.linear")


def test_prefill_devices_count_only_above_a_threshold() -> None:
    def rules(**kwargs: object) -> RuleText:
        text = RuleText().add(name="^model$", replace=operators("models.KDeepseekV2Model"), **kwargs)
        return text.add(
            name="o_proj", cls="torch.nn.Linear", replace=operators("linear.KTransformersLinear"),
            generate_device="cpu", prefill_device="cuda:1", generate_op="KLinearCPUInfer", prefill_op="KLinearTorch",
        )  # fmt: skip

    name = "model.layers.0.self_attn.o_proj"
    off = run(rules(per_layer_prefill_intput_threshold=0))[1]
    assert off.threshold is None and off.choices[name].bulk is None
    on = run(rules(per_layer_prefill_intput_threshold=100))[1]
    assert on.threshold == 100 and str(on.choices[name].bulk) == "cuda:1"
    assert run(rules())[1].threshold == 30000


def test_the_hidden_state_moves_as_the_transfer_map_says() -> None:
    rules = RuleText().add(
        name="^model$", replace=operators("models.KDeepseekV2Model"), transfer_map={1: "cuda:1", 2: "cpu"}
    )
    stream = run(rules)[1].stream
    assert [str(stream[layer]) for layer in range(3)] == ["cuda:0", "cuda:1", "cpu"]


def test_accelerators_without_kernels_become_gpus_of_their_number() -> None:
    rules = RuleText().add(name="lm_head", generate_device="xpu:1", prefill_device="xpu:1")
    assert devices(rules)["lm_head"] == "cuda:1"
