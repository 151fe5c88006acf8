"""verify --stack: every patch of the active stack on the finished model, against what each scored alone, and drift."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rompatch.errors import ConflictError, RequestError
from rompatch.store.records import PatchRecord, ScoreRecord, StackRecord, VerificationRecord
from rompatch.workflows.baselines import Alone, own_suite, recorded_alone, scored_alone, without_subjects
from rompatch.workflows.gates import (
    GateResult,
    check_drift,
    check_limits,
    check_loss,
    check_rewrites,
    check_scores,
    finite,
)
from rompatch.workflows.opened import BaseSpec, OpenStore
from rompatch.workflows.stack_report import PatchCheck, StackVerified, drift_json
from rompatch.workflows.verifying import environment, record_patch, score_rows

if TYPE_CHECKING:
    from rompatch.apply.session import PatchedModel
    from rompatch.models import Base
    from rompatch.patch import Patch
    from rompatch.verify.drift import Drift
    from rompatch.verify.evaluation import Evaluation
    from rompatch.verify.metrics import Scores
    from rompatch.verify.suite import Suite


@dataclass(frozen=True)
class StackVerifyOptions:
    """What ``verify --stack`` may be told.

    Args:
        gates: least scores of every patch in the stack by name ("s", "es", "ps", "ns"), as fractions. Without "es"
            every rewrite prompt must pass.
        max_loss: what S of a patch may lose from alone to in the stack, as a fraction.
        max_drift: what perplexity may rise by, as a fraction of what it was.
        baseline: score patches alone now that the ledger has no such run of.
        drift: measure it.
        drift_file: a text file to measure it on, instead of the text that comes with rompatch.
        spec: the base, where it is not the patches' own; or by its parts, each None being what the patches' own has:
        model, dtype, module: as ``--model``, ``--dtype`` and ``--module``.
        record: write the run to the ledger, and those of patches that were scored alone.
    """

    gates: Mapping[str, float] = field(default_factory=dict)
    max_loss: float | None = None
    max_drift: float | None = None
    baseline: bool = True
    drift: bool = True
    drift_file: Path | None = None
    spec: BaseSpec | None = None
    model: str | None = None
    dtype: str | None = None
    module: str | None = None
    device: str = "cpu"
    record: bool = True


@dataclass(frozen=True)
class Loaded:
    """The stack as it was when the check began, or as it would be; whatever becomes of it meanwhile."""

    stack: StackRecord
    records: tuple[PatchRecord, ...]
    patches: Mapping[str, Patch]
    suites: Mapping[str, Suite]


def verify_stack(store: OpenStore, options: StackVerifyOptions | None = None) -> StackVerified:
    """Score every patch of the stack in force on the finished model. Writes one run to the ledger, and one for each
    patch that was scored alone (unless told not to), all of them at the end or none.

    Raises:
        ConflictError: the stack is empty.
        StoreError, PatchFileError: a patch's file is missing or damaged.
        BaseMismatchError: the loaded base is not the patches'.
        SuiteError: the text for drift cannot be read, or a suite does not fit the model.
        ComputeError: the finished model answers NaN.
        RequestError: a gate that is out of range, or cannot be told.
    """
    options = options or StackVerifyOptions()
    _check(options)
    text = drift_text(options)
    loaded = _load(store)
    _base(store, loaded, options)  # loading it is not scoring
    started = time.monotonic()
    scored = score_stack(store, loaded, options, text)
    seconds = time.monotonic() - started
    run, newest, checks = None, _newest(store, loaded.stack), scored.checks
    if options.record:
        with store.ledger.transaction():
            newest = _newest(store, loaded.stack)
            run, checks = record_scored(store, loaded, scored, newest)
    if newest != loaded.stack.revision:
        store.reporter.note(
            f"stack {loaded.stack.name} was changed meanwhile: scored at revision {loaded.stack.revision}, "
            f"now at {newest}"
        )
    return report(loaded, scored, checks, run, newest, seconds)


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
        BaseMismatchError, SuiteError, ComputeError: as :func:`verify_stack`.
    """
    records = [one for one in loaded.records if only is None or one.id in only]
    base = _base(store, loaded, options)
    in_stack, drift = _finished(store, base, loaded, records, text[0])
    alone = {record.id: recorded_alone(store, record, loaded.suites[record.id]) for record in records}
    missing = [record for record in records if alone[record.id] is None] if options.baseline else []
    new = scored_alone(store, base, [(one, loaded.patches[one.id]) for one in missing], loaded.suites)
    checks = [_check_of(one, in_stack[one.id], new.get(one.id) or alone[one.id], loaded) for one in records]
    return Scored(tuple(checks), drift, text[1], _gates(checks, drift, options), new)


