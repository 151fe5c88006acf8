"""Files of records: which data set a file holds, and its records, either all or the good ones and what is wrong with
the others. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar, get_args

from rompatch.errors import SuiteError
from rompatch.verify.fields import record_fields
from rompatch.verify.jsonfile import read_json
from rompatch.verify.known import KnownFact
from rompatch.verify.records import Contest, CounterfactRecord
from rompatch.verify.zsre import ZsreRecord

Mode = Literal["strict", "collect"]
FormName = Literal["counterfact", "known_1000", "zsre"]
FORM_NAMES: tuple[FormName, ...] = get_args(FormName)


class Record(Protocol):
    """What records of every data set offer."""

    @property
    def case_id(self) -> int:
        """Unique within its file."""

    @property
    def name(self) -> str:
        """How people call it."""

    @property
    def subject(self) -> str:
        """s."""

    def contests(self) -> Iterator[Contest]:
        """Every prompt with the objects that are scored after it."""


R_co = TypeVar("R_co", bound=Record, covariant=True)


@dataclass(frozen=True)
class Form(Generic[R_co]):
    """How the records of one data set are read.

    Args:
        title: the data set's name in messages.
        marks: fields by which a record of it is recognised.
        id_field: the field with its id, which must then be there and differ from record to record.
        parse: a JSON object and its position to a record.
    """

    title: str
    marks: tuple[str, ...]
    id_field: str | None
    parse: Callable[[Any, int], R_co]


FORMS: dict[FormName, Form[Record]] = {
    "counterfact": Form("COUNTERFACT", ("requested_rewrite",), "case_id", CounterfactRecord.from_json),
    "known_1000": Form("known_1000", ("known_id",), "known_id", KnownFact.from_json),
    "zsre": Form("zsRE", ("src", "answers"), None, ZsreRecord.from_json),
}


@dataclass(frozen=True)
class Problem:
    """A record that cannot be used. ``record_id`` is None where it has no usable id."""

    position: int
    record_id: int | None
    field: str
    error: SuiteError

    def __str__(self) -> str:
        return str(self.error)


@dataclass(frozen=True)
class RecordSet(Generic[R_co]):
    """The records of a file, in its order, and the problems of the others (none after strict reading)."""

    form: FormName
    records: tuple[R_co, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def total(self) -> int:
        """Records in the file, good and bad."""
        return len(self.records) + len(self.problems)


def read_records(path: Path | str, form: FormName | None = None, mode: Mode = "strict") -> RecordSet[Record]:
    """The records of a file that holds a list of them, or a single one.

    Args:
        form: which data set; None: told by the fields of the first record that shows it.
        mode: "strict" raises at the first record that is wrong; "collect" goes on and lists it under ``problems``.

    Raises:
        SuiteError: the file cannot be read, is no JSON, holds no records or those of no known data set; in strict mode
            also for a wrong record. A file without any good record is an error in both modes.
    """
    expected = f"a list of {FORMS[form].title} records" if form else "a list of records"
    data = read_json(path, expected)
    entries = _entries(path, data, expected)
    form = form or detect_form(path, entries)
    found = parse_records(entries, form, mode)
    if not found.records:
        first = found.problems[0]
        raise SuiteError(
            f"None of the {found.total} records of {str(path)!r} can be used; the first: {first}",
            expected=f"a list of {FORMS[form].title} records",
            problems=found.problems,
        )
    return found


def load_counterfact(path: Path | str) -> list[CounterfactRecord]:
    """The COUNTERFACT records of a file, read strictly.

    Raises:
        SuiteError: as :func:`read_records`.
    """
    return [record for record in read_records(path, "counterfact").records if isinstance(record, CounterfactRecord)]


def parse_records(entries: Sequence[Any], form: FormName, mode: Mode = "strict") -> RecordSet[Record]:
    """Records of a list of JSON objects; see :func:`read_records`."""
    records: list[Record] = []
    problems: list[Problem] = []
    seen: dict[int, int] = {}
    for position, entry in enumerate(entries):
        try:
            _check_id(FORMS[form], entry, position, seen)
            records.append(FORMS[form].parse(entry, position))
        except SuiteError as error:
            if mode == "strict":
                raise
            facts = error.facts
            problems.append(Problem(position, facts.get("record_id"), str(facts.get("field", "")), error))
    return RecordSet(form, tuple(records), tuple(problems))


def detect_form(path: Path | str, entries: Sequence[Any]) -> FormName:
    """The data set whose fields the first telling record has.

    Raises:
        SuiteError: no record has those of any.
    """
    for entry in entries:
        for name, form in FORMS.items():
            if isinstance(entry, Mapping) and all(mark in entry for mark in form.marks):
                return name
    marks = "; ".join(f"{name}: {', '.join(form.marks)}" for name, form in FORMS.items())
    first = entries[0]
    raise SuiteError(
        f"The file {str(path)!r} holds records of no data set that rompatch knows.",
        expected=f"records with these fields: {marks}",
        found=sorted(map(str, first))[:8] if isinstance(first, Mapping) else repr(first)[:80],
        next_step="Name a file in one of these forms.",
    )


def _entries(path: Path | str, data: Any, expected: str) -> list[Any]:
    if isinstance(data, Mapping):
        return [data]
    if not isinstance(data, list):
        kind = {str: "text", type(None): "null", bool: "true or false"}.get(type(data), "a number")
        raise SuiteError(f"The file {str(path)!r} holds no records.", expected=expected, found=kind)
    if not data:
        raise SuiteError(f"The file {str(path)!r} holds no records.", expected=expected, found="an empty list")
    return data


def _check_id(form: Form[Record], entry: Any, position: int, seen: dict[int, int]) -> None:
    """Ids are there and differ; the first of two equal ones stands."""
    if form.id_field is None:
        return
    where = record_fields(entry, form.title, position, form.id_field).where
    if where.record_id is None:
        raise where.missing(form.id_field, "a whole number from 0")
    first = seen.setdefault(where.record_id, position)
    if first != position:
        raise where.wrong(form.id_field, f"a number of its own: record {first} of the file has it", where.record_id)
