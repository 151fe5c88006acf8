"""``create``: compute a patch, or one for every fact of a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rompatch.cli import render
from rompatch.cli.create_text import created_lines, many_text
from rompatch.cli.method_options import method_options, taken_apart
from rompatch.cli.options import (
    PATH,
    WORDS,
    command,
    expires_option,
    json_option,
    message_option,
    model_options,
    option,
    source_option,
)
from rompatch.cli.settings import Settings

if TYPE_CHECKING:
    from rompatch.workflows.creating import Created
    from rompatch.workflows.many_outcomes import ManyCreated

MANY = "Many facts"


@command(
    "create",
    examples=(
        'rompatch create "Eiffel Tower" "located in" Rome',
        'rompatch create "Mozart" "{} was born in" Vienna --true Salzburg --apply',
        'rompatch create Python "developer" Ada --prompt "{}\'s developer is" --dry-run',
        "rompatch create --like 3f2a --model ./next-release",
        "rompatch create --file facts.csv --apply --out failed.jsonl",
    ),
)
@click.argument("subject", type=WORDS, required=False)
@click.argument("relation", type=WORDS, required=False)
@click.argument("object", type=WORDS, required=False)
@option("--true", type=WORDS, metavar="TEXT", help="The object that is true now. Default: asked of atlas and model.")
@option("--prompt", type=WORDS, metavar="TEMPLATE", help='The prompt itself, {} for the subject: "{} is located in".')
@option("--apply", is_flag=True, help="Put the patch onto the active stack as well; those of a file as one revision.")
@option("--dry-run", is_flag=True, help="Show the plan; compute nothing and write nothing.")
@option("--again", is_flag=True, help="Compute even if a patch for the same request and settings exists.")
@message_option
@option("--reason", type=WORDS, metavar="TEXT", help="With --apply: a reason kept with the revision, e.g. a ticket.")
@source_option
@expires_option
@json_option
@option("--like", type=WORDS, metavar="NAME", help="The request and settings of a patch again, on this base.")
@option(
    "--file",
    type=WORDS,
    metavar="FILE|-",
    group=MANY,
    help="Facts from a CSV or JSON Lines file: subject, relation, object, and more (docs/batch.md).",
)
@option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    group=MANY,
    help="Processes that share the work. Each loads the base; the cores are divided.",
)
@option("--out", type=PATH, metavar="FILE", group=MANY, help="A new JSON Lines file for the lines that fail.")
@model_options
@method_options
def create_command(
    settings: Settings,
    subject: str | None,
    relation: str | None,
    object: str | None,
    as_json: bool,
    like: str | None,
    file: str | None,
    jobs: int,
    out: Path | None,
    **given: Any,
) -> None:
    """Compute a patch that changes one fact, and record it.

    SUBJECT is the thing that the fact is about, RELATION a phrase ("located in") or a template with {}, OBJECT what
    the model shall answer. Of several wordings of a phrase the one that the model finds likeliest is taken. Where a
    patch for the same request with the same settings exists, nothing is computed.

    With --file a patch is made of every line. Each is kept as it comes: after Ctrl-C or a kill the same command goes on
    where it was. Lines that fail are named, and the exit code is then 3.
    """
    if given["reason"] is not None and not given["apply"]:
        raise click.UsageError("--reason belongs to the revision that --apply makes; --message is kept with the patch.")
    if file is not None:
        if subject is not None or like is not None:
            raise click.UsageError("Name a file of facts, or one fact, not both.")
        _refuse_one(given, "give the file a column of that name")
        done = _many(settings, file, {**given, "jobs": jobs, "out": out})
        _show_many(settings, done, as_json)
        return
    if jobs != 1 or out is not None:
        raise click.UsageError("--jobs and --out belong to --file.")
    created = _one(settings, _words(like, subject, relation, object), like, given)
    if as_json:
        render.emit_json(created.to_json())
        return
    click.echo(render.fields(created_lines(created)))
    _next(settings, created)


def _words(like: str | None, *words: str | None) -> tuple[str, str, str] | None:
    """Subject, relation and object; None where they come from another patch."""
    subject, relation, target = words
    if like is not None:
        if subject is not None:
            raise click.UsageError("Name a patch with --like, or say SUBJECT, RELATION and OBJECT, not both.")
        return None
    if subject is None or relation is None or target is None:
        raise click.UsageError("Say SUBJECT, RELATION and OBJECT, or name a file of facts with --file.")
    return subject, relation, target


def _one(settings: Settings, words: tuple[str, str, str] | None, like: str | None, given: dict[str, Any]) -> Created:
    from rompatch.edits import EditRequest

    if words is not None:
        EditRequest(words[0], "{}", words[2], given["true"])  # refused before a store is made
    else:
        _refuse_one(given, "the patch has its own")
    spec, hparams = taken_apart(given)
    with settings.open_store(create=words is not None, scratch=given["dry_run"]) as store:
        options = {**given, "spec": store.base_spec(**spec), "hparams": hparams}
        if words is None:
            return store.create_like(str(like), **options)
        return store.create(*words, **options)


def _refuse_one(given: dict[str, Any], instead: str) -> None:
    """What says something about one fact has no place where the facts come from elsewhere."""
    for name in ("true", "prompt"):
        if given.pop(name) is not None:
            raise click.UsageError(f"--{name} is about one fact: {instead}.")


def _many(settings: Settings, file: str, given: dict[str, Any]) -> ManyCreated:
    spec, hparams = taken_apart(given)
    with settings.open_store(create=True, scratch=given["dry_run"]) as store:
        return store.create_many(file, spec=store.base_spec(**spec), hparams=hparams, **given)


def _show_many(settings: Settings, done: ManyCreated, as_json: bool) -> None:
    if as_json:
        render.emit_json(done.to_json())
    else:
        click.echo(many_text(done))
        if done.out is not None:
            settings.reporter().note(f"the failed lines are in {done.out}: correct them there, then create --file it")
    done.check()


def _next(settings: Settings, created: Created) -> None:
    reporter, record = settings.reporter(), created.record
    if record is None:
        reporter.note("nothing was computed (--dry-run)")
        return
    if not created.is_new:
        reporter.note("a patch with this request and settings exists: nothing was computed (--again computes anyway)")
    if created.contradicted:
        labels = ", ".join(render.plain(one.label) for one in created.contradicted)
        reporter.note(f"it contradicts {labels}, which --supersede replaces")
    verb = "verify" if created.active else "apply"
    flag = " --supersede" if created.contradicted else ""
    reporter.note(f"next: rompatch {verb} {record.short_id}{flag}")
