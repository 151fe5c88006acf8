"""A file of facts: the good ones, and what is wrong with each of the others. Nothing is left out in silence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rompatch.errors import RequestError
from rompatch.facts.columns import IGNORED, check_names
from rompatch.facts.fact import Fact
from rompatch.facts.lines import Line, read_lines

MAX_TEXT = 10_000
"""Characters of one field; no context is as long."""


@dataclass(frozen=True)
class FactLine:
    """A fact and where it stands: *number* counts the file's lines from 1 (or what was handed over, from 1)."""

    number: int
    fact: Fact
    line: Line


@dataclass(frozen=True)
class BadLine:
    """A line that is no fact, and why; *field* is None where the line as a whole is wrong."""

    number: int
    field: str | None
    error: RequestError
    line: Line


@dataclass(frozen=True)
class FactList:
    """The facts of a file in its order, and the lines that are none."""

    source: str
    facts: tuple[FactLine, ...]
    bad: tuple[BadLine, ...]

    @property
    def total(self) -> int:
        """Lines, good and bad."""
        return len(self.facts) + len(self.bad)


def read_facts(source: str | Path | Iterable[Mapping[str, Any]]) -> FactList:
    """The facts in a file (:func:`rompatch.facts.lines.read_lines`; "-" is standard input), or in objects of the same
    fields.

    Raises:
        RequestError: the file cannot be read as one, or there is nothing in it.
    """
    if isinstance(source, (str, Path)):
        return _sorted_out(str(source), read_lines(source))
    objects = [_handed_over(number, given) for number, given in enumerate(source, 1)]
    if not objects:
        raise RequestError("There are no facts to make patches of.")
    return _sorted_out("the facts given", objects)


def _handed_over(number: int, given: Mapping[str, Any]) -> Line:
    import json

    return Line(number, json.dumps(dict(given), ensure_ascii=False, default=str), dict(given))


def _sorted_out(source: str, lines: Iterable[Line]) -> FactList:
    facts, bad = [], []
    for line in lines:
        try:
            facts.append(FactLine(line.number, _fact(line), line))
        except RequestError as problem:
            bad.append(BadLine(line.number, problem.facts.get("field"), problem, line))
    return FactList(source, tuple(facts), tuple(bad))


def _fact(line: Line) -> Fact:
    if line.problem is not None:
        raise line.problem
    check_names("the line", line.fields)
    texts = {name: _text(name, value) for name, value in line.fields.items() if name not in IGNORED}
    fact = Fact(
        subject=texts.get("subject") or "",
        relation=texts.get("relation") or "",
        target=texts.get("object") or "",
        true=texts.get("true"),
        prompt=texts.get("prompt"),
        message=texts.get("message"),
        source=texts.get("source"),
        expires=texts.get("expires"),
        name=texts.get("id") or texts.get("name"),
    )
    fact.check()
    return fact


def _text(name: str, value: object) -> str | None:
    """The value without white space around it; None where nothing is left."""
    if name in ("id", "name") and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None:
        return None
    if not isinstance(value, str):
        raise _wrong(name, "text", type(value).__name__)
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise _wrong(name, "text without halves of surrogate pairs", ascii(value)[:80])
    if "\0" in value:
        raise _wrong(name, "text without NUL", ascii(value)[:80])
    if len(value) > MAX_TEXT:
        raise _wrong(name, f"at most {MAX_TEXT:,} characters", f"{len(value):,}")
    return value.strip() or None


def _wrong(name: str, expected: str, found: str) -> RequestError:
    return RequestError(f"The field {name!r} is wrong.", expected=expected, found=found, field=name)
