"""The event stream: what was written is read back; a line that is no record is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ktc.errors import ArtifactError
from ktc.events import Event, EventStream


def test_round_trip(tmp_path: Path) -> None:
    stream = EventStream()
    stream.emit("bind", "applied", "model.layers.0", rule="all", line=3, overrides=["a", "b"], value=None)
    stream.emit("lower", "stat", seconds=0.5)
    path = tmp_path / "events.jsonl"
    stream.write(path)
    assert list(EventStream.read(path)) == list(stream) and len(stream) == 2
    first = json.loads(path.read_text().splitlines()[0])
    assert first["stage"] == "bind" and first["subject"] == "model.layers.0" and first["line"] == 3


def test_line_breaks_in_values_stay_in_one_line(tmp_path: Path) -> None:
    stream = EventStream()
    stream.emit("bind", "note", "a\nb", text='é\u2028\n\t"')
    stream.write(tmp_path / "e")
    assert next(iter(EventStream.read(tmp_path / "e"))) == Event(
        "bind", "note", "a\nb", {"text": 'é\u2028\n\t"'}
    )


@pytest.mark.parametrize("line", ["{", "[]", "3", "null", '{"stage": "x"}', '{"stage": "a", "kind": "b"'])
def test_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"stage": "a", "kind": "b", "subject": ""}\n' + line + "\n")
    with pytest.raises(ArtifactError, match=r"events\.jsonl:2"):
        EventStream.read(path)
