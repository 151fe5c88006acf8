"""``rebase``: a stack recomputed for another base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from rompatch.cli import render
from rompatch.cli.options import (
    DTYPE,
    MODEL,
    WORDS,
    command,
    device_option,
    json_option,
    message_option,
    option,
    reason_option,
)
from rompatch.cli.settings import Settings

if TYPE_CHECKING:
    from rompatch.workflows.rebased import Rebased, RebasedPatch


@command(
    "rebase",
    examples=(
        "rompatch rebase --onto ./next-release --dry-run",
        "rompatch rebase --onto ./next-release --into next -m 'for the next release'",
    ),
)
@option(
    "--onto", type=WORDS, required=True, metavar="SPEC", help="The new base: a folder, .gguf file, alias or hub id."
)
@option("--stack", type=WORDS, metavar="NAME", help="The stack to recompute. Default: the one in force.")
@option("--into", type=WORDS, metavar="NAME", help="The stack for the new patches. Default: made of both names.")
@option("--keep-known", is_flag=True, help="Recompute also what the new base says already.")
@option("--scores/--no-scores", default=True, help="Score old and new patches side by side (default), or do not.")
@option("--dry-run", is_flag=True, help="Ask the new base what it knows; compute nothing and write nothing.")
@message_option
@reason_option
@json_option
@option("--dtype", type=DTYPE, group=MODEL, help="Load the new base in this dtype. Default: its own.")
@option(
    "--module",
    type=WORDS,
    metavar="PATTERN",
    group=MODEL,
    help="Where the new base's down-projection is, {} for the layer.",
)
@device_option
def rebase_command(settings: Settings, onto: str, as_json: bool, **given: Any) -> None:
    """Recompute a stack for another base, on a stack of its own.

    Every patch is computed again with its own settings at the new base's layer; facts that the new base says already
    are listed and left out. The old stack stays as it is. After Ctrl-C or a kill the same command goes on where it was.
    """
    with settings.open_store() as store:
        done = store.rebase(onto, **given)
    if as_json:
        render.emit_json(done.to_json())
    else:
        click.echo(_text(done))
        if done.revision is not None:
            settings.reporter().note(f"next: rompatch stack use {done.into}")
    done.check()


def _text(done: Rebased) -> str:
    counts = [f"{done.count(status)} {status}" for status in ("made", "existed", "known", "failed", "planned")]
    lines: list[tuple[str, str | None]] = [
        ("stack", f"{done.stack} on {done.old_base.source} ({done.old_base.dtype})"),
        ("new base", f"{done.new_base.source} ({done.new_base.dtype})"),
        ("patches", ", ".join(text for text in counts if not text.startswith("0 "))),
    ]
    if done.revision is not None:
        members = render.patches(len(done.revision.members))
        lines.append(("new stack", f"{done.into!r} is at revision {done.revision.number} with {members}"))
    headers = ("old", "new", "fact", "the new base says", "P(new)", "S old", "S new")
    table = render.table(headers, map(_row, done.patches), right="456", flexible=3)
    failures = [f"{one.old.short_id}  {render.plain(str(one.error))}" for one in done.patches if one.error is not None]
    return "\n\n".join([render.fields(lines), table, *(["failed:\n" + "\n".join(failures)] if failures else [])])


def _row(one: RebasedPatch) -> tuple[str, ...]:
    answer = one.answer
    return (
        one.old.short_id,
        one.status if one.new is None else one.new.short_id,
        one.old.header.label,
        render.MISSING if answer is None else answer.text or render.MISSING,
        render.probability(None if answer is None else answer.new),
        render.percent(None if one.before is None else one.before.s),
        render.percent(None if one.after is None else one.after.s),
    )
