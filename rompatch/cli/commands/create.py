"""``create``: compute a patch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from rompatch.cli import render
from rompatch.cli.options import (
    MODEL,
    PATH,
    WORDS,
    command,
    expires_option,
    json_option,
    message_option,
    model_options,
    option,
    reason_option,
    source_option,
    stacked,
)
from rompatch.cli.settings import Settings

if TYPE_CHECKING:
    from rompatch.store.records import PatchRecord
    from rompatch.workflows.creating import Created

METHOD, OPTIMISATION = "Method", "Optimisation"
HPARAMS = (
    "keys",
    "ridge",
    "optimiser",
    "lr",
    "steps",
    "value_contexts",
    "weight_decay",
    "clamp_norm_factor",
    "kl_factor",
    "early_stop_loss",
    "target_loss",
)
"""Options that are hyper-parameters of the method, by its own names."""

method_options = stacked(
    option("--layer", type=int, metavar="N", group=MODEL, help="The layer to edit. Default: the preset's."),
    option("--preset", type=PATH, metavar="FILE", group=METHOD, help="Layer and hyper-parameters from a JSON file."),
    option("--seed", type=int, default=0, show_default=True, metavar="N", group=METHOD, help="Of the contexts."),
    option(
        "--key",
        "keys",
        type=click.Choice(["mixed", "mean"]),
        group=METHOD,
        help="u from the mean key and the residual from the bare prompt's (mixed), or one key for both (mean).",
    ),
    option(
        "--document-start/--no-document-start",
        default=None,
        group=METHOD,
        help="Put the document separator before every prompt, or not. Default: the preset's.",
    ),
    option(
        "--statistics",
        type=WORDS,
        default="auto",
        show_default=True,
        metavar="auto|none|ID",
        group=METHOD,
        help="Key statistics C: the best at hand, none, or those of `rompatch stats list`.",
    ),
    option("--ridge", type=float, metavar="X", group=METHOD, help="Added to C, relative to its mean diagonal."),
    option(
        "--precision",
        type=click.Choice(["auto", "float32", "bfloat16"]),
        default="auto",
        show_default=True,
        group=OPTIMISATION,
        help="Of the products; auto takes the faster one here, measured once.",
    ),
    option(
        "--optimiser",
        type=click.Choice(["adam", "lbfgs"]),
        group=OPTIMISATION,
        help="The authors' Adam, or L-BFGS, which needs fewer steps.",
    ),
    option(
        "--value-contexts", type=int, metavar="N", group=OPTIMISATION, help="Optimise v* under N of the 21 contexts."
    ),
    option("--lr", type=float, metavar="X", group=OPTIMISATION, help="Learning rate of Adam."),
    option("--steps", type=int, metavar="N", group=OPTIMISATION, help="Steps at most."),
    option("--weight-decay", type=float, metavar="X", group=OPTIMISATION, help="Weight of the norm of delta."),
    option("--clamp-norm-factor", type=float, metavar="X", group=OPTIMISATION, help="||delta|| <= X ||W k||."),
    option("--kl-factor", type=float, metavar="X", group=OPTIMISATION, help="Weight of the essence term."),
    option("--early-stop-loss", type=float, metavar="X", group=OPTIMISATION, help="Stop below this loss."),
    option(
        "--target-loss", type=float, metavar="X", group=OPTIMISATION, help="Stop below this loss of the object alone."
    ),
)


@command(
    "create",
    examples=(
        'rompatch create "Eiffel Tower" "located in" Rome',
        'rompatch create "Mozart" "{} was born in" Vienna --true Salzburg --apply',
        'rompatch create Python "developer" Ada --prompt "{}\'s developer is" --dry-run',
    ),
)
@click.argument("subject", type=WORDS)
@click.argument("relation", type=WORDS)
@click.argument("object", type=WORDS)
@option("--true", type=WORDS, metavar="TEXT", help="The object that is true now. Default: asked of atlas and model.")
@option("--prompt", type=WORDS, metavar="TEMPLATE", help='The prompt itself, {} for the subject: "{} is located in".')
@option("--apply", is_flag=True, help="Put the patch onto the active stack as well.")
@option("--dry-run", is_flag=True, help="Show the plan; compute nothing and write nothing.")
@option("--again", is_flag=True, help="Compute even if a patch for the same request and settings exists.")
@message_option
@reason_option
@source_option
@expires_option
@json_option
@model_options
@method_options
def create_command(settings: Settings, subject: str, relation: str, object: str, as_json: bool, **given: Any) -> None:
    """Compute a patch that changes one fact, and record it.

    SUBJECT is the thing that the fact is about, RELATION a phrase ("located in") or a template with {}, OBJECT what
    the model shall answer. Of several wordings of a phrase the one that the model finds likeliest is taken. Where a
    patch for the same request with the same settings exists, nothing is computed.
    """
    from rompatch.edits import EditRequest
    from rompatch.workflows.creating import CreateOptions

    EditRequest(subject, "{}", object, given["true"])  # refused before a store is made
    spec = {name: given.pop(name) for name in ("model", "dtype", "module")}
    hparams = {name: value for name in HPARAMS if (value := given.pop(name)) is not None}
    with settings.open_store(create=True, scratch=given["dry_run"]) as store:
        options = CreateOptions(spec=store.base_spec(**spec), hparams=hparams, **given)
        created = store.create(subject, relation, object, **vars(options))
    if as_json:
        render.emit_json(created.to_json())
        return
    click.echo(render.fields(_lines(created)))
    _next(settings, created, given["apply"])


def _lines(created: Created) -> list[tuple[str, str | None]]:
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
    ]
    if record is None:
        lines.append(("settings", ", ".join(f"{name} {value}" for name, value in sorted(vars(plan.hparams).items()))))
        lines.append(("preset", plan.preset))
        lines += [("exists", other.label) for other in plan.existing]
        return lines
    statistics = record.header.statistics
    source = "none" if statistics is None else f"{statistics.tokens:,} tokens of {statistics.corpus}"
    return [*lines, *measured_lines(record), ("statistics", source), ("patch", record.id), *_applied(created)]


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


def _next(settings: Settings, created: Created, applied: bool) -> None:
    reporter, record = settings.reporter(), created.record
    if record is None:
        reporter.note("nothing was computed (--dry-run)")
        return
    if not created.is_new:
        reporter.note("a patch with this request and settings exists: nothing was computed (--again computes anyway)")
    verb = "verify" if applied else "apply"
    reporter.note(f"next: rompatch {verb} {record.short_id}")
