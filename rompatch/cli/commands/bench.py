"""``bench``: methods scored on whole data sets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from rompatch.cli import render
from rompatch.cli.commands.bench_views import VIEWS, table_text
from rompatch.cli.method_options import METHOD, method_options, taken_apart
from rompatch.cli.options import (
    PATH,
    WORDS,
    command,
    global_options,
    json_option,
    model_options,
    option,
    stacked,
    write_examples,
    write_options,
)
from rompatch.cli.settings import Settings

if TYPE_CHECKING:
    from rompatch.bench.tasks import Benchmark
    from rompatch.workflows.benchmarking import Benched

TEXTS = "Text that the model writes or reads"


class BenchGroup(click.Group):
    """``bench`` and its subcommands."""

    examples = (
        "rompatch bench counterfact counterfact.json --limit 300",
        "rompatch bench table",
        "rompatch bench compare before after",
    )

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The subcommands, then the global options."""
        self.format_commands(ctx, formatter)
        write_options(self, ctx, formatter)
        write_examples(self.examples, formatter)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, but the data set that is no benchmark gets an explanation."""
        if args and args[0] == "known_1000":
            raise click.UsageError(
                "known_1000 has facts but no new object for them, so there is no edit to score. "
                "Use COUNTERFACT or zsRE records.",
                ctx,
            )
        return super().resolve_command(ctx, args)


@click.group("bench", cls=BenchGroup, params=global_options())
def bench_command() -> None:
    """Score a method on a whole data set, and compare runs.

    Every record is edited alone, scored before and after, and forgotten: no patch is kept. Runs live in the store; one
    that was interrupted, or killed, goes on where it was when the same command is given again.
    """


_run_options = stacked(
    option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N records of the file."),
    option(
        "--shard", type=WORDS, metavar="I/N", help="Of these, every N-th from the I-th on: 2/4. One run, N processes."
    ),
    option("--name", type=WORDS, metavar="TEXT", help="What the run is called. A name belongs to one run."),
    option(
        "--strict/--collect",
        default=False,
        help="Stop at the first record that fails, or record the failure and go on (default).",
    ),
    option("--retry", is_flag=True, help="Try the records again that failed before."),
    option(
        "--method",
        type=click.Choice(["rome"]),
        default="rome",
        show_default=True,
        group=METHOD,
        help="The method that makes the patches.",
    ),
    json_option,
    model_options,
    method_options,
)


@command(
    "counterfact",
    examples=(
        "rompatch bench counterfact counterfact.json --limit 300",
        "rompatch bench counterfact counterfact.json --layer 5 --name layer-5",
        "rompatch bench counterfact counterfact.json --shard 1/2",
        "rompatch bench counterfact counterfact.json --generation --references snippets.json",
    ),
)
@click.argument("file", type=WORDS)
@option("--generation", is_flag=True, group=TEXTS, help="Let the model write before and after: GE. Slow.")
@option("--references", type=PATH, metavar="FILE", group=TEXTS, help="Texts to compare that with: RS.")
@option("--essence", type=PATH, metavar="FILE", group=TEXTS, help="Texts about the subjects: their perplexity.")
@_run_options
def counterfact(settings: Settings, file: str, as_json: bool, **given: Any) -> None:
    """Run COUNTERFACT records.

    FILE is a file of records, a folder, an address, or `counterfact` for the authors' publication.
    """
    _run(settings, "counterfact", file, as_json, given)


@command(
    "zsre",
    examples=(
        "rompatch bench zsre zsre_mend_eval.json --limit 1000",
        "rompatch bench zsre zsre_mend_eval.json --teach alternative",
    ),
)
@click.argument("file", type=WORDS)
@option(
    "--teach",
    type=click.Choice(["answer", "alternative"]),
    default="answer",
    show_default=True,
    help="What the edit teaches: the true answer (the ROME paper), or the wrong one (EasyEdit).",
)
@_run_options
def zsre(settings: Settings, file: str, as_json: bool, **given: Any) -> None:
    """Run zsRE records (MEND's evaluation file).

    FILE is a file of records, a folder, an address, or `zsre` for the authors' publication. Success is counted in exact
    tokens: these records have no true object to compare with.
    """
    _run(settings, "zsre", file, as_json, given)


def _run(settings: Settings, benchmark: Benchmark, file: str, as_json: bool, given: dict[str, Any]) -> None:
    from rompatch.workflows.bench_setting import BenchOptions, check_options

    spec, hparams = taken_apart(given)
    options = BenchOptions(hparams=hparams, **given)
    check_options(options)  # refused before a store is made
    with settings.open_store(create=True) as store:
        done = store.bench(benchmark, file, **{**vars(options), "spec": store.base_spec(**spec)})
        lines = store.bench_table(done.run.id)
    if as_json:
        render.emit_json({**done.to_json(), "table": [line.to_json() for line in lines]})
    else:
        click.echo(table_text(lines, exact=benchmark == "zsre"))
        _notes(settings, done)
    done.check()


def _notes(settings: Settings, done: Benched) -> None:
    reporter, run = settings.reporter(), done.run
    if run.failed:
        reporter.note(f"{render.counted(run.failed, 'record')} failed: rompatch bench worst {run.short_id}")
    reporter.note(
        f"run {run.short_id}"
        + (f" ({run.name})" if run.name else "")
        + f": {render.counted(run.scored, 'record')} scored"
    )


for _subcommand in (counterfact, zsre, *VIEWS):
    bench_command.add_command(_subcommand)
