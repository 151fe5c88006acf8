"""What a patch scored alone: its own suite, and the latest run of it in the ledger; else scored now."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rompatch.errors import SuiteError
from rompatch.store.records import PatchRecord, VerificationRecord
from rompatch.workflows.opened import OpenStore
from rompatch.workflows.verifying import suite_of

if TYPE_CHECKING:
    from rompatch.models import Base
    from rompatch.patch import Patch
    from rompatch.verify.evaluation import Evaluation
    from rompatch.verify.suite import Suite

_OF_OTHERS = ("neighbourhood", "attribute")
AT_ONCE = 16
"""Edits scored side by side: each takes memory for its hidden states."""


@dataclass(frozen=True)
class Alone:
    """A patch's scores without the other patches.

    Args:
        before: on the base; None where the ledger's run does not hold it.
        after: with the patch alone.
        run: number of the ledger's run they come from; None where they were scored now.
    """

    before: Evaluation | None
    after: Evaluation
    run: int | None = None


def own_suite(store: OpenStore, record: PatchRecord) -> Suite:
    """The suite that *record* was last verified with, whichever way; the atlas's where it never was. Reads only."""
    from rompatch.verify.suite import Suite

    for run in store.ledger.verifications(record.id):
        found = _evaluation(run, "after")
        if found is not None and found.results:
            prompts = tuple(result.prompt for result in found.results)
            return Suite(found.name, found.source, prompts, found.untested)
    return suite_of(record, None)


def recorded_alone(store: OpenStore, record: PatchRecord, suite: Suite) -> Alone | None:
    """The latest run of *record* alone with the prompts of *suite*; None where there is none. Reads only."""
    for run in store.ledger.verifications(record.id):
        if run.stack is not None or run.settings.get("patches") != [record.id]:
            continue
        after = _evaluation(run, "after")
        if after is not None and _answers(after, suite, record.header.document_start):
            return Alone(_evaluation(run, "before"), after, run.id)
    return None


def scored_alone(
    store: OpenStore, base: Base, wanted: Sequence[tuple[PatchRecord, Patch]], suites: Mapping[str, Suite]
) -> dict[str, Alone]:
    """Each patch of *wanted* scored alone now, many side by side; by patch id.

    Raises:
        BaseMismatchError: a patch was computed for another base.
        TargetError, SuiteError, ComputeError: a prompt cannot be scored.
    """
    from rompatch.workflows.scoring import before_and_after

    found: dict[str, Alone] = {}
    for start, document_start, group in _groups(wanted):

        def step(done: int, total: int, before: int = start, size: int = len(group)) -> None:
            store.reporter.step("scoring alone", before + size * done // total, len(wanted))

        pairs = before_and_after(
            base,
            [suites[record.id] for record, _ in group],
            [[patch] for _, patch in group],
            document_start=document_start,
            on_progress=step,
        )
        found |= {record.id: Alone(*pair) for (record, _), pair in zip(group, pairs, strict=True)}
    return found


def without_subjects(evaluation: Evaluation, subjects: Iterable[str]) -> Evaluation:
    """*evaluation* without its neighbourhood and attribute prompts about one of *subjects*, whose objects other patches
    change on purpose: neither keeping nor losing them says anything. ``untested`` names what was left out."""
    from rompatch.verify.evaluation import scores_of

    edited = [re.compile(rf"(?<!\w){re.escape(subject)}(?!\w)", re.IGNORECASE) for subject in subjects]
    kept = [
        result
        for result in evaluation.results
        if result.prompt.kind not in _OF_OTHERS or not any(one.search(result.prompt.text) for one in edited)
    ]
    if len(kept) == len(evaluation.results):
        return evaluation
    left_out = ", ".join(repr(result.prompt.text) for result in evaluation.results if result not in kept)
    note = f"left out, since other patches of the stack are about their subjects: {left_out}"
    return replace(evaluation, results=tuple(kept), scores=scores_of(kept), untested=(*evaluation.untested, note))


def _groups(
    wanted: Sequence[tuple[PatchRecord, Patch]],
) -> Iterable[tuple[int, bool, Sequence[tuple[PatchRecord, Patch]]]]:
    """(how many came before, document start, patches that have it), at most :data:`AT_ONCE` of them."""
    start = 0
    for document_start in (True, False):
        those = [pair for pair in wanted if pair[0].header.document_start is document_start]
        for first in range(0, len(those), AT_ONCE):
            group = those[first : first + AT_ONCE]
            yield start, document_start, group
            start += len(group)


def _evaluation(run: VerificationRecord, phase: str) -> Evaluation | None:
    """The prompts of *run*; None where they were recorded in a form that cannot be read any more."""
    from rompatch.verify.evaluation import Evaluation

    try:
        return Evaluation.from_json(run.prompts[phase])
    except (SuiteError, KeyError, TypeError, AttributeError):
        return None


def _answers(evaluation: Evaluation, suite: Suite, document_start: bool) -> bool:
    asked = {prompt for prompt in suite.prompts if prompt.kind != "generation"}
    return evaluation.document_start is document_start and {one.prompt for one in evaluation.results} == asked
