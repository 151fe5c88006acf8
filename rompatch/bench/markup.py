"""Tables of results as cells of text, as Markdown and as CSV. Pure.

Everything is shown times 100, as in the paper, GE too; essence is a perplexity and shown as it is. What was not
measured is "-" (in CSV an empty cell), never 0.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from rompatch.bench.tables import EXACT, PAPER, Line
from rompatch.verify.intervals import Estimate

MISSING = "-"
HEADERS = {
    "s": "Score S",
    "ge": "GE",
    "rs": "RS",
    "essence": "Essence",
    "attribute_score": "AS",
    "attribute_magnitude": "AM",
    "rewrite_accuracy": "rewrite acc",
    "rephrase_accuracy": "rephrase acc",
    "locality": "locality",
    "rewrite_exact": "rewrite exact",
    "rephrase_exact": "rephrase exact",
    "locality_exact": "locality exact",
}

_AS_IT_IS = ("essence",)


def header(name: str) -> str:
    """What a measure is called in tables."""
    return HEADERS.get(name, name.upper())


def scale(name: str) -> float:
    """What a measure is multiplied with for people."""
    return 1.0 if name in _AS_IT_IS else 100.0


def cell(name: str, estimate: Estimate | None) -> str:
    """``89.2 (1.2)``: value and half width of the interval; without the latter where it cannot be told."""
    if estimate is None:
        return MISSING
    value = f"{scale(name) * estimate.value:.1f}"
    return value if estimate.half_width is None else f"{value} ({scale(name) * estimate.half_width:.1f})"


def columns(exact: bool) -> tuple[str, ...]:
    """The measures of a table, in order: the paper's, or those of exact success."""
    return EXACT if exact else PAPER


def cells(lines: Sequence[Line], exact: bool) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of text."""
    names = columns(exact)
    rows = [
        [line.label, *(cell(name, line.estimates[name]) for name in names), str(line.scored), _failed(line)]
        for line in lines
    ]
    return ["Editor", *map(header, names), "n", "failed"], rows


def markdown(lines: Sequence[Line], exact: bool) -> str:
    """A Markdown table."""
    headers, rows = cells(lines, exact)
    ruler = ["---", *("---:" for _ in headers[1:])]
    escaped = [[text.replace("\\", "\\\\").replace("|", "\\|") for text in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (headers, ruler, *escaped))


def as_csv(lines: Sequence[Line], exact: bool) -> str:
    """Comma-separated values, three columns a measure: the value, the interval's half width, the records behind it."""
    names, out = columns(exact), io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = [f"{header(name)}{part}" for name in names for part in ("", " +-", " n")]
    writer.writerow(["Editor", "run", *heads, "n", "failed"])
    for line in lines:
        numbers = [text for name in names for text in _csv_cells(name, line.estimates[name])]
        run = "" if line.run is None else line.run.id
        writer.writerow([line.label, run, *numbers, line.scored, _failed(line).replace(MISSING, "")])
    return out.getvalue().rstrip("\n")


def _csv_cells(name: str, estimate: Estimate | None) -> tuple[str, str, str]:
    if estimate is None:
        return "", "", ""
    width = "" if estimate.half_width is None else f"{scale(name) * estimate.half_width:.4f}"
    return f"{scale(name) * estimate.value:.4f}", width, str(estimate.n)


def _failed(line: Line) -> str:
    return MISSING if line.run is None else str(line.failed)
