"""Records of a data set as tasks: an edit request and the suite that judges it. No torch here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from rompatch.edits import EditRequest
from rompatch.errors import RequestError, SuiteError
from rompatch.verify.building import suite_from_counterfact, suite_from_zsre
from rompatch.verify.reading import FORMS, FormName, Mode, Record, RecordSet, read_records
from rompatch.verify.records import CounterfactRecord
from rompatch.verify.suite import Suite
from rompatch.verify.zsre import Taught, ZsreRecord

Benchmark = Literal["counterfact", "zsre"]
BENCHMARKS: tuple[str, ...] = get_args(Benchmark)
_NO_NEW_OBJECT = "known_1000 has facts but no new object for them, so there is no edit to score"


@dataclass(frozen=True)
class Task:
    """One record to be edited: its place in the file (from 0), the edit request and the suite."""

    position: int
    record: Record
    request: EditRequest
    suite: Suite


@dataclass(frozen=True)
class Shard:
    """Part *number* of *count*, numbered from 1: every *count*-th record.

    Raises:
        RequestError: there is no such part.
    """

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise RequestError(
                f"There is no shard {self.number} of {self.count}.", expected="1/N to N/N", found=str(self)
            )

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From "2/4".

        Raises:
            RequestError: it is not written like that.
        """
        parts = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip(), re.ASCII)
        if parts is None:
            raise RequestError(f"{text!r} is no shard.", expected="one like 1/4, the first of four")
        return cls(int(parts[1]), int(parts[2]))


def read_benchmark(path: Path, benchmark: Benchmark, mode: Mode) -> RecordSet[Record]:
    """The records of a file that holds *benchmark*.

    Raises:
        SuiteError: as :func:`~rompatch.verify.reading.read_records`; or it holds another data set, which is named.
    """
    try:
        return read_records(path, benchmark, mode)
    except SuiteError as problem:
        other = _form(path)
        if other in (None, benchmark):
            raise
        raise SuiteError(
            f"The file {str(path)!r} holds {FORMS[other].title} records, not {FORMS[benchmark].title} ones."
            if other in BENCHMARKS
            else f"The file {str(path)!r} is no benchmark: {_NO_NEW_OBJECT}.",
            expected=f"{FORMS[benchmark].title} records",
            found=f"{FORMS[other].title} records",
            next_step=f"`rompatch bench {other} FILE` is for them."
            if other in BENCHMARKS
            else "Name a COUNTERFACT or a zsRE file.",
        ) from problem


def _form(path: Path) -> FormName | None:
    """The data set that a file's records are of, as far as one can tell."""
    try:
        return read_records(path, None, "collect").form
    except SuiteError:
        return None


def positions(records: RecordSet[Record]) -> dict[int, Record]:
    """The good records by their place in the file."""
    damaged = {problem.position for problem in records.problems}
    places = (place for place in range(records.total) if place not in damaged)
    return dict(zip(places, records.records, strict=True))


def selected(total: int, limit: int | None, shard: Shard) -> range:
    """Places in a file of *total* records: the first *limit* of them, and of these the *shard*."""
    return range(total if limit is None else min(limit, total))[shard.number - 1 :: shard.count]


def tasks_of(records: Mapping[int, Record], places: Iterable[int], teach: Taught) -> list[Task]:
    """The tasks at *places*, those of damaged records left out."""
    return [task_of(place, records[place], teach) for place in places if place in records]


def task_of(position: int, record: Record, teach: Taught = "answer") -> Task:
    """The task that a record sets.

    Raises:
        SuiteError: a record of this kind has no new object.
    """
    if isinstance(record, CounterfactRecord):
        return Task(position, record, record.request, suite_from_counterfact(record))
    if isinstance(record, ZsreRecord):
        return Task(position, record, record.request(teach), suite_from_zsre(record, teach))
    raise SuiteError(f"{record.name} cannot be benchmarked: {_NO_NEW_OBJECT}.")
