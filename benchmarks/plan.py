"""`ktc plan --no-weights` of models that fit on no desk: seconds and peak memory, each in a fresh process."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

from benchmarks.machine import ROOT, header, load, save, table

ROUNDS = 3
LIMIT_SECONDS, LIMIT_GIB = 20.0, 2.0
"""Of DeepSeek-V3 on two cores."""
COMMAND = "import sys; from ktc.cli import main; raise SystemExit(main(sys.argv[1:]))"


@dataclass(frozen=True)
class Run:
    """One run: wall-clock and processor seconds of the whole process, its largest resident set, what it printed."""

    wall: float
    cpu: float
    peak_gib: float
    report: dict[str, object]


def run(example: str) -> Run:
    """Plans one example in a process of its own, imports included."""
    arguments = [
        "plan", "--json", "--no-weights", "--model", f"examples/configs/{example}", f"examples/{example}.kt",
    ]  # fmt: skip
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


def main() -> int:
    """Runs the examples in turns and writes results/plan-DATE.md; 1 when DeepSeek-V3 is over its limit."""
    text = header(
        "Planning without weights",
        f"medians of {ROUNDS} runs in turns, each a fresh process",
    )
    examples = ("deepseek-v3", "qwen3-30b-a3b")
    runs: dict[str, list[Run]] = {example: [] for example in examples}
    for _ in range(ROUNDS):
        for example in examples:
            runs[example].append(run(example))
    text += f"- load average after {load()}\n\n"
    rows = []
    for example in examples:
        done = runs[example]
        wall, cpu, peak = (
            statistics.median(getattr(item, field) for item in done) for field in ("wall", "cpu", "peak_gib")
        )
        walls = ", ".join(f"{item.wall:.1f}" for item in done)
        report = done[0].report
        size = f"{int(str(report['parameters'])) / 1e9:.1f} B, {report['layers']} layers"
        rows.append((example, size, f"{wall:.1f} ({walls})", f"{cpu:.1f}", f"{peak:.2f}"))
    text += table(("model", "size", "seconds (each run)", "processor seconds", "peak RSS, GiB"), rows)
    largest = runs["deepseek-v3"]
    seconds, peak = statistics.median(r.wall for r in largest), max(r.peak_gib for r in largest)
    held = seconds <= LIMIT_SECONDS and peak <= LIMIT_GIB
    text += (
        f"\nLimit for DeepSeek-V3, {LIMIT_SECONDS:.0f} s and {LIMIT_GIB:.0f} GiB on two cores: "
        f"{'held' if held else 'missed'}.\n"
    )
    save("plan", text)
    return 0 if held else 1


if __name__ == "__main__":
    raise SystemExit(main())
