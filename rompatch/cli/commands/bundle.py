"""``bundle``: a stack as one file, exported, looked at, checked, imported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rompatch.cli import render
from rompatch.cli.groups import Group
from rompatch.cli.options import PATH, WORDS, command, global_options, json_option, option
from rompatch.cli.settings import Settings

if TYPE_CHECKING:
    from rompatch.workflows.bundling import BundleReport

signers_option = option(
    "--allowed-signers", type=PATH, metavar="FILE", help="Who may have signed it: an allowed_signers file, as ssh's."
)
require_option = option("--require-signature", is_flag=True, help="Refuse a bundle that is not signed.")


@click.group(
    "bundle",
    cls=Group,
    params=global_options(),
    examples=("rompatch bundle export -o facts.rompatch", "rompatch bundle import facts.rompatch"),
)
def bundle_command() -> None:
    """Share a stack as one file.

    A bundle holds the patches of a stack, its history, and what its patches scored. It is imported with every check
    that a patch of one's own gets, and it may be signed with an ssh key.
    """


@command(
    "export",
    examples=(
        "rompatch bundle export -o facts.rompatch",
        "rompatch bundle export main -o facts.rompatch --sign ~/.ssh/id_ed25519",
    ),
)
@click.argument("stack", required=False, type=WORDS)
@option("-o", "--out", type=PATH, required=True, metavar="FILE", help="The file to make.")
@option("--sign", type=PATH, metavar="KEYFILE", help="A private ssh key to sign it with.")
@json_option
def export(settings: Settings, stack: str | None, out: Path, sign: Path | None, as_json: bool) -> None:
    """Write a stack into one file.

    STACK is a stack's name; the active one by default. The file holds the patches that are on it, all its revisions,
    and every verification of its patches. Patches that left it are named in its history, not included.
    """
    with settings.open_store() as store:
        report = store.export_bundle(out, stack, sign=sign)
    if as_json:
        render.emit_json(report.to_json())
        return
    click.echo(render.plain(f"exported {_contents(report)} of stack {report.manifest.stack!r} into {report.file}"))
    click.echo(_state(report))


@command(
    "import",
    examples=(
        "rompatch bundle import facts.rompatch",
        "rompatch bundle import facts.rompatch --require-signature --allowed-signers ~/.ssh/allowed_signers",
    ),
)
@click.argument("file", type=PATH)
@option(
    "--into", type=WORDS, metavar="STACK", help="The stack to put them on. Default: a new one of the bundle's name."
)
@signers_option
@require_option
@json_option
def import_(
    settings: Settings,
    file: Path,
    into: str | None,
    allowed_signers: Path | None,
    require_signature: bool,
    as_json: bool,
) -> None:
    """Bring the patches of a bundle into the store.

    They become active in one stack as one revision, whose details keep the bundle's history. All of it happens or
    nothing; what is on the stack already is left alone, so importing a bundle twice changes nothing.
    """
    with settings.open_store(create=True) as store:
        done = store.import_bundle(file, into, allowed_signers=allowed_signers, require_signature=require_signature)
    if as_json:
        render.emit_json(done.to_json())
        return
    if done.report.signed and done.report.signer is None:
        settings.reporter().note("the bundle is signed, but nobody checked by whom: --allowed-signers FILE")
    count = render.patches(len(done.report.manifest.patches))
    if done.revision is None:
        click.echo(f"stack {done.stack!r} holds {count} of this bundle already: nothing was changed")
        return
    new = len(done.new_patches)
    click.echo(f"imported {count} ({new} new to this store) and {render.counted(done.runs, 'verification run')}")
    members = render.patches(len(done.revision.members))
    click.echo(f"stack {done.stack!r} is at revision {done.revision.number} with {members}")


@command("show", examples=("rompatch bundle show facts.rompatch",))
@click.argument("file", type=PATH)
@json_option
def show(settings: Settings, file: Path, as_json: bool) -> None:
    """Show what a bundle says it holds.

    A bundle that was damaged or tampered with is refused: every byte and every patch is checked first. Who signed it is
    for `rompatch bundle verify`. Nothing is imported.
    """
    from rompatch.workflows.bundling import read_bundle

    report = read_bundle(file)
    if as_json:
        render.emit_json(report.to_json())
        return
    manifest = report.manifest
    base = f"{manifest.base.source} ({manifest.base.model_type}, {manifest.base.dtype})"
    click.echo(
        render.fields(
            [
                ("bundle", f"{report.sha256} ({render.size(report.size)})"),
                ("stack", f"{manifest.stack}, revision {manifest.revision}"),
                ("base", base),
                ("runs", render.counted(report.runs, "verification run")),
                ("signed", "yes, by whom was not checked" if report.signed else "no"),
                ("written by", f"rompatch {manifest.rompatch}"),
            ]
        )
    )
    click.echo()
    patches = [(patch.id[:12], patch.label, render.moment(patch.created_at)) for patch in manifest.patches]
    click.echo(render.table(("patch", "fact", "created (UTC)"), patches, flexible=1))
    click.echo()
    revisions = [
        (
            str(one.number),
            render.moment(one.created_at),
            one.action,
            str(len(one.members)),
            one.author or "",
            one.message or "",
        )
        for one in manifest.revisions[::-1]
    ]
    click.echo(render.table(("revision", "when (UTC)", "what", "patches", "who", "message"), revisions, right="03"))


@command(
    "verify",
    examples=(
        "rompatch bundle verify facts.rompatch",
        "rompatch bundle verify facts.rompatch --require-signature --allowed-signers ~/.ssh/allowed_signers",
    ),
)
@click.argument("file", type=PATH)
@signers_option
@require_option
@json_option
def verify(
    settings: Settings, file: Path, allowed_signers: Path | None, require_signature: bool, as_json: bool
) -> None:
    """Check a bundle whole: every byte, every patch, and who signed it.

    Nothing is imported, and no store is needed.
    """
    from rompatch.workflows.bundling import read_bundle

    report = read_bundle(file, allowed_signers=allowed_signers, require_signature=require_signature)
    if as_json:
        render.emit_json(report.to_json())
        return
    click.echo(f"the bundle is whole: {_contents(report)}")
    click.echo(_state(report))


def _contents(report: BundleReport) -> str:
    manifest = report.manifest
    revisions = render.counted(len(manifest.revisions), "revision")
    runs = render.counted(report.runs, "verification run")
    return f"{render.patches(len(manifest.patches))}, {revisions}, {runs}"


def _state(report: BundleReport) -> str:
    signed = "not signed" if not report.signed else "signed"
    by = "" if report.signer is None else f" by {render.plain(report.signer)}"
    return f"{report.sha256}, {render.size(report.size)}, {signed}{by}"


for _subcommand in (export, import_, show, verify):
    bundle_command.add_command(_subcommand)
