"""`ktc plan --no-weights` of models that fit on no desk: seconds, peak memory, and what the plans hold."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT, header, load, save, table

ROUNDS = 3
"""Runs of the case with a limit; the others, whose plans are what counts, run once, in turns with it."""
LIMIT_SECONDS, LIMIT_GIB = 20.0, 2.0
"""Of DeepSeek-V3 on two cores."""
COMMAND = "import sys; from ktc.cli import main; raise SystemExit(main(sys.argv[1:]))"
ABSORPTION = 'include "std/mla.kt"\n'
GIB, KIB = 2**30, 2**10


@dataclass(frozen=True)
class Case:
    """An example for one 24 GB GPU and the host, planned for one model.

    Attributes:
        config: folder in examples/configs; example: file in examples.
        defines: parameters given with -D.
        expanded: whether the rewrite that absorbs MLA's projections is taken out, so that keys and values are
            cached in full.
    """

    config: str
    example: str
    defines: tuple[str, ...] = ()
    expanded: bool = False

    @property
    def title(self) -> str:
        """The model, and what was said of it on the command line."""
        return f"{self.config}, expanded cache" if self.expanded else self.config


CASES = (
    Case("deepseek-v3", "deepseek-v3-gpu"),
    Case("deepseek-v3", "deepseek-v3-gpu", ("context=1024",), expanded=True),
    Case("deepseek-v2", "deepseek-v2-gpu", ("gpu_layers=4", "ram=128GiB")),
    Case("deepseek-v2", "deepseek-v2-gpu", ("gpu_layers=0", "ram=136GiB", "context=1024"), expanded=True),
    Case("deepseek-v2-lite", "deepseek-v2-gpu"),
    Case("deepseek-v2-lite", "deepseek-v2-gpu", expanded=True),
    Case("mixtral-8x7b", "mixtral-gpu"),
    Case("mixtral-8x22b", "mixtral-gpu", ("gpu_layers=11", "ram=72GiB")),
    Case("qwen2-57b-a14b", "qwen2-moe-gpu"),
    Case("qwen3-30b-a3b", "qwen3-moe-gpu"),
    Case("qwen3-235b-a22b", "qwen3-moe-gpu", ("bits=q4_k", "gpu_layers=12", "ram=128GiB")),
    Case("gpt-oss-120b", "gpt-oss-gpu"),
    Case("glm-4.5-air", "glm4-moe-gpu"),
)
SPREAD = tuple(Case("deepseek-v3", "deepseek-v3-multi-gpu", (f"devices={n}",)) for n in (1, 2, 4, 8))
"""One placement over several GPUs, planned once each."""


@dataclass(frozen=True)
class Run:
    """One run: wall-clock and processor seconds of the whole process, its largest resident set, what it printed."""

    wall: float
    cpu: float
    peak_gib: float
    report: Mapping[str, Any]


def run(case: Case) -> Run:
    """Plans one example in a process of its own, imports included."""
    with tempfile.TemporaryDirectory() as folder:
        program = ROOT / "examples" / f"{case.example}.kt"
        if case.expanded:
            text = without_absorption(program.read_text(encoding="utf-8"))
            program = Path(folder) / program.name
            program.write_text(text, encoding="utf-8")
        defines = [part for define in case.defines for part in ("-D", define)]
        model = ROOT / "examples" / "configs" / case.config
        arguments = ["plan", "--json", "--no-weights", "--model", str(model), str(program), *defines]
        with tempfile.TemporaryFile("w+") as out:
            start = time.perf_counter()
            process = subprocess.Popen([sys.executable, "-c", COMMAND, *arguments], cwd=ROOT, stdout=out)
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise RuntimeError(f"ktc {' '.join(arguments)} failed with {process.returncode}")
            out.seek(0)
            report = json.load(out)
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20, report)


def without_absorption(text: str) -> str:
    """A program with its family's library in place of the line that includes it, without the rewrite of std/mla.kt."""
    found = re.search(r'^include "(std/deepseek_v\d.kt)"\n', text, re.MULTILINE)
    if found is None:
        raise RuntimeError("the program includes no library of DeepSeek's")
    library = (ROOT / "grammar" / found[1]).read_text(encoding="utf-8")
    if ABSORPTION not in library:
        raise RuntimeError(f"{found[1]} does not include std/mla.kt")
    return text.replace(found[0], library.replace(ABSORPTION, ""))


