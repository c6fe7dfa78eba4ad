"""`python -m benchmarks` lists the benchmarks; `python -m benchmarks NAME…` (or `all`) runs them, each in a process."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
HELPERS = frozenset(
    {
        "__init__", "__main__", "machine", "ggml_experts", "kt_experts", "llama_cpp_peer", "models_peer",
        "latent", "models_sides", "models_torch", "random_blocks", "shapes",
    }
)  # fmt: skip


def benchmarks() -> dict[str, str]:
    """Names of the benchmarks here, with the first line of their docstrings."""
    found = {}
    for path in sorted(HERE.glob("*.py")):
        if path.stem not in HELPERS:
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            found[path.stem] = text.partition("\n")[0]
    return found


def main(arguments: Sequence[str]) -> int:
    """Lists or runs; returns the exit code, 1 when a benchmark failed."""
    known = benchmarks()
    if not arguments:
        width = max(map(len, known))
        for name, what in known.items():
            print(f"{name:<{width}}  {what}")
        print("\nrun them: python -m benchmarks NAME… (or `all`)")
        return 0
    names = list(known) if list(arguments) == ["all"] else list(arguments)
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"error: no benchmark {', '.join(unknown)}; there is {', '.join(known)}", file=sys.stderr)
        return 2
    failed = False
    for name in names:
        print(f"== {name}", flush=True)
        failed |= (
            subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=HERE.parent).returncode != 0
        )
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
