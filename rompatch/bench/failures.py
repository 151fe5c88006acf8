"""The prompts that fail after an edit, and the records that have most of them. Pure, no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rompatch.store.bench import FAILED, BenchResultRecord

_JUDGED = ("rewrite", "paraphrase", "neighbourhood")


@dataclass(frozen=True)
class FailedPrompt:
    """A prompt that does not come out as wanted after the edit.

    Args:
        wanted, other: the object that should be the likelier one, and the one that is.
        margin: nats by which *wanted* leads (it trails: below 0); None where only exact success is counted.
        margin_before: the same before the edit.
        failed_before: it failed on the unedited model already (such neighbours are left out).
    """

    kind: str
    text: str
    wanted: str
    other: str | None
    margin: float | None
    margin_before: float | None
    failed_before: bool

    @property
    def is_fault(self) -> bool:
        """Whether the edit is to blame: a neighbour that failed before is no loss."""
        return self.kind != "neighbourhood" or not self.failed_before


@dataclass(frozen=True)
class FailedRecord:
    """A record that failed, or has prompts that do. ``severity``: share of failing rewrite prompts, plus that of
    paraphrases, plus that of neighbours that the edit broke; records that could not be scored have none."""

    position: int
    case_id: int | None
    request: Mapping[str, Any]
    error: str | None
    severity: float | None
    prompts: tuple[FailedPrompt, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        return {**vars(self), "prompts": [dict(vars(prompt)) for prompt in self.prompts]}


def worst(results: Sequence[BenchResultRecord]) -> tuple[FailedRecord, ...]:
    """Records with something wrong, worst first: those that could not be scored, then by severity and margin.

    *results* come with their prompts (``Ledger.bench_results(run_id, prompts=True)``).
    """
    found = [one for one in map(_record, results) if one.error is not None or one.prompts]
    return tuple(sorted(found, key=_order))


def _order(record: FailedRecord) -> tuple[bool, float, float, int]:
    margins = [prompt.margin for prompt in record.prompts if prompt.margin is not None]
    return (record.error is None, -(record.severity or 0.0), min(margins, default=0.0), record.position)


def _record(result: BenchResultRecord) -> FailedRecord:
    asked = list((result.prompts or {}).get("prompts", ()))
    failing = sorted(_failing(asked), key=lambda prompt: (_JUDGED.index(prompt.kind), prompt.margin or 0.0))
    blamed = tuple(prompt for prompt in failing if prompt.is_fault)
    error = result.error if result.status == FAILED else None
    severity = None if error is not None else sum(_share(kind, asked, blamed) for kind in _JUDGED)
    return FailedRecord(result.position, result.case_id, result.request, error, severity, blamed)


def _share(kind: str, asked: Sequence[Mapping[str, Any]], blamed: Sequence[FailedPrompt]) -> float:
    n = sum(prompt["kind"] == kind for prompt in asked)
    return sum(prompt.kind == kind for prompt in blamed) / n if n else 0.0


def _failing(asked: Sequence[Mapping[str, Any]]) -> Iterator[FailedPrompt]:
    for prompt in asked:
        if prompt["kind"] in _JUDGED and not _passed(prompt, "after"):
            new, true = prompt["target_new"], prompt["target_true"]
            wanted, other = (true, new) if prompt["kind"] == "neighbourhood" else (new, true)
            yield FailedPrompt(
                kind=prompt["kind"],
                text=prompt["text"],
                wanted=wanted,
                other=other,
                margin=prompt["after"]["margin"],
                margin_before=prompt["before"]["margin"],
                failed_before=not _passed(prompt, "before"),
            )


def _passed(prompt: Mapping[str, Any], phase: str) -> bool:
    """By the likelier object; where there is no true one, by the likeliest tokens."""
    passed = prompt[phase]["passed"]
    return bool(prompt[phase]["new_exact"] if passed is None else passed)
