"""``tune``: layers and hyper-parameters compared on records of a file."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rompatch.cli import render
from rompatch.cli.commands.stats import LAYERS as ONE_RANGE
from rompatch.cli.method_options import HPARAMS
from rompatch.cli.options import MODEL, PATH, WORDS, command, json_option, model_options, option, stacked
from rompatch.cli.settings import Settings

if TYPE_CHECKING:
    from rompatch.verify.intervals import Estimate
    from rompatch.workflows.tuned import Standing, Tuned

GRID, STATISTICS = "To be tried (values with commas between them)", "Key statistics"
COLUMNS = ("es", "em", "ps", "ns", "s")


def LAYERS(value: str) -> tuple[range, ...]:  # noqa: N802 - a parameter type, named as click names its own
    """ "4", "3-5" or "2,4-6"."""
    return tuple(ONE_RANGE(part) for part in value.split(","))


def values(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """The type of a comma list of *kind*."""

    def parse(value: str) -> list[Any]:
        if not value.strip():
            raise click.BadParameter("there is nothing to try.")
        try:
            return [kind(part.strip()) for part in value.split(",")]
        except ValueError as problem:
            wanted = "whole numbers" if kind is int else "numbers"
            raise click.BadParameter(f"{value!r} is no list of {wanted} with commas between them.") from problem

    return parse


def _grid(name: str, kind: Callable[[str], Any], text: str) -> Callable[[Any], Any]:
    flag = f"--{name.replace('_', '-')}"
    return option(flag, name, type=values(kind), metavar="X,..." if kind is float else "N,...", group=GRID, help=text)


_grid_options = stacked(
    option("--keys", type=values(str), metavar="mixed,both", group=GRID, help="As create's --key."),
    _grid("gain", float, "The residual, as a multiple of delta."),
    _grid("spread", int, "Layers of the value, the edited one and those right below; with --keys both."),
    _grid("steps", int, "Steps at most."),
    option("--optimiser", type=values(str), metavar="adam,lbfgs", group=GRID, help="As create's."),
    _grid("value_contexts", int, "Contexts that v* is optimised under."),
    _grid("lr", float, "Learning rates of Adam."),
    _grid("ridge", float, "Added to C, relative to its mean diagonal."),
    _grid("weight_decay", float, "Weights of the norm of delta."),
    _grid("norm_penalty", float, "Weights of (||delta|| / ||W k||)^2."),
    _grid("clamp_norm_factor", float, "||delta|| <= X ||W k||."),
    _grid("kl_factor", float, "Weights of the essence term."),
    _grid("early_stop_loss", float, "Stop below this loss."),
    _grid("target_loss", float, "Stop below this loss of the object alone."),
)


@command(
    "tune",
    examples=(
        "rompatch tune tuning.json --layers 2-8 --corpus wikipedia.txt --out preset.json",
        "rompatch tune tuning.json --layers 3-5 --steps 10,15 --keys mixed,mean",
        "rompatch tune tuning.json --layers 0-11 --statistics auto --rung 4 --limit 64",
    ),
)
@click.argument("file", type=WORDS)
@option("--layers", type=LAYERS, required=True, metavar="N,N-M", group=GRID, help="Layers and ranges of layers.")
@option("--out", type=PATH, metavar="FILE", help="Write the best one's preset, with the evidence for it.")
@option("--force", is_flag=True, help="Overwrite that file.")
@option(
    "--rung",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    metavar="N",
    help="Records that every candidate is scored on.",
)
@option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N records of the file.")
@json_option
@_grid_options
@option("--corpus", type=WORDS, metavar="FILE|DIR|hub:NAME", group=STATISTICS, help="Build them from this text.")
@option(
    "--statistics",
    type=click.Choice(["auto", "none"]),
    group=STATISTICS,
    help="Sample text from the model for layers without any (auto), or do without. Default: those at hand.",
)
@option("--tokens", type=click.IntRange(min=1), metavar="N", group=STATISTICS, help="Tokens of text to count.")
@option("--preset", type=PATH, metavar="FILE", group=MODEL, help="Where all else comes from. Default: the model's own.")
@option("--seed", type=int, default=0, show_default=True, metavar="N", group=MODEL, help="Of contexts and sampling.")
@option(
    "--document-start/--no-document-start",
    default=None,
    group=MODEL,
    help="Put the document separator before every prompt, or not. Default: the preset's.",
)
@option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    group=MODEL,
    help="Of the products; auto takes the faster one here.",
)
@model_options
def tune_command(settings: Settings, file: str, as_json: bool, layers: tuple[range, ...], **given: Any) -> None:
    """Find the layer and hyper-parameters for a model; write a preset.

    FILE holds COUNTERFACT records that nothing is reported on later. Every candidate is scored on a few of them; the
    better half by S goes on to twice as many, until one is left or the file is used up. An interrupted tuning goes on
    where it was when the same command is given again.
    """
    from rompatch.workflows.tuned import TuneOptions
    from rompatch.workflows.tuning import check_options

    spec = {name: given.pop(name) for name in ("model", "dtype", "module")}
    grid = {name: tried for name in HPARAMS if (tried := given.pop(name)) is not None}
    check_options(TuneOptions(grid=grid, **given))  # refused before a store is made
    with settings.open_store(create=True) as store:
        named = chain.from_iterable(layers)
        tuned = store.tune(file, named, grid=grid, spec=store.base_spec(**spec), **given)
    if as_json:
        render.emit_json(tuned.to_json())
        return
    click.echo(table_text(tuned))
    _notes(settings, tuned)


def table_text(tuned: Tuned) -> str:
    """Candidates, best first: records, scores with half widths of their intervals, seconds an edit."""
    headers = ("candidate", "records", "failed", *map(str.upper, COLUMNS), "s an edit")
    return render.table(headers, map(_row, tuned.standings), right="12345678", flexible=0)


def _row(standing: Standing) -> tuple[str, ...]:
    scores = (_cell(standing.estimates.get(name)) for name in COLUMNS)
    seconds = render.MISSING if standing.seconds is None else f"{standing.seconds:.2f}"
    return (standing.candidate.label, str(standing.records), str(standing.failed), *scores, seconds)


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return render.MISSING
    width = "" if estimate.half_width is None else f" ({100 * estimate.half_width:.1f})"
    return f"{100 * estimate.value:.1f}{width}"


def _notes(settings: Settings, tuned: Tuned) -> None:
    reporter = settings.reporter()
    for standing in tuned.standings:
        if standing.dropped is not None:
            reporter.note(f"dropped {standing.candidate.label}: {standing.dropped}")
    if tuned.best.failed and tuned.best.run is not None:
        failed = render.counted(tuned.best.failed, "record")
        reporter.note(f"{failed} of the best candidate failed: rompatch bench worst {tuned.best.run[:12]}")
    if tuned.out is not None:
        reporter.note(f"wrote {tuned.out}: rompatch create ... --preset {_quoted(tuned.out)}")


def _quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))
