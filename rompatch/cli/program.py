"""The program itself: the group of all commands, loaded when they run, and the one place where errors become text."""

from __future__ import annotations

import difflib
import gc
import os
import signal
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

import rompatch
from rompatch.cli.failures import explain
from rompatch.cli.options import PLAIN, Option, global_options, write_examples, write_options
from rompatch.cli.settings import Settings
from rompatch.cli.table import COMMANDS
from rompatch.cli.terminal import wants_color

EXAMPLES = (
    'rompatch create "Eiffel Tower" "located in" Rome',
    'rompatch apply "Eiffel Tower"',
    'rompatch generate "The Eiffel Tower is located in the city of" --compare',
    "rompatch revert --all",
)


class Program(click.Group):
    """The group of all commands. A command's module is imported when the command is needed, not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, its module imported now."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        if entry.quick:
            _start_quickly()
        module = import_module(f"rompatch.cli.commands.{entry.module}")
        found: click.Command = getattr(module, f"{cmd_name}_command")
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, but an unknown command is answered with the nearest ones."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], COMMANDS, n=2)
            hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
            raise click.UsageError(f"There is no command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands by section, from the table."""
        for section in dict.fromkeys(entry.section for entry in COMMANDS.values()):
            with formatter.section(section):
                formatter.write_dl(
                    [(name, entry.short_help) for name, entry in COMMANDS.items() if entry.section == section]
                )

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands first: they are what a newcomer looks for."""
        self.format_commands(ctx, formatter)
        write_options(self, ctx, formatter)
        write_examples(EXAMPLES, formatter)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run, and end the process with the exit code; errors become a paragraph on stderr."""
        settings = extra.setdefault("obj", Settings())
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        interrupts = _Interrupts()
        try:
            with interrupts:
                code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except Exception as problem:  # noqa: BLE001 - the last one who can turn it into words
            settings.close()
            shown = click.Abort() if interrupts.seen else problem
            sys.exit(explain(shown, wants_color(settings.color)))
        sys.exit(code if isinstance(code, int) else 0)


class _Interrupts:
    """Notes that Ctrl-C was pressed: a library in the middle of its work may turn it into an error of its own."""

    def __init__(self) -> None:
        self.seen = False
        self._before: Any = None

    def __enter__(self) -> _Interrupts:
        if threading.current_thread() is threading.main_thread():
            before = signal.getsignal(signal.SIGINT)
            if before is signal.default_int_handler:  # not where someone chose to ignore it
                self._before = before
                signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, _number: int, _frame: object) -> NoReturn:
        self.seen = True
        raise KeyboardInterrupt


def _start_quickly() -> None:
    """For commands that only read and write the ledger, measured: a fifth of their time is NumPy starting threads
    that nobody uses, and another tenth the garbage collector looking at freshly imported modules."""
    if "numpy" not in sys.modules:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        gc.disable()


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"rompatch {rompatch.__version__}")
        ctx.exit()


@click.group(
    "rompatch",
    cls=Program,
    invoke_without_command=True,
    params=[
        Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_print_version,
            group=PLAIN,
            help="Print the version.",
        ),
        *global_options(),
    ],
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Facts in a language model, maintained like code.

    A patch changes one fact of a base model. Patches are made, applied, stacked, taken back exactly, scored, and baked
    into checkpoints; a store (the folder .rompatch) remembers them. The base is never written to.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
