"""The lines of a file of facts that failed, as a file of facts again: to be corrected and given to the same command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rompatch.facts.lines import Line
from rompatch.facts.reading import FactList
from rompatch.patchfile.durable import atomic_write
from rompatch.workflows.many_outcomes import FactOutcome


def write_failed(path: Path, listed: FactList, failures: Sequence[FactOutcome]) -> Path:
    """Write the lines that *failures* name to *path*, as JSON Lines. Writes.

    A line keeps its fields and gets one more, ``error``, which readers ignore. A line of which no field could be read
    is written as it stands.

    Raises:
        OutputError: it cannot be written.
    """
    lines = {one.number: one.line for one in listed.facts} | {one.number: one.line for one in listed.bad}
    texts = [_written(lines[one.number], str(one.error)) for one in failures]
    atomic_write(path, "".join(f"{text}\n" for text in texts).encode(errors="backslashreplace"))
    return path


def _written(line: Line, error: str) -> str:
    if not line.fields:
        return line.text
    fields = {name: value for name, value in line.fields.items() if name != "error"}
    return json.dumps({**fields, "error": error}, ensure_ascii=False, default=str)
