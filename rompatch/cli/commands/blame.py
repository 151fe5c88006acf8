"""``blame``: which patches change an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from rompatch.cli import render
from rompatch.cli.options import WORDS, command, json_option, model_options, option
from rompatch.cli.settings import Settings

if TYPE_CHECKING:
    from rompatch.workflows.blaming import Answer, Blame


@command(
    "blame",
    examples=(
        'rompatch blame "The Eiffel Tower is located in the city of"',
        'rompatch blame "Big Ben is in" --target London --most 0 --json',
    ),
)
@click.argument("prompt", type=WORDS)
@option("--target", type=WORDS, metavar="TEXT", help="The answer in question. Default: the edited model's first word.")
@option(
    "--most",
    type=click.IntRange(min=0),
    default=16,
    show_default=True,
    metavar="N",
    help="Leave out so many patches, those that the prompt excites most; 0: every one.",
)
@option("--document-start/--no-document-start", default=None, help="Begin with a document separator, or not.")
@json_option
@model_options
def blame_command(settings: Settings, prompt: str, as_json: bool, **given: Any) -> None:
    """Say which patches of the active stack change an answer.

    Prints the probability of the answer on the base, with the stack, and with the stack that never had each patch, the
    patch with the greatest effect first. No patch is recomputed and no weight changes.
    """
    with settings.open_store() as store:
        found = store.blame(prompt, **given)
    if as_json:
        render.emit_json(found.to_json())
        return
    click.echo(_text(found))
    if found.left_in:
        settings.reporter().note(f"{render.patches(found.left_in)} hardly excited by this prompt: not left out")


def _text(found: Blame) -> str:
    about = [
        ("prompt", found.prompt),
        ("answer", found.target),
        ("base", _answer(found.base)),
        (f"stack {found.stack.name}", _answer(found.edited)),
    ]
    rows = [
        (share.patch.label, render.probability(share.without.probability), share.without.says, f"{share.effect:+.3f}")
        for share in found.shares
    ]
    heads = ("without", "P(answer)", "says", "effect")
    return f"{render.fields(about)}\n\n{render.table(heads, rows, right='13', flexible=0)}"


def _answer(answer: Answer) -> str:
    return f"{render.probability(answer.probability)}, says {answer.says!r}"
