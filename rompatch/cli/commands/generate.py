"""``generate``: what the edited model says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from rompatch.cli import render
from rompatch.cli.options import WORDS, command, json_option, model_options, option
from rompatch.cli.settings import Settings

if TYPE_CHECKING:
    from rompatch.workflows.generating import Generated

SAMPLING = "Sampling"


@command(
    "generate",
    examples=(
        'rompatch generate "The Eiffel Tower is located in the city of" --compare',
        'rompatch generate "The Louvre is in" "Big Ben is in" --patch "Eiffel Tower" --max-new-tokens 10',
        'rompatch generate "Once upon a time" --sample --temperature 0.8 --seed 1',
    ),
)
@click.argument("prompts", metavar="PROMPT...", nargs=-1, required=True, type=WORDS)
@option("--compare", is_flag=True, help="The base's continuation beside the edited model's.")
@option(
    "--patch",
    "patches",
    multiple=True,
    type=WORDS,
    metavar="NAME",
    help="Only this patch instead of the active stack; may be given several times.",
)
@option("--max-new-tokens", type=int, default=20, show_default=True, metavar="N", help="Tokens at most.")
@option(
    "--document-start/--no-document-start",
    default=None,
    help="Put the document separator before every prompt, or not. Default: as the patches were computed.",
)
@json_option
@option("--sample", is_flag=True, group=SAMPLING, help="Draw tokens instead of taking the likeliest.")
@option("--temperature", type=float, default=1.0, show_default=True, metavar="X", group=SAMPLING, help="Of the draws.")
@option("--top-k", type=int, default=0, show_default=True, metavar="N", group=SAMPLING, help="Likeliest N; 0: all.")
@option("--top-p", type=float, default=1.0, show_default=True, metavar="X", group=SAMPLING, help="Likeliest share.")
@option("--seed", type=int, default=0, show_default=True, metavar="N", group=SAMPLING, help="Of the draws.")
@model_options
def generate_command(
    settings: Settings, prompts: tuple[str, ...], patches: tuple[str, ...], as_json: bool, **given: Any
) -> None:
    """Continue prompts with the edited model.

    The active stack is in the weights, or the patches named with --patch. Nothing is recorded.
    """
    with settings.open_store(scratch=True) as store:
        records = [store.resolve(name) for name in patches] if patches else list(store.active())
        ids = tuple(record.id for record in records)
        found = store.generate(*prompts, patches=ids, **given)
    if as_json:
        render.emit_json({"patches": list(ids), "continuations": [one.to_json() for one in found]})
        return
    click.echo("\n\n".join(map(_text, found)))
    if not records:
        settings.reporter().note("no patch is active: this is the base itself")


def _text(one: Generated) -> str:
    prompt = click.style(render.plain(one.prompt, keep="\n\t"), bold=True)
    if one.base is None:
        return prompt + render.plain(one.edited, keep="\n\t")
    lines = [prompt]
    for name, text in (("base", one.base), ("edited", one.edited)):
        shown = render.plain(text, keep="\n\t").strip("\n").replace("\n", "\n          ")
        lines.append(f"  {name:6}  {shown.strip()}")
    return "\n".join(lines)
