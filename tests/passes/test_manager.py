"""The pass manager: dumps of what changed, statistics, and a verifier that catches broken passes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.fx as fx
from ktc.passes.manager import PassManager
from ktc.passes.verify import InvalidGraph, Level, verify

from ktc.events import EventStream

GATED = (
    "rewrite gated { pattern { y = kt.mul(kt.silu(g), u) } replace { y = kt.silu_mul(g, u) } expect layers }"
)


def test_a_dump_has_a_file_and_a_diff_for_every_pass_that_changed_something(compiled, tmp_path):
    done = compiled(GATED, dump=tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names[0] == "00-capture.fx.txt" and "events.jsonl" in names
    rewritten = next(path for path in tmp_path.iterdir() if path.name.endswith("rewrite.gated.fx.txt"))
    assert "kt.silu_mul(" in rewritten.read_text()
    diff = rewritten.with_name(rewritten.name.replace(".fx.txt", ".diff")).read_text()
    assert any(line.startswith("-") and "kt.silu(" in line for line in diff.splitlines())
    assert not [name for name in names if "bind" in name or "check" in name], "they change no graph"
    assert len(EventStream.read(tmp_path / "events.jsonl")) == len(done.context.events)


def test_each_pass_is_recorded_with_nodes_and_seconds(compiled):
    records = compiled(GATED).records
    assert [r.name for r in records] == [
        *("bind", "autoplace", "check", "rewrite.gated", "caches", "wanted_rows", "quantize"),
        *("specialize", "lower", "transfer", "schedule", "plan_memory"),
    ]
    gated = records[3]
    assert gated.nodes_after == gated.nodes_before - 2 and gated.seconds > 0


@dataclass(frozen=True)
class Break:
    """A pass that leaves a node without a device."""

    name: str = "break"

    def __call__(self, gm: fx.GraphModule, context: object) -> fx.GraphModule:
        node = next(n for n in gm.graph.nodes if n.op == "call_function")
        del node.meta["device"]
        return gm


def test_the_verifier_names_the_pass_and_the_node(compiled):
    context = compiled().context
    with pytest.raises(InvalidGraph, match=r"after break: node .* has no device"):
        PassManager(context).run(context.phases["step"], [Break()], Level(lowered=True, placed=True))


def test_the_verifier_wants_every_op_lowered(compiled):
    context = compiled().context
    gm = context.phases["step"]
    node = next(n for n in gm.graph.nodes if n.meta.get("kernel") == "cpu.rotary")
    node.target = torch.ops.kt.rotary.default
    node.meta["kernel"] = "nobody.knows"
    with pytest.raises(InvalidGraph, match=r"after lower: node .* was not lowered"):
        verify(gm, context, "lower", Level(lowered=True))
