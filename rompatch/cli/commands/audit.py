"""``audit``: what is inside a checkpoint?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rompatch.cli import render
from rompatch.cli.options import MODEL, PATH, WORDS, command, json_option, option
from rompatch.cli.settings import Settings

if TYPE_CHECKING:
    from rompatch.workflows.audited import Audited, TensorFound


@command("audit", examples=("rompatch audit ./edited-model", "rompatch audit ./downloaded --manifest"))
@click.argument("folder", type=PATH)
@option("--manifest", is_flag=True, help="Check the folder against its own manifest alone: no base, no store.")
@json_option
@option(
    "--model",
    type=WORDS,
    metavar="SPEC",
    group=MODEL,
    help="The base: a folder, a .gguf file, an alias or a hub id. Default: the active stack's.",
)
def audit_command(settings: Settings, folder: Path, manifest: bool, as_json: bool, model: str | None) -> None:
    """Say which patches are inside a checkpoint.

    FOLDER is any checkpoint made from the base: baked, merged or trained further. Its tensors are compared with the
    base's; where they differ, the patches of the store that make the difference are named, and what no patch explains.
    Exit code 3 unless everything is explained and nothing of the active stack is missing.
    """
    from rompatch.workflows.auditing import audit, audit_manifest

    if manifest:
        found: Audited = audit_manifest(folder)
    else:
        with settings.open_store(scratch=True) as store:
            found = audit(store, folder, spec=None if model is None else store.base_spec(model))
    if as_json:
        render.emit_json(found.to_json())
    else:
        _show(found)
    if not found.is_clean:
        sys.exit(3)


def _show(found: Audited) -> None:
    click.echo(render.plain(found.verdict))
    if found.patches:
        rows = [(patch.status, "active" if patch.active else "", patch.label) for patch in found.patches]
        click.echo("\n" + render.table(("patch is", "", "id and fact"), rows, flexible=2))
    if found.tensors:
        lines = [(tensor.name, tensor.status, _size(tensor.relative), _how(tensor)) for tensor in found.tensors]
        click.echo("\n" + render.table(("tensor", "change is", "||dW||/||W||", "how"), lines, right="2", flexible=0))
    rest = f"{render.counted(found.equal, 'tensor')} unchanged"
    rest += f", {found.rounded:,} the base's in another dtype" if found.rounded else ""
    rest += f", {found.unchecked:,} not named in the manifest" if found.unchecked else ""
    click.echo("\n" + rest)


def _how(tensor: TensorFound) -> str:
    found = tensor.explanation
    if found is None:
        return ""
    members = f"{render.patches(len(found.members))} ({found.origin})" if found.members else "no patch"
    if found.remainder is None:
        exact = {"exact": "bit for bit", "rounding": "up to rounding"}
        return f"{members}, " + exact.get(found.match or "", f"but for {found.differing:,} roundings")
    rank = "above 32" if found.remainder.rank is None else str(found.remainder.rank)
    return f"{members}, and a rest of rank {rank}, {_size(found.remainder.of_change)} of the change"


def _size(value: float | None) -> str:
    return render.MISSING if value is None else f"{value:.2g}"
