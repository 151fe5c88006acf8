"""Numbers, tables and JSON as text. Nothing here knows a workflow."""

from __future__ import annotations

import json
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import click

from rompatch.cli.terminal import is_terminal

MISSING = "-"


def emit_json(data: Any) -> None:
    """One JSON object on stdout."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))


def plain(text: str, *, keep: str = "") -> str:
    """*text* with control characters shown as escapes: what a patch file says must not drive the terminal."""
    return "".join(
        char if char in keep or not unicodedata.category(char).startswith("C") else _escaped(char) for char in text
    )


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode() if char.isascii() or unicodedata.category(char) != "Cn" else char


def percent(value: float | None) -> str:
    """A fraction as a percentage with one digit; "-" where there is none."""
    return MISSING if value is None else f"{100 * value:.1f}"


def probability(value: float | None) -> str:
    """A probability as a percentage, small ones with two digits that count."""
    if value is None:
        return MISSING
    return f"{100 * value:.1f} %" if value >= 0.001 or value == 0 else f"{100 * value:.2g} %"


def moment(at: str) -> str:
    """An instant of the ledger, to the second: ``2026-01-31 12:00:00``."""
    return at[:19].replace("T", " ")


def overridden(gates: Sequence[str]) -> str:
    """Which gates were passed over: ``overrides min_S``; nothing for none."""
    return f"overrides {', '.join(gates)}" if gates else ""


def size(count: int) -> str:
    """Bytes for people."""
    number = float(count)
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """``1 patch``, ``2 patches``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def patches(number: int) -> str:
    """``1 patch``, ``2 patches``."""
    return counted(number, "patch", "patches")


def width(text: str) -> int:
    """Columns that *text* takes on a terminal."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.combining(char) > 0 for char in text)


def clip(text: str, columns: int) -> str:
    """*text* cut to *columns* with an ellipsis."""
    if width(text) <= columns:
        return text
    while text and width(text) > columns - 1:
        text = text[:-1]
    return text + "…"


def table(
    headers: Sequence[str], rows: Iterable[Sequence[str]], *, right: str = "", flexible: int | None = None
) -> str:
    """Columns of text under their headers.

    Args:
        right: indices of columns to be right-aligned, as digits ("23").
        flexible: index of the column that is cut where a terminal is too narrow.
    """
    body = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(width, column)) for column in zip(headers, *body, strict=True)]
    if flexible is not None and is_terminal(sys.stdout):
        room = shutil.get_terminal_size().columns - sum(widths) - 2 * (len(widths) - 1) + widths[flexible]
        widths[flexible] = min(widths[flexible], max(room, 12))
    lines = [_row([click.style(cell, bold=True) for cell in headers], headers, widths, right)]
    for row in body:
        cut = [clip(cell, columns) for cell, columns in zip(row, widths, strict=True)]
        lines.append(_row(cut, cut, widths, right))
    return "\n".join(lines)


def _row(shown: Sequence[str], measured: Sequence[str], widths: Sequence[int], right: str) -> str:
    cells = []
    for index, (cell, text, columns) in enumerate(zip(shown, measured, widths, strict=True)):
        gap = " " * (columns - width(text))
        cells.append(gap + cell if str(index) in right else cell + gap)
    return "  ".join(cells).rstrip()


def fields(pairs: Iterable[tuple[str, str | None]]) -> str:
    """``name  value`` lines, names aligned; pairs without a value are left out."""
    known = [(plain(name), value) for name, value in pairs if value]
    columns = max((width(name) for name, _ in known), default=0)
    return "\n".join(
        f"{click.style(name, bold=True)}{' ' * (columns - width(name))}  {plain(value)}" for name, value in known
    )
