"""``use``: the base of future patches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from rompatch.cli import render
from rompatch.cli.options import DTYPE, WORDS, command, json_option, option
from rompatch.cli.settings import Settings

if TYPE_CHECKING:
    from rompatch.workflows.opened import BaseSpec


@command("use", examples=("rompatch use ./my-model", "rompatch use smollm2-135m --dtype float32"))
@click.argument("model", type=WORDS)
@option("--dtype", type=DTYPE, help="Load it in this dtype. Default: its own.")
@option("--module", type=WORDS, metavar="PATTERN", help="Where the down-projection is, {} for the layer.")
@json_option
def use_command(settings: Settings, model: str, dtype: str | None, module: str | None, as_json: bool) -> None:
    """Choose the base model that new patches are made for.

    MODEL is a folder, a .gguf file, an alias or a hub id. Patches that exist keep their own base, and so does the
    active stack.
    """
    with settings.open_store(create=True) as store:
        change = store.use(model, dtype, module)
    if as_json:
        render.emit_json(change.to_json())
        return
    was = "none had been chosen" if change.before is None else f"was {_name(change.before)}"
    click.echo(f"new patches are made for {_name(change.after)} ({was})")


def _name(spec: BaseSpec) -> str:
    return render.plain(" ".join(filter(None, (spec.model, spec.dtype))))
