"""``import``: adapters that other programs trained, as patches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rompatch.cli import render
from rompatch.cli.groups import Group
from rompatch.cli.options import (
    PATH,
    WORDS,
    command,
    global_options,
    json_option,
    message_option,
    model_options,
    option,
)
from rompatch.cli.settings import Settings


@click.group(
    "import", cls=Group, params=global_options(), examples=("rompatch import peft ./my-lora --name 'house style'",)
)
def import_command() -> None:
    """Bring in what other programs made.

    Bundles of patches are imported by `rompatch bundle import`.
    """


@command(
    "peft",
    examples=(
        "rompatch import peft ./my-lora",
        "rompatch import peft ./my-lora --model ./my-model --name 'house style'",
    ),
)
@click.argument("folder", metavar="DIR", type=PATH)
@option("--name", type=WORDS, metavar="TEXT", help="What it is called and found by. Default: the folder's name.")
@option("--max-rank", type=click.IntRange(min=1), metavar="N", help="The highest rank that is accepted. Default: 64.")
@message_option
@json_option
@model_options
def peft(
    settings: Settings,
    folder: Path,
    name: str | None,
    max_rank: int | None,
    message: str | None,
    as_json: bool,
    device: str,
    **given: Any,
) -> None:
    """Bring a LoRA adapter of PEFT into the store.

    DIR holds adapter_config.json and adapter_model.safetensors. The adapter becomes a patch: it is applied, reverted
    exactly, stacked, baked and shared like others. It has no keys, so in a stack it is added to what the others give.
    """
    with settings.open_store(create=True) as store:
        spec = store.base_spec(**given)
        done = store.import_peft(folder, name=name, spec=spec, device=device, max_rank=max_rank, message=message)
    if as_json:
        render.emit_json(done.to_json())
        return
    ranks = sorted(set(done.ranks.values()))
    shown = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    weights = render.counted(len(done.ranks), "weight")
    click.echo(
        render.fields(
            [
                ("patch" if done.is_new else "exists", done.record.id),
                ("title", done.record.subject),
                ("base", done.record.header.base.source),
                ("changes", f"{weights}, rank {shown}"),
                ("stacking", "has no keys: it is added to what the other patches give"),
                ("file", render.size(done.record.file_size)),
            ]
        )
    )
    settings.reporter().note(f"next: rompatch apply {done.record.short_id}")


import_command.add_command(peft)
