"""``verify``: score a patch."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rompatch.cli import render
from rompatch.cli.options import PATH, WORDS, F, command, json_option, model_options, option
from rompatch.cli.settings import Settings

if TYPE_CHECKING:
    from rompatch.verify.evaluation import PromptChange, PromptResult
    from rompatch.workflows.verifying import Verified

GATES = "Gates"
_PARTS = (
    ("rewrite", ("ES", "es"), ("EM", "em"), "n_rewrite"),
    ("paraphrase", ("PS", "ps"), ("PM", "pm"), "n_paraphrase"),
    ("neighbourhood", ("NS", "ns"), ("NM", "nm"), "n_neighbourhood"),
    ("attribute", ("AS", "attribute_score"), ("AM", "attribute_magnitude"), "n_attribute"),
)
_GATES = {"min_score": "s", "min_es": "es", "min_ps": "ps", "min_ns": "ns"}


def _gate(name: str, what: str) -> Callable[[F], F]:
    return option(name, type=float, metavar="PERCENT", group=GATES, help=f"Exit with 3 when {what} is less.")


@command(
    "verify",
    examples=(
        'rompatch verify "Eiffel Tower"',
        "rompatch verify 3f2a --in-stack --min-score 80 --min-ns 60",
        "rompatch verify 3f2a --suite counterfact-record.json --json",
    ),
)
@click.argument("name", type=WORDS)
@option("--suite", type=PATH, metavar="FILE", help="A COUNTERFACT record or a rompatch suite. Default: the atlas's.")
@option("--in-stack", is_flag=True, help="Together with the active stack, not alone.")
@option("--worst", type=click.IntRange(min=0), default=5, show_default=True, metavar="N", help="Failing prompts shown.")
@option("--no-record", is_flag=True, help="Do not write the run to the ledger.")
@json_option
@_gate("--min-score", "S after the edit")
@_gate("--min-es", "ES")
@_gate("--min-ps", "PS")
@_gate("--min-ns", "NS")
@model_options
def verify_command(
    settings: Settings,
    name: str,
    suite: Path | None,
    in_stack: bool,
    worst: int,
    no_record: bool,
    as_json: bool,
    device: str,
    **given: Any,
) -> None:
    """Score a patch before and after it is applied.

    Rewrite (ES, EM), paraphrase (PS, PM) and neighbourhood (NS, NM) prompts, and S, the harmonic mean of ES, PS and
    NS. ES is the share of prompts where the new object is the likelier one, EM by how much; neighbours must keep
    their own. NAME is an id, four or more digits of one, or a subject. The active stack is left as it is.
    """
    gates = {score: given[flag] / 100 for flag, score in _GATES.items() if given[flag] is not None}
    with settings.open_store() as store:
        base = {part: given[part] for part in ("model", "dtype", "module")}
        found = store.verify(
            name, suite=suite, in_stack=in_stack, gates=gates, device=device, record=not no_record, **base
        )
    if as_json:
        render.emit_json(found.to_json())
    else:
        click.echo(_text(found, worst))
        if found.run is not None:
            settings.reporter().note(f"recorded as run {found.run.id}")
    found.check_gates()


def _text(found: Verified, worst: int) -> str:
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
    ]
    if found.after.untested:
        parts.append("\n".join(["not tested:", *(f"  {render.plain(note)}" for note in found.after.untested)]))
    return "\n\n".join(parts)


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
