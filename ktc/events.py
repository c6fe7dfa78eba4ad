"""The event stream: one record for every decision of the compiler; dumps, `explain` and remarks only read it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ktc.errors import ArtifactError


@dataclass(frozen=True, slots=True)
class Event:
    """One record.

    Attributes:
        stage: the pass (or "capture", "load") that wrote it.
        kind: "applied" (a rule set an attribute), "fired" (a rewrite), "missed" (a near miss and its reason),
            "lowered", "transfer", "folded", "narrowed" (done for fewer tokens), "stat" (counts and seconds of a pass).
        subject: the site or node it is about; "" for the whole graph.
        data: plain JSON values, e.g. rule, file, line, value.
    """

    stage: str
    kind: str
    subject: str
    data: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line of `events.jsonl`."""
        return json.dumps({"stage": self.stage, "kind": self.kind, "subject": self.subject, **self.data})


class EventStream:
    """An append-only list of events."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def emit(self, stage: str, kind: str, subject: str = "", **data: Any) -> None:
        """Appends a record; `data` must be plain JSON values."""
        self._events.append(Event(stage, kind, subject, data))

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events)

    def __len__(self) -> int:
        return len(self._events)

    def write(self, path: Path) -> None:
        """Writes the whole stream as JSON lines."""
        path.write_text("".join(event.to_json() + "\n" for event in self._events), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> EventStream:
        """Reads `events.jsonl`. Raises ArtifactError naming the line that is not a record."""
        stream = cls()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                record = json.loads(line)
                stage, kind, subject = (record.pop(key) for key in ("stage", "kind", "subject"))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise ArtifactError(f"{path}:{number}: not an event record ({error})") from error
            stream.emit(stage, kind, subject, **record)
        return stream
