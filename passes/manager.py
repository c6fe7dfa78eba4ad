"""The pass manager: runs passes in order, verifies after each, keeps statistics and writes dumps."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.fx as fx
from ktc.passes.base import Pass
from ktc.passes.context import Context
from ktc.passes.printer import graph_text
from ktc.passes.verify import Level, verify


@dataclass(frozen=True)
class PassRecord:
    """What one pass did: seconds, nodes before and after, whether the printed graph changed (None: not printed)."""

    name: str
    seconds: float
    nodes_before: int
    nodes_after: int
    changed: bool | None


class Dump:
    """Writes `NN-pass.fx.txt` and `NN-pass.diff` for every pass that changed something, and `events.jsonl`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._last: dict[str, str] = {}
        self._number = 0

    def after(self, stage: str, gm: fx.GraphModule, graph: str = "step") -> bool:
        """Writes the graph if it differs from the one of the pass before; returns whether it did."""
        text = graph_text(gm)
        before = self._last.get(graph, self._last.get("step", ""))
        number = f"{self._number:02d}"
        self._number += 1
        self._last[graph] = text
        if text == before:
            return False
        (self.folder / f"{number}-{stage}.fx.txt").write_text(text, encoding="utf-8")
        if before:
            lines = difflib.unified_diff(
                before.splitlines(), text.splitlines(), "before", f"after {stage}", n=1, lineterm=""
            )
            (self.folder / f"{number}-{stage}.diff").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return True

    def finish(self, context: Context) -> None:
        """Writes the event stream."""
        context.events.write(self.folder / "events.jsonl")


class PassManager:
    """Runs passes on one graph.

    Args:
        context: the state the passes share.
        dump: where to write what changed, or None.
        progress: called with each pass's name before it runs.
    """

    def __init__(
        self, context: Context, dump: Dump | None = None, progress: Callable[[str], None] | None = None
    ) -> None:
        self.context = context
        self.dump = dump
        self.progress = progress
        self.records: list[PassRecord] = []

    def run(
        self, gm: fx.GraphModule, passes: Sequence[Pass], level: Level, graph: str = "step"
    ) -> fx.GraphModule:
        """Applies the passes in order; the graph of each must fulfil `level`.

        Raises:
            KtError: a pass found something wrong with the user's program.
            InvalidGraph: a pass broke the graph.
        """
        for item in passes:
            if self.progress is not None:
                self.progress(item.name)
            before, start = len(gm.graph.nodes), time.perf_counter()
            try:
                gm = item(gm, self.context)
            finally:
                if self.dump is not None:
                    self.dump.finish(self.context)
            seconds = time.perf_counter() - start
            verify(gm, self.context, item.name, level)
            changed = self.dump.after(item.name, gm, graph) if self.dump is not None else None
            record = PassRecord(item.name, seconds, before, len(gm.graph.nodes), changed)
            self.records.append(record)
            self.context.events.emit(
                item.name,
                "stat",
                seconds=round(seconds, 6),
                nodes_before=before,
                nodes_after=record.nodes_after,
            )
        if self.dump is not None:
            self.dump.finish(self.context)
        return gm
