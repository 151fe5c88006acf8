"""A file of facts as numbered lines of named fields: JSON Lines or CSV. What a line means is not looked at here.

Whatever is wrong with the file as a whole is an error; whatever is wrong with one line stays that line's own.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rompatch.errors import RequestError
from rompatch.facts.columns import check_columns

STANDARD_INPUT = "-"
_RECORD_LINES = 50
"""Lines that one CSV record may run over; a quote that is open for longer was never meant to be one."""


@dataclass(frozen=True)
class Line:
    """One line of a file of facts.

    Args:
        number: from 1, as editors count.
        text: as it stands in the file, without its end.
        fields: name to value; empty where they cannot be told.
        problem: what is wrong with the line's form.
    """

    number: int
    text: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    problem: RequestError | None = None


def read_lines(source: str | Path) -> list[Line]:
    """The lines of the file *source* that are not blank; "-" is standard input.

    Files that end in .csv or .tsv hold CSV, those in .jsonl, .ndjson or .json one JSON object a line; of others the
    first character tells. UTF-8 with or without a mark, lines ended in any of the three ways.

    Raises:
        RequestError: the file cannot be read, is not UTF-8 text, holds nothing, or its CSV header is wrong.
    """
    where = "standard input" if str(source) == STANDARD_INPUT else str(source)
    text = _decoded(where, _bytes(source, where))
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if not text.strip():
        raise RequestError(
            f"The file of facts {where!r} is empty.",
            expected='lines like {"subject": "Eiffel Tower", "relation": "located in", "object": "Rome"}, or CSV',
        )
    found = list(_form(source, text)(where, lines))
    if not found:
        raise RequestError(
            f"The file of facts {where!r} has a header and no line below it.", next_step="Add a line for each fact."
        )
    return found


def _bytes(source: str | Path, where: str) -> bytes:
    if str(source) == STANDARD_INPUT:
        return sys.stdin.buffer.read()
    try:
        return Path(source).expanduser().read_bytes()
    except (OSError, ValueError) as problem:
        raise RequestError(
            f"The file of facts {where!r} cannot be read.",
            found=getattr(problem, "strerror", None) or str(problem),
            next_step="Check the path and its permissions.",
        ) from problem


def _decoded(where: str, data: bytes) -> str:
    if b"\0" in data:
        place = data.index(b"\0")
        raise _no_text(where, f"a NUL byte in line {_line_of(data, place)}, at byte {place:,}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        found = f"a byte that is not UTF-8 in line {_line_of(data, problem.start)}, at byte {problem.start:,}"
        raise _no_text(where, found) from problem


def _line_of(data: bytes, place: int) -> int:
    return data.count(b"\n", 0, place) + 1


def _no_text(where: str, found: str) -> RequestError:
    return RequestError(
        f"The file of facts {where!r} is not text in UTF-8.",
        expected="UTF-8",
        found=found,
        next_step="Save it as UTF-8 (spreadsheets call it CSV UTF-8).",
    )


def _form(source: str | Path, text: str) -> Callable[[str, Sequence[str]], Iterator[Line]]:
    suffix = Path(source).suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _csv_lines
    if suffix in (".jsonl", ".ndjson", ".json") or text.lstrip().startswith(("{", "[")):
        return _json_lines
    return _csv_lines


# JSON Lines


def _json_lines(where: str, lines: Sequence[str]) -> Iterator[Line]:
    if next(line for line in lines if line.strip()).lstrip().startswith("["):
        raise RequestError(
            f"The file of facts {where!r} holds a JSON list.",
            expected="one JSON object a line (JSON Lines)",
            next_step=f"`jq -c '.[]' {where}` writes it so.",
        )
    for number, text in enumerate(lines, 1):
        if text.strip():
            yield _json_line(number, text)


def _json_line(number: int, text: str) -> Line:
    try:
        data = json.loads(text, object_pairs_hook=_pairs)
    except RequestError as problem:
        return Line(number, text, problem=problem)
    except (ValueError, RecursionError) as problem:
        return Line(number, text, problem=RequestError("The line is not JSON.", found=str(problem)))
    if not isinstance(data, dict):
        fault = RequestError("The line is no JSON object.", expected="{...}", found=type(data).__name__)
        return Line(number, text, problem=fault)
    return Line(number, text, data)


def _pairs(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RequestError(f"The line has the field {twice[0]!r} twice.", expected="each field once")
    return dict(pairs)


# CSV


def _csv_lines(where: str, lines: Sequence[str]) -> Iterator[Line]:
    """Record by record, so that a quote that is never closed costs its own line and not all that follow."""
    place = next(index for index, line in enumerate(lines) if line.strip())
    delimiter = max(",;\t", key=lines[place].count)
    try:
        (header,) = csv.reader([lines[place]], delimiter=delimiter, strict=True)
    except (csv.Error, ValueError) as problem:
        raise RequestError(f"The header of {where!r} cannot be read: {problem}.") from problem
    names = check_columns(where, [name.strip().casefold() for name in header])
    place += 1
    while place < len(lines):
        if not lines[place].strip():
            place += 1
            continue
        line, taken = _csv_record(lines, place, names, delimiter)
        yield line
        place += taken


def _csv_record(lines: Sequence[str], place: int, names: Sequence[str], delimiter: str) -> tuple[Line, int]:
    """The record that begins at *place*, and over how many lines it runs (one, where it is wrong)."""
    cells: list[str] | None = None
    taken, fault = 0, ""
    for taken in range(1, min(_RECORD_LINES, len(lines) - place) + 1):
        text = "\n".join(lines[place : place + taken])
        try:
            rows = list(csv.reader(text.splitlines(keepends=True), delimiter=delimiter, strict=True))
        except csv.Error as problem:
            fault = str(problem)
            if "unexpected end of data" in fault:
                continue  # a quote is open: the next line may close it
            break
        cells = rows[0] if len(rows) == 1 else None
        break
    text = lines[place]
    if cells is None:
        found = "a quote that is never closed" if taken > 1 or "unexpected end" in fault else fault
        return Line(place + 1, text, problem=RequestError("The line is not CSV.", found=found)), 1
    if len(cells) != len(names):
        wrong = RequestError(
            "The line has another number of fields than the header.",
            expected=f"{len(names)}: {', '.join(names)}",
            found=len(cells),
            next_step="Put quotes around text that holds a comma.",
        )
        return Line(place + 1, text, dict(zip(names, cells, strict=False)), wrong), 1
    return Line(place + 1, "\n".join(lines[place : place + taken]), dict(zip(names, cells, strict=True))), taken
