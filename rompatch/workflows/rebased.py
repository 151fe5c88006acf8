"""What a rebase is told, and what became of each patch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rompatch.errors import ComputeError, PartialError, RompatchError
from rompatch.patch import BaseRef
from rompatch.store.records import PatchRecord, RevisionRecord
from rompatch.workflows.method_options import MethodOptions

if TYPE_CHECKING:
    from rompatch.verify.metrics import Scores

MADE, EXISTED, KNOWN, FAILED, PLANNED = "made", "existed", "known", "failed", "planned"


@dataclass(frozen=True)
class RebaseOptions(MethodOptions):
    """What ``rebase`` may be told beside method and device. What is not said is taken from each patch.

    Args:
        stack: the stack to be recomputed; None: the one in force.
        into: name of the stack for the new patches; None: made of the old one's and the new base's.
        dtype, module: how the new base is loaded.
        keep_known: recompute also what the new base knows already.
        scores: score old and new patches.
        dry_run: ask the new base what it knows, and stop there.
        message, reason: of the revision.
    """

    stack: str | None = None
    into: str | None = None
    dtype: str | None = None
    module: str | None = None
    keep_known: bool = False
    scores: bool = True
    dry_run: bool = False
    message: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Answer:
    """What the new base itself says to a fact.

    Args:
        text: its greedy continuation of the prompt.
        new, true: probabilities of the objects (geometric mean over an object's tokens); None: no such object.
        knows: whether it says the new object: every token of it is the likeliest one.
    """

    text: str
    new: float
    true: float | None
    knows: bool


@dataclass(frozen=True)
class RebasedPatch:
    """What became of one patch.

    Args:
        status: "made", "existed" (the store had it), "known" (nothing to do), "failed", or "planned" (``dry_run``).
        new: the patch on the new base.
        answer: what the new base says; None where it could not be asked.
        before: scores of the old patch alone on the old base; None where they could not be had.
        after: scores of the new patch alone on the new base.
    """

    old: PatchRecord
    status: str
    new: PatchRecord | None = None
    answer: Answer | None = None
    before: Scores | None = None
    after: Scores | None = None
    error: RompatchError | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        return {
            "old": self.old.id,
            "subject": self.old.subject,
            "status": self.status,
            "new": None if self.new is None else self.new.id,
            "answer": None if self.answer is None else dict(vars(self.answer)),
            "before": None if self.before is None else self.before.to_json(),
            "after": None if self.after is None else self.after.to_json(),
            "error_kind": None if self.error is None else type(self.error).__name__,
            "error": None if self.error is None else str(self.error),
        }


@dataclass(frozen=True)
class Rebased:
    """A stack recomputed for another base.

    Args:
        stack: the old stack, as it was and is.
        into: the stack of the new patches; *revision* is None where nothing was put onto it now.
    """

    stack: str
    old_base: BaseRef
    new_base: BaseRef
    into: str
    patches: tuple[RebasedPatch, ...]
    revision: RevisionRecord | None = None

    def count(self, status: str) -> int:
        """How many patches came out so."""
        return sum(one.status == status for one in self.patches)

    def check(self) -> None:
        """Raises ComputeError where every patch failed, PartialError (exit code 3) where some did."""
        failed = [one for one in self.patches if one.status == FAILED]
        if not failed:
            return
        reason = f"{failed[0].old.label}: {failed[0].error}"
        if len(failed) == len(self.patches):
            raise ComputeError(
                f"No patch of stack {self.stack!r} could be recomputed.",
                found=reason,
                next_step="Mend what the errors name, or rebase onto another base; the same command tries them again.",
            )
        raise PartialError(
            f"{len(failed)} of the {len(self.patches)} patches of stack {self.stack!r} failed; the others are done.",
            found=reason,
            next_step="The same command tries them again; what is done is skipped.",
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        return {
            "stack": self.stack,
            "old_base": vars(self.old_base),
            "new_base": vars(self.new_base),
            "into": self.into,
            **{status: self.count(status) for status in (MADE, EXISTED, KNOWN, FAILED, PLANNED)},
            "patches": [one.to_json() for one in self.patches],
            "revision": None if self.revision is None else self.revision.number,
        }
