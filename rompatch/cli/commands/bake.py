"""``bake``: base + stack as a checkpoint folder."""

from __future__ import annotations

from pathlib import Path

import click

from rompatch.cli import render
from rompatch.cli.options import MODEL, PATH, WORDS, command, json_option, option
from rompatch.cli.settings import Settings


@command("bake", examples=("rompatch bake ./edited-model", 'rompatch bake ./rome --patch "Eiffel Tower"'))
@click.argument("out", type=PATH)
@option(
    "--patch",
    "patches",
    multiple=True,
    type=WORDS,
    metavar="NAME",
    help="Only this patch instead of the active stack; may be given several times.",
)
@option(
    "--hard-link", is_flag=True, help="Link untouched files instead of copying them: the base must then stay as it is."
)
@option(
    "--verify-all", is_flag=True, help="Read everything back from the disk and compare it; list every tensor's hash."
)
@json_option
@option(
    "--model",
    type=WORDS,
    metavar="SPEC",
    group=MODEL,
    help="The base: a folder, a .gguf file, an alias or a hub id. Default: the patches' own.",
)
def bake_command(
    settings: Settings,
    out: Path,
    patches: tuple[str, ...],
    hard_link: bool,
    verify_all: bool,
    as_json: bool,
    model: str | None,
) -> None:
    """Write base + stack as a new checkpoint folder.

    Plain transformers loads OUT. Configuration, tokenizer and every untouched tensor are the base's own; the model
    card names the patches. The model is never loaded. A folder that exists is not overwritten.
    """
    from rompatch.workflows.baking import bake

    with settings.open_store() as store:
        spec = None if model is None else store.base_spec(model)
        baked = bake(store, out, names=patches or None, spec=spec, hard_link=hard_link, verify_all=verify_all)
    if as_json:
        render.emit_json(baked.to_json())
        return
    report = baked.report
    click.echo(
        f"baked {render.patches(len(baked.patches))} into {render.plain(str(report.folder))}: "
        f"{render.counted(report.files, 'file')}, {render.size(report.size)}, "
        f"{render.counted(len(report.rewritten), 'matrix', 'matrices')} rewritten"
    )
    for record in baked.patches:
        click.echo(f"  {render.plain(record.label)}")
    if report.left_out:
        settings.reporter().note(f"left out: {', '.join(report.left_out)}")
