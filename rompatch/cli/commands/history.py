"""``history``: what happened to the facts about one subject."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from rompatch.cli import render
from rompatch.cli.options import WORDS, command, json_option
from rompatch.cli.settings import Settings

if TYPE_CHECKING:
    from rompatch.store.records import FactEvent
    from rompatch.workflows.browsing import Chain


@command("history", examples=('rompatch history "Eiffel Tower"', "rompatch history 3f2a --json"))
@click.argument("name", type=WORDS)
@json_option
def history_command(settings: Settings, name: str, as_json: bool) -> None:
    """Show what happened to the facts about one subject, oldest first.

    Every patch on it: when it was made, put on a stack, taken off, replaced by another, by whom and why. NAME is a
    subject, or a patch whose subject is meant.
    """
    with settings.open_store() as store:
        chain = store.chain(name)
    if as_json:
        render.emit_json(chain.to_json())
        return
    rows = [
        (
            render.moment(event.at),
            _what(event),
            chain.patches[event.patch_id].label,
            _where(event),
            event.author or "",
            _why(chain, event),
        )
        for event in chain.events
    ]
    click.echo(render.table(("when (UTC)", "what", "patch", "where", "who", "why"), rows, flexible=2))


def _what(event: FactEvent) -> str:
    if event.kind == "off":
        return "superseded" if event.others else "off" if event.action == "revert" else f"off ({event.action})"
    if event.kind == "on":
        return "on" if event.action == "apply" else f"on ({event.action})"
    return {"create": "made", "remove": "deleted"}[event.kind]


def _where(event: FactEvent) -> str:
    return "" if event.stack is None else f"{event.stack}@r{event.revision}"


def _why(chain: Chain, event: FactEvent) -> str:
    word = "replaces" if event.kind == "on" else "by"
    others = [f"{word} {one[:12]}" for one in event.others]
    source = chain.patches[event.patch_id].source if event.kind == "create" else None
    gates = render.overridden(event.overridden)
    return " / ".join(filter(None, (*others, gates, event.message, event.reason, source)))
