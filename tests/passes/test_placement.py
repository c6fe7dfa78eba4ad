"""specialize, lower, transfer, schedule: where nodes run, on which kernel, and what is copied."""

from __future__ import annotations

import pytest
import torch
from ktc.backends.registry import Kernel
from ktc.grammar.diagnostics import KtError
from ktc.grammar.loading import load
from ktc.passes.fit import misfit
from ktc.passes.ops import op_name
from ktc.passes.schedule import segments
from support.fake_machines import TWO_SOCKETS

import ktc
from ktc.compiler import Options, compile_language_model

TWO = """
device host = cpu (memory = 1GiB)
device far = cpu (memory = 1GiB)
rule everything { match ** place host }
"""


def transfers(compiled, phase="step"):
    return [n for n in compiled.context.phases[phase].graph.nodes if op_name(n) == "kt.transfer"]


def test_one_device_needs_no_copies_and_is_one_segment(compiled):
    done = compiled()
    assert not transfers(done)
    (segment,) = segments(done.context.phases["step"])
    assert segment.device == "host"


def test_copies_stand_at_the_edges_only_and_are_shared(compiled, same_logits):
    text = TWO + "rule second { match model.layers[1] place far }"
    done = compiled(text, bare=True)
    moved = [node.args[0].name for node in transfers(done)]
    assert len(moved) == len(set(moved)), "a value is copied once, however many nodes need it"
    assert all(
        node.meta["device"] in ("host", "far")
        for node in done.context.phases["step"].graph.nodes
        if node.op != "output"
    )
    assert [s.device for s in segments(done.context.phases["step"])].count("far") >= 1
    assert done.context.memory.devices["far"].weights > 0
    same_logits(text, bare=True)


def test_experts_style_split_inside_every_layer(same_logits):
    same_logits(TWO + "rule mlps { match model.layers[*].mlp place far expect layers }", bare=True)


def test_a_layer_whose_cache_is_on_another_device(same_logits, compiled):
    text = TWO + "rule attention { match model.layers[1].self_attn place far }"
    done = compiled(text, bare=True)
    assert done.context.memory.devices["far"].cache > 0
    same_logits(text, bare=True)


PHASED = (
    TWO
    + """
phase bulk = tokens >= 5
rule mlps { match model.layers[*].mlp on bulk { place far } }
"""
)


def test_a_phase_gets_a_graph_of_its_own_and_weights_stay_home(compiled, same_logits):
    done = compiled(PHASED, bare=True)
    assert set(done.context.phases) == {"step", "bulk"}
    assert not transfers(done)
    assert any(node.args[0].op == "get_attr" for node in transfers(done, "bulk")), "weights are streamed"
    assert done.context.memory.devices["far"].weights == 0
    placed = same_logits(PHASED, bare=True)
    assert set(placed.engine.programs) == {"step", "bulk"}


def test_attention_cannot_move_in_a_phase(compiled):
    text = PHASED.replace("model.layers[*].mlp", "model.layers[*].self_attn")
    with pytest.raises(KtError) as caught:
        compiled(text, bare=True)
    assert caught.value.diagnostics[0].code == "KT305"


def test_decode_and_prefill_are_built_in(compiled, same_logits):
    text = TWO + "rule mlps { match model.layers[*].mlp on decode { place far } }"
    assert set(compiled(text, bare=True).context.phases) == {"step", "decode"}
    same_logits(text, bare=True)


def test_a_named_kernel_is_used_and_its_rule_is_recorded(compiled):
    done = compiled("rule k { match **: Linear kernel torch.linear }")
    lowered = [e for e in done.context.events if e.kind == "lowered" and e.data["op"] == "kt.linear"]
    assert {(e.data["kernel"], e.data["rule"]) for e in lowered} == {("torch.linear", "k")}


def test_auto_takes_the_best_rank_that_fits(compiled):
    done = compiled("rule q { match **: Linear quant q8_0 }")
    lowered = {
        e.data["kernel"] for e in done.context.events if e.kind == "lowered" and e.data["op"] == "kt.linear"
    }
    assert lowered == {"cpu.linear"}


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ("rule k { match **: Linear kernel cpu.linaer }", "KT401"),
        ("rule k { match **: Linear kernel torch.linear(colour = 3) }", "KT403"),
        ("rule k { match lm_head kernel torch.embedding }", "KT404"),
        ("rule k { match lm_head quant q9_9 }", "KT604"),
    ],
)
def test_kernels_and_formats_that_do_not_fit(compiled, rule, code):
    with pytest.raises(KtError) as caught:
        compiled(rule)
    assert caught.value.diagnostics[0].code == code


def test_quantised_weights_change_the_logits_a_little(llama, same_logits):
    text = "rule q { match **: Linear quant q8_0 kernel torch.linear }"
    same_logits(text, tolerance=0.03)
    with pytest.raises(AssertionError):
        same_logits(text, tolerance=1e-6)


def test_two_models_in_one_process_do_not_share_anything(llama):
    rules = "device host = cpu\nrule everything { match ** place host }\n"
    first, second = ktc.rewrite(llama, rules), ktc.rewrite(llama, rules)
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        a, b = first(ids), second(ids + 1)
        again = first(ids)
    assert torch.equal(a.logits, again.logits) and not torch.equal(a.logits, b.logits)
    assert first.engine.pool is not second.engine.pool


