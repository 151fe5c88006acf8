"""One record of a data set, read field by field: whatever is wrong names the record, the field, and what is there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rompatch.errors import SuiteError

_MAX_ID = 2**63 - 1
"""The largest number that the ledger's columns hold."""


@dataclass(frozen=True)
class Where:
    """Which record is meant: its kind, its place in the file (from 0), and its id where it has one."""

    kind: str
    position: int
    record_id: int | None = None

    def __str__(self) -> str:
        if self.record_id is None:
            return f"Record {self.position} of the file ({self.kind})"
        return f"{self.kind} record {self.record_id} (record {self.position} of the file)"

    def wrong(self, field: str, expected: str, found: object) -> SuiteError:
        """The error for a field that holds something else."""
        return SuiteError(
            f"{self} has a wrong field {field!r}.",
            expected=expected,
            found=repr(found)[:80],
            next_step="Correct the record, or leave it out.",
            **self.facts(field),
        )

    def missing(self, field: str, expected: str) -> SuiteError:
        """The error for a field that is not there."""
        return SuiteError(
            f"{self} has no field {field!r}.",
            expected=expected,
            next_step="Correct the record, or leave it out.",
            **self.facts(field),
        )

    def facts(self, field: str) -> dict[str, Any]:
        """What errors about this record carry as attributes: ``field``, ``position`` and ``record_id``."""
        return {"field": field, "position": self.position, "record_id": self.record_id}


class Fields:
    """A JSON object of which fields are asked for by name and kind.

    Raises:
        SuiteError: from every method, when the field is missing or holds something else.
    """

    def __init__(self, entry: Any, where: Where, path: str = "") -> None:
        if not isinstance(entry, Mapping):
            raise where.wrong(path or "(the record)", "an object", entry)
        self.where = where
        self._entry, self._path = entry, path

    def text(self, name: str) -> str:
        """Text that is not blank."""
        return self._text(self._value(name, "text that is not empty"), self._named(name))

    def text_or_none(self, name: str) -> str | None:
        """Text that is not blank; None where the field is missing or null."""
        return None if self._entry.get(name) is None else self.text(name)

    def texts(self, name: str, least: int = 0) -> tuple[str, ...]:
        """A list of texts; with *least* 0 it may be missing."""
        expected = f"a list with at least {least} text" if least else "a list of texts"
        if least == 0 and name not in self._entry:
            return ()
        value = self._value(name, expected)
        if not isinstance(value, list) or len(value) < least:
            raise self.where.wrong(self._named(name), expected, value)
        return tuple(self._text(text, f"{self._named(name)}[{index}]") for index, text in enumerate(value))

    def inner(self, name: str, expected: str = "an object") -> Fields:
        """The object in a field."""
        value = self._value(name, expected)
        if not isinstance(value, Mapping):
            raise self.where.wrong(self._named(name), expected, value)
        return Fields(value, self.where, self._named(name))

    def _value(self, name: str, expected: str) -> Any:
        if name not in self._entry:
            raise self.where.missing(self._named(name), expected)
        return self._entry[name]

    def _named(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def _text(self, value: object, field: str) -> str:
        if not isinstance(value, str) or not value.strip():
            raise self.where.wrong(field, "text that is not empty", value)
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise self.where.wrong(field, "text without halves of surrogate pairs", value)
        return value


def record_fields(entry: Any, kind: str, position: int, id_field: str | None = None) -> Fields:
    """The fields of a whole record, whose id is in *id_field* (None: it has no id of its own).

    Raises:
        SuiteError: it is no object, its id is no whole number, or a number somewhere in it is NaN or infinite.
    """
    found = entry.get(id_field) if id_field and isinstance(entry, Mapping) else None
    usable = isinstance(found, int) and not isinstance(found, bool) and 0 <= found <= _MAX_ID
    where = Where(kind, position, found if usable else None)
    fields = Fields(entry, where)
    if found is not None and not usable:
        raise where.wrong(str(id_field), "a whole number from 0", found)
    for path, number in _numbers(entry, ""):
        if not math.isfinite(number):
            raise where.wrong(path, "a finite number", number)
    return fields


def _numbers(value: Any, path: str) -> Iterator[tuple[str, float]]:
    """Every float below *value*, with its path."""
    if isinstance(value, float):
        yield path, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _numbers(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _numbers(inner, f"{path}[{index}]")
