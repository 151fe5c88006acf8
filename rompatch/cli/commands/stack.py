"""``apply`` and ``revert``: which patches are active."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from rompatch.cli import render
from rompatch.cli.options import (
    WORDS,
    command,
    expires_option,
    json_option,
    message_option,
    model_options,
    option,
    reason_option,
    source_option,
)
from rompatch.cli.settings import Settings

if TYPE_CHECKING:
    from rompatch.store.records import RevisionRecord
    from rompatch.workflows.applying import AppliedVerified
    from rompatch.workflows.store import Store


@command(
    "apply",
    examples=(
        'rompatch apply "Eiffel Tower"',
        'rompatch apply 3f2a 91bc -m "after review" --reason T-12',
        "rompatch apply 3f2a --supersede --source https://example.org/news --expires 2027-01-31",
        "rompatch apply 3f2a --plan",
        'rompatch apply 3f2a --verify --override max_drift --reason "T-12, until the next release"',
    ),
)
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=WORDS)
@option("--supersede", is_flag=True, help="Replace the active patches that they contradict, in the same revision.")
@option("--plan", is_flag=True, help="Say what the stack would become, and change nothing.")
@option("--verify", is_flag=True, help="Score the stack that would be first; apply it only if nothing is lost.")
@option(
    "--override",
    multiple=True,
    type=WORDS,
    metavar="GATE",
    help="Pass over a gate (`rompatch gates`, or rewrite) for the reason that --reason gives; may be given several "
    "times.",
)
@message_option
@reason_option
@source_option
@expires_option
@json_option
@model_options
def apply_command(
    settings: Settings, names: tuple[str, ...], plan: bool, verify: bool, as_json: bool, **options: Any
) -> None:
    """Put patches onto the active stack.

    NAME is an id, four or more digits of one, or a subject. All of them become active as one revision, or none. The
    order does not matter: equal stacks give equal weights. A patch that gives the same subject and relation another
    object than an active one is refused, unless it is to supersede that one; subjects are compared by name and by key.

    With --plan: which patches would disturb each other, the size and the condition of the update, what it would leave
    of each value, and which gates of the store it would miss. Without a model, and nothing is changed.

    With --verify: every patch of the would-be stack is scored on the finished model, the new ones and those that the
    forecast names first. Where a rewrite is lost or a gate is missed the exit code is 3 and the stack stays as it is.
    """
    model = {name: options.pop(name) for name in ("model", "dtype", "module", "device")}
    if plan and verify:
        raise click.UsageError("Say --plan or --verify, not both.")
    if not verify and (model["model"] or model["dtype"] or model["module"] or model["device"] != "cpu"):
        raise click.UsageError("apply loads a model with --verify only.")
    with settings.open_store() as store:
        if plan:
            _plan(store, names, options["supersede"], as_json)
        elif verify:
            _verified(store, store.apply_verified(*names, **options, **model), as_json)
        else:
            report(store, store.apply(*names, **options), as_json)


@command("revert", examples=('rompatch revert "Eiffel Tower"', 'rompatch revert --all --reason "back to the release"'))
@click.argument("names", metavar="[NAME...]", nargs=-1, type=WORDS)
@option("--all", "everything", is_flag=True, help="Every active patch.")
@message_option
@reason_option
@json_option
def revert_command(
    settings: Settings,
    names: tuple[str, ...],
    everything: bool,
    message: str | None,
    reason: str | None,
    as_json: bool,
) -> None:
    """Take patches off the active stack.

    The base's own tensors come back bit for bit. NAME is an id, four or more digits of one, or a subject; among
    several patches on one subject the active one is meant.
    """
    if bool(names) == everything:
        raise click.UsageError(
            "Name the patches to revert, or say --all." if everything is False else "Say --all or NAMEs, not both."
        )
    with settings.open_store() as store:
        revision = store.revert(*names, message=message, reason=reason)
        report(store, revision, as_json)


def _plan(store: Store, names: tuple[str, ...], supersede: bool, as_json: bool) -> None:
    from rompatch.cli.plan_text import plan_text

    found = store.plan(*names, supersede=supersede)
    if as_json:
        render.emit_json(found.to_json())
    else:
        click.echo(plan_text(found))


def _verified(store: Store, found: AppliedVerified, as_json: bool) -> None:
    from rompatch.cli.verify_text import stack_text

    if as_json:
        render.emit_json(found.revision.to_json() | {"verified": found.verified.to_json(), "named": list(found.named)})
        return
    click.echo(stack_text(found.verified, 5))
    click.echo()
    report(store, found.revision, as_json=False)


def report(store: Store, revision: RevisionRecord, as_json: bool) -> None:
    """Say what a new revision changed."""
    if as_json:
        render.emit_json(revision.to_json())
        return
    labels = store.labels((*revision.removed, *revision.added))
    for patch_id in revision.removed:
        verb = "superseded" if patch_id in revision.superseded else "reverted"
        click.echo(f"{verb} {render.plain(labels[patch_id])}")
    for patch_id in revision.added:
        click.echo(f"applied {render.plain(labels[patch_id])}")
    count = render.patches(len(revision.members))
    click.echo(f"stack {revision.stack!r} is at revision {revision.number} with {count}")
