"""What became of each fact of a file, and of the file as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rompatch.errors import ComputeError, PartialError, RequestError, RompatchError
from rompatch.facts.fact import Fact
from rompatch.store.records import RevisionRecord

MADE, EXISTED, REPEATED, FAILED, PLANNED = "made", "existed", "repeated", "failed", "planned"


@dataclass(frozen=True)
class FactOutcome:
    """What became of one line.

    Args:
        number: the line's, from 1.
        status: "made", "existed" (the store had it), "repeated" (an earlier line asks for the same), "failed", or
            "planned" (``dry_run``).
        fact: None where the line holds none.
        prompt: the filled template, once it was chosen.
        patch_id: of the patch that was made or existed.
        repeats: number of the earlier line.
        field: what the failure is about, where it is about one field.
        error: why it failed.
    """

    number: int
    status: str
    fact: Fact | None = None
    prompt: str | None = None
    patch_id: str | None = None
    repeats: int | None = None
    field: str | None = None
    error: RompatchError | None = None

    @classmethod
    def failure(cls, number: int, error: RompatchError, fact: Fact | None = None) -> FactOutcome:
        """A line that failed because of *error*."""
        return cls(number, FAILED, fact, field=error.facts.get("field"), error=error)

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        fact = self.fact
        return {
            "line": self.number,
            "status": self.status,
            "name": None if fact is None else fact.name,
            "subject": None if fact is None else fact.subject,
            "relation": None if fact is None else fact.relation or None,
            "object": None if fact is None else fact.target,
            "prompt": self.prompt,
            "id": self.patch_id,
            "repeats": self.repeats,
            "field": self.field,
            "error_kind": None if self.error is None else type(self.error).__name__,
            "error": None if self.error is None else str(self.error),
        }


@dataclass(frozen=True)
class ManyCreated:
    """What became of a file of facts.

    Args:
        source: what it is called.
        setting: base, weight and hyper-parameters that all patches share; None where no line held a fact.
        outcomes: one a line, in the file's order.
        revision: set where patches were applied.
        out: the file that the failed lines were written to.
    """

    source: str
    setting: Mapping[str, Any] | None
    outcomes: tuple[FactOutcome, ...]
    revision: RevisionRecord | None = None
    out: Path | None = None

    def count(self, status: str) -> int:
        """How many lines came out so."""
        return sum(one.status == status for one in self.outcomes)

    @property
    def failures(self) -> tuple[FactOutcome, ...]:
        """The lines that failed."""
        return tuple(one for one in self.outcomes if one.status == FAILED)

    @property
    def patch_ids(self) -> tuple[str, ...]:
        """Ids of the patches that were made or existed, each once, in the order of the lines."""
        return tuple(dict.fromkeys(one.patch_id for one in self.outcomes if one.patch_id is not None))

    def check(self) -> None:
        """Raises ComputeError or RequestError where every line failed, PartialError (exit code 3) where some did."""
        failures = self.failures
        if not failures:
            return
        first = failures[0]
        reason = f"line {first.number}: {first.error}"
        if len(failures) == len(self.outcomes):
            kind = RequestError if all(isinstance(one.error, RequestError) for one in failures) else ComputeError
            problem = kind(f"None of the {len(failures)} lines of {self.source!r} gave a patch.", found=reason)
            problem.exit_code = 1
            raise problem
        raise PartialError(
            f"{len(failures)} of the {len(self.outcomes)} lines of {self.source!r} failed; the others are done.",
            found=reason,
            next_step="Correct them and give the same command again: what is done is skipped.",
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        return {
            "source": self.source,
            "setting": None if self.setting is None else dict(self.setting),
            "lines": len(self.outcomes),
            **{status: self.count(status) for status in (MADE, EXISTED, REPEATED, FAILED, PLANNED)},
            "facts": [one.to_json() for one in self.outcomes],
            "applied_as_revision": None if self.revision is None else self.revision.number,
            "out": None if self.out is None else str(self.out),
        }
