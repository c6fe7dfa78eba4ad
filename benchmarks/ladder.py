"""How exact is the product of every number format at every instruction-set level: the accuracy ladder.

`python -m benchmarks.ladder [--json FILE]`, for a linear layer [256, 2048] and eight routed experts. Three rungs:

1. a packed weight, opened again, against the file's blocks dequantised by the gguf package: values that differ;
2. the kernel against float64 on the same rounded activations (int8 in blocks of 32, or bf16 on tiles): NMSE;
3. the kernel against float64 on the float32 activations, Gaussian ones and ones in which every hundredth is 20 times
   as large: NMSE. At most 1e-4 is wanted, 5e-4 allowed.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import ktc.backends.cpu
import torch
from ktc.backends.cpu.packed import PACKED, unpack
from ktc.backends.registry import Weight

import ktc.dialect  # noqa: F401  registers the ops
from benchmarks.machine import ROOT, header, save, table
from ktc import _cpu

sys.path.insert(0, str(ROOT / "tests"))
from support.expert_layers import make_input, make_layer
from support.packed_weights import FLOATS, as_bf16, as_codes, as_cut, dense, make_blocks, nmse, on_tiles, pack
from support.packed_weights import rounded as rounds

ROWS, COLUMNS = 256, 2048
EXPERTS, INNER, HIDDEN = 8, 256, 512
TOKENS = (1, 4, 64)


@dataclass(frozen=True)
class Rung:
    """One row: NMSE of a format at a level, the worst of `TOKENS`; `changed_values` None where nothing is opened."""

    op: str
    format: str
    level: str
    changed_values: int | None
    same_activations: float
    gaussian: float
    outliers: float


def activations(tokens: int, columns: int, outliers: bool) -> torch.Tensor:
    """float32[tokens, columns], Gaussian; with outliers, one in a hundred is 20 times as large."""
    x = torch.randn(tokens, columns)
    return torch.where(torch.rand(tokens, columns) < 0.01, 20 * x, x) if outliers else x


def rounded(x: torch.Tensor, meaning: torch.Tensor, format: str) -> torch.Tensor:
    """The product of what the kernel sees, float64."""
    if rounds(format, x.shape[0]):
        return as_bf16(x) @ meaning.T
    if format in FLOATS:
        return x.double() @ meaning.T
    if on_tiles(x.shape[0]):
        return as_bf16(x) @ as_cut(meaning).T
    return as_codes(x, format, x.shape[0]) @ meaning.T


def linear_rung(format: str, level: str) -> Rung:
    """The linear layer of a format at the level in force."""
    blocks = make_blocks(format, ROWS, COLUMNS)
    meaning = dense(format, blocks, ROWS, COLUMNS)
    packed = pack(format, blocks, ROWS, COLUMNS)
    opened = unpack(packed, Weight("w", format, (ROWS, COLUMNS)))
    worst = {"same": 0.0, "gaussian": 0.0, "outliers": 0.0}
    for tokens in TOKENS:
        for name in ("gaussian", "outliers"):
            x = activations(tokens, COLUMNS, name == "outliers")
            y = torch.ops.kt_cpu.linear(x, packed, None, format, ROWS, COLUMNS)
            worst[name] = max(worst[name], nmse(y, x.double() @ meaning.double().T))
            worst["same"] = max(worst["same"], nmse(y, rounded(x, meaning.double(), format)))
    changed = int((opened != meaning).sum())
    return Rung("linear", format, level, changed, worst["same"], worst["gaussian"], worst["outliers"])


def experts_rung(format: str, level: str) -> Rung:
    """The routed experts of a format at the level in force; two matrices one after the other."""
    layer = make_layer(format, count=EXPERTS, hidden=HIDDEN, inner=INNER)
    same, worst = 0.0, {False: 0.0, True: 0.0}
    for tokens in TOKENS:
        x, indices, weights = make_input(layer, tokens)
        for outliers in worst:
            x = activations(tokens, HIDDEN, outliers) * float(x.std())
            y = layer(x, indices, weights)
            worst[outliers] = max(worst[outliers], nmse(y, layer.exact(x, indices, weights)))
            if not on_tiles(tokens):
                same = max(same, nmse(y, layer.ladder(x, indices, weights)))
    return Rung("experts", format, level, None, same, worst[False], worst[True])


def main() -> int:
    """Every format at every level of this machine; returns 1 when a rung is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()
    torch.manual_seed(0)
    head = header("The accuracy ladder", f"NMSE, the worst of {', '.join(map(str, TOKENS))} tokens")
    before, rungs = _cpu.isa(), []
    for level in _cpu.isa_levels():
        _cpu.set_isa(level)
        for format in PACKED:
            rungs += [linear_rung(format, level), experts_rung(format, level)]
    _cpu.set_isa(before)
    rows = []
    for rung in sorted(rungs, key=lambda each: (each.op, PACKED.index(each.format))):
        changed = "–" if rung.changed_values is None else str(rung.changed_values)
        errors = (rung.same_activations, rung.gaussian, rung.outliers)
        rows.append((rung.op, rung.format, rung.level, changed, *(f"{error:.1e}" for error in errors)))
    columns = ("op", "format", "level", "values changed", "same activations", "Gaussian", "outliers")
    save("ladder", head + "\n" + table(columns, rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(rung) for rung in rungs]))
    missed = [r for r in rungs if r.changed_values or r.same_activations > 2e-7 or r.gaussian > 5e-4]
    for rung in missed:
        print(f"missed: {rung}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