def _kernel(**changes):
    fields = {"name": "x.linear", "op": "kt.linear", "hardware": frozenset({"cpu"}), "lower": None}
    return Kernel(**{**fields, **changes})


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (_kernel(hardware=frozenset({"cuda"})), "it runs on cuda, and `host` is a cpu device"),
        (_kernel(isa="amx"), "it needs amx, and this machine offers avx2"),
        (_kernel(formats=frozenset({"q4_k"})), "it does not read f32 weights (it reads q4_k)"),
        (_kernel(dtypes=frozenset({"bfloat16"})), "it computes in bfloat16, not float32"),
        (_kernel(phases=frozenset({"decode"})), "it does not serve the prefill phase"),
        (_kernel(supports=lambda node: "rows are odd"), "rows are odd"),
        (_kernel(), None),
    ],
)
def test_why_a_kernel_does_not_fit(compiled, monkeypatch, kernel, reason):
    monkeypatch.setattr("ktc.passes.fit.machine_isa", lambda: "avx2")
    context = compiled("rule k { match **: Linear kernel torch.linear }").context
    node = next(n for n in context.phases["step"].graph.nodes if op_name(n) == "kt.linear")
    plans = {"weight": context.weights["model.layers.0.mlp.up_proj.weight"]}
    phases = frozenset({"prefill", "decode"})
    assert misfit(kernel, node, context.devices["host"], plans, phases, context) == reason


def test_threads_of_a_device_limit_its_kernels(llama, monkeypatch):
    from ktc import _cpu

    rules = "device host = cpu (threads = 1)\nrule everything { match ** place host }\n"
    placed = ktc.rewrite(llama, rules)
    seen: list[int] = []
    program = placed.engine.programs["step"]
    inner = program._function
    monkeypatch.setattr(program, "_function", lambda *args: (seen.append(_cpu.threads()), inner(*args))[1])
    before = _cpu.threads()
    with torch.no_grad():
        placed(torch.arange(3, 9)[None])
    assert seen == [1] and _cpu.threads() == before


def test_numa_holds_kernels_to_some_nodes(llama, tmp_path, monkeypatch):
    """On a machine of two nodes that is made up; the model that was loaded last decides, as there is one pool."""
    from ktc import _cpu

    monkeypatch.delenv("KTC_THREADS", raising=False)
    before = _cpu.threads()
    _cpu._pool_topology(TWO_SOCKETS.write(tmp_path), 8)
    try:
        for devices, nodes in (
            ("device host = cpu (numa = 1)", [0]),
            ("device host = cpu (numa = 1, threads = 2)\ndevice far = cpu (numa = 2)", [0, 1]),
            ("device host = cpu (numa = 1)\ndevice far = cpu", [0, 1]),
            ("device host = cpu (numa = 7)", [0, 1]),
        ):
            ktc.rewrite(llama, f"{devices}\nrule everything {{ match ** place host }}\n")
            assert (_cpu.topology()[0], _cpu.threads()) == (nodes, 4 * len(nodes)), devices
    finally:
        _cpu._pool_topology("", before)


def test_members_of_a_group_that_hold_nothing_may_be_absent(llama):
    """One program for any number of GPUs: only those that something is placed on must be there."""
    rules = """
    param devices: int = 0
    device host = cpu
    device gpus = cuda:60..67 (memory = 24GiB)
    rule everything { match ** place host }
    rule layers {
      match model.layers[*]
      where devices > 0
      place gpus[layer * devices // layers]
      expect any
    }
    assert peak(gpus) <= memory(gpus)
    """
    placed = ktc.rewrite(llama, rules)
    assert placed.engine.placement.devices == {"host": "cpu"}
    with torch.no_grad():
        assert placed(torch.arange(3, 9)[None]).logits.isfinite().all()
    with pytest.raises(KtError) as caught:
        ktc.rewrite(llama, rules, params={"devices": 2})
    found = caught.value.diagnostics
    assert [d.code for d in found] == ["KT302", "KT302"] and "there is no cuda:60" in found[0].message


def test_one_activation_an_edge_and_one_copy_of_the_step_a_device(llama):
    """A pipeline over three devices: the residual stream crosses each edge once, everything else once a device."""
    rules = """
    device host = cpu (memory = 1GiB)
    device gpus = cuda:0..1 (memory = 24GiB)
    rule everything { match ** place gpus[1] }
    rule layers { match model.layers[*] place gpus[layer] }
    rule front { match model.embed_tokens or model.rotary_emb place host }
    include "std/fusions.kt"
    """
    done = compile_language_model(load(rules + "\n", text=True), llama.config, None, Options(planning=True))
    copies = [
        (e.data["value"], e.data["source"], e.data["device"])
        for e in done.context.events
        if e.kind == "transfer"
    ]
    assert len(copies) == len(set(copies))
    step = {"seq_starts", "context_lens", "block_tables", "slots"}
    activations = [row for row in copies if row[0] not in step and not row[0].startswith("rotary")]
    assert [row[1:] for row in activations if row[1] != "host"] == [
        ("gpus[0]", "gpus[1]"),
        ("gpus[1]", "host"),
    ]
    assert {row[0] for row in copies} >= step
    for name in (*step, "rotary_emb_cos"):
        assert sorted(row[2] for row in copies if row[0] == name) == ["gpus[0]", "gpus[1]"]