def speed_row(case: Case, runs: Sequence[Run]) -> tuple[str, ...]:
    """Seconds and memory of the planning process; medians."""
    walls = ", ".join(f"{item.wall:.1f}" for item in runs)
    wall, cpu = (statistics.median(getattr(item, name) for item in runs) for name in ("wall", "cpu"))
    report = runs[0].report
    size = f"{report['parameters'] / 1e9:.1f} B, {report['layers']} layers"
    compiled = statistics.median(sum(item.report["seconds"].values()) for item in runs)
    peak = max(item.peak_gib for item in runs)
    return (case.title, size, f"{wall:.1f} ({walls})", f"{cpu:.1f}", f"{compiled:.1f}", f"{peak:.2f}")


def bytes_row(case: Case, report: Mapping[str, Any]) -> tuple[str, ...]:
    """What the plan puts where."""
    gpu, host = report["devices"]["gpu"], report["devices"]["host"]
    parts = (f"{gpu[key] / GIB:.2f}" for key in ("weights", "cache", "activations", "peak"))
    token = report["cache_token_bytes"] / KIB
    words = f"`{case.example}.kt`{''.join(f' -D {define}' for define in case.defines)}"
    return (case.title, words, *parts, f"{host['peak'] / GIB:.1f}", str(report["tokens"]), f"{token:.1f}")


def spread_row(case: Case, report: Mapping[str, Any]) -> tuple[str, ...]:
    """Bytes of the GPUs in use, their balance, copies between devices."""
    gpus = [row for name, row in report["devices"].items() if name.startswith("gpus") and row["weights"]]
    peaks = [row["peak"] for row in gpus]
    balance = max(peaks) / (sum(peaks) / len(peaks))
    weights = ", ".join(f"{row['weights'] / GIB:.2f}" for row in gpus)
    cache = ", ".join(f"{row['cache'] / GIB:.2f}" for row in gpus)
    return (" ".join(case.defines), weights, cache, f"{max(peaks) / GIB:.2f}", f"{balance:.2f}")


def main() -> int:
    """Runs the examples in turns and writes results/plan-DATE.md; 1 when DeepSeek-V3 is over its limit."""
    text = header(
        "Planning without weights",
        f"each plan in a fresh process; of {CASES[0].config} the median of {ROUNDS} runs, among the others",
        "wall-clock seconds include what else the machine did meanwhile; processor seconds do not",
    )
    runs: dict[Case, list[Run]] = {case: [] for case in CASES}
    others = CASES[1:]
    for start in range(ROUNDS):
        for case in (CASES[0], *others[start::ROUNDS]):
            runs[case].append(run(case))
    spread = [(case, run(case).report) for case in SPREAD]
    text += f"- load average after {load()}\n\n"
    text += "## Time and memory of planning\n\n"
    text += "Seconds are those of the whole process, imports included; `compiled` is what the plan itself prints.\n\n"
    columns = ("model", "size", "seconds (each run)", "processor seconds", "compiled", "peak RSS, GiB")
    text += table(columns, [speed_row(case, done) for case, done in runs.items()])
    largest = runs[CASES[0]]
    seconds, peak = statistics.median(r.cpu for r in largest), max(r.peak_gib for r in largest)
    held = seconds <= LIMIT_SECONDS and peak <= LIMIT_GIB
    text += (
        f"\nLimit for DeepSeek-V3, {LIMIT_SECONDS:.0f} s of processor time and {LIMIT_GIB:.0f} GiB: "
        f"{'held' if held else 'missed'}.\n"
    )
    text += "\n## What is planned for one GPU of 24 GB and the host\n\n"
    text += (
        "GiB on the GPU: weights, KV cache, activations with the largest workspace of a kernel, and the most held at "
        "once; the host's peak; tokens of cache, and KiB of cache a token. `expanded cache`: without std/mla.kt.\n\n"
    )
    columns = ("model", "program", "weights", "cache", "activations", "peak", "host", "tokens", "KiB a token")
    text += table(columns, [bytes_row(case, done[0].report) for case, done in runs.items()])
    text += "\n## DeepSeek-V3 over several GPUs\n\n"
    text += "`deepseek-v3-multi-gpu.kt`, GiB of each GPU in use; balance is the fullest over the mean.\n\n"
    columns = ("given", "weights", "cache", "largest peak", "balance")
    text += table(columns, [spread_row(case, report) for case, report in spread])
    save("plan", text)
    return 0 if held else 1


if __name__ == "__main__":
    raise SystemExit(main())
