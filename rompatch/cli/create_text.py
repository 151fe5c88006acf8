"""What ``create`` says about a patch that was made, and about many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rompatch.cli import render

if TYPE_CHECKING:
    from rompatch.store.records import PatchRecord
    from rompatch.workflows.creating import Created
    from rompatch.workflows.many_outcomes import FactOutcome, ManyCreated

SHOWN = 20
"""Failed lines that are listed; ``--json`` has them all."""


def created_lines(created: Created) -> list[tuple[str, str | None]]:
    """The plan and, where something was computed, what was measured, as names and texts."""
    plan, record = created.plan, created.record
    if record is not None and not created.is_new:
        return [("exists", record.label), ("prompt", record.request.prompt), *_applied(created)]
    lines: list[tuple[str, str | None]] = [("prompt", f"{plan.request.prompt} ...")]
    if len(plan.wordings) > 1:
        shown = [f"{word.template} ({word.log_likelihood or 0:.2f})" for word in plan.wordings[:4]]
        lines += [("wordings", " > ".join(shown) + "  (nats a token)")]
    true = plan.request.target_true
    lines += [
        ("new object", plan.request.target_new),
        ("true object", "not known" if true is None else f"{true} ({plan.true_source})"),
        ("weight", f"{plan.parameter} of {plan.base.source} ({plan.base.dtype})"),
        ("spread", _spread(plan.layers)),
    ]
    if record is None:
        lines.append(("settings", ", ".join(f"{name} {value}" for name, value in sorted(vars(plan.hparams).items()))))
        lines.append(("preset", plan.preset))
        lines += [("exists", other.label) for other in plan.existing]
        return lines
    statistics = record.header.statistics
    used = () if statistics is None else (statistics, *record.header.more_statistics)
    sources = dict.fromkeys(f"{one.tokens:,} tokens of {one.corpus}" for one in used)
    source = ", ".join(sources) or "none"
    return [*lines, *measured_lines(record), ("statistics", source), ("patch", record.id), *_applied(created)]


def _spread(layers: Sequence[int]) -> str | None:
    """Which layers the value is spread over; nothing where it is one."""
    return f"over layers {', '.join(map(str, layers))}" if len(layers) > 1 else None


def measured_lines(record: PatchRecord) -> list[tuple[str, str | None]]:
    """What was measured while the patch was computed, as names and texts; nothing for what was not measured."""
    measured = record.measurements
    lines: list[tuple[str, str | None]] = []
    if probabilities := measured.get("probabilities"):
        before, after = probabilities["before"], probabilities["after"]
        lines += [(f"P({record.request.target_new})", _change(before, after, "new"))]
        if record.request.target_true is not None:
            lines += [(f"P({record.request.target_true})", _change(before, after, "true"))]
    if losses := measured.get("losses"):
        first, last = losses[0]["total"], losses[-1]["total"]
        lines += [("loss", f"{first:.3f} -> {last:.3f} nats in {render.counted(len(losses), 'step')}")]
    if norms := measured.get("norms"):
        share = norms["delta"] / norms["base_out"] if norms["base_out"] else float("inf")
        lines += [("norms", f"||delta|| = {share:.2f} ||W k||, ||Delta|| = {norms['relative_update']:.4f} ||W||")]
    if seconds := measured.get("seconds"):
        phases = ", ".join(f"{name} {spent:.1f}" for name, spent in seconds.items())
        lines += [("seconds", f"{sum(seconds.values()):.1f} ({phases})")]
    return lines


def _change(before: Mapping[str, float | None], after: Mapping[str, float | None], name: str) -> str:
    return f"{render.probability(before[name])} -> {render.probability(after[name])}"


def _applied(created: Created) -> list[tuple[str, str | None]]:
    revision = created.revision
    if revision is None:
        return []
    return [("applied", f"stack {revision.stack!r} is at revision {revision.number}")]


def many_text(done: ManyCreated) -> str:
    """What became of a file of facts: how many lines came out how, and which failed and why."""
    lines: list[tuple[str, str | None]] = [("facts", f"{render.counted(len(done.outcomes), 'line')} of {done.source}")]
    if done.setting is not None:
        base = done.setting["base"]
        lines.append(("weight", f"{done.setting['parameter']} of {base['source']} ({base['dtype']})"))
        lines.append(("spread", _spread(done.setting["layers"])))
    meanings = {"planned": "to be made", "repeated": "repeated in the file"}
    for status in ("planned", "made", "existed", "repeated", "failed"):
        count = done.count(status)
        if count or status in ("made", "failed"):
            lines.append((meanings.get(status, status), f"{count:,}"))
    if done.revision is not None:
        revision = done.revision
        added = render.patches(len(revision.added))
        lines.append(("applied", f"{added}: stack {revision.stack!r} is at revision {revision.number}"))
    parts = [render.fields(lines)]
    planned = [one for one in done.outcomes if one.status == "planned"]
    if planned:
        rows = [(str(one.number), one.fact.label if one.fact else "", f"{one.prompt} ...") for one in planned]
        parts.append(render.table(("line", "fact", "prompt"), rows, right="0", flexible=2))
    if done.failures:
        parts.append(_failures(done.failures))
    return "\n\n".join(parts)


def _failures(failures: tuple[FactOutcome, ...]) -> str:
    rows = [
        (str(one.number), one.field or render.MISSING, one.fact.label if one.fact else render.MISSING, str(one.error))
        for one in failures[:SHOWN]
    ]
    table = render.table(("line", "field", "fact", "why it failed"), rows, right="0", flexible=3)
    left = len(failures) - SHOWN
    return table if left <= 0 else f"{table}\n... and {left:,} more (--json lists them all)"
