"""What ``tune`` may be told, and the frozen records that it answers with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rompatch.bench.tuning import FIRST_RUNG, Candidate, Rung, Score
from rompatch.verify.intervals import Estimate
from rompatch.workflows.opened import BaseSpec
from rompatch.workflows.statistics import AUTOMATIC

MEASURES = ("s", "es", "em", "ps", "ns")


@dataclass(frozen=True)
class TuneOptions:
    """What ``tune`` may be told.

    Args:
        layers: to be tried, from 0.
        grid: hyper-parameters to their values; every layer is tried with every combination.
        rung: records that every candidate is scored on; each rung after it has twice as many.
        limit: only the first so many records of the file.
        corpus: text for key statistics at all layers (:mod:`rompatch.compute.corpus`).
        tokens: of that text, or of what the model samples.
        statistics: "auto" samples text from the model for layers without statistics, "none" is the identity; None takes
            the best at hand, and a layer without any is refused.
        out: the preset to be written; an existing file only with *force*.
        spec, device, seed, document_start, precision, preset: as in
            :class:`rompatch.workflows.method_options.MethodOptions`.
    """

    layers: Iterable[int] = ()
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    rung: int = FIRST_RUNG
    limit: int | None = None
    corpus: str | None = None
    tokens: int | None = None
    statistics: str | None = None
    out: Path | None = None
    force: bool = False
    spec: BaseSpec | None = None
    device: str = "cpu"
    seed: int = 0
    document_start: bool | None = None
    precision: str = AUTOMATIC
    preset: Path | None = None


@dataclass(frozen=True)
class Standing:
    """How far a candidate came, and what it scored there.

    Args:
        run: id of its benchmark run; None where it never began.
        records: of its last rung; *scored* and *failed* of them.
        estimates: after the edits, by measure: "s", "es", "em", "ps", "ns", with 95 % intervals.
        seconds: mean time to compute an edit.
        dropped: why it is out for another reason than its scores.
    """

    candidate: Candidate
    records: int
    run: str | None = None
    scored: int = 0
    failed: int = 0
    estimates: Mapping[str, Estimate | None] = field(default_factory=dict)
    seconds: float | None = None
    dropped: str | None = None

    @property
    def score(self) -> Score:
        """What it is ranked by."""
        s, em = self.estimates.get("s"), self.estimates.get("em")
        return Score(None if s is None else s.value, None if em is None else em.value)

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        facts = {name: value for name, value in vars(self).items() if name not in ("candidate", "estimates")}
        candidate = {"label": self.candidate.label, "layer": self.candidate.layer}
        scores = {name: (one := self.estimates.get(name)) and one.to_json() for name in MEASURES}
        return {**candidate, "hparams": dict(self.candidate.hparams), **facts, "scores": scores}


@dataclass(frozen=True)
class Tuned:
    """What came of ``tune``.

    Args:
        dataset, sha256: the file of records.
        rungs: as they went.
        standings: every candidate, best first: those that came further before the others, those dropped last.
        preset: the best one's, as ``create --preset`` reads it.
        out: where it was written.
    """

    dataset: str
    sha256: str
    rungs: tuple[Rung, ...]
    standings: tuple[Standing, ...]
    preset: Mapping[str, Any]
    out: Path | None

    @property
    def best(self) -> Standing:
        """The winner."""
        return self.standings[0]

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        return {
            "dataset": self.dataset,
            "sha256": self.sha256,
            "rungs": [rung.to_json() for rung in self.rungs],
            "candidates": [standing.to_json() for standing in self.standings],
            "preset": dict(self.preset),
            "out": self.out and str(self.out),
        }
