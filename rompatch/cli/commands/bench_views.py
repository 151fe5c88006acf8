"""``bench list``, ``show``, ``table``, ``compare``, ``worst`` and ``rm``: what became of benchmark runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from rompatch.cli import render
from rompatch.cli.options import WORDS, command, json_option, option
from rompatch.cli.settings import Settings

if TYPE_CHECKING:
    from rompatch.bench.failures import FailedPrompt, FailedRecord
    from rompatch.bench.tables import Change, Line
    from rompatch.store.bench import BenchResultRecord, BenchRunRecord

FORMATS = ("text", "markdown", "csv", "json")


@command("list", examples=("rompatch bench list",))
@json_option
def list_(settings: Settings, as_json: bool) -> None:
    """List benchmark runs, newest first."""
    with settings.open_store() as store:
        runs = store.bench_runs()
    if as_json:
        render.emit_json({"runs": [run.to_json() for run in runs]})
        return
    if not runs:
        settings.reporter().note("no runs yet: `rompatch bench counterfact FILE`")
        return
    click.echo(
        render.table(
            ("id", "name", "data set", "base", "layer", "scored", "failed", "begun"), map(_row, runs), right="456"
        )
    )


def _row(run: BenchRunRecord) -> tuple[str, ...]:
    layer, base = str(run.settings.get("layer", render.MISSING)), str(run.environment.get("base", render.MISSING))
    counts = (str(run.scored), str(run.failed))
    return (run.short_id, run.name or "", run.benchmark, base, layer, *counts, render.moment(run.created_at))


@command("show", examples=("rompatch bench show 3f2a",))
@click.argument("run", type=WORDS)
@json_option
def show(settings: Settings, run: str, as_json: bool) -> None:
    """Show a run: its settings, its scores, and what failed.

    RUN is its name, its id, or four or more digits of that.
    """
    with settings.open_store() as store:
        found = store.ledger.bench_run(run)
        lines, results = store.bench_table(found.id), store.bench_results(found.id)
    failed = [result for result in results if result.error is not None]
    if as_json:
        render.emit_json(
            {
                "run": found.to_json(),
                "table": [line.to_json() for line in lines],
                "failed": [_failure(result) for result in failed],
            }
        )
        return
    parts = [render.fields(_facts(found)), _measures(lines)]
    if failed:
        parts.append("\n".join(["failed:", *(f"  {_name(one.position, one.case_id)}: {one.error}" for one in failed)]))
    click.echo("\n\n".join(parts))


def _failure(result: BenchResultRecord) -> dict[str, Any]:
    names = ("position", "case_id", "request", "error_kind", "error")
    return {name: getattr(result, name) for name in names}


def _facts(run: BenchRunRecord) -> list[tuple[str, str | None]]:
    settings, environment = dict(run.settings), run.environment
    hparams = settings.pop("hparams", {})
    return [
        ("run", run.id),
        ("name", run.name),
        ("begun", render.moment(run.created_at)),
        ("records", f"{run.scored} scored, {run.failed} failed, of {environment.get('dataset')}"),
        ("base", f"{environment.get('base')} ({environment.get('dtype')})"),
        ("statistics text", environment.get("statistics")),
        ("preset", environment.get("preset")),
        ("hyper-parameters", ", ".join(f"{name} {value}" for name, value in sorted(hparams.items()))),
        *((name.replace("_", " "), str(value)) for name, value in sorted(settings.items()) if value is not None),
    ]


def _measures(lines: Sequence[Line]) -> str:
    """Every measure that was taken, before and after."""
    from rompatch.bench.markup import cell, header
    from rompatch.bench.tables import MEASURES

    before, after = lines[0].estimates, lines[-1].estimates
    rows = [
        (header(name), cell(name, before[name]), cell(name, after[name]), str(one.n))
        for name in MEASURES
        if (one := after[name] or before[name]) is not None
    ]
    return render.table(("measure", "before", "after", "n"), rows, right="123")


@command(
    "table",
    examples=(
        "rompatch bench table",
        "rompatch bench table layer-4 layer-5 --format markdown",
        "rompatch bench table 3f2a --exact",
    ),
)
@click.argument("runs", nargs=-1, type=WORDS)
@option("--exact", is_flag=True, help="Exact success, the way EasyEdit counts it, instead of the paper's columns.")
@option("--format", "form", type=click.Choice(FORMATS), default="text", show_default=True, help="How to print it.")
@json_option
def table(settings: Settings, runs: tuple[str, ...], exact: bool, form: str, as_json: bool) -> None:
    """Print runs in the layout of the paper's Table 4: means over records, 95 % intervals in parentheses.

    Without RUNS, all of them. Above them stands the unedited model. A minus sign means that nothing was measured.
    """
    from rompatch.bench.tables import same_records
    from rompatch.workflows.benchmarking import with_results

    with settings.open_store() as store:
        lines = store.bench_table(*runs)
        alike = same_records(with_results(store, runs))
    if as_json or form == "json":
        render.emit_json({"lines": [line.to_json() for line in lines], "same_records": alike})
        return
    if not lines:
        settings.reporter().note("no runs yet: `rompatch bench counterfact FILE`")
        return
    click.echo(table_text(lines, exact=exact, form=form))
    if not alike:
        settings.reporter().note("not all over the same records: `rompatch bench compare A B` pairs those of two runs")


def table_text(lines: Sequence[Line], *, exact: bool, form: str = "text") -> str:
    """A table of runs as text, Markdown or CSV."""
    from rompatch.bench import markup

    if form == "markdown":
        return markup.markdown(lines, exact)
    if form == "csv":
        return markup.as_csv(lines, exact)
    headers, rows = markup.cells(lines, exact)
    return _aligned(headers, rows)


def _aligned(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """As :func:`render.table`, which knows ten columns, all but the first to the right."""
    body = [[render.plain(text) for text in row] for row in rows]
    widths = [max(map(render.width, column)) for column in zip(headers, *body, strict=True)]

    def line(texts: Sequence[str]) -> str:
        gaps = [" " * (columns - render.width(text)) for text, columns in zip(texts, widths, strict=True)]
        return "  ".join([texts[0] + gaps[0], *(gap + text for text, gap in zip(texts[1:], gaps[1:], strict=True))])

    return "\n".join([click.style(line(headers), bold=True), *map(line, body)])


@command("compare", examples=("rompatch bench compare layer-4 layer-5",))
@click.argument("first", type=WORDS)
@click.argument("second", type=WORDS)
@json_option
def compare(settings: Settings, first: str, second: str, as_json: bool) -> None:
    """Compare two runs over the records that both scored: SECOND minus FIRST, paired, with 95 % intervals.

    A star marks differences whose interval leaves out 0.
    """
    with settings.open_store() as store:
        runs = [store.ledger.bench_run(name) for name in (first, second)]
        changes = store.bench_compare(*(run.id for run in runs))
    common = max((change.difference.n for change in changes if change.difference), default=0)
    if as_json:
        found = {change.name: change.to_json() for change in changes}
        render.emit_json({"first": runs[0].id, "second": runs[1].id, "common": common, "measures": found})
        return
    if not common:
        settings.reporter().note("the two runs scored no record in common")
        return
    rows = [_change_row(change) for change in changes if change.difference is not None]
    heads = ("measure", runs[0].label, runs[1].label, "difference", "", "n")
    click.echo(render.table(heads, rows, right="1235"))


def _change_row(change: Change) -> tuple[str, ...]:
    from rompatch.bench.markup import cell, header

    one = change.difference
    assert one is not None
    text = cell(change.name, one)
    signed = text if text.startswith("-") else f"+{text}"
    cells = (cell(change.name, part) for part in (change.first, change.second))
    return (header(change.name), *cells, signed, "*" if change.is_clear else "", str(one.n))


@command("worst", examples=("rompatch bench worst 3f2a --limit 20",))
@click.argument("run", type=WORDS)
@option("--limit", type=click.IntRange(min=1), default=10, show_default=True, metavar="N", help="Records shown.")
@json_option
def worst(settings: Settings, run: str, limit: int, as_json: bool) -> None:
    """List the records that fail, and why: errors first, then the prompts that do not come out as wanted.

    A margin is by how many nats a token the wanted object leads after the edit, and before it. Neighbours count where
    the edit broke them, not where the unedited model failed already.
    """
    with settings.open_store() as store:
        found = store.ledger.bench_run(run)
        failing = store.bench_worst(found.id)
    if as_json:
        shown = [record.to_json() for record in failing[:limit]]
        render.emit_json({"run": found.id, "failing": len(failing), "records": shown})
        return
    done = found.scored + found.failed
    head = f"something fails in {len(failing)} of {render.counted(done, 'record')}" + (
        f"; the worst {limit}:" if len(failing) > limit else ":" if failing else ""
    )
    click.echo("\n\n".join([head, *map(_block, failing[:limit])]))


def _block(record: FailedRecord) -> str:
    request = record.request
    about = f": {request['subject']} -> {request['target_new']}" if request else ""
    head = click.style(_name(record.position, record.case_id), bold=True) + render.plain(about)
    if record.error is not None:
        return f"{head}\n  {render.plain(record.error)}"
    rows = [_prompt_row(prompt) for prompt in record.prompts]
    body = render.table(("prompts", "prompt", "wanted", "rather", "margin", "before"), rows, right="45", flexible=1)
    return "\n".join([head, *(f"  {line}" for line in body.splitlines())])


def _prompt_row(prompt: FailedPrompt) -> tuple[str, ...]:
    margins = (render.MISSING if one is None else f"{one:+.2f}" for one in (prompt.margin, prompt.margin_before))
    return (prompt.kind, prompt.text, prompt.wanted, prompt.other or "?", *margins)


def _name(position: int, case_id: int | None) -> str:
    return f"record {position} of the file" if case_id is None else f"record {case_id}"


@command("rm", examples=("rompatch bench rm 3f2a --yes",))
@click.argument("run", type=WORDS)
@option("-y", "--yes", is_flag=True, help="Do not ask. Required where there is nobody to ask.")
@json_option
def rm(settings: Settings, run: str, yes: bool, as_json: bool) -> None:
    """Delete a run and its results. RUN is its name, its id, or four or more digits of that."""
    with settings.open_store() as store:
        found = store.ledger.bench_run(run)
        text = f"run {render.plain(found.label)} ({render.counted(found.scored + found.failed, 'record')})"
        if not yes:
            if not sys.stdin.isatty():
                raise click.UsageError("There is no terminal to ask on; say --yes to delete the run.")
            if not click.confirm(f"Delete {text}?", err=True):
                click.echo("nothing was deleted", err=True)
                sys.exit(1)
        removed = store.remove_bench(found.id)
    if as_json:
        render.emit_json(_removed(removed))
    else:
        click.echo(f"removed {text}")


def _removed(run: BenchRunRecord) -> dict[str, Any]:
    return {"id": run.id, "name": run.name, "scored": run.scored, "failed": run.failed}


VIEWS = (list_, show, table, compare, worst, rm)
