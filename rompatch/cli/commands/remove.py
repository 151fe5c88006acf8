"""``rm``: forget a patch."""

from __future__ import annotations

import sys

import click

from rompatch.cli import render
from rompatch.cli.options import WORDS, command, json_option, option
from rompatch.cli.settings import Settings


@command("rm", examples=('rompatch rm "Eiffel Tower"', "rompatch rm 3f2a --yes"))
@click.argument("name", type=WORDS)
@option("-y", "--yes", is_flag=True, help="Do not ask. Required where there is nobody to ask.")
@json_option
def rm_command(settings: Settings, name: str, yes: bool, as_json: bool) -> None:
    """Delete a patch that is not active.

    NAME is an id, four or more digits of one, or a subject. The file goes; the log keeps what happened. An active
    patch is refused: revert it first.
    """
    with settings.open_store() as store:
        record = store.resolve(name)
        if not yes:
            if not sys.stdin.isatty():
                raise click.UsageError("There is no terminal to ask on; say --yes to delete the patch.")
            if not click.confirm(f"Delete patch {render.plain(record.label)}?", err=True):
                click.echo("nothing was deleted", err=True)
                sys.exit(1)
        removed = store.remove(record.id)
    if as_json:
        request = removed.header.request
        new = None if request is None else request.target_new
        render.emit_json({"id": removed.id, "subject": removed.subject, "target_new": new})
    else:
        click.echo(f"removed {render.plain(removed.label)}")
