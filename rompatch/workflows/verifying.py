"""verify: a patch scored before and after, on the suite that the atlas or a file offers; recorded in the ledger."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rompatch.errors import GateError
from rompatch.store.records import PatchRecord, ScoreRecord, StackRecord, VerificationRecord
from rompatch.versions import library_versions
from rompatch.workflows.gates import GateResult, check_limits, check_scores, missed_reasons
from rompatch.workflows.opened import BaseOptions, OpenStore

if TYPE_CHECKING:
    from rompatch.models import Base
    from rompatch.patch import Patch
    from rompatch.verify.evaluation import Evaluation, PromptChange
    from rompatch.verify.metrics import Scores
    from rompatch.verify.suite import Suite

_COUNT_OF = {"es": "n_rewrite", "em": "n_rewrite", "ps": "n_paraphrase", "pm": "n_paraphrase"} | {
    "ns": "n_neighbourhood",
    "nm": "n_neighbourhood",
    "attribute_score": "n_attribute",
    "attribute_magnitude": "n_attribute",
}


@dataclass(frozen=True)
class VerifyOptions(BaseOptions):
    """What ``verify`` may be told beside the base.

    Args:
        suite: a file (one COUNTERFACT record, or rompatch's own form) instead of the atlas.
        in_stack: score the patch together with the whole active stack, not alone.
        gates: least scores after the edit by name ("s", "es", "ps", "ns"), as fractions.
        record: write the run to the ledger.
    """

    suite: Path | None = None
    in_stack: bool = False
    gates: Mapping[str, float] = field(default_factory=dict)
    record: bool = True


@dataclass(frozen=True)
class Verified:
    """The scores before and after, every prompt with its numbers, the gates that were missed (in words), and all gates
    with what was measured for them."""

    patch: PatchRecord
    before: Evaluation
    after: Evaluation
    changes: tuple[PromptChange, ...]
    missed_gates: tuple[str, ...]
    run: VerificationRecord | None
    gates: tuple[GateResult, ...] = ()

    @property
    def worst(self) -> tuple[PromptChange, ...]:
        """Prompts that fail after the edit, worst first."""
        return tuple(change for change in self.changes if change.after.passed is False)

    def check_gates(self) -> None:
        """Raises GateError (exit code 3) when a gate was missed."""
        if self.missed_gates:
            raise GateError(
                f"Patch {self.patch.label} misses {len(self.missed_gates)} of its gates.",
                found="; ".join(self.missed_gates),
                next_step="See the failing prompts, then edit at another layer or with another prompt.",
                patch_id=self.patch.id,
            )

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        return {
            "id": self.patch.id,
            "run": None if self.run is None else self.run.id,
            "suite": self.after.name,
            "source": self.after.source,
            "untested": list(self.after.untested),
            "document_start": self.after.document_start,
            "before": self.before.scores.to_json(),
            "after": self.after.scores.to_json(),
            "prompts": [change.to_json() for change in self.changes],
            "missed_gates": list(self.missed_gates),
        }


def verify(store: OpenStore, name: str, options: VerifyOptions | None = None) -> Verified:
    """Score the patch that *name* means, before and after. Writes one run to the ledger (unless told not to).

    Raises:
        PatchNotFoundError, AmbiguousIdError: the name means no patch, or several.
        SuiteError: the suite cannot be read or does not fit the model.
        BaseMismatchError: the loaded base is not the patch's.
        RequestError: an unknown gate.
    """
    options = options or VerifyOptions()
    check_limits(options.gates)
    record = store.resolve(name)
    suite = suite_of(record, options.suite)
    document_start = record.header.document_start
    stack = store.stack() if options.in_stack else None
    members = _members(store, record, stack)
    patches = [store.blobs.get(store.resolve(patch_id).id) for patch_id in members]  # before the base is loaded
    before, after = _evaluate(store, options.base_of(store, [record]), patches, suite, document_start)
    run = record_patch(store, record, before, after, members, stack) if options.record else None
    results = check_scores(after.scores, options.gates, record.id)
    return Verified(record, before, after, _changes(before, after), missed_reasons(results, {}), run, results)


def suite_of(record: PatchRecord, path: Path | None) -> Suite:
    """The suite in *path*, else the atlas's for the patch's request.

    Raises:
        SuiteError: the file is about another subject, or the patch has no request and no file was named.
    """
    from rompatch.errors import SuiteError
    from rompatch.verify.building import load_suite, suite_for

    if path is None and record.header.request is None:
        raise SuiteError(
            f"Patch {record.label} was imported and answers no request, so no suite can be built for it.",
            next_step=f"Name one: `rompatch verify {record.short_id} --suite FILE`; `verify --stack` then uses it.",
            patch_id=record.id,
        )
    if path is None:
        return suite_for(record.request)
    suite = load_suite(path)
    rewrites = () if record.header.request is None else suite.of_kind("rewrite")
    if rewrites and not any(record.subject in prompt.text for prompt in rewrites):
        raise SuiteError(
            f"The suite {path} is not about patch {record.label}.",
            expected=f"a rewrite prompt that names {record.subject!r}",
            found=repr(rewrites[0].text),
            next_step="Name the patch that the suite belongs to.",
        )
    return suite


def _members(store: OpenStore, record: PatchRecord, stack: StackRecord | None) -> list[str]:
    """Ids of *record* and of the patches in *stack* at its revision, whatever has become of it since."""
    others = () if stack is None else store.ledger.members(stack, stack.revision)
    return sorted({record.id, *(member.id for member in others)})


def _evaluate(
    store: OpenStore, base: Base, patches: list[Patch], suite: Suite, document_start: bool
) -> tuple[Evaluation, Evaluation]:
    from rompatch.workflows.scoring import before_and_after

    (found,) = before_and_after(
        base,
        [suite],
        [patches],
        document_start=document_start,
        on_progress=lambda done, total: store.reporter.step("scoring", done, total),
    )
    return found


def _changes(before: Evaluation, after: Evaluation) -> tuple[PromptChange, ...]:
    from rompatch.verify.evaluation import compare

    return compare(before, after)


def record_patch(
    store: OpenStore,
    record: PatchRecord,
    before: Evaluation,
    after: Evaluation,
    members: list[str],
    stack: StackRecord | None,
) -> VerificationRecord:
    """Write a run of *record* with the patches *members* in the model (those of *stack*, or itself alone). Writes."""
    scores = [*score_rows("pre", before.scores), *score_rows("post", after.scores)]
    return store.ledger.record_verification(
        after.name,
        source=after.source,
        scores=scores,
        patch_id=record.id,
        stack=None if stack is None else stack.name,
        revision=None if stack is None else stack.revision,
        prompts={"before": before.to_json(), "after": after.to_json()},
        settings={"document_start": after.document_start, "in_stack": stack is not None, "patches": members},
        environment=environment(),
    )


def environment() -> dict[str, str]:
    """What a run is recorded with: library versions and machine."""
    return {**library_versions(), "python": platform.python_version(), "machine": platform.machine()}


def score_rows(phase: str, scores: Scores) -> list[ScoreRecord]:
    """*scores* as the ledger keeps them."""
    values: dict[str, float | int | None] = scores.to_json()
    rows = [
        ScoreRecord(phase, metric, None if values[metric] is None else float(values[metric] or 0), int(values[n] or 0))
        for metric, n in _COUNT_OF.items()
    ]
    total = sum(int(values[n] or 0) for n in ("n_rewrite", "n_paraphrase", "n_neighbourhood"))
    return [*rows, ScoreRecord(phase, "s", scores.s, total)]
