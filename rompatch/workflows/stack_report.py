"""What ``verify --stack`` finds out: every patch alone and in the stack, drift, gates. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rompatch.errors import GateError
from rompatch.store.records import PatchRecord, StackRecord, VerificationRecord
from rompatch.workflows.gates import GateResult, finite, missed_reasons, relative_rise

if TYPE_CHECKING:
    from rompatch.verify.drift import Drift
    from rompatch.verify.evaluation import Evaluation, PromptChange
    from rompatch.verify.metrics import Scores

_LISTED = 5


@dataclass(frozen=True)
class PatchCheck:
    """One patch of a stack.

    Args:
        in_stack: its suite on the finished model.
        alone: the same suite with this patch alone; None where that was never scored.
        alone_run: number of the ledger's run of it alone; None where there is none.
        scored_now: whether it was scored alone for this check.
        changes: prompts alone ("before") and in the stack ("after"), worst first; empty where ``alone`` is None.
    """

    patch: PatchRecord
    in_stack: Evaluation
    alone: Evaluation | None
    alone_run: int | None
    scored_now: bool
    changes: tuple[PromptChange, ...]

    @property
    def loss(self) -> float | None:
        """S alone minus S in the stack; negative where it gained, None where one of them was not measured."""
        before, after = None if self.alone is None else self.alone.scores.s, self.in_stack.scores.s
        return None if before is None or after is None else before - after

    @property
    def lost(self) -> tuple[PromptChange, ...]:
        """Prompts that passed alone and fail in the stack, worst first."""
        return tuple(change for change in self.changes if change.before.passed and change.after.passed is False)

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        request = self.patch.header.request
        return {
            "id": self.patch.id,
            "subject": self.patch.subject,
            "target_new": None if request is None else request.target_new,
            "suite": self.in_stack.name,
            "source": self.in_stack.source,
            "untested": list(self.in_stack.untested),
            "document_start": self.in_stack.document_start,
            "alone": None if self.alone is None else self.alone.scores.to_json(),
            "alone_run": self.alone_run,
            "scored_now": self.scored_now,
            "in_stack": self.in_stack.scores.to_json(),
            "loss": self.loss,
            "lost": [{"alone": one.before.to_json(), "in_stack": one.after.to_json()} for one in self.lost],
            "prompts": [result.to_json() for result in self.in_stack.results],
        }


@dataclass(frozen=True)
class StackVerified:
    """A whole stack, checked.

    Args:
        stack: the stack at the revision that was scored.
        newest_revision: its revision at the end: another one where somebody changed it meanwhile.
        checks: its patches, the one that lost most first.
        alone, in_stack: mean scores over the patches; ``alone`` over those that were scored alone.
        drift: of the whole model; None where it was not asked for.
        drift_text: what it was measured on.
        gates: everything that was asked of it, and what was found.
        run: the ledger's record; None where it was not asked for.
        seconds: that scoring took.
    """

    stack: StackRecord
    newest_revision: int
    checks: tuple[PatchCheck, ...]
    alone: Scores
    in_stack: Scores
    drift: Drift | None
    drift_text: str | None
    gates: tuple[GateResult, ...]
    run: VerificationRecord | None
    seconds: float

    @property
    def name(self) -> str:
        """How messages and the log call it: "stack main, revision 3"."""
        return f"stack {self.stack.name}, revision {self.stack.revision}"

    @property
    def is_newest(self) -> bool:
        """Whether what was scored is still what the stack is."""
        return self.newest_revision == self.stack.revision

    @property
    def missed_gates(self) -> tuple[str, ...]:
        """The gates that were missed, in words."""
        return missed_reasons(self.gates, {check.patch.id: check.patch.label for check in self.checks})

    def check_gates(self) -> None:
        """Raises GateError (exit code 3) when a gate was missed."""
        missed = self.missed_gates
        if missed:
            more = f"; and {len(missed) - _LISTED} more" if len(missed) > _LISTED else ""
            raise GateError(
                f"The {self.name} misses {len(missed)} of its {len(self.gates)} gates.",
                found="; ".join(missed[:_LISTED]) + more,
                next_step="Revert the patches that are named, or edit those facts at another layer.",
                missed=missed,
            )

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        return {
            "stack": self.stack.name,
            "revision": self.stack.revision,
            "newest_revision": self.newest_revision,
            "run": None if self.run is None else self.run.id,
            "patches": [check.to_json() for check in self.checks],
            "alone": self.alone.to_json(),
            "in_stack": self.in_stack.to_json(),
            "drift": None if self.drift is None else drift_json(self.drift, self.drift_text),
            "gates": [result.to_json() for result in self.gates],
            "missed_gates": list(self.missed_gates),
            "seconds": round(self.seconds, 3),
        }


def drift_json(drift: Drift, text: str | None) -> dict[str, Any]:
    """Drift as JSON can say it: what is infinite as null."""
    return {
        "text": text,
        "tokens": drift.tokens,
        "perplexity_before": finite(drift.perplexity_before),
        "perplexity_after": finite(drift.perplexity_after),
        "rise": finite(relative_rise(drift)),
        "mean_kl": finite(drift.mean_kl),
    }
