"""The command class: grouped options, examples, and the global options behind every command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from rompatch.cli.settings import Settings
from rompatch.cli.terminal import wants_color

GLOBAL = "Global options"
PLAIN = "Options"
MODEL = "Model"
F = TypeVar("F", bound=Callable[..., Any])


def WORDS(value: str) -> str:  # noqa: N802 - a parameter type, named as click names its own
    """Text that is text: bytes that are no UTF-8 are refused here, where they can still be named."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise click.BadParameter(f"{value!r} is not valid UTF-8.") from None
    return value


DTYPE = click.Choice(["float32", "float16", "bfloat16"])
PATH = click.Path(path_type=Path)


class Option(click.Option):
    """An option that knows which group of the help it stands in."""

    def __init__(self, *args: Any, group: str = PLAIN, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class Command(click.Command):
    """A command with examples, options in groups, and the global options after its own.

    Args:
        examples: command lines that ``--help`` shows; every command has one.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)
        self.params.extend(global_options())

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group, then the examples."""
        write_options(self, ctx, formatter)
        write_examples(self.examples, formatter)


def write_options(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """The options of *command* in their groups, in the order of declaration, the global ones last."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is not None and not isinstance(param, click.Argument):  # the usage line and the text name those
            groups.setdefault(getattr(param, "group", GLOBAL), []).append(record)
    groups[GLOBAL] = groups.pop(GLOBAL, [])
    for name, records in groups.items():
        if records:
            with formatter.section(name):
                formatter.write_dl(records)


def write_examples(examples: Sequence[str], formatter: click.HelpFormatter) -> None:
    """The examples, verbatim."""
    if examples:
        with formatter.section("Examples"):
            for example in examples:
                formatter.write(f"{' ' * formatter.current_indent}{example}\n")


def option(*declarations: str, group: str = PLAIN, **attributes: Any) -> Callable[[F], F]:
    """:func:`click.option` with a group."""
    return click.option(*declarations, cls=Option, group=group, **attributes)


def stacked(*decorators: Callable[[Any], Any]) -> Callable[[F], F]:
    """Several decorators as one, the first one outermost."""

    def decorate(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def command(name: str, examples: Sequence[str]) -> Callable[[Callable[..., Any]], Command]:
    """Make a function the command *name*; it is called with :class:`Settings` first."""

    def decorate(function: Callable[..., Any]) -> Command:
        return click.command(name, cls=Command, examples=examples)(click.pass_obj(function))

    return decorate


def _keep_max_memory(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    ctx.ensure_object(Settings).max_memory = value


def _keep_offload_folder(ctx: click.Context, _param: click.Parameter, value: Path | None) -> None:
    ctx.ensure_object(Settings).offload_folder = value


json_option = option("--json", "as_json", is_flag=True, help="Print one JSON object (docs/json.md).")
message_option = option("-m", "--message", type=WORDS, metavar="TEXT", help="Why, for the ledger's log.")
reason_option = option("--reason", type=WORDS, metavar="TEXT", help="A reason kept beside the message, e.g. a ticket.")
source_option = option("--source", type=WORDS, metavar="URL", help="Where the fact comes from: an address, or words.")
expires_option = option(
    "--expires", type=WORDS, metavar="DATE", help="The day (YYYY-MM-DD, UTC) from which on it counts as expired."
)
device_option = option(
    "--device",
    default="cpu",
    metavar="NAME",
    show_default=True,
    group=MODEL,
    help="Where to run: cpu, cuda, cuda:1, mps; auto spreads the model over all there is, the disk last.",
)
model_options = stacked(
    option(
        "--model",
        type=WORDS,
        metavar="SPEC",
        group=MODEL,
        help="The base: a folder, a .gguf file, an alias or a hub id. Default: the patch's or the store's own.",
    ),
    option("--dtype", type=DTYPE, group=MODEL, help="Load the base in this dtype. Default: its own."),
    option(
        "--module",
        type=WORDS,
        metavar="PATTERN",
        group=MODEL,
        help="Where the down-projection is, {} for the layer, in models rompatch does not know.",
    ),
    device_option,
    option(
        "--max-memory",
        type=WORDS,
        metavar="DEVICE=SIZE,...",
        expose_value=False,
        callback=_keep_max_memory,
        group=MODEL,
        help="With --device auto, the most that a device may hold: cpu=2GiB,0=10GiB. Default: what is free.",
    ),
    option(
        "--offload-folder",
        type=PATH,
        metavar="DIR",
        expose_value=False,
        callback=_keep_offload_folder,
        group=MODEL,
        help="With --device auto, where weights go that stay on disk and are no safetensors yet.",
    ),
)


def global_options() -> list[click.Parameter]:
    """``--store``, ``--quiet`` and ``--color``: before the command or after it, the later one wins."""
    return [
        Option(
            ["--store"],
            type=PATH,
            metavar="PATH",
            expose_value=False,
            callback=_keep_store,
            group=GLOBAL,
            help="The store's folder. Default: ROMPATCH_STORE, else .rompatch here or above.",
        ),
        Option(
            ["-q", "--quiet"],
            is_flag=True,
            expose_value=False,
            callback=_keep_quiet,
            group=GLOBAL,
            help="No notes and no progress on stderr.",
        ),
        Option(
            ["--color/--no-color"],
            default=None,
            expose_value=False,
            callback=_keep_color,
            group=GLOBAL,
            help="Colours, or none. Default: on a terminal, unless NO_COLOR is set.",
        ),
    ]


def _keep_store(ctx: click.Context, _param: click.Parameter, value: Path | None) -> None:
    if value is not None:
        ctx.ensure_object(Settings).store = value


def _keep_quiet(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Settings).quiet = True


def _keep_color(ctx: click.Context, _param: click.Parameter, value: bool | None) -> None:
    settings = ctx.ensure_object(Settings)
    if value is not None:
        settings.color = value
    ctx.color = wants_color(settings.color)
