"""``show``: everything about one patch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from rompatch.cli import render
from rompatch.cli.create_text import measured_lines
from rompatch.cli.options import WORDS, command, json_option
from rompatch.cli.settings import Settings

if TYPE_CHECKING:
    from rompatch.patch import PatchHeader
    from rompatch.store.records import FactEvent, VerificationRecord
    from rompatch.workflows.browsing import Details

_SCORES = ("s", "es", "ps", "ns")


@command("show", examples=('rompatch show "Eiffel Tower"', "rompatch show 3f2a --json"))
@click.argument("name", type=WORDS)
@json_option
def show_command(settings: Settings, name: str, as_json: bool) -> None:
    """Show everything about one patch.

    The edit request, the base and the weight it changes, how it was computed, what was measured, and every
    verification. NAME is an id, four or more digits of one, or a subject.
    """
    with settings.open_store() as store:
        found = store.details(name)
    if as_json:
        render.emit_json(found.to_json())
        return
    click.echo(render.fields(_about(found)))
    if found.verifications:
        click.echo(f"\n{click.style('verifications', bold=True)}")
        rows = [_run_row(run) for run in found.verifications]
        click.echo(render.table(("run", "when (UTC)", "suite", "S", "ES", "PS", "NS", "S before"), rows, right="34567"))
    else:
        settings.reporter().note(f"not verified yet: `rompatch verify {found.record.short_id}`")


def _statistics(header: PatchHeader) -> list[tuple[str, str]]:
    """The key statistics of each site, in the order of the weights."""
    if header.statistics is None:
        return [("statistics", "none")]
    used = zip(header.sites, (header.statistics, *header.more_statistics), strict=False)
    several = len(header.sites) > 1
    return [
        (
            "statistics",
            f"{one.corpus}, {one.tokens:,} tokens ({one.id[:12]})" + (f", layer {site.layer}" if several else ""),
        )
        for site, one in used
    ]


def _about(found: Details) -> list[tuple[str, str | None]]:
    from rompatch.workflows.provenance import is_expired

    record, header = found.record, found.record.header
    lines: list[tuple[str, str | None]] = [
        ("patch", record.id),
        ("active", "yes" if found.active else "no"),
        *_fact(header),
        ("base", f"{header.base.source} ({header.base.model_type}, {header.base.dtype})"),
    ]
    lines += [
        ("weight", f"{site.parameter} ({site.d_out} x {site.d_in}, sha256 {site.sha256[:12]})") for site in header.sites
    ]
    lines += [
        ("method", f"{header.method}, seed {header.seed}, {render.counted(len(header.contexts), 'context')}"),
        ("settings", ", ".join(f"{name} {value}" for name, value in sorted(header.hparams.items()))),
        ("start", "document separator before every prompt" if header.document_start else "bare prompts"),
        *_statistics(header),
        *measured_lines(record),
        ("made", f"{render.moment(record.created_at)} UTC" + (f" by {record.author}" if record.author else "")),
        ("imported", None if found.imported is None else _imported(found.imported)),
        ("message", record.message),
        ("source", record.source),
        ("expires", record.expires_at and record.expires_at + (" (expired)" if is_expired(record) else "")),
        ("file", f"{found.path} ({render.size(record.file_size)})"),
        ("versions", ", ".join(f"{name} {number}" for name, number in sorted(header.versions.items()))),
    ]
    return lines


def _imported(event: FactEvent) -> str:
    by = f" by {event.author}" if event.author else ""
    return f"{render.moment(event.at)} UTC{by}, onto {event.stack}@r{event.revision}"


def _fact(header: PatchHeader) -> list[tuple[str, str | None]]:
    request = header.request
    if request is None:
        return [("title", header.title), ("stacking", "has no keys: it is added to what the other patches give")]
    return [
        ("subject", request.subject),
        ("prompt", request.prompt),
        ("template", request.template),
        ("relation", request.relation),
        ("new object", request.target_new),
        ("true object", request.target_true or "not known"),
    ]


def _run_row(run: VerificationRecord) -> tuple[str, ...]:
    scores = [render.percent(run.score(metric)) for metric in _SCORES]
    return (str(run.id), render.moment(run.created_at), run.suite, *scores, render.percent(run.score("s", "pre")))
