"""``gates``: what every apply has to pass."""

from __future__ import annotations

from collections.abc import Mapping

import click

from rompatch.cli import render
from rompatch.cli.options import (
    WORDS,
    command,
    global_options,
    json_option,
    write_examples,
    write_options,
)
from rompatch.cli.settings import Settings

_PERCENT = ("min_S", "max_drift")
"""Gates that people give as percentages."""

_ABOUT = {
    "max_delta_norm": "||Delta|| / ||W|| of any weight at most",
    "max_interference": "harm of one patch to another at most",
    "min_S": "S of each new patch, as last verified, at least (percent)",
    "max_drift": "rise of perplexity at most (percent); needs apply --verify",
}


class GatesGroup(click.Group):
    """``gates`` and its subcommands."""

    examples = ("rompatch gates set max_delta_norm=0.5 min_S=80", "rompatch gates show")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The subcommands, then the global options."""
        self.format_commands(ctx, formatter)
        write_options(self, ctx, formatter)
        write_examples(self.examples, formatter)


@click.group("gates", cls=GatesGroup, params=global_options())
def gates_command() -> None:
    """Set what every apply has to pass.

    A gate that is set holds for each `rompatch apply` in this store; what misses it is refused with exit code 3, unless
    `--override GATE --reason TEXT` says otherwise, which the revision records.
    """


@command("show", examples=("rompatch gates show", "rompatch gates show --json"))
@json_option
def show_command(settings: Settings, as_json: bool) -> None:
    """Show the gates that are set."""
    with settings.open_store() as store:
        _report(store.gates(), as_json)


@command(
    "set",
    examples=("rompatch gates set max_delta_norm=0.5", "rompatch gates set max_interference=1 min_S=80 max_drift=2"),
)
@click.argument("limits", metavar="GATE=NUMBER...", nargs=-1, required=True, type=WORDS)
@json_option
def set_command(settings: Settings, limits: tuple[str, ...], as_json: bool) -> None:
    """Set gates; the others stay.

    GATE is max_delta_norm (||Delta|| / ||W|| of any weight), max_interference (harm of one patch to another), min_S (S
    of each new patch as it was last verified, in percent) or max_drift (rise of perplexity, in percent; measured by
    `apply --verify`, which is then needed).
    """
    wanted = dict(map(_limit, limits))
    with settings.open_store() as store:
        _report(store.set_gates(**wanted), as_json)


@command("unset", examples=("rompatch gates unset max_drift",))
@click.argument("names", metavar="GATE...", nargs=-1, required=True, type=WORDS)
@json_option
def unset_command(settings: Settings, names: tuple[str, ...], as_json: bool) -> None:
    """Remove gates."""
    with settings.open_store() as store:
        _report(store.unset_gates(*names), as_json)


def _limit(text: str) -> tuple[str, float]:
    name, equals, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        equals = ""
        value = 0.0
    if not equals:
        raise click.BadParameter(f"{text!r} is no gate with a number: write max_delta_norm=0.5.")
    return name.strip(), value / 100 if name.strip() in _PERCENT else value


def _report(gates: Mapping[str, float], as_json: bool) -> None:
    if as_json:
        render.emit_json({"gates": dict(gates)})
    elif not gates:
        click.echo("no gate is set")
    else:
        rows = [
            (name, f"{100 * limit if name in _PERCENT else limit:g}", _ABOUT[name]) for name, limit in gates.items()
        ]
        click.echo(render.table(("gate", "limit", "what"), rows, right="1"))


for _child in (show_command, set_command, unset_command):
    gates_command.add_command(_child)
