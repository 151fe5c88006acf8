"""The patches of a stack scored on the finished model, against what each scored alone, and drift. Writes nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rompatch.store.records import PatchRecord, StackRecord
from rompatch.workflows.baselines import Alone, own_suite, recorded_alone, scored_alone, without_subjects
from rompatch.workflows.gates import (
    GateResult,
    check_drift,
    check_loss,
    check_rewrites,
    check_scores,
)
from rompatch.workflows.opened import BaseOptions, OpenStore
from rompatch.workflows.stack_report import PatchCheck

if TYPE_CHECKING:
    from rompatch.apply.session import PatchedModel
    from rompatch.models import Base
    from rompatch.patch import Patch
    from rompatch.verify.drift import Drift
    from rompatch.verify.evaluation import Evaluation
    from rompatch.verify.suite import Suite


@dataclass(frozen=True)
class StackVerifyOptions(BaseOptions):
    """What ``verify --stack`` may be told beside the base.

    Args:
        gates: least scores of every patch in the stack by name ("s", "es", "ps", "ns"), as fractions. Without "es"
            every rewrite prompt must pass.
        max_loss: what S of a patch may lose from alone to in the stack, as a fraction.
        max_drift: what perplexity may rise by, as a fraction of what it was.
        baseline: score patches alone now that the ledger has no such run of.
        drift: measure it.
        drift_file: a text file to measure it on, instead of the text that comes with rompatch.
        record: write the run to the ledger, and those of patches that were scored alone.
    """

    gates: Mapping[str, float] = field(default_factory=dict)
    max_loss: float | None = None
    max_drift: float | None = None
    baseline: bool = True
    drift: bool = True
    drift_file: Path | None = None
    record: bool = True


@dataclass(frozen=True)
class Loaded:
    """The stack as it was when the check began, or as it would be; whatever becomes of it meanwhile."""

    stack: StackRecord
    records: tuple[PatchRecord, ...]
    patches: Mapping[str, Patch]
    suites: Mapping[str, Suite]


@dataclass(frozen=True)
class Scored:
    """What was measured: a check for each patch that was scored, drift, gates; and what was scored alone for it."""

    checks: tuple[PatchCheck, ...]
    drift: Drift | None
    drift_text: str
    gates: tuple[GateResult, ...]
    alone: Mapping[str, Alone]


def load_stack(store: OpenStore, stack: StackRecord, records: Sequence[PatchRecord]) -> Loaded:
    """The patches *records* with their suites, every file read and checked. Reads only."""
    patches = {record.id: store.blobs.get(record.id) for record in records}
    return Loaded(stack, tuple(records), patches, {record.id: own_suite(store, record) for record in records})


def drift_text(options: StackVerifyOptions) -> tuple[str | None, str]:
    """The text that drift is measured on, None where it is not to be measured; and its name.

    Raises:
        SuiteError: the file cannot be read.
    """
    from rompatch.verify.held_out import BUILT_IN, built_in_text, read_text

    if not options.drift:
        return None, BUILT_IN
    if options.drift_file is None:
        return built_in_text(), BUILT_IN
    return read_text(options.drift_file), str(options.drift_file)


def score_stack(
    store: OpenStore,
    loaded: Loaded,
    options: StackVerifyOptions,
    text: tuple[str | None, str],
    only: Collection[str] | None = None,
) -> Scored:
    """Score the patches of a stack on the finished model. Writes nothing.

    Args:
        text: what drift is measured on (None: not), and its name.
        only: ids of the patches to score; None: all of them.

    Raises:
        BaseMismatchError, SuiteError, ComputeError: as :func:`rompatch.workflows.verifying_stacks.verify_stack`.
    """
    records = [one for one in loaded.records if only is None or one.id in only]
    base = options.base_of(store, loaded.records)
    in_stack, drift = _finished(store, base, loaded, records, text[0])
    alone = {record.id: recorded_alone(store, record, loaded.suites[record.id]) for record in records}
    missing = [record for record in records if alone[record.id] is None] if options.baseline else []
    new = scored_alone(store, base, [(one, loaded.patches[one.id]) for one in missing], loaded.suites)
    checks = [_check_of(one, in_stack[one.id], new.get(one.id) or alone[one.id], loaded) for one in records]
    return Scored(tuple(checks), drift, text[1], _gates(checks, drift, options), new)


def _finished(
    store: OpenStore, base: Base, loaded: Loaded, records: Sequence[PatchRecord], text: str | None
) -> tuple[dict[str, Evaluation], Drift | None]:
    """The suites of *records* on the finished model, by patch id, and its drift."""
    from rompatch.apply.session import PatchedModel
    from rompatch.workflows.scoring import evaluate_side_by_side, try_out

    try_out(base)
    found: dict[str, Evaluation] = {}
    with PatchedModel(base) as patched:
        patched.activate(loaded.patches.values())
        for document_start in (True, False):
            ids = [one.id for one in records if one.header.document_start is document_start]
            if not ids:
                continue
            suites = [loaded.suites[one] for one in ids]
            scored = evaluate_side_by_side(
                base.model,
                base.tokenizer,
                suites,
                document_start,
                lambda done, total: store.reporter.step("scoring the stack", done, total),
            )
            found |= dict(zip(ids, scored, strict=True))
        patched.restore()
        drift = None if text is None else _drift(store, base, patched, loaded, text)
    return found, drift


def _drift(store: OpenStore, base: Base, patched: PatchedModel, loaded: Loaded, text: str) -> Drift:
    from rompatch.verify.drift import measure_drift
    from rompatch.verify.held_out import DRIFT_TOKENS

    @contextmanager
    def edited() -> Iterator[None]:
        patched.activate(loaded.patches.values())
        try:
            yield
        finally:
            patched.restore()

    return measure_drift(
        base.model,
        base.tokenizer,
        [text],
        edited,
        document_start=any(record.header.document_start for record in loaded.records),
        max_tokens=DRIFT_TOKENS,
        on_progress=lambda done, total: store.reporter.step("measuring drift", done, total),
    )


def _check_of(record: PatchRecord, in_stack: Evaluation, alone: Alone | None, loaded: Loaded) -> PatchCheck:
    from rompatch.verify.evaluation import compare

    others = {other.subject for other in loaded.records} - {record.subject}
    in_stack = without_subjects(in_stack, others)
    if alone is None:
        return PatchCheck(record, in_stack, None, None, False, ())
    after = without_subjects(alone.after, others)
    return PatchCheck(record, in_stack, after, alone.run, alone.run is None, compare(after, in_stack))


def _gates(checks: Sequence[PatchCheck], drift: Drift | None, options: StackVerifyOptions) -> tuple[GateResult, ...]:
    found: list[GateResult] = []
    for check in checks:
        if "es" not in options.gates:
            found.append(check_rewrites(check.in_stack, check.patch.id))
        found += check_scores(check.in_stack.scores, options.gates, check.patch.id)
        if options.max_loss is not None:
            found.append(check_loss(check.loss, options.max_loss, check.patch.id))
    if options.max_drift is not None:
        found.append(check_drift(drift, options.max_drift))
    return tuple(found)
