"""Results as the paper's Table 4 has them (arXiv 2202.05262): means with 95 % intervals. Pure, no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rompatch.patch import canonical_json
from rompatch.store.bench import SCORED, BenchResultRecord, BenchRunRecord
from rompatch.verify import intervals
from rompatch.verify.intervals import Estimate

PAPER = ("s", "es", "em", "ps", "pm", "ns", "nm", "ge", "rs")
"""The columns of Table 4: S, ES and EM, PS and PM, NS and NM, GE, RS."""

EXACT = ("rewrite_accuracy", "rephrase_accuracy", "locality", "rewrite_exact", "rephrase_exact", "locality_exact")
"""Exact success, the way EasyEdit counts it."""

MEASURES = (*PAPER, "essence", "attribute_score", "attribute_magnitude", *EXACT)
"""Everything that a table knows."""

Results = Sequence[BenchResultRecord]


@dataclass(frozen=True)
class Line:
    """One line of a table.

    Args:
        label: the run's name or short id; "unedited" for the base.
        run: None for the base.
        estimates: by measure; None where nothing measured it.
        scored, failed: records.
    """

    label: str
    run: BenchRunRecord | None
    estimates: Mapping[str, Estimate | None]
    scored: int
    failed: int

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        return {
            "label": self.label,
            "run": None if self.run is None else self.run.id,
            "scored": self.scored,
            "failed": self.failed,
            "scores": {name: one and one.to_json() for name, one in self.estimates.items()},
        }


@dataclass(frozen=True)
class Change:
    """One measure of two runs over the records that both scored: B - A, paired."""

    name: str
    first: Estimate | None
    second: Estimate | None
    difference: Estimate | None

    @property
    def is_clear(self) -> bool:
        """Whether the interval of the difference leaves out 0."""
        one = self.difference
        return one is not None and one.half_width is not None and abs(one.value) > one.half_width

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        parts = {"first": self.first, "second": self.second, "difference": self.difference}
        return {name: one and one.to_json() for name, one in parts.items()} | {"is_clear": self.is_clear}


def table(runs: Sequence[tuple[BenchRunRecord, Results]]) -> tuple[Line, ...]:
    """A line for each run, and above the runs on one base and file a line for the base as it was before the edits.

    Raises:
        ComputeError: a stored measure is not finite.
    """
    groups: dict[str, list[tuple[BenchRunRecord, Results]]] = {}
    for run, results in runs:
        groups.setdefault(_setting(run), []).append((run, results))
    lines: list[Line] = []
    for group in groups.values():
        source = group[0][0].environment.get("base")
        label = "unedited" if len(groups) == 1 or not source else f"{source}, unedited"
        lines.append(_line(label, None, _before(group), 0))
        for run, results in group:
            after = [result.measures["after"] for result in results if result.status == SCORED]
            lines.append(_line(run.label, run, after, len(results) - len(after)))
    return tuple(lines)


def same_records(runs: Sequence[tuple[BenchRunRecord, Results]]) -> bool:
    """Whether all runs scored the same records."""
    return len({frozenset(by_record(results)) for _, results in runs}) <= 1


def compare(first: Results, second: Results) -> tuple[Change, ...]:
    """Every measure of two runs, paired over the records that both scored."""
    left, right = by_record(first), by_record(second)
    common = dict(enumerate(sorted(left.keys() & right.keys())))
    before = {number: left[key].measures["after"] for number, key in common.items()}
    after = {number: right[key].measures["after"] for number, key in common.items()}
    changes = intervals.compare(before, after, MEASURES)
    means = [intervals.summarise(list(rows.values()), MEASURES) for rows in (before, after)]
    return tuple(Change(name, means[0][name], means[1][name], changes[name]) for name in MEASURES)


def by_record(results: Results) -> dict[str, BenchResultRecord]:
    """The scored records by what they are about, wherever they stand in a file."""
    scored = (result for result in results if result.status == SCORED)
    return {canonical_json([result.case_id, dict(result.request)]): result for result in scored}


def _setting(run: BenchRunRecord) -> str:
    """What the scores of the unedited model depend on."""
    names = ("benchmark", "base", "dataset", "document_start", "teach")
    return canonical_json([run.settings.get(name) for name in names])


def _before(group: Sequence[tuple[BenchRunRecord, Results]]) -> list[Mapping[str, Any]]:
    """What was measured before the edits, each record once: the runs of a group measured the same."""
    rows: dict[str, dict[str, Any]] = {}
    for _, results in group:
        for key, result in by_record(results).items():
            measured = {name: value for name, value in result.measures["before"].items() if value is not None}
            rows[key] = {**measured, **rows.get(key, {})}
    return list(rows.values())


def _line(label: str, run: BenchRunRecord | None, rows: Sequence[Mapping[str, Any]], failed: int) -> Line:
    return Line(label, run, intervals.summarise(rows, MEASURES), len(rows), failed)
