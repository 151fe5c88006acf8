"""What was scored of a stack becomes a run in the ledger, and everything about it one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rompatch.store.records import PatchRecord, ScoreRecord, VerificationRecord
from rompatch.workflows.baselines import Alone
from rompatch.workflows.gates import finite
from rompatch.workflows.opened import OpenStore
from rompatch.workflows.stack_report import PatchCheck, StackVerified, drift_json
from rompatch.workflows.stack_scoring import Loaded, Scored
from rompatch.workflows.verifying import environment, record_patch, score_rows

if TYPE_CHECKING:
    from rompatch.verify.evaluation import Evaluation
    from rompatch.verify.metrics import Scores


def record_scored(
    store: OpenStore, loaded: Loaded, scored: Scored, newest: int
) -> tuple[VerificationRecord, tuple[PatchCheck, ...]]:
    """Write the run to the ledger, and one for each patch that was scored alone; the checks with those runs' numbers.
    Writes; call it inside a transaction."""
    known = {record.id: record for record in loaded.records}
    numbers = {one: _record_alone(store, known[one], alone).id for one, alone in scored.alone.items()}
    checks = tuple(_numbered(check, numbers.get(check.patch.id)) for check in scored.checks)
    return _record(store, loaded, replace(scored, checks=checks), newest), checks


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


def _numbered(check: PatchCheck, number: int | None) -> PatchCheck:
    return check if number is None else replace(check, alone_run=number)


def _badness(check: PatchCheck) -> tuple[float, int, float, str]:
    """What lost most comes first; among equals what lost more prompts, then what scores less."""
    s = check.in_stack.scores.s
    return -(check.loss or 0.0), -len(check.lost), 2.0 if s is None else s, check.patch.id


def _mean(evaluations: Sequence[Evaluation]) -> Scores:
    from rompatch.verify.metrics import mean_scores

    return mean_scores([one.scores for one in evaluations])


def _record_alone(store: OpenStore, record: PatchRecord, alone: Alone) -> VerificationRecord:
    assert alone.before is not None  # it was scored now
    return record_patch(store, record, alone.before, alone.after, [record.id], None)


def _record(store: OpenStore, loaded: Loaded, scored: Scored, newest: int) -> VerificationRecord:
    drift = scored.drift
    scores = score_rows("post", _mean([check.in_stack for check in scored.checks]))
    if drift is not None:
        scores += [
            ScoreRecord("pre", "perplexity", finite(drift.perplexity_before), drift.tokens),
            ScoreRecord("post", "perplexity", finite(drift.perplexity_after), drift.tokens),
            ScoreRecord("post", "mean_kl", finite(drift.mean_kl), drift.tokens),
        ]
    prompts: dict[str, Any] = {
        "patches": {
            check.patch.id: {"alone_run": check.alone_run, "loss": check.loss, "in_stack": check.in_stack.to_json()}
            for check in scored.checks
        },
        "drift": None if drift is None else drift_json(drift, scored.drift_text),
        "gates": [result.to_json() for result in scored.gates],
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