def _base(store: OpenStore, loaded: Loaded, options: StackVerifyOptions) -> Base:
    spec = options.spec or store.spec_for(loaded.records, options.model, options.dtype, options.module)
    return store.base(spec, device=options.device)


def record_scored(
    store: OpenStore, loaded: Loaded, scored: Scored, newest: int
) -> tuple[VerificationRecord, tuple[PatchCheck, ...]]:
    """Write the run to the ledger, and one for each patch that was scored alone; the checks with those runs' numbers.
    Writes; call it inside a transaction."""
    known = {record.id: record for record in loaded.records}
    numbers = {one: _record_alone(store, known[one], alone).id for one, alone in scored.alone.items()}
    checks = tuple(_numbered(check, numbers.get(check.patch.id)) for check in scored.checks)
    return _record(store, loaded, checks, scored.drift, scored.drift_text, scored.gates, newest), checks


def report(
    loaded: Loaded,
    scored: Scored,
    checks: Sequence[PatchCheck],
    run: VerificationRecord | None,
    newest: int,
    seconds: float,
) -> StackVerified:
    """Everything in one value, the patch that lost most first."""
    means = (
        _mean([check.alone for check in checks if check.alone is not None]),
        _mean([check.in_stack for check in checks]),
    )
    name = None if scored.drift is None else scored.drift_text
    ordered = tuple(sorted(checks, key=_badness))
    return StackVerified(loaded.stack, newest, ordered, *means, scored.drift, name, scored.gates, run, seconds)


def _check(options: StackVerifyOptions) -> None:
    check_limits(options.gates, options.max_loss, options.max_drift)
    if not options.drift and (options.max_drift is not None or options.drift_file is not None):
        raise RequestError(
            "Drift is not measured, so there is nothing to compare or to read.",
            expected="either no drift, or a greatest drift and a text for it",
            next_step="Leave one of them out.",
        )


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


def _load(store: OpenStore) -> Loaded:
    """Every file is read and checked here, before a model is loaded."""
    stack = store.stack()
    records = () if stack is None else store.ledger.members(stack, stack.revision)
    if stack is None or not records:
        raise ConflictError("The stack is empty, so there is nothing to verify.", next_step="Apply a patch first.")
    return load_stack(store, stack, records)


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


def _numbered(check: PatchCheck, number: int | None) -> PatchCheck:
    return check if number is None else replace(check, alone_run=number)


def _badness(check: PatchCheck) -> tuple[float, int, float, str]:
    """What lost most comes first; among equals what lost more prompts, then what scores less."""
    s = check.in_stack.scores.s
    return -(check.loss or 0.0), -len(check.lost), 2.0 if s is None else s, check.patch.id


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


def _mean(evaluations: Sequence[Evaluation]) -> Scores:
    from rompatch.verify.metrics import mean_scores

    return mean_scores([one.scores for one in evaluations])


def _newest(store: OpenStore, stack: StackRecord) -> int:
    return store.ledger.stack(stack.name).revision


def _record_alone(store: OpenStore, record: PatchRecord, alone: Alone) -> VerificationRecord:
    assert alone.before is not None  # it was scored now
    return record_patch(store, record, alone.before, alone.after, [record.id], None)


def _record(
    store: OpenStore,
    loaded: Loaded,
    checks: Sequence[PatchCheck],
    drift: Drift | None,
    text_name: str,
    results: Sequence[GateResult],
    newest: int,
) -> VerificationRecord:
    scores = score_rows("post", _mean([check.in_stack for check in checks]))
    if drift is not None:
        scores += [
            ScoreRecord("pre", "perplexity", finite(drift.perplexity_before), drift.tokens),
            ScoreRecord("post", "perplexity", finite(drift.perplexity_after), drift.tokens),
            ScoreRecord("post", "mean_kl", finite(drift.mean_kl), drift.tokens),
        ]
    prompts: dict[str, Any] = {
        "patches": {
            check.patch.id: {"alone_run": check.alone_run, "loss": check.loss, "in_stack": check.in_stack.to_json()}
            for check in checks
        },
        "drift": None if drift is None else drift_json(drift, text_name),
        "gates": [result.to_json() for result in results],
    }
    return store.ledger.record_verification(
        f"stack {loaded.stack.name}, revision {loaded.stack.revision}",
        source="stack",
        scores=scores,
        stack=loaded.stack.name,
        revision=loaded.stack.revision,
        prompts=prompts,
        settings={"in_stack": True, "patches": [one.id for one in loaded.records], "newest_revision": newest},
        environment=environment(),
    )
