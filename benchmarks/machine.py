"""What a result must say of where it was measured: machine, threads, versions, commit, load; and where results go."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"


def commit() -> str:
    """Short hash of the checkout, with `+` when sources differ from it; "unknown" outside of git."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def load() -> str:
    """Load averages over 1, 5 and 15 minutes."""
    return " ".join(f"{value:.1f}" for value in os.getloadavg())


def header(title: str, *facts: str) -> str:
    """The head of a result's page, Markdown."""
    from ktc import _cpu
    from ktc.machine import processor

    cores = len(os.sched_getaffinity(0))
    versions = ", ".join(f"{name} {version(name)}" for name in ("ktc", "torch", "transformers"))
    lines = [
        f"# {title}\n",
        f"- machine: {processor()}, {cores} cores, kernels at {_cpu.isa()}",
        f"- versions: {versions}, Python {platform.python_version()}, commit {commit()}",
        f"- time: {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC, load average before {load()}",
        *(f"- {fact}" for fact in facts),
    ]
    return "\n".join(lines) + "\n"


def table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [" | ".join(columns), " | ".join("---" for _ in columns), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def save(name: str, text: str) -> Path:
    """Writes results/NAME-DATE.md, shows it, and returns its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{datetime.datetime.now(datetime.UTC):%Y-%m-%d}.md"
    path.write_text(text, encoding="utf-8")
    print(text)
    print(f"written: {path.relative_to(ROOT)}")
    return path
