"""What ``verify`` prints for people: of one patch, and of a whole stack."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rompatch.cli import render
from rompatch.workflows.gates import relative_rise

if TYPE_CHECKING:
    from rompatch.verify.evaluation import PromptChange, PromptResult
    from rompatch.verify.metrics import Scores
    from rompatch.workflows.stack_report import PatchCheck, StackVerified
    from rompatch.workflows.verifying import Verified

_PARTS = (
    ("rewrite", ("ES", "es"), ("EM", "em"), "n_rewrite"),
    ("paraphrase", ("PS", "ps"), ("PM", "pm"), "n_paraphrase"),
    ("neighbourhood", ("NS", "ns"), ("NM", "nm"), "n_neighbourhood"),
    ("attribute", ("AS", "attribute_score"), ("AM", "attribute_magnitude"), "n_attribute"),
)
_MEASURES = ("es", "ps", "ns", "s")


def patch_text(found: Verified, worst: int) -> str:
    """Scores before and after, and at most *worst* failing prompts."""
    before, after = found.before.scores, found.after.scores
    about = [("patch", found.patch.label), ("suite", f"{found.after.name} ({found.after.source})")]
    rows = []
    for part, score, magnitude, count in _PARTS:
        n = getattr(after, count)
        if part == "attribute" and not n:
            continue
        for label, field in (score, magnitude):
            values = (getattr(before, field), getattr(after, field))
            rows.append((label, part, *map(render.percent, values), str(n)))
    total = after.n_rewrite + after.n_paraphrase + after.n_neighbourhood
    rows.append(("S", "harmonic mean", render.percent(before.s), render.percent(after.s), str(total)))
    parts = [
        render.fields(about),
        render.table(("%", "prompts", "before", "after", "n"), rows, right="234"),
        *_worst(found, worst),
        *_untested(found.after.untested),
    ]
    return "\n\n".join(parts)


def stack_text(found: StackVerified, worst: int) -> str:
    """Scores of every patch alone and in the stack, at most *worst* lost prompts, drift, and missed gates."""
    newest = "" if found.is_newest else f" (now at revision {found.newest_revision})"
    about = [("stack", found.stack.name), ("revision", f"{found.stack.revision}{newest}")]
    about += [("patches", str(len(found.checks))), ("scores", "percent, alone -> in the stack")]
    rows = [_check_row(check) for check in found.checks]
    if len(rows) > 1:
        complete = all(check.alone is not None for check in found.checks)
        rows.append(("mean", "", *_cells(found.alone if complete else None, found.in_stack), ""))
    heads = ("patch", "alone", *map(str.upper, _MEASURES), "S lost")
    parts = [
        render.fields(about),
        render.table(heads, rows, right="23456", flexible=0),
        *_lost(found, worst),
        *_untested(f"{check.patch.short_id}: {note}" for check in found.checks for note in check.in_stack.untested),
        *_drift(found),
    ]
    if found.missed_gates:
        parts.append("\n".join(["gates missed:", *(f"  {render.plain(reason)}" for reason in found.missed_gates)]))
    return "\n\n".join(parts)


def _check_row(check: PatchCheck) -> tuple[str, ...]:
    where = "-" if check.alone is None else "now" if check.scored_now else f"run {check.alone_run}"
    alone = None if check.alone is None else check.alone.scores
    loss = check.loss
    # "+ 0.0" makes 0.0 of -0.0.
    lost = render.MISSING if loss is None else f"{round(100 * loss, 1) + 0.0:.1f}"
    return (check.patch.label, where, *_cells(alone, check.in_stack.scores), lost)


def _cells(alone: Scores | None, in_stack: Scores) -> list[str]:
    cells = []
    for name in _MEASURES:
        before = render.percent(None if alone is None else getattr(alone, name))
        cells.append(f"{before} -> {render.percent(getattr(in_stack, name)):>5}")
    return cells


def _lost(found: StackVerified, limit: int) -> list[str]:
    lost = [(check, change) for check in found.checks for change in check.lost]
    if not any(check.alone is not None for check in found.checks):
        return ["nothing to compare with: no patch was scored alone"]
    if not lost:
        return ["no prompt that passed alone fails in the stack"]
    lost.sort(key=lambda pair: pair[1].after.margin or 0.0)
    rows = [(check.patch.short_id, *_worst_row(change)) for check, change in lost[:limit]]
    verb = "fails" if len(lost) == 1 else "fail"
    head = f"{render.counted(len(lost), 'prompt')} that passed alone {verb} in the stack"
    if not rows:
        return [head]
    head += f"; the worst {limit}:" if len(lost) > limit else ":"
    heads = ("patch", "prompts", "prompt", "P(new)", "", "P(true)", "")
    return [head + "\n" + render.table(heads, rows, right="3456", flexible=2)]


def _drift(found: StackVerified) -> list[str]:
    drift = found.drift
    if drift is None:
        return []
    change = f"{drift.perplexity_before:.3f} -> {drift.perplexity_after:.3f} ({100 * relative_rise(drift):+.2f} %)"
    about = [
        ("drift", f"{render.counted(drift.tokens, 'token')} of {found.drift_text}"),
        ("perplexity", change),
        ("mean KL", f"{drift.mean_kl:.5f} nats"),
    ]
    return [render.fields(about)]


def _untested(notes: Iterable[str]) -> list[str]:
    listed = [f"  {render.plain(note)}" for note in notes]
    return ["\n".join(["not tested:", *listed])] if listed else []


def _worst(found: Verified, limit: int) -> list[str]:
    failing = found.worst
    if not failing or not limit:
        return []
    rows = [_worst_row(change) for change in failing[:limit]]
    head = f"{render.counted(len(failing), 'prompt')} of {len(found.changes)} fail after the edit" + (
        f"; the worst {limit}:" if len(failing) > limit else ":"
    )
    return [
        head + "\n" + render.table(("prompts", "prompt", "P(new)", "", "P(true)", ""), rows, right="2345", flexible=1)
    ]


def _worst_row(change: PromptChange) -> tuple[str, ...]:
    prompt, after = change.prompt, change.after
    new, true = _probabilities(after)
    return (prompt.kind, prompt.text, new, prompt.target_new, true, prompt.target_true or "?")


def _probabilities(result: PromptResult) -> tuple[str, str]:
    logprobs = (result.new_logprob, result.true_logprob)
    new, true = (render.probability(None if value is None else math.exp(value)) for value in logprobs)
    return new, true
