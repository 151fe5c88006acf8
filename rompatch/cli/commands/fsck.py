"""``fsck``: is the store whole?"""

from __future__ import annotations

import sys

import click

from rompatch.cli import render
from rompatch.cli.options import command, json_option, option
from rompatch.cli.settings import Settings


@command("fsck", examples=("rompatch fsck", "rompatch fsck --repair"))
@option("--repair", is_flag=True, help="Mend what can be mended without losing anything.")
@json_option
def fsck_command(settings: Settings, repair: bool, as_json: bool) -> None:
    """Check that ledger and patch files are whole and agree.

    Every patch file is read and compared with its id. Exit code 1 when something is damaged. --repair deletes what
    interrupted writes left behind, and records whole patch files that the ledger does not know.
    """
    with settings.open_store() as store:
        checked = store.check(mend=repair)
    if as_json:
        render.emit_json(checked.to_json())
    for finding in () if as_json else checked.findings:
        done = "repaired" if finding in checked.repaired else finding.kind
        click.echo(f"{done}: {render.plain(finding.message)}")
    if not as_json and not checked.findings:
        click.echo(f"the store is whole: {render.patches(checked.n_patches)}")
    if checked.damaged:
        if any(finding.repairable for finding in checked.findings) and not repair:
            settings.reporter().note("next: rompatch fsck --repair")
        sys.exit(1)
