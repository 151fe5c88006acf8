"""``stats``: key statistics C, built, listed, removed."""

from __future__ import annotations

import re
from itertools import chain
from typing import TYPE_CHECKING, Any

import click

from rompatch.cli import render
from rompatch.cli.groups import Group
from rompatch.cli.options import (
    MODEL,
    WORDS,
    command,
    global_options,
    json_option,
    model_options,
    option,
)
from rompatch.cli.settings import Settings

if TYPE_CHECKING:
    from rompatch.compute.statistics_files import StatisticsFile


def LAYERS(value: str) -> range:  # noqa: N802 - a parameter type, named as click names its own
    """ "4" or "3-5"."""
    parts = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", value.strip(), re.ASCII)
    if parts is None:
        raise click.BadParameter(f"{value!r} is neither a layer, like 4, nor a range of layers, like 3-5.")
    first, last = int(parts[1]), int(parts[2] or parts[1])
    if last < first:
        raise click.BadParameter(f"The range {value!r} ends before it begins: write {last}-{first}.")
    return range(first, last + 1)


@click.group(
    "stats",
    cls=Group,
    params=global_options(),
    examples=("rompatch stats build --corpus wikipedia.txt", "rompatch stats list"),
)
def stats_command() -> None:
    """Build, list and remove key statistics.

    C, the second moment of a weight's inputs over text, tells a patch which directions to leave alone. `rompatch
    create` takes the best statistics at hand for its weight; real text is better than text that the model samples.
    """


@command(
    "build",
    examples=(
        "rompatch stats build --corpus wikipedia.txt --tokens 100000",
        "rompatch stats build --corpus hub:wikitext,wikitext-103-raw-v1",
        "rompatch stats build --corpus wikipedia.txt --layer 3-5",
        "rompatch stats build --self-sampled --layer 5",
    ),
)
@option(
    "--corpus",
    type=WORDS,
    metavar="FILE|DIR|hub:NAME",
    help="Text: a file, a folder of .txt, .md and .jsonl files, or a hub data set.",
)
@option("--self-sampled", is_flag=True, help="Text that the model samples itself.")
@option(
    "--tokens", type=click.IntRange(min=1), metavar="N", help="Tokens to count. Default: 100,000 (sampled: 16,384)."
)
@option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of the sampling.")
@json_option
@option(
    "--layer",
    "layers",
    type=LAYERS,
    multiple=True,
    metavar="N|N-M",
    group=MODEL,
    help="A layer, or a range of layers; may be repeated. Default: the one that create would edit.",
)
@model_options
def build(
    settings: Settings,
    corpus: str | None,
    self_sampled: bool,
    as_json: bool,
    layers: tuple[range, ...],
    **given: Any,
) -> None:
    """Collect statistics over text and save them.

    Several layers take one pass over the text. An interrupted pass goes on where it was when the same command is given
    again.
    """
    from rompatch.workflows.collecting import build_statistics_at

    if (corpus is None) != self_sampled:
        raise click.UsageError("Say where the text comes from: --corpus or --self-sampled, one of the two.")
    named = {name: given.pop(name) for name in ("model", "dtype", "module")}
    with settings.open_store(scratch=True) as store:
        spec = store.base_spec(**named)
        files = build_statistics_at(store, chain.from_iterable(layers), corpus, spec=spec, **given)
    if as_json:
        render.emit_json({**files[0].to_json(), "statistics": [file.to_json() for file in files]})
        return
    for file in files:
        click.echo(f"built {_line(file)}")


@command("list", examples=("rompatch stats list",))
@json_option
def list_(settings: Settings, as_json: bool) -> None:
    """List the statistics at hand, those that come with rompatch first."""
    from rompatch.workflows.statistics import statistics_cache

    files = list(statistics_cache().files())
    if as_json:
        render.emit_json({"statistics": [file.to_json() for file in files]})
        return
    if not files:
        settings.reporter().note("no statistics yet: `rompatch stats build --corpus FILE`")
        return
    rows = [
        (
            file.id[:12],
            file.key.parameter,
            file.key.corpus,
            f"{file.tokens:,}",
            render.size(file.size),
            "yes" if file.shipped else "",
        )
        for file in files
    ]
    click.echo(render.table(("id", "weight", "text", "tokens", "size", "shipped"), rows, right="34", flexible=1))


@command("show", examples=("rompatch stats show 3f2a",))
@click.argument("id", type=WORDS)
@json_option
def show(settings: Settings, id: str, as_json: bool) -> None:
    """Show where statistics come from. ID may be shortened."""
    from rompatch.workflows.statistics import statistics_cache

    file = statistics_cache().resolve(id)
    if as_json:
        render.emit_json(file.to_json())
        return
    click.echo(
        render.fields(
            [
                ("id", file.id),
                ("weight", file.key.parameter),
                ("text", f"{file.key.corpus} ({file.key.corpus_id[:12]})"),
                ("tokens", f"{file.tokens:,} in windows of {file.key.window}"),
                ("base", f"inputs {file.key.inputs_sha256[:12]}, {file.key.dtype}"),
                ("file", f"{file.path} ({render.size(file.size)})"),
                *((name, str(value)) for name, value in sorted(file.provenance.items())),
            ]
        )
    )


@command("rm", examples=("rompatch stats rm 3f2a",))
@click.argument("id", type=WORDS)
@json_option
def rm(settings: Settings, id: str, as_json: bool) -> None:
    """Delete cached statistics. ID may be shortened. Patches made with them stay as they are."""
    from rompatch.workflows.statistics import statistics_cache

    cache = statistics_cache()
    file = cache.resolve(id)
    removed = cache.remove(file)
    if as_json:
        render.emit_json({"id": file.id, "path": str(removed)})
    else:
        click.echo(f"removed {'the cached copy of ' if file.shipped else ''}{_line(file)}")


def _line(file: StatisticsFile) -> str:
    return f"{file.id[:12]}: {file.tokens:,} tokens of {render.plain(file.key.corpus)} at {file.key.parameter}"


for _subcommand in (build, list_, show, rm):
    stats_command.add_command(_subcommand)
