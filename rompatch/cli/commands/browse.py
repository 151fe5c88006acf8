"""``status``, ``list`` and ``log``: what the ledger knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from rompatch.cli import render
from rompatch.cli.options import WORDS, command, json_option, option
from rompatch.cli.settings import Settings

if TYPE_CHECKING:
    from rompatch.store.records import HistoryEvent, PatchRecord

ACTIVE = "*"


@command("status", examples=("rompatch status", "rompatch status --json"))
@json_option
def status_command(settings: Settings, as_json: bool) -> None:
    """Say which store, base and stack are in force.

    The base is the one that `rompatch create` makes patches for when it is told nothing else.
    """
    with settings.open_store() as store:
        status = store.status()
    if as_json:
        render.emit_json(status.to_json())
        return
    stack, base = status.stack, status.base
    click.echo(
        render.fields(
            [
                ("store", str(status.root)),
                ("base", base.model + (f" ({base.dtype})" if base.dtype else "")),
                ("stack", "none yet" if stack is None else f"{stack.name}, revision {stack.revision}"),
                ("active", f"{len(status.active)} of {render.patches(status.n_patches)}"),
            ]
        )
    )
    for record in status.active:
        expiry = f"  (expired {record.expires_at})" if record in status.expired else ""
        click.echo(f"  {render.plain(record.short_id)}  {render.plain(fact(record))}{expiry}")
    if status.expired:
        note = f"{render.patches(len(status.expired))} of the stack expired: `rompatch list --expired` shows them"
        settings.reporter().note(note)


@command("list", examples=("rompatch list", 'rompatch list --subject "Eiffel Tower"', "rompatch list --active --json"))
@option("--subject", type=WORDS, metavar="TEXT", help="Only patches about this subject.")
@option("--active", is_flag=True, help="Only patches that are active.")
@option("--expired", is_flag=True, help="Only patches whose --expires day has come.")
@option("--limit", type=click.IntRange(min=1), default=100, show_default=True, metavar="N", help="Patches on a page.")
@option("--offset", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Patches to skip.")
@option("--all", "everything", is_flag=True, help="All of them on one page.")
@json_option
def list_command(
    settings: Settings,
    subject: str | None,
    active: bool,
    expired: bool,
    limit: int | None,
    offset: int,
    everything: bool,
    as_json: bool,
) -> None:
    """List patches, newest first.

    Active ones are marked with an asterisk.
    """
    from rompatch.workflows.browsing import listing

    limit = None if everything else limit
    with settings.open_store() as store:
        found = listing(store, subject, active_only=active, expired_only=expired, limit=limit, offset=offset)
    if as_json:
        render.emit_json(found.to_json())
        return
    if not found.patches:
        settings.reporter().note(
            "no patches" + (" like that" if subject or active or expired or offset else ": `rompatch create` makes one")
        )
        return
    rows = [
        (
            ACTIVE if record.id in found.active else "",
            record.short_id,
            *record.fact_cells,
            render.moment(record.created_at),
        )
        for record in found.patches
    ]
    click.echo(render.table(("", "patch", "prompt", "true object", "new object", "created (UTC)"), rows, flexible=2))
    if found.more and limit is not None:
        settings.reporter().note(f"older patches: --offset {offset + limit}, or --all")


@command("log", examples=("rompatch log", "rompatch log --limit 50 --offset 50"))
@option("--limit", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="Events on a page.")
@option("--offset", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Events to skip.")
@json_option
def log_command(settings: Settings, limit: int, offset: int, as_json: bool) -> None:
    """Show what happened, newest first.

    Patches made and removed, revisions of stacks, verifications.
    """
    with settings.open_store() as store:
        page = store.history(limit=limit, offset=offset)
    if as_json:
        render.emit_json(page.to_json())
        return
    if not page.events:
        settings.reporter().note("nothing happened yet" if not offset else "nothing happened before that")
        return
    rows = [
        (render.moment(event.at), event.kind, _what(event), event.author or "", _why(event)) for event in page.events
    ]
    click.echo(render.table(("when (UTC)", "what", "of", "who", "why"), rows, flexible=2))
    if page.more:
        settings.reporter().note(f"older events: `rompatch log --limit {limit} --offset {offset + limit}`")


def fact(record: PatchRecord) -> str:
    """The prompt with the old and the new object: ``The Eiffel Tower is located in: Paris -> Rome``, or the title."""
    prompt, true, new = record.fact_cells
    return f"{prompt}: {true} -> {new}" if new else prompt


def _why(event: HistoryEvent) -> str:
    return " / ".join(text for text in (event.message, event.reason) if text)


def _what(event: HistoryEvent) -> str:
    subjects = dict(zip(event.patch_ids, event.subjects, strict=True))
    signs = [("-", one) for one in event.removed] + [("+", one) for one in event.added]
    shown = signs or [("", one) for one in event.patch_ids]
    named = ", ".join(f"{sign}{patch_id[:12]} ({subjects[patch_id]})" for sign, patch_id in shown)
    if event.verification is not None:
        return f"{named or 'the stack'}: run {event.verification}"
    if event.tag is not None:
        return f"{event.stack}@r{event.revision}: {event.tag}"
    if event.stack is not None:
        return f"{event.stack}@r{event.revision}" + (f": {named}" if named else "")
    return named
